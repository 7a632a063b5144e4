"""A module run by torch: what it gives, what it leaves in its buffers, and the gradient by every parameter.

The gradient is of one random sum of the output and of those hidden layers that the output's gradient doesn't reach, as
behind a `detach` or beside an output that is no tensor. It is the module's own: hooks, checkpoints and Functions
included, which `torch.export` doesn't see.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import UnsupportedModuleError, one_line
from byol_jax.hidden import OUTPUT
from interop.arrays import import_torch
from interop.trace.export import record_outputs
from interop.trace.fixed_draws import fixed_draws
from interop.trace.side_effects import copy_module, in_mode

__all__ = ["MODES", "TorchRun", "run_torch", "run_torch_in"]

MODES = {False: "evaluation", True: "training"}


class TorchRun(NamedTuple):
    """What torch made of an example.

    Attributes:
        images: the example.
        dtype: the floating type of the computation.
        ends: what is compared and differentiated, by name: the output, if it is a tensor, and the layers that its
            gradient doesn't reach.
        layers: the sub-modules' outputs, flattened, those that keep the batch.
        buffers: all of them afterwards, in training, but for those that have another shape or type than before: the
            state has them as they were.
        changed: the buffers that are others than before.
        cotangents: for each end that is floating, random numbers that it is weighted by.
        gradients: of the weighted sum, by every parameter; those that torch can't give are left out.
        problem: why they are.
    """

    images: np.ndarray
    dtype: np.dtype
    ends: dict[str | int, np.ndarray]
    layers: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]
    changed: frozenset[str]
    cotangents: tuple[np.ndarray, ...]
    gradients: dict[str, np.ndarray]
    problem: str


def run_torch(module: Any, example: Any, train: bool, *, gradients: bool = True) -> TorchRun:
    """A copy of the module, run in float64 on the CPU; in its own dtype where its code refuses float64."""
    torch = import_torch()
    floating = [tensor.dtype for tensor in (example, *module.parameters()) if tensor.is_floating_point()]
    try:
        return run_torch_in(torch.float64, module, example, train, gradients=gradients)
    except UnsupportedModuleError:
        raise
    except Exception:  # its code insists on another type, and says so in its own way
        dtype = next(iter(floating), torch.float32)
    try:
        return run_torch_in(dtype, module, example, train, gradients=gradients)
    except Exception as error:
        raise UnsupportedModuleError(
            f"{type(module).__name__} in {MODES[train]} fails in torch itself, for {len(example)} inputs "
            f"({type(error).__name__}: {one_line(error, at_most=200)}); verify=False goes on regardless"
        ) from error


def run_torch_in(dtype: Any, module: Any, example: Any, train: bool, *, gradients: bool) -> TorchRun:
    torch = import_torch()
    module = in_mode(copy_module(module).cpu().to(dtype), train)
    example = example.cpu().to(dtype) if example.is_floating_point() else example.cpu()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(gradients),
        fixed_draws(torch),
        record_outputs(module) as layers,
    ):
        output = module(example.clone())
        layers = {name: value for name, value in layers.items() if value.shape[0] == example.shape[0]}
        ends = _ends(torch, output, layers)
        differentiated = _differentiate(torch, module, [*ends.values()]) if gradients else ((), {}, "")
    after = {
        name: buffer
        for name, buffer in (module.named_buffers() if train else ())
        if name not in before or (buffer.shape, buffer.dtype) == (before[name].shape, before[name].dtype)
    }
    same = {name for name, buffer in after.items() if name in before and _is_equal(torch, before[name], buffer)}
    return TorchRun(
        example.numpy(),
        np.dtype(str(dtype).removeprefix("torch.")),
        {name: value.detach().numpy() for name, value in ends.items()},
        {name: value.detach().numpy() for name, value in layers.items()},
        {name: buffer.detach().numpy() for name, buffer in after.items()},
        frozenset(after.keys() - same),
        *differentiated,
    )


def _is_equal(torch: Any, before: Any, after: Any) -> bool:
    return before.shape == after.shape and torch.equal(before.nan_to_num(), after.nan_to_num())


def _ends(torch: Any, output: Any, layers: Mapping[str, Any]) -> dict[str | int, Any]:
    """The output, if it is a tensor, and each layer, from the last on, that no gradient of those before it reaches."""
    ends: dict[str | int, Any] = {OUTPUT: output} if isinstance(output, torch.Tensor) else {}
    reached: set[Any] = set()
    todo = [end.grad_fn for end in ends.values()]
    for name, layer in reversed([*layers.items()]):
        while todo:
            function = todo.pop()
            if function is not None and function not in reached:
                reached.add(function)
                todo += [earlier for earlier, _ in function.next_functions]
        function = layer.grad_fn
        if function is None:
            is_end = not ends
        else:  # the layer was flattened, which is no part of the network
            is_end = function not in reached and function.next_functions[0][0] not in reached
        if is_end:
            ends[name] = layer
            todo = [function]
    return ends


def _differentiate(
    torch: Any, module: Any, ends: list[Any]
) -> tuple[tuple[np.ndarray, ...], dict[str, np.ndarray], str]:
    """Random cotangents of those that are floating, the gradients by the parameters, and why some are left out."""
    ends = [y for y in ends if y.is_floating_point()]
    if not ends:
        return (), {}, ""
    generator = np.random.default_rng(0)
    cotangents = tuple(np.asarray(generator.standard_normal(tuple(y.shape))) for y in ends)
    module.zero_grad(set_to_none=True)
    given = [(y, torch.from_numpy(dy).to(y.dtype)) for y, dy in zip(ends, cotangents, strict=True) if y.requires_grad]
    try:
        if given:
            torch.autograd.backward(*map(list, zip(*given, strict=True)))
    except Exception as error:  # what a module's code may do to torch's bookkeeping: anything
        return cotangents, {}, f"torch can't differentiate it ({type(error).__name__}: {one_line(error, at_most=200)})"
    gradients = {
        name: np.zeros(tuple(parameter.shape)) if parameter.grad is None else parameter.grad.to_dense().numpy()
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point()
    }
    bad = [name for name, gradient in gradients.items() if not np.isfinite(gradient).all()]
    problem = f"torch's own aren't finite ({', '.join(bad[:3])})" if bad else ""
    return cotangents, {name: gradient for name, gradient in gradients.items() if name not in bad}, problem
