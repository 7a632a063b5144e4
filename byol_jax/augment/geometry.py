"""Where pixels come from: mirror images, and random crops with resizing as torchvision draws and computes them.

A crop with its resize is two small matrix multiplies, one a side (`sides`), whose matrices are computed from the box:
it may be traced and differ from image to image, and nothing is gathered. The paper's own crop is in `paper`.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.augment.chain import happens, scale_to
from byol_jax.augment.checks import as_image, check_box, check_choice, check_probability, check_range
from byol_jax.augment.sides import along_sides, cubic, resample_matrix, triangle
from byol_jax.image_size import image_sides
from byol_jax.ops.precision import at_least_float32

__all__ = [
    "crop_and_resize",
    "flip_left_right",
    "flip_up_down",
    "random_box",
    "random_crop_and_resize",
    "random_flip_left_right",
    "random_flip_up_down",
]

FILTERS = {"bilinear": triangle, "bicubic": cubic}

ATTEMPTS = 10
"""How often torchvision's RandomResizedCrop draws a box before it falls back to the centre."""


def flip_left_right(image: Any) -> jax.Array:
    """Mirrors the width: `[H, W, C] -> [H, W, C]`. Raises ConfigurationError for what isn't one float image.

    Example:
        >>> flip_left_right(jnp.array([[[0.0], [1.0]]])).ravel().tolist()
        [1.0, 0.0]
    """
    return as_image("flip_left_right", image)[:, ::-1]


def random_flip_left_right(key: jax.Array, image: Any, *, p: float = 0.5) -> jax.Array:
    """`flip_left_right` with probability `p`. Raises ConfigurationError for p outside [0, 1].

    Example:
        >>> random_flip_left_right(jax.random.key(0), jnp.array([[[0.0], [1.0]]]), p=1.0).ravel().tolist()
        [1.0, 0.0]
    """
    check_probability("random_flip_left_right", p)
    flipped = flip_left_right(image)
    return jnp.where(happens(key, p), flipped, jnp.asarray(image))


def flip_up_down(image: Any) -> jax.Array:
    """Mirrors the height: `[H, W, C] -> [H, W, C]`. Raises ConfigurationError for what isn't one float image.

    For pictures without an upper side: from a microscope, from above.

    Example:
        >>> flip_up_down(jnp.array([[[0.0]], [[1.0]]])).ravel().tolist()
        [1.0, 0.0]
    """
    return as_image("flip_up_down", image)[::-1]


def random_flip_up_down(key: jax.Array, image: Any, *, p: float = 0.5) -> jax.Array:
    """`flip_up_down` with probability `p`. Raises ConfigurationError for p outside [0, 1].

    Example:
        >>> random_flip_up_down(jax.random.key(0), jnp.array([[[0.0]], [[1.0]]]), p=1.0).ravel().tolist()
        [1.0, 0.0]
    """
    check_probability("random_flip_up_down", p)
    flipped = flip_up_down(image)
    return jnp.where(happens(key, p), flipped, jnp.asarray(image))


def crop_and_resize(image: Any, box: Any, *, size: Any, method: str = "bilinear") -> jax.Array:
    """Cuts `box` out of the image and resamples it to `size`, antialiased.

    Output row i is the mean of the input rows j weighted by `f((j + 1/2 - top - s (i + 1/2)) / max(s, 1))`, s = box
    height / output height, f the triangle or Keys' cubic with a = -0.5; then the same for columns. Only pixels in the
    box count and the weights are normalised, so that the box's border acts as the image's. A pixel that a fractional
    box covers in part counts in that proportion. Differentiable in the image and in the box.

    For whole boxes shared with torchvision's `resized_crop(antialias=True)` and Pillow's `crop(box).resize(size)` on
    32-bit floats: within 3e-6 on float32 images in [0, 1] of up to 48 px, 1e-5 up to 200 px (a position's rounding; in
    float64 1e-14), bicubic overshoots included. Pillow's 8-bit pictures are within 1.3 levels of 255. Pillow's
    `resize(box=)` also sees pixels outside the box, up to 0.6 off at its border on noise. kornia's `resize` is the same
    for bilinear enlarging (4e-6); its bicubic has a = -0.75 (0.1 off) and it blurs by a Gaussian before making smaller
    (0.4 off). torch 2.14.1 itself errs by up to 1 where it makes one column and changes the number of rows.

    Args:
        image: float `[H, W, C]`.
        box: (top, left, height, width) in pixels: numbers, arrays or one array `[4]`, traced or not. It lies inside the
            image; what doesn't is left out.
        size: int or (height, width).
        method: "bilinear" or "bicubic".

    Returns:
        `[height, width, C]`, of the image's dtype (computed in float32 at least).

    Raises:
        ConfigurationError: not one float image, a wrong size or method, or an empty box given in Python numbers.

    Example:
        >>> ramp = jnp.arange(4.0).reshape(1, 4, 1)
        >>> [f"{pixel:.4f}" for pixel in crop_and_resize(ramp, (0, 0, 1, 4), size=(1, 2)).ravel()]
        ['0.7143', '2.2857']
    """
    image = as_image("crop_and_resize", image)
    check_box("crop_and_resize", box)
    rows, columns = image_sides(size, name="crop_and_resize")
    check_choice("crop_and_resize", "method", method, tuple(FILTERS))
    dtype = at_least_float32(image.dtype)
    top, left, height, width = (jnp.asarray(side).astype(dtype) for side in box)
    vertical = resample_matrix(top, height, image.shape[0], rows, kernel=FILTERS[method], spread=height / rows)
    horizontal = resample_matrix(left, width, image.shape[1], columns, kernel=FILTERS[method], spread=width / columns)
    return along_sides(image, vertical, horizontal)


