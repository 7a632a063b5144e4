"""Map-style datasets, torch's, Hugging Face's or anything with `len` and `[]`, as a `Dataset`.

An item is a Pillow picture, or an array [H, W, C], [C, H, W] or [H, W]; alone, first in a tuple (image, label, …), or
in a dict under "image", "images" or "pixel_values". Pictures get their shape as files do; arrays keep theirs, and must
have one. Items are asked for one at a time, since such an object may hold an open file whose place threads would move;
pictures are then resized in threads.

What an item holds is the object's affair. The order of the images is a function of the seed, and a resumed run goes on
with the same ones; where an item is another image each time it is asked for, that is said.
"""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from byol_jax.data.arrays import array_dataset, check_images, is_channels_first, to_numpy
from byol_jax.data.dataset import Dataset
from byol_jax.data.fit import evaluation_crop, load_size
from byol_jax.data.readers.pillow import picture_pixels
from byol_jax.data.taker import Taker
from byol_jax.data.unusable import UnusableImageError
from byol_jax.errors import ConfigurationError, DataError, one_line

__all__ = ["IMAGE_ENTRIES", "gives_images", "image_of", "item_dataset"]

IMAGE_ENTRIES = ("image", "images", "pixel_values")
"""What the images of a dict are called: by Hugging Face datasets, by many, by transformers."""

LOOKED_AT = 16
"""Items, evenly spaced, that are looked at before anything is trained on them."""

_COMPARED = 64
"""Times that these are asked for again, all together: a change that a transform makes one time in ten is missed by one
start in 850, 0.9 to the 64th."""

_TRIED = 8
"""Items that are asked for, of which one has to be an image."""


def gives_images(source: Any) -> bool:
    """Whether it has a length and gives an image for a number; a list of batches, or what gives whole batches, doesn't.

    Example:
        >>> gives_images([np.zeros((4, 8, 8, 3), np.uint8)])
        False
    """
    if isinstance(source, (str, bytes, list, tuple, Mapping)) or hasattr(source, "__array__"):
        return False
    if not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        return False
    try:
        tried = range(min(len(source), _TRIED))
    except Exception:  # an object of somebody else's may raise anything
        return False
    for index in tried:
        try:
            image = image_of(source[index], f"item #{index}")
        except Exception:
            continue
        return isinstance(image, Image.Image) or np.ndim(image) in (2, 3)
    return False


def image_of(item: Any, what: str) -> Any:
    """The image, or the images, of an item or a batch: itself, the first of a tuple or list, or a dict's entry.

    Raises:
        DataError: a dict without such an entry, or with several.

    Example:
        >>> image_of({"image": 1, "label": 2}, "item #0"), image_of((1, 2), "item #0")
        (1, 1)
    """
    item = item[0] if isinstance(item, (tuple, list)) and item else item
    if not isinstance(item, Mapping):
        return item
    named = [key for key in IMAGE_ENTRIES if key in item]
    if len(named) != 1:
        raise DataError(
            f"{what}: a dict of {', '.join(map(str, item))}: expected one entry that is named"
            f" {', '.join(IMAGE_ENTRIES[:-1])} or {IMAGE_ENTRIES[-1]}; or give the images alone, or (images, …)"
        )
    return item[named[0]]


