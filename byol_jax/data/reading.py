"""Images of a folder by number: decoded when asked for, kept if all fit in memory, replaced where a file fails.

A file may fail although it was looked at before training: it vanished or changed since, or the folder was so large
that only headers were read. The next one in order stands in for it, of the same class where there are labels: the
same file always gets the same replacement, whoever asks and when.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from byol_jax.data.dataset import row_numbers
from byol_jax.data.decode import UnusableImageError, read_image
from byol_jax.errors import DataError

__all__ = ["Decoder", "Taker"]


class Decoder:
    """`decoder(i)`: pixels of file number i, uint8 `shape`; never decoded twice where all of them fit `cache_bytes`.

    Args:
        root, names: the files.
        shape: (h, w, C) of every image.
        fit: resize and crop to `shape`; otherwise an image of another size is a DataError.
    """

    def __init__(
        self, root: Path, names: Sequence[str], shape: tuple[int, int, int], *, fit: bool, cache_bytes: int
    ) -> None:
        self.root, self.names, self.shape, self.fit = root, names, shape, fit
        fits = len(names) * int(np.prod(shape)) <= cache_bytes
        self.cache = np.empty((len(names), *shape), np.uint8) if fits else None  # untouched pages cost nothing
        self.filled = np.zeros(len(names), bool)

    def __call__(self, file: int) -> np.ndarray:
        if self.cache is not None and self.filled[file]:
            return self.cache[file]
        name = self.names[file]
        image = read_image(self.root / name, size=self.shape[:2] if self.fit else None, num_channels=self.shape[2])
        if image.shape != self.shape:
            raise DataError(
                f"{self.root}: images differ in size ({name!r} is {image.shape[0]} × {image.shape[1]}, the first is "
                f"{self.shape[0]} × {self.shape[1]}): give image_size"
            )
        if self.cache is not None:
            self.cache[file] = image
            self.filled[file] = True  # last: another thread may look at any moment
        return image


class Taker:
    """`take` of a folder, and what it has to remember: the files that failed.

    Args:
        decode: `decode(file number) -> [h, w, C]`, raises `UnusableImageError`.
        files: int64 [count], the file number of each image.
        labels: int32 [count] or None; a replacement has the same label.
        shape: (h, w, C).
        workers: threads, where the caller names no number.

    Attributes:
        failed: reason by image number; grows.
    """

    def __init__(
        self,
        decode: Callable[[int], np.ndarray],
        files: np.ndarray,
        labels: np.ndarray | None,
        *,
        shape: tuple[int, int, int],
        workers: int,
    ) -> None:
        self.decode, self.files, self.labels, self.shape, self.workers = decode, files, labels, shape, workers
        self.failed: dict[int, str] = {}
        self.lock = threading.Lock()

    def replacements(self, index: int) -> np.ndarray:
        """What may stand in for an image, in the order of trying: later ones, then from the start again."""
        same = np.arange(len(self.files))
        if self.labels is not None:
            same = np.flatnonzero(self.labels == self.labels[index])
        return np.roll(same, -int(np.searchsorted(same, index)))[1:]

    def attempt(self, index: int) -> np.ndarray | None:
        """One image, or None where its file fails.

        Raises:
            DataError: by now over half of the files have failed.
        """
        if index in self.failed:
            return None
        try:
            return self.decode(int(self.files[index]))
        except UnusableImageError as error:
            with self.lock:
                self.failed[index] = str(error)
            if 2 * len(self.failed) > len(self.files):
                raise DataError(
                    f"{len(self.failed)} of {len(self.files)} images could be used at first and can't be now "
                    f"(the last: {error}): is the folder still there?"
                ) from error
        return None

    def one(self, index: int) -> np.ndarray:
        """One image or its replacement.

        Raises:
            DataError: nothing can replace it.
        """
        image = self.attempt(index)
        if image is not None:
            return image
        for other in self.replacements(index):
            image = self.attempt(int(other))
            if image is not None:
                return image
        raise DataError(f"image {index} can't be used ({self.failed[index]}), and no other of its class can")

    def take(self, indices: Any, *, workers: int | None = None) -> np.ndarray:
        """Images by number, decoded by `workers` threads: uint8 [n, h, w, C]."""
        wanted = row_numbers(indices, len(self.files))
        images = np.empty((len(wanted), *self.shape), np.uint8)  # [n, h, w, C]

        def fill(row: int) -> None:
            images[row] = self.one(int(wanted[row]))

        threads = min(self.workers if workers is None else workers, len(wanted))
        if threads <= 1:
            for row in range(len(wanted)):
                fill(row)
        else:
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(fill, range(len(wanted))):
                    pass
        return images

    def failures(self) -> dict[int, str]:
        """`failed`, in the order of the images; a copy."""
        with self.lock:
            return dict(sorted(self.failed.items()))
