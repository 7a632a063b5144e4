"""2-D convolution in the form that is fastest for its shape. All forms compute the same sums.

Six forms, chosen from shapes alone, so that one traced program serves every platform: a 1×1 kernel is a matrix
multiply over pixels; a 3×3 one on many channels is `winograd`; a small kernel on few channels, or one that gives a
small map, is a matrix multiply over patches; with groups it is `grouped` or, with a group for each channel,
`depthwise`; everything else, dilation included, is XLA's own convolution. Parameters, names and initialisers are in
`byol_jax.nets`.
"""

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError
from byol_jax.ops.depthwise import depthwise_conv
from byol_jax.ops.geometry import Geometry, convolve_by_xla
from byol_jax.ops.grouped import grouped_conv
from byol_jax.ops.winograd import suits_winograd, winograd_conv

__all__ = ["Padding", "conv2d", "resolve_padding"]

Padding = int | str | tuple[tuple[int, int], tuple[int, int]]
"""The same number on all four sides, "SAME" (TensorFlow's rule), or ((top, bottom), (left, right))."""

# XLA:CPU's convolution gradients are slow on few input channels: the weight gradient of a 1-channel 3×3 stem on 28 px
# took 38-135 ms against 5 ms for sixteen slices and a matrix multiply. 64 numbers a patch cover 4×4 on 4 channels.
_FEW_CHANNELS = 4
_SMALL_KERNEL = 16

# XLA:CPU falls back to plain loops on small maps: forward and both gradients of a 3×3 convolution took, in ms,
#   512 channels, 1×1, batch 128: 50.2 against 1.0     256 channels, 2×2, batch 128: 188 against 6.0
#   512 channels, 3×3, batch 64: 29.4 against 20.5     512 channels, 4×4, batch 16: 14.0 against 10.4
# and 4.6 against 6.0 the other way with 128 channels on 4×4 (two cores, 2026-11-24).
_SMALL_MAP = 9
_SMALL_WIDE_MAP, _WIDE = 16, 256

# Depthwise kernels with more positions than 11×11 make programs that take long to compile: each is an operation there.
_MANY_POSITIONS = 121

# XLA:CPU pays for the size of a transposed left operand. Gradients of a 1×1 kernel, in ms, with the wider operand
# transposed and with the narrower one and the result turned: 256 to 64 channels on 16,384 pixels 12.9 against 9.3,
# 256 to 128 18.2 against 15.2, 1024 to 256 on 1,024 pixels 5.7 against 5.4; on fewer pixels turning the weights costs
# as much as it saves (two cores, jax 0.10.2, 2026-11-27).
_TURNED = 4