def item_dataset(
    source: Any,
    *,
    image_size: int | tuple[int, int] | None,
    num_channels: int | None,
    with_labels: bool,
    fit: str,
    layout: str | None,
    workers: int,
    any_range: bool,
) -> Dataset:
    """A map-style dataset; `open_dataset` documents the arguments.

    Raises:
        DataError: items that differ in kind or shape, are no images, or have no labels where they are needed.
        ConfigurationError: `fit` or `layout` where the items have no use for it.
    """
    what, count = f"{type(source).__module__}.{type(source).__qualname__}", len(source)
    items = _Items(source)
    looked_at, failed = {}, ""
    for index in np.unique(np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int)).tolist():
        try:
            looked_at[index] = _loaded(items.image(index))
        except UnusableImageError as error:
            failed = f"item #{index}: {error}"
    if not looked_at:
        raise DataError(f"{what}: none of {min(count, LOOKED_AT)} items looked at can be used ({failed})")
    pictures = [isinstance(image, Image.Image) for image in looked_at.values()]
    if any(pictures) != all(pictures):
        raise DataError(f"{what}: some items are pictures and some are arrays: give one kind")
    options: dict[str, Any] = {"num_channels": num_channels, "fit": fit, "layout": layout}
    if all(pictures):
        convert, shape, facts = _pictures(list(looked_at.values()), what, image_size=image_size, **options)
    else:
        convert, shape, facts = _arrays(list(looked_at.values()), what, any_range=any_range, **options)
    pixels = {}
    for index, image in looked_at.items():
        with contextlib.suppress(UnusableImageError):  # what has no pixels is replaced when it is met
            pixels[index] = convert(image, "")
    changing = _changing(lambda index: convert(items.image(index), ""), pixels)
    labels, class_names = _labels(source, items, what) if with_labels else (None, None)
    taker = Taker(
        lambda index: convert(items.image(index), f"{what}: item #{index}"),
        np.arange(count),
        labels,
        shape=shape,
        dtype=facts["dtype"],
        workers=workers,
    )
    digest = hashlib.sha256(f"{what} {shape} {facts['dtype']}".encode())
    for image in pixels.values() if changing is None else ():
        digest.update(np.ascontiguousarray(image).view(np.uint8).data)
    deep = {"dtype": "uint16"} if facts["dtype"] == "uint16" else {}
    remarks = facts.pop("remarks")
    if changing is not None:
        remarks += (
            f"item #{changing} is another image each time it is asked for (random transforms?): the views are drawn"
            " from images that were changed before, and a resumed run isn't bit for bit what it would have been",
        )
    return Dataset(
        taker.take,
        count,
        shape,
        {"kind": "items", "count": count, "sha256": digest.hexdigest(), **deep},
        labels,
        class_names,
        list_skipped=lambda: tuple((f"item #{index}", reason) for index, reason in taker.failures().items()),
        remarks=remarks,
        **facts,
    )


def _loaded(image: Any) -> Any:
    """An image whose bytes are read: a picture's may be opened alone.

    Raises:
        UnusableImageError: they can't be decoded.
    """
    if isinstance(image, Image.Image):
        try:
            image.load()
        except Exception as error:  # decoders raise whatever a damaged file leads them to
            raise UnusableImageError(f"{type(error).__name__}: {one_line(error, at_most=200)}") from error
    return image


