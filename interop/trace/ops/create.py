"""Operators that make arrays from nothing, and Python's own arithmetic on sizes."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import UnsupportedOpError
from interop.trace.graph import Dtype
from interop.trace.ops.operator import Absent, Context, Operator, in_torch_order, within_range
from interop.trace.values import Value, from_torch_order

__all__ = ["TABLE"]


def _constant(value: Any) -> Operator:
    """`zeros` and `ones`; `empty`, with arbitrary contents in torch, is zeros."""

    def make(context: Context, size: Sequence[int], *rest: Any, dtype: Dtype | None = None, **options: Any) -> Value:
        return from_torch_order(jnp.full(tuple(size), value, context.dtype(dtype)))

    return make


def _constant_like(value: Any) -> Operator:
    def make(context: Context, x: Value, *rest: Any, dtype: Dtype | None = None, **options: Any) -> Value:
        return Value(jnp.full(x.array.shape, value, context.dtype(dtype, x.dtype)), x.order)

    return make


def _new_constant(value: Any) -> Operator:
    def make(context: Context, x: Value, size: Sequence[int], *, dtype: Dtype | None = None, **options: Any) -> Value:
        return from_torch_order(jnp.full(tuple(size), value, context.dtype(dtype, x.dtype)))

    return make


def _kind(context: Context, value: Any) -> Any:
    """torch's dtype for a Python number."""
    return context.default if isinstance(value, float) else jnp.bool_ if isinstance(value, bool) else jnp.int32


def _full(context: Context, size: Sequence[int], value: Any, *, dtype: Dtype | None = None, **options: Any) -> Value:
    filled = context.dtype(dtype, _kind(context, value))
    return from_torch_order(jnp.full(tuple(size), within_range(value, filled), filled))


def _full_like(context: Context, x: Value, value: Any, *, dtype: Dtype | None = None, **options: Any) -> Value:
    filled = context.dtype(dtype, x.dtype)
    return Value(jnp.full(x.array.shape, within_range(value, filled), filled), x.order)


def _new_full(
    context: Context, x: Value, size: Sequence[int], value: Any, *, dtype: Dtype | None = None, **options: Any
) -> Value:
    filled = context.dtype(dtype, x.dtype)
    return from_torch_order(jnp.full(tuple(size), within_range(value, filled), filled))


def _arange(context: Context, *bounds: Any, dtype: Dtype | None = None, **options: Any) -> Value:
    default = context.default if any(isinstance(bound, float) for bound in bounds) else jnp.int32
    return from_torch_order(jnp.arange(*bounds, dtype=context.dtype(dtype, default)))


def _linspace(
    context: Context, start: float, end: float, steps: int, *, dtype: Dtype | None = None, **options: Any
) -> Value:
    return from_torch_order(jnp.linspace(start, end, steps, dtype=context.dtype(dtype)))


def _eye(context: Context, n: int, m: int | None = None, *, dtype: Dtype | None = None, **options: Any) -> Value:
    return from_torch_order(jnp.eye(n, m, dtype=context.dtype(dtype)))


def _triangle(indices: Callable[..., Any]) -> Operator:
    """The places of a matrix's triangle, [2, places]: rows and columns."""

    def make(context: Context, row: int, col: int, offset: int = 0, *, dtype: Dtype | None = None, **options: Any):
        places = np.stack(indices(row, offset, col))
        return from_torch_order(jnp.asarray(places, context.dtype(dtype, jnp.int32)))

    return make


def _scalar(context: Context, value: Any, *, dtype: Dtype | None = None, **options: Any) -> Value:
    filled = context.dtype(dtype, _kind(context, value))
    return from_torch_order(jnp.asarray(within_range(value, filled), filled))


def _on_sizes(function: Callable[..., Any]) -> Operator:
    return lambda context, *numbers: function(*numbers)


def _get_item(context: Context, results: Any, place: int) -> Any:
    """One of an operator's results."""
    result = results[place]
    if isinstance(result, Absent):
        raise UnsupportedOpError(
            f"{context.module or 'the network'} reads {result.name}, which have no JAX counterpart: "
            "do without them, or write the operator with interop.register_op"
        )
    return result


SIZES = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "truediv": operator.truediv,
    "mod": operator.mod,
    "neg": operator.neg,
    "pow": operator.pow,
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "sym_max": max,
    "sym_min": min,
    "sym_float": float,
    "sym_not": operator.not_,
    "sym_int": int,
    "trunc": math.trunc,
    "floor": math.floor,
    "ceil": math.ceil,
    "sym_sqrt": math.sqrt,
    "_sym_sqrt": math.sqrt,
}
"""What torch.export leaves of arithmetic on the batch's size: plain Python numbers here."""

TABLE: dict[str, Operator] = {
    **{name: _on_sizes(function) for name, function in SIZES.items()},
    "getitem": _get_item,
    "aten.sym_size": lambda context, x, dim: x.shape[dim],
    "aten.sym_numel": lambda context, x: math.prod(x.shape),
    "aten.zeros": _constant(0),
    "aten.ones": _constant(1),
    "aten.empty": _constant(0),
    "aten.zeros_like": _constant_like(0),
    "aten.ones_like": _constant_like(1),
    "aten.empty_like": _constant_like(0),
    "aten.new_zeros": _new_constant(0),
    "aten.new_ones": _new_constant(1),
    "aten.new_empty": _new_constant(0),
    "aten.empty_permuted": _constant(0),
    "aten.full": _full,
    "aten.full_like": _full_like,
    "aten.new_full": _new_full,
    "aten.arange": _arange,
    "aten.linspace": _linspace,
    "aten.eye": _eye,
    "aten.tril_indices": _triangle(np.tril_indices),
    "aten.triu_indices": _triangle(np.triu_indices),
    "aten.scalar_tensor": _scalar,
    "aten.one_hot": in_torch_order(lambda x, num_classes: jax.nn.one_hot(x, num_classes, dtype=jnp.int32)),
    "aten._assert_tensor_metadata": lambda context, *args, **options: None,  # true when it was traced, so still
}
