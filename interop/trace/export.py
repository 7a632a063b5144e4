"""From a torch.nn.Module to two graphs, one of training and one of evaluation. All of it is torch.

`torch.export` follows the module's code once with a symbolic batch size and writes down every operator; functional
form (`functional.py`, or torch's own) then makes every in-place write a new value and every changed buffer an output. A
hook on every sub-module records its output, flattened as byol-pytorch's hook flattens it, so that one graph serves all
hidden layers. For which sizes of the batch, `batch_sizes.py` decides.
"""

import contextlib
import itertools
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import UnsupportedModuleError, one_line
from interop.arrays import as_numpy, import_torch
from interop.trace.decomposition import operator_name, take_apart, unknown_composites
from interop.trace.functional import functional_form
from interop.trace.gradients import Followed, follow_gradients
from interop.trace.graph import Dtype, Graph, Node, Placeholder, Ref
from interop.trace.python_state import Left, refuse_what_is_read, watch_state

__all__ = ["ANY_SIZE", "Refusal", "example_batch", "export_graph", "record_outputs"]

ROOT = "module"
"""The name that the network has inside the module that is exported."""

BATCH_NORMS = ("aten._native_batch_norm_legit_functional.default", "aten._native_batch_norm_legit.no_stats")
"""In training."""

ANY_SIZE = range(sys.maxsize)
"""Of a batch."""


class Refusal(Exception):
    """Torch gave up on an example; on a batch of another size it might not.

    Attributes:
        error: what to raise where it is given up altogether.
        sizes: the batches that torch says the code is one graph for; None where it doesn't say, or says only one.
    """

    def __init__(self, error: UnsupportedModuleError, sizes: range | None = None) -> None:
        super().__init__(str(error))
        self.error, self.sizes = error, sizes


def example_batch(torch: Any, module: Any, image_size: Any, channels: int, example_input: Any) -> Any:
    """A batch of two inputs as the module takes them, of its own dtype and on its device."""
    parameter = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    if example_input is not None:
        if not isinstance(example_input, torch.Tensor) or example_input.ndim < 2 or not len(example_input):
            raise UnsupportedModuleError(
                "example_input: expected one tensor [n, ...] as the module takes it, with one input at least"
            )
        example = example_input.detach()
        return (torch.cat([example] * 2) if example.shape[0] == 1 else example[:2]).to(parameter.device)
    sizes = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size or ())
    if len(sizes) != 2 or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise UnsupportedModuleError(f"image_size={image_size!r}: expected a whole number or (H, W), or example_input")
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(2, channels, *sizes, generator=generator, dtype=torch.float32)
    return example.to(parameter.device, parameter.dtype)


def export_graph(module: Any, example: Any, sizes: range | None) -> Graph:
    """The graph of `module` in the mode that it is in.

    Args:
        module: a `torch.nn.Module`; its weights and its hooks are left as they are.
        example: a tensor [n, ...] as the module takes it; n is one of `sizes`.
        sizes: the numbers of inputs that the graph is to hold for, steps of 1 or multiples of the step; None: n alone.

    Raises:
        Refusal: torch can't write the module's code down as one graph for these sizes.
        UnsupportedModuleError: nor for any others.
    """
    torch = import_torch()
    followed, left = Followed(), Left()
    wrapper, noted = _recording_module(torch, module, followed, left)
    shapes = None if sizes is None else ({0: _dimension(torch, sizes)},)
    with _running_parts(module) as running:
        try:
            with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
                warnings.simplefilter("ignore")
                exported = torch.export.export(wrapper, (example,), dynamic_shapes=shapes, strict=False)
                _detach_where_no_grad(torch, exported.graph_module)
                held = dict(exported.constants)
                written = _without_writes(torch, module, exported)
                if written is None:
                    _separate_second_names(torch, exported)
                    exported = take_apart(torch, exported)
                    written = _as_written(torch, module, exported)
        except Exception as error:
            followed.raise_if_refused(type(module).__name__)
            left.raise_if_refused(type(module).__name__)
            if isinstance(error, UnsupportedModuleError):
                raise
            raise _explanation(module, running, left, error) from error
    followed.raise_if_refused(type(module).__name__)
    left.raise_if_refused(type(module).__name__)
    followed.warn()
    graph = _as_graph(torch, module, exported, written, noted, {**exported.constants, **held})
    refuse_what_is_read(module, example, left)
    return graph


