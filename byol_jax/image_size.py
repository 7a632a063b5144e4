"""An image's two sides, from what a person writes. Pure Python."""

import numbers
from typing import Any

from byol_jax.errors import ConfigurationError

__all__ = ["image_sides"]


def image_sides(size: Any, *, name: str = "image size") -> tuple[int, int]:
    """`(H, W)` in pixels from what a person writes: one number for a square, or both sides.

    Raises:
        ConfigurationError: anything else, or a side below 1; the message begins with `name`.

    Example:
        >>> image_sides(224)
        (224, 224)
    """
    sides = tuple(size) if isinstance(size, tuple | list) else (size, size)
    whole = (isinstance(side, numbers.Integral) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not all(whole) or min(sides) < 1:
        raise ConfigurationError(f"{name}: the size must be a positive int or (height, width), got {size!r}")
    return int(sides[0]), int(sides[1])
