"""Operators that run along axes: sums, extrema, norms, softmax, cumulative sums, sorting."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.ops.precision import at_least_float32
from interop.trace.graph import Dtype
from interop.trace.ops.extrema import maximum, minimum
from interop.trace.ops.operator import Context, Operator, in_one_dtype, in_torch_order
from interop.trace.ops.pointwise import absolute
from interop.trace.values import Value, from_torch_order, map_array, normal_axis, physical_axes, to_torch_order

__all__ = ["TABLE", "reduce_axes"]

Axes = int | Sequence[int] | None


def reduce_axes(x: Value, axes: Axes, keepdim: bool, function: Callable[..., jax.Array]) -> Value:
    """`function(array, axes)`, which leaves the axes with size 1; they are removed unless `keepdim`."""
    places = physical_axes(x, axes)
    array = function(x.array, places)
    if keepdim:
        return Value(array, x.order)
    gone = {x.order[place] for place in places}
    array = array.reshape([n for place, n in enumerate(array.shape) if place not in places])
    return Value(array, tuple(a - sum(other < a for other in gone) for a in x.order if a not in gone))


def _sum(context: Context, x: Value, dim: Axes = None, keepdim: bool = False, *, dtype: Dtype | None = None) -> Value:
    default = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32
    kept = context.dtype(dtype, default)
    return reduce_axes(x, dim, keepdim, lambda a, axes: jnp.sum(a, axes, dtype=kept, keepdims=True))


def _mean(context: Context, x: Value, dim: Axes = None, keepdim: bool = False, *, dtype: Dtype | None = None) -> Value:
    """In at least float32, as torch accumulates."""
    kept = context.dtype(dtype, x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else context.default)
    wide = at_least_float32(kept)
    return reduce_axes(x, dim, keepdim, lambda a, axes: jnp.mean(a, axes, dtype=wide, keepdims=True).astype(kept))


def _extreme(function: Callable[..., jax.Array]) -> Operator:
    """`amax`, `amin`: equal extrema share the gradient, in both frameworks."""

    def operator(context: Context, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
        return reduce_axes(x, dim, keepdim, function)

    return operator


def _extreme_of_all(function: Callable[..., jax.Array]) -> Operator:
    return lambda context, x: reduce_axes(x, None, False, function)


def _extreme_and_place(search: Callable[..., jax.Array]) -> Operator:
    """`max.dim`, `min.dim`: values and places; the gradient goes to that one place."""

    def operator(context: Context, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
        def values(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            return jnp.take_along_axis(array, search(array, axes[0], keepdims=True), axes[0]) if axes else array

        def places(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            return search(array, axes[0], keepdims=True) if axes else jnp.zeros((), jnp.int32)

        return reduce_axes(x, dim, keepdim, values), reduce_axes(x, dim, keepdim, places)

    return operator


def _place(search: Callable[..., jax.Array]) -> Operator:
    def operator(context: Context, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        if dim is None:
            return in_torch_order(lambda a: search(a.reshape(-1)))(context, x)
        return reduce_axes(x, dim, keepdim, lambda a, axes: search(a, axes[0], keepdims=True))

    return operator


def _variance(x: Value, dim: Axes, correction: float | None, keepdim: bool) -> Value:
    return reduce_axes(x, dim, keepdim, lambda a, axes: _var(a, axes, 1.0 if correction is None else float(correction)))


def _var(array: jax.Array, axes: tuple[int, ...], correction: float) -> jax.Array:
    """Of equal numbers exactly zero, as in torch: the mean of what is left without the first of them is exact."""
    first = tuple(slice(0, 1) if axis in axes else slice(None) for axis in range(array.ndim))
    wide = array.astype(at_least_float32(array.dtype))
    wide = wide - jax.lax.stop_gradient(wide[first])
    count = 1
    for axis in axes:
        count *= array.shape[axis]
    centred = wide - jnp.mean(wide, axes, keepdims=True)
    return (jnp.sum(jnp.square(centred), axes, keepdims=True) / (count - correction)).astype(array.dtype)


def _var_operator(rooted: bool) -> Operator:
    """`var`, and `std`, whose gradient where all numbers are equal is 0."""

    def operator(
        context: Context,
        x: Value,
        dim: Any = None,
        unbiased: bool = True,
        keepdim: bool = False,
        *,
        correction: float | None = None,
    ) -> Value:
        if isinstance(dim, bool):  # the overload (x, unbiased)
            dim, unbiased = None, dim
        spread = _variance(x, dim, correction if correction is not None else float(unbiased), keepdim)
        return map_array(lambda a: _power(a, 0.5), spread) if rooted else spread

    return operator


def _with_mean(spread: Operator) -> Operator:
    """`var_mean` and `std_mean`."""

    def operator(context: Context, x: Value, dim: Any = None, *rest: Any, **options: Any) -> tuple[Value, Value]:
        keepdim = options.get("keepdim", rest[1] if len(rest) > 1 else False)
        axes = None if isinstance(dim, bool) else dim  # the overload (x, unbiased)
        return spread(context, x, dim, *rest, **options), _mean(context, x, axes, keepdim)

    return operator


def _norm(
    context: Context,
    x: Value,
    ord: float | None = 2,
    dim: Axes = None,
    keepdim: bool = False,
    *,
    dtype: Dtype | None = None,
) -> Value:
    """The vector norm; its gradient at a zero vector is zero, as in torch."""
    ord = 2 if ord is None else ord

    def norm(a: jax.Array, axes: tuple[int, ...]) -> jax.Array:
        size = absolute(a)
        if ord == float("inf"):
            return maximum(size, axes)
        if ord == float("-inf"):
            return minimum(size, axes)
        if ord == 0:
            return jnp.sum((a != 0).astype(a.dtype), axes, keepdims=True)
        if ord == 1:
            return jnp.sum(size, axes, keepdims=True)
        if ord == 2:
            return _power(jnp.sum(jnp.square(a), axes, keepdims=True), 0.5)
        total = jnp.sum(_power(size, ord), axes, keepdims=True)
        return _power(total, 1 / ord)

    return reduce_axes(x, dim, keepdim, norm)


def _power(x: jax.Array, exponent: float) -> jax.Array:
    """`x ** exponent` of what isn't negative, with the gradient 0 at 0, as torch's norms have it."""
    is_zero = x == 0
    safe = jnp.where(is_zero, 1, x)
    return jnp.where(is_zero, 0 if exponent > 0 else jnp.inf, jnp.sqrt(safe) if exponent == 0.5 else safe**exponent)


def _norm_p(context: Context, x: Value, p: float | None = 2, dim: Axes = None, keepdim: bool = False, **options: Any):
    return _norm(context, x, p, dim, keepdim)


def _distances(context: Context, x: Value, y: Value, p: float = 2.0, *rest: Any) -> Value:
    """`cdist`: the norm of every difference of a row of x, [..., m, k], and one of y, [..., n, k]: [..., m, n]."""
    a, b = (to_torch_order(part) for part in in_one_dtype((x, y), None))
    differences = a[..., :, None, :] - b[..., None, :, :]
    if p == float("inf"):
        return from_torch_order(_largest_size(differences))
    return _norm(context, from_torch_order(differences), p, -1)


@jax.custom_jvp
def _largest_size(x: jax.Array) -> jax.Array:
    """The largest |x| along the last axis; every one of equal sizes has the whole gradient, as in torch's `cdist`."""
    return jnp.max(jnp.abs(x), -1, initial=0)


