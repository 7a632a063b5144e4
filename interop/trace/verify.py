"""Both frameworks on the same input, in both modes, before a traced network is handed out.

Output, changed buffers and the gradient by every parameter are compared twice:

    in float64    where what is left of a difference is the order of sums; compiled without LLVM's optimisations
    in float32    as training and embedding run: XLA's own optimisation, batches of 2 and 8

The gradient is of one random sum of the output and of those hidden layers that the output's gradient doesn't reach, as
behind a `detach` or beside an output that is no tensor. Torch's is the module's own: hooks, checkpoints and Functions
included, which `torch.export` doesn't see. Parameters that are zero altogether, as the last scale of a residual block
often is, would hide all that lies behind them: they get noise, on both sides. What would be random is the same on both
(`fixed_draws.py`), so dropout keeps everything.

A batch norm over two values, as a ResNet's last at 32 × 32 pixels, makes much of the order of sums still: what differs
in training is compared again on more inputs. In float32 the network itself says what rounding may do: torch's own
result in float32 is as far from that in float64; and what differs has to differ on several inputs.
"""

import itertools
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConversionMismatchError, UnsupportedModuleError, one_line
from byol_jax.hidden import OUTPUT
from byol_jax.ops.compilation import quick_options
from byol_jax.ops.precision import standard_promotion
from byol_jax.tree import cast, flatten, unflatten
from byol_jax.types import Encoder, Variables
from interop.arrays import as_numpy, import_torch
from interop.trace.export import record_outputs
from interop.trace.fixed_draws import fixed_draws
from interop.trace.graph import dtype_names
from interop.trace.side_effects import copy_module, in_mode

__all__ = ["ROLLS", "SMALLEST_SCALE", "more_inputs", "relative_difference", "verify_encoder"]

TOLERANCE = {"float64": 1e-6, "float32": 1e-2}
"""Of the largest value. Measured in float64: 9e-14 for torchvision's mobilenet_v2 in training, 2e-15 for convnext_tiny.
float32 is for modules that insist on it; there batch norm makes much of rounding."""

ROLLS = 8
"""Times two inputs, where two weren't enough. Measured for torchvision's resnet152 at 32 × 32 pixels: 6e-5 with two
inputs, above 1e-6 for each of six draws of the weights; 1e-11 with eight and more."""

SMALLEST_SCALE = 1e-3
"""Values that are zero in truth, such as the mean of what was centred just before, are compared to this."""

SMALLEST_SHARE = {"float64": 1e-4, "float32": 1e-2}
"""Gradients are compared to at least this share of the largest of all: that of a bias before a batch norm is zero in
truth, and by rounding 2e-14 of the largest in float64 (timm's starnet_s050)."""

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

MODES = {False: "evaluation", True: "training"}

GRADIENT = "the gradient by "

Program = Callable[[Variables, jax.Array, Any], tuple[tuple[jax.Array, ...], Any, Any]]


