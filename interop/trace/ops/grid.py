"""Values of an image, or of a volume, at places that are computed: spatial transformers and deformable attention."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.ops.precision import at_least_float32
from interop.trace.ops.operator import Context, Operator
from interop.trace.ops.resize import CUBIC
from interop.trace.values import Value, arrange, from_torch_order, to_torch_order

__all__ = ["TABLE"]

BILINEAR, NEAREST, BICUBIC = range(3)
ZEROS, BORDER, REFLECTION = range(3)
"""torch's numbers for modes and paddings."""

Taps = list[tuple[jax.Array, jax.Array | float]]
"""Whole places along one axis, and the weight of each."""


def _sample(
    context: Context, x: Value, grid: Value, mode: int = BILINEAR, padding: int = ZEROS, align_corners: bool = False
) -> Value:
    """x, [N, C, *sizes], at the places of the grid, [N, *new, axes]: its last axis has x, y (and z), -1 to 1 from one
    edge to the other. Places are computed with 32 bits at least."""
    axes = x.ndim - 2
    last = (0, *range(2, x.ndim), 1)
    array, places = arrange(x, last), to_torch_order(grid)
    places = places.astype(at_least_float32(places.dtype))
    sizes = array.shape[1:-1]
    taps = [_taps(places[..., axes - 1 - axis], n, mode, padding, align_corners) for axis, n in enumerate(sizes)]
    rows = array.reshape(len(array), math.prod(sizes), array.shape[-1])  # [N, places, C]
    total: Any = 0
    for corner in itertools.product(*taps):
        inside = jnp.stack([(place >= 0) & (place < n) for (place, _), n in zip(corner, sizes, strict=True)]).all(0)
        flat = jnp.zeros(inside.shape, jnp.int32)
        for (place, _), n in zip(corner, sizes, strict=True):
            flat = flat * n + jnp.clip(place, 0, n - 1).astype(jnp.int32)
        weight = math.prod(weight for _, weight in corner)
        weight = jnp.where(inside | jnp.isnan(weight), weight, 0)  # [N, *new]; nan where a place isn't finite
        indices = flat.reshape(len(flat), math.prod(flat.shape[1:]))
        found = jax.vmap(lambda row, index: row[index])(rows, indices).reshape(*flat.shape, array.shape[-1])
        total = total + weight[..., None] * found.astype(places.dtype)
    return Value(total.astype(array.dtype), last)


def _taps(place: jax.Array, n: int, mode: int, padding: int, align: bool) -> Taps:
    place = (place + 1) / 2 * (n - 1) if align else ((place + 1) * n - 1) / 2
    if mode == BICUBIC:
        first = jnp.floor(place)
        part = place - first
        return [(_padded(first + step, n, padding, align), _cubic(part - step)) for step in (-1, 0, 1, 2)]
    place = _padded(place, n, padding, align)
    if mode == NEAREST:
        return [(jnp.round(place), 1.0)]
    first = jnp.floor(place)
    return [(first, 1 - (place - first)), (first + 1, place - first)]


def _padded(place: jax.Array, n: int, padding: int, align: bool) -> jax.Array:
    """The place that stands for one beyond the edges; on an edge the gradient is 0, and nan becomes 0, as in torch."""
    if padding == ZEROS:
        return place
    if padding == REFLECTION:
        low, span = (0.0, n - 1.0) if align else (-0.5, float(n))
        place = _reflected(place - low, span) + low if span else jnp.zeros_like(place)
    return jnp.where(place >= n - 1, n - 1, jnp.where(place > 0, place, 0))


def _reflected(distance: jax.Array, span: float) -> jax.Array:
    distance = jnp.where(distance < 0, -distance, distance)
    rest, is_odd = jnp.fmod(distance, span), jnp.floor(distance / span) % 2 == 1
    return jnp.where(is_odd, span - rest, rest)


def _cubic(distance: jax.Array) -> jax.Array:
    d = jnp.abs(distance)
    near = ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1
    far = CUBIC * (((d - 5) * d + 8) * d - 4)
    return jnp.where(d <= 1, near, jnp.where(d >= 2, 0, far))


def _affine_grid(context: Context, theta: Value, size: Sequence[int], align_corners: bool) -> Value:
    """The grid [N, *sizes, axes] of the maps theta, [N, axes, axes + 1], from new places to old ones."""
    maps = to_torch_order(theta)
    along = [_steps(n, align_corners, maps.dtype) for n in reversed(size[2:])]  # x, y (and z)
    grids = jnp.meshgrid(*reversed(along), indexing="ij")
    base = jnp.stack([*reversed(grids), jnp.ones_like(grids[0])], -1)
    return from_torch_order(jnp.einsum("...b,nab->n...a", base, maps, precision=jax.lax.Precision.HIGHEST))


def _steps(n: int, align: bool, dtype: Any) -> jax.Array:
    """From -1 to 1: the outer pixels' centres, or else the edges."""
    if n == 1:
        return jnp.zeros(1, dtype)
    return jnp.linspace(-1, 1, n, dtype=dtype) * (1.0 if align else (n - 1) / n)


TABLE: dict[str, Operator] = {
    "aten.grid_sampler": _sample,
    "aten.grid_sampler_2d": _sample,
    "aten.grid_sampler_3d": _sample,
    "aten.affine_grid_generator": _affine_grid,
}
