"""What stands in the way of a module: things that no trace would notice, and operators without a JAX counterpart."""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byol_jax.errors import UnsupportedModuleError, UnsupportedOpError
from interop.arrays import DTYPE_NAMES, import_torch, is_expanded
from interop.trace.batch_sizes import Traced, resize_batch, trace
from interop.trace.export import example_batch
from interop.trace.gradients import hooks_on_gradients
from interop.trace.graph import COTANGENT, FUNCTION, Graph, Placeholder
from interop.trace.interpret import interpret, program
from interop.trace.ops.table import find
from interop.trace.side_effects import check_copy, keep_random_states
from interop.trace.values import from_torch_order

__all__ = ["Missing", "Report", "check", "check_module", "extra_states", "find_missing", "missing_ops"]


QUANTISED = re.compile(r"torch\.(ao\.)?nn\.(\w+\.)*quantized(\.|$)")
"""Where torch's quantised layers are defined."""

FLOAT_CONTAINERS = ("FloatFunctional", "FXFloatFunctional")
"""Classes defined there whose arithmetic is of floats: they mark what may be quantised later."""


class Report(NamedTuple):
    """Whether `from_torch_module` takes a module, and if not, why: one line a reason."""

    supported: bool
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.problems) or "supported"


def check(
    module: Any, *, image_size: int | Sequence[int] | None = 224, channels: int = 3, example_input: Any = None
) -> Report:
    """Whether this module can be imported, and if not everything in the way, with module paths.

    Nothing is computed but shapes, unless the module leaves something in its attributes: then copies of it run a few
    times.
    Hooks on gradients, and Functions whose backward can't be followed, are among it. What only numbers tell, such as an
    operator that computes something else, is left to `from_torch_module`'s verification.

    Args:
        module, image_size, channels, example_input: as `from_torch_module` takes them.

    Returns:
        A `Report`; `print(report)` has a line for each problem.

    Raises:
        MissingDependencyError: torch is absent.

    Example:
        >>> import torch
        >>> check(torch.nn.Conv2d(3, 4, 3), image_size=8)
        Report(supported=True, problems=())
        >>> check(torch.nn.BatchNorm2d(3, momentum=None), image_size=8).supported
        False
    """
    try:
        traced, example = _trace(module, image_size, channels, example_input)
        check_copy(module)
        operators = find_missing(traced.train, traced.eval).operators
        if not operators:
            for graph in (traced.train, traced.eval):
                _follow_shapes(module, graph, resize_batch(example, traced.example_size))
    except (UnsupportedModuleError, UnsupportedOpError) as error:
        return Report(False, (str(error),))
    problems = tuple(
        f"{name} (in {', '.join(paths)}) has no JAX counterpart yet: write it with interop.register_op({name!r})"
        for name, paths in operators.items()
    )
    return Report(not problems, problems)


def missing_ops(
    module: Any, *, image_size: int | Sequence[int] | None = 224, channels: int = 3, example_input: Any = None
) -> list[str]:
    """The operators that `register_op` would have to add before `module` can be imported; empty where all are known.

    Raises:
        UnsupportedModuleError: the module can't be written down as one graph, whatever the operators.

    Example:
        >>> import torch
        >>> missing_ops(torch.nn.Conv2d(3, 4, 3), image_size=8)
        []
    """
    traced, _ = _trace(module, image_size, channels, example_input)
    return list(find_missing(traced.train, traced.eval).operators)


def _trace(module: Any, image_size: Any, channels: int, example_input: Any) -> tuple[Traced, Any]:
    """Both graphs, and the example of two inputs."""
    with keep_random_states(module):
        check_module(module)
        example = example_batch(import_torch(), module, image_size, channels, example_input)
        return trace(module, example, 2 if example_input is None else len(example_input)), example


def _follow_shapes(module: Any, graph: Graph, example: Any) -> None:
    """Runs the graph for nothing but shapes and dtypes, as in float32, which shows how every operator is called.

    Raises:
        UnsupportedOpError: an operator isn't written for what it is called with.
    """
    tensors = dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])
    wanted = [*graph.hidden.values(), *graph.buffers.values(), *filter(None, [graph.output])]

    def shape_of(source: Placeholder) -> jax.ShapeDtypeStruct:
        held = example if source.kind == "input" else tensors.get(source.target)
        if held is None:
            held = graph.constants[source.target]
        dtype = jnp.dtype(str(held.dtype).removeprefix("torch."))
        dtype = jnp.float32 if jnp.issubdtype(dtype, jnp.floating) else jnp.int32 if dtype == "int64" else dtype
        return jax.ShapeDtypeStruct(tuple(held.shape), dtype)

    def run(arrays: dict[str, jax.Array], key: jax.Array) -> None:
        sources = {name: from_torch_order(array) for name, array in arrays.items()}
        interpret(program(graph, wanted), sources, wanted, floating=jnp.dtype(jnp.float32), key=key, axis_name=None)

    jax.eval_shape(run, {name: shape_of(source) for name, source in graph.sources.items()}, jax.random.key(0))


