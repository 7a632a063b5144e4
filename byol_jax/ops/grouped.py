"""Grouped convolution: each group of output channels sees its own group of input channels. Two forms for CPUs;
elsewhere XLA's own convolution.

XLA:CPU runs one group after another without its fast convolution, and its kernel gradient is dense. Milliseconds, XLA's
and these forms', of the result, the gradient by the images and that by the kernel (two cores, jax 0.10.2, 2026-11-30):

    16 × 16 × 16 × 128, 32 groups, 3 × 3      11.3 and 2.1    11.4 and 2.1    1236 and 2.7
    16 × 16 × 16 × 48, 6 groups, 3 × 3        2.3 and 0.7     2.3 and 0.7       88 and 0.8
    16 × 4 × 4 × 512, 32 groups, 3 × 3        1.4 and 0.8     1.5 and 0.8      279 and 1.0
    8 × 14 × 14 × 512, 4 groups, 3 × 3        31 and 10       31 and 11        273 and 12
"""

import jax
import jax.numpy as jnp
from jax import lax

from byol_jax.ops.bilinear import Shapes, make_convolution, with_transposes
from byol_jax.ops.geometry import Geometry, convolve_by_xla

__all__ = ["grouped_conv"]

# On maps of at most 4×4 products of patches win. The result and both gradients of 32 groups took, in ms, 2.2 for 8.5
# with 32 channels each on 2×2, 2.9 for 4.1 with 16 on 4×4, but 8.3 for 3.9 with 8 on 8×8.
_SMALL_MAP = 16

# Narrow groups share a dense convolution with zeros between them, of this width, or wider where it would be one of more
# than so many convolutions: 7.2 ms with 16 channels, 12.4 with 32, 19.5 with 64 for 32 groups of 4 on 16×16; every
# convolution adds 30 ms to the compilation.
_WIDTH = 16
_CONVOLUTIONS = 16


def grouped_conv(x: jax.Array, kernel: jax.Array, geometry: Geometry, groups: int) -> jax.Array:
    """`y[n, i, j, o] = sum over a, b, c of x[n, i·s + a·d - top, j·s + b·d - left, g·C/G + c] · kernel[a, b, c, o]`.

    Output channel o belongs to group `g = o // (O / G)`.

    Args:
        x: `[N, H, W, C]`, floating.
        kernel: `[kernel height, kernel width, C / G, O]`, x's dtype.
        geometry: of both.
        groups: G, a divisor of C and of O.

    Returns:
        `[N, H', W', O]`, x's dtype.

    Example:
        >>> geometry = Geometry((4, 4), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
        >>> y = grouped_conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 1, 2)), geometry, 2)
        >>> y[0, :, :, 1].tolist()
        [[4.0, 6.0, 6.0, 4.0], [6.0, 9.0, 9.0, 6.0], [6.0, 9.0, 9.0, 6.0], [4.0, 6.0, 6.0, 4.0]]
    """
    return _grouped(x, kernel, geometry=geometry, groups=groups)


def _convolve(x: jax.Array, kernel: jax.Array, geometry: Geometry, groups: int) -> jax.Array:
    if geometry.positions == 1 or geometry.pixels <= _SMALL_MAP:
        return _multiply_patches(x, kernel, geometry, groups)
    return _convolve_in_blocks(x, kernel, geometry, groups)


def _convolve_in_blocks(x: jax.Array, kernel: jax.Array, geometry: Geometry, groups: int) -> jax.Array:
    """One dense convolution for each block of neighbouring groups."""
    channels, outputs = kernel.shape[2], kernel.shape[3] // groups
    width = max(_WIDTH, x.shape[3] // _CONVOLUTIONS)
    together = max(1, width // channels)
    blocks = [(first, min(first + together, groups)) for first in range(0, groups, together)]
    return jnp.concatenate(
        [
            convolve_by_xla(
                x[..., first * channels : after * channels],
                _widen(kernel[..., first * outputs : after * outputs], after - first),
                geometry,
            )
            for first, after in blocks
        ],
        axis=3,
    )


def _widen(kernel: jax.Array, groups: int) -> jax.Array:
    """[h, w, C / G, O] with zeros between the groups: [h, w, C, O]."""
    high, wide, channels, outputs = kernel.shape
    own = kernel.reshape(high, wide, 1, channels, groups, outputs // groups)
    apart = jnp.eye(groups, dtype=kernel.dtype)[:, None, :, None]
    return (own * apart).reshape(high, wide, groups * channels, outputs)


def _multiply_patches(x: jax.Array, kernel: jax.Array, geometry: Geometry, groups: int) -> jax.Array:
    """Gathers each output pixel's patch by one strided slice for each of the kernel's positions, then multiplies the
    patches of all groups at once."""
    down, right = geometry.seeing
    kernel = kernel[down.start : down.stop, right.start : right.stop]
    padded = jnp.pad(x, ((0, 0), *geometry.pads, (0, 0)))
    slices = [
        geometry.window(padded, a, b).reshape(-1, groups, x.shape[3] // groups)  # [N·H'·W', G, C / G]
        for a in down
        for b in right
    ]
    patches = jnp.concatenate(slices, axis=2)  # [N·H'·W', G, h·w·C / G]
    weights = kernel.reshape(patches.shape[2], groups, -1)  # [h·w·C / G, G, O / G]
    y = lax.dot_general(patches, weights, (((2,), (0,)), ((1,), (1,))))  # [G, N·H'·W', O / G]
    return y.transpose(1, 0, 2).reshape(x.shape[0], *geometry.outputs, kernel.shape[3])


_SHAPES = Shapes(
    convolve=lambda x, kernel, geometry, groups: (x[0], *geometry.outputs, kernel[3]),
    input_gradient=lambda dy, kernel, geometry, groups: (dy[0], *geometry.size, kernel[2] * groups),
    kernel_gradient=lambda x, dy, geometry, groups: (*geometry.taps, x[3] // groups, dy[3]),
)
_ON_CPU = with_transposes(_convolve, _SHAPES)
_grouped = make_convolution(
    "grouped",
    shapes=_SHAPES,
    on_cpu=lambda devices: _ON_CPU,
    elsewhere=with_transposes(convolve_by_xla, _SHAPES),
    fold=lambda where, size: where | {"groups": where["groups"] * size},
)
