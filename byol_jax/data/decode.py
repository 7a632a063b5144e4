"""One image file to one array of pixels, or the reason why not. Nothing here knows of folders or batches.

What a file's pixels become, so that channels are never silently wrong:
- grey of 12 or 16 bits: scaled to 8 (rounded); 16-bit colour: its upper 8 bits (Pillow's decoder);
  32-bit and signed numbers are refused, since their range isn't known;
- transparency: composited on white, the page that such pictures are drawn for;
- palette, bilevel, CMYK, YCbCr, LAB: converted to RGB by Pillow; colour profiles are ignored;
- grey wanted: ITU-R 601 luminance of the above; animations: the first frame; EXIF orientation: applied.
"""

import math
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile

from byol_jax.errors import one_line
from byol_jax.image_size import image_sides

__all__ = [
    "EXTENSIONS",
    "UnusableImageError",
    "check_header",
    "load_size",
    "read_image",
    "uniform_warnings",
]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Names that end so, in either case, are taken for images."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""The only decoders that are tried; Pillow's others aren't needed, and the one for EPS runs a program. JPEG includes
MPO."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the transposition that undoes it (Exif 2.3, tag 0x0112; 1 is upright)."""

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF 6.0 tags

_STRIP = 2**20
"""Pixels converted at a time."""


class UnusableImageError(Exception):
    """This file gives no image; the text is the reason, one line without the file's name."""


def load_size(image_size: int | tuple[int, int]) -> tuple[int, int]:
    """The size at which a folder's images are kept: 8/7 of `image_size`, which is then the centre crop (224 of 256).

    Raises:
        ConfigurationError: an impossible image size.

    Example:
        >>> load_size(224)
        (256, 256)
    """
    height, width = image_sides(image_size)
    return round(height * 8 / 7), round(width * 8 / 7)


def _open_without_waiting(path: str, flags: int) -> int:
    """A named pipe would block until somebody writes; a regular file ignores the flag."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def _open_image(path: Path) -> Iterator[ImageFile.ImageFile]:
    """An image whose header is read and whose pixels aren't; all that goes wrong inside is an `UnusableImageError`."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UnusableImageError("not a regular file")
            if status.st_size == 0:
                raise UnusableImageError("empty file")
            with Image.open(file, formats=_FORMATS) as image:
                if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                    raise UnusableImageError(
                        f"{image.width} × {image.height} pixels, above the limit of {Image.MAX_IMAGE_PIXELS} pixels"
                    )
                yield image
    except UnusableImageError:
        raise
    except FileNotFoundError as error:
        raise UnusableImageError("no longer there") from error
    except Image.UnidentifiedImageError as error:
        raise UnusableImageError("not an image, or damaged at its start") from error
    except OSError as error:
        raise UnusableImageError(error.strerror or one_line(error, at_most=200)) from error
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise UnusableImageError(one_line(error, at_most=200)) from error


@contextmanager
def uniform_warnings() -> Iterator[None]:
    """Silences Pillow's remarks on odd metadata, and turns its bomb warning into an error, whatever the filters are.

    So the verdict on a file is always the same. Python's filters hold for the whole process: use this around the work
    before training, never in a thread.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def check_header(path: Path) -> None:
    """Opens an image without decoding it.

    Raises:
        UnusableImageError: not a regular file, empty, not one of the known formats, too many pixels.
    """
    with _open_image(path):
        pass


def _to_plain(image: ImageFile.ImageFile, mode: str) -> Image.Image:
    """The same picture with 8 bits a channel and no transparency, in `mode`, "L" or "RGB".

    Strip by strip: beside the decoded image and the result, copies take no more than a few MiB. (At the limit of 89
    million pixels whole copies took 1.35 GB for RGBA and 1.2 GB for 16 bits, strips 0.7 and 0.5.)
    """
    if image.mode in ("I", "F"):
        raise UnusableImageError("32-bit or signed numbers have no known range: save it with 8 or 16 bits a channel")
    if image.mode == mode and not image.has_transparency_data:
        return image
    tags = image.tag_v2 if image.format == "TIFF" else {}  # pyright: ignore[reportAttributeAccessIssue]
    highest = 2 ** (tags[_BITS_PER_SAMPLE][0] if _BITS_PER_SAMPLE in tags else 16) - 1
    # Photometric 0 is "white is zero"; Pillow inverts it for 8 bits and not for 16.
    inverted = tags.get(_PHOTOMETRIC) == 0
    plain = Image.new(mode, image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if strip.mode.startswith("I;16"):
            strip = _to_eight_bits(strip, highest, inverted)
        elif strip.has_transparency_data:
            strip = strip.convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        plain.paste(strip.convert(mode), (0, top))
    return plain


def _to_eight_bits(strip: Image.Image, highest: int, inverted: bool) -> Image.Image:
    """Numbers from 0 to `highest` as grey of 8 bits."""
    values = np.asarray(strip).astype(np.uint32)  # [h, W]
    scaled = ((values * 255 + highest // 2) // highest).astype(np.uint8)
    return Image.fromarray(255 - scaled if inverted else scaled)


def _scale(width: int, height: int, size: tuple[int, int]) -> float:
    """The factor that makes an image just cover `size` = (height, width)."""
    return max(size[0] / height, size[1] / width)


def _fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resized to cover `size` and cropped at the centre, in one antialiased step.

    Only the part that stays is resized: a 1 × 10000 image would otherwise grow to millions of columns first.
    """
    scale = _scale(image.width, image.height, size)
    width, height = min(size[1] / scale, image.width), min(size[0] / scale, image.height)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    box = (left, top, left + width, top + height)
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)


def read_image(path: Path, *, size: tuple[int, int] | None, num_channels: int) -> np.ndarray:
    """An image file as it is used everywhere: upright, 8 bits, 1 or 3 channels, `size`.

    A JPEG more than twice as large as needed is decoded at 1/2, 1/4 or 1/8 (libjpeg's scaled decoding), never below
    twice `size`, and resized from there: several times faster, a grey level or so away from the long way.

    Args:
        size: (height, width) to cover and crop to (bilinear, antialiased); None leaves the image's own.
        num_channels: 1 or 3.

    Returns:
        uint8 [h, w, num_channels].

    Raises:
        UnusableImageError: this file gives no image; the text says why.
    """
    with _open_image(path) as image:
        if size is not None:
            turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            scale = 2 * _scale(image.width, image.height, (size[1], size[0]) if turned else size)
            image.draft(None, (math.ceil(image.width * scale), math.ceil(image.height * scale)))
        image.load()
        # Asked after loading: Pillow turns a TIFF upright by itself there, and PNG may hold its EXIF after the pixels.
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        picture = _to_plain(image, "L" if num_channels == 1 else "RGB")
        if orientation in _UPRIGHT:
            picture = picture.transpose(_UPRIGHT[orientation])
        if size is not None and (picture.height, picture.width) != size:
            picture = _fit(picture, size)
        return np.array(picture, np.uint8).reshape(picture.height, picture.width, num_channels)  # [h, w, C]
