"""Folders of .npy: a tile [h, w] or [h, w, C], or several [N, h, w, C] in one file. Nothing is ever unpickled."""

import math
from pathlib import Path

import numpy as np

from byol_jax.data.readers.reading import Contents, Opened, Reading
from byol_jax.data.unusable import UnusableImageError

__all__ = ["open_npy"]


def open_npy(path: Path, reading: Reading) -> Opened:
    """A .npy file; only the header is read here, and of each image its own bytes.

    Raises:
        UnusableImageError: another rank, no numbers, or its channels first.
    """
    array = np.load(path, mmap_mode="r", allow_pickle=False)  # maps no more than the file has
    if not isinstance(array, np.memmap):
        raise UnusableImageError("an archive of arrays, not one: give it by itself in the folder's place")
    shape, dtype, offset = array.shape, array.dtype, array.offset
    is_transposed = array.ndim > 1 and array.flags.f_contiguous and not array.flags.c_contiguous
    del array
    if math.prod(shape) * dtype.itemsize == 0:  # then a header of 128 bytes may state any number of images
        raise UnusableImageError(f"shape {shape}: it holds no numbers")
    full = _full_shape(shape, reading)  # [N, h, w, C]
    contents = Contents(((full[1], full[2]),) * full[0], full[3], dtype.newbyteorder("=").name)

    def read(index: int) -> np.ndarray:
        """Of an array in Fortran's order every image lies all over the file: then all of it is read."""
        if is_transposed:
            numbers = _numbers(path, dtype, offset, math.prod(shape)).reshape(shape, order="F").reshape(full)[index]
        else:
            count = math.prod(full[1:])
            numbers = _numbers(path, dtype, offset + index * count * dtype.itemsize, count).reshape(full[1:])
        return np.ascontiguousarray(numbers).astype(dtype.newbyteorder("="), copy=False)  # [h, w, C]

    return Opened(contents, read, close=lambda: None)


def _full_shape(shape: tuple[int, ...], reading: Reading) -> tuple[int, int, int, int]:
    """[N, h, w, C]; refused where an image's first axis, not its last, has the channels' number, or is the shortest."""
    if len(shape) == 2:
        return 1, shape[0], shape[1], 1
    if len(shape) not in (3, 4):
        raise UnusableImageError(f"shape {shape}: expected [h, w], [h, w, C] or [N, h, w, C]")
    first, middle, last = shape[-3:]
    wanted = None if reading.bands is not None else reading.num_channels
    if last != wanted and (first == wanted or first < min(middle, last)):
        seems = "has" if first == wanted else "seems to have"
        raise UnusableImageError(
            f"shape {shape} {seems} its channels first: save it with them last, np.moveaxis(a, -3, -1)"
        )
    return shape[0] if len(shape) == 4 else 1, first, middle, last


def _numbers(path: Path, dtype: np.dtype, offset: int, count: int) -> np.ndarray:
    found = np.fromfile(path, dtype, count, offset=offset)
    if len(found) != count:
        raise UnusableImageError("shorter than its header says: cut short")
    return found
