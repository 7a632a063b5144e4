"""What a TIFF says it holds: the tags of its pages, and what Pillow would make of it without a word.

Pillow (13.0) decodes the first page alone, leaves out samples that it has no mode for, takes signed bytes for unsigned
ones, and reads noise from some planar files. So the tags are judged before the pixels are trusted. Nothing is decoded
here. Numbers are those of TIFF 6.0 and BigTIFF.
"""

import contextlib
import itertools
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from PIL.TiffImagePlugin import COMPRESSION_INFO, OPEN_INFO

__all__ = ["Page", "complaint", "description", "pages", "unread"]

_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA, _FORMAT = 254, 258, 259, 262, 277, 284, 338, 339
_TAGS = (_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA, _FORMAT)

_NAMED = {34712: "JPEG 2000", 34887: "LERC", 50000: "zstd", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"}
_COMMON = (1, 5, 7, 8, 32773, 32946)
"""Compressions: those that a message names, and those that it needn't speak of."""

_UNITS = {1: "B", 3: "H", 4: "I", 16: "Q"}
"""Types of tags that hold whole numbers."""

_MOST_VALUES = 64
"""Values of a tag that are read: as many samples as a pixel may have here. More are no picture."""

_COLOUR_SAMPLES = {2: 3, 5: 4, 6: 3, 8: 3, 9: 3, 10: 3}
"""Photometric interpretation to the samples that it needs: RGB, CMYK, YCbCr, three kinds of Lab; others need 1."""

_KINDS = {1: "uint", 2: "int", 3: "float"}
_ALPHA = (1, 2)
"""Extra samples that are transparency, premultiplied or not; 0 isn't said to be anything."""

_MOST_PAGES, _MOST_ENTRIES = 1000, 1000
"""Pages of a file, and tags of a page, that are looked at; a damaged file may claim any number."""


class Page(NamedTuple):
    """One image of a file: `tags[number]` are the numbers of those tags that it has.

    Attributes:
        order: the file's first bytes, b"II" for little-endian or b"MM".
        is_big: whether it is a BigTIFF.
    """

    tags: dict[int, tuple[int, ...]]
    order: bytes = b"II"
    is_big: bool = False

    def first(self, tag: int, default: int) -> int:
        return (self.tags.get(tag) or (default,))[0]

    @property
    def is_reduced(self) -> bool:
        """A thumbnail, a smaller copy, or a mask of another page."""
        return bool(self.first(_SUBFILE, 0) & 5)


def pages(file: BinaryIO) -> list[Page]:
    """All pages of a TIFF, thumbnails and masks included, as far as they can be read; empty for any other file.

    The file's position is 0 afterwards.
    """
    file.seek(0)
    found = []
    with contextlib.suppress(struct.error, KeyError, OverflowError, OSError):  # cut short: what was read before counts
        for page in itertools.islice(_pages(file), _MOST_PAGES):
            found.append(page)
    file.seek(0)
    return found


def _pages(file: BinaryIO) -> Iterator[Page]:
    prefix = file.read(2)
    order = {b"II": "<", b"MM": ">"}[prefix]
    (version,) = _numbers(file, order + "H")
    count_unit, unit = {42: ("H", "I"), 43: ("Q", "Q")}[version]
    size = struct.calcsize(unit)
    if version == 43:
        file.read(4)  # BigTIFF says here how long an offset is: always 8 bytes
    (offset,) = _numbers(file, order + unit)
    seen = set()
    while offset and offset not in seen:
        seen.add(offset)
        file.seek(offset)
        (count,) = _numbers(file, order + count_unit)
        if count > _MOST_ENTRIES:
            return
        width = 4 + 2 * size  # of an entry: tag, type, number of values, and the values or where they are
        table = file.read(count * width)
        (offset,) = _numbers(file, order + unit)
        entries = (table[start : start + width] for start in range(0, count * width, width))
        tags = (_entry(file, entry, order, unit) for entry in entries)
        yield Page({tag: values for tag, values in tags if values}, prefix, version == 43)


def _numbers(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def _entry(file: BinaryIO, entry: bytes, order: str, unit: str) -> tuple[int, tuple[int, ...]]:
    """A tag's number and values; no values where it isn't one of `_TAGS`, or holds no whole numbers."""
    head = f"{order}HH{unit}"
    tag, kind, count = struct.unpack(head, entry[: struct.calcsize(head)])
    if tag not in _TAGS or kind not in _UNITS:
        return tag, ()
    form, content = f"{order}{min(count, _MOST_VALUES)}{_UNITS[kind]}", entry[struct.calcsize(head) :]
    if struct.calcsize(form) <= len(content):
        return tag, struct.unpack(form, content[: struct.calcsize(form)])
    (place,) = struct.unpack(order + unit, content)
    file.seek(place)
    return tag, _numbers(file, form)


def description(page: Page) -> str:
    """A pixel's samples for a message: "uint8", "5 x uint16", "3 x float32".

    Example:
        >>> description(Page({258: (16, 16), 277: (2,)}))
        '2 x uint16'
    """
    samples = page.first(_SAMPLES, 1)
    bits, kinds = set(page.tags.get(_BITS, (1,))), set(page.tags.get(_FORMAT, (1,)))
    kind = _KINDS.get(kinds.pop(), "bits") if len(kinds) == 1 else "bits"
    what = f"{kind}{bits.pop()}" if len(bits) == 1 else f"{' and '.join(map(str, sorted(bits)))} bits"
    return f"{samples} x {what}" if samples > 1 else what


def unread(page: Page) -> str | None:
    """What to say of a file that Pillow couldn't open; None where Pillow knows its layout: then the file is damaged."""
    bits, compression = page.tags.get(_BITS, (1,)), page.first(_COMPRESSION, 1)
    depths = bits * page.first(_SAMPLES, 1) if len(bits) == 1 else bits
    layout = (page.order, page.first(_PHOTOMETRIC, 0), (page.first(_FORMAT, 1),), depths)
    known = any(layout == (*key[:3], key[4]) for key in OPEN_INFO)  # key[3]: order of bits, key[5]: extra samples
    if page.is_big and page.order == b"MM":  # taken for a classic TIFF by Pillow
        return f"a big-endian BigTIFF of {description(page)}, which Pillow doesn't read: convert it to .npy"
    if known and compression in COMPRESSION_INFO:
        return None
    how = "" if compression in _COMMON else f", compressed by {_NAMED.get(compression, f'method {compression}')}"
    return f"a TIFF of {description(page)}{how}, which Pillow doesn't read: convert it to .npy"


def complaint(found: list[Page]) -> str | None:
    """What Pillow would get wrong or leave out in a file of these pages; None where it takes all of them, or none.

    Example:
        >>> complaint([Page({258: (8,)}), Page({258: (8,)})])
        'a TIFF of 2 pages, of which only the first would be used: save each by itself, or as an array (.npy)'
    """
    whole = [page for page in found if not page.is_reduced]
    remedy = "save each by itself, or as an array (.npy)"
    if len(whole) > 1:
        count = f"{len(found)} or more" if len(found) == _MOST_PAGES else f"{len(whole)}"
        return f"a TIFF of {count} pages, of which only the first would be used: {remedy}"
    if whole and found[0].is_reduced:
        return f"a TIFF whose first page, a thumbnail or a mask, is all that would be used: {remedy}"
    return _complaint(found[0]) if found else None


def _complaint(page: Page) -> str | None:
    """`complaint` of the page that Pillow would decode."""
    what, samples, bits = description(page), page.first(_SAMPLES, 1), set(page.tags.get(_BITS, (1,)))
    colours = _COLOUR_SAMPLES.get(page.first(_PHOTOMETRIC, 1), 1)
    extra = page.tags.get(_EXTRA, ())
    if set(page.tags.get(_FORMAT, (1,))) != {1} or max(bits) > 16:
        return f"a TIFF of {what}, whose range isn't known: convert it to 8 or 16 bits, or to .npy"
    if samples > colours and (samples > colours + 1 or (extra or (0,))[0] not in _ALPHA):
        lost = "sample isn't" if samples == colours + 1 else "samples aren't"
        return (
            f"a TIFF of {what}, whose last {lost} said to be colour or transparency and would be left out: "
            "convert it to .npy"
        )
    odd_alpha = samples > colours and (colours == 1 or extra[0] == 1)  # of grey, or premultiplied
    if page.first(_PLANAR, 1) == 2 and samples > 1 and (bits != {8} or odd_alpha):
        return f"a planar TIFF of {what}, which Pillow misreads: save it interleaved, or convert it to .npy"
    return None
