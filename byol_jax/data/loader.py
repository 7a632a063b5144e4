"""Batches of a `Dataset` on the device, ahead of time, in the seeded order.

`order.py` alone decides which images step k sees. Nothing here changes a pixel, and the number of threads changes
nothing but the time.
"""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from byol_jax.data.dataset import Dataset
from byol_jax.data.order import batches_from, steps_per_epoch
from byol_jax.data.prefetch import Prefetch
from byol_jax.errors import ConfigurationError
from byol_jax.memory import empty_aligned

__all__ = ["Loader", "Place", "check_at_least", "device_put"]

Place = Callable[[Any], Any]
"""Puts a batch where the step wants it."""

_PIECE = 64
"""Images decoded between two looks at whether the loader was closed."""


def check_at_least(smallest: int, **numbers: int) -> None:
    """Raises ConfigurationError, with the option's name, where one is below its least."""
    for name, number in numbers.items():
        if number < smallest:
            raise ConfigurationError(f"{name} {number}: at least {smallest} is needed")


def device_put(batch: Any) -> Any:
    """`jax.device_put`; jax is loaded when the first batch is placed."""
    import jax

    return jax.device_put(batch)


class Loader:
    """Endless batches of a dataset from `start_step` on, decoded and placed by a thread that works ahead.

    Batch k holds the images of `batch_indices(k, seed=seed, count=len(dataset), batch_size=batch_size,
    order=dataset.order)`, of which process p of P yields rows p·n to (p + 1)·n, n = batch_size / P.

    Args:
        batch_size: of all processes together.
        start_step: the first step to yield; a resumed run gives the position that it had reached.
        workers: threads that decode; batches are bit-identical whatever the number.
        prefetch: batches that may be ready or in the making.
        place: puts a NumPy batch [n, h, w, C], which nobody else writes to, where the step wants it; None is
            `jax.device_put`.

    Attributes:
        position: the step that the next batch is for.
        wait_seconds: how long the consumer has waited in all.

    Raises:
        DataError: more images in a batch than in the dataset; or while iterating, what `dataset.take` raises.
        ConfigurationError: numbers below their least, or a batch that the processes can't share evenly.

    Example:
        >>> from byol_jax.data import open_dataset
        >>> with Loader(open_dataset(np.zeros((10, 8, 8, 1), np.uint8)), batch_size=4, seed=0) as batches:
        ...     next(batches).shape, batches.position
        ((4, 8, 8, 1), 1)
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        seed: int,
        start_step: int = 0,
        workers: int = 2,
        prefetch: int = 2,
        process_index: int = 0,
        process_count: int = 1,
        place: Place | None = None,
    ):
        check_at_least(0, start_step=start_step, seed=seed, process_index=process_index)
        check_at_least(1, workers=workers, prefetch=prefetch, process_count=process_count)
        steps_per_epoch(len(dataset), batch_size)
        if batch_size % process_count or process_index >= process_count:
            raise ConfigurationError(
                f"batch size {batch_size}, process {process_index} of {process_count}: the batch size has to be a "
                f"multiple of the number of processes, and processes count from 0"
            )
        share = batch_size // process_count
        rows = slice(process_index * share, (process_index + 1) * share)
        order = batches_from(start_step, seed=seed, count=len(dataset), batch_size=batch_size, order=dataset.order)
        mine = (indices[rows] for indices in order)
        self.position = start_step
        place = place or device_put
        self._batches = Prefetch(lambda stopped: _take_all(dataset, mine, workers, place, stopped), prefetch)

    @property
    def wait_seconds(self) -> float:
        return self._batches.wait_seconds

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        self.position += 1
        return batch

    def close(self) -> None:
        """Stops the thread; the iteration ends. May be called twice."""
        self._batches.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _take_all(
    dataset: Dataset, order: Iterator[np.ndarray], workers: int, place: Place, stopped: threading.Event
) -> Iterator[Any]:
    for indices in order:
        batch = None
        for start in range(0, len(indices), _PIECE):
            if stopped.is_set():
                return
            piece = dataset.take(indices[start : start + _PIECE], workers=workers)  # [≤ 64, h, w, C]
            if batch is None:
                batch = empty_aligned((len(indices), *piece.shape[1:]), piece.dtype)
            batch[start : start + len(piece)] = piece
        yield place(batch)  # [n, h, w, C]
