"""What a TIFF says it holds: the tags of its pages, and what Pillow would make of it without a word.

Pillow (13.0) decodes the first page alone, and of a page that holds several pictures the first; it leaves out samples
that it has no mode for, takes signed bytes for unsigned ones, and reads noise from some planar files. So the tags are
judged before the pixels are trusted. Nothing is decoded here. Numbers are those of TIFF 6.0 and BigTIFF.

Several pictures in one page: a volume (the depth tags of SGI), and those that lie behind the first, of which only a
text or a private tag tells: ImageJ's stacks beyond 4 GB, tifffile's truncated series, MetaMorph's stacks.
"""

import itertools
import math
import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from PIL.TiffImagePlugin import COMPRESSION_INFO, OPEN_INFO

__all__ = ["Page", "complaint", "description", "pages", "unread"]

_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA, _FORMAT = 254, 258, 259, 262, 277, 284, 338, 339
_WIDTH, _HEIGHT, _TEXT, _PLACES, _DEPTH, _TILE_DEPTH, _PLANES = 256, 257, 270, 273, 32997, 32998, 33629
_TAGS = (_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA, _FORMAT)
_TAGS += (_WIDTH, _HEIGHT, _PLACES, _DEPTH, _TILE_DEPTH)

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

_MOST_TEXT = 4096
"""Bytes of a page's description that are read: a series is stated at its start."""

_IMAGEJ = re.compile(rb"ImageJ=.*?^images=(\d{1,9})\s*$", re.DOTALL | re.MULTILINE)
_SHAPED = re.compile(rb'(?:\{.*?"shape": ?\[|shape=\()([\d, ]{1,200})[\])]', re.DOTALL)
"""Texts that state a series: ImageJ's images=5, tifffile's {"shape": [5, 24, 40]}, earlier shape=(5, 24, 40)."""


class Page(NamedTuple):
    """One image of a file: `tags[number]` are the numbers of those tags that it has.

    Attributes:
        order: the file's first bytes, b"II" for little-endian or b"MM".
        is_big: whether it is a BigTIFF.
        pictures: how many it holds, as far as texts and private tags tell and the file has room for.
        is_cut: whether it names a page after it that can't be read.
    """

    tags: dict[int, tuple[int, ...]]
    order: bytes = b"II"
    is_big: bool = False
    pictures: int = 1
    is_cut: bool = False

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
    try:
        for page in itertools.islice(_pages(file), _MOST_PAGES):
            found.append(page)
    except (struct.error, KeyError, OverflowError, OSError):  # cut short, or no TIFF: what was read before counts
        found[-1:] = [page._replace(is_cut=True) for page in found[-1:]]
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
            raise OverflowError(f"{count} tags")
        width = 4 + 2 * size  # of an entry: tag, type, number of values, and the values or where they are
        table = file.read(count * width)
        (offset,) = _numbers(file, order + unit)
        entries = [table[start : start + width] for start in range(0, count * width, width)]
        tags = {tag: values for tag, values in (_entry(file, entry, order, unit) for entry in entries) if values}
        page = Page(tags, prefix, version == 43)
        yield page._replace(pictures=_count_pictures(file, page, entries, order, unit))


def _count_pictures(file: BinaryIO, page: Page, entries: list[bytes], order: str, unit: str) -> int:
    """How many pictures lie one behind the other where the page says that its own is."""
    claimed, head = [1], f"{order}HH{unit}"
    for entry in entries:
        tag, _, count = struct.unpack_from(head, entry)
        if tag == _PLANES:  # two numbers for each
            claimed.append(count)
        elif tag == _TEXT:
            claimed.append(_count_in_text(_bytes(file, entry, order, unit), page))
    room = file.seek(0, os.SEEK_END) - page.first(_PLACES, 0)
    is_plain = page.first(_COMPRESSION, 1) == 1  # a compressed page ends where its last strip does
    return max(claimed) if is_plain and 2 * _bytes_in_picture(page) <= room else 1  # else one out of a series


def _count_in_text(text: bytes, page: Page) -> int:
    found = _IMAGEJ.match(text)
    if found:
        return int(found[1])
    found = _SHAPED.match(text)
    shape = [int(side) for side in found[1].split(b",") if side.strip()] if found else []
    values = page.first(_WIDTH, 0) * page.first(_HEIGHT, 0) * page.first(_SAMPLES, 1)
    return math.prod(shape) // values if shape and values else 1


def _bytes_in_picture(page: Page) -> int:
    """Of its pixels, as they lie in a file uncompressed, rows padded to whole bytes or not: the lesser."""
    bits = page.tags.get(_BITS, (1,))
    in_pixel = sum(bits) if len(bits) == page.first(_SAMPLES, 1) else bits[0] * page.first(_SAMPLES, 1)
    return page.first(_WIDTH, 0) * page.first(_HEIGHT, 0) * in_pixel // 8


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


def _bytes(file: BinaryIO, entry: bytes, order: str, unit: str) -> bytes:
    """The start of a text; nothing where the file doesn't hold it."""
    head = f"{order}HH{unit}"
    _, _, count = struct.unpack_from(head, entry)
    content = entry[struct.calcsize(head) :]
    if count <= len(content):
        return content[:count]
    file.seek(struct.unpack(order + unit, content)[0])
    return file.read(min(count, _MOST_TEXT))


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
    """What Pillow would get wrong or leave out in a TIFF of these pages; None where it takes all of them.

    Example:
        >>> complaint([Page({258: (8,)}), Page({258: (8,)})])
        'a TIFF of 2 pages, of which only the first would be used: save each by itself, or as an array (.npy)'
    """
    whole = [page for page in found if not page.is_reduced]
    remedy = "save each by itself, or as an array (.npy)"
    if not found:
        return "a TIFF whose tags can't be read: save it again"
    if len(whole) > 1:
        count = f"{len(found)} or more" if len(found) == _MOST_PAGES or found[-1].is_cut else f"{len(whole)}"
        return f"a TIFF of {count} pages, of which only the first would be used: {remedy}"
    if found[-1].is_cut:
        return "a TIFF that names more pages than can be read: it is cut short or damaged: save its pages again"
    if whole and found[0].is_reduced:
        return f"a TIFF whose first page, a thumbnail or a mask, is all that would be used: {remedy}"
    depth = max(found[0].first(_DEPTH, 1), found[0].first(_TILE_DEPTH, 1))
    if depth > 1:
        return f"a TIFF of a volume, {depth} pictures deep, of which only the first would be used: {remedy}"
    if found[0].pictures > 1:
        return f"a TIFF of {found[0].pictures} pictures in one page, of which only the first would be used: {remedy}"
    return _complaint(found[0])


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
