"""A picture that Pillow has opened and not decoded: what it is, how deep, and why it can't be used.

Refused are TIFFs of several pages or pictures, of more samples than colour and transparency need, of signed numbers,
and planar ones of 16 bits: Pillow reads them in part, or wrongly. Nothing here knows of folders or batches.
"""

import enum
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from PIL import ExifTags, Image, ImageFile

from byol_jax.data.member import Member
from byol_jax.data.readers import tiff_tags
from byol_jax.data.readers.foreign import LONGEST, describe_foreign
from byol_jax.data.unusable import UnreadLayoutError, UnusableImageError, open_without_waiting
from byol_jax.errors import one_line

__all__ = [
    "DRAWN",
    "Depth",
    "check_header",
    "count_colours",
    "depth_of",
    "is_turned",
    "open_image",
    "packing_of",
    "raw_mode",
    "uniform_warnings",
    "upright_size",
]

DRAWN = ("byol_jax", "views")
"""A text in the PNGs that we draw of other images, its keyword and itself: they are no images to train on."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""The only decoders that are tried; Pillow's others aren't needed, and the one for EPS runs a program. JPEG includes
MPO."""

_WHOLE_COLOURS = frozenset(f"{mode};16{order}" for mode in ("RGB", "RGBA") for order in "BLN")
"""Packings of 16-bit colour: big-endian, little-endian, the machine's own. Of each Pillow unpacks one byte of two."""

_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
"""Pillow's modes of one colour, beside those of 16 bits."""


class Depth(enum.IntEnum):
    """What a file holds a channel, as far as its pixels can be had: 8 bits count as false."""

    EIGHT = 0
    GREY = 1
    """12 or 16 bits of grey."""
    COLOUR = 2
    """16 bits of RGB, with alpha or without; or of any other channels, where they are taken as they are stored."""
    LOST = 3
    """16 bits, of which Pillow gives the upper 8: CMYK, LAB, grey with alpha, premultiplied colour."""
    MEASURED = 4
    """Numbers that float32 holds: signed, of 32 bits, or floating."""


def _open_bytes(path: Path | Member) -> BinaryIO:
    if not isinstance(path, Path):
        return path.open()
    file = open(path, "rb", opener=open_without_waiting)  # noqa: SIM115, closed by who asked for it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise UnusableImageError("not a regular file")


@contextmanager
def open_image(path: Path | Member) -> Iterator[ImageFile.ImageFile]:
    """An image whose header is read and whose pixels aren't; all that goes wrong inside is an `UnusableImageError`."""
    try:
        with _open_bytes(path) as file:
            if file.seek(0, os.SEEK_END) == 0:
                raise UnusableImageError("empty file")
            file.seek(0)
            try:
                with Image.open(file, formats=_FORMATS) as image:
                    _check_pixels(image)
                    yield image
            except UnusableImageError:
                raise
            except Exception as error:  # decoders raise whatever a damaged file leads them to
                raise _failure(error, file) from error
    except FileNotFoundError as error:
        raise UnusableImageError("no longer there") from error
    except OSError as error:
        raise UnusableImageError(error.strerror or one_line(error, at_most=200)) from error


def _check_pixels(image: Image.Image) -> None:
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise UnusableImageError(
            f"{image.width} × {image.height} pixels, above the limit of {Image.MAX_IMAGE_PIXELS} pixels"
        )


def _failure(error: Exception, file: BinaryIO) -> UnusableImageError:
    """Why an image couldn't be opened or decoded."""
    unidentified = isinstance(error, Image.UnidentifiedImageError)
    may_be_tiff = unidentified or not isinstance(error, OSError)  # others: cut short, a bad disk
    pages = tiff_tags.pages(file) if may_be_tiff else []
    layout = (tiff_tags.unread(pages[0]) or tiff_tags.complaint(pages)) if pages else None
    if layout is not None:
        return UnreadLayoutError(layout)
    if unidentified:
        file.seek(0)
        return UnusableImageError(describe_foreign(file.read(LONGEST)) or "not an image, or damaged at its start")
    return UnusableImageError(getattr(error, "strerror", None) or one_line(error, at_most=200))


@contextmanager
def uniform_warnings() -> Iterator[None]:
    """Silences Pillow's remarks on odd metadata, and turns its bomb warning into an error, whatever the filters are.

    So what is said of a file is always the same. Python's filters hold for the whole process: use this around the work
    before training, never in a thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def check_header(path: Path | Member) -> Depth:
    """Opens an image without decoding it; how many bits a channel it has.

    Raises:
        UnusableImageError: not a regular file, empty, not one of the known formats, too many pixels; or a TIFF that
            Pillow would read in part, or wrongly.
    """
    with open_image(path) as image:
        _check_layout(image)
        return depth_of(image)


def depth_of(image: ImageFile.ImageFile) -> Depth:
    """How many bits a channel an image has that isn't loaded yet."""
    if image.mode.startswith("I;16"):
        return Depth.GREY
    packings = {raw_mode(tile[3]) for tile in image.tile}
    if not any(packing.endswith((";16B", ";16L", ";16N")) for packing in packings):  # a BMP's BGR;16 is 5, 6 and 5 bits
        return Depth.EIGHT
    return Depth.COLOUR if packings <= _WHOLE_COLOURS else Depth.LOST


def raw_mode(arguments: Any) -> str:
    """How a decoder finds the pixels packed, in Pillow's words: "RGB;16B"."""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _check_layout(image: ImageFile.ImageFile) -> None:
    wrong = tiff_tags.complaint(tiff_tags.pages(_file(image))) if image.format == "TIFF" else None
    if wrong is not None:
        raise UnreadLayoutError(wrong)
    if image.format == "PNG" and image.info.get(DRAWN[0]) == DRAWN[1]:
        raise UnusableImageError("a picture that byol_jax drew of images and their views: not used")
    if packing_of(image) == "RGB;16B" and "transparency" in image.info:
        raise UnusableImageError(
            "a PNG of 16-bit colour in which one colour is transparent (tRNS), which Pillow misreads: save it with an"
            " alpha channel, or with 8 bits a channel"
        )


def _file(image: ImageFile.ImageFile) -> BinaryIO:
    return cast(BinaryIO, image.fp)


def upright_size(path: Path | Member) -> tuple[int, int]:
    """(height, width) of an image as `read_image` gives it with `size=None`; nothing is decoded.

    Raises:
        UnusableImageError: as `check_header`.
    """
    with open_image(path) as image:
        _check_layout(image)
        return (image.width, image.height) if is_turned(image) else (image.height, image.width)


def count_colours(path: Path | Member) -> int:
    """1 for a picture of grey, with transparency or without, and 3 for any other; nothing is decoded.

    Raises:
        UnusableImageError: as `check_header`.
    """
    with open_image(path) as image:
        _check_layout(image)
        return 1 if image.mode in _GREY_MODES or image.mode.startswith("I;16") else 3


def is_turned(image: ImageFile.ImageFile) -> bool:
    """Whether its sides change places when it is put upright, and haven't yet: Pillow does it for TIFFs by itself."""
    return image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)


def packing_of(image: ImageFile.ImageFile) -> str | None:
    """How a PNG that isn't loaded yet packs its pixels, in Pillow's words: "L;4", "I;16B", "RGB"; None for others."""
    return str(image.tile[0].args) if image.format == "PNG" and image.tile else None
