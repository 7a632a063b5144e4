"""Operators that read or write at places that other tensors hold: indexing, gathering, scattering, embeddings."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError, UnsupportedOpError
from byol_jax.ops.precision import standard_promotion
from interop.trace.ops.operator import Context, Operator, in_torch_order, within_range
from interop.trace.values import Value, from_torch_order, normal_axis, to_torch_order

__all__ = ["TABLE"]


def _index(context: Context, x: Value, indices: Sequence[Value | None]) -> Value:
    """torch's advanced indexing is NumPy's."""
    chosen = [slice(None) if index is None else to_torch_order(index) for index in indices]
    if any(index is not None and _is_mask(index) for index in indices):
        raise UnsupportedOpError(f"{context.module or 'the network'} reads x[mask], which has a size by what it reads")
    return from_torch_order(to_torch_order(x)[tuple(chosen)])


def _index_put(context: Context, x: Value, indices: Sequence[Any], values: Value, accumulate: bool = False) -> Value:
    if any(index is not None and _is_mask(index) for index in indices):
        return _put_masked(context, x, indices, values, accumulate)
    chosen = tuple(slice(None) if index is None else to_torch_order(index) for index in indices)
    place = to_torch_order(x).at[chosen]
    new = to_torch_order(values).astype(x.dtype)
    return from_torch_order(place.add(new) if accumulate else place.set(new))


def _put_masked(context: Context, x: Value, indices: Sequence[Any], values: Value, accumulate: bool) -> Value:
    """`x[:, mask] = values`, the mask alone: values that are the same for all that it chooses.

    Raises:
        UnsupportedOpError: several indices, or a value for each place.
    """
    before = next(place for place, index in enumerate(indices) if index is not None)
    mask = indices[before]
    if sum(index is not None for index in indices) > 1 or not _is_mask(mask):
        raise _unsupported_mask(context, "a mask beside other indices")
    behind = x.ndim - before - mask.ndim  # axes
    new = to_torch_order(values).astype(x.dtype)
    places = new.ndim - behind - 1  # axis of `values` that counts the places
    if places >= 0:
        if new.shape[places] != 1:
            raise _unsupported_mask(context, "a value for each place that a mask chooses")
        new = new.reshape(*new.shape[:places], *(1,) * mask.ndim, *new.shape[places + 1 :])
    array = to_torch_order(x)
    chosen = to_torch_order(mask).astype(bool).reshape(*mask.shape, *(1,) * behind)
    return from_torch_order(jnp.where(chosen, array + new if accumulate else new, array))


def _is_mask(index: Value) -> bool:
    """torch takes bytes for bools."""
    return index.dtype in (jnp.bool_, jnp.uint8)


def _unsupported_mask(context: Context, what: str) -> UnsupportedOpError:
    return UnsupportedOpError(
        f"{context.module or 'the network'} assigns to x[mask] (aten.index_put) with {what}: torch.where, which gives "
        "all places one shape, can be imported"
    )


def _index_select(x: jax.Array, dim: int, index: jax.Array) -> jax.Array:
    return jnp.take(x, jnp.atleast_1d(index), axis=dim)


def _gather(x: jax.Array, dim: int, index: jax.Array, *, sparse_grad: bool = False) -> jax.Array:
    """torch lets the index be shorter than x along the other axes."""
    axis = normal_axis(dim, x.ndim)
    kept = tuple(slice(None) if a == axis else slice(0, n) for a, n in enumerate(index.shape))
    return jnp.take_along_axis(x[kept], index, axis=axis)


def _scatter(x: jax.Array, dim: int, index: jax.Array, src: Any, *, reduce: str = "set") -> jax.Array:
    """x with `src`, a number or an array, put, added or multiplied at the index's places along `dim`."""
    axis = normal_axis(dim, x.ndim)
    places = list(jnp.meshgrid(*(jnp.arange(n, dtype=index.dtype) for n in index.shape), indexing="ij"))
    places[axis] = index
    if isinstance(src, jax.Array):
        new = src[tuple(slice(0, n) for n in index.shape)]
    else:
        new = jnp.asarray(within_range(src, x.dtype), x.dtype)
    return getattr(x.at[tuple(places)], reduce)(new.astype(x.dtype))


def _index_add(x: jax.Array, dim: int, index: jax.Array, source: jax.Array, *, alpha: float = 1) -> jax.Array:
    places = (*(slice(None),) * normal_axis(dim, x.ndim), jnp.atleast_1d(index))
    return x.at[places].add((source if alpha == 1 else source * alpha).astype(x.dtype))


def _index_fill(x: jax.Array, dim: int, index: jax.Array, value: Any) -> jax.Array:
    """x with a number, or an array, at the index's places along `dim`."""
    places = (*(slice(None),) * normal_axis(dim, x.ndim), jnp.atleast_1d(index))
    new = value if isinstance(value, jax.Array) else within_range(value, x.dtype)
    return x.at[places].set(jnp.asarray(new, x.dtype))


def _masked_scatter(x: jax.Array, mask: jax.Array, source: jax.Array) -> jax.Array:
    """x with the source's first numbers, in order, where the mask is true."""
    x, mask = jnp.broadcast_arrays(x, mask.astype(bool))
    places = jnp.cumsum(mask.reshape(-1)).reshape(mask.shape) - 1
    return jnp.where(mask, source.reshape(-1)[jnp.maximum(places, 0)].astype(x.dtype), x)


def _bucketize(x: Any, boundaries: jax.Array, *, out_int32: bool = False, right: bool = False) -> jax.Array:
    """The number of boundaries, which ascend, below each of x; with `right` of those that aren't above it."""
    with standard_promotion():
        dtype = jnp.result_type(x, boundaries)
    side = "right" if right else "left"
    return jnp.searchsorted(boundaries.astype(dtype), jnp.asarray(x, dtype), side=side).astype(jnp.int32)


def _embedding(
    context: Context,
    weight: Value,
    indices: Value,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    *rest: Any,
) -> Value:
    """No gradient reaches the padding's row. With `scale_grad_by_freq` each row has the mean of what its uses get, over
    the whole batch."""
    table, places = to_torch_order(weight), to_torch_order(indices)
    if padding_idx >= 0:
        table = table.at[padding_idx].set(jax.lax.stop_gradient(table[padding_idx]))
    rows = jnp.take(table, places, axis=0)
    if scale_grad_by_freq:
        if context.axis_name is not None:
            raise ConfigurationError(
                f"{context.module or 'the network'}: scale_grad_by_freq counts over the whole batch, and a "
                f"device under the axis {context.axis_name!r} sees a part: use parallel.jit, without axis_name"
            )
        counts = jnp.zeros(table.shape[0], table.dtype).at[places].add(1)
        part = rows / counts[places][..., None]
        rows = jax.lax.stop_gradient(rows) + (part - jax.lax.stop_gradient(part))
    return from_torch_order(rows)


TABLE: dict[str, Operator] = {
    "aten.index": _index,
    "aten.index_put": _index_put,
    "aten.index_select": in_torch_order(_index_select),
    "aten.gather": in_torch_order(_gather),
    "aten.scatter": in_torch_order(_scatter),
    "aten.scatter_add": in_torch_order(partial(_scatter, reduce="add")),
    "aten.index_add": in_torch_order(_index_add),
    "aten.index_fill": in_torch_order(_index_fill),
    "aten.index_copy": in_torch_order(_index_fill),
    "aten.masked_scatter": in_torch_order(_masked_scatter),
    "aten.bucketize": in_torch_order(_bucketize),
    "aten.embedding": _embedding,
}
