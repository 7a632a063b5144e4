"""TIFFs as measurements, read by tifffile: any channels, planar or not, stacks, OME-TIFF, hyperstacks, GeoTIFF.

tifffile says which axes a file has, as letters: Y and X are an image's; of the others those that are asked for become
channels (C, channels, and S, samples, unless somebody says otherwise), and each place along the rest (T, time; Z,
depth; I, pages; Q, unsaid, and so on) is an image. The numbers are those that the file holds, but that grey
stored as "white is zero" is turned round and a page's orientation undone, as for pictures.

tifffile goes on where a file is cut short or states more than it has, so that is looked for here, and refused.
"""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from byol_jax.data.readers import tiff_tags
from byol_jax.data.readers.reading import CHANNEL_AXES, Contents, Opened, Reading
from byol_jax.data.unusable import UnusableImageError

__all__ = ["open_tiff"]

_WHITE_IS_ZERO, _YCBCR, _JPEG = 0, 6, 7
_CONVERTED = {3: "a palette", 4: "a mask", 8: "CIE Lab", 9: "ICC Lab", 10: "ITU Lab"}
"""Photometric interpretations whose numbers are no intensities."""

_ORIENTATION, _NODATA = 274, 42113
_UPRIGHT = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image),
}
"""TIFF 6.0's orientation to what undoes it, of [h, w, C]; 1 is upright."""


def open_tiff(path: Path, reading: Reading) -> Opened:
    """A TIFF file; its pages are found here, and decoded when an image is read.

    Raises:
        UnusableImageError: cut short, or something that can't be read rightly.
    """
    import tifffile

    with path.open("rb") as raw:
        pages = tiff_tags.pages(raw)
    if not pages or pages[-1].is_cut:
        raise UnusableImageError(tiff_tags.complaint(pages) or "a TIFF whose tags can't be read: save it again")
    file = tifffile.TiffFile(path)
    try:
        stacks = [_Stack(series, reading.tiff_axes or CHANNEL_AXES) for series in file.series if _is_whole(series)]
        if not stacks:
            raise UnusableImageError("a TIFF of thumbnails and masks alone")
        kinds = sorted({(stack.channels, stack.dtype) for stack in stacks})
        if len(kinds) > 1:
            found = " and ".join(f"{channels} x {dtype}" for channels, dtype in kinds)
            raise UnusableImageError(f"a TIFF of unlike parts, {found}: save each by itself")
        there = sum(stack.planes for stack in stacks)
        if (stated := pages[0].pictures) > there:
            raise UnusableImageError(f"a TIFF that states {stated} pictures, of which {there} are found: cut short?")
        nodata = _nodata(stacks[0].keyframe)
        if nodata is not None and stacks[0].is_inverted:  # its numbers are turned round, this one too
            nodata = np.iinfo(stacks[0].keyframe.dtype).max - nodata
    except BaseException:
        file.close()
        raise
    said = "; ".join(dict.fromkeys(stack.said for stack in stacks if stack.said)) or None
    sizes = tuple(itertools.chain.from_iterable([stack.size] * stack.images for stack in stacks))
    starts = np.cumsum([0, *(stack.images for stack in stacks)])

    def read(index: int) -> np.ndarray:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return stacks[number].read(index - int(starts[number]))

    return Opened(Contents(sizes, *kinds[0], said, stacks[0].image_axes), read, file.close, nodata)


def _is_whole(series: Any) -> bool:
    """Neither a thumbnail nor a mask nor empty."""
    return not (series.keyframe.is_reduced or series.keyframe.is_mask) and math.prod(series.shape) > 0


def _nodata(page: Any) -> float | None:
    """What GDAL writes as text; tifffile's own attribute is 0 where there is none."""
    text = page.tags.valueof(_NODATA)
    try:
        return None if text is None else float(str(text).strip(" \0").replace(",", "."))
    except ValueError:
        raise UnusableImageError(f"a GeoTIFF whose nodata is {str(text)[:40]!r}, no number") from None


