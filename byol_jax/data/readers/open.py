"""Which reader takes a file, and what it gives: here, in this process. How it is kept from doing harm: guarded.py."""

import importlib.util
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from byol_jax.data.readers.dicom import open_dicom
from byol_jax.data.readers.numpy_tiles import open_npy
from byol_jax.data.readers.pixels import fill_gaps, resize_channels, with_dtype
from byol_jax.data.readers.reading import Opened, Reading, check_contents, choose_channels
from byol_jax.data.readers.tiff_series import open_tiff
from byol_jax.data.unusable import UnusableImageError
from byol_jax.errors import one_line

__all__ = [
    "READERS",
    "Reader",
    "check_installed",
    "image_of",
    "install_hint",
    "is_installed",
    "open_file",
    "reader_of",
]


class Reader(NamedTuple):
    """A kind of files.

    Attributes:
        extensions: of their names, small letters.
        open: `open(path, reading)`.
        package: that reads them, where it is optional; extra: of ours that installs it.
    """

    extensions: frozenset[str]
    open: Callable[[Path, Reading], Opened]
    package: str | None = None
    extra: str | None = None


READERS = {
    "tiff": Reader(frozenset({".tif", ".tiff"}), open_tiff, "tifffile", "tiff"),
    "dicom": Reader(frozenset({".dcm", ".dicom"}), open_dicom, "pydicom", "dicom"),
    "npy": Reader(frozenset({".npy"}), open_npy),
}
"""By the words that the list of images keeps (kept_list.py)."""


def reader_of(name: str) -> str | None:
    """The reader of files with such a name; None for pictures.

    Example:
        >>> reader_of("stack.TIF"), reader_of("photo.jpg")
        ('tiff', None)
    """
    extension = os.path.splitext(name)[1].lower()
    return next((word for word, reader in READERS.items() if extension in reader.extensions), None)


_MOST_WORDS = 300
"""Characters of a reason."""


@cache
def is_installed(reader: str) -> bool:
    """Whether the package that a reader needs is there; nothing is imported."""
    package = READERS[reader].package
    return package is None or importlib.util.find_spec(package) is not None


def install_hint(reader: str) -> str:
    """How a reader's package is installed."""
    return f'pip install "byol-jax[{READERS[reader].extra}]"'


def check_installed(reader: str) -> None:
    """Returns where a reader's package is there.

    Raises:
        UnusableImageError: it isn't; the text says how to install it.
    """
    if not is_installed(reader):
        raise UnusableImageError(f"{READERS[reader].package} isn't installed, which reads it: {install_hint(reader)}")


def open_file(reader: str, path: Path, reading: Reading, *, most_pixels: int | None) -> Opened:
    """A file, its header read and found usable.

    Raises:
        UnusableImageError: for whatever reason; the text says it.
    """
    try:
        check_installed(reader)
        if not path.is_file():
            raise UnusableImageError("not a regular file" if path.exists() else "no longer there")
        if path.stat().st_size == 0:
            raise UnusableImageError("empty file")
        opened = READERS[reader].open(path, reading)
        try:
            check_contents(opened.contents, reading, most_pixels=most_pixels)
        except UnusableImageError:
            opened.close()
            raise
    except Exception as error:  # readers raise whatever a damaged file leads them to
        raise _as_unusable(error) from error
    return opened


def image_of(
    opened: Opened, index: int, reading: Reading, *, size: tuple[int, int] | None, fit: str, dtype: str
) -> tuple[np.ndarray, float]:
    """Image number `index` of an open file as it is used, [h, w, C], and which part of its numbers were gaps.

    Raises:
        UnusableImageError: it can't be decoded.
    """
    try:
        numbers = opened.read(index)
        height, width = opened.contents.sizes[index]
        if numbers.shape != (height, width, opened.contents.channels):
            raise UnusableImageError(f"pixels of shape {numbers.shape} where its header says {height} x {width}")
        whole, gaps = fill_gaps(choose_channels(numbers, reading), opened.nodata)
        return resize_channels(with_dtype(whole, np.dtype(dtype)), size, fit), gaps
    except Exception as error:
        named = _as_unusable(error)
        count = len(opened.contents.sizes)
        raise (UnusableImageError(f"image {index + 1} of {count}: {named}") if count > 1 else named) from error


def _as_unusable(error: Exception) -> UnusableImageError:
    if isinstance(error, UnusableImageError):
        return UnusableImageError(one_line(error, at_most=_MOST_WORDS))  # it may quote what a file says
    if isinstance(error, MemoryError):
        return UnusableImageError("it needs more memory than a file may take")
    return UnusableImageError(getattr(error, "strerror", None) or one_line(error, at_most=_MOST_WORDS))
