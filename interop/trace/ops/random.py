"""Operators that draw random numbers: by JAX, from the call's key; only their distributions are torch's."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from interop.trace.graph import Dtype
from interop.trace.ops.operator import Absent, Context, Operator
from interop.trace.values import Value, align, from_torch_order

__all__ = ["DROPPED", "TABLE", "draw", "draw_like", "drop_elements"]


def drop_elements(context: Context, x: jax.Array, rate: float) -> jax.Array:
    """x with each element zero with probability `rate`, else scaled by 1 / (1 - rate)."""
    if rate >= 1:
        return jnp.zeros_like(x)
    keep = jax.random.bernoulli(context.random_key(), 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)


def _dropout(context: Context, x: Value, p: float, train: bool | None = True) -> Value:
    return Value(drop_elements(context, x.array, p), x.order) if train and p > 0 else x


def _native_dropout(context: Context, x: Value, p: float, train: bool | None) -> tuple[Value, Absent]:
    return _dropout(context, x, p, train), DROPPED


DROPPED = Absent("the elements that were kept (aten.native_dropout)")
"""Torch's own backward pass alone reads them."""


def _bernoulli(context: Context, x: Value, p: Any = None, **options: Any) -> Value:
    """Ones with probability `p`; without it x itself holds the probabilities."""
    chance = x.array if p is None else p
    if isinstance(chance, float) and chance in (0.0, 1.0):
        return Value(jnp.full(x.array.shape, chance, x.dtype), x.order)
    if isinstance(chance, Value):
        chance = align([x, chance])[0][1]
    return Value(jax.random.bernoulli(context.random_key(), chance, x.array.shape).astype(x.dtype), x.order)


def draw(function: Callable[..., jax.Array]) -> Operator:
    """An operator that draws an array of a given size, by `function(key, shape, dtype)`."""

    def make(context: Context, size: Sequence[int], *rest: Any, dtype: Dtype | None = None, **options: Any) -> Value:
        return from_torch_order(function(context.random_key(), tuple(size), context.dtype(dtype)))

    return make


def draw_like(function: Callable[..., jax.Array]) -> Operator:
    """An operator that draws an array of a tensor's size and, unless another is given, its dtype."""

    def make(context: Context, x: Value, *rest: Any, dtype: Dtype | None = None, **options: Any) -> Value:
        return Value(function(context.random_key(), x.array.shape, context.dtype(dtype, x.dtype)), x.order)

    return make


def _uniform(context: Context, x: Value, low: float = 0.0, high: float = 1.0, **options: Any) -> Value:
    drawn = jax.random.uniform(context.random_key(), x.array.shape, x.dtype, low, high)
    return Value(drawn, x.order)


def _normal(context: Context, x: Value, mean: float = 0.0, std: float = 1.0, **options: Any) -> Value:
    drawn = jax.random.normal(context.random_key(), x.array.shape, x.dtype)
    return Value(mean + std * drawn, x.order)


def _permutation(context: Context, n: int, **options: Any) -> Value:
    return from_torch_order(jax.random.permutation(context.random_key(), jnp.arange(n, dtype=jnp.int32)))


TABLE: dict[str, Operator] = {
    "aten.dropout": _dropout,
    "aten.native_dropout": _native_dropout,
    "aten.bernoulli": _bernoulli,
    "aten.rand": draw(jax.random.uniform),
    "aten.randn": draw(jax.random.normal),
    "aten.rand_like": draw_like(jax.random.uniform),
    "aten.randn_like": draw_like(jax.random.normal),
    "aten.uniform": _uniform,
    "aten.normal_functional": _normal,
    "aten.randperm": _permutation,
}
