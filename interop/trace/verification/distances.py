"""How far a network's numbers in JAX are from torch's, name by name."""

from typing import Any

import numpy as np

from byol_jax.hidden import OUTPUT
from interop.trace.verification.jax_run import JaxRun
from interop.trace.verification.torch_run import TorchRun

__all__ = ["GRADIENT", "distances_from_torch", "relative_difference", "tolerance"]

TOLERANCE = {"float64": 1e-6, "float32": 1e-2}
"""Of the largest value. Measured in float64: 9e-14 for torchvision's mobilenet_v2 in training, 2e-15 for convnext_tiny.
float32 is for modules that insist on it; there batch norm makes much of rounding."""

SMALLEST_SCALE = 1e-3
"""Values that are zero in truth, such as the mean of what was centred just before, are compared to this."""

SMALLEST_SHARE = {"float64": 1e-4, "float32": 1e-2}
"""Gradients are compared to at least this share of the largest of all: that of a bias before a batch norm is zero in
truth, and by rounding 2e-14 of the largest in float64 (timm's starnet_s050)."""

GRADIENT = "the gradient by "


def tolerance(run: TorchRun) -> float:
    """Of the largest value, in the dtype that torch ran in."""
    return TOLERANCE[str(run.dtype)]


def distances_from_torch(ours: JaxRun, wanted: TorchRun, *, gradients: bool) -> dict[str, float]:
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