@_largest_size.defjvp
def _largest_size_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (dx,) = primals, tangents
    largest = _largest_size(x)
    signs = jnp.where(jnp.abs(x) == largest[..., None], jnp.sign(x), 0)
    return largest, jnp.sum(signs * dx, -1)


def _truth(function: Callable[..., jax.Array]) -> Operator:
    def operator(context: Context, x: Value, dim: Axes = None, keepdim: bool = False) -> Value:
        return reduce_axes(x, dim, keepdim, lambda a, axes: function(a, axes, keepdims=True))

    return operator


def _product(
    context: Context, x: Value, dim: Axes = None, keepdim: bool = False, *, dtype: Dtype | None = None
) -> Value:
    return reduce_axes(x, dim, keepdim, lambda a, axes: jnp.prod(a, axes, keepdims=True))


def _along_axis(function: Callable[..., jax.Array]) -> Operator:
    """softmax and its like: one axis, the shape stays."""

    def operator(context: Context, x: Value, dim: int, dtype: Any = None, *rest: Any, **options: Any) -> Value:
        (axis,) = physical_axes(x, dim) or (None,)
        return map_array(lambda a: a if axis is None else function(a, axis), x)

    return operator


def _softmax(function: Callable[..., jax.Array]) -> Operator:
    def in_float32(array: jax.Array, axis: int) -> jax.Array:
        return function(array.astype(at_least_float32(array.dtype)), axis=axis).astype(array.dtype)

    def operator(context: Context, x: Value, dim: int, dtype: Any = None, *rest: Any, **options: Any) -> Value:
        kept = dtype if isinstance(dtype, Dtype) else options.get("dtype")
        array = x.array.astype(context.dtype(kept, x.dtype))
        return _along_axis(in_float32)(context, Value(array, x.order), dim)

    return operator


