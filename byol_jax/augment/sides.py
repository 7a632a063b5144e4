"""Linear maps along an image's two sides: one matrix for the rows, one for the columns, two small matrix multiplies.

Crop with resize and Gaussian blur are both of this kind; here are their matrices and the product. A matrix may be
traced and differ from image to image under `vmap`. Nothing here draws random numbers.

Why blur too: a multiply's operand is computed once, whereas XLA's CPU compiler repeats what comes before a sum of
shifted images for each of its shifts. With a 3 x 3 blur of that kind grey, flip, blur and crop took twice as long.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["along_sides", "cubic", "gaussian_matrix", "resample_matrix", "triangle"]


def along_sides(image: jax.Array, vertical: jax.Array, horizontal: jax.Array) -> jax.Array:
    """`[H, W, C]` by `[H', H]` and `[W', W]`: `y_hwc = sum_HW vertical_hH horizontal_wW x_HWc`, in the image's dtype.

    In full precision: TF32 and bfloat16, the defaults of GPUs and TPUs, would leave 8 to 11 bits of a pixel.
    """
    pixels = image.astype(vertical.dtype)
    pixels = jnp.einsum("hH,HWc->hWc", vertical, pixels, precision=jax.lax.Precision.HIGHEST)  # [H', W, C]
    pixels = jnp.einsum("wW,hWc->hwc", horizontal, pixels, precision=jax.lax.Precision.HIGHEST)  # [H', W', C]
    return pixels.astype(image.dtype)


def resample_matrix(
    start: jax.Array, extent: jax.Array, size_in: int, size_out: int, *, kernel: Callable, spread: Any
) -> jax.Array:
    """The matrix `[size_out, size_in]` that resamples `[start, start + extent)` of one side; rows sum to 1.

    Args:
        start, extent: scalars, in input pixels.
        kernel: the filter, a function of the distance in units of `spread` pixels.
        spread: how much the filter is widened, at least 1: extent / size_out antialiases, 1 interpolates.
    """
    dtype = start.dtype
    pixels = jnp.arange(size_in, dtype=dtype) - start  # each pixel's first edge, from the box's own
    centres = (jnp.arange(size_out, dtype=dtype) + 0.5) * (extent / size_out)
    covered = jnp.clip(jnp.minimum(pixels + 1, extent) - jnp.maximum(pixels, 0), 0, 1)  # [size_in]
    distances = (pixels + 0.5)[None, :] - centres[:, None]  # [size_out, size_in]
    weights = kernel(jnp.abs(distances) / jnp.maximum(jnp.asarray(spread, dtype), 1)) * covered
    total = jnp.sum(weights, axis=1, keepdims=True)
    return weights / jnp.where(total == 0, jnp.ones_like(total), total)  # 0 only where the box leaves the image


def gaussian_matrix(sigma: Any, *, radius: int, side: int, dtype: Any, mirrors: tuple[int, ...] = ()) -> jax.Array:
    """The matrix `[side, side]` of a Gaussian blur: 2 radius + 1 weights `exp(-k^2 / (2 sigma^2))`, summing to 1.

    Args:
        sigma: scalar > 0, in pixels.
        mirrors: pixels in which the side is mirrored: (0, side - 1) is reflection, none is black beyond the border.
            The image of pixel j in mirror m is at 2 m - j; m itself has none.
    """
    sigma = jnp.asarray(sigma, dtype)

    def weight(offset: jax.Array) -> jax.Array:
        return jnp.where(
            jnp.abs(offset) <= radius, jnp.exp(-0.5 * (offset.astype(dtype) / sigma) ** 2), jnp.zeros((), dtype)
        )

    rows, columns = jnp.arange(side)[:, None], jnp.arange(side)[None, :]
    matrix = weight(columns - rows)
    for mirror in mirrors:
        matrix = matrix + jnp.where(columns == mirror, jnp.zeros((), dtype), weight(2 * mirror - columns - rows))
    return matrix / jnp.sum(weight(jnp.arange(-radius, radius + 1)))


def triangle(distance: jax.Array) -> jax.Array:
    """`max(0, 1 - d)`."""
    return jnp.maximum(1 - distance, 0)


def cubic(distance: jax.Array) -> jax.Array:
    """Keys' cubic with a = -0.5 (Keys 1981); Pillow's, TensorFlow's and, with antialiasing, torch's."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return jnp.where(distance < 1, near, jnp.where(distance < 2, far, jnp.zeros_like(far)))
