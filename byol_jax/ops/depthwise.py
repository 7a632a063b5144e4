"""Depthwise convolution: every channel has a kernel of its own. Three forms for CPUs; elsewhere XLA's own convolution.

XLA:CPU's convolution is slow here, and its kernel gradient is dense, quadratic in channels. Milliseconds, XLA's and
these forms', of the result, the gradient by the images and that by the kernel (two cores, jax 0.10.2, 2026-11-29):

    32 × 16 × 16 × 40, 7 × 7      20 and 0.6     20 and 0.7      16 and 1.7
    32 × 32 × 32 × 96, 3 × 3 / 2  22 and 2.1    371 and 0.8      48 and 2.1
    32 × 4 × 4 × 672, 5 × 5       66 and 0.6     91 and 1.2       - and 1.6
    16 × 14 × 14 × 384, 7 × 7     77 and 3.5     79 and 6.1       - and 17
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from byol_jax.ops.axis import equally_varying
from byol_jax.ops.bilinear import Form, Shapes, make_convolution, with_transposes
from byol_jax.ops.geometry import Geometry, convolve_by_xla
from byol_jax.ops.precision import at_least_float32

__all__ = ["depthwise_conv"]

_MANY_PIXELS = 5
"""Output pixels for each of the kernel's positions, from which the kernel's gradient is summed pixel by pixel: 1.7 ms
against 7.7 with 256 pixels and 49 positions, 1.1 against 1.7 with 256 and 9, but 30 against 17 with 196 and 49."""


def depthwise_conv(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """`y[n, i, j, c] = sum over a, b of x[n, i·s + a·d - top, j·s + b·d - left, c] · kernel[a, b, c]`.

    Sums are in at least float32.

    Args:
        x: `[N, H, W, C]`, floating.
        kernel: `[kernel height, kernel width, C]`, x's dtype.
        geometry: of both.

    Returns:
        `[N, H', W', C]`, x's dtype.

    Example:
        >>> geometry = Geometry((4, 4), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
        >>> depthwise_conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2)), geometry)[0, :, :, 1].tolist()
        [[4.0, 6.0, 6.0, 4.0], [6.0, 9.0, 9.0, 6.0], [6.0, 9.0, 9.0, 6.0], [4.0, 6.0, 6.0, 4.0]]
    """
    return _depthwise(x, kernel, geometry=geometry)


# The three forms. A barrier keeps XLA:CPU from computing what stands before it once for every position of the kernel.


def _convolve(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The sum of shifted images, each times one position of the kernel."""
    wide = at_least_float32(x.dtype)
    x, kernel = lax.optimization_barrier(jnp.pad(x, ((0, 0), *geometry.pads, (0, 0)))), kernel.astype(wide)
    y = jnp.zeros((), wide)
    for a in range(geometry.taps[0]):
        for b in range(geometry.taps[1]):
            y = y + geometry.window(x, a, b).astype(wide) * kernel[a, b]
    return y.astype(x.dtype)


