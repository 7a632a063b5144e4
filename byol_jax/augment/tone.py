"""Curves and patches: every number through one curve (solarise, gamma, tone curve), or a patch set to black (cutout).

For any number of channels. Each is a deterministic function and its random twin.
"""

from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.augment.chain import draw, happens, scale_to
from byol_jax.augment.checks import (
    as_image,
    check_box,
    check_count,
    check_number,
    check_positive,
    check_probability,
    check_range,
)
from byol_jax.errors import ConfigurationError
from byol_jax.ops.precision import at_least_float32

__all__ = [
    "adjust_gamma",
    "cutout",
    "random_cutout",
    "random_gamma",
    "random_solarize",
    "random_tone_curve",
    "solarize",
    "tone_curve",
]


def solarize(image: Any, threshold: Any) -> jax.Array:
    """Inverts what is bright: `1 - x where x >= threshold, else x`.

    Shared bit for bit with torchvision and kornia; with the paper at threshold 0.5; with Pillow's ImageOps.solarize,
    whose threshold t in levels is (t - 1/2) / 255 here.

    Args:
        image: float `[H, W, C]` in [0, 1].
        threshold: scalar.

    Raises:
        ConfigurationError: not one float image, or a threshold that isn't a finite number.

    Example:
        >>> solarize(jnp.array([[[0.25], [0.75]]]), 0.5).ravel().tolist()
        [0.25, 0.25]
    """
    image = as_image("solarize", image)
    check_number("solarize", "threshold", threshold)
    dtype = at_least_float32(image.dtype)  # rounded to float16 a threshold would pass a pixel
    return jnp.where(image.astype(dtype) >= jnp.asarray(threshold, dtype), 1 - image, image)


def random_solarize(key: jax.Array, image: Any, *, p: float = 0.5, threshold: float = 0.5) -> jax.Array:
    """`solarize` with probability `p`. Raises ConfigurationError for p outside [0, 1].

    Example:
        >>> random_solarize(jax.random.key(0), jnp.ones((1, 1, 1)), p=1.0, threshold=0.5).item()
        0.0
    """
    check_probability("random_solarize", p)
    solarized = solarize(image, threshold)
    return jnp.where(happens(key, p), solarized, jnp.asarray(image))


def adjust_gamma(image: Any, gamma: Any) -> jax.Array:
    """`x ^ gamma`, torchvision's with gain 1, computed as `exp(gamma log x)`; 0 stays 0, with the gradient 0.

    Args:
        image: float `[H, W, C]`, at least 0.
        gamma: scalar > 0; 1 changes nothing.

    Raises:
        ConfigurationError: not one float image, or a Python number <= 0 as gamma.

    Example:
        >>> adjust_gamma(jnp.full((1, 1, 1), 0.5), 2.0).item()
        0.25
    """
    image = as_image("adjust_gamma", image)
    check_positive("adjust_gamma", "gamma", gamma)
    x = image.astype(at_least_float32(image.dtype))
    is_black = x == 0  # whose logarithm is infinite, and so is its gradient
    curved = jnp.exp(jnp.asarray(gamma, x.dtype) * jnp.log(jnp.where(is_black, 1, x)))
    return jnp.where(is_black, 0, curved).astype(image.dtype)


def random_gamma(key: jax.Array, image: Any, *, p: float = 1.0, strength: float = 0.5) -> jax.Array:
    """`adjust_gamma` with probability `p` and gamma = exp(u), u ~ U[-strength, strength].

    Raises:
        ConfigurationError: p outside [0, 1], or a negative strength.

    Example:
        >>> random_gamma(jax.random.key(0), jnp.ones((1, 1, 1))).item()
        1.0
    """
    check_probability("random_gamma", p)
    check_positive("random_gamma", "strength", strength, or_zero=True)
    image = as_image("random_gamma", image)
    key_chance, key_gamma = jax.random.split(key)
    curved = adjust_gamma(image, jnp.exp(draw(key_gamma, (-strength, strength), image.dtype)))
    return jnp.where(happens(key_chance, p), curved, image)


