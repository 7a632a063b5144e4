"""Normalisations. Batch norm is native networks' own, `byol_jax.ops.norm`, statistics over a mapped axis included."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.ops.norm import batch_norm_eval, batch_norm_train
from byol_jax.ops.precision import at_least_float32
from interop.trace.ops.operator import Context, Operator, in_torch_order
from interop.trace.values import Value, arrange, from_torch_order, physical_axes, to_torch_order

__all__ = ["RAW_BUFFERS", "TABLE", "batch_norm"]

RAW_BUFFERS = {
    "aten._native_batch_norm_legit_functional.default": (3, 4),
    "aten._native_batch_norm_legit_no_training.default": (3, 4),
    "aten.batch_norm.default": (3, 4),
}
"""Arguments that keep the dtype in which the statistics are stored, whatever the activations have."""


def batch_norm(
    context: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    var: Value,
    train: bool,
    momentum: float,
    eps: float,
    *,
    relu: bool = False,
    synchronised: bool = True,
) -> tuple[Value, Value, Value]:
    """(y, new mean, new var) of [N, C, ...]; torch's axis 1 is brought last, the others stay as they lie.

    `synchronised`: whether the statistics are the batch's, and so all devices'.
    """
    order = (*(axis for axis in x.order if axis != 1), 1)
    scale, offset = (None if part is None else part.array for part in (weight, bias))
    array = arrange(x, order)
    if not train:
        y = batch_norm_eval(array, scale, offset, mean.array, var.array, epsilon=eps, relu=relu)
        return Value(y, order), mean, var
    y, new_mean, new_var = batch_norm_train(
        array,
        scale,
        offset,
        mean.array,
        var.array,
        momentum=momentum,
        epsilon=eps,
        axis_name=context.axis_name if synchronised else None,
        relu=relu,
    )
    return Value(y, order), from_torch_order(new_mean), from_torch_order(new_var)


def _functional_batch_norm(context: Context, *args: Any, **options: Any) -> tuple[Any, ...]:
    """Output, saved mean, saved inverse deviation (torch's backward pass alone reads them), new statistics."""
    y, mean, var = batch_norm(context, *args, **options)
    return y, None, None, mean, var


def _evaluation_batch_norm(
    context: Context, x: Value, weight: Any, bias: Any, mean: Value, var: Value, momentum: float, eps: float, **options
) -> tuple[Any, ...]:
    y, _, _ = batch_norm(context, x, weight, bias, mean, var, False, momentum, eps, **options)
    return y, None, None


def _stateless_batch_norm(
    context: Context, x: Value, weight: Any, bias: Any, train: bool, momentum: float, eps: float, **options: Any
):
    """Batch norm without running statistics: always the batch's."""
    zeros = from_torch_order(jnp.zeros(x.shape[1], at_least_float32(x.dtype)))
    y, _, _ = batch_norm(context, x, weight, bias, zeros, zeros, True, 0.0, eps, **options)
    return y, None, None


def _instance_norm(
    context: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    var: Value | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *rest: Any,
) -> Value:
    """Over all but torch's first two axes; in evaluation by running statistics where there are any."""
    if not use_input_stats and mean is not None and var is not None:
        return batch_norm(context, x, weight, bias, mean, var, False, momentum, eps)[0]
    axes = physical_axes(x, tuple(range(2, x.ndim)))
    y, _, _ = _normalise(x.array, axes, eps)
    return Value(_affine(y, x.order, x.ndim, weight, bias, (1,)).astype(x.dtype), x.order)


def _normalise(array: jax.Array, axes: tuple[int, ...], eps: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(y, mean, 1 / deviation) in at least float32, by the biased variance over `axes`."""
    wide = array.astype(at_least_float32(array.dtype))
    mean = jnp.mean(wide, axes, keepdims=True)
    rstd = jax.lax.rsqrt(jnp.mean(jnp.square(wide - mean), axes, keepdims=True) + eps)
    return (wide - mean) * rstd, mean, rstd


def _affine(y: jax.Array, order: Sequence[int], rank: int, weight: Any, bias: Any, axes: Sequence[int]) -> jax.Array:
    """`y · weight + bias`, which lie along torch's `axes`; y has torch's axes in `order`."""

    def spread(part: Value) -> jax.Array:
        array = to_torch_order(part).astype(y.dtype)
        shape = [1] * rank
        for axis, n in zip(axes, array.shape, strict=True):
            shape[axis] = n
        return array.reshape(shape).transpose(order)

    y = y if weight is None else y * spread(weight)
    return y if bias is None else y + spread(bias)


def _layer_norm(
    context: Context,
    x: Value,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *rest: Any,
) -> Value:
    return _native_layer_norm(context, x, shape, weight, bias, eps)[0]


def _native_layer_norm(context: Context, x: Value, shape: Sequence[int], weight: Any, bias: Any, eps: float):
    last = tuple(range(x.ndim - len(shape), x.ndim))
    y, mean, rstd = _normalise(x.array, physical_axes(x, last), eps)
    y = _affine(y, x.order, x.ndim, weight, bias, last).astype(x.dtype)
    return Value(y, x.order), Value(mean, x.order), Value(rstd, x.order)


def _rms_norm(context: Context, x: Value, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Value:
    """x / sqrt(mean(x²) + eps); eps is the dtype's machine epsilon by default."""
    last = tuple(range(x.ndim - len(shape), x.ndim))
    wide = x.array.astype(at_least_float32(x.dtype))
    eps = float(jnp.finfo(x.dtype).eps) if eps is None else eps
    y = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), physical_axes(x, last), keepdims=True) + eps)
    return Value(_affine(y, x.order, x.ndim, weight, None, last).astype(x.dtype), x.order)


