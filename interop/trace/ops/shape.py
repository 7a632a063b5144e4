"""Operators that change the shape, the order of axes or which elements there are."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.ops.precision import standard_promotion
from interop.trace.ops.operator import Context, Operator, as_value, in_torch_order
from interop.trace.values import (
    Value,
    align,
    map_array,
    normal_axis,
    permute,
    physical_axes,
    reshape,
    squeeze,
    unsqueeze,
)

__all__ = ["TABLE"]


def _reshape(context: Context, x: Value, shape: Sequence[int]) -> Value:
    return reshape(x, shape)


def _flatten(context: Context, x: Value, start_dim: int = 0, end_dim: int = -1) -> Value:
    start, end = normal_axis(start_dim, x.ndim), normal_axis(end_dim, x.ndim)
    size = int(np.prod(x.shape[start : end + 1]))
    return reshape(x, (*x.shape[:start], size, *x.shape[end + 1 :]))


def _unflatten(context: Context, x: Value, dim: int, sizes: Sequence[int]) -> Value:
    axis = normal_axis(dim, x.ndim)
    known = int(np.prod([n for n in sizes if n != -1]))
    whole = [x.shape[axis] // known if n == -1 else n for n in sizes]
    return reshape(x, (*x.shape[:axis], *whole, *x.shape[axis + 1 :]))


def _permute(context: Context, x: Value, dims: Sequence[int]) -> Value:
    return permute(x, dims)


def _transpose(context: Context, x: Value, dim0: int = 0, dim1: int = 1) -> Value:
    axes = list(range(x.ndim))
    if x.ndim > 1:
        a, b = normal_axis(dim0, x.ndim), normal_axis(dim1, x.ndim)
        axes[a], axes[b] = axes[b], axes[a]
    return permute(x, axes)


def _move_axes(context: Context, x: Value, source: Any, destination: Any) -> Value:
    given = [(part,) if isinstance(part, int) else part for part in (source, destination)]
    source, destination = ([normal_axis(axis, x.ndim) for axis in part] for part in given)
    rest = iter(axis for axis in range(x.ndim) if axis not in source)
    placed = dict(zip(destination, source, strict=True))
    return permute(x, [placed[axis] if axis in placed else next(rest) for axis in range(x.ndim)])


def _unsqueeze(context: Context, x: Value, dim: int) -> Value:
    return unsqueeze(x, dim)


def _squeeze(context: Context, x: Value, dim: Any = None) -> Value:
    return squeeze(x, range(x.ndim) if dim is None else (dim,) if isinstance(dim, int) else dim)


def _expand(context: Context, x: Value, size: Sequence[int], *, implicit: bool = False) -> Value:
    """-1 keeps an axis; new axes come first."""
    for _ in range(len(size) - x.ndim):
        x = unsqueeze(x, 0)
    whole = [old if new == -1 else new for old, new in zip(x.shape, size, strict=True)]
    return Value(jnp.broadcast_to(x.array, [whole[axis] for axis in x.order]), x.order)


def _cat(context: Context, tensors: Sequence[Value], dim: int = 0) -> Value:
    """Legacy empty vectors are left out, as torch does."""
    kept = [x for x in tensors if x.shape != (0,)] or list(tensors[:1])
    with standard_promotion():
        dtype = jnp.result_type(*(x.dtype for x in tensors))
    arrays, order = align([as_value(x, dtype) for x in kept])
    return Value(jnp.concatenate(arrays, order.index(normal_axis(dim, len(order)))), order)


def _stack(context: Context, tensors: Sequence[Value], dim: int = 0) -> Value:
    axis = dim % (tensors[0].ndim + 1)
    return _cat(context, [unsqueeze(x, axis) for x in tensors], axis)


def _part(x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
    return map_array(lambda a: jax.lax.slice_in_dim(a, start, stop, step, axis), x)


def _slice(
    context: Context, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    (axis,) = physical_axes(x, dim)
    start, stop, step = slice(start, end, step).indices(x.array.shape[axis])
    return _part(x, axis, start, max(start, stop), step)


def _select(context: Context, x: Value, dim: int, index: int) -> Value:
    (axis,) = physical_axes(x, dim)
    index %= x.array.shape[axis]
    return squeeze(_part(x, axis, index, index + 1), (dim,))


def _narrow(context: Context, x: Value, dim: int, start: int, length: int) -> Value:
    start %= x.shape[dim]
    return _slice(context, x, dim, start, start + length)


def _split(context: Context, x: Value, sizes: int | Sequence[int], dim: int = 0) -> tuple[Value, ...]:
    (axis,) = physical_axes(x, dim)
    length = x.array.shape[axis]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)]
    edges = np.cumsum([0, *sizes]).tolist()
    return tuple(_part(x, axis, start, stop) for start, stop in itertools.pairwise(edges))


def _chunk(context: Context, x: Value, chunks: int, dim: int = 0) -> tuple[Value, ...]:
    return _split(context, x, max(-(-x.shape[dim] // chunks), 1), dim)


def _unbind(context: Context, x: Value, dim: int = 0) -> tuple[Value, ...]:
    return tuple(_select(context, x, dim, index) for index in range(x.shape[dim]))


def _slice_scatter(
    context: Context,
    x: Value,
    src: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    (axis,) = physical_axes(x, dim)
    index = [slice(None)] * x.ndim
    first, stop, step = slice(start, end, step).indices(x.array.shape[axis])
    index[axis] = slice(first, max(first, stop), step)
    return Value(x.array.at[tuple(index)].set(_broadcast_like(src, x)), x.order)


def _select_scatter(context: Context, x: Value, src: Value, dim: int, index: int) -> Value:
    index %= x.shape[dim]
    return _slice_scatter(context, x, unsqueeze(src, dim % x.ndim), dim, index, index + 1)


def _broadcast_like(source: Value, x: Value) -> jax.Array:
    """`source` with x's rank, dtype and order of axes, ready to be broadcast."""
    arrays, order = align([as_value(source, x.dtype), x])
    return Value(arrays[0], order).array if order == x.order else arrays[0].transpose([order.index(a) for a in x.order])


