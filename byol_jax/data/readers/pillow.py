"""A picture that Pillow decodes, as one array of pixels, or the reason why not. Nothing here knows of folders.

What a file's pixels become, so that channels are never silently wrong:
- in uint16: grey of 16 bits and RGB of 16, transparent or not, keep their numbers; grey of 12 bits is scaled to 16;
  anything else is read in 8 bits and multiplied by 257, 16-bit CMYK, LAB, grey with alpha and premultiplied colour too;
- in uint8: grey of 12 or 16 bits is scaled to 8 (rounded); of 16-bit colour the upper 8 bits are taken;
- 32-bit and signed numbers are refused, since their range isn't known;
- TIFFs that Pillow would read in part, or wrongly, are refused when a folder is looked through (pillow_header.py);
- transparency: composited on white, the page that such pictures are drawn for; where a PNG of 16-bit colour makes one
  colour transparent, it is refused likewise: only the colours' upper bytes are known;
- palette, bilevel, CMYK, YCbCr, LAB: converted to RGB by Pillow; colour profiles are ignored;
- grey wanted: ITU-R 601 luminance of the above; animations: the first frame; EXIF orientation: applied.
"""

import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageFile

from byol_jax.data.fit import FITS
from byol_jax.data.member import Member
from byol_jax.data.readers.pillow_header import Depth, depth_of, is_turned, open_image, packing_of, raw_mode
from byol_jax.data.unusable import UnusableImageError
from byol_jax.errors import one_line

__all__ = ["ValueRange", "picture_pixels", "read_image", "value_range"]

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

_STEPS = {"L;2": 85, "L;4": 17, "L": 1}
"""Packings of grey in a PNG, and what one level of theirs is in 8 bits."""

_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}

_RED, _GREEN, _BLUE = 19595, 38470, 7471
"""ITU-R 601's weights of luminance as parts of 65,536, Pillow's."""

_STRIP = 2**20
"""Pixels converted at a time."""


class ValueRange(NamedTuple):
    """The numbers in an image of 16 bits a channel: `low` to `high`, of 0 to `highest`."""

    low: int
    high: int
    highest: int

    @property
    def levels(self) -> int:
        """How many of 256 levels are left when 0 to `highest` becomes 0 to 255."""
        return round(self.high * 255 / self.highest) - round(self.low * 255 / self.highest) + 1

    def loses(self, fewest: int) -> bool:
        """Whether numbers become one, and no more than `fewest` levels are left of them."""
        return self.levels <= fewest and self.high - self.low >= self.levels


def value_range(path: Path | Member) -> ValueRange:
    """The range of an image with 16 bits a channel; of colour, which Pillow gives in 8 bits, as far as these tell.

    Raises:
        UnusableImageError: as `read_image`.
    """
    with open_image(path) as image:
        highest = _highest(image)
        image.load()
        if image.mode.startswith("I;16"):
            values = np.asarray(image)  # [h, w]
            return ValueRange(int(values.min()), int(values.max()), highest)
        extrema = np.asarray(image.getextrema()).reshape(-1, 2)  # [C, 2], upper bytes
        return ValueRange(256 * int(extrema[:, 0].min()), 256 * int(extrema[:, 1].max()) + 255, highest)


def _highest(image: Image.Image) -> int:
    """The largest number that an image of more than 8 bits can hold: a TIFF may have 12."""
    bits = _tags(image).get(_BITS_PER_SAMPLE, (16,))[0]
    return 2**bits - 1


def _tags(image: Image.Image) -> Any:
    return image.tag_v2 if image.format == "TIFF" else {}  # pyright: ignore[reportAttributeAccessIssue]


def _scale_key(image: ImageFile.ImageFile, packing: str | None) -> None:
    """Of a PNG whose grey of few bits has a transparent level: that level in 8 bits, as its pixels are.

    Bits that pixels don't have are left out of the level, or the colour (PNG 3, 11.3.1).
    """
    key = image.info.get("transparency")
    if packing in _STEPS and isinstance(key, int):
        highest = 255 // _STEPS[packing]
        image.info["transparency"] = (key & highest) * _STEPS[packing]
    elif packing == "RGB" and isinstance(key, tuple):
        image.info["transparency"] = tuple(level & 255 for level in key)