class Missing(NamedTuple):
    """Operators without a JAX counterpart: name → the modules that use it, in order."""

    operators: dict[str, list[str]]

    def raise_if_any(self, network: str) -> None:
        if not self.operators:
            return
        listed = "; ".join(f"{name} (in {', '.join(paths[:3])})" for name, paths in self.operators.items())
        raise UnsupportedOpError(
            f"{network} uses {len(self.operators)} operators that have no JAX counterpart yet: {listed}; "
            "write them with interop.register_op"
        )


def find_missing(*graphs: Graph) -> Missing:
    """All operators of the graphs that the table lacks."""
    operators: dict[str, list[str]] = {}
    for graph in graphs:
        for node in graph.nodes:
            if find(node.op) is None and node.op not in (COTANGENT, FUNCTION):
                paths = operators.setdefault(node.op, [])
                if (node.module or "the network itself") not in paths:
                    paths.append(node.module or "the network itself")
    return Missing(operators)


def check_module(module: Any) -> None:
    """Refuses what no trace would notice, or only too late: lazy parameters, cumulative averages, unusual numbers or
    none, quantised layers, code that torch.jit has compiled, names that can't be a leaf's path.

    Raises:
        UnsupportedModuleError: all reasons at once, each with its path and what to do.
    """
    torch = import_torch()
    if not isinstance(module, torch.nn.Module):
        raise UnsupportedModuleError(f"expected a torch.nn.Module, got {type(module).__name__}")
    if compiled := [name or "it" for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]:
        raise UnsupportedModuleError(
            f"{type(module).__name__} can't be imported: {compiled[0]} was compiled by torch.jit: import the module "
            "that it was made from"
        )
    reasons = [
        *_slashes(module),
        *_quantised_layers(module),
        *_lazy_parameters(torch, module),
        *_cumulative_norms(torch, module),
        *hooks_on_gradients(torch, module),
    ]
    if not reasons:  # lazy tensors have no dtype to look at, and no memory
        reasons = [*_without_values(module), *_unsupported_dtypes(module), *_overlaps(module)]
    if reasons:
        raise UnsupportedModuleError(f"{type(module).__name__} can't be imported: {'; '.join(reasons)}")


def extra_states(module: Any) -> list[str]:
    """The keys of a module's state dict for what `get_extra_state` gives, which is no tensor of its own."""
    own = import_torch().nn.Module.get_extra_state
    parts = [name for name, part in module.named_modules() if type(part).get_extra_state is not own]
    return [f"{name}._extra_state".removeprefix(".") for name in parts]


def _slashes(module: Any) -> Sequence[str]:
    names = [name for name, _ in (*module.named_modules(), *module.named_parameters(), *module.named_buffers())]
    return [
        f"{name} has a slash in its name, which separates a leaf's path: rename it" for name in names if "/" in name
    ]


def _lazy_parameters(torch: Any, module: Any) -> Sequence[str]:
    return [
        f"{name} is a lazy parameter that has no shape yet: run the module once first"
        for name, parameter in module.named_parameters()
        if torch.nn.parameter.is_lazy(parameter)
    ]


def _quantised_layers(module: Any) -> Sequence[str]:
    return [
        f"{name or 'the module'} is a quantised {type(part).__name__}: import the float module that it was made from"
        for name, part in module.named_modules()
        if QUANTISED.match(type(part).__module__) and type(part).__name__ not in FLOAT_CONTAINERS
    ]


def _without_values(module: Any) -> Sequence[str]:
    names = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if not names:
        return []
    listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return [
        f"on torch's meta device, without values: {listed}: load them first, by load_state_dict(…, assign=True) or "
        'after to_empty(device="cpu")'
    ]


def _cumulative_norms(torch: Any, module: Any) -> Sequence[str]:
    batch_norm = torch.nn.modules.batchnorm._BatchNorm
    return [
        f"{name or 'the module'} is a {type(part).__name__} with momentum=None, a cumulative average: give it a number"
        for name, part in module.named_modules()
        if isinstance(part, batch_norm) and part.track_running_stats and part.momentum is None
    ]


def _unsupported_dtypes(module: Any) -> Sequence[str]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [
        f"{name} is {tensor.dtype}: only real, unquantised numbers"
        for name, tensor in tensors
        if tensor.is_quantized or tensor.is_complex() or str(tensor.dtype).removeprefix("torch.") not in DTYPE_NAMES
    ]


def _overlaps(module: Any) -> Sequence[str]:
    """Tensors that are other ones, but lie in the memory of a parameter, which an optimiser would change with it; and
    parameters that are one number in several places."""
    parameters = {id(tensor) for tensor in module.parameters()}
    placed = sorted(
        (tensor.data_ptr(), name, tensor)
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if tensor.numel() and not tensor.is_meta and str(tensor.layout) == "torch.strided"
    )
    repeated = [name for name, tensor in module.named_parameters() if is_expanded(tensor)]
    return [f"{name} is expanded, one number in several places: expand it in forward" for name in repeated] + [
        f"{second} lies in the memory of {first}: make them one tensor, or give each its own"
        for (start, first, tensor), (next_start, second, other) in itertools.pairwise(placed)
        if next_start < start + _extent(tensor) and {id(tensor), id(other)} & parameters
    ]


def _extent(tensor: Any) -> int:
    """The bytes from the tensor's first element to the end of its last."""
    steps = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()