def _diag_embed(x: jax.Array, offset: int = 0, dim1: int = -2, dim2: int = -1) -> jax.Array:
    """Matrices, along two new axes, with x's last axis as their diagonal."""
    n = np.arange(x.shape[-1])
    size = len(n) + abs(offset)
    matrix = jnp.zeros((*x.shape[:-1], size, size), x.dtype).at[..., n + max(-offset, 0), n + max(offset, 0)].set(x)
    return jnp.moveaxis(matrix, (-2, -1), (dim1, dim2))


def _roll(x: jax.Array, shifts: Sequence[int], dims: Sequence[int] = ()) -> jax.Array:
    shifts, dims = ((part,) if isinstance(part, int) else tuple(part) for part in (shifts, dims))
    return jnp.roll(x, shifts, dims) if dims else jnp.roll(x.reshape(-1), shifts[0]).reshape(x.shape)


def _repeat(x: jax.Array, repeats: Sequence[int]) -> jax.Array:
    return jnp.tile(x, repeats)


def _repeat_interleave(x: jax.Array, repeats: int, dim: int | None = None, *, output_size: Any = None) -> jax.Array:
    return jnp.repeat(x, repeats, axis=dim)


def _unfold_axis(x: jax.Array, dimension: int, size: int, step: int) -> jax.Array:
    """`Tensor.unfold`: windows along one axis, their elements last."""
    axis = normal_axis(dimension, x.ndim)
    starts = np.arange(0, x.shape[axis] - size + 1, step)
    windows = jnp.take(x, starts[:, None] + np.arange(size), axis=axis)  # [..., window, element, ...]
    return jnp.moveaxis(windows, axis + 1, -1)


