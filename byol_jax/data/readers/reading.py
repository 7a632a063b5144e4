"""The words that readers share: how somebody wants files to be read, and what a file turns out to hold.

Channels are counted from 1, as GDAL counts bands, wherever a person reads or writes their numbers.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from byol_jax.data.unusable import UnusableImageError
from byol_jax.errors import ConfigurationError

__all__ = [
    "CHANNEL_AXES",
    "DTYPES",
    "ROUNDED",
    "Contents",
    "Opened",
    "Reading",
    "check_contents",
    "choose_channels",
    "make_reading",
    "output_dtype",
]

CHANNEL_AXES = "CS"
"""Axes of a TIFF that become channels where nobody says otherwise: channels and samples, in tifffile's letters."""

DTYPES = ("uint8", "uint16", "int8", "int16", "uint32", "int32", "float16", "float32", "float64")
"""Numbers that are read."""

ROUNDED = ("uint32", "int32", "float64")
"""Those of them that float32 doesn't hold exactly: whole ones above 2**24, floats of more than 24 bits."""

_MOST_BYTES = 2**30
"""Of one image as it is decoded, all its channels: what a damaged header may make a reader ask for."""


@dataclass(frozen=True)
class Reading:
    """How a folder's files become images.

    Attributes:
        num_channels: of every image.
        bands: which of a file's channels, counted from 1, in this order; None: all, which then are `num_channels`.
        tiff_axes: letters of the axes of a TIFF that become channels, all others give images; None: `CHANNEL_AXES`.
        dicom_rescale: whether a DICOM file's slope and intercept are applied to its numbers.
    """

    num_channels: int
    bands: tuple[int, ...] | None = None
    tiff_axes: str | None = None
    dicom_rescale: bool = False

    @property
    def is_as_stored(self) -> bool:
        """Whether channels are what a file has; else they are pictures: grey and colour are made of each other."""
        return self.bands is not None or self.tiff_axes is not None or self.num_channels not in (1, 3)


def make_reading(
    num_channels: int | None,
    *,
    bands: Sequence[int] | None = None,
    tiff_axes: str | None = None,
    dicom_rescale: bool = False,
) -> Reading:
    """A `Reading`; without a number of channels they are as many as bands, or 3.

    Raises:
        ConfigurationError: no such bands or axes, or another number of bands than of channels.

    Example:
        >>> make_reading(None, bands=(3, 2, 1)).num_channels, make_reading(5, tiff_axes="z").tiff_axes
        (3, 'Z')
    """
    if bands is not None and (not bands or not all(_is_count(band) for band in bands)):
        raise ConfigurationError(f"bands {bands!r}: give whole numbers from 1, such as 3,2,1")
    if bands is not None and num_channels not in (None, len(bands)):
        raise ConfigurationError(f"{len(bands)} bands for {num_channels} channels: give as many, or bands alone")
    if tiff_axes is not None and not re.fullmatch(r"[A-WZa-wz]+", tiff_axes):
        raise ConfigurationError(
            f"tiff_axes {tiff_axes!r}: give the letters of the axes that become channels, such as {CHANNEL_AXES} or Z"
        )
    if num_channels is not None and not _is_count(num_channels):
        raise ConfigurationError(f"num_channels {num_channels!r}: give a whole number from 1")
    channels = num_channels or (3 if bands is None else len(bands))
    axes = None if tiff_axes is None else "".join(dict.fromkeys(tiff_axes.upper()))
    return Reading(channels, None if bands is None else tuple(map(int, bands)), axes, dicom_rescale)


