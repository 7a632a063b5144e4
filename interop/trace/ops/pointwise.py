"""Operators that work element by element: arithmetic, comparisons, casts. Where axes lie doesn't matter."""

from typing import Any

import jax
import jax.numpy as jnp

from interop.trace.graph import Dtype
from interop.trace.ops.operator import Context, Operator, as_value, pointwise, result_dtype, unary, within_range
from interop.trace.values import Value, align, map_array

__all__ = ["TABLE", "absolute"]


def _with_alpha(function: Operator) -> Operator:
    """`add` and `sub`: the second operand times `alpha`."""

    def operator(context: Context, x: Any, y: Any, alpha: Any = 1) -> Value:
        if alpha != 1:
            y = y * alpha if not isinstance(y, Value) else pointwise(jnp.multiply)(context, y, alpha)
        return pointwise(function)(context, x, y)

    return operator


def _divide(context: Context, x: Any, y: Any, *, rounding_mode: str | None = None) -> Value:
    if rounding_mode is None:
        return pointwise(jnp.true_divide, floating=True)(context, x, y)
    return pointwise(jnp.floor_divide if rounding_mode == "floor" else _truncated_quotient)(context, x, y)


def _truncated_quotient(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.trunc(x / y) if _is_floating(x) else jax.lax.div(x, y)


def _power(context: Context, x: Any, exponent: Any) -> Value:
    """Whole Python exponents by multiplication: their gradients are right at 0 and for negative bases."""
    dtype = result_dtype(context, (x, exponent))
    if isinstance(x, Value) and not isinstance(exponent, Value):
        if float(exponent).is_integer():
            return map_array(lambda a: jax.lax.integer_pow(a.astype(dtype), int(exponent)), x)
        if exponent == 0.5:
            return map_array(lambda a: jnp.sqrt(a.astype(dtype)), x)
    return pointwise(_power_of_tensors)(context, x, exponent)


def _power_of_tensors(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """The gradients by both are 0 at 0 ** 0."""
    return jnp.power(jnp.where((x == 0) & (exponent == 0), 1, x), exponent)


def _angle(y: jax.Array, x: jax.Array) -> jax.Array:
    """`atan2`, with the gradient 0 where both are 0."""
    is_origin = (x == 0) & (y == 0)
    angle = jnp.arctan2(y, jnp.where(is_origin, 1, x))
    return jnp.where(is_origin, jax.lax.stop_gradient(jnp.arctan2(y, x)), angle)


def absolute(x: jax.Array) -> jax.Array:
    """Its gradient at 0 is 0; JAX's own is 1."""
    return jnp.where(x == 0, 0, jnp.abs(x)) if _is_floating(x) else jnp.abs(x)


def _clamp(context: Context, x: Value, min: Any = None, max: Any = None) -> Value:
    """As torch has it (2.14), the gradient is 0 on a bound that is a number, and shared with one that is a tensor."""
    bounds = [bound for bound in (min, max) if bound is not None]
    dtype = result_dtype(context, (x, *bounds))
    if any(isinstance(bound, Value) for bound in bounds) and jnp.issubdtype(dtype, jnp.floating):
        ends = -jnp.inf if min is None else min, jnp.inf if max is None else max
        arrays, order = align([as_value(operand, dtype) for operand in (x, *ends)])
        return Value(_clamp_between(*arrays), order)
    (array, *rest), order = align([as_value(operand, dtype) for operand in (x, *bounds)])
    if min is not None:
        array = jnp.where(array <= rest[0], rest[0], array)
    if max is not None:
        array = jnp.where(array >= rest[-1], rest[-1], array)
    return Value(array, order)


def _clamp_between(x: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """The mean, where x is one of two different bounds, of x and the bound: two names of one number."""
    raised = jnp.where(x < lower, lower, x)
    clamped = jnp.where(raised > upper, upper, raised)
    bound = jnp.where(x == lower, lower, upper)
    is_shared = (lower < upper) & ((x == lower) | (x == upper))
    return jnp.where(is_shared, clamped / 2 + bound / 2, clamped)


def _is_floating(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _where(context: Context, condition: Value, x: Any, y: Any) -> Value:
    dtype = result_dtype(context, (x, y))
    arrays, order = align([condition, as_value(x, dtype), as_value(y, dtype)])
    return Value(jnp.where(*arrays), order)


def _masked_fill(context: Context, x: Value, mask: Value, value: Any) -> Value:
    arrays, order = align([mask, as_value(value, x.dtype), x])
    return Value(jnp.where(*arrays), order)


def _addcmul(context: Context, x: Value, y: Value, z: Value, *, value: Any = 1) -> Value:
    return pointwise(lambda a, b, c: a + jnp.asarray(value, a.dtype) * b * c)(context, x, y, z)


def _addcdiv(context: Context, x: Value, y: Value, z: Value, *, value: Any = 1) -> Value:
    return pointwise(lambda a, b, c: a + jnp.asarray(value, a.dtype) * b / c)(context, x, y, z)


def _lerp(context: Context, start: Value, end: Value, weight: Any) -> Value:
    return pointwise(lambda a, b, w: a + w * (b - a))(context, start, end, weight)


def _cast(context: Context, x: Value, dtype: Dtype | None = None, *rest: Any, **options: Any) -> Value:
    """`_to_copy` and the forms of `to`: the dtype changes, device and memory format mean nothing here."""
    named = options.get("dtype", dtype)
    return x if not isinstance(named, Dtype) else as_value(x, context.dtype(named))


def _cast_like(context: Context, x: Value, other: Value, *rest: Any, **options: Any) -> Value:
    return as_value(x, other.dtype)


def _identity(context: Context, x: Value, *rest: Any, **options: Any) -> Value:
    return x


def _stop_gradient(context: Context, x: Value) -> Value:
    return Value(jax.lax.stop_gradient(x.array), x.order)


def _copy(context: Context, x: Value, source: Any, *rest: Any) -> Value:
    """`copy`: the source with x's shape and dtype."""
    arrays, order = align([x, as_value(source, x.dtype)])
    return Value(jnp.broadcast_to(arrays[1], arrays[0].shape), order)


def _fill(context: Context, x: Value, value: Any) -> Value:
    return _copy(context, x, value)


def _nan_to_num(x: jax.Array, nan: float | None = None, posinf: float | None = None, neginf: float | None = None):
    ends = [None if end is None else within_range(end, x.dtype) for end in (posinf, neginf)]
    return jnp.nan_to_num(x, nan=within_range(nan or 0.0, x.dtype), posinf=ends[0], neginf=ends[1])


FLOATING = {
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log2": jnp.log2,
    "log10": jnp.log10,
    "log1p": jnp.log1p,
    "sqrt": jnp.sqrt,
    "rsqrt": jax.lax.rsqrt,
    "reciprocal": jnp.reciprocal,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tan": jnp.tan,
    "asin": jnp.arcsin,
    "acos": jnp.arccos,
    "atan": jnp.arctan,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "tanh": jnp.tanh,
    "erf": jax.lax.erf,
}

PLAIN = {
    "neg": jnp.negative,
    "abs": absolute,
    "sign": jnp.sign,
    "sgn": jnp.sign,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "round": jnp.round,
    "trunc": jnp.trunc,
    "square": jnp.square,
    "nan_to_num": _nan_to_num,
    "isnan": jnp.isnan,
    "isinf": jnp.isinf,
    "isfinite": jnp.isfinite,
    "logical_not": jnp.logical_not,
    "bitwise_not": jnp.bitwise_not,
}

PAIRS = {
    "mul": jnp.multiply,
    "maximum": jnp.maximum,
    "minimum": jnp.minimum,
    "fmod": jnp.fmod,
    "remainder": jnp.remainder,
    "floor_divide": jnp.floor_divide,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "logical_and": jnp.logical_and,
    "logical_or": jnp.logical_or,
    "logical_xor": jnp.logical_xor,
    "bitwise_and": jnp.bitwise_and,
    "bitwise_or": jnp.bitwise_or,
    "bitwise_xor": jnp.bitwise_xor,
    "bitwise_left_shift": jnp.left_shift,
    "bitwise_right_shift": jnp.right_shift,
    "__lshift__": jnp.left_shift,
    "__rshift__": jnp.right_shift,
    "logaddexp": jnp.logaddexp,
}

TABLE: dict[str, Operator] = {
    **{f"aten.{name}": unary(function, floating=True) for name, function in FLOATING.items()},
    **{f"aten.{name}": unary(function) for name, function in PLAIN.items()},
    **{f"aten.{name}": pointwise(function) for name, function in PAIRS.items()},
    "aten.atan2": pointwise(_angle, floating=True),
    "aten.max.other": pointwise(jnp.maximum),
    "aten.min.other": pointwise(jnp.minimum),
    "aten.add": _with_alpha(jnp.add),
    "aten.sub": _with_alpha(jnp.subtract),
    "aten.rsub": lambda context, x, y, alpha=1: _with_alpha(jnp.subtract)(context, y, x, alpha),
    "aten.div": _divide,
    "aten.true_divide": _divide,
    "aten.pow": _power,
    "aten.pow.Scalar": lambda context, base, x: pointwise(jnp.power)(context, base, x),
    "aten.clamp": _clamp,
    "aten.clip": _clamp,
    "aten.clamp_min": lambda context, x, min: _clamp(context, x, min),
    "aten.clamp_max": lambda context, x, max: _clamp(context, x, None, max),
    "aten.where": _where,
    "aten.masked_fill": _masked_fill,
    "aten.addcmul": _addcmul,
    "aten.addcdiv": _addcdiv,
    "aten.lerp": _lerp,
    "aten._to_copy": _cast,
    "aten.to.dtype": _cast,
    "aten.to.dtype_layout": _cast,
    "aten.to.device": lambda context, x, device, dtype=None, *rest, **options: _cast(context, x, dtype),
    "aten.to.other": _cast_like,
    "aten.type_as": _cast_like,
    "aten.clone": _identity,
    "aten.alias": _identity,
    "aten.contiguous": _identity,
    "aten.lift_fresh_copy": _identity,
    "aten.detach": _stop_gradient,
    "aten.detach_copy": _stop_gradient,
    "aten.copy": _copy,
    "aten.fill": _fill,
    "aten.zero": lambda context, x: map_array(jnp.zeros_like, x),
}
