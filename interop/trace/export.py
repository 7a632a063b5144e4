"""From a torch.nn.Module to two graphs, one of training and one of evaluation. All of it is torch.

`torch.export` follows the module's code once with a symbolic batch size and writes down every operator; functional
form then makes every in-place write a new value and every changed buffer an output. A hook on every sub-module records
its output, flattened as byol-pytorch's hook flattens it, so that one graph serves all hidden layers.
"""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import UnsupportedModuleError, one_line
from interop.arrays import as_numpy, import_torch
from interop.trace.gradients import Followed, follow_gradients
from interop.trace.graph import Dtype, Graph, Node, Placeholder, Ref

__all__ = ["Traced", "example_batch", "record_outputs", "trace"]

ROOT = "module"
"""The name that the network has inside the module that is exported."""


class Traced(NamedTuple):
    """The graphs of both modes, and all sub-modules' names in order of definition."""

    train: Graph
    eval: Graph
    names: tuple[str, ...]


def example_batch(torch: Any, module: Any, image_size: Any, channels: int, example_input: Any) -> Any:
    """A batch of two inputs as the module takes them, of its own dtype and on its device."""
    parameter = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    if example_input is not None:
        if not isinstance(example_input, torch.Tensor) or example_input.ndim < 2:
            raise UnsupportedModuleError("example_input: expected one tensor [n, ...] as the module takes it")
        example = example_input.detach()
        return (torch.cat([example] * 2) if example.shape[0] == 1 else example[:2]).to(parameter.device)
    sizes = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size or ())
    if len(sizes) != 2 or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise UnsupportedModuleError(f"image_size={image_size!r}: expected a whole number or (H, W), or example_input")
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(2, channels, *sizes, generator=generator, dtype=torch.float32)
    return example.to(parameter.device, parameter.dtype)


def trace(module: Any, example: Any) -> Traced:
    """Both graphs of `module`, with the batch's size open.

    Args:
        module: a `torch.nn.Module`; its mode, its weights and its hooks are left as they are.
        example: a tensor [2, ...] as the module takes it.

    Raises:
        UnsupportedModuleError: torch can't write the module's code down as one graph.
    """
    graphs = {}
    with _keep_modes(module):
        for train in (True, False):
            module.train(train)
            graphs[train] = _export(module, example)
    names = tuple(name for name, _ in module.named_modules() if name)
    return Traced(graphs[True], graphs[False], names)


@contextlib.contextmanager
def _keep_modes(module: Any) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def _export(module: Any, example: Any) -> Graph:
    torch = import_torch()
    followed = Followed()
    wrapper, names = _recording_module(torch, module, followed)
    batch = torch.export.Dim("batch")
    try:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(wrapper, (example,), dynamic_shapes=({0: batch},), strict=False)
            _detach_where_no_grad(torch, exported.graph_module)
            exported = exported.run_decompositions({})
    except Exception as error:
        followed.raise_if_refused(type(module).__name__)
        raise UnsupportedModuleError(_reason(module, error)) from error
    followed.raise_if_refused(type(module).__name__)
    followed.warn()
    return _as_graph(torch, module, exported, names)


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


def _recording_module(torch: Any, module: Any, followed: Followed) -> tuple[Any, list[str]]:
    """A module that returns the network's output, if that is a tensor, and all sub-modules' outputs; and the list of
    their names, filled when it runs, as `followed` is."""
    names: list[str] = []

    class Recording(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, ROOT, module)

        def forward(self, x: Any) -> Any:
            with record_outputs(module) as outputs, follow_gradients(module, followed):
                output = module(x)
            whole = {"": output} if isinstance(output, torch.Tensor) else {}
            names[:] = [*whole, *outputs]
            return [*whole.values(), *outputs.values()]

    wrapper = Recording()
    wrapper.training = module.training  # the constructor says True, and export compares
    return wrapper, names