def verify_encoder(module: Any, encoder: Encoder, example: Any, variables: Variables) -> None:
    """Compares the output, all buffers and all gradients, in training and in evaluation.

    Args:
        module: the original; only read.
        encoder: the traced network, its operators that draw replaced by `fixed_draws.FIXED_DRAWS`.
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
        wanted = _run_torch(module, example, train)
        found = _differences(encoder, variables, wanted, train)
        if found and train:
            wanted = _run_torch(module, more_inputs(example), train)
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
    run = jax.jit(partial(_forward_and_backward, encoder, train), static_argnums=0, compiler_options=OPTIMIZED)
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
    wanted = _run_torch(module, inputs, train, gradients=train)
    if not wanted.ends:
        return {}
    try:
        rounded = _run_torch_in(import_torch().float32, module, inputs, train, gradients=train)
    except Exception:  # its code insists on another type
        rounded = wanted
    own = JaxRun(rounded.ends, rounded.buffers, rounded.gradients)
    for name, distance in _distances(own, wanted, gradients=train).items():
        rounding[name] = max(rounding.get(name, LEAST_ROUNDING), distance)
    ours = _run_jax(partial(run, tuple(wanted.ends)), variables, wanted, gradients=train, dtype=np.float32)
    distances = _distances(ours, wanted, gradients=train)
    allowed = {name: max(ROUNDING * rounding.get(name, LEAST_ROUNDING), wanted.tolerance) for name in distances}
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

    @property
    def tolerance(self) -> float:
        return TOLERANCE[str(self.dtype)]


def _run_torch(module: Any, example: Any, train: bool, *, gradients: bool = True) -> TorchRun:
    """A copy of the module, run in float64 on the CPU; in its own dtype where its code refuses float64."""
    torch = import_torch()
    floating = [tensor.dtype for tensor in (example, *module.parameters()) if tensor.is_floating_point()]
    try:
        return _run_torch_in(torch.float64, module, example, train, gradients=gradients)
    except UnsupportedModuleError:
        raise
    except Exception:  # its code insists on another type, and says so in its own way
        dtype = next(iter(floating), torch.float32)
    try:
        return _run_torch_in(dtype, module, example, train, gradients=gradients)
    except Exception as error:
        raise UnsupportedModuleError(
            f"{type(module).__name__} in {MODES[train]} fails in torch itself, for {len(example)} inputs "
            f"({type(error).__name__}: {one_line(error, at_most=200)}); verify=False goes on regardless"
        ) from error


def _run_torch_in(dtype: Any, module: Any, example: Any, train: bool, *, gradients: bool) -> TorchRun:
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


def more_inputs(example: Any) -> Any:
    """The example and the same rolled along, which keeps every kind of input in its range: [2 ROLLS, ...]."""
    return import_torch().cat([_roll(example, shift) for shift in range(ROLLS)])


def _roll(example: Any, shift: int) -> Any:
    return example.flatten(1).roll(shift, 1).view_as(example)


class JaxRun(NamedTuple):
    """What JAX made of it: the ends, the new buffers and the gradients by dotted names."""

    ends: Mapping[str | int, np.ndarray]
    buffers: Mapping[str, np.ndarray]
    gradients: Mapping[str, np.ndarray]


def _differences(
    encoder: Encoder, variables: Variables, wanted: TorchRun, train: bool, *, gradients: bool = True
) -> list[tuple[str, float]]:
    """What differs, and by how much."""
    if not wanted.ends:
        return []
    run = jax.jit(partial(_forward_and_backward, encoder, train, tuple(wanted.ends)), compiler_options=quick_options())
    ours = _run_jax(run, variables, wanted, gradients=gradients)
    distances = _distances(ours, wanted, gradients=gradients)
    return [(name, distance) for name, distance in distances.items() if not distance <= wanted.tolerance]


def _distances(ours: JaxRun, wanted: TorchRun, *, gradients: bool) -> dict[str, float]:
    """How far all is from torch's: the output, buffers, and gradients from the output back."""
    distances = {
        "the output" if name == OUTPUT else str(name): relative_difference(ours.ends[name], wanted.ends[name])
        for name in wanted.ends
        if name in ours.ends
    }
    for name, buffer in wanted.buffers.items():
        if name in ours.buffers:
            distances[f"buffer {name}"] = _buffer_difference(ours.buffers[name], buffer)
        elif name in wanted.changed:
            distances[f"buffer {name}"] = float("inf")
    if gradients:
        largest = max((float(np.abs(gradient).max(initial=0)) for gradient in wanted.gradients.values()), default=0)
        least = largest * SMALLEST_SHARE[str(wanted.dtype)] or SMALLEST_SCALE
        for name, gradient in reversed(wanted.gradients.items()):
            own = ours.gradients.get(name)
            distances[GRADIENT + name] = float("inf") if own is None else relative_difference(own, gradient, least)
    return distances


def _first_layer(encoder: Encoder, variables: Variables, wanted: TorchRun, train: bool) -> tuple[str, float] | None:
    """The first sub-module with another output, and by how much it differs; they are run one by one."""
    for name, output in wanted.layers.items():
        only = wanted._replace(ends={name: output})
        ours = _run_jax(partial(_forward_and_backward, encoder, train, (name,)), variables, only, gradients=False)
        distance = relative_difference(ours.ends[name], output)
        if not distance <= wanted.tolerance:
            return name, distance
    return None


