"""Brightness, contrast, saturation, hue and grey, one float image [H, W, C] at a time, as torchvision computes them.

Hue, saturation and grey mean something for RGB only. They leave a single channel as it is, as torchvision does, and
refuse other numbers of channels. Curves that act on every number alike (gamma, solarise) are in `tone`.

"Shared with" in a docstring gives the largest difference from other libraries on thousands of random float32 images,
factors up to 3; from Pillow in its levels of 1/255, factors up to 2 (tests/parity/test_augment_*.py).
"""

from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.augment.chain import draw, happens, in_random_order
from byol_jax.augment.checks import as_image, check_number, check_positive, check_probability
from byol_jax.errors import ConfigurationError
from byol_jax.ops.precision import at_least_float32

__all__ = [
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "blend",
    "color_jitter",
    "grayscale",
    "luma",
    "random_grayscale",
    "value_and_spread",
]

LUMA_WEIGHTS = (0.2989, 0.587, 0.114)
"""ITU-R BT.601 as torchvision and DeepMind's BYOL code round it; they sum to 0.9999."""


def luma(image: jax.Array) -> jax.Array:
    """`0.2989 R + 0.587 G + 0.114 B`, `[H, W, 3] -> [H, W, 1]`."""
    red, green, blue = LUMA_WEIGHTS
    return red * image[..., 0:1] + green * image[..., 1:2] + blue * image[..., 2:3]


