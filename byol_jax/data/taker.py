"""The `take` of encoded images: by number, in threads, and what can't be decoded by then replaced.

A file may fail although it was looked at before training: it vanished or changed since, or the folder was so large
that only headers were read. Then the next file in order replaces it, of the same class where there are labels. The
same file always gets the same replacement, whoever asks and when.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from byol_jax.data.dataset import row_numbers
from byol_jax.data.unusable import UnusableImageError
from byol_jax.errors import DataError

__all__ = ["Taker"]


class Taker:
    """The `take` of a dataset, which remembers the files that failed.

    Args:
        decode: `decode(number) -> [h, w, C]`, raises `UnusableImageError`.
        numbers: int64 [count], the number that `decode` knows each image by.
        labels: int32 [count] or None; a replacement has the same label.
        shape: (h, w, C). dtype: "uint8", "uint16" or "float32".
        workers: threads, where the caller gives no number.

    Attributes:
        failed: reason by image number; grows.
    """

    def __init__(
        self,
        decode: Callable[[int], np.ndarray],
        numbers: np.ndarray,
        labels: np.ndarray | None,
        *,
        shape: tuple[int, int, int],
        dtype: str,
        workers: int,
    ) -> None:
        self.decode, self.numbers, self.labels, self.workers = decode, numbers, labels, workers
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.failed: dict[int, str] = {}
        self.lock = threading.Lock()

    def replacements(self, index: int) -> np.ndarray:
        """The images that may replace one, in the order of trying: later ones, then from the start again."""
        same = np.arange(len(self.numbers))
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
            return self.decode(int(self.numbers[index]))
        except UnusableImageError as error:
            self.leave_out({index: str(error)})
        return None

    def leave_out(self, reasons: Mapping[int, str]) -> None:
        """Remembers that these images can't be used.

        Raises:
            DataError: by now that are over half of them.
        """
        with self.lock:
            self.failed |= reasons
        if 2 * len(self.failed) > len(self.numbers):
            raise DataError(
                f"{len(self.failed)} of {len(self.numbers)} images could be used at first and can't be now "
                f"(the last: {[*reasons.values()][-1]}): is the folder still there?"
            )

    def read(self, index: int) -> np.ndarray:
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
        """Images by number, decoded by `workers` threads: [n, h, w, C]."""
        wanted = row_numbers(indices, len(self.numbers))
        images = np.empty((len(wanted), *self.shape), self.dtype)  # [n, h, w, C]

        def fill(row: int) -> None:
            images[row] = self.read(int(wanted[row]))

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