def _input_gradient(dy: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The sum of shifted `dy`, for each remainder of a pixel's place by the stride; then the remainders are woven.

    Pixel s·q + r of the padded images meets position a in output q - (a·d - r) / s, where that is whole.
    """
    wide = at_least_float32(dy.dtype)
    kernel = kernel.astype(wide)
    rows, columns = (_phases(n + sum(pad), k, s, d) for n, k, s, pad, d in zip(*geometry, strict=True))
    reach = [max((shift for phase in axis.shifts for shift, _ in phase), default=0) for axis in (rows, columns)]
    after = [max(axis.length - n, 0) for axis, n in zip((rows, columns), geometry.outputs, strict=True)]
    dy = lax.optimization_barrier(jnp.pad(dy, ((0, 0), *zip(reach, after, strict=True), (0, 0))))
    woven = jnp.stack(
        [
            jnp.stack(
                [_phase(dy, kernel, down, right, reach, (rows.length, columns.length)) for right in columns.shifts], 3
            )
            for down in rows.shifts
        ],
        2,
    )  # [N, rows, stride, columns, stride, C]
    n, *_, c = woven.shape
    dx = woven.reshape(n, rows.length * geometry.stride[0], columns.length * geometry.stride[1], c)
    (top, _), (left, _) = geometry.pads
    height, width = geometry.size
    return dx[:, top : top + height, left : left + width].astype(dy.dtype)


class _Phases(NamedTuple):
    """One axis of the images, cut by remainders: how many pixels have each, and who meets them.

    Attributes:
        length: pixels of each remainder, the last of some beyond the image.
        shifts: for each remainder the pairs (by how much dy moves, the kernel's position).
    """

    length: int
    shifts: tuple[tuple[tuple[int, int], ...], ...]


def _phases(size: int, taps: int, stride: int, dilation: int) -> _Phases:
    positions = [(a * dilation, a) for a in range(taps)]
    shifts = tuple(tuple((at // stride, a) for at, a in positions if at % stride == r) for r in range(stride))
    return _Phases(-(-size // stride), shifts)


def _phase(
    dy: jax.Array,
    kernel: jax.Array,
    down: Sequence[tuple[int, int]],
    right: Sequence[tuple[int, int]],
    reach: Sequence[int],
    lengths: Sequence[int],
) -> jax.Array:
    """The gradient of all pixels with one remainder of rows and one of columns."""
    total = jnp.zeros((dy.shape[0], *lengths, dy.shape[3]), kernel.dtype)
    for (by_rows, a), (by_columns, b) in ((one, other) for one in down for other in right):
        top, left = reach[0] - by_rows, reach[1] - by_columns
        total += dy[:, top : top + lengths[0], left : left + lengths[1]].astype(kernel.dtype) * kernel[a, b]
    return total


def _kernel_gradient(x: jax.Array, dy: jax.Array, geometry: Geometry) -> jax.Array:
    """`dk[a, b, c] = sum over n, i, j of x[n, i·s + a·d - top, j·s + b·d - left, c] · dy[n, i, j, c]`."""
    many = geometry.pixels >= _MANY_PIXELS * geometry.positions
    wide = at_least_float32(x.dtype)
    padded = lax.optimization_barrier(jnp.pad(x, ((0, 0), *geometry.pads, (0, 0)))).astype(wide)
    form = _sum_of_pixels if many else _sum_at_positions
    return form(padded, dy.astype(wide), geometry).astype(x.dtype)


def _sum_of_pixels(x: jax.Array, dy: jax.Array, geometry: Geometry) -> jax.Array:
    """Row by row, the sum of what the kernel's window sees at each pixel, times dy there."""
    (high, wide), right = geometry.taps, geometry.stride[1]
    window = [(taps - 1) * dilation + 1 for taps, dilation in zip(geometry.taps, geometry.dilation, strict=True)]

    def add_row(total: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        seen = lax.dynamic_slice_in_dim(x, row * geometry.stride[0], window[0], 1)[:, :: geometry.dilation[0]]
        seen, there = lax.optimization_barrier((seen, lax.dynamic_slice_in_dim(dy, row, 1, 1)))
        for j in range(dy.shape[2]):
            own = seen[:, :, j * right : j * right + window[1] : geometry.dilation[1]]
            total = total + own * there[:, :, j : j + 1]
        return total, None

    start = equally_varying(jnp.zeros((x.shape[0], high, wide, x.shape[3]), x.dtype), x)[0]
    return lax.scan(add_row, start, jnp.arange(dy.shape[1]))[0].sum(0)


def _sum_at_positions(x: jax.Array, dy: jax.Array, geometry: Geometry) -> jax.Array:
    """For each position of the kernel the sum over all pixels, as a product with ones: XLA:CPU's own sum over leading
    axes took 27 ms for 17."""
    (rows, columns), (down, right), (high, wide) = geometry.outputs, geometry.stride, geometry.dilation
    extent = (x.shape[0], (rows - 1) * down + 1, (columns - 1) * right + 1, x.shape[3])

    def sum_at(position: jax.Array) -> jax.Array:
        a, b = jnp.divmod(position, geometry.taps[1])
        zero = jnp.zeros_like(position)
        seen = lax.dynamic_slice(x, (zero, a * high, b * wide, zero), extent)[:, ::down, ::right]
        products = lax.optimization_barrier(seen * dy).reshape(-1, x.shape[3])
        return (jnp.ones((1, products.shape[0]), x.dtype) @ products)[0]

    return lax.map(sum_at, jnp.arange(geometry.positions)).reshape(*geometry.taps, -1)


def _convolve_by_xla(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return convolve_by_xla(x, kernel[:, :, None], geometry, groups=x.shape[3])


_SHAPES = Shapes(
    convolve=lambda x, kernel, geometry: (x[0], *geometry.outputs, x[3]),
    input_gradient=lambda dy, kernel, geometry: (dy[0], *geometry.size, dy[3]),
    kernel_gradient=lambda x, dy, geometry: (*geometry.taps, x[3]),
)
_depthwise = make_convolution(
    "depthwise",
    shapes=_SHAPES,
    on_cpu=lambda devices: Form(_convolve, _input_gradient, _kernel_gradient),
    elsewhere=with_transposes(_convolve_by_xla, _SHAPES),
    fold=lambda where, size: where,
)
