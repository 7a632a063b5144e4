"""Both frameworks on the same input, in both modes, before a traced network is handed out.

In float64, where what is left of a difference is the order of sums: a batch norm over few values turns float32's
rounding into differences that look like mistakes. What would be random is the same on both sides: every coin shows
heads, so dropout keeps everything.
"""

import copy
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConversionMismatchError
from byol_jax.hidden import OUTPUT
from byol_jax.tree import cast, flatten
from byol_jax.types import Encoder, Variables
from interop.arrays import import_torch
from interop.trace.export import noted_outputs
from interop.trace.without_chance import FIXED_DRAW

__all__ = ["SMALLEST_SCALE", "relative_difference", "verify_encoder", "without_chance"]

TOLERANCE = {"float64": 1e-6, "float32": 1e-2}
"""Of the largest value. Measured in float64: 9e-14 for torchvision's mobilenet_v2 in training, 2e-15 for convnext_tiny.
float32 is for modules whose code insists on it; there a batch norm over two values makes much of rounding."""

SMALLEST_SCALE = 1e-3
"""Values that are zero in truth, such as the mean of what was centred just before, are compared to this."""


def verify_encoder(module: Any, encoder: Encoder, example: Any, variables: Variables) -> None:
    """Compares the output and all changed buffers, in training and in evaluation.

    Args:
        module: the original; only read.
        encoder: the traced network, with what draws replaced by `without_chance.FIXED`.
        example: [2, ...] as the module takes it.
        variables: the module's, as NumPy arrays.

    Raises:
        ConversionMismatchError: names the first sub-module whose output differs, and by how much.
    """
    for train in (False, True):
        seen = _in_torch(module, example, train)
        with jax.enable_x64(seen.images.dtype == np.float64), jax.numpy_dtype_promotion("standard"):
            found = _first_difference(encoder, variables, seen, train)
        if found is not None:
            where, difference = found
            raise ConversionMismatchError(
                f"{type(module).__name__} in {'training' if train else 'evaluation'}: JAX and torch differ by "
                f"{difference:.1e} of the largest value, first at {where}; verify=False goes on regardless"
            )


class Seen(NamedTuple):
    """What torch made of the example.

    Attributes:
        images: the example, in the dtype that was computed in.
        output: None where it isn't a tensor.
        layers: the sub-modules' outputs, flattened, those that keep the batch.
        buffers: the new values of those that changed.
    """

    images: np.ndarray
    output: np.ndarray | None
    layers: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]


def _first_difference(encoder: Encoder, variables: Variables, seen: Seen, train: bool) -> tuple[str, float] | None:
    """Where both differ, and by how much; the sub-modules are run one by one only if the whole differs."""
    tolerance = TOLERANCE[str(seen.images.dtype)]
    images = jnp.asarray(seen.images.transpose(0, 2, 3, 1) if seen.images.ndim == 4 else seen.images)
    variables = cast(jax.tree.map(jnp.asarray, variables), seen.images.dtype)

    def ours(layer: str | int) -> tuple[jax.Array, dict[str, jax.Array]]:
        features, stats = encoder.apply(variables, images, train=train, hidden_layer=layer, key=jax.random.key(0))
        return features, flatten(stats)

    if seen.output is None and not seen.buffers:
        return None
    features, stats = ours(OUTPUT if seen.output is not None else next(iter(seen.layers)))
    wrong = [
        (f"buffer {name}", distance)
        for name, wanted in seen.buffers.items()
        if not (distance := relative_difference(stats[name.replace(".", "/")], wanted)) <= tolerance
    ]
    if seen.output is not None and not (distance := relative_difference(features, seen.output)) <= tolerance:
        wrong.insert(0, ("the output", distance))
    if not wrong:
        return None
    for name, wanted in seen.layers.items():
        if not (distance := relative_difference(ours(name)[0], wanted)) <= tolerance:
            return name, distance
    return wrong[0]


def relative_difference(ours: Any, wanted: np.ndarray, smallest_scale: float = SMALLEST_SCALE) -> float:
    """The largest difference over the largest value, or over `smallest_scale`; infinite where the shapes differ."""
    ours = np.asarray(ours)
    if ours.shape != wanted.shape:
        return float("inf")
    scale = max(float(np.abs(wanted).max(initial=0)), smallest_scale)
    return float(np.abs(ours.astype(np.float64) - wanted.astype(np.float64)).max(initial=0) / scale)


def _in_torch(module: Any, example: Any, train: bool) -> Seen:
    """A copy of the module, run in float64 on the CPU; in its own dtype where its code refuses float64."""
    try:
        return _run_torch(module, example.double() if example.is_floating_point() else example, train)
    except RuntimeError:
        return _run_torch(module, example, train)


def _run_torch(module: Any, example: Any, train: bool) -> Seen:
    torch = import_torch()
    module = copy.deepcopy(module).cpu()
    if example.is_floating_point():
        module = module.to(example.dtype)
    module.train(train)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    with torch.no_grad(), without_chance(torch), noted_outputs(module) as noted:
        output = module(example.cpu().clone())
    changed = [name for name, buffer in module.named_buffers() if train and not torch.equal(before[name], buffer)]
    return Seen(
        example.cpu().numpy(),
        output.numpy() if isinstance(output, torch.Tensor) else None,
        {name: value.numpy() for name, value in noted.items() if value.shape[0] == example.shape[0]},
        {name: module.get_buffer(name).numpy() for name in changed},
    )


def without_chance(torch: Any) -> Any:
    """A mode in which torch draws what `without_chance.FIXED` draws."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class WithoutChance(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function.name().removeprefix("aten::").partition(".")[0]
            if name == "native_dropout":
                x, p, training = args
                return (x / (1 - p) if training and p < 1 else x.clone()), torch.ones_like(x, dtype=torch.bool)
            result = function(*args, **(kwargs or {}))
            if name in ("bernoulli", "bernoulli_"):
                p = args[1] if len(args) > 1 else None
                return result.fill_(0 if isinstance(p, int | float) and p == 0 else 1)
            if name in ("rand", "randn", "rand_like", "randn_like", "uniform", "uniform_", "normal_", "normal"):
                return result.fill_(FIXED_DRAW)
            if name == "randperm":
                return torch.arange(result.shape[0])
            return result

    return WithoutChance()