def tone_curve(image: Any, knots: Any) -> jax.Array:
    """The continuous piecewise linear curve through (k / (K - 1), knots[k]), k = 0 ... K - 1, at clip(x, 0, 1).

    Summed as `knots[0] + sum_k slope_k clip(x - k / (K - 1), 0, 1 / (K - 1))`: elementwise, nothing is looked up. The
    output lies between the smallest and the largest knot and isn't clipped.

    Args:
        image: float `[H, W, C]`.
        knots: `[K]`, K >= 2; `k / (K - 1)` throughout is the identity.

    Raises:
        ConfigurationError: not one float image, or fewer than two knots.

    Example:
        >>> tone_curve(jnp.array([[[0.25], [0.75]]]), jnp.array([0.0, 1.0, 0.5])).ravel().tolist()
        [0.5, 0.75]
    """
    image = as_image("tone_curve", image)
    knots = jnp.asarray(knots, image.dtype)
    if knots.ndim != 1 or knots.shape[0] < 2:
        raise ConfigurationError(
            f"tone_curve: knots must be one row of at least two numbers, got shape {list(knots.shape)}"
        )
    pieces = knots.shape[0] - 1
    clipped = jnp.clip(image, 0, 1)
    curve = jnp.broadcast_to(knots[0], image.shape)
    for piece in range(pieces):
        ramp = jnp.clip(clipped * pieces - piece, 0, 1)
        curve = curve + (knots[piece + 1] - knots[piece]) * ramp
    return curve


def random_tone_curve(
    key: jax.Array, image: Any, *, p: float = 1.0, pieces: int = 5, strength: float = 0.3
) -> jax.Array:
    """`tone_curve` with probability `p` through knots k / pieces + U[-strength, strength], the first fixed at 0.

    Raises:
        ConfigurationError: p outside [0, 1], fewer pieces than one, or a negative strength.

    Example:
        >>> random_tone_curve(jax.random.key(0), jnp.zeros((1, 1, 1))).item()
        0.0
    """
    check_probability("random_tone_curve", p)
    check_count("random_tone_curve", "pieces", pieces)
    check_positive("random_tone_curve", "strength", strength, or_zero=True)
    image = as_image("random_tone_curve", image)
    key_chance, key_knots = jax.random.split(key)
    numbers = jax.random.uniform(key_knots, (pieces,), jnp.float32)
    curved = tone_curve(image, shift_knots(numbers, strength=strength))
    return jnp.where(happens(key_chance, p), curved, image)


def shift_knots(numbers: jax.Array, *, strength: float) -> jax.Array:
    """Knots `[K + 1]`: 0, then k / K moved by up to `strength` either way, from K uniform numbers in [0, 1)."""
    pieces = numbers.shape[0]
    even = jnp.arange(1, pieces + 1, dtype=numbers.dtype) / pieces
    return jnp.concatenate((jnp.zeros((1,), numbers.dtype), even + scale_to((-strength, strength), numbers)))


def cutout(image: Any, box: Any) -> jax.Array:
    """Sets the pixels whose centres lie in `box` to 0 (DeVries & Taylor 2017).

    Args:
        image: float `[H, W, C]`.
        box: (top, left, height, width) in pixels, traced or not; it may reach over the border.

    Raises:
        ConfigurationError: not one float image, or an empty box given in Python numbers.

    Example:
        >>> cutout(jnp.ones((1, 3, 1)), (0, 1, 1, 1)).ravel().tolist()
        [1.0, 0.0, 1.0]
    """
    image = as_image("cutout", image)
    check_box("cutout", box)
    top, left, height, width = (jnp.asarray(side).astype(jnp.float32) for side in box)
    rows = jnp.arange(image.shape[0], dtype=jnp.float32) + 0.5 - top
    columns = jnp.arange(image.shape[1], dtype=jnp.float32) + 0.5 - left
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]  # [H, W]
    return jnp.where(inside[:, :, None], jnp.zeros((), image.dtype), image)


def random_cutout(
    key: jax.Array,
    image: Any,
    *,
    p: float = 0.5,
    height: tuple[float, float] = (0.2, 0.5),
    width: tuple[float, float] = (0.2, 0.5),
) -> jax.Array:
    """`cutout` with probability `p`: sides drawn uniformly as fractions of the image's, centre uniform over the image.

    Raises:
        ConfigurationError: p outside [0, 1], or not 0 < low <= high.

    Example:
        >>> random_cutout(jax.random.key(0), jnp.ones((4, 4, 1)), p=0.0).min().item()
        1.0
    """
    check_probability("random_cutout", p)
    check_range("random_cutout", "height", height, above=0)
    check_range("random_cutout", "width", width, above=0)
    image = as_image("random_cutout", image)
    numbers = jax.random.uniform(key, (5,), jnp.float32)
    box = patch_box(numbers[1:], image.shape[0], image.shape[1], height=height, width=width)
    return jnp.where(numbers[0] < p, cutout(image, box), image)


def patch_box(
    numbers: jax.Array, rows: int, columns: int, *, height: tuple[float, float], width: tuple[float, float]
) -> jax.Array:
    """The box of a random patch, `[4]`, from four uniform numbers: its sides as fractions, and its centre."""
    sides = jnp.stack((rows * scale_to(height, numbers[0]), columns * scale_to(width, numbers[1])))
    corner = numbers[2:4] * jnp.asarray((rows, columns), numbers.dtype) - sides / 2
    return jnp.concatenate((corner, sides))