def _dimension(torch: Any, sizes: range) -> Any:
    """torch's `Dim` for the sizes; its names are the ones that `_sizes` finds in torch's advice."""
    last = None if sizes.stop == sys.maxsize else sizes[-1]
    if sizes.step == 1:
        return torch.export.Dim("batch", min=sizes.start or None, max=last)
    return sizes.step * torch.export.Dim("_batch", min=1, max=last and last // sizes.step)


def _sizes(advice: str) -> range | None:
    """The sizes of the batch that torch's advice speaks of; None for a single one, and for advice of another kind.

    Torch looks at none below 2, which may be special; so none below twice the step is taken for a multiple.

    Example:
        >>> _sizes("Suggested fixes: batch = Dim('batch', min=3)").start
        3
        >>> _sizes("Suggested fixes: _batch = Dim('_batch', min=1, max=7) batch = 4*_batch")
        range(8, 29, 4)
    """
    bounds = re.search(r"(_?)batch = Dim\('_?batch'(?:, min=(\d+))?(?:, max=(\d+))?", advice)
    if bounds is None:
        return None
    is_part, low = bounds[1], int(bounds[2] or 0)
    high = None if bounds[3] is None else int(bounds[3])
    if not is_part:
        return range(low, sys.maxsize if high is None else high + 1)
    multiple = re.search(r"\bbatch = (\d+)\*_batch(?! *[-+])", advice)
    if multiple is None:
        return None
    step = int(multiple[1])
    return range(step * max(low, 2), sys.maxsize if high is None else step * high + 1, step)


def _separate_second_names(torch: Any, exported: Any) -> None:
    """Gives each second name of a tensor one of its own: nothing reads it, and functional form takes two names of a
    tensor that is changed for two tensors in one place, and gives up."""
    seen: set[int] = set()
    for kept in (exported.state_dict, exported.constants):
        for name, tensor in kept.items():
            if id(tensor) in seen:
                copied = tensor.detach().clone()
                is_parameter = isinstance(tensor, torch.nn.Parameter)
                kept[name] = torch.nn.Parameter(copied, tensor.requires_grad) if is_parameter else copied
            seen.add(id(tensor))


@contextlib.contextmanager
def _running_parts(module: Any) -> Iterator[list[str]]:
    """Inside the context, a list of the sub-modules that are running, innermost last; an error leaves it as it was."""
    running: list[str] = []

    def enter(name: str) -> Any:
        def hook(_: Any, __: Any) -> None:
            running.append(name)

        return hook

    def leave(_: Any, __: Any, ___: Any) -> None:
        running.pop()

    handles = []
    for name, part in module.named_modules():
        if name:
            handles += [part.register_forward_pre_hook(enter(name), prepend=True), part.register_forward_hook(leave)]
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def record_outputs(module: Any) -> Iterator[dict[str, Any]]:
    """Inside the context, a dict that every sub-module's last tensor output is added to, by name, as they run.

    Outputs are flattened to [N, D], as byol-pytorch's hook flattens them.
    """
    torch = import_torch()
    outputs: dict[str, Any] = {}

    def recorder(name: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.ndim > 0:
                outputs[name] = output.reshape(output.shape[0], -1)

        return hook

    handles = [part.register_forward_hook(recorder(name)) for name, part in module.named_modules() if name]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


class Noted(NamedTuple):
    """What a run of a recording module says beside its outputs.

    Attributes:
        names: of the outputs, in order; "" for the network's own.
        assigned: attributes that were tensors before and are other tensors now.
    """

    names: list[str]
    assigned: set[str]


def _recording_module(torch: Any, module: Any, followed: Followed, left: Left) -> tuple[Any, Noted]:
    """A module that returns the network's output, if that is a tensor, and all sub-modules' outputs; and what is noted
    when it runs, as `followed` and `left` are."""
    noted = Noted([], set())

    class Recording(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, ROOT, module)

        def forward(self, x: Any) -> Any:
            before, buffers = _held_tensors(torch, module), _buffers(module)
            with watch_state(module, left), record_outputs(module) as outputs, follow_gradients(module, followed):
                output = module(x)
                _write_back(buffers, left)
            whole = {"": output} if isinstance(output, torch.Tensor) else {}
            noted.names[:] = [*whole, *outputs]
            after = _held_tensors(torch, module)
            noted.assigned.update(name for name, tensor in before.items() if after.get(name) is not tensor)
            return [*whole.values(), *outputs.values()]

    wrapper = Recording()
    wrapper.training = module.training  # the constructor says True, and export compares
    return wrapper, noted


def _buffers(module: Any) -> list[tuple[str, dict[str, Any], Any]]:
    """Of every buffer: its dotted name, the dict that it is in, and the tensor."""
    return [
        (f"{path}.{name}".removeprefix("."), part._buffers, buffer)
        for path, part in module.named_modules()
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]


def _write_back(buffers: list[tuple[str, dict[str, Any], Any]], left: Left) -> None:
    """Makes `self.buffer = new` what a graph can say, `self.buffer.copy_(new)`; where it can't, `left` has the name."""
    shared = Counter(id(buffer) for _, _, buffer in buffers)
    for full_name, where, buffer in buffers:
        name = full_name.rpartition(".")[2]
        new = where.get(name)
        if new is buffer:
            continue
        where[name] = buffer
        if new is None or shared[id(buffer)] > 1:
            left.replaced[full_name] = None
        elif (new.shape, new.dtype) != (buffer.shape, buffer.dtype):
            left.recast[full_name] = None
        else:
            buffer.copy_(new.detach())


def _detach_where_no_grad(torch: Any, graph_module: Any) -> None:
    """Detaches the inputs of every `torch.no_grad()` block, those inside of other blocks too: functional form would
    forget that there was one. It would forget `detach_` as well, which becomes `detach`."""
    for part in graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in [*part.graph.nodes]:
                if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled and not node.args[0]:
                    _detach_inputs(torch, part.graph, node)
                elif node.target is torch.ops.aten.detach_.default:
                    _detach_from_there(torch, part.graph, node)
            part.recompile()


def _detach_inputs(torch: Any, graph: Any, block: Any) -> None:
    for arg in block.args[2:]:
        if isinstance(arg, torch.fx.Node) and isinstance(arg.meta.get("val"), torch.Tensor):
            block.replace_input_with(arg, _detached(torch, graph, block, arg))


def _detach_from_there(torch: Any, graph: Any, node: Any) -> None:
    (tensor,) = node.args
    detached = _detached(torch, graph, node, tensor)
    earlier = set(itertools.takewhile(lambda other: other is not node, graph.nodes))
    node.replace_all_uses_with(detached)
    tensor.replace_all_uses_with(detached, delete_user_cb=lambda user: user not in earlier and user is not node)
    graph.erase_node(node)


def _detached(torch: Any, graph: Any, before: Any, tensor: Any) -> Any:
    with graph.inserting_before(before):
        detached = graph.call_function(torch.ops.aten.detach.default, (tensor,))
    detached.meta = dict(tensor.meta)
    return detached


def _explanation(module: Any, running: list[str], left: Left, error: Exception) -> Exception:
    """One line from torch's many, and the sub-module that was running."""
    text = one_line(error)
    kind = type(module).__name__
    where = f"{kind}, in {running[-1]} ({type(module.get_submodule(running[-1])).__name__})" if running else kind
    if "Constraints violated (" in text:
        guards = text.partition(" - ")[2].partition(" Suggested fixes")[0]
        reason = UnsupportedModuleError(f"{kind} isn't one graph for batches of any size: {guards[:300]}")
        return Refusal(reason, _sizes(text))
    if "data-dependent" in text or "DataDependent" in type(error).__name__ or ".item()" in text:
        return _depends_on_values(where, text[:300])
    if "fake tensor in the exported program" in text:
        what = ", ".join([*left.changed][:5]) or "a tensor outside of all its modules, a global or by functools.cache,"
        return UnsupportedModuleError(
            f"{where} computes {what} when it first runs and keeps it for its next call: compute it in the constructor "
            "and keep it in a buffer (register_buffer)"
        )
    if "expected compiled_fn to be GraphModule" in text:
        text = "a buffer that it changes shares its memory with another tensor: give each its own"
        return UnsupportedModuleError(f"torch.export can't follow {where}: {text}")
    return Refusal(UnsupportedModuleError(f"torch.export can't follow {where}: {type(error).__name__}: {text[:400]}"))


def _depends_on_values(where: str, detail: str) -> UnsupportedModuleError:
    return UnsupportedModuleError(
        f"{where}: it decides by the values of its input or buffers what to do, which no fixed graph can; torch.where, "
        f"which computes both, can: {detail}"
    )


class Written(NamedTuple):
    """What the code does, in functional form.

    Attributes:
        nodes: in order.
        outputs: the graph's own, in order.
        buffers: the new values, by the buffers' names in the graph.
        shapes: a value's name → its shape.
    """

    nodes: tuple[Node, ...]
    outputs: list[Ref]
    buffers: dict[str, Ref]
    shapes: Mapping[str, Any]


def _without_writes(torch: Any, module: Any, exported: Any) -> Written | None:
    """By rewriting the operators where they stand; None where torch has to find the functional form."""
    signature = exported.graph_signature
    buffers = {spec.arg.name: spec.target for spec in signature.input_specs if spec.kind.name == "BUFFER"}
    form = functional_form(torch, exported.graph, buffers, lambda call: _node(torch, module, call))
    if form is None or {spec.kind.name for spec in signature.output_specs} != {"USER_OUTPUT"}:
        return None
    if {operator_name(one) for one in unknown_composites(torch, exported.graph)} & {node.op for node in form.nodes}:
        return None
    held = {**exported.constants, **exported.state_dict}
    places = Counter(map(_memory, held.values()))
    if any(places[_memory(held.get(buffers[name]))] != 1 for name in form.written):
        return None  # or it is the memory of something else too
    outputs = [Ref(form.values[spec.arg.name]) for spec in signature.output_specs]
    new = {buffers[name]: Ref(form.values[name]) for name in form.written}
    return Written(form.nodes, outputs, new, form.shapes)


def _as_written(torch: Any, module: Any, exported: Any) -> Written:
    """As torch has written it."""
    outputs, buffers = [], {}
    for spec in exported.graph_signature.output_specs:
        kind = spec.kind.name
        if kind == "BUFFER_MUTATION":
            buffers[spec.target] = Ref(spec.arg.name)
        elif kind == "USER_OUTPUT":
            outputs.append(Ref(spec.arg.name))
        elif kind != "USER_INPUT_MUTATION":
            raise UnsupportedModuleError(
                f"{type(module).__name__} changes {spec.target} in its forward pass ({kind.lower()}): only buffers may"
            )
    nodes = tuple(_node(torch, module, node) for node in exported.graph.nodes if node.op == "call_function")
    shapes = {node.name: getattr(node.meta.get("val"), "shape", ()) for node in exported.graph.nodes}
    return Written(nodes, outputs, buffers, shapes)


def _as_graph(torch: Any, module: Any, exported: Any, written: Written, noted: Noted, held: dict[str, Any]) -> Graph:
    """`held`: the tensors that the code reads and that are no parameters or buffers by name, as the module has them."""
    signature = exported.graph_signature
    first_name = {id(tensor): name for name, tensor in reversed([*_tensors(module)])}
    by_name = dict(_tensors(module))

    def own_name(target: str) -> str:  # tied tensors have one leaf
        return first_name[id(by_name[target])]

    buffers = {own_name(target.removeprefix(f"{ROOT}.")): value for target, value in written.buffers.items()}
    sources, constants = {}, {}
    for spec in signature.input_specs:
        kind, target = spec.kind.name, (spec.target or "").removeprefix(f"{ROOT}.")
        if kind in ("PARAMETER", "BUFFER"):
            sources[spec.arg.name] = Placeholder("param" if kind == "PARAMETER" else "buffer", own_name(target))
        elif kind == "CONSTANT_TENSOR":
            tensor = held[spec.target]
            source = _held_source(torch, module, tensor, target, assigned=noted.assigned, changed={*buffers})
            sources[spec.arg.name] = source
            if source.kind == "constant":
                constants[target] = as_numpy(tensor, target)
        elif kind == "USER_INPUT":
            sources[spec.arg.name] = Placeholder("input", "")
        else:
            raise UnsupportedModuleError(f"{type(module).__name__} reads a {kind.lower()} ({target}): not a tensor")
    sizes = [written.shapes[spec.arg.name][0] for spec in signature.input_specs if written.shapes[spec.arg.name]]
    nodes = _with_own_statistics(torch, written, sizes)
    hidden = dict(zip(noted.names, written.outputs, strict=True))
    return Graph(sources, nodes, hidden.pop("", None), hidden, buffers, constants)


def _with_own_statistics(torch: Any, written: Written, sizes: list[Any]) -> tuple[Node, ...]:
    """The nodes, each batch norm that isn't over the batch marked: its statistics are no other device's matter.

    An instance norm is one of a single row, [1, N · C, ...].

    `sizes`: the first axes of what the graph reads, its input last.
    """
    is_open = any(isinstance(size, torch.SymInt) for size in sizes)

    def is_over_batch(shape: Any) -> bool:
        if not is_open:
            return shape[0] != 1 or sizes[-1] == 1
        return isinstance(shape[1], int) or any(isinstance(size, torch.SymInt) for size in (shape[0], *shape[2:]))

    return tuple(
        node._replace(options=node.options | {"synchronised": False})
        if node.op in BATCH_NORMS and not is_over_batch(written.shapes[node.args[0].name])
        else node
        for node in written.nodes
    )


def _tensors(module: Any) -> Iterator[tuple[str, Any]]:
    """All parameters and buffers, under all their names, in order."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _held_source(
    torch: Any, module: Any, tensor: Any, target: str, *, assigned: set[str], changed: set[str]
) -> Placeholder:
    """Where a tensor comes from that the code reads and that is no parameter or buffer by name.

    Args:
        target: its name in the graph.
        assigned: attributes that the code makes other tensors.
        changed: buffers that the code changes.

    Raises:
        UnsupportedModuleError: it wouldn't stay as it is.
    """
    kind, place = type(module).__name__, _memory(tensor)
    kept = {name: value for name, value in _held_tensors(torch, module).items() if place and _memory(value) == place}
    name = next(iter(kept), target)
    for own, value in _tensors(module):
        if not place or _memory(value) != place:
            continue
        alike = [(part.shape, part.stride(), part.storage_offset()) for part in (value, tensor)]
        if not isinstance(value, torch.nn.Parameter) and alike[0] == alike[1] and own not in changed:
            return Placeholder("buffer", own)
        raise UnsupportedModuleError(
            f"{kind} reads {name}, no parameter or buffer, which shares the memory of {own}: read {own} in its place"
        )
    if name in assigned:
        raise UnsupportedModuleError(
            f"{kind} leaves {name} for its next call, which is no buffer: make it one by register_buffer"
        )
    if tensor.grad_fn is not None or any(value.grad_fn is not None for value in kept.values()):
        raise UnsupportedModuleError(
            f"{kind} reads {name}, which was computed from parameters before it ran and gives them no gradient: "
            "compute it in forward, or detach it"
        )
    return Placeholder("constant", target)


def _held_tensors(torch: Any, module: Any) -> dict[str, Any]:
    """Tensors that are attributes, but neither parameters nor buffers, by dotted name."""
    return {
        f"{path}.{name}".removeprefix("."): value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, torch.Tensor)
    }


def _memory(tensor: Any) -> int:
    """Where the tensor's storage lies; 0 where it has none."""
    return tensor.untyped_storage().data_ptr() if str(getattr(tensor, "layout", "")) == "torch.strided" else 0


def _node(torch: Any, module: Any, node: Any) -> Node:
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ROOT
    path = path.removeprefix(ROOT).removeprefix(".")
    if free_unbacked_symbols(node.meta.get("val")):
        where = f"{type(module).__name__}, in {path}" if path else type(module).__name__
        operator = operator_name(node.target)
        if operator == "aten.index.Tensor":
            raise UnsupportedModuleError(
                f"{where}: it decides by the values of a mask how much it takes, by {operator} (x[mask]), which no "
                "fixed graph can: where the mask never changes index by whole numbers, mask.nonzero().flatten() of the "
                "constructor; elsewhere torch.where gives all places one shape"
            )
        raise _depends_on_values(where, f"{operator} gives a number or a size by what it reads")
    args = tuple(_argument(torch, arg, path) for arg in node.args)
    options = {
        name: _argument(torch, value, path)
        for name, value in node.kwargs.items()
        if not isinstance(value, torch.device | torch.layout | torch.memory_format) and name != "pin_memory"
    }
    return Node(node.name, operator_name(node.target), args, options, path)


def _argument(torch: Any, arg: Any, path: str) -> Any:
    if isinstance(arg, torch.fx.Node):
        if arg.op == "get_attr":
            raise UnsupportedModuleError(f"{path or 'the network'} has control flow over tensors: not supported")
        return Ref(arg.name)
    if isinstance(arg, torch.dtype):
        name = str(arg).removeprefix("torch.")
        if arg.is_complex or name.startswith(("q", "bits")):
            raise UnsupportedModuleError(f"{path or 'the network'} computes in {name}: only real, unquantised numbers")
        return Dtype(name)
    if isinstance(arg, list | tuple):
        return tuple(_argument(torch, part, path) for part in arg)
    if isinstance(arg, torch.device | torch.layout | torch.memory_format | torch.Generator):
        return None
    if isinstance(arg, np.generic):
        return arg.item()
    return arg