class _Stack:
    """A series of like pages: `images` images of `size`, with `channels` channels of `dtype` each.

    Attributes:
        planes: pictures of one channel in all. said: what became of its axes; empty for a plain picture.
    """

    def __init__(self, series: Any, channel_axes: str) -> None:
        self.series, self.keyframe = series, series.keyframe
        _check_numbers(self.keyframe)
        axes, shape = series.axes, series.shape
        if series.is_multifile:
            raise UnusableImageError("an OME-TIFF whose pages lie in several files: save it as one")
        if axes.count("Y") != 1 or axes.count("X") != 1 or axes.index("Y") > axes.index("X"):
            raise UnusableImageError(f"a TIFF of axes {axes}, not images of rows (Y) and columns (X)")
        self.outer = _count_outer(axes, shape, self.keyframe.shape)
        others = [place for place, letter in enumerate(axes) if letter not in "YX"]
        chosen = [place for place in others if axes[place] in channel_axes]
        self.channel_places = sorted(chosen, key=lambda place: channel_axes.index(axes[place]))
        self.image_places = [place for place in others if place not in chosen]
        self.axes, self.shape = axes, shape
        self.size = (shape[axes.index("Y")], shape[axes.index("X")])
        self.channels = math.prod(shape[place] for place in self.channel_places)
        self.images = math.prod(shape[place] for place in self.image_places)
        self.planes = math.prod(shape[place] for place in others)
        self.dtype = self.keyframe.dtype.name
        turned = self.orientation in (5, 6, 7, 8)
        self.size = self.size[::-1] if turned else self.size
        self.said = self._say(others)

    @property
    def orientation(self) -> int:
        value = self.keyframe.tags.valueof(_ORIENTATION)
        return value if isinstance(value, int) else 1

    @property
    def is_inverted(self) -> bool:
        return self.keyframe.photometric == _WHITE_IS_ZERO

    @property
    def image_axes(self) -> tuple[tuple[str, int], ...]:
        """(letter, length) of the axes along which each place is an image; those of one letter count together."""
        letters = dict.fromkeys(self.axes[place] for place in self.image_places if self.shape[place] > 1)
        return tuple(
            (letter, math.prod(self.shape[place] for place in self.image_places if self.axes[place] == letter))
            for letter in letters
        )

    def _say(self, others: list[int]) -> str:
        long = [place for place in range(len(self.axes)) if self.shape[place] > 1 or self.axes[place] in "YX"]
        told = [place for place in others if place in long and (self.axes[place] != "S" or place in self.image_places)]
        if not told:
            return ""  # samples of a pixel are channels, and nothing else is there
        axes = "".join(self.axes[place] for place in long)
        sides = " x ".join(str(self.shape[place]) for place in long)
        letters = {
            what: "".join(self.axes[place] for place in places if self.shape[place] > 1)
            for what, places in (("channel", self.channel_places), ("image", self.image_places))
        }
        counts = {"channel": self.channels, "image": self.images}
        parts = [f"{letters[what]}: {count} {what}s" for what, count in counts.items() if letters[what]]
        return f"axes {axes}, {sides}; {', '.join(parts)}"

    def read(self, index: int) -> np.ndarray:
        """Image number `index` as it is stored, upright, [h, w, C]; each page is decoded once."""
        at = self._at(index, self.image_places)
        result = np.empty(0)
        number, page = -1, np.empty(0)
        for channel in range(self.channels):
            where = at | self._at(channel, self.channel_places)
            wanted = 0
            for place in range(self.outer):
                wanted = wanted * self.shape[place] + where[place]
            if wanted != number:
                number, page = wanted, self._page(wanted)
            inside = tuple(
                slice(None) if self.axes[p] in "YX" else where[p] for p in range(self.outer, len(self.shape))
            )
            plane = page[inside]  # [h, w]
            if channel == 0:
                result = np.empty((*plane.shape, self.channels), page.dtype)
            result[..., channel] = plane
        if self.is_inverted:
            result = np.iinfo(self.keyframe.dtype).max - result
        return np.ascontiguousarray(_UPRIGHT.get(self.orientation, lambda image: image)(result))

    def _at(self, number: int, places: list[int]) -> dict[int, int]:
        """Where number `number` lies along these axes, the last of which goes fastest."""
        where = {}
        for place in reversed(places):
            number, where[place] = divmod(number, self.shape[place])
        return where

    def _page(self, number: int) -> np.ndarray:
        """One page's numbers, in the shape of the axes that lie inside it."""
        shape = self.shape[self.outer :]
        if self.series.is_truncated:  # one behind another, with tags for the first alone
            if self.series.dataoffset is None:
                raise UnusableImageError("a TIFF of several pictures in one page that don't lie one behind another")
            kind = self.series.parent.byteorder + self.keyframe.dtype.char
            place = self.series.dataoffset + number * math.prod(shape) * self.keyframe.dtype.itemsize
            return self.series.parent.filehandle.read_array(kind, math.prod(shape), offset=place).reshape(shape)
        page = self.series[number]
        if page is None:
            raise UnusableImageError(f"page {number + 1} is named in its metadata and isn't there")
        page = page.aspage()  # with its own tags: a frame is decoded by those of the first
        if page.hash != self.keyframe.hash:
            raise UnusableImageError(f"page {number + 1} differs from the first in shape, numbers or compression")
        _check_extent(page)
        try:
            return page.asarray(maxworkers=1).reshape(shape)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            compression = getattr(page.compression, "name", page.compression)
            raise UnusableImageError(f'{compression} needs imagecodecs: pip install "byol-jax[tiff]"') from error


def _count_outer(axes: str, shape: tuple[int, ...], page: tuple[int, ...]) -> int:
    """How many of the first axes lie outside of a page: rows, columns and perhaps more lie inside."""
    for outer in range(axes.index("Y"), -1, -1):
        if math.prod(shape[outer:]) == math.prod(page):
            return outer
    raise UnusableImageError(f"a TIFF of axes {axes} and shape {shape}, whose pages are {page}")


def _check_extent(page: Any) -> None:
    """Refuses pixels that the file doesn't reach to, which tifffile may leave out."""
    end = page.parent.filehandle.size
    if any(place + size > end for place, size in zip(page.dataoffsets, page.databytecounts, strict=False)):
        raise UnusableImageError("a TIFF whose pixels lie beyond its end: cut short")


def _check_numbers(page: Any) -> None:
    """Refuses a page whose numbers mean something else than how much there is, or aren't whole bytes."""
    if page.dtype is None or not isinstance(page.bitspersample, int) or page.bitspersample != 8 * page.dtype.itemsize:
        bits = page.bitspersample if isinstance(page.bitspersample, int) else " and ".join(map(str, page.bitspersample))
        raise UnusableImageError(f"a TIFF of {bits}-bit numbers: give 8, 16 or 32 bits a number")
    if page.photometric in _CONVERTED:
        raise UnusableImageError(f"a TIFF of {_CONVERTED[page.photometric]}: convert it to RGB or grey")
    if page.photometric == _YCBCR and page.compression != _JPEG:
        raise UnusableImageError("a TIFF of YCbCr without JPEG compression: convert it to RGB")
    if page.photometric == _WHITE_IS_ZERO and page.dtype.kind != "u":
        raise UnusableImageError(f"a TIFF of {page.dtype.name} in which white is zero: turn its numbers round")