def _is_count(number: Any) -> bool:
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool) and int(number) >= 1


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
        sizes: (height, width) of each of its images.
        channels: that each of them has, before any are chosen.
        dtype: of their numbers, one of `DTYPES`.
        said: how it was read, for a person; None where there was nothing to take in two ways.
        image_axes: of a TIFF (letter, length) of the axes whose places are images.
    """

    sizes: tuple[tuple[int, int], ...]
    channels: int
    dtype: str
    said: str | None = None
    image_axes: Sequence[tuple[str, int]] = ()


class Opened(NamedTuple):
    """A file that a reader has open.

    Attributes:
        contents: what it holds.
        read: `read(k) -> [h, w, C]`, image number k as it is stored; raises whatever damage leads to.
        close: closes it.
        nodata: the number that stands where there is none; None: no such.
    """

    contents: Contents
    read: Callable[[int], np.ndarray]
    close: Callable[[], None]
    nodata: float | None = None


def check_contents(contents: Contents, reading: Reading, *, most_pixels: int | None) -> None:
    """Returns where a file's images can be used.

    Raises:
        UnusableImageError: other channels than wanted, too many pixels, numbers that aren't read, or no image.
    """
    if contents.dtype not in DTYPES:
        raise UnusableImageError(f"numbers of type {contents.dtype}, which isn't read: give one of {', '.join(DTYPES)}")
    if not contents.sizes or contents.channels < 1 or any(min(size) < 1 for size in contents.sizes):
        raise UnusableImageError("it holds no image")
    for height, width in set(contents.sizes):
        if most_pixels is not None and height * width > most_pixels:
            raise UnusableImageError(f"{width} × {height} pixels, above the limit of {most_pixels} pixels")
        size = math.prod((height, width, contents.channels, np.dtype(contents.dtype).itemsize))
        if size > _MOST_BYTES:
            limit = _MOST_BYTES // 2**30
            raise UnusableImageError(f"an image of {size / 2**30:.1f} GiB, above the limit of {limit} GiB")
    _check_channels(contents, reading)


def _check_channels(contents: Contents, reading: Reading) -> None:
    found = f"{contents.channels} channel{'s' * (contents.channels != 1)}"
    found += f" ({contents.said})" if contents.said else ""
    if reading.bands is not None:
        if max(reading.bands) > contents.channels:
            last = max(reading.bands)
            hint = _say_axis(contents, lambda length: length >= last)
            raise UnusableImageError(f"{found}, and band {last} is asked for" + (f": {hint}" if hint else ""))
    elif contents.channels != reading.num_channels and not _is_repeated(contents, reading):
        hint = _say_axis(contents, lambda length: length == reading.num_channels)
        advice = f"say --channels {contents.channels}, or choose some by --bands"
        advice = f"{hint}, else --channels {contents.channels}" if hint else advice
        raise UnusableImageError(f"{found} where {reading.num_channels} are wanted: {advice}")


def _say_axis(contents: Contents, fits: Callable[[int], bool]) -> str:
    """How an axis whose places are images, and of the length wanted, becomes channels; empty where none is so long."""
    letter = next((letter for letter, length in contents.image_axes if fits(length)), None)
    return "" if letter is None else f"say --tiff-axes {letter} if {letter} holds the channels"


def _is_repeated(contents: Contents, reading: Reading) -> bool:
    """Grey as a picture of three equal channels."""
    return contents.channels == 1 and reading.num_channels == 3 and not reading.is_as_stored


def choose_channels(numbers: np.ndarray, reading: Reading) -> np.ndarray:
    """The channels wanted of an image [h, w, C] that `check_contents` has let through.

    Example:
        >>> choose_channels(np.array([[[7, 8, 9]]]), make_reading(None, bands=(3, 1))).tolist()
        [[[9, 7]]]
    """
    if reading.bands is not None:
        return numbers[..., [band - 1 for band in reading.bands]]
    return np.repeat(numbers, reading.num_channels // numbers.shape[-1], axis=-1)


def output_dtype(stored: str) -> str:
    """What numbers are used in, where a folder has no others: uint8 and uint16 as they are, all others as float32.

    Example:
        >>> output_dtype("uint16"), output_dtype("int16")
        ('uint16', 'float32')
    """
    return stored if stored in ("uint8", "uint16") else "float32"