def conv2d(
    x: jax.Array,
    kernel: jax.Array,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    layout: str = "HWIO",
) -> jax.Array:
    """Cross-correlation, as `torch.nn.functional.conv2d` has it, without bias.

    `y[n, i, j, o] = sum over a, b, c of x[n, i·s + a·d - top, j·s + b·d - left, c] · kernel[a, b, c, o]`, stride s and
    dilation d; with groups, output channel o sees the C / groups input channels of its own group.

    Args:
        x: `[N, H, W, C]`, floating.
        kernel: `[kernel height, kernel width, C / groups, O]`, x's dtype.
        stride, dilation: of both axes, or (rows, columns).
        padding: with zeros; see `Padding`.
        layout: "HWIO", the kernel's axes as above, or "OIHW", `[O, C / groups, kernel height, kernel width]`, as torch
            has them. The sums and their order are the same.

    Returns:
        `[N, H', W', O]`, x's dtype, with `H' = (H + top + bottom - d · (kernel height - 1) - 1) // s + 1`.

    Raises:
        ConfigurationError: shapes that don't fit, or an image smaller than the kernel.

    Example:
        >>> conv2d(jnp.ones((1, 8, 8, 3)), jnp.ones((3, 3, 3, 16)), stride=2, padding=1).shape
        (1, 4, 4, 16)
    """
    _check(x, kernel, groups, layout)
    taps = _taps(kernel, layout)
    strides, dilations = ((given, given) if isinstance(given, int) else given for given in (stride, dilation))
    window = tuple((extent - 1) * d + 1 for extent, d in zip(taps, dilations, strict=True))
    pads = resolve_padding(x.shape[1:3], window=window, stride=strides, padding=padding)
    if any(size + sum(pad) < extent for size, pad, extent in zip(x.shape[1:3], pads, window, strict=True)):
        raise ConfigurationError(
            f"an image of {x.shape[1]}×{x.shape[2]} pixels is too small for a {window[0]}×{window[1]} kernel with "
            f"padding {pads}: use larger images or fewer strided layers"
        )
    geometry = Geometry((x.shape[1], x.shape[2]), taps, strides, pads, dilations)
    if groups == x.shape[3] > 1 and geometry.positions <= _MANY_POSITIONS:
        own = kernel.transpose([layout.index(axis) for axis in "IHWO"])[0]  # [h, w, O]
        return depthwise_conv(jnp.repeat(x, own.shape[2] // groups, axis=3), own, geometry)
    if 1 < groups < x.shape[3]:
        return grouped_conv(x, kernel.transpose([layout.index(axis) for axis in "HWIO"]), geometry, groups)
    if groups == 1 and window == taps:
        if window == (1, 1) and pads == ((0, 0), (0, 0)):
            return _matmul_over_pixels(x, kernel, layout, strides)
        if suits_winograd(x, geometry, kernel.shape[layout.index("O")]):
            return winograd_conv(x, kernel, geometry, layout)
        few_channels = x.shape[3] <= _FEW_CHANNELS and geometry.positions <= _SMALL_KERNEL
        if few_channels or geometry.pixels <= (_SMALL_WIDE_MAP if x.shape[3] >= _WIDE else _SMALL_MAP):
            return _matmul_over_patches(x, kernel, layout, geometry)
    return convolve_by_xla(x, kernel, geometry, layout, groups)


def resolve_padding(
    size: tuple[int, ...], *, window: tuple[int, ...], stride: int | tuple[int, int], padding: Padding
) -> tuple[tuple[int, int], tuple[int, int]]:
    """((top, bottom), (left, right)) for an image of `size` = (H, W).

    "SAME" is TensorFlow's: `total = max((ceil(size / stride) - 1) · stride + window - size, 0)`, smaller half first.

    Raises:
        ConfigurationError: padding that is neither a number, "SAME" nor two pairs.

    Example:
        >>> resolve_padding((64, 65), window=(3, 3), stride=2, padding="SAME")
        ((0, 1), (1, 1))
    """
    if isinstance(padding, int):
        return ((padding, padding), (padding, padding))
    if isinstance(padding, tuple):
        return padding
    if padding != "SAME":
        raise ConfigurationError(f'padding {padding!r}: use an int, "SAME" or ((top, bottom), (left, right))')
    strides = (stride, stride) if isinstance(stride, int) else stride
    totals = [max((-(-n // s) - 1) * s + k - n, 0) for n, k, s in zip(size, window, strides, strict=True)]
    top, left = (total // 2 for total in totals)
    return ((top, totals[0] - top), (left, totals[1] - left))


def _check(x: jax.Array, kernel: jax.Array, groups: int, layout: str) -> None:
    if layout not in ("HWIO", "OIHW"):
        raise ConfigurationError(f'layout {layout!r}: use "HWIO" or "OIHW"')
    if x.ndim != 4 or kernel.ndim != 4:
        raise ConfigurationError(
            f"conv2d takes x [N, H, W, C] and a kernel of rank 4, {layout}, not {x.shape} and {kernel.shape}"
        )
    inputs = kernel.shape[layout.index("I")]
    if x.shape[3] != inputs * groups:
        raise ConfigurationError(
            f"{x.shape[3]} channels meet a kernel {kernel.shape} for {inputs * groups}: the images or the "
            "parameters are another network's"
        )
    outputs = kernel.shape[layout.index("O")]
    if outputs % groups:
        raise ConfigurationError(f"{outputs} output channels are not a multiple of {groups} groups")


def _taps(kernel: jax.Array, layout: str) -> tuple[int, int]:
    return kernel.shape[layout.index("H")], kernel.shape[layout.index("W")]


def _matmul_over_pixels(x: jax.Array, kernel: jax.Array, layout: str, stride: tuple[int, int]) -> jax.Array:
    """A 1×1 convolution. Slicing first keeps the stride out of the weight gradient, where XLA:CPU is slowest."""
    return _multiply(x[:, :: stride[0], :: stride[1]], kernel, layout)  # [N, H', W', O]


def _multiply(patches: jax.Array, kernel: jax.Array, layout: str) -> jax.Array:
    """[N, H', W', h·w·C] with a kernel of h by w positions: [N, H', W', O].

    Torch's layout only has its inner axes exchanged: moving O as well, forward and for the gradient, cost a ResNet-18
    at 32 px a third of its step.
    """
    pixels = patches.reshape(-1, patches.shape[3])  # [N·H'·W', h·w·C]
    if layout == "HWIO":
        weights, contracted = kernel.reshape(-1, kernel.shape[3]), 0  # [h·w·C, O]
    else:
        weights, contracted = kernel.transpose(0, 2, 3, 1).reshape(kernel.shape[0], -1), 1  # [O, h·w·C]
    turned = weights.shape[0] > weights.shape[1] and _turning_pays(pixels.shape[0], *weights.shape)
    if turned:  # XLA moves no transpose across a barrier, and a barrier's gradient is one too
        weights, contracted = jax.lax.optimization_barrier(weights.T), 1 - contracted
    y = jax.lax.dot_general(pixels, weights, (((1,), (contracted,)), ((), ())))
    return y.reshape(*patches.shape[:3], y.shape[1])


def _turning_pays(pixels: int, more: int, fewer: int) -> bool:
    """Whether the gradient of weights [more, fewer] is found faster as [fewer, more], and turned.

    It is the product of two arrays of pixels by channels, of which XLA:CPU transposes the one whose channels come
    first in the result.
    """
    return pixels * (more - fewer) > _TURNED * more * fewer


def _matmul_over_patches(x: jax.Array, kernel: jax.Array, layout: str, geometry: Geometry) -> jax.Array:
    """Gathers each output pixel's patch by one strided slice per kernel position, then multiplies once.

    Positions that only ever meet padding (eight of nine on a 1×1 map) are left out. Of few channels a patch's rows are
    gathered first: copies of 9 numbers instead of 3 took 6.2 ms for 11.2, forward and for the kernel's gradient, of
    64 × 64 × 64 × 3 with stride 2.
    """
    down, right = geometry.seeing
    x = jnp.pad(x, ((0, 0), *geometry.pads, (0, 0)))
    if x.shape[3] <= _FEW_CHANNELS:
        x = jnp.concatenate([geometry.columns(x, b) for b in right], axis=3)
        patches = [geometry.rows(x, a) for a in down]
    else:
        patches = [geometry.window(x, a, b) for a in down for b in right]
    seen = [slice(None)] * 4
    seen[layout.index("H")] = slice(down.start, down.stop)
    seen[layout.index("W")] = slice(right.start, right.stop)
    return _multiply(jnp.concatenate(patches, axis=3), kernel[tuple(seen)], layout)  # patches: [N, H', W', h·w·C]
