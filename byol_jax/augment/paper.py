"""The BYOL paper's operations where they differ from torchvision's, as DeepMind's published code computes them.

Brightness is added, contrast is about each channel's own mean, saturation is HSV's, blur pads with zeros, crops aren't
antialiased, and boxes that are too long are clipped, not redrawn. The set that puts them together is `sets.byol`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.augment.chain import draw, in_random_order, scale_to
from byol_jax.augment.checks import as_image
from byol_jax.augment.color import adjust_hue, value_and_spread
from byol_jax.augment.sides import along_sides, cubic, gaussian_matrix, resample_matrix
from byol_jax.ops.precision import at_least_float32

__all__ = [
    "add_brightness",
    "blur_zero_padded",
    "clip_box",
    "crop_bicubic",
    "jitter",
    "random_crop",
    "scale_channel_contrast",
    "scale_hsv_saturation",
]

AREA = (0.08, 1.0)
LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
BRIGHTNESS, CONTRAST, SATURATION, HUE = 0.4, 0.4, 0.2, 0.1
"""Paper, table 6; equal in both views."""


def add_brightness(image: Any, delta: Any) -> jax.Array:
    """`clip(x + delta, 0, 1)`, bit for bit kornia's and TensorFlow's `adjust_brightness`.

    Example:
        >>> add_brightness(jnp.full((1, 1, 1), 0.25), 0.5).item()
        0.75
    """
    image = as_image("add_brightness", image)
    return jnp.clip(image + jnp.asarray(delta, image.dtype), 0, 1)


def scale_channel_contrast(image: Any, factor: Any) -> jax.Array:
    """`clip(factor (x - m) + m, 0, 1)`, m each channel's mean over the image; TensorFlow's `adjust_contrast` (3e-7).

    Example:
        >>> scale_channel_contrast(jnp.array([[[0.25], [0.75]]]), 0.5).ravel().tolist()
        [0.375, 0.625]
    """
    image = as_image("scale_channel_contrast", image)
    mean = jnp.mean(image, axis=(0, 1), keepdims=True)  # [1, 1, C]
    return jnp.clip(jnp.asarray(factor, image.dtype) * (image - mean) + mean, 0, 1)


def scale_hsv_saturation(image: Any, factor: Any) -> jax.Array:
    """HSV saturation times `factor`, at most 1; hue and value kept.

    With v the largest and r = v - the smallest channel, s = r / v and `x' = v - (v - x) min(factor, v / r)`: the way
    through HSV and back, without the hue, which cancels. Grey (r = 0) is unchanged. TensorFlow's (5e-7) and kornia's
    `adjust_saturation` (2e-7).

    Example:
        >>> [f"{channel:.4f}" for channel in scale_hsv_saturation(jnp.array([[[0.2, 0.5, 0.7]]]), 1.2).ravel()]
        ['0.1000', '0.4600', '0.7000']
    """
    image = as_image("scale_hsv_saturation", image, channels=(3,))
    value, spread = value_and_spread(image)  # [H, W, 1]
    most = value / jnp.where(spread > 0, spread, jnp.ones_like(spread))
    scale = jnp.minimum(jnp.asarray(factor, image.dtype), most)
    return jnp.clip(value - (value - image) * scale, 0, 1)


def blur_zero_padded(image: Any, sigma: Any, *, radius: int) -> jax.Array:
    """Gaussian blur with 2 radius + 1 taps and black beyond the border: a white image darkens towards its edges.

    kornia's `gaussian_blur2d` of border "constant" (5e-7).

    Example:
        >>> print(blur_zero_padded(jnp.ones((64, 64, 1)), 1.0, radius=3)[:4, 32, 0].round(2))
        [0.7  0.94 1.   1.  ]
    """
    image = as_image("blur_zero_padded", image)
    dtype = at_least_float32(image.dtype)
    vertical, horizontal = (gaussian_matrix(sigma, radius=radius, side=side, dtype=dtype) for side in image.shape[:2])
    return along_sides(image, vertical, horizontal)


def jitter(key: jax.Array, image: Any) -> jax.Array:
    """Brightness, contrast, saturation and hue at the paper's strengths in a random order, clipped after each.

    With other than 3 channels brightness and contrast alone.
    """
    image = as_image("jitter", image)
    key_order, key_brightness, key_contrast, key_saturation, key_hue = jax.random.split(key, 5)
    delta = draw(key_brightness, (-BRIGHTNESS, BRIGHTNESS), image.dtype)
    contrast = draw(key_contrast, (1 - CONTRAST, 1 + CONTRAST), image.dtype)
    saturation = draw(key_saturation, (1 - SATURATION, 1 + SATURATION), image.dtype)
    turn = draw(key_hue, (-HUE, HUE), image.dtype)
    has_color = image.shape[-1] == 3

    def apply_cheap(kind: jax.Array, pixels: jax.Array) -> jax.Array:
        changed = jnp.where(kind == 0, add_brightness(pixels, delta), scale_channel_contrast(pixels, contrast))
        return jnp.where(kind == 2, scale_hsv_saturation(pixels, saturation), changed) if has_color else changed

    def apply_costly(pixels: jax.Array) -> jax.Array:
        return jnp.clip(adjust_hue(pixels, turn), 0, 1)

    return in_random_order(
        key_order,
        image,
        apply_cheap=apply_cheap,
        count=3 if has_color else 2,
        apply_costly=apply_costly if has_color else None,
    )


def clip_box(numbers: jax.Array, rows: int, columns: int, *, area: tuple[float, float], log_ratio: tuple[float, float]):
    """Sides `(height, width)` of a random box from two uniform numbers; what is longer than the image is clipped.

    Area fraction ~ U(area), width / height ~ exp(U(log_ratio)). Not rounded. torchvision redraws instead, which makes
    large boxes rarer (`geometry.random_box`).
    """
    pixels = rows * columns * scale_to(area, numbers[0])
    ratio = jnp.exp(scale_to(log_ratio, numbers[1]))
    return jnp.minimum(jnp.sqrt(pixels / ratio), rows), jnp.minimum(jnp.sqrt(pixels * ratio), columns)


def random_crop(key: jax.Array, image: Any, *, size: tuple[int, int]) -> jax.Array:
    """A random box (area 0.08 to 1, ratio 3/4 to 4/3, whole pixels, clipped to the image) resized by `crop_bicubic`."""
    image = as_image("random_crop", image)
    rows, columns = image.shape[:2]
    numbers = jax.random.uniform(key, (4,), jnp.float32)
    height, width = clip_box(numbers, rows, columns, area=AREA, log_ratio=LOG_RATIO)
    height, width = jnp.maximum(jnp.round(height), 1), jnp.maximum(jnp.round(width), 1)
    top = jnp.floor(numbers[2] * (rows - height + 1))
    left = jnp.floor(numbers[3] * (columns - width + 1))
    return crop_bicubic(image, (top, left, height, width), size=size)


def crop_bicubic(image: Any, box: tuple[Any, Any, Any, Any], *, size: tuple[int, int]) -> jax.Array:
    """Cuts out `box` and interpolates it to `size`, clipped to [0, 1]; TensorFlow's bicubic (half-pixel centres).

    Keys' cubic with a = -0.5 over the four nearest pixels, without antialiasing; taps outside the box are dropped and
    the rest renormalised. `[H, W, C] -> [*size, C]`. TensorFlow itself, which rounds each position to 1/1024 of a
    pixel, is up to 7e-4 off on noise; kornia's and torch's bicubic without antialiasing have a = -0.75.

    Example:
        >>> crop_bicubic(jnp.ones((8, 8, 3)), (1, 2, 4, 5), size=(3, 3)).round(4).min().item()
        1.0
    """
    image = as_image("crop_bicubic", image)
    dtype = at_least_float32(image.dtype)
    top, left, height, width = (jnp.asarray(side).astype(dtype) for side in box)
    vertical = resample_matrix(top, height, image.shape[0], size[0], kernel=cubic, spread=1)
    horizontal = resample_matrix(left, width, image.shape[1], size[1], kernel=cubic, spread=1)
    return jnp.clip(along_sides(image, vertical, horizontal), 0, 1)
