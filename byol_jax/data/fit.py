"""How a picture of any shape gets the one shape that a batch has: covering it, contained in it, or stretched to it.

`cover`    resized until it covers the shape, the rest cut off at both sides: the centre of a wide picture.
`contain`  resized until it fits into the shape, the rest black: all of it, smaller.
`none`     nothing is cut off or added: each side is resized by itself, to a shape that the folder's pictures have in
           common. Where all are of one shape nothing is distorted.

Which pixels a file has is the work of readers/. Resizing is Pillow's, antialiased, bilinear, in one step.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from byol_jax.errors import ConfigurationError
from byol_jax.image_size import image_sides

__all__ = [
    "FITS",
    "Fit",
    "check_fit",
    "common_shape",
    "contained_box",
    "evaluation_crop",
    "load_size",
    "resize_plane",
]

LARGEST = 4
"""`common_shape`'s area is at most this many times that of the shape to cover: a folder of 10:1 panoramas would take
ten times the memory and the time otherwise."""


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


def evaluation_crop(image_size: int | tuple[int, int], fit: str, shape: tuple[int, int, int]) -> tuple[int, int] | None:
    """The centre crop of an evaluation: 7/8 of what covers the view; of a contained picture nothing is cut off."""
    if fit == "contain":
        return None
    (height, width), loaded = image_sides(image_size), load_size(image_size)
    scale = min(shape[0] / loaded[0], shape[1] / loaded[1])  # 1 but for a long shape, which is smaller
    return round(height * scale), round(width * scale)


def common_shape(sizes: Sequence[tuple[int, int]], size: tuple[int, int]) -> tuple[int, int]:
    """The smallest shape that covers `size` and has the pictures' mean width / height (geometric).

        width / height = exp(mean of log(wᵢ / hᵢ))

    Its area is at most 4 times that of `size`; a longer shape is smaller than `size` in one side.

    Args:
        sizes: (height, width) of each picture; none of them: `size` itself.
        size: (height, width).

    Example:
        >>> common_shape([(300, 400), (600, 800)], (256, 256)), common_shape([(3, 4), (4, 3)], (256, 256))
        ((256, 341), (256, 256))
    """
    if not sizes:
        return size
    aspect = math.exp(math.fsum(math.log(width / height) for height, width in sizes) / len(sizes))
    height, width = max(size[0], size[1] / aspect), max(size[1], size[0] * aspect)
    shrink = min(1.0, math.sqrt(LARGEST * size[0] * size[1] / (height * width)))
    return max(1, round(height * shrink)), max(1, round(width * shrink))


def _cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Only the part that stays is resized: a 1 × 10000 image would otherwise grow to millions of columns first."""
    scale = _covering(image.width, image.height, size)
    width, height = min(size[1] / scale, image.width), min(size[0] / scale, image.height)
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return _resize(image, size, box=(left, top, left + width, top + height))


def contained_box(width: int, height: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where `contain` puts a picture in `size`: (left, top, width, height).

    Example:
        >>> contained_box(40, 20, (10, 10))
        (0, 2, 10, 5)
    """
    scale = _fitting(width, height, size)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    return (size[1] - inner[0]) // 2, (size[0] - inner[1]) // 2, *inner


def _contain(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    left, top, width, height = contained_box(image.width, image.height, size)
    whole = Image.new(image.mode, (size[1], size[0]))  # black
    whole.paste(_resize(image, (height, width)), (left, top))
    return whole


def _resize(
    image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    return image.resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)


def _covering(width: int, height: int, size: tuple[int, int]) -> float:
    return max(size[0] / height, size[1] / width)


def _fitting(width: int, height: int, size: tuple[int, int]) -> float:
    return min(size[0] / height, size[1] / width)


class Fit(NamedTuple):
    """`resize(picture, size)` gives the picture in `size`; `scale(width, height, size)` is its largest factor."""

    resize: Callable[[Image.Image, tuple[int, int]], Image.Image]
    scale: Callable[[int, int, tuple[int, int]], float]


FITS = {"cover": Fit(_cover, _covering), "contain": Fit(_contain, _fitting), "none": Fit(_resize, _covering)}
"""By the words that a person writes; size = (height, width) everywhere."""


def check_fit(fit: str) -> None:
    """Raises ConfigurationError for a word that isn't one of `FITS`."""
    if fit not in FITS:
        raise ConfigurationError(f"fit {fit!r}: give one of {', '.join(FITS)}")


def resize_plane(values: np.ndarray, resize: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    """One channel [h, w] resized in its own depth: 8 bits as they are, 16 as floats, which are rounded once.

    Args:
        values: uint8, uint16 or float32.
        resize: of a picture of Pillow's, mode L or F.

    Example:
        >>> resize_plane(np.full((4, 4), 1000, np.uint16), lambda plane: plane.resize((2, 3))).tolist()
        [[1000, 1000], [1000, 1000], [1000, 1000]]
    """
    plane = Image.fromarray(np.ascontiguousarray(values) if values.dtype == np.uint8 else values.astype(np.float32))
    found = np.asarray(resize(plane))
    return np.rint(found).astype(values.dtype) if values.dtype == np.uint16 else found
