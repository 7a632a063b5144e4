"""Gaussian blur, the one neighbourhood filter that the views use. The paper's own (zero padding) is in `paper`."""

from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.augment.chain import draw, happens
from byol_jax.augment.checks import as_image, check_kernel_size, check_positive, check_probability, check_range
from byol_jax.augment.sides import along_sides, gaussian_matrix
from byol_jax.ops.precision import at_least_float32

__all__ = ["gaussian_blur", "random_gaussian_blur"]


def gaussian_blur(image: Any, sigma: Any, *, kernel_size: int) -> jax.Array:
    """Convolves with a normalised Gaussian of `kernel_size` taps a side, the border reflected; torchvision's.

    Weights `exp(-k^2 / (2 sigma^2))` for whole k, |k| <= kernel_size // 2, divided by their sum. The reflection doesn't
    repeat the edge pixel.

    Shared with torchvision (7.7e-7 on float32) and kornia's `gaussian_blur2d` of border "reflect" (5e-7); with Pillow's
    ImageFilter.Kernel of these weights where it doesn't reach the border, which that leaves as it is (half a level of
    255). Not with Pillow's GaussianBlur, three box blurs (about 10 levels off on noise), nor with the paper, whose
    border is black (`paper.blur_zero_padded`; kornia's border "constant", 5e-7).

    Args:
        image: float `[H, W, C]`.
        sigma: scalar > 0, in pixels.
        kernel_size: odd; its half is smaller than either side.

    Raises:
        ConfigurationError: not one float image, a wrong kernel size, or a Python number <= 0 as sigma.

    Example:
        >>> gaussian_blur(jnp.ones((5, 5, 1)), 1.0, kernel_size=3).round(4).min().item()
        1.0
    """
    image = as_image("gaussian_blur", image)
    check_kernel_size("gaussian_blur", kernel_size, image_shape=image.shape)
    check_positive("gaussian_blur", "sigma", sigma)
    dtype = at_least_float32(image.dtype)
    vertical, horizontal = (
        gaussian_matrix(sigma, radius=kernel_size // 2, side=side, dtype=dtype, mirrors=(0, side - 1))
        for side in image.shape[:2]
    )
    return along_sides(image, vertical, horizontal)


def random_gaussian_blur(
    key: jax.Array, image: Any, *, p: float = 1.0, kernel_size: int, sigma: tuple[float, float] = (0.1, 2.0)
) -> jax.Array:
    """`gaussian_blur` with probability `p` and sigma ~ U(low, high); torchvision's GaussianBlur under RandomApply.

    The default sigma is that of torchvision and of the paper's table 6.

    Raises:
        ConfigurationError: as `gaussian_blur`; p outside [0, 1], or not 0 < low <= high.

    Example:
        >>> random_gaussian_blur(jax.random.key(0), jnp.ones((8, 8, 3)), p=0.5, kernel_size=3).shape
        (8, 8, 3)
    """
    check_probability("random_gaussian_blur", p)
    check_range("random_gaussian_blur", "sigma", sigma, above=0)
    image = as_image("random_gaussian_blur", image)
    key_chance, key_sigma = jax.random.split(key)
    blurred = gaussian_blur(image, draw(key_sigma, sigma, image.dtype), kernel_size=kernel_size)
    return jnp.where(happens(key_chance, p), blurred, image)
