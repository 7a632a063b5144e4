"""Both frameworks on the same input, in both modes, before a traced network is handed out.

Output, changed buffers and the gradient by every parameter are compared twice:

    in float64    where what is left of a difference is the order of sums; compiled without LLVM's optimisations
    in float32    as training and embedding run: XLA's own optimisation, batches of 2 and 8

Parameters that are zero altogether, as the last scale of a residual block often is, would hide all that lies behind
them: they get noise, on both sides. What would be random is the same on both (`interop/trace/fixed_draws.py`), so
dropout keeps everything.

A batch norm over two values, as a ResNet's last at 32 × 32 pixels, makes much of the order of sums still: what differs
in training is compared again on more inputs. In float32 the network itself says what rounding may do: torch's own
result in float32 is as far from that in float64; and what differs has to differ on several inputs.
"""

import itertools
import os
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from byol_jax.errors import ConversionMismatchError
from byol_jax.hidden import OUTPUT
from byol_jax.ops.compilation import quick_options
from byol_jax.tree import flatten, unflatten
from byol_jax.types import Encoder, Variables
from interop.arrays import as_numpy, import_torch
from interop.trace.graph import dtype_names
from interop.trace.side_effects import copy_module
from interop.trace.verification.distances import GRADIENT, distances_from_torch, relative_difference, tolerance
from interop.trace.verification.jax_run import JaxRun, forward_and_backward, run_jax
from interop.trace.verification.torch_run import MODES, TorchRun, run_torch, run_torch_in

__all__ = ["IN_FLOAT64_ALONE", "is_another_alone", "more_inputs", "verify_encoder"]

ROLLS = 8
"""Times two inputs, where two weren't enough. Measured for torchvision's resnet152 at 32 × 32 pixels: 6e-5 with two
inputs, above 1e-6 for each of six draws of the weights; 1e-11 with eight and more."""

NOISE = 0.1
"""The spread of what stands in for a parameter of zeros."""

OPTIMIZED = {"xla_backend_optimization_level": 3}
"""XLA's default, whatever XLA_FLAGS says."""

OPTIMIZED_BATCHES = (2, 8)
"""XLA chooses its kernels by size, and some of them were wrong for one size alone."""

IN_FLOAT64_ALONE = "BYOL_JAX_VERIFY_IN_FLOAT64_ALONE"
"""An environment variable, for tests that only need some traced network: where it is set, float32 is left out."""

ROUNDING = 100
"""Times its own rounding in torch, a network's result in float32 may be off in JAX, at least `LEAST_ROUNDING`."""

LEAST_ROUNDING = 1e-5
"""About a hundred times float32's own epsilon. A network of a few hundred layers has that much."""

ATTEMPTS = 4
"""Inputs on which the same number has to be wrong. Rounding puts a number on the other side of a ReLU's bend now and
then, for one framework and not for the other: a bias's gradient of resnet18 at 64 pixels was 9e-2 off by that."""

SMALLEST_SPECIAL = 1e-3
"""What code that takes a single input for special changes at least; a batch norm over few values may differ by less."""

NARROW = ("float16", "bfloat16")
"""Dtypes whose rounding in torch is further off than any tolerance."""


