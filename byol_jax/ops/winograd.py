"""Convolution by a 3×3 kernel, on CPUs with 16 multiplications for four pixels where the sum itself has 36.

Winograd's minimal filtering F(2×2, 3×3): tiles of 4×4 pixels, of which neighbours share two rows or columns, are
transformed by additions, multiplied by the transformed kernel, channels summed, and transformed back. Both gradients
have the same form. Milliseconds on one core, XLA's form and this one, of the result, the gradient by the images and
that by the kernel (jax 0.10.2, 2026-11-30):

    128 × 8 × 8 × 64       5.9 and 4.1      6.0 and 3.8      9.8 and 6.3
    128 × 2 × 2 × 256      6.3 and 4.0      6.1 and 3.9      7.6 and 4.0
    128 × 32 × 32 × 64     102 and 58       100 and 58       180 and 92
    16 × 14 × 14 × 256     37 and 20        39 and 20        40 and 24
    16 × 4 × 4 × 512       12.7 and 9.1     12.7 and 11.2    14.4 and 8.3

Each takes 0.3 s to compile, where XLA's takes 0.05 s. A pixel that isn't finite may make NaN where the plain
sum is infinite. On other platforms XLA's own convolution stands here.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308, section 4.1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byol_jax.ops.axis import equally_varying
from byol_jax.ops.bilinear import Compute, Form, Shapes, make_convolution, with_transposes
from byol_jax.ops.geometry import Geometry, convolve_by_xla

__all__ = ["suits_winograd", "winograd_conv"]

Pads = tuple[tuple[int, int], ...]
"""Zeros (before, after), of rows and columns."""

_FEWEST_CHANNELS = 64
"""In and out: with 48, or from 128 to 32, a sixth is saved, which doesn't pay for what more there is to compile."""

_LARGEST_SHARE = 0.6
"""Of the multiplications, those for pixels beyond the map included: a map of 3×3 saves a fifth of them, 5×5 a third,
7×7 two fifths."""

_CACHED = 2**21
"""Bytes of transformed images at a time: 16 × 32 × 32 × 64 took 7.4 ms in parts of 2 MiB, 7.8 in parts of 1 or 4, and
11.6 as one of 16; 128 × 32 × 32 × 64 took 58 ms in parts of 2 MiB, 65 in parts of 4, and 113 as one."""

_OF_COLUMN = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
_OF_KERNEL = np.kron(_OF_COLUMN, _OF_COLUMN)
"""G of the paper in both directions: the 16 numbers of a transformed kernel from its 9, [16, 9]."""

_TURN = [3, 1, 2, 0]
"""The transform of a column turned around, from the column's: the outer two of its four numbers change places."""


def suits_winograd(x: jax.Array, geometry: Geometry, outputs: int) -> bool:
    """Whether `winograd_conv` computes the convolution of x to so many channels, and is the faster form on CPUs."""
    rows, columns = _tiles(geometry.outputs)
    return (
        (geometry.taps, geometry.stride, geometry.dilation) == ((3, 3), (1, 1), (1, 1))
        and min(x.shape[3], outputs) >= _FEWEST_CHANNELS
        and 16 * rows * columns <= _LARGEST_SHARE * 9 * geometry.pixels
        and x.dtype in (jnp.float32, jnp.float64)
        and x.shape[0] != 0
        and all(0 <= pad <= 2 for pads in geometry.pads for pad in pads)
    )


def winograd_conv(x: jax.Array, kernel: jax.Array, geometry: Geometry, layout: str) -> jax.Array:
    """`y[n, i, j, o] = sum over a, b, c of x[n, i + a - top, j + b - left, c] · kernel[a, b, c, o]`.

    Args:
        x: `[N, H, W, C]`, float32 or float64.
        kernel: `[3, 3, C, O]` with layout "HWIO", `[O, C, 3, 3]` with "OIHW", x's dtype.
        geometry: of both: 3×3 positions, at most two pixels of padding, no stride, no dilation.

    Returns:
        `[N, H', W', O]`, x's dtype.

    Example:
        >>> geometry = Geometry((4, 4), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
        >>> winograd_conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 1)), geometry, "HWIO")[0, :, :, 0].tolist()
        [[8.0, 12.0, 12.0, 8.0], [12.0, 18.0, 18.0, 12.0], [12.0, 18.0, 18.0, 12.0], [8.0, 12.0, 12.0, 8.0]]
    """
    return _winograd(x, kernel, geometry=geometry, layout=layout, groups=1)


