"""Depthwise convolution: every channel has a kernel of its own. Three forms for CPUs; elsewhere XLA's own convolution.

XLA:CPU's convolution is slow here, and its kernel gradient is dense, quadratic in channels. Milliseconds, XLA's and
these forms', of the result, the gradient by the images and that by the kernel (two cores, jax 0.10.2, 2026-11-29):

    32 × 16 × 16 × 40, 7 × 7      20 and 0.6     20 and 0.7      16 and 1.7
    32 × 32 × 32 × 96, 3 × 3 / 2  22 and 2.1    371 and 0.8      48 and 2.1
    32 × 4 × 4 × 672, 5 × 5       66 and 0.6     91 and 1.2       - and 1.6
    16 × 14 × 14 × 384, 7 × 7     77 and 3.5     79 and 6.1       - and 17

The result, the gradient by the images and the gradient by the kernel are bilinear, and the derivative of each by one of
its operands is another of them. So they are three primitives of JAX, each other's transposes: every derivative of any
order, forward and reverse, runs in these forms.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from byol_jax.ops.axis import equally_varying
from byol_jax.ops.precision import at_least_float32

__all__ = ["Geometry", "depthwise_conv"]

_MANY_PIXELS = 5
"""Output pixels for each of the kernel's positions, from which the kernel's gradient is summed pixel by pixel: 1.7 ms
against 7.7 with 256 pixels and 49 positions, 1.1 against 1.7 with 256 and 9, but 30 against 17 with 196 and 49."""


class Geometry(NamedTuple):
    """Everything about a convolution that isn't a number of an array; pairs are (rows, columns).

    Attributes:
        size: H and W of the images.
        taps: the kernel's height and width.
        stride, dilation: in pixels.
        pads: zeros (before, after), of each axis.
    """

    size: tuple[int, int]
    taps: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]

    @property
    def outputs(self) -> tuple[int, int]:
        """H' and W' of the result."""
        rows, columns = (
            (n + sum(pad) - (k - 1) * d - 1) // s + 1
            for n, k, s, pad, d in zip(*self, strict=True)  # its fields, in their order
        )
        return rows, columns


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
    return _convolve_p.bind(*equally_varying(x, kernel), geometry=geometry)


# The three forms. A barrier keeps XLA:CPU from computing what stands before it once for every position of the kernel.


def _convolve(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    """The sum of shifted images, each times one position of the kernel."""
    wide = at_least_float32(x.dtype)
    x, kernel = lax.optimization_barrier(jnp.pad(x, ((0, 0), *geometry.pads, (0, 0)))), kernel.astype(wide)
    y = jnp.zeros((), wide)
    for a in range(geometry.taps[0]):
        for b in range(geometry.taps[1]):
            y = y + _window(x, geometry, a, b).astype(wide) * kernel[a, b]
    return y.astype(x.dtype)


def _window(x: jax.Array, geometry: Geometry, a: int, b: int) -> jax.Array:
    """What position (a, b) of the kernel meets of the padded images: [N, H', W', C]."""
    (rows, columns), (down, right), (high, wide) = geometry.outputs, geometry.stride, geometry.dilation
    top, left = a * high, b * wide
    return x[:, top : top + (rows - 1) * down + 1 : down, left : left + (columns - 1) * right + 1 : right]


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
    rows, columns = geometry.outputs
    many = rows * columns >= _MANY_PIXELS * geometry.taps[0] * geometry.taps[1]
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

    return lax.map(sum_at, jnp.arange(geometry.taps[0] * geometry.taps[1])).reshape(*geometry.taps, -1)


# XLA's own convolution and its transposes, for other platforms.


def _convolve_by_xla(x: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None],
        geometry.stride,
        geometry.pads,
        rhs_dilation=geometry.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


def _input_gradient_by_xla(dy: jax.Array, kernel: jax.Array, geometry: Geometry) -> jax.Array:
    images = jax.ShapeDtypeStruct((dy.shape[0], *geometry.size, dy.shape[3]), dy.dtype)
    return jax.linear_transpose(lambda x: _convolve_by_xla(x, kernel, geometry), images)(dy)[0]


def _kernel_gradient_by_xla(x: jax.Array, dy: jax.Array, geometry: Geometry) -> jax.Array:
    kernel = jax.ShapeDtypeStruct((*geometry.taps, x.shape[3]), x.dtype)
    return jax.linear_transpose(lambda kernel: _convolve_by_xla(x, kernel, geometry), kernel)(dy)[0]


# The primitives.


def _primitive(name: str, shape: Callable[..., tuple[int, ...]], on_cpu: Any, elsewhere: Any) -> Primitive:
    """A primitive of two arrays and a geometry; its derivatives are told apart from it, by `ad.defbilinear`."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="geometry"))

    @primitive.def_abstract_eval
    def aval(first: Any, second: Any, *, geometry: Geometry) -> Any:
        return first.update(shape=shape(first.shape, second.shape, geometry), weak_type=False)

    mlir.register_lowering(primitive, mlir.lower_fun(elsewhere, multiple_results=False))
    mlir.register_lowering(primitive, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")

    def fold(operands: Sequence[Any], axes: Sequence[Any], *, geometry: Geometry) -> tuple[Any, int]:
        """A batch of calls is one call with more channels: the batch goes there, and comes back from there."""
        size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
        moved = [
            jnp.broadcast_to(x[..., None, :], (*x.shape[:-1], size, x.shape[-1]))
            if axis is None
            else jnp.moveaxis(x, axis, -2)
            for x, axis in zip(operands, axes, strict=True)
        ]
        folded = primitive.bind(*(x.reshape(*x.shape[:-2], -1) for x in moved), geometry=geometry)
        result = folded.reshape(*folded.shape[:-1], size, -1)
        return result, result.ndim - 2

    batching.primitive_batchers[primitive] = fold
    return primitive


_convolve_p = _primitive(
    "depthwise_convolution", lambda x, _, geometry: (x[0], *geometry.outputs, x[3]), _convolve, _convolve_by_xla
)
_input_gradient_p = _primitive(
    "depthwise_input_gradient",
    lambda dy, _, geometry: (dy[0], *geometry.size, dy[3]),
    _input_gradient,
    _input_gradient_by_xla,
)
_kernel_gradient_p = _primitive(
    "depthwise_kernel_gradient",
    lambda x, _, geometry: (*geometry.taps, x[3]),
    _kernel_gradient,
    _kernel_gradient_by_xla,
)

ad.defbilinear(
    _convolve_p,
    lambda dy, x, kernel, geometry: _input_gradient_p.bind(dy, kernel, geometry=geometry),
    lambda dy, x, kernel, geometry: _kernel_gradient_p.bind(x, dy, geometry=geometry),
)
ad.defbilinear(
    _input_gradient_p,
    lambda x, dy, kernel, geometry: _convolve_p.bind(x, kernel, geometry=geometry),
    lambda x, dy, kernel, geometry: _kernel_gradient_p.bind(x, dy, geometry=geometry),
)
ad.defbilinear(
    _kernel_gradient_p,
    lambda kernel, x, dy, geometry: _input_gradient_p.bind(dy, kernel, geometry=geometry),
    lambda kernel, x, dy, geometry: _convolve_p.bind(x, kernel, geometry=geometry),
)