def value_and_spread(image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """HSV's value (the largest channel) and the largest minus the smallest, `[H, W, 3] -> [H, W, 1]` each.

    By pairs, not by a reduction over the last axis: the former fuses with its surroundings, on CPU four times as fast.
    """
    red, green, blue = image[..., 0:1], image[..., 1:2], image[..., 2:3]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    return value, value - jnp.minimum(jnp.minimum(red, green), blue)


def adjust_brightness(image: Any, factor: Any) -> jax.Array:
    """Brighter or darker: `clip(factor x, 0, 1)`.

    Shared with torchvision and kornia's `adjust_brightness_accumulative` and `adjust_contrast` (all bit for bit), and
    Pillow's ImageEnhance.Brightness (1 level, cut off). Not with the paper and kornia's `adjust_brightness`, which add.

    Args:
        image: float `[H, W, C]` in [0, 1].
        factor: scalar >= 0; 1 changes nothing.

    Raises:
        ConfigurationError: not one float image, or a negative Python number as factor.

    Example:
        >>> adjust_brightness(jnp.full((1, 1, 3), 0.25), 2.0)[0, 0, 0].item()
        0.5
    """
    image = as_image("adjust_brightness", image)
    check_positive("adjust_brightness", "factor", factor, or_zero=True)
    return blend(image, jnp.zeros((), image.dtype), factor)


def adjust_contrast(image: Any, factor: Any) -> jax.Array:
    """More or less contrast: `clip(factor x + (1 - factor) m, 0, 1)`, m the mean grey of the image.

    m is the mean of 0.2989 R + 0.587 G + 0.114 B for 3 channels, else the mean over all pixels and channels (for 1
    channel that is torchvision's; it takes no other number).

    Shared with torchvision (1.3e-6: means summed in another order), Pillow's ImageEnhance.Contrast (1.6 levels: it
    rounds m) and, but for its 0.299 R, kornia's `adjust_contrast_with_mean_subtraction` (1e-4 |1 - factor|). Not with
    the paper, whose mean is each channel's own, nor kornia's `adjust_contrast`, which multiplies.

    Args:
        image: float `[H, W, C]` in [0, 1].
        factor: scalar >= 0; 1 changes nothing.

    Raises:
        ConfigurationError: not one float image, or a negative Python number as factor.

    Example:
        >>> adjust_contrast(jnp.array([[[0.25], [0.75]]]), 0.5).ravel().tolist()
        [0.375, 0.625]
    """
    image = as_image("adjust_contrast", image)
    check_positive("adjust_contrast", "factor", factor, or_zero=True)
    return blend(image, jnp.mean(luma(image) if image.shape[-1] == 3 else image), factor)


def adjust_saturation(image: Any, factor: Any) -> jax.Array:
    """More or less colour: `clip(factor x + (1 - factor) grey, 0, 1)`, grey the pixel's own. 1 channel stays as it is.

    Shared with torchvision (3e-7), Pillow's ImageEnhance.Color (1.5 levels) and, but for its 0.299 R, kornia's
    `adjust_saturation_with_gray_subtraction` (1e-4 |1 - factor|). Not with the paper and kornia's `adjust_saturation`,
    which scale HSV's: the example's pixel becomes (0.10, 0.46, 0.70) there.

    Args:
        image: float `[H, W, 3]` or `[H, W, 1]` in [0, 1].
        factor: scalar >= 0; 1 changes nothing, 0 leaves grey.

    Raises:
        ConfigurationError: not one float image with 1 or 3 channels, or a negative Python number as factor.

    Example:
        >>> [f"{channel:.4f}" for channel in adjust_saturation(jnp.array([[[0.2, 0.5, 0.7]]]), 1.2).ravel()]
        ['0.1534', '0.5134', '0.7534']
    """
    image = as_image("adjust_saturation", image, channels=(1, 3))
    check_positive("adjust_saturation", "factor", factor, or_zero=True)
    return image if image.shape[-1] == 1 else blend(image, luma(image), factor)


def adjust_hue(image: Any, delta: Any) -> jax.Array:
    """Turns the hue of the HSV hexcone by `delta` turns, value and saturation kept. 1 channel stays as it is.

    With v = max, r = max - min and h the hue in sixths of a turn, channel c becomes
    `v - r clip(min(k, 4 - k), 0, 1)`, `k = (n_c + h + 6 delta) mod 6`, n = (5, 3, 1): the usual six cases in one line,
    and without saturation, whose division by v would need care at black. Grey (r = 0) is unchanged.

    Shared with torchvision (1.8e-6), the paper and TensorFlow (1e-6), and kornia, which takes radians, 2 pi delta
    (1.8e-6). Pillow's HSV is in 8 bits: up to 17 levels. Narrow images are computed in float32 and rounded once.

    Args:
        image: float `[H, W, 3]` or `[H, W, 1]` in [0, 1].
        delta: scalar, in turns; periodic with period 1 (torchvision takes [-0.5, 0.5]).

    Raises:
        ConfigurationError: not one float image with 1 or 3 channels.

    Example:
        >>> print(adjust_hue(jnp.array([[[1.0, 0.0, 0.0]]]), 1 / 3).ravel().round(4))
        [0. 1. 0.]
    """
    image = as_image("adjust_hue", image, channels=(1, 3))
    check_number("adjust_hue", "delta", delta)
    if image.shape[-1] == 1:
        return image
    dtype = at_least_float32(image.dtype)  # a hue of up to 5 sixths in bfloat16 put channels off by up to 0.043
    pixels = image.astype(dtype)
    red, green, blue = pixels[..., 0:1], pixels[..., 1:2], pixels[..., 2:3]
    value, spread = value_and_spread(pixels)  # [H, W, 1]
    divisor = jnp.where(spread > 0, spread, jnp.ones_like(spread))
    from_green = jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = jnp.where(value == red, (green - blue) / divisor, from_green)  # [-1, 5]
    offsets = jnp.asarray((5, 3, 1), dtype)
    position = offsets + sixths + 6 * jnp.asarray(delta, dtype)  # [H, W, 3]
    position = position - 6 * jnp.floor(position / 6)
    turned = value - spread * jnp.clip(jnp.minimum(position, 4 - position), 0, 1)
    return turned.astype(image.dtype)


def grayscale(image: Any) -> jax.Array:
    """`0.2989 R + 0.587 G + 0.114 B` in all three channels. 1 channel stays as it is.

    Shared with torchvision, the paper and TensorFlow (1e-7). Pillow's and kornia's weight of red is 0.299: 1e-4 R more;
    with 8-bit rounding 0.53 levels.

    Args:
        image: float `[H, W, 3]` or `[H, W, 1]`.

    Raises:
        ConfigurationError: not one float image with 1 or 3 channels.

    Example:
        >>> print(grayscale(jnp.array([[[1.0, 0.0, 0.0]]])).ravel())
        [0.2989 0.2989 0.2989]
    """
    image = as_image("grayscale", image, channels=(1, 3))
    return image if image.shape[-1] == 1 else jnp.broadcast_to(luma(image), image.shape)


def random_grayscale(key: jax.Array, image: Any, *, p: float = 0.1) -> jax.Array:
    """`grayscale` with probability `p` (default: torchvision's). Raises as `grayscale`, and for p outside [0, 1].

    Example:
        >>> random_grayscale(jax.random.key(0), jnp.ones((2, 2, 3)), p=0.0).min().item()
        1.0
    """
    check_probability("random_grayscale", p)
    grey = grayscale(image)
    return jnp.where(happens(key, p), grey, jnp.asarray(image))


def color_jitter(
    key: jax.Array, image: Any, *, brightness: float = 0, contrast: float = 0, saturation: float = 0, hue: float = 0
) -> jax.Array:
    """Brightness, contrast, saturation and hue changed by random amounts, in a random order; torchvision's ColorJitter.

    Factors ~ U[max(0, 1 - b), 1 + b], hue ~ U[-h, h]; clipped to [0, 1] after every operation. A strength of 0 leaves
    its operation out. Cost under `vmap`: six blends and one hue an image (see `chain.in_order`).

    Args:
        image: float `[H, W, C]` in [0, 1]. With C other than 1 and 3, saturation and hue must be 0.
        brightness, contrast, saturation: strengths >= 0.
        hue: strength in [0, 0.5], in turns.

    Raises:
        ConfigurationError: a strength out of its range, or colour asked of an image that has none.

    Example:
        >>> color_jitter(jax.random.key(0), jnp.ones((4, 4, 3)), brightness=0.4, hue=0.1).shape
        (4, 4, 3)
    """
    strengths = (brightness, contrast, saturation)
    for name, strength in zip(("brightness", "contrast", "saturation"), strengths, strict=True):
        check_positive("color_jitter", name, strength, or_zero=True)
    check_number("color_jitter", "hue", hue)
    if not 0 <= hue <= 0.5:
        raise ConfigurationError(f"color_jitter: hue must be in [0, 0.5] turns, got {hue!r}")
    image = as_image("color_jitter", image, channels=(1, 3) if saturation or hue else ())

    key_order, key_hue, *keys = jax.random.split(key, 5)
    has_color = image.shape[-1] == 3
    active = [kind for kind, strength in enumerate(strengths) if strength and (has_color or kind != 2)]
    bounds = [(max(0.0, 1 - strength), 1.0 + strength) for strength in strengths]
    kinds = jnp.asarray(active, jnp.int32)
    factors = jnp.stack([draw(k, bound, image.dtype) for k, bound in zip(keys, bounds, strict=True)])  # [3]

    def change(slot: jax.Array, pixels: jax.Array) -> jax.Array:
        kind = kinds[slot]
        return blend(pixels, _target(kind, pixels), factors[kind])

    turn = draw(key_hue, (-hue, hue), image.dtype)
    turn_hue = (lambda pixels: adjust_hue(pixels, turn)) if hue and has_color else None
    return in_random_order(key_order, image, apply_cheap=change, count=len(active), apply_costly=turn_hue)


def _target(kind: jax.Array, image: jax.Array) -> jax.Array:
    """What brightness (0), contrast (1) and saturation (2) blend an image with: black, its mean grey, its grey."""
    grey = luma(image) if image.shape[-1] == 3 else image
    return jnp.where(kind == 2, grey, jnp.where(kind == 1, jnp.mean(grey), jnp.zeros((), image.dtype)))


def blend(image: jax.Array, target: jax.Array, factor: Any) -> jax.Array:
    """`clip(factor x + (1 - factor) target, 0, 1)`; target and factor are scalars, one a channel `[C]`, or images."""
    factor = jnp.asarray(factor, image.dtype)
    return jnp.clip(factor * image + (1 - factor) * target, 0, 1)
