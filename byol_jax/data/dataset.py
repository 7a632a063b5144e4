"""What every source of images looks like from outside, and the images as an evaluation sees them.

A `Dataset` is a bundle: a function that gives images for indices, and facts about them. It has no position: `order.py`
defines the order, and a loader keeps the position.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from byol_jax.data.fit import resize_plane
from byol_jax.data.order import Order, epoch_order
from byol_jax.image_size import image_sides

__all__ = ["Dataset", "EvaluationImages", "evaluation_images", "resize", "row_numbers"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images by index, and what is known of them.

    Attributes:
        take: `take(indices, *, workers=None) -> [n, h, w, c]`, a fresh array of `dtype`.
        count: how many images there are; also `len(dataset)`.
        image_shape: `(h, w, c)` of every image that `take` gives; of other inputs their own axes, channels last.
        identity: for JSON: `kind`, `count`, `sha256` (of names and sizes, or of the numbers), `dtype` where it is
            uint16. The data's place is no part of it.
        labels: int32 [count], or None.
        class_names: one name for each label, or None.
        names: a file name for each image, relative to the folder, or None.
        evaluation_crop: `(H, W)` of the centre crop that an evaluation takes; None where images are taken whole.
        list_skipped: gives `skipped`, which grows when bad files turn up while training.
        remarks: lines for a person about images that are used, and may not be what they seem.
        notes: lines for a person that say how files were read, where there was something to decide.
        dtype: "uint8", "uint16", or "float32": of an array in [0, 1] unless another range was asked for, of a folder in
            any range.
        range_is_known: False where what the numbers fill is the instrument's matter: a folder of grey files of 16 bits,
            of channels as they are stored, or of signed numbers, those of 32 bits, or floats.
        narrow: a line, where numbers of 16 bits fill little of 0 to 65,535, for whoever divides by that; or None.
        order: how an epoch is ordered: `epoch_order`, or `block_order` where single images are slow to read.
        kept: gives what is kept of files for a next start: by a file name's ending, ".json" the list of usable images,
            ".index" where they lie in tar shards.
    """

    take: Callable[..., np.ndarray]
    count: int
    image_shape: tuple[int, ...]
    identity: dict[str, Any]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    evaluation_crop: tuple[int, int] | None = None
    list_skipped: Callable[[], tuple[tuple[str, str], ...]] = tuple
    remarks: tuple[str, ...] = ()
    dtype: str = "uint8"
    range_is_known: bool = True
    narrow: str | None = None
    notes: tuple[str, ...] = ()
    order: Order = epoch_order
    kept: Callable[[], Mapping[str, bytes]] = dict

    def __len__(self) -> int:
        return self.count

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """(name, reason) of every file that is known by now to be unusable."""
        return self.list_skipped()


def row_numbers(indices: Any, count: int) -> np.ndarray:
    """Plain row numbers, int64 [n], from any one-dimensional index: numbers, negative ones, or a mask.

    Raises:
        IndexError: out of range, or not an index.

    Example:
        >>> row_numbers([0, -1], 10).tolist()
        [0, 9]
    """
    indices = np.asarray(indices)
    return np.arange(count)[indices if indices.size else indices.astype(np.int64)]


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Antialiased bilinear resize (Pillow's), each channel by itself; the dtype stays.

    Args:
        images: [N, H, W, C], uint8, uint16 (resized as floats, rounded once) or float32.
        size: (height, width).

    Returns:
        [N, height, width, C]; the input itself where the size is right already.

    Example:
        >>> resize(np.zeros((2, 8, 8, 1), np.uint8), (4, 6)).shape
        (2, 4, 6, 1)
    """
    if images.shape[1:3] == size:
        return images
    resize_to = partial(Image.Image.resize, size=(size[1], size[0]), resample=Image.Resampling.BILINEAR)
    resized = np.empty((len(images), *size, images.shape[3]), images.dtype)  # [N, height, width, C]
    for index, channel in np.ndindex(len(images), images.shape[3]):
        resized[index, :, :, channel] = resize_plane(images[index, :, :, channel], resize_to)
    return resized


def evaluation_images(dataset: Dataset, indices: Any, image_size: int | tuple[int, int]) -> np.ndarray:
    """Images as an evaluation sees them: no augmentation, `image_size` exactly.

    A folder's images lose their margin first: the centre crop of 87.5 % that the paper evaluates on (224 of 256
    pixels, `load_size`). Arrays are used whole. What then differs in size is resized.

    Returns:
        [n, H, W, C], in the dataset's dtype.

    Raises:
        ConfigurationError: an impossible image size.

    Example:
        >>> from byol_jax.data import open_dataset
        >>> evaluation_images(open_dataset(np.zeros((4, 28, 28), np.uint8)), [0, 3], 32).shape
        (2, 32, 32, 1)
    """
    size = image_sides(image_size)
    images = dataset.take(indices)  # [n, h, w, C]
    if dataset.evaluation_crop is not None:
        height, width = dataset.evaluation_crop
        top, left = (images.shape[1] - height) // 2, (images.shape[2] - width) // 2
        images = images[:, top : top + height, left : left + width]
    return np.ascontiguousarray(resize(images, size))


@dataclass(frozen=True, eq=False)
class EvaluationImages:
    """Some images of a dataset as `evaluation_images` gives them, made when a slice or some rows of them are asked for.

    Attributes:
        dataset: where they come from.
        indices: int [n], which ones.
        image_size: the size wanted.

    Example:
        >>> from byol_jax.data import open_dataset
        >>> EvaluationImages(open_dataset(np.zeros((4, 28, 28), np.uint8)), np.array([3, 0, 1]), 32)[1:].shape
        (2, 32, 32, 1)
    """

    dataset: Dataset
    indices: np.ndarray
    image_size: int | tuple[int, int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return evaluation_images(self.dataset, self.indices[rows], self.image_size)  # [n, H, W, C]
