"""Convolutions in one, two and three dimensions, transposed ones, and the patches they are made of.

Two dimensions without transposition are byol_jax's own `conv2d`, the function that native networks call.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.ops.conv import conv2d
from interop.trace.ops.operator import Context, Operator, in_torch_order, per_axis, product
from interop.trace.values import Value, arrange, to_torch_order, unsqueeze

__all__ = ["TABLE"]


@product
def _convolution(
    context: Context,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """[N, C, *spatial] with [O, C / groups, *kernel]; padding numbers, "same" or "valid"."""
    rank = weight.ndim - 2
    if x.ndim == rank + 1:  # one image without a batch axis
        y = _convolution(context, unsqueeze(x, 0), weight, bias, stride, padding, dilation, groups)
        batch = y.order.index(0)
        return Value(y.array.squeeze(batch), tuple(axis - 1 for axis in y.order if axis != 0))
    strides, dilations = per_axis(stride, rank), per_axis(dilation, rank)
    pads = _pads(padding, weight.shape[2:], dilations)
    order = (0, *range(2, rank + 2), 1)
    array = arrange(x, order)
    if rank == 2:
        y = conv2d(
            array,
            to_torch_order(weight),
            stride=(strides[0], strides[1]),
            padding=(pads[0], pads[1]),
            dilation=(dilations[0], dilations[1]),
            groups=groups,
            layout="OIHW",
        )
    else:
        y = jax.lax.conv_general_dilated(
            array,
            arrange(weight, (*range(2, rank + 2), 1, 0)),
            strides,
            pads,
            rhs_dilation=dilations,
            dimension_numbers=_dimension_numbers(rank),
            feature_group_count=groups,
        )
    return Value(y if bias is None else y + bias.array, order)


def _pads(padding: Any, kernel: Sequence[int], dilations: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(before, after) of each axis; torch's "same" puts the odd one after."""
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        return tuple((total // 2, total - total // 2) for total in totals)
    return tuple((p, p) for p in per_axis(padding, len(kernel)))


def _dimension_numbers(rank: int) -> tuple[str, str, str]:
    spatial = "DHW"[3 - rank :]
    return f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"


@product
def _transposed_convolution(
    context: Context,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """The transpose of a convolution, weight [C, O / groups, *kernel]: x with gaps, and the kernel mirrored."""
    rank = weight.ndim - 2
    strides, dilations = per_axis(stride, rank), per_axis(dilation, rank)
    before, more = per_axis(padding, rank), per_axis(output_padding, rank)
    reach = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
    pads = [(r - p, r - p + extra) for r, p, extra in zip(reach, before, more, strict=True)]
    order = (0, *range(2, rank + 2), 1)
    kernel = to_torch_order(weight)  # [C, O / G, *kernel]
    channels, outputs = kernel.shape[0] // groups, kernel.shape[1]
    kernel = kernel.reshape(groups, channels, outputs, *kernel.shape[2:])
    kernel = jnp.moveaxis(kernel, (0, 1, 2), (-2, -3, -1))  # [*kernel, C / G, G, O / G]
    kernel = jnp.flip(kernel.reshape(*kernel.shape[:rank], channels, groups * outputs), tuple(range(rank)))
    y = jax.lax.conv_general_dilated(
        arrange(x, order),
        kernel,
        (1,) * rank,
        pads,
        lhs_dilation=strides,
        rhs_dilation=dilations,
        dimension_numbers=_dimension_numbers(rank),
        feature_group_count=groups,
    )
    return Value(y if bias is None else y + bias.array, order)


def _any_convolution(
    context: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    if transposed:
        return _transposed_convolution(context, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _convolution(context, x, weight, bias, stride, padding, dilation, groups)


def _unfold(x: jax.Array, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1) -> jax.Array:
    """`unfold`: [N, C, H, W] to [N, C · kernel height · kernel width, number of patches]."""
    kernel, dilations, pads, strides = (per_axis(part, 2) for part in (kernel_size, dilation, padding, stride))
    x = jnp.pad(x, ((0, 0), (0, 0), *((p, p) for p in pads)))
    counts = [
        (n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(x.shape[2:], dilations, kernel, strides, strict=True)
    ]
    rows, columns = (
        np.arange(k)[:, None] * d + np.arange(count) * s
        for k, d, count, s in zip(kernel, dilations, counts, strides, strict=True)
    )
    patches = x[:, :, rows[:, None, :, None], columns[None, :, None, :]]  # [N, C, kh, kw, rows, columns]
    return patches.reshape(x.shape[0], -1, counts[0] * counts[1])


def _fold(
    x: jax.Array, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> jax.Array:
    """`fold`, the transpose of `unfold`: overlapping patches are summed."""
    kernel = per_axis(kernel_size, 2)
    shape = (x.shape[0], x.shape[1] // (kernel[0] * kernel[1]), *output_size)
    fold = jax.linear_transpose(
        lambda image: _unfold(image, kernel, dilation, padding, stride), jax.ShapeDtypeStruct(shape, x.dtype)
    )
    return fold(x)[0]


TABLE: dict[str, Operator] = {
    **{f"aten.conv{rank}d": _convolution for rank in (1, 2, 3)},
    **{f"aten.conv_transpose{rank}d": _transposed_convolution for rank in (1, 2, 3)},
    "aten.convolution": _any_convolution,
    "aten.im2col": in_torch_order(_unfold),
    "aten.col2im": in_torch_order(_fold),
}
