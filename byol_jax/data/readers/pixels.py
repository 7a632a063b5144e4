"""From a file's numbers to an image's: no gaps, one dtype, one size. Pure functions of arrays.

Where there is no number (NaN, infinity, a GeoTIFF's nodata) stands the least number that the image has in that channel,
0 where it has none. It is put there before the image is resized, so that no gap spreads.
"""

from typing import Any

import numpy as np

from byol_jax.data.fit import FITS, contained_box, resize_plane
from byol_jax.data.unusable import UnusableImageError

__all__ = ["fill_gaps", "resize_channels", "with_dtype"]


def fill_gaps(numbers: np.ndarray, nodata: float | None) -> tuple[np.ndarray, float]:
    """Numbers [h, w, C] without gaps, and which part of them were gaps; the array itself where none were.

    Args:
        nodata: what stands for a gap beside NaN and infinity, compared as the array's dtype has it.

    Example:
        >>> fill_gaps(np.array([[[-9999], [4], [3], [4]]], np.int16), -9999)[0].ravel().tolist()
        [3, 4, 3, 4]
    """
    gaps = np.zeros(numbers.shape, bool)
    if numbers.dtype.kind == "f":
        gaps |= ~np.isfinite(numbers)
    if nodata is not None and (number := _as_stored(nodata, numbers.dtype)) is not None:
        gaps |= numbers == number
    if not gaps.any():
        return numbers, 0.0
    filled = numbers.copy()
    for channel in range(numbers.shape[-1]):
        plane, gap = filled[..., channel], gaps[..., channel]
        plane[gap] = 0 if gap.all() else plane[~gap].min()
    return filled, float(gaps.mean())


def _as_stored(number: float, dtype: np.dtype) -> Any:
    """A number as an array of this dtype has it; None where it can't have it."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return dtype.type(number)
    whole = np.iinfo(dtype)
    return dtype.type(int(number)) if number == np.rint(number) and whole.min <= number <= whole.max else None


def with_dtype(numbers: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers as a folder uses them: uint8 × 257 is uint16 and back, rounded; in float32 all keep their own.

    Raises:
        UnusableImageError: signed numbers, floats or those of 32 bits among whole ones of 8 or 16; or numbers that
            float32 can't hold.

    Example:
        >>> with_dtype(np.array([0, 255], np.uint8), np.dtype(np.uint16)).tolist()
        [0, 65535]
    """
    if numbers.dtype == dtype:
        return numbers
    if dtype == np.float32:
        with np.errstate(over="ignore"):
            floats = numbers.astype(np.float32)
        if not np.isfinite(floats).all():
            raise UnusableImageError("numbers above 3.4e38, which float32 can't hold")
        return floats
    if numbers.dtype == np.uint8 and dtype == np.uint16:
        return numbers.astype(np.uint16) * np.uint16(257)
    if numbers.dtype == np.uint16 and dtype == np.uint8:
        return ((numbers.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    raise UnusableImageError(
        f"{numbers.dtype.name} numbers in a folder whose images are used in {dtype.name}: give them their own"
    )


def resize_channels(pixels: np.ndarray, size: tuple[int, int] | None, fit: str) -> np.ndarray:
    """An image [h, w, C] in `size`, each channel by itself, as `FITS` says; whole numbers of 16 bits are rounded once.

    What `contain` adds is 0, as in a picture; around float32 it is the channel's least number.

    Example:
        >>> resize_channels(np.ones((8, 4, 5), np.float32), (4, 4), "contain").shape
        (4, 4, 5)
    """
    if size is None or pixels.shape[:2] == size:
        return pixels
    resized = np.empty((*size, pixels.shape[2]), pixels.dtype)  # [h, w, C]
    outside = _outside(pixels, size) if fit == "contain" and pixels.dtype == np.float32 else None
    for channel in range(pixels.shape[2]):
        values = pixels[..., channel]
        resized[..., channel] = resize_plane(values, lambda plane: FITS[fit].resize(plane, size))
        if outside is not None:
            resized[outside, channel] = values.min()
    return resized


def _outside(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    left, top, width, height = contained_box(pixels.shape[1], pixels.shape[0], size)
    outside = np.ones(size, bool)
    outside[top : top + height, left : left + width] = False
    return outside
