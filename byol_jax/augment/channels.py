"""Channels as measurements of their own: brightness, contrast and absence of each, and noise; for any C.

For fluorescence stains, spectral bands, detectors: what a channel shows has nothing to do with its neighbours', so each
draws its own numbers. What treats channels as red, green and blue is in `color`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.augment.chain import draw, happens, in_random_order
from byol_jax.augment.checks import (
    as_image,
    check_counts,
    check_factors,
    check_positive,
    check_probability,
    check_range,
)
from byol_jax.augment.color import blend
from byol_jax.errors import ConfigurationError

__all__ = [
    "adjust_channel_brightness",
    "adjust_channel_contrast",
    "channel_dropout",
    "channel_jitter",
    "random_channel_dropout",
    "random_gaussian_noise",
]


def adjust_channel_brightness(image: Any, factors: Any) -> jax.Array:
    """Each channel brighter or darker: `clip(factors_c x_c, 0, 1)`; torchvision's brightness, channel by channel.

    Args:
        image: float `[H, W, C]` in [0, 1].
        factors: `[C]`, at least 0; 1 changes nothing.

    Raises:
        ConfigurationError: not one float image, or not one factor a channel.

    Example:
        >>> adjust_channel_brightness(jnp.full((1, 1, 2), 0.25), jnp.array([2.0, 8.0])).ravel().tolist()
        [0.5, 1.0]
    """
    image = as_image("adjust_channel_brightness", image)
    factors = check_factors("adjust_channel_brightness", factors, channels=image.shape[-1])
    return blend(image, jnp.zeros((), image.dtype), factors)


def adjust_channel_contrast(image: Any, factors: Any) -> jax.Array:
    """Each channel towards or away from its mean: `clip(factors_c x_c + (1 - factors_c) m_c, 0, 1)`.

    m_c is channel c's mean over the image. torchvision's contrast of each channel as a grey image; with one factor for
    all the paper's contrast.

    Args:
        image: float `[H, W, C]` in [0, 1].
        factors: `[C]`, at least 0; 1 changes nothing.

    Raises:
        ConfigurationError: not one float image, or not one factor a channel.

    Example:
        >>> image = jnp.array([[[0.25, 0.25], [0.75, 0.75]]])
        >>> adjust_channel_contrast(image, jnp.array([0.5, 0.0])).tolist()
        [[[0.375, 0.5], [0.625, 0.5]]]
    """
    image = as_image("adjust_channel_contrast", image)
    factors = check_factors("adjust_channel_contrast", factors, channels=image.shape[-1])
    return blend(image, jnp.mean(image, axis=(0, 1)), factors)


def channel_jitter(key: jax.Array, image: Any, *, brightness: float = 0, contrast: float = 0) -> jax.Array:
    """Brightness and contrast of each channel by its own random factor, the two in a random order; clipped after each.

    factors_c ~ U[max(0, 1 - b), 1 + b] for each operation, independent of one another. A strength of 0 leaves its
    operation out. Cell-DINO's code draws the factors from N(1, 0.2²), 0.5 at least; U[0.6, 1.4] has about that spread.

    Args:
        image: float `[H, W, C]` in [0, 1].
        brightness, contrast: strengths >= 0.

    Raises:
        ConfigurationError: not one float image, or a negative strength.

    Example:
        >>> channel_jitter(jax.random.key(0), jnp.ones((4, 4, 13)), brightness=0.4, contrast=0.4).shape
        (4, 4, 13)
    """
    strengths = (brightness, contrast)
    for name, strength in zip(("brightness", "contrast"), strengths, strict=True):
        check_positive("channel_jitter", name, strength, or_zero=True)
    image = as_image("channel_jitter", image)
    key_order, key_factors = jax.random.split(key)
    active = [kind for kind, strength in enumerate(strengths) if strength]
    numbers = jax.random.uniform(key_factors, (2, image.shape[-1]), jnp.float32)
    low = jnp.asarray([max(0.0, 1 - strength) for strength in strengths], jnp.float32)[:, None]
    high = jnp.asarray([1.0 + strength for strength in strengths], jnp.float32)[:, None]
    factors = (low + (high - low) * numbers).astype(image.dtype)  # [2, C]
    kinds = jnp.asarray(active, jnp.int32)

    def change(slot: jax.Array, pixels: jax.Array) -> jax.Array:
        kind = kinds[slot]
        target = jnp.where(kind == 1, jnp.mean(pixels, axis=(0, 1)), jnp.zeros((), pixels.dtype))  # [C]
        return blend(pixels, target, factors[kind])

    return in_random_order(key_order, image, apply_cheap=change, count=len(active))


def channel_dropout(image: Any, dropped: Any) -> jax.Array:
    """Sets whole channels to 0, as if a stain or a band were missing.

    Args:
        image: float `[H, W, C]`.
        dropped: bool `[C]`, true where a channel goes.

    Raises:
        ConfigurationError: not one float image, or not one truth value a channel.

    Example:
        >>> channel_dropout(jnp.ones((1, 1, 3)), jnp.array([False, True, False])).ravel().tolist()
        [1.0, 0.0, 1.0]
    """
    image = as_image("channel_dropout", image)
    dropped = jnp.asarray(dropped)
    if dropped.dtype != jnp.bool_ or dropped.shape != (image.shape[-1],):
        raise ConfigurationError(
            f"channel_dropout: dropped must be {image.shape[-1]} truth values, one a channel, got"
            f" {dropped.dtype}{list(dropped.shape)}"
        )
    return jnp.where(dropped, jnp.zeros((), image.dtype), image)


def random_channel_dropout(key: jax.Array, image: Any, *, p: float = 0.5, count: tuple[int, int] = (1, 1)) -> jax.Array:
    """`channel_dropout` with probability `p`, of n channels drawn without replacement, n uniform in low … high.

    At most C - 1 go, so that one always stays: a single channel stays as it is. The defaults are albumentations'
    (ChannelDropout); Cell-DINO's code drops one stain with p 0.2, SSL4EO-S12's 1 to 6 of 13 bands with p 0.5.

    Args:
        image: float `[H, W, C]`.
        p: probability.
        count: (low, high), whole numbers of at least 1, both included.

    Raises:
        ConfigurationError: not one float image; p outside [0, 1], or not 1 <= low <= high.

    Example:
        >>> random_channel_dropout(jax.random.key(0), jnp.ones((1, 1, 4)), p=1.0, count=(2, 2)).sum().item()
        2.0
    """
    check_probability("random_channel_dropout", p)
    check_counts("random_channel_dropout", "count", count)
    image = as_image("random_channel_dropout", image)
    channels = image.shape[-1]
    key_chance, key_count, key_which = jax.random.split(key, 3)
    number = jax.random.randint(key_count, (), count[0], count[1] + 1, jnp.int32)
    number = jnp.where(happens(key_chance, p), jnp.minimum(number, channels - 1), 0)
    ranks = jax.random.permutation(key_which, jnp.arange(channels, dtype=jnp.int32))  # [C]
    return channel_dropout(image, ranks < number)


def random_gaussian_noise(
    key: jax.Array, image: Any, *, p: float = 0.5, sigma: tuple[float, float] = (0.0, 0.05)
) -> jax.Array:
    """`clip(x + sigma n, 0, 1)` with probability `p`: n ~ N(0, 1) for every number, one sigma ~ U(low, high) an image.

    At a fixed sigma torchvision's v2.GaussianNoise, whose 0.1 is much for what has been scaled to its own range; the
    default is 0.05 at most, 13 of 255 levels (this project's choice).

    Args:
        image: float `[H, W, C]` in [0, 1].
        p: probability.
        sigma: (low, high) with 0 <= low <= high.

    Raises:
        ConfigurationError: not one float image; p outside [0, 1], or not 0 <= low <= high.

    Example:
        >>> random_gaussian_noise(jax.random.key(0), jnp.ones((2, 2, 1)), p=0.0).min().item()
        1.0
    """
    check_probability("random_gaussian_noise", p)
    check_range("random_gaussian_noise", "sigma", sigma, least=0)
    image = as_image("random_gaussian_noise", image)
    key_chance, key_sigma, key_noise = jax.random.split(key, 3)
    noise = jax.random.normal(key_noise, image.shape, jnp.float32).astype(image.dtype)
    noisy = jnp.clip(image + draw(key_sigma, sigma, image.dtype) * noise, 0, 1)
    return jnp.where(happens(key_chance, p), noisy, image)
