"""Interpolation: nearest, linear and cubic, with and without antialiasing, each axis by a matrix of its own."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from interop.trace.ops.operator import Context, Operator
from interop.trace.values import Value, multiply_axes

__all__ = ["TABLE"]

CUBIC, ANTIALIASED_CUBIC = -0.75, -0.5
"""The cubic's parameter in torch; with antialiasing it is Pillow's."""


def _targets(x: Value, output_size: Any, scales: tuple[Any, ...], rank: int) -> list[tuple[int, int, float | None]]:
    """(old size, new size, stated scale) of each axis; None where the scale follows from the sizes.

    `scales` is one tuple or None (an operator's `vec` overload), or a number or None for each axis.
    """
    listed = scales[0] if scales and isinstance(scales[0], tuple) else scales
    factors = [factor for factor in listed if factor is not None] or [None] * rank
    old = x.shape[-rank:]
    if output_size is None:
        output_size = [math.floor(n * factor) for n, factor in zip(old, factors, strict=True)]
    return list(zip(old, output_size, factors, strict=True))


def _nearest(rank: int, *, exact: bool) -> Operator:
    def operator(context: Context, x: Value, output_size: Any, *scales: Any) -> Value:
        for offset, (n, m, factor) in enumerate(_targets(x, output_size, scales, rank)):
            place = x.order.index(x.ndim - rank + offset)
            step = np.float32(1 / factor) if factor else np.float32(n / m)
            source = np.floor((np.arange(m, dtype=np.float32) + np.float32(0.5 * exact)) * step)
            x = Value(jnp.take(x.array, source.astype(np.int32).clip(0, n - 1), axis=place), x.order)
        return x

    return operator


def _linear_kernel(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distance), 0)


def _cubic_kernel(a: float) -> Callable[[np.ndarray], np.ndarray]:
    def kernel(distance: np.ndarray) -> np.ndarray:
        d = np.abs(distance)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = a * (((d - 5) * d + 8) * d - 4)
        return np.where(d <= 1, near, np.where(d < 2, far, 0))

    return kernel


def _corner_step(n: int, m: int) -> float:
    """From one new pixel to the next, in old ones, where both ends are the old ones': a single pixel is the first."""
    return (n - 1) / (m - 1) if m > 1 else 0.0


def _weights(
    n: int, m: int, factor: float | None, align: bool, kernel: Callable, reach: int, clamp: bool
) -> np.ndarray:
    """[m, n]: how much of each old pixel is in each new one; beyond the edge the edge's pixel counts."""
    if align:
        centres = np.arange(m) * _corner_step(n, m)
    else:
        centres = (np.arange(m) + 0.5) * (1 / factor if factor else n / m) - 0.5
    if clamp:  # torch clamps the linear kernel's source position, not the cubic's
        centres = centres.clip(0)
    matrix = np.zeros((m, n))
    first = np.floor(centres).astype(int)
    for offset in range(1 - reach, reach + 1):
        share = kernel(centres - (first + offset))
        np.add.at(matrix, (np.arange(m), (first + offset).clip(0, n - 1)), share)
    return matrix


def _antialiased_weights(n: int, m: int, factor: float | None, align: bool, kernel: Callable, reach: int) -> np.ndarray:
    """Pillow's: the kernel is stretched by the reduction, and each row sums to one."""
    scale = _corner_step(n, m) if align else 1 / factor if factor else n / m
    stretch = max(scale, 1.0)
    matrix = np.zeros((m, n))
    for row in range(m):
        centre = scale * (row + 0.5)
        start = max(int(centre - reach * stretch + 0.5), 0)
        stop = min(int(centre + reach * stretch + 0.5), n)
        places = np.arange(start, stop)
        share = kernel((places - centre + 0.5) / stretch)
        matrix[row, start:stop] = share / share.sum()
    return matrix


def _by_matrices(rank: int, weights: Callable[..., np.ndarray], **options: Any) -> Operator:
    """Every axis by `weights(old size, new size, stated scale, align_corners, **options)`."""

    def operator(context: Context, x: Value, output_size: Any, align_corners: bool, *scales: Any) -> Value:
        targets = _targets(x, output_size, scales, rank)
        return multiply_axes(x, [weights(*target, align_corners, **options) for target in targets])

    return operator


LINEAR = {"kernel": _linear_kernel, "reach": 1}

TABLE: dict[str, Operator] = {
    **{f"aten.upsample_nearest{rank}d": _nearest(rank, exact=False) for rank in (1, 2, 3)},
    **{f"aten._upsample_nearest_exact{rank}d": _nearest(rank, exact=True) for rank in (1, 2, 3)},
    "aten.upsample_linear1d": _by_matrices(1, _weights, **LINEAR, clamp=True),
    "aten.upsample_bilinear2d": _by_matrices(2, _weights, **LINEAR, clamp=True),
    "aten.upsample_trilinear3d": _by_matrices(3, _weights, **LINEAR, clamp=True),
    "aten.upsample_bicubic2d": _by_matrices(2, _weights, kernel=_cubic_kernel(CUBIC), reach=2, clamp=False),
    "aten._upsample_bilinear2d_aa": _by_matrices(2, _antialiased_weights, **LINEAR),
    "aten._upsample_bicubic2d_aa": _by_matrices(
        2, _antialiased_weights, kernel=_cubic_kernel(ANTIALIASED_CUBIC), reach=2
    ),
}