def _log_sum_exp(context: Context, x: Value, dim: Axes, keepdim: bool = False) -> Value:
    return reduce_axes(x, dim, keepdim, lambda a, axes: jax.nn.logsumexp(a, axes, keepdims=True))


def _sort(x: jax.Array, dim: int = -1, descending: bool = False, **options: Any) -> tuple[jax.Array, jax.Array]:
    places = jnp.argsort(x, axis=dim, descending=descending, stable=True)
    return jnp.take_along_axis(x, places, axis=dim), places


def _top_k(x: jax.Array, k: int, dim: int = -1, largest: bool = True, *rest: Any) -> tuple[jax.Array, jax.Array]:
    axis = normal_axis(dim, x.ndim)
    values, places = _sort(x, axis, descending=largest)
    return jax.lax.slice_in_dim(values, 0, k, axis=axis), jax.lax.slice_in_dim(places, 0, k, axis=axis)


TABLE: dict[str, Operator] = {
    "aten.sum": _sum,
    "aten.mean": _mean,
    "aten.prod": _product,
    "aten.amax": _extreme(maximum),
    "aten.amin": _extreme(minimum),
    "aten.max.default": _extreme_of_all(maximum),
    "aten.min.default": _extreme_of_all(minimum),
    "aten.max.dim": _extreme_and_place(jnp.argmax),
    "aten.min.dim": _extreme_and_place(jnp.argmin),
    "aten.argmax": _place(jnp.argmax),
    "aten.argmin": _place(jnp.argmin),
    "aten.var": _var_operator(rooted=False),
    "aten.std": _var_operator(rooted=True),
    "aten.var_mean": _with_mean(_var_operator(rooted=False)),
    "aten.std_mean": _with_mean(_var_operator(rooted=True)),
    "aten.linalg_vector_norm": _norm,
    "aten.norm": _norm_p,
    "aten.cdist": _distances,
    "aten.any": _truth(jnp.any),
    "aten.all": _truth(jnp.all),
    "aten.softmax": _softmax(jax.nn.softmax),
    "aten._softmax": _softmax(jax.nn.softmax),
    "aten.log_softmax": _softmax(jax.nn.log_softmax),
    "aten._log_softmax": _softmax(jax.nn.log_softmax),
    "aten.logsumexp": _log_sum_exp,
    "aten.cumsum": _along_axis(jnp.cumsum),
    "aten.cumprod": _along_axis(jnp.cumprod),
    "aten.sort": in_torch_order(_sort),
    "aten.argsort": in_torch_order(lambda x, dim=-1, descending=False, **options: _sort(x, dim, descending)[1]),
    "aten.topk": in_torch_order(_top_k),
}
