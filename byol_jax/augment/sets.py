"""The sets of augmentations that make BYOL's views, and the one that its fine-tuning takes.

Each is a function `(key, image) -> image` for one float image. Here it is decided what happens to images that aren't
RGB: hue, saturation and grey are left out, the rest stays; `multichannel` is made for them. Normalisation is no part of
a set; the learner does it after either view.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.augment import paper
from byol_jax.augment.chain import AugmentFn, compose, draw, scale_to, with_probability
from byol_jax.augment.channels import channel_jitter, random_channel_dropout, random_gaussian_noise
from byol_jax.augment.checks import as_image, check_choice
from byol_jax.augment.color import color_jitter, random_grayscale
from byol_jax.augment.filters import random_gaussian_blur
from byol_jax.augment.geometry import (
    crop_and_resize,
    flip_left_right,
    random_crop_and_resize,
    random_flip_left_right,
    random_flip_up_down,
)
from byol_jax.augment.tone import adjust_gamma, cutout, patch_box, random_solarize, shift_knots, solarize, tone_curve
from byol_jax.image_size import image_sides

__all__ = ["byol", "crop_and_flip", "multichannel", "simclr", "small_grey"]


def simclr(image_size: Any) -> AugmentFn:
    """byol-pytorch 0.9.1's default set, in its order, but drawn for each image (there: once for a whole batch).

    ColorJitter(0.8, 0.8, 0.8, 0.2) with p 0.3; grey with p 0.2; flip with p 0.5; 3 x 3 blur, sigma ~ U[1, 2], p 0.2;
    random resized crop, area [0.08, 1], ratio [3/4, 4/3], bilinear, antialiased. Colour comes before the crop, so its
    cost is that of the input's size. With other than 3 channels: without hue, saturation and grey.

    Args:
        image_size: int or (height, width).

    Returns:
        `(key, image) -> [height, width, C]`; any input size of at least 2 x 2.

    Raises:
        ConfigurationError: image_size isn't a size.

    Example:
        >>> jax.jit(simclr(32))(jax.random.key(0), jnp.ones((40, 48, 3))).shape
        (32, 32, 3)
    """
    size = image_sides(image_size, name="simclr")

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        image = as_image("simclr", image)
        has_color = image.shape[-1] == 3
        colors = {"saturation": 0.8, "hue": 0.2} if has_color else {}
        return compose(
            with_probability(partial(color_jitter, brightness=0.8, contrast=0.8, **colors), p=0.3),
            partial(random_grayscale, p=0.2) if has_color else _keep,
            partial(random_flip_left_right, p=0.5),
            partial(random_gaussian_blur, p=0.2, kernel_size=3, sigma=(1.0, 2.0)),
            partial(random_crop_and_resize, size=size),
        )(key, image)

    return augment


def byol(image_size: Any, view: int) -> AugmentFn:
    """The BYOL paper's set for view 1 or 2, operation by operation as DeepMind's code has it (see `paper`).

    Crop, bicubic without antialiasing; flip with p 0.5; the four colour operations, as a group, with p 0.8; grey with
    p 0.2; blur (radius height // 20, sigma ~ U[0.1, 2], black border) with p 1 in view 1 and 0.1 in view 2; solarise
    above 0.5 with p 0 and 0.2; clip to [0, 1]. Paper, table 6. Other than 3 channels: without hue, saturation, grey.

    Args:
        image_size: int or (height, width).
        view: 1 or 2.

    Returns:
        `(key, image) -> [height, width, C]`; any input size.

    Raises:
        ConfigurationError: image_size isn't a size, or view isn't 1 or 2.

    Example:
        >>> jax.jit(byol(32, view=2))(jax.random.key(0), jnp.ones((40, 48, 3))).shape
        (32, 32, 3)
    """
    size = image_sides(image_size, name="byol")
    check_choice("byol", "view", view, (1, 2))
    blur_probability, solarize_probability = {1: (1.0, 0.0), 2: (0.1, 0.2)}[view]

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        image = as_image("byol", image)
        return compose(
            partial(paper.random_crop, size=size),
            partial(random_flip_left_right, p=0.5),
            with_probability(paper.jitter, p=0.8),
            partial(random_grayscale, p=0.2) if image.shape[-1] == 3 else _keep,
            with_probability(partial(_paper_blur, radius=size[0] // 20), p=blur_probability),
            partial(random_solarize, p=solarize_probability, threshold=0.5),
            lambda _, pixels: jnp.clip(pixels, 0, 1),
        )(key, image)

    return augment


def crop_and_flip(image_size: Any) -> AugmentFn:
    """What the BYOL paper fine-tunes with: its random crop, and a flip with p 0.5 (appendix C.1; see `paper`).

    Args:
        image_size: int or (height, width).

    Returns:
        `(key, image) -> [height, width, C]`; any input size, any C; clipped to [0, 1].

    Raises:
        ConfigurationError: image_size isn't a size.

    Example:
        >>> jax.jit(crop_and_flip(32))(jax.random.key(0), jnp.ones((40, 48, 3))).shape
        (32, 32, 3)
    """
    size = image_sides(image_size, name="crop_and_flip")
    return compose(partial(paper.random_crop, size=size), partial(random_flip_left_right, p=0.5))


def small_grey(image_size: Any) -> AugmentFn:
    """For small grey pictures: crop, flip, changes of tone, a patch cut out. One set for both views.

    1. crop: area ~ U[0.4, 1], ratio log-uniform in [3/4, 4/3], sides at most the image's, bilinear; 2. flip, p 0.5;
    3. `x ^ exp(u)`, u ~ U[-0.5, 0.5]; 4. contrast factor ~ U[0.5, 1.5] about the image's mean; 5. brightness factor
    ~ U[0.5, 1.5]; 6. a tone curve through knots 0, 0.2 ... 1, each but the first moved by U[-0.3, 0.3], at the clipped
    input; 7. solarise above 0.5, p 0.3; 8. cutout, p 0.5, each side ~ U[6, 14] at 28 px and in proportion at others.
    Only step 6 clips, and only its input: the output reaches about [-0.3, 1.3].

    All of an image's random numbers are one draw: drawn function by function the set took a third longer.

    Args:
        image_size: int or (height, width).

    Returns:
        `(key, image) -> [height, width, C]`; any input size, any C.

    Raises:
        ConfigurationError: image_size isn't a size.

    Example:
        >>> jax.jit(small_grey(28))(jax.random.key(0), jnp.ones((28, 28, 1))).shape
        (28, 28, 1)
    """
    size = image_sides(image_size, name="small_grey")

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        image = as_image("small_grey", image)
        numbers = jax.random.uniform(key, (19,), jnp.float32)
        image = crop_and_resize(image, _fractional_box(numbers[:4], image.shape[0], image.shape[1]), size=size)
        image = jnp.where(numbers[4] < 0.5, flip_left_right(image), image)
        image = _shift_tones(image, numbers[5:13])
        image = jnp.where(numbers[13] < 0.3, solarize(image, 0.5), image)
        patch = patch_box(numbers[14:18], *size, height=(6 / 28, 14 / 28), width=(6 / 28, 14 / 28))
        return jnp.where(numbers[18] < 0.5, cutout(image, patch), image)

    return augment


def multichannel(image_size: Any) -> AugmentFn:
    """For any number of channels that aren't colours: stains, spectral bands, detectors. One set for both views.

    1. random resized crop, area [0.08, 1], ratio [3/4, 4/3], bilinear, antialiased; 2. both flips, each with p 0.5;
    3. 3 x 3 blur, sigma ~ U[1, 2], p 0.2; 4. brightness and contrast of each channel by its own factors ~ U[0.6, 1.4],
    in either order, p 0.8; 5. intensity, one factor ~ U[0.6, 1.4] for all channels, p 0.8; 6. Gaussian noise,
    sigma ~ U[0, 0.05], p 0.5; 7. channel dropout, p 0.2: 1 to C / 4 channels (rounded down, at least 1) become 0, and
    one always stays. Steps 4 to 6 clip to [0, 1].

    Crop and blur are those of `simclr`; strengths and p of 4 and 5 the BYOL paper's (table 6) and those of SSL4EO-S12's
    code for 13 bands; both flips and the p of 7 are Cell-DINO's; noise is this project's choice. Pictures without an
    upper side would allow quarter turns too: neither of these takes them, and the flips are two of the three.

    Args:
        image_size: int or (height, width), at least 2 x 2.

    Returns:
        `(key, image) -> [height, width, C]`; any input size, any C; in [0, 1].

    Raises:
        ConfigurationError: image_size isn't a size.

    Example:
        >>> jax.jit(multichannel(32))(jax.random.key(0), jnp.ones((40, 48, 13))).shape
        (32, 32, 13)
    """
    size = image_sides(image_size, name="multichannel")

    def augment(key: jax.Array, image: jax.Array) -> jax.Array:
        image = as_image("multichannel", image)
        return compose(
            partial(random_crop_and_resize, size=size),
            partial(random_flip_left_right, p=0.5),
            partial(random_flip_up_down, p=0.5),
            partial(random_gaussian_blur, p=0.2, kernel_size=3, sigma=(1.0, 2.0)),
            with_probability(partial(channel_jitter, brightness=0.4, contrast=0.4), p=0.8),
            with_probability(partial(color_jitter, brightness=0.4), p=0.8),
            partial(random_gaussian_noise, p=0.5, sigma=(0.0, 0.05)),
            partial(random_channel_dropout, p=0.2, count=(1, max(1, image.shape[-1] // 4))),
        )(key, image)

    return augment


def _fractional_box(numbers: jax.Array, rows: int, columns: int) -> tuple[jax.Array, ...]:
    """small_grey's box from four uniform numbers; not rounded, because at 28 px a whole pixel is a coarse step."""
    height, width = paper.clip_box(numbers, rows, columns, area=(0.4, 1.0), log_ratio=paper.LOG_RATIO)
    return numbers[2] * (rows - height), numbers[3] * (columns - width), height, width


def _shift_tones(image: jax.Array, numbers: jax.Array) -> jax.Array:
    """small_grey's gamma, contrast, brightness and tone curve from eight uniform numbers."""
    gamma = jnp.exp(scale_to((-0.5, 0.5), numbers[0]))
    contrast, brightness = scale_to((0.5, 1.5), numbers[1]), scale_to((0.5, 1.5), numbers[2])
    gamma, contrast, brightness = (number.astype(image.dtype) for number in (gamma, contrast, brightness))
    image = adjust_gamma(image, gamma)
    mean = jnp.mean(image)
    image = brightness * (mean + contrast * (image - mean))
    return tone_curve(image, shift_knots(numbers[3:8], strength=0.3))


def _keep(key: jax.Array, image: jax.Array) -> jax.Array:
    return image


def _paper_blur(key: jax.Array, image: jax.Array, *, radius: int) -> jax.Array:
    return paper.blur_zero_padded(image, draw(key, (0.1, 2.0), image.dtype), radius=radius)