def _group_norm(
    context: Context, x: Value, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *rest: Any
) -> Value:
    """Over each of `groups` groups of neighbouring channels and all positions."""
    order = (0, *range(2, x.ndim), 1)
    array = arrange(x, order)  # [N, ..., C]
    grouped = array.reshape(*array.shape[:-1], groups, -1)  # [N, ..., G, C / G]
    axes = (*range(1, grouped.ndim - 2), grouped.ndim - 1)
    y, _, _ = _normalise(grouped, axes, eps)
    y = _affine(y.reshape(array.shape), order, x.ndim, weight, bias, (1,))
    return Value(y.astype(x.dtype), order)


def _native_group_norm(
    context: Context, x: Value, weight: Any, bias: Any, n: int, channels: int, size: int, groups: int, eps: float
) -> tuple[Any, ...]:
    return _group_norm(context, x, groups, weight, bias, eps), None, None


def _weight_norm(v: jax.Array, g: jax.Array, dim: int = 0) -> jax.Array:
    return _weight_norm_interface(v, g, dim)[0]


def _weight_norm_interface(v: jax.Array, g: jax.Array, dim: int = 0) -> tuple[jax.Array, jax.Array]:
    """v · g / ‖v‖, and ‖v‖; a norm for each place along `dim`, or one for all: that is what torch means by -1."""
    axes = tuple(axis for axis in range(v.ndim) if dim == -1 or axis != dim % v.ndim)
    norm = jnp.sqrt(jnp.sum(jnp.square(v), axes, keepdims=dim != -1))
    return v * (g / norm), norm


TABLE: dict[str, Operator] = {
    "aten._native_batch_norm_legit_functional": _functional_batch_norm,
    "aten._native_batch_norm_legit_no_training": _evaluation_batch_norm,
    "aten._native_batch_norm_legit.no_stats": _stateless_batch_norm,
    "aten.instance_norm": _instance_norm,
    "aten.layer_norm": _layer_norm,
    "aten.native_layer_norm": _native_layer_norm,
    "aten.rms_norm": _rms_norm,
    "aten._fused_rms_norm": lambda context, x, shape, weight, eps: (_rms_norm(context, x, shape, weight, eps), None),
    "aten.group_norm": _group_norm,
    "aten.native_group_norm": _native_group_norm,
    "aten._weight_norm": in_torch_order(_weight_norm),
    "aten._weight_norm_interface": in_torch_order(_weight_norm_interface),
}