def verify_encoder(module: Any, encoder: Encoder, example: Any, variables: Variables) -> None:
    """Compares the output, all buffers and all gradients, in training and in evaluation.

    Args:
        module: the original; only read.
        encoder: the traced network, its operators that draw replaced by `FIXED_DRAWS`.
        example: [2, ...] as the module takes it.
        variables: the module's, as NumPy arrays.

    Raises:
        ConversionMismatchError: names the first sub-module with another output, or the parameter nearest to the output
            with another gradient, and by how much it differs.

    Warns: where torch's own gradients can't be had, so that there is nothing to compare with.
    """
    module, variables = _without_zeros(module, variables)
    problems = {}
    for train in (False, True):
        wanted = run_torch(module, example, train)
        found = _differences(encoder, variables, wanted, train)
        if found and train:
            wanted = run_torch(module, more_inputs(example), train)
            found = _differences(encoder, variables, wanted, train)
        if found:
            only_gradients = all(name.startswith(GRADIENT) for name, _ in found)
            layer = None if only_gradients else _first_layer(encoder, variables, wanted, train)
            where, difference = layer or found[0]
            raise ConversionMismatchError(
                f"{type(module).__name__} in {MODES[train]}: JAX and torch differ by {difference:.1e} of the largest "
                f"value, first at {where}; {_narrow_cast(encoder, train)}verify=False goes on regardless"
            )
        if wanted.problem:
            problems[wanted.problem] = MODES[train]
    for problem, mode in problems.items():
        text = f"{type(module).__name__} in {mode}: gradients weren't compared, for {problem}"
        warnings.warn(text, stacklevel=3)
    batches = () if os.environ.get(IN_FLOAT64_ALONE) else OPTIMIZED_BATCHES
    for train, batch in itertools.product((False, True), batches):
        _verify_optimized(module, encoder, more_inputs(example)[: batch * len(example) // 2], variables, train)


def _narrow_cast(encoder: Encoder, train: bool) -> str:
    """Where the network asks for 16 bits by name, which here is the run's own dtype; "" where nowhere."""
    traced = encoder.facts.traced and encoder.facts.traced.traced
    nodes = () if traced is None else (traced.train if train else traced.eval).nodes
    for node in nodes:
        for name in dtype_names((node.args, node.options)):
            if name in NARROW:
                return (
                    f"{node.module or 'the network itself'} computes in {name} ({node.op}), which here is the run's "
                    "own dtype, so leave the cast out; "
                )
    return ""


def _verify_optimized(module: Any, encoder: Encoder, example: Any, variables: Variables, train: bool) -> None:
    """The same in float32, compiled as users' programs are; in evaluation, where nobody trains, without gradients."""
    rounding: dict[str, float] = {}
    run = jax.jit(partial(forward_and_backward, encoder, train), static_argnums=0, compiler_options=OPTIMIZED)
    off: dict[str, tuple[float, float]] = {}
    for attempt in range(ATTEMPTS):
        found = _off_in_float32(module, run, _roll(example, attempt * ROLLS), variables, train, rounding)
        off = {name: found[name] for name in found if name in off or not attempt}
        if not off:
            return
    name, (distance, allowed) = next(iter(off.items()))
    raise ConversionMismatchError(
        f"{type(module).__name__} in {MODES[train]}, compiled in float32 for {len(example)} inputs: {name} is off by "
        f"{distance:.1e} of the largest value where rounding explains {allowed:.1e}: XLA of jaxlib "
        f"{version('jaxlib')} computes it wrongly; use another version, or verify=False goes on regardless"
    )


def _off_in_float32(
    module: Any, run: Callable[..., Any], inputs: Any, variables: Variables, train: bool, rounding: dict[str, float]
) -> dict[str, tuple[float, float]]:
    """What is further off than `rounding` explains: how far, and what that explains.

    Args:
        rounding: how far torch in float32 is from torch in float64; the largest seen, which these inputs may add to.
    """
    wanted = run_torch(module, inputs, train, gradients=train)
    if not wanted.ends:
        return {}
    try:
        rounded = run_torch_in(import_torch().float32, module, inputs, train, gradients=train)
    except Exception:  # its code insists on another type
        rounded = wanted
    own = JaxRun(rounded.ends, rounded.buffers, rounded.gradients)
    for name, distance in distances_from_torch(own, wanted, gradients=train).items():
        rounding[name] = max(rounding.get(name, LEAST_ROUNDING), distance)
    ours = run_jax(partial(run, tuple(wanted.ends)), variables, wanted, gradients=train, dtype=np.float32)
    distances = distances_from_torch(ours, wanted, gradients=train)
    allowed = {name: max(ROUNDING * rounding.get(name, LEAST_ROUNDING), tolerance(wanted)) for name in distances}
    return {name: (distance, allowed[name]) for name, distance in distances.items() if not distance <= allowed[name]}


def _without_zeros(module: Any, variables: Variables) -> tuple[Any, Variables]:
    """A copy of both, in which every parameter that is zero altogether has noise."""
    torch = import_torch()
    generator = np.random.default_rng(0)
    module, params = copy_module(module), flatten(variables.params)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.is_floating_point() and parameter.numel() and not parameter.any():
                noise = NOISE * generator.standard_normal(tuple(parameter.shape))
                parameter.copy_(torch.from_numpy(np.asarray(noise)))
                params[name.replace(".", "/")] = as_numpy(parameter, name).copy()
    return module, variables._replace(params=unflatten(params))


def more_inputs(example: Any) -> Any:
    """The example and the same rolled along, which keeps every kind of input in its range: [2 ROLLS, ...]."""
    return import_torch().cat([_roll(example, shift) for shift in range(ROLLS)])


def _roll(example: Any, shift: int) -> Any:
    return example.flatten(1).roll(shift, 1).view_as(example)


def _differences(
    encoder: Encoder, variables: Variables, wanted: TorchRun, train: bool, *, gradients: bool = True
) -> list[tuple[str, float]]:
    """What differs, and by how much."""
    if not wanted.ends:
        return []
    run = jax.jit(partial(forward_and_backward, encoder, train, tuple(wanted.ends)), compiler_options=quick_options())
    ours = run_jax(run, variables, wanted, gradients=gradients)
    distances = distances_from_torch(ours, wanted, gradients=gradients)
    return [(name, distance) for name, distance in distances.items() if not distance <= tolerance(wanted)]


def _first_layer(encoder: Encoder, variables: Variables, wanted: TorchRun, train: bool) -> tuple[str, float] | None:
    """The first sub-module with another output, and by how much it differs; they are run one by one."""
    for name, output in wanted.layers.items():
        only = wanted._replace(ends={name: output})
        ours = run_jax(partial(forward_and_backward, encoder, train, (name,)), variables, only, gradients=False)
        distance = relative_difference(ours.ends[name], output)
        if not distance <= tolerance(wanted):
            return name, distance
    return None


def is_another_alone(module: Any, encoder: Encoder, example: Any, variables: Variables) -> bool:
    """Whether the module, in either mode, makes something else of a single input than the encoder does.

    torch.export looks at no batch of one, and code may do something else with it. JAX runs only where torch makes other
    numbers of the example's first input alone than of it beside another.
    """
    for train in (False, True):
        try:
            pair, alone = (run_torch(module, example[:size], train, gradients=False) for size in (2, 1))
        except Exception:  # the module's own code, which may refuse a single input: then there is nothing to compare
            continue
        if OUTPUT not in pair.ends or OUTPUT not in alone.ends:
            continue
        outputs = alone.ends[OUTPUT].flatten(), pair.ends[OUTPUT][:1].flatten()
        if relative_difference(*outputs) <= tolerance(alone):
            continue
        found = _differences(encoder, variables, alone, train, gradients=False)
        if any(not distance <= SMALLEST_SPECIAL for _, distance in found):
            return True
    return False