def _tiles(outputs: tuple[int, int]) -> tuple[int, int]:
    """How many tiles of 2×2 pixels cover the result's rows and columns."""
    return -(-outputs[0] // 2), -(-outputs[1] // 2)


class _Case(NamedTuple):
    """Which convolution it is: the primitive's parameters, and over how many devices the images are spread."""

    geometry: Geometry
    layout: str
    groups: int
    devices: int


# In the sums below z is one of a tile's 16 numbers, p a tile of the batch, g a group. Groups come from vmap alone.
_KERNEL_AXES = {"HWIO": "zcgo", "OIHW": "zgoc"}


def _convolve(x: jax.Array, kernel: jax.Array, case: _Case) -> jax.Array:
    weights, axes = _transform_kernel(kernel, case), f"zpgc,{_KERNEL_AXES[case.layout]}->zpgo"
    return _correlate(x, weights, axes, case.geometry.pads, case.geometry.outputs, case)


def _input_gradient(dy: jax.Array, kernel: jax.Array, case: _Case) -> jax.Array:
    """The convolution of dy by the kernel turned by half a turn."""
    weights, axes = _transform_kernel(kernel, case), f"zpgo,{_KERNEL_AXES[case.layout]}->zpgc"
    turned = weights.reshape(4, 4, -1)[jnp.array(_TURN)][:, jnp.array(_TURN)].reshape(weights.shape)
    pads = tuple((2 - before, 2 - after) for before, after in case.geometry.pads)
    return _correlate(dy, turned, axes, pads, case.geometry.size, case)


def _kernel_gradient(x: jax.Array, dy: jax.Array, case: _Case) -> jax.Array:
    """The transposes of the three transforms, in reverse order."""
    geometry, groups, axes = case.geometry, case.groups, f"zpgc,zpgo->{_KERNEL_AXES[case.layout]}"
    (height, width), (rows, columns) = geometry.outputs, _tiles(geometry.outputs)

    def sum_tiles(x: jax.Array, dy: jax.Array) -> jax.Array:
        seen = _transform_images(x, geometry.pads, rows, columns)
        dy = jnp.pad(dy, ((0, 0), (0, 2 * rows - height), (0, 2 * columns - width), (0, 0)))
        dy = dy.reshape(dy.shape[0], rows, 2, columns, 2, -1)
        there = _spread(_spread(dy, 2, 0), 4, 1)  # [4, 4, N, rows, columns, O]
        return _sum(axes, _by_groups(seen, groups), _by_groups(there, groups), groups)

    parts = _parts(x.shape[0], rows * columns * max(x.shape[3], dy.shape[3]) * x.dtype.itemsize, case.devices)
    if parts == 1:
        weights = sum_tiles(x, dy)
    else:
        one = jax.eval_shape(sum_tiles, *(_part(array, parts, 0) for array in (x, dy)))
        start = equally_varying(jnp.zeros(one.shape, one.dtype), x)[0]
        weights = lax.fori_loop(
            0, parts, lambda i, total: total + sum_tiles(_part(x, parts, i), _part(dy, parts, i)), start
        )
    weights = weights.reshape(16, -1)
    of_kernel = jnp.asarray(_OF_KERNEL, x.dtype)
    if case.layout == "HWIO":
        return (of_kernel.T @ weights).reshape(3, 3, -1, dy.shape[3])
    return (weights.T @ of_kernel).reshape(dy.shape[3], -1, 3, 3)


def _correlate(
    x: jax.Array, weights: jax.Array, axes: str, pads: Pads, outputs: tuple[int, int], case: _Case
) -> jax.Array:
    """The result's `outputs` pixels, from transformed weights and the axes of the sum."""
    rows, columns = _tiles(outputs)

    def correlate(x: jax.Array) -> jax.Array:
        seen = _transform_images(x, pads, rows, columns)
        products = _sum(axes, _by_groups(seen, case.groups), weights, case.groups).reshape(*seen.shape[:5], -1)
        y = _gather(_gather(products, 0), 1)  # [2, 2, N, rows, columns, O]
        y = y.transpose(2, 3, 0, 4, 1, 5).reshape(x.shape[0], 2 * rows, 2 * columns, -1)
        return y[:, : outputs[0], : outputs[1]]

    parts = _parts(x.shape[0], rows * columns * x.shape[3] * x.dtype.itemsize, case.devices)
    if parts == 1:
        return correlate(x)
    one = jax.eval_shape(correlate, _part(x, parts, 0))
    start = equally_varying(jnp.zeros((one.shape[0], parts, *one.shape[1:]), one.dtype), x)[0]
    y = lax.fori_loop(
        0, parts, lambda i, y: lax.dynamic_update_index_in_dim(y, correlate(_part(x, parts, i)), i, 1), start
    )
    return y.reshape(x.shape[0], *one.shape[1:])


def _parts(images: int, size: int, devices: int) -> int:
    """In how many parts the images are taken, each of the same number, so that a part's transform, of 16 · `size` bytes
    an image, stays in a core's cache. Each device has as many images of every part. A number that isn't known yet, of
    `jax.export`, is one part."""
    if not isinstance(images, int):
        return 1
    own = images // devices if images % devices == 0 else images
    together = max(1, min(own, _CACHED // (16 * size)))
    while own % together:
        together -= 1
    return own // together


def _part(images: jax.Array, parts: int, which: int | jax.Array) -> jax.Array:
    """Every `parts`-th image, so that a batch that is spread over devices stays where it is."""
    apart = images.reshape(-1, parts, *images.shape[1:])
    return lax.dynamic_index_in_dim(apart, which, 1, keepdims=False)


def _transform_kernel(kernel: jax.Array, case: _Case) -> jax.Array:
    """[16, C / G, G, O / G], or with layout "OIHW" [16, G, O / G, C / G]; one group has no axis."""
    of_kernel = jnp.asarray(_OF_KERNEL, kernel.dtype)
    groups = [case.groups] if case.groups > 1 else []
    if case.layout == "HWIO":
        channels, outputs = kernel.shape[2:]
        return (of_kernel @ kernel.reshape(9, -1)).reshape(16, channels, *groups, outputs // case.groups)
    outputs, channels = kernel.shape[:2]
    return (of_kernel @ kernel.reshape(-1, 9).T).reshape(16, *groups, outputs // case.groups, channels)


def _transform_images(x: jax.Array, pads: Pads, rows: int, columns: int) -> jax.Array:
    """B of the paper in both directions: [4, 4, N, rows, columns, C]. Each step is an array of its own; written as one
    expression it is sixteen operations of XLA, which take three times as long to compile."""
    (top, _), (left, _) = pads
    below, right = 2 * rows + 2 - top - x.shape[1], 2 * columns + 2 - left - x.shape[2]
    x = lax.optimization_barrier(jnp.pad(x, ((0, 0), (top, below), (left, right), (0, 0))))
    return _differences(lax.optimization_barrier(_differences(x, 1, rows, 0)), 3, columns, 1)


def _differences(x: jax.Array, axis: int, tiles: int, into: int) -> jax.Array:
    """Of each four pixels in a row (a, b, c, d): a - c, b + c, c - b, b - d, on a new axis `into`."""
    a, b, c, d = (lax.slice_in_dim(x, first, first + 2 * tiles - 1, 2, axis) for first in range(4))
    return jnp.stack([a - c, b + c, c - b, b - d], into)


def _gather(products: jax.Array, axis: int) -> jax.Array:
    """Of four numbers (a, b, c, d) on an axis: a + b + c, b - c - d."""
    a, b, c, d = (lax.index_in_dim(products, which, axis, keepdims=False) for which in range(4))
    return lax.optimization_barrier(jnp.stack([a + b + c, b - c - d], axis))


def _spread(dy: jax.Array, axis: int, into: int) -> jax.Array:
    """The transpose of `_gather`: of two numbers (a, b) a, a + b, a - b, -b, on a new axis `into`."""
    a, b = (lax.index_in_dim(dy, which, axis, keepdims=False) for which in range(2))
    return lax.optimization_barrier(jnp.stack([a, a + b, a - b, -b], into))


def _by_groups(tiles: jax.Array, groups: int) -> jax.Array:
    """[4, 4, N, rows, columns, C] to [16, tiles, C], or [16, tiles, G, C / G]."""
    channels = tiles.shape[-1]
    return tiles.reshape(16, -1, *([groups] if groups > 1 else []), channels // groups)


def _sum(axes: str, first: jax.Array, second: jax.Array, groups: int) -> jax.Array:
    return jnp.einsum(axes if groups > 1 else axes.replace("g", ""), first, second)


def _kernel_shape(layout: str, channels: int, outputs: int) -> tuple[int, int, int, int]:
    return (3, 3, channels, outputs) if layout == "HWIO" else (outputs, channels, 3, 3)


_SHAPES = Shapes(
    convolve=lambda x, kernel, geometry, layout, groups: (x[0], *geometry.outputs, kernel[layout.index("O")]),
    input_gradient=lambda dy, kernel, geometry, layout, groups: (
        dy[0],
        *geometry.size,
        kernel[layout.index("I")] * groups,
    ),
    kernel_gradient=lambda x, dy, geometry, layout, groups: _kernel_shape(layout, x[3] // groups, dy[3]),
)


def _form(devices: int) -> Form:
    def of(compute: Callable[[jax.Array, jax.Array, _Case], jax.Array]) -> Compute:
        return lambda first, second, **where: compute(first, second, _Case(devices=devices, **where))

    return Form(of(_convolve), of(_input_gradient), of(_kernel_gradient))


_winograd = make_convolution(
    "winograd",
    shapes=_SHAPES,
    on_cpu=_form,
    elsewhere=with_transposes(convolve_by_xla, _SHAPES),
    fold=lambda where, size: where | {"groups": where["groups"] * size},
    outputs_axis=lambda where: where["layout"].index("O") - 4,
)