def _run_jax(run: Program, variables: Variables, wanted: TorchRun, *, gradients: bool, dtype: Any = None) -> JaxRun:
    """What torch's run computed; in its dtype, unless another is given."""
    dtype = np.dtype(dtype or wanted.dtype)
    with jax.enable_x64(dtype == np.float64), standard_promotion():
        images = wanted.images.transpose(0, 2, 3, 1) if wanted.images.ndim == 4 else wanted.images
        images, cotangents, variables = cast(
            jax.tree.map(jnp.asarray, (images, wanted.cotangents if gradients else (), variables)), dtype
        )
        features, stats, by_path = run(variables, images, cotangents)
        buffers, by_name = (
            {path.replace("/", "."): np.asarray(leaf) for path, leaf in flatten(tree).items()}
            for tree in (stats, by_path)
        )
        ends = dict(zip(wanted.ends, map(np.asarray, features), strict=True))
        return JaxRun(ends, buffers, by_name)


def _forward_and_backward(
    encoder: Encoder,
    train: bool,
    layers: tuple[str | int, ...],
    variables: Variables,
    images: jax.Array,
    cotangents: tuple[jax.Array, ...],
) -> tuple[tuple[jax.Array, ...], Any, Any]:
    """Features, new buffers and, with cotangents of the floating ones, the gradient by every floating parameter."""
    params = flatten(variables.params)
    floating = {name: leaf for name, leaf in params.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}

    def forward(floating: Any) -> tuple[Any, Any]:
        given = variables._replace(params=unflatten(params | floating))
        apply: Any = encoder.apply  # a traced network's, which takes several layers
        features, stats = apply(given, images, train=train, hidden_layer=layers, key=jax.random.key(0))
        return tuple(y for y in features if jnp.issubdtype(y.dtype, jnp.floating)), (features, stats)

    if not cotangents:
        return *forward(floating)[1], {}
    ys, backward, (features, stats) = jax.vjp(forward, floating, has_aux=True)
    if [y.shape for y in ys] != [dy.shape for dy in cotangents]:  # another output altogether, as the caller will see
        return features, stats, {}
    return features, stats, backward(tuple(dy.astype(y.dtype) for dy, y in zip(cotangents, ys, strict=True)))[0]


def _buffer_difference(ours: Any, wanted: np.ndarray) -> float:
    """`relative_difference`, where infinities and NaN may stand in both."""
    ours = np.asarray(ours)
    if ours.shape != wanted.shape:
        return float("inf")
    ours, wanted = ours.astype(np.float64), wanted.astype(np.float64)
    differ = ~((ours == wanted) | (np.isnan(ours) & np.isnan(wanted)))
    if not np.isfinite(wanted[differ]).all():
        return float("inf")
    scale = max(float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0)), SMALLEST_SCALE)
    return float(np.abs(ours[differ] - wanted[differ]).max(initial=0) / scale)


def relative_difference(ours: Any, wanted: np.ndarray, smallest_scale: float = SMALLEST_SCALE) -> float:
    """The largest difference over the largest value, or over `smallest_scale`; infinite where the shapes differ.

    Example:
        >>> relative_difference([1.0, 4.1], np.array([1.0, 4.0])) < 0.026
        True
    """
    ours = np.asarray(ours)
    if ours.shape != wanted.shape:
        return float("inf")
    scale = max(float(np.abs(wanted).max(initial=0)), smallest_scale)
    return float(np.abs(ours.astype(np.float64) - wanted.astype(np.float64)).max(initial=0) / scale)


def is_another_alone(module: Any, encoder: Encoder, example: Any, variables: Variables) -> bool:
    """Whether the module, in either mode, makes something else of a single input than the encoder does.

    torch.export looks at no batch of one, and code may do something else with it. JAX runs only where torch makes other
    numbers of the example's first input alone than of it beside another.
    """
    for train in (False, True):
        try:
            pair, alone = (_run_torch(module, example[:size], train, gradients=False) for size in (2, 1))
        except Exception:  # the module's own code, which may refuse a single input: then there is nothing to compare
            continue
        if OUTPUT not in pair.ends or OUTPUT not in alone.ends:
            continue
        outputs = alone.ends[OUTPUT].flatten(), pair.ends[OUTPUT][:1].flatten()
        if relative_difference(*outputs) <= alone.tolerance:
            continue
        found = _differences(encoder, variables, alone, train, gradients=False)
        if any(not distance <= SMALLEST_SPECIAL for _, distance in found):
            return True
    return False
