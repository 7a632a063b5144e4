"""Both frameworks on the same input, in both modes, before a traced network is handed out.

In float64, where what is left of a difference is the order of sums. A batch norm over two values, as a ResNet's last at
32 × 32 pixels, still makes much of that: what differs in training is compared again on more inputs. What would be
random is the same on both sides (`fixed_draws.py`), so dropout keeps everything.
"""

import copy
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConversionMismatchError
from byol_jax.hidden import OUTPUT
from byol_jax.ops.precision import standard_promotion
from byol_jax.tree import cast, flatten
from byol_jax.types import Encoder, Variables
from interop.arrays import import_torch
from interop.trace.export import record_outputs
from interop.trace.fixed_draws import fixed_draws

__all__ = ["ROLLS", "SMALLEST_SCALE", "more_inputs", "relative_difference", "verify_encoder"]

TOLERANCE = {"float64": 1e-6, "float32": 1e-2}
"""Of the largest value. Measured in float64: 9e-14 for torchvision's mobilenet_v2 in training, 2e-15 for convnext_tiny.
float32 is for modules that insist on it; there batch norm makes much of rounding."""

ROLLS = 8
"""Times two inputs, where two weren't enough. Measured for torchvision's resnet152 at 32 × 32 pixels: 6e-5 with two
inputs, above 1e-6 for each of six draws of the weights; 1e-11 with eight and more."""

SMALLEST_SCALE = 1e-3
"""Values that are zero in truth, such as the mean of what was centred just before, are compared to this."""

UNOPTIMIZED = {"xla_backend_optimization_level": 0}
"""For a function that runs once, compiled, but without LLVM's optimisations: torchvision's mobilenet_v3_small takes 7 s
where operator after operator took 22 s, timm's test_vit 4 s instead of 11 s, resnet50 3 s instead of 6 s."""


def verify_encoder(module: Any, encoder: Encoder, example: Any, variables: Variables) -> None:
    """Compares the output and all changed buffers, in training and in evaluation.

    Args:
        module: the original; only read.
        encoder: the traced network, its operators that draw replaced by `fixed_draws.FIXED_DRAWS`.
        example: [2, ...] as the module takes it.
        variables: the module's, as NumPy arrays.

    Raises:
        ConversionMismatchError: names the first sub-module with another output, and by how much it differs.
    """
    for train in (False, True):
        wanted = _run_torch(module, example, train)
        found = _differences(encoder, variables, wanted, train)
        if found and train:
            wanted = _run_torch(module, more_inputs(example), train)
            found = _differences(encoder, variables, wanted, train)
        if found:
            where, difference = _first_layer(encoder, variables, wanted, train) or found[0]
            raise ConversionMismatchError(
                f"{type(module).__name__} in {'training' if train else 'evaluation'}: JAX and torch differ by "
                f"{difference:.1e} of the largest value, first at {where}; verify=False goes on regardless"
            )


class TorchRun(NamedTuple):
    """What torch made of an example.

    Attributes:
        images: the example.
        dtype: the floating type of the computation.
        output: None where it isn't a tensor.
        layers: the sub-modules' outputs, flattened, those that keep the batch.
        buffers: the new values of those that changed.
    """

    images: np.ndarray
    dtype: np.dtype
    output: np.ndarray | None
    layers: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]

    @property
    def tolerance(self) -> float:
        return TOLERANCE[str(self.dtype)]


def _run_torch(module: Any, example: Any, train: bool) -> TorchRun:
    """A copy of the module, run in float64 on the CPU; in its own dtype where its code refuses float64."""
    torch = import_torch()
    floating = [tensor.dtype for tensor in (example, *module.parameters()) if tensor.is_floating_point()]
    try:
        return _run_torch_in(torch.float64, module, example, train)
    except RuntimeError:
        return _run_torch_in(next(iter(floating), torch.float32), module, example, train)


def _run_torch_in(dtype: Any, module: Any, example: Any, train: bool) -> TorchRun:
    torch = import_torch()
    module = copy.deepcopy(module).cpu().to(dtype).train(train)
    example = example.cpu().to(dtype) if example.is_floating_point() else example.cpu()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad(), fixed_draws(torch), record_outputs(module) as layers:
        output = module(example.clone())
    changed = [name for name, buffer in module.named_buffers() if train and not torch.equal(before[name], buffer)]
    return TorchRun(
        example.numpy(),
        np.dtype(str(dtype).removeprefix("torch.")),
        output.numpy() if isinstance(output, torch.Tensor) else None,
        {name: value.numpy() for name, value in layers.items() if value.shape[0] == example.shape[0]},
        {name: module.get_buffer(name).numpy() for name in changed},
    )


def more_inputs(example: Any) -> Any:
    """The example and the same rolled along, which keeps every kind of input in its range: [2 ROLLS, ...]."""
    torch = import_torch()
    return torch.cat([example.flatten(1).roll(shift, 1).view_as(example) for shift in range(ROLLS)])


def _differences(encoder: Encoder, variables: Variables, wanted: TorchRun, train: bool) -> list[tuple[str, float]]:
    """What differs of the output and of the buffers, and by how much."""
    if wanted.output is None and not wanted.buffers:
        return []
    layer = OUTPUT if wanted.output is not None else next(iter(wanted.layers))
    features, stats = _run_jax(encoder, variables, wanted, train, layer, compiled=True)
    distances = {} if wanted.output is None else {"the output": relative_difference(features, wanted.output)}
    for name, buffer in wanted.buffers.items():
        distances[f"buffer {name}"] = relative_difference(stats[name.replace(".", "/")], buffer)
    return [(name, distance) for name, distance in distances.items() if not distance <= wanted.tolerance]


def _first_layer(encoder: Encoder, variables: Variables, wanted: TorchRun, train: bool) -> tuple[str, float] | None:
    """The first sub-module with another output, and by how much it differs; they are run one by one."""
    for name, output in wanted.layers.items():
        distance = relative_difference(_run_jax(encoder, variables, wanted, train, name)[0], output)
        if not distance <= wanted.tolerance:
            return name, distance
    return None


def _run_jax(
    encoder: Encoder, variables: Variables, wanted: TorchRun, train: bool, layer: str | int, *, compiled: bool = False
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A layer's output and the new buffers by path, in the dtype of torch's run."""
    with jax.enable_x64(wanted.dtype == np.float64), standard_promotion():
        images = jnp.asarray(wanted.images.transpose(0, 2, 3, 1) if wanted.images.ndim == 4 else wanted.images)
        variables = cast(jax.tree.map(jnp.asarray, variables), wanted.dtype)
        apply = partial(encoder.apply, train=train, hidden_layer=layer, key=jax.random.key(0))
        features, stats = (jax.jit(apply, compiler_options=UNOPTIMIZED) if compiled else apply)(variables, images)
        return np.asarray(features), {path: np.asarray(leaf) for path, leaf in flatten(stats).items()}


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
