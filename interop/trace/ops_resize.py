"""Interpolation: nearest, linear and cubic, with and without antialiasing, each axis by a matrix of its own."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from interop.trace.context import Context
from interop.trace.kinds import Operator
from interop.trace.values import Value

__all__ = ["TABLE"]

CUBIC = -0.75
"""The cubic's parameter in torch; with antialiasing it is Pillow's, -0.5."""


def _sizes(x: Value, output_size: Any, scales: Any, rank: int) -> tuple[list[int], list[float | None]]:
    """The new sizes, and each axis's stated scale, None where it follows from the sizes."""
    old = x.shape[-rank:]
    if output_size is not None:
        return list(output_size), list(scales) if scales else [None] * rank
    return [math.floor(n * scale) for n, scale in zip(old, scales, strict=True)], list(scales)


def _resized(x: Value, matrices: Sequence[np.ndarray]) -> Value:
    for offset, matrix in enumerate(matrices):
        place = x.order.index(x.ndim - len(matrices) + offset)
        if np.array_equal(matrix, np.eye(*matrix.shape)):
            continue
        dimensions = (((place,), (1,)), ((), ()))
        mixed = jax.lax.dot_general(
            x.array, jnp.asarray(matrix, x.dtype), dimensions, precision=jax.lax.Precision.HIGHEST
        )
        x = Value(jnp.moveaxis(mixed, -1, place), x.order)
    return x


def _nearest(rank: int, *, exact: bool) -> Operator:
    def operator(context: Context, x: Value, output_size: Any, *scales: Any) -> Value:
        given = scales[0] if scales and isinstance(scales[0], tuple) else scales
        sizes, factors = _sizes(x, output_size, [s for s in given or () if s is not None], rank)
        for offset, (m, factor) in enumerate(zip(sizes, factors or [None] * rank, strict=True)):
            place = x.order.index(x.ndim - rank + offset)
            n = x.array.shape[place]
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


def _weights(
    n: int, m: int, factor: float | None, align: bool, kernel: Callable, reach: int, clamp: bool
) -> np.ndarray:
    """[m, n]: how much of each old pixel is in each new one; beyond the edge the edge's pixel counts."""
    if align:
        centres = np.arange(m) * ((n - 1) / (m - 1) if m > 1 else 0.0)
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


def _smooth(rank: int, kernel: Callable, reach: int, *, clamp: bool) -> Operator:
    def operator(context: Context, x: Value, output_size: Any, align_corners: bool, *scales: Any) -> Value:
        given = scales[0] if scales and isinstance(scales[0], tuple) else scales
        sizes, factors = _sizes(x, output_size, [s for s in given or () if s is not None], rank)
        old = x.shape[-rank:]
        return _resized(
            x,
            [
                _weights(n, m, factor, align_corners, kernel, reach, clamp)
                for n, m, factor in zip(old, sizes, factors, strict=True)
            ],
        )

    return operator


def _antialiased_weights(n: int, m: int, factor: float | None, align: bool, kernel: Callable, reach: int) -> np.ndarray:
    """Pillow's: the kernel is stretched by the reduction, and each row sums to one."""
    scale = (n - 1) / (m - 1) if align and m > 1 else (1 / factor if factor else n / m)
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


def _antialiased(kernel: Callable, reach: int) -> Operator:
    def operator(context: Context, x: Value, output_size: Any, align_corners: bool, *scales: Any) -> Value:
        given = scales[0] if scales and isinstance(scales[0], tuple) else scales
        sizes, factors = _sizes(x, output_size, [s for s in given or () if s is not None], 2)
        return _resized(
            x,
            [
                _antialiased_weights(n, m, factor, align_corners, kernel, reach)
                for n, m, factor in zip(x.shape[-2:], sizes, factors, strict=True)
            ],
        )

    return operator


TABLE: dict[str, Operator] = {
    **{f"aten.upsample_nearest{rank}d": _nearest(rank, exact=False) for rank in (1, 2, 3)},
    **{f"aten._upsample_nearest_exact{rank}d": _nearest(rank, exact=True) for rank in (1, 2, 3)},
    "aten.upsample_linear1d": _smooth(1, _linear_kernel, 1, clamp=True),
    "aten.upsample_bilinear2d": _smooth(2, _linear_kernel, 1, clamp=True),
    "aten.upsample_trilinear3d": _smooth(3, _linear_kernel, 1, clamp=True),
    "aten.upsample_bicubic2d": _smooth(2, _cubic_kernel(CUBIC), 2, clamp=False),
    "aten._upsample_bilinear2d_aa": _antialiased(_linear_kernel, 1),
    "aten._upsample_bicubic2d_aa": _antialiased(_cubic_kernel(-0.5), 2),
}