def _changing(read: Callable[[int], np.ndarray], pixels: Mapping[int, np.ndarray]) -> int | None:
    """The first item found that is another image when it is asked for again; None where there is none.

    Of such ones nothing may go into an identity: the next start has others.
    """
    for _ in range(-(-_COMPARED // max(len(pixels), 1))):
        for index, image in pixels.items():
            with contextlib.suppress(UnusableImageError):
                if not np.array_equal(read(index), image):
                    return index
    return None


class _Items:
    """Items by number, one at a time."""

    def __init__(self, source: Any) -> None:
        self.source, self.lock = source, threading.Lock()

    def item(self, index: int) -> Any:
        """Raises UnusableImageError where the object raises anything."""
        try:
            with self.lock:
                return self.source[index]
        except Exception as error:  # somebody else's code, of which a bad file is all that can be known
            raise UnusableImageError(f"{type(error).__name__}: {one_line(error, at_most=200)}") from error

    def image(self, index: int) -> Any:
        return image_of(self.item(index), f"item #{index}")


_Convert = Callable[[Any, str], np.ndarray]


def _pictures(
    looked_at: list[Any],
    what: str,
    *,
    image_size: int | tuple[int, int] | None,
    num_channels: int | None,
    fit: str,
    layout: str | None,
) -> tuple[_Convert, tuple[int, int, int], dict[str, Any]]:
    """How a picture becomes pixels, their shape, and facts for the `Dataset`."""
    channels = 3 if num_channels is None else num_channels
    if channels not in (1, 3):
        raise ConfigurationError(f"num_channels {channels}: pictures give 1 or 3; others come from arrays only")
    if layout is not None:
        raise ConfigurationError(f"layout {layout}: only arrays have one, and {what} gives pictures")
    if fit == "none":
        raise ConfigurationError(
            f"fit 'none': needs the sizes of all pictures, which {what} doesn't tell: cover, contain"
        )
    if fit != "cover" and image_size is None:
        raise ConfigurationError(f"fit {fit!r}: needs an image_size")
    first = looked_at[0]
    height, width = (first.height, first.width) if image_size is None else load_size(image_size)
    size = None if image_size is None else (height, width)
    shape = (height, width, channels)

    def convert(image: Any, name: str) -> np.ndarray:
        if not isinstance(image, Image.Image):
            raise DataError(f"{name}: {type(image).__name__}, and other items are pictures: give one kind")
        pixels = picture_pixels(image, size=size, num_channels=channels, fit=fit)
        if pixels.shape != shape:
            raise DataError(
                f"{name or what}: pictures differ in size ({pixels.shape[0]} × {pixels.shape[1]}, the first is {height}"
                f" × {width}): give image_size"
            )
        return pixels

    crop = None if image_size is None else evaluation_crop(image_size, fit, shape)
    return convert, shape, {"dtype": "uint8", "evaluation_crop": crop, "remarks": ()}


def _arrays(
    looked_at: list[Any],
    what: str,
    *,
    num_channels: int | None,
    fit: str,
    layout: str | None,
    any_range: bool,
) -> tuple[_Convert, tuple[int, int, int], dict[str, Any]]:
    """The same for arrays, which keep their size."""
    if fit != "cover":
        raise ConfigurationError(f"fit {fit!r}: only for pictures; {what} gives arrays, which keep their size")
    arrays = [_array(image, what) for image in looked_at]
    kinds = sorted({(array.shape, array.dtype.name) for array in arrays})
    if len(kinds) > 1:
        raise DataError(f"{what}: items of {kinds[0]} and of {kinds[1]}: give images of one shape and dtype")
    grey, shape, dtype = arrays[0].ndim == 2, arrays[0].shape, arrays[0].dtype
    remarks = ()
    if not grey and layout is None and is_channels_first((len(arrays), *shape), num_channels=num_channels):
        layout = "NCHW"
        remarks = (f"items of shape {shape} are taken as [C, H, W], channels first, as torch has them",)
    stack = np.stack(arrays)[..., None] if grey else np.stack(arrays)
    found = array_dataset(
        stack, num_channels=num_channels, what=what, layout="NHWC" if grey else layout, any_range=any_range
    )

    def convert(image: Any, name: str) -> np.ndarray:
        array = _array(image, name)
        if (array.shape, array.dtype) != (shape, dtype):
            raise DataError(f"{name}: shape {array.shape}, dtype {array.dtype}, the first one {shape}, {dtype}")
        last = array[..., None] if grey else array.transpose(1, 2, 0) if layout == "NCHW" else array  # [h, w, C]
        check_images(last[None], num_channels=num_channels, what=name or what, any_range=any_range)
        return last.astype(found.dtype)

    height, width, channels = found.image_shape
    return convert, (height, width, channels), {"dtype": found.dtype, "narrow": found.narrow, "remarks": remarks}


def _array(image: Any, what: str) -> np.ndarray:
    array = to_numpy(image, what)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"{what}: an item of shape {array.shape}, expected [H, W, C], [C, H, W] or [H, W]")
    return array


def _labels(source: Any, items: _Items, what: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The items' labels: `targets`, as torchvision has them; a column "label"; else each item is asked for its own.

    Raises:
        DataError: an item has none, or can't be had and no other place says its label.
    """
    count = len(source)
    found = getattr(source, "targets", None)
    if found is None and "label" in (getattr(source, "column_names", None) or ()):
        found = source["label"]
    if found is None:
        found = [_label_of(items, index, what) for index in range(count)]
    try:
        labels = np.asarray([-1 if label is None else label for label in found])
    except Exception:  # labels of several lengths, and what else NumPy makes no array of
        labels = np.empty(0)
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or (labels < 0).any():
        raise DataError(
            f"{what}: labels are needed, whole numbers of 0 and more: `targets`, items (image, label), or dicts with"
            " an entry label"
        )
    return labels.astype(np.int32), _class_names(source)


def _label_of(items: _Items, index: int, what: str) -> Any:
    try:
        return _label(items.item(index))
    except UnusableImageError as error:
        raise DataError(
            f"{what}: item #{index}: {error}: its label is needed, and can't be had: repair it, leave it out, or give"
            " the labels as `targets`"
        ) from error


def _label(item: Any) -> Any:
    if isinstance(item, Mapping):
        return item.get("label")
    return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None


def _class_names(source: Any) -> tuple[str, ...] | None:
    """`classes`, as torchvision has them, or those of Hugging Face datasets' feature "label"."""
    names = getattr(source, "classes", None)
    if names is None:
        features = getattr(source, "features", None)
        names = (
            getattr(features["label"], "names", None) if isinstance(features, Mapping) and "label" in features else None
        )
    return tuple(names) if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names) else None