def _pixel_shuffle(x: jax.Array, factor: int) -> jax.Array:
    *batch, channels, rows, columns = x.shape
    x = x.reshape(*batch, channels // factor**2, factor, factor, rows, columns)
    n = len(batch)
    x = x.transpose(*range(n), n, n + 3, n + 1, n + 4, n + 2)  # [..., C, H, factor, W, factor]
    return x.reshape(*batch, channels // factor**2, rows * factor, columns * factor)


def _pixel_unshuffle(x: jax.Array, factor: int) -> jax.Array:
    *batch, channels, rows, columns = x.shape
    x = x.reshape(*batch, channels, rows // factor, factor, columns // factor, factor)
    n = len(batch)
    x = x.transpose(*range(n), n, n + 2, n + 4, n + 1, n + 3)  # [..., C, factor, factor, H, W]
    return x.reshape(*batch, channels * factor**2, rows // factor, columns // factor)


def _channel_shuffle(x: jax.Array, groups: int) -> jax.Array:
    batch, channels, *rest = x.shape
    x = x.reshape(batch, groups, channels // groups, *rest)
    return jnp.swapaxes(x, 1, 2).reshape(batch, channels, *rest)


TABLE: dict[str, Operator] = {
    **{f"aten.{name}": _reshape for name in ("view", "reshape", "_unsafe_view", "view_copy", "_reshape_copy")},
    **{f"aten.{name}": _transpose for name in ("transpose", "swapaxes", "swapdims", "t", "numpy_T")},
    "aten.flatten": _flatten,
    "aten.unflatten": _unflatten,
    "aten.permute": _permute,
    "aten.permute_copy": _permute,
    "aten.movedim": _move_axes,
    "aten.unsqueeze": _unsqueeze,
    "aten.squeeze": _squeeze,
    "aten.expand": _expand,
    "aten.expand_as": lambda context, x, other: _expand(context, x, other.shape),
    "aten.broadcast_to": _expand,
    "aten.cat": _cat,
    "aten.concat": _cat,
    "aten.stack": _stack,
    "aten.slice": _slice,
    "aten.select": _select,
    "aten.narrow": _narrow,
    "aten.split": _split,
    "aten.split_with_sizes": _split,
    "aten.chunk": _chunk,
    "aten.unbind": _unbind,
    "aten.slice_scatter": _slice_scatter,
    "aten.select_scatter": _select_scatter,
    "aten.diag_embed": in_torch_order(_diag_embed),
    "aten.roll": in_torch_order(_roll),
    "aten.flip": lambda context, x, dims: map_array(lambda a: jnp.flip(a, physical_axes(x, dims)), x),
    "aten.repeat": in_torch_order(_repeat),
    "aten.tile": in_torch_order(_repeat),
    "aten.repeat_interleave": in_torch_order(_repeat_interleave),
    "aten.unfold": in_torch_order(_unfold_axis),
    "aten.unfold_copy": in_torch_order(_unfold_axis),
    "aten.pixel_shuffle": in_torch_order(_pixel_shuffle),
    "aten.pixel_unshuffle": in_torch_order(_pixel_unshuffle),
    "aten.channel_shuffle": in_torch_order(_channel_shuffle),
    "aten.native_channel_shuffle": in_torch_order(_channel_shuffle),
    "aten.tril": in_torch_order(lambda x, diagonal=0: jnp.tril(x, diagonal)),
    "aten.triu": in_torch_order(lambda x, diagonal=0: jnp.triu(x, diagonal)),
    "aten.diagonal": in_torch_order(lambda x, offset=0, dim1=0, dim2=1: jnp.diagonal(x, offset, dim1, dim2)),
    "aten.meshgrid": in_torch_order(lambda tensors, *, indexing="ij": jnp.meshgrid(*tensors, indexing=indexing)),
    "aten.rot90": in_torch_order(lambda x, k=1, dims=(0, 1): jnp.rot90(x, k, dims)),
}
