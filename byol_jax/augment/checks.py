"""What the augmentations ask of their arguments, and the words in which they refuse. Nothing is computed here."""

import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConfigurationError, nearest

__all__ = [
    "as_image",
    "check_box",
    "check_choice",
    "check_count",
    "check_counts",
    "check_factors",
    "check_kernel_size",
    "check_number",
    "check_positive",
    "check_probability",
    "check_range",
]


def as_image(name: str, image: Any, *, channels: Collection[int] = ()) -> jax.Array:
    """One float image `[H, W, C]` as a JAX array; `channels` names the C that are allowed, none named allows all.

    Raises:
        ConfigurationError: another rank, a dtype that isn't floating, or another number of channels.

    Example:
        >>> as_image("grayscale", jnp.zeros((4, 6, 3))).shape
        (4, 6, 3)
    """
    if not hasattr(image, "ndim") or image.ndim != 3 or not jnp.issubdtype(image.dtype, jnp.floating):
        what = f"{image.dtype}{list(image.shape)}" if hasattr(image, "ndim") else type(image).__name__
        raise ConfigurationError(
            f"{name}: expected one float image [H, W, C] in [0, 1], got {what}; "
            "divide uint8 by 255 and map over a batch with jax.vmap"
        )
    if channels and image.shape[-1] not in channels:
        allowed = " or ".join(str(count) for count in channels)
        raise ConfigurationError(
            f"{name}: expected {allowed} channels, got {image.shape[-1]}; leave it out for these images"
        )
    return jnp.asarray(image)


def check_probability(name: str, p: float) -> None:
    """Refuses what isn't a number in [0, 1]."""
    if not _is_number(p) or not 0 <= p <= 1:
        raise ConfigurationError(f"{name}: p is a probability and must be a number in [0, 1], got {p!r}")


def check_range(name: str, argument: str, bounds: Any, *, above: float = -math.inf, least: float = -math.inf) -> None:
    """Refuses what isn't a pair of finite numbers `(low, high)` with `above < low <= high` and `least <= low`."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2 or not all(map(_is_number, bounds)):
        raise ConfigurationError(f"{name}: {argument} must be two numbers (low, high), got {bounds!r}")
    if not (above < bounds[0] <= bounds[1] < math.inf and least <= bounds[0]):
        floor = f"{above:g} < " if above > -math.inf else f"{least:g} <= " if least > -math.inf else ""
        raise ConfigurationError(f"{name}: {argument} must have {floor}low <= high, got {bounds!r}")


def check_kernel_size(name: str, kernel_size: Any, *, image_shape: tuple[int, ...]) -> None:
    """Refuses what isn't an odd positive int whose half fits the image (reflection needs radius < side)."""
    if not _is_whole(kernel_size) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ConfigurationError(f"{name}: kernel_size must be an odd positive int, got {kernel_size!r}")
    if kernel_size // 2 >= min(image_shape[:2]):
        raise ConfigurationError(
            f"{name}: kernel_size {kernel_size} is too large for a {image_shape[0]} x {image_shape[1]} image; "
            f"use at most {2 * min(image_shape[:2]) - 1}"
        )


def check_positive(name: str, argument: str, value: Any, *, or_zero: bool = False) -> None:
    """Refuses what isn't a finite number above (or at) zero; traced and array values are not looked at."""
    if not _is_array(value) and not (_is_finite(value) and (value >= 0 if or_zero else value > 0)):
        raise ConfigurationError(
            f"{name}: {argument} must be {'at least' if or_zero else 'above'} 0 and finite, got {value!r}"
        )


def check_number(name: str, argument: str, value: Any) -> None:
    """Refuses what isn't a finite number; traced and array values are not looked at."""
    if not _is_array(value) and not _is_finite(value):
        raise ConfigurationError(f"{name}: {argument} must be a finite number, got {value!r}")


def check_count(name: str, argument: str, value: Any) -> None:
    """Refuses what isn't a whole number of at least 1."""
    if not _is_whole(value) or value < 1:
        raise ConfigurationError(f"{name}: {argument} must be a positive int, got {value!r}")


def check_counts(name: str, argument: str, bounds: Any) -> None:
    """Refuses what isn't a pair `(low, high)` of whole numbers with `1 <= low <= high`."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2 or not all(map(_is_whole, bounds)):
        raise ConfigurationError(f"{name}: {argument} must be two whole numbers (low, high), got {bounds!r}")
    if not 1 <= bounds[0] <= bounds[1]:
        raise ConfigurationError(f"{name}: {argument} must have 1 <= low <= high, got {bounds!r}")


def check_factors(name: str, factors: Any, *, channels: int) -> jax.Array:
    """One factor a channel, `[C]`; refuses other shapes, and where they can be looked at negative or infinite ones."""
    if not _is_array(factors):
        try:
            factors = np.asarray(factors, np.float64)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"{name}: factors must be numbers, one a channel, got {factors!r}") from error
    if factors.shape != (channels,):
        raise ConfigurationError(
            f"{name}: factors must be {channels} numbers, one a channel, got shape {list(factors.shape)}"
        )
    if isinstance(factors, np.ndarray) and not (np.isfinite(factors).all() and (factors >= 0).all()):
        raise ConfigurationError(f"{name}: factors must be at least 0 and finite, got {factors.tolist()}")
    return jnp.asarray(factors)


def check_choice(name: str, argument: str, value: Any, choices: Collection[Any]) -> None:
    """Refuses what isn't one of `choices`."""
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        hint = f"; did you mean {nearest(value, choices)[0]!r}?" if isinstance(value, str) else ""
        raise ConfigurationError(f"{name}: {argument} must be one of {known}, got {value!r}{hint}")


def check_box(name: str, box: Any) -> None:
    """Refuses a box without four entries, or one given in Python numbers with an empty side."""
    if not hasattr(box, "__len__") or len(box) != 4:
        raise ConfigurationError(f"{name}: box must be (top, left, height, width) in pixels, got {box!r}")
    if isinstance(box, tuple | list):
        check_number(name, "box top", box[0])
        check_number(name, "box left", box[1])
        check_positive(name, "box height", box[2])
        check_positive(name, "box width", box[3])


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return is_real and bool(value == value)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and abs(value) < math.inf


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_array(value: Any) -> bool:
    """Arrays and traced values; NumPy's scalars are numbers."""
    return hasattr(value, "dtype") and not isinstance(value, np.generic)