def _detach_where_no_grad(torch: Any, graph_module: Any) -> None:
    """Detaches the inputs of every `torch.no_grad()` block; functional form would forget that there was one."""
    blocked = torch.ops.higher_order.wrap_with_set_grad_enabled
    for node in graph_module.graph.nodes:
        if node.op != "call_function" or node.target is not blocked or node.args[0]:
            continue
        with graph_module.graph.inserting_before(node):
            for arg in node.args[2:]:
                if isinstance(arg, torch.fx.Node) and isinstance(arg.meta.get("val"), torch.Tensor):
                    detached = graph_module.graph.call_function(torch.ops.aten.detach.default, (arg,))
                    detached.meta = dict(arg.meta)
                    node.replace_input_with(arg, detached)
    graph_module.recompile()


def _reason(module: Any, error: Exception) -> str:
    """One line from torch's many."""
    text = one_line(error)
    kind = type(module).__name__
    if "data-dependent" in text or "DataDependent" in type(error).__name__ or ".item()" in text:
        return (
            f"{kind} decides by the values of its input or buffers what to do, which no fixed graph can: {text[:300]}"
        )
    return f"torch.export can't follow {kind}: {type(error).__name__}: {text[:400]}"


def _as_graph(torch: Any, module: Any, exported: Any, names: list[str]) -> Graph:
    signature = exported.graph_signature
    first_name = {id(tensor): name for name, tensor in reversed([*_tensors(module)])}
    by_name = dict(_tensors(module))
    sources, constants = {}, {}
    for spec in signature.input_specs:
        kind, target = spec.kind.name, (spec.target or "").removeprefix(f"{ROOT}.")
        if kind in ("PARAMETER", "BUFFER"):
            name = first_name[id(by_name[target])]  # tied tensors have one leaf
            sources[spec.arg.name] = Placeholder("param" if kind == "PARAMETER" else "buffer", name)
        elif kind == "CONSTANT_TENSOR":
            sources[spec.arg.name] = Placeholder("constant", target)
            constants[target] = as_numpy(exported.constants[spec.target], target)
        elif kind == "USER_INPUT":
            sources[spec.arg.name] = Placeholder("input", "")
        else:
            raise UnsupportedModuleError(f"{type(module).__name__} reads a {kind.lower()} ({target}): not a tensor")
    nodes = tuple(
        _node(torch, exported.graph_module, node) for node in exported.graph.nodes if node.op == "call_function"
    )
    buffers, outputs = {}, []
    for spec in signature.output_specs:
        kind = spec.kind.name
        if kind == "BUFFER_MUTATION":
            target = spec.target.removeprefix(f"{ROOT}.")
            buffers[first_name[id(by_name[target])]] = Ref(spec.arg.name)
        elif kind == "USER_OUTPUT":
            outputs.append(Ref(spec.arg.name))
        elif kind != "USER_INPUT_MUTATION":
            raise UnsupportedModuleError(
                f"{type(module).__name__} changes {spec.target} in its forward pass ({kind.lower()}): only buffers may"
            )
    hidden = dict(zip(names, outputs, strict=True))
    return Graph(sources, nodes, hidden.pop("", None), hidden, buffers, constants)


def _tensors(module: Any) -> Iterator[tuple[str, Any]]:
    """All parameters and buffers, under all their names, in order."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _node(torch: Any, graph_module: Any, node: Any) -> Node:
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ROOT
    path = path.removeprefix(ROOT).removeprefix(".")
    args = tuple(_argument(torch, arg, path) for arg in node.args)
    options = {
        name: _argument(torch, value, path)
        for name, value in node.kwargs.items()
        if not isinstance(value, torch.device | torch.layout | torch.memory_format) and name != "pin_memory"
    }
    return Node(node.name, _operator_name(node.target), args, options, path)


def _operator_name(target: Any) -> str:
    """ "aten.relu.default" for torch's operators; the bare name for Python's."""
    text = str(target)
    return text if hasattr(target, "_schema") else getattr(target, "__name__", text)


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