def _to_plain(image: Image.Image, mode: str) -> Image.Image:
    """The same picture with 8 bits a channel and no transparency, in `mode`, "L" or "RGB".

    Strip by strip: beside the decoded image and the result, copies take no more than a few MiB. (At the limit of 89
    million pixels whole copies took 1.35 GB for RGBA and 1.2 GB for 16 bits, strips 0.7 and 0.5.)
    """
    if image.mode in ("I", "F"):
        raise UnusableImageError("32-bit or signed numbers have no known range: save it with 8 or 16 bits a channel")
    if image.mode == mode and not image.has_transparency_data:
        return image
    highest = _highest(image)
    # Photometric 0 is "white is zero"; Pillow inverts it for 8 bits and not for 16.
    inverted = _tags(image).get(_PHOTOMETRIC) == 0
    plain = Image.new(mode, image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        if strip.mode.startswith("I;16"):
            strip = _to_eight_bits(strip, highest, inverted, image.info.get("transparency"))
        elif strip.has_transparency_data:
            strip = (strip.convert("LA") if strip.mode == "La" else strip).convert("RGBA")
            strip = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        plain.paste(strip.convert(mode), (0, top))
    return plain


def _to_eight_bits(strip: Image.Image, highest: int, inverted: bool, clear: int | None) -> Image.Image:
    """Numbers from 0 to `highest` as grey of 8 bits; where they are `clear`, white."""
    values = np.asarray(strip).astype(np.uint32)  # [h, W]
    scaled = ((values * 255 + highest // 2) // highest).astype(np.uint8)
    scaled = 255 - scaled if inverted else scaled
    if clear is not None:
        scaled[values == clear] = 255
    return Image.fromarray(scaled)


def read_image(
    path: Path | Member, *, size: tuple[int, int] | None, num_channels: int, fit: str = "cover", dtype: Any = np.uint8
) -> np.ndarray:
    """An image file as it is used everywhere: upright, 8 or 16 bits, 1 or 3 channels, `size`.

    In uint16 a file that has 16 bits is resized in them, rounded once; one that has 8 is 257 times what uint8 gives.

    A JPEG more than twice as large as needed is decoded at 1/2, 1/4 or 1/8 (libjpeg's scaled decoding), never below
    twice `size`, and resized from there: several times faster, and not quite the same picture. libjpeg rounds the
    scaled size up, so that towards the right and the lower edge it lies up to half a pixel off. Of 16 of scikit-image's
    photographs, at 18 to 110 pixels, the mean difference was 0.4 grey levels of 255 (median; 3.7 at most), at single
    pixels on hard edges up to 53; of 500 black and white gratings the largest was 8 (median), 89 (one in 100), 113.

    Args:
        size: (height, width) to resize to (bilinear, antialiased); None leaves the image's own.
        num_channels: 1 or 3.
        fit: one of `FITS`: how an image of another shape gets `size`.
        dtype: uint8 or uint16.

    Returns:
        `dtype` [h, w, num_channels].

    Raises:
        UnusableImageError: this file gives no image; the text says why.
    """
    scale = FITS[fit].scale
    is_deep = np.dtype(dtype) == np.uint16
    with open_image(path) as image:
        if is_deep and (depth := depth_of(image)) in (Depth.GREY, Depth.COLOUR):
            return _read_deep(image, path, depth, size=size, num_channels=num_channels, fit=fit)
        if size is not None:
            twice = 2 * scale(image.width, image.height, (size[1], size[0]) if is_turned(image) else size)
            image.draft(None, (math.ceil(image.width * twice), math.ceil(image.height * twice)))
        packing = packing_of(image)
        image.load()
        _scale_key(image, packing)
        # Asked after loading: Pillow turns a TIFF upright by itself there, and PNG may hold its EXIF after the pixels.
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        pixels = _plain_pixels(image, _UPRIGHT.get(orientation or 1), size=size, num_channels=num_channels, fit=fit)
        return pixels.astype(np.uint16) * np.uint16(257) if is_deep else pixels


def picture_pixels(
    picture: Image.Image, *, size: tuple[int, int] | None, num_channels: int, fit: str = "cover"
) -> np.ndarray:
    """A picture of Pillow's as `read_image` gives a file in 8 bits; it isn't turned, whatever its EXIF says.

    Raises:
        UnusableImageError: it can't be decoded, or holds numbers without a known range.

    Example:
        >>> picture_pixels(Image.new("L", (8, 6), 7), size=None, num_channels=3).shape
        (6, 8, 3)
    """
    try:
        picture.load()
        return _plain_pixels(picture, None, size=size, num_channels=num_channels, fit=fit)
    except UnusableImageError:
        raise
    except Exception as error:  # decoders raise whatever a damaged file leads them to
        raise UnusableImageError(one_line(error, at_most=200)) from error


def _plain_pixels(
    image: Image.Image,
    upright: Image.Transpose | None,
    *,
    size: tuple[int, int] | None,
    num_channels: int,
    fit: str,
) -> np.ndarray:
    """uint8 [h, w, num_channels] of an image that is loaded."""
    picture = _to_plain(image, "L" if num_channels == 1 else "RGB")
    if upright is not None:
        picture = picture.transpose(upright)
    if size is not None and (picture.height, picture.width) != size:
        picture = FITS[fit].resize(picture, size)
    return np.array(picture, np.uint8).reshape(picture.height, picture.width, num_channels)  # [h, w, C]


def _read_deep(
    image: ImageFile.ImageFile,
    path: Path | Member,
    depth: Depth,
    *,
    size: tuple[int, int] | None,
    num_channels: int,
    fit: str,
) -> np.ndarray:
    """uint16 [h, w, num_channels] of an image that isn't loaded yet and has 16 bits a channel."""
    if depth == Depth.GREY:
        planes, orientation = _grey_planes(image)
    else:
        planes, orientation = _colour_planes(image, path)
        planes = [_luminance(planes)] if num_channels == 1 else planes
    pixels = []
    while planes:  # one after another: each takes 4 bytes a pixel while it is resized
        picture = Image.fromarray(planes.pop(0))  # I;16
        if orientation in _UPRIGHT:
            picture = picture.transpose(_UPRIGHT[orientation])
        if size is not None and (picture.height, picture.width) != size:
            picture = FITS[fit].resize(picture.convert("F"), size)
        values = np.asarray(picture)  # [h, w]
        pixels.append(values if values.dtype == np.uint16 else np.rint(values).astype(np.uint16))
    return np.stack(pixels * (num_channels // len(pixels)), axis=-1)  # [h, w, C]


def _grey_planes(image: ImageFile.ImageFile) -> tuple[list[np.ndarray], int | None]:
    """The numbers of a grey image, 0 to 65,535, as [[h, w] uint16], and its orientation; what is transparent is white.

    Rows at a time, as in `_to_plain`, where there is anything to compute.
    """
    image.load()
    highest, clear = _highest(image), image.info.get("transparency")
    inverted = _tags(image).get(_PHOTOMETRIC) == 0  # "white is zero", which Pillow leaves so at 16 bits
    values = np.array(image).astype(np.uint16, copy=False)  # [h, w], in the machine's order of bytes
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows) if highest < 65535 or inverted or clear is not None else ():
        strip = values[top : top + rows]
        is_clear = strip == clear if clear is not None else np.zeros((), bool)
        scaled = ((strip.astype(np.uint32) * 65535 + highest // 2) // highest).astype(np.uint16)
        values[top : top + rows] = np.where(is_clear, 65535, 65535 - scaled if inverted else scaled)
    return [values], image.getexif().get(ExifTags.Base.Orientation)


def _colour_planes(image: ImageFile.ImageFile, path: Path | Member) -> tuple[list[np.ndarray], int | None]:
    """Red, green and blue, [h, w] uint16 each, on white where there is alpha, and the image's orientation.

    Pillow has no mode for such colour and keeps the upper byte of each number. So the file is decoded once more as if
    its numbers lay in the other order of bytes: then the lower bytes are kept.
    """
    with open_image(path) as again:
        again.tile = [tile._replace(args=_with_other_order(tile.args)) for tile in again.tile]
        again.load()
        image.load()
        planes = [np.empty((image.height, image.width), np.uint16) for _ in range(3)]
        rows = max(1, _STRIP // image.width)
        for top in range(0, image.height, rows):
            part, box = slice(top, top + rows), (0, top, image.width, min(top + rows, image.height))
            upper, lower = (np.asarray(whole.crop(box)) for whole in (image, again))  # [rows, w, 3 or 4], bytes
            red, green, blue, *alpha = (
                np.left_shift(upper[..., channel], 8, dtype=np.uint16) | lower[..., channel]
                for channel in range(upper.shape[-1])
            )  # [rows, w] each
            for plane, numbers in zip(planes, (red, green, blue), strict=True):
                plane[part] = _on_white(numbers, alpha[0]) if alpha else numbers
        return planes, image.getexif().get(ExifTags.Base.Orientation)


def _on_white(numbers: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """A channel of 16 bits, composited on white; no sum reaches 2**32."""
    opaque = alpha.astype(np.uint32)
    return (numbers * opaque + 65535 * (65535 - opaque) + 32767) // 65535


def _with_other_order(arguments: Any) -> Any:
    """A decoder's arguments, in which "RGB;16B" becomes "RGB;16L"."""
    packing = raw_mode(arguments)
    swapped = packing[:-1] + _OTHER_ORDER[packing[-1]]
    return (swapped, *arguments[1:]) if isinstance(arguments, tuple) else swapped


def _luminance(planes: list[np.ndarray]) -> np.ndarray:
    """Grey [h, w] uint16 of red, green and blue, as Pillow computes it in 8 bits."""
    grey = np.empty_like(planes[0])
    rows = max(1, _STRIP // grey.shape[1])
    for top in range(0, len(grey), rows):
        red, green, blue = (plane[top : top + rows].astype(np.uint32) for plane in planes)
        grey[top : top + rows] = (red * _RED + green * _GREEN + blue * _BLUE + 32768) >> 16  # below 2**32
    return grey
