"""Activations, with torch's gradients where they have corners."""

from functools import partial

import jax
import jax.numpy as jnp

from byol_jax.ops.activation import gelu
from interop.trace.ops.operator import Context, Operator, pointwise, unary, within_range
from interop.trace.values import Value, from_torch_order, map_array, physical_axes

__all__ = ["TABLE"]


def _hard_tanh(x: jax.Array, min_val: float = -1.0, max_val: float = 1.0) -> jax.Array:
    """Gradient 0 on both bounds, as in torch."""
    low, high = (jnp.asarray(within_range(bound, x.dtype), x.dtype) for bound in (min_val, max_val))
    return jnp.where(x <= low, low, jnp.where(x >= high, high, x))


def _hard_sigmoid(x: jax.Array) -> jax.Array:
    return _hard_tanh(x, -3.0, 3.0) / 6 + 0.5


def _hard_swish(x: jax.Array) -> jax.Array:
    """0 up to -3, x from 3 on; torch's gradient at the bounds is the outer branches'."""
    return jnp.where(x <= -3, 0, jnp.where(x >= 3, x, x * (x / 6 + 0.5)))


def _leaky_relu(x: jax.Array, negative_slope: float = 0.01) -> jax.Array:
    return jnp.where(x > 0, x, x * negative_slope)


def _prelu(context: Context, x: Value, weight: Value) -> Value:
    """One slope a channel, or one for all."""
    if weight.array.size > 1 and x.ndim > 1:
        weight = from_torch_order(weight.array.reshape(-1, *(1,) * (x.ndim - 2)))
    return pointwise(lambda a, slope: jnp.where(a > 0, a, slope * a))(context, x, weight)


def _elu(x: jax.Array, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> jax.Array:
    negative = alpha * jnp.expm1(jnp.where(x > 0, 0, x) * input_scale)
    return scale * jnp.where(x > 0, x, negative)


def _glu(context: Context, x: Value, dim: int = -1) -> Value:
    """The first half of an axis, times the sigmoid of the second."""
    (axis,) = physical_axes(x, dim)

    def gate(array: jax.Array) -> jax.Array:
        value, gate = jnp.split(array, 2, axis)
        return value * jax.nn.sigmoid(gate)

    return map_array(gate, x)


def _softplus(x: jax.Array, beta: float = 1.0, threshold: float = 20.0) -> jax.Array:
    scaled = x * beta
    return jnp.where(scaled > threshold, x, jax.nn.softplus(scaled) / beta)


def _gelu(x: jax.Array, approximate: str = "none") -> jax.Array:
    return jax.nn.gelu(x, approximate=True) if approximate == "tanh" else gelu(x)


def _mish(x: jax.Array) -> jax.Array:
    return x * jnp.tanh(jax.nn.softplus(x))


def _shrink(x: jax.Array, lambd: float = 0.5, *, hard: bool = False) -> jax.Array:
    inside = (x >= -lambd) & (x <= lambd)
    return jnp.where(inside, 0, x if hard else x - jnp.sign(x) * lambd)


def _threshold(x: jax.Array, threshold: float, value: float) -> jax.Array:
    return jnp.where(x > threshold, x, jnp.asarray(within_range(value, x.dtype), x.dtype))


SELU = (1.6732632423543772, 1.0507009873554805)
"""alpha and scale of Klambauer et al., arXiv:1706.02515, with the digits of torch's implementation."""

FLOATING = {
    "sigmoid": jax.nn.sigmoid,
    "log_sigmoid": jax.nn.log_sigmoid,
    "silu": jax.nn.silu,
    "softplus": _softplus,
    "mish": _mish,
    "gelu": _gelu,
    "elu": _elu,
    "selu": partial(_elu, alpha=SELU[0], scale=SELU[1]),
}

PLAIN = {
    "relu": jax.nn.relu,
    "relu6": lambda x: _hard_tanh(x, 0.0, 6.0),
    "hardtanh": _hard_tanh,
    "hardsigmoid": _hard_sigmoid,
    "hardswish": _hard_swish,
    "leaky_relu": _leaky_relu,
    "softshrink": _shrink,
    "hardshrink": partial(_shrink, hard=True),
    "threshold": _threshold,
}

TABLE: dict[str, Operator] = {
    **{f"aten.{name}": unary(function, floating=True) for name, function in FLOATING.items()},
    **{f"aten.{name}": unary(function) for name, function in PLAIN.items()},
    "aten.celu": lambda context, x, alpha=1.0: map_array(lambda a: _elu(a, alpha, 1.0, 1 / alpha), x),
    "aten.glu": _glu,
    "aten.prelu": _prelu,
    "aten._prelu_kernel": pointwise(lambda a, slope: jnp.where(a > 0, a, slope * a)),
}