def random_crop_and_resize(
    key: jax.Array,
    image: Any,
    *,
    size: Any,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    method: str = "bilinear",
    p: float = 1.0,
) -> jax.Array:
    """`crop_and_resize` of a box from `random_box`; torchvision's RandomResizedCrop. Else, with 1 - p, the whole image.

    Args:
        image: float `[H, W, C]`.
        size, method: as `crop_and_resize`.
        scale, ratio: as `random_box`.
        p: probability that a box is drawn.

    Raises:
        ConfigurationError: as `crop_and_resize`; scale, ratio or p out of range.

    Example:
        >>> random_crop_and_resize(jax.random.key(0), jnp.ones((9, 7, 3)), size=4).shape
        (4, 4, 3)
    """
    check_range("random_crop_and_resize", "scale", scale, above=0)
    check_range("random_crop_and_resize", "ratio", ratio, above=0)
    check_probability("random_crop_and_resize", p)
    image = as_image("random_crop_and_resize", image)
    rows, columns = image.shape[:2]
    key_box, key_chance = jax.random.split(key)
    box = random_box(key_box, rows, columns, scale=scale, ratio=ratio)
    whole = jnp.asarray((0, 0, rows, columns), box.dtype)
    box = jnp.where(happens(key_chance, p), box, whole)
    return crop_and_resize(image, box, size=size, method=method)


def random_box(
    key: jax.Array, rows: int, columns: int, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> jax.Array:
    """(top, left, height, width) in whole pixels as torchvision's RandomResizedCrop draws them; float32 `[4]`.

    Area fraction ~ U(scale), width / height ~ exp(U(log ratio)), sides rounded; the first of 10 draws that fits the
    image at a whole offset drawn uniformly, else the largest centred box whose ratio is allowed. All ten at once.

    Example:
        >>> random_box(jax.random.key(0), 20, 30, scale=(1.0, 1.0), ratio=(1.5, 1.5)).tolist()
        [0.0, 0.0, 20.0, 30.0]
    """
    numbers = jax.random.uniform(key, (2, ATTEMPTS + 1), jnp.float32)  # one draw: each one costs compile time
    area = rows * columns * scale_to(scale, numbers[0, :ATTEMPTS])
    aspect = jnp.exp(scale_to((math.log(ratio[0]), math.log(ratio[1])), numbers[1, :ATTEMPTS]))
    widths = jnp.round(jnp.sqrt(area * aspect))  # [10], half to even as Python's round
    heights = jnp.round(jnp.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= columns) & (heights > 0) & (heights <= rows)

    top, left, height, width = _central_box(rows, columns, ratio)
    first = jnp.argmax(jnp.append(fits, True))  # the central box is the eleventh attempt, and always fits
    height = jnp.append(heights, float(height))[first]
    width = jnp.append(widths, float(width))[first]
    offsets = jnp.floor(numbers[:, ATTEMPTS] * jnp.stack((rows - height + 1, columns - width + 1)))
    centre = jnp.asarray((top, left), jnp.float32)
    offsets = jnp.where(first < ATTEMPTS, offsets, centre)
    return jnp.stack((offsets[0], offsets[1], height, width))


def _central_box(rows: int, columns: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """torchvision's fallback: the whole image, its longer side cut until the ratio is allowed, in the middle."""
    height, width = rows, columns
    if columns / rows < ratio[0]:
        height = round(columns / ratio[0])
    elif columns / rows > ratio[1]:
        width = round(rows * ratio[1])
    return (rows - height) // 2, (columns - width) // 2, height, width
