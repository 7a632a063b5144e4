"""Batches from any iterable, used as a `Loader` is: a list, a generator, a torch DataLoader, a pipeline.

The iterable decides the order and the pixels. Here its batches are checked, counted and placed on the device.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from byol_jax.data.arrays import check_grey, check_images, check_layout, check_unmasked, is_float, is_whole
from byol_jax.data.loader import Place, check_at_least, device_put
from byol_jax.data.prefetch import Prefetch
from byol_jax.errors import DataError, one_line
from byol_jax.memory import own_batch

__all__ = ["Begun", "IterableLoader"]


class Begun:
    """An iterable of batches of which the first is drawn and checked; to iterate over it gives that one too.

    So a fault of the first batch is known before anything is written. No batch is drawn twice: a first pass goes on
    where this one stopped, and a shuffling iterable gives the order that it would have given.

    Args:
        iterable: as `IterableLoader` takes it.
        num_channels: compared with C where the first batch is [N, H, W, C]. images_only: whether others are refused.
        any_range: as for `IterableLoader`.

    Attributes:
        batch_size: images in the first batch. num_channels, any_range: for an `IterableLoader` over it.

    Raises:
        DataError: as an `IterableLoader`, of its first batch.
    """

    def __init__(
        self, iterable: Iterable[Any], *, num_channels: int | None, images_only: bool, any_range: bool = False
    ):
        _check_iterable(iterable)
        self.iterable, batches = iterable, iter(iterable)
        batch = next(batches, _NOTHING)
        if batch is _NOTHING:
            raise DataError(_exhausted(0))
        images = _to_array(batch, "batch 0")
        self.num_channels = num_channels if images_only or images.ndim == 4 else None
        self.any_range = any_range
        _check_first(images, self.num_channels, "batch 0", any_range)
        self.batch_size = int(images.shape[0])
        self._pass: Iterator[Any] | None = itertools.chain([batch], batches)

    def __iter__(self) -> Iterator[Any]:
        begun, self._pass = self._pass, None
        return iter(self.iterable) if begun is None else begun


_NOTHING = object()


class IterableLoader:
    """The batches of an iterable from `start_step` on, checked, and placed by a thread that works ahead.

    A batch is an array [N, H, W, C] (NumPy, JAX, a torch tensor on the CPU), uint8, uint16 or floating in [0, 1], or a
    tuple or list that starts with one. Arrays of other ranks pass with any floating range: data that isn't images. A
    batch is copied before the next one is asked for, so the iterable may refill its memory; a JAX array that doesn't
    lie on a CPU is taken as it is.

    Args:
        iterable: iterated again when it ends. It is used in another thread, up to `prefetch` batches ahead.
        start_step: this many batches are drawn and dropped first.
        num_channels: compared with C where given, and then only images pass.
        any_range: whether floats may have any finite values, since a learner with a `value_range` takes them.
        prefetch, place: as for `Loader`.

    Attributes:
        position, wait_seconds: as for `Loader`.

    Raises:
        ConfigurationError: numbers below their least.
        DataError: not iterable. While iterating: not such an array, another shape than the first batch's (each shape
            would be compiled), or the iterable ended and can't start again. Range and channels are checked once.

    Example:
        >>> with IterableLoader([np.zeros((4, 8, 8, 3), np.uint8)], start_step=5) as batches:
        ...     next(batches).shape
        (4, 8, 8, 3)
    """

    def __init__(
        self,
        iterable: Iterable[Any],
        *,
        start_step: int = 0,
        num_channels: int | None = None,
        any_range: bool = False,
        prefetch: int = 2,
        place: Place | None = None,
    ):
        check_at_least(0, start_step=start_step)
        check_at_least(1, prefetch=prefetch)
        _check_iterable(iterable)
        self.position = start_step
        check = functools.partial(_check_first, num_channels=num_channels, any_range=any_range)
        self._batches = Prefetch(
            lambda stopped: _convert_all(iterable, start_step, check, place or device_put, stopped), prefetch
        )

    @property
    def wait_seconds(self) -> float:
        return self._batches.wait_seconds

    def __iter__(self) -> "IterableLoader":
        return self

    def __next__(self) -> Any:
        batch = next(self._batches)
        self.position += 1
        return batch

    def close(self) -> None:
        """Stops the thread; the iteration ends. May be called twice."""
        self._batches.close()

    def __enter__(self) -> "IterableLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_iterable(iterable: Any) -> None:
    if not hasattr(iterable, "__iter__") and not hasattr(iterable, "__getitem__"):
        raise DataError(f"{type(iterable).__name__}: not an iterable of image batches")


def _exhausted(count: int) -> str:
    return (
        f"the iterable of batches gave nothing more after {count} batches: give one that can be iterated again "
        "(a list, a torch DataLoader), or one that is long enough"
    )


def _endless(iterable: Iterable[Any]) -> Iterator[Any]:
    count, before = 0, -1
    while count > before:
        before = count
        for batch in iterable:
            count += 1
            yield batch
    raise DataError(_exhausted(count))


def _to_array(batch: Any, what: str) -> Any:
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(images, dict):
        raise DataError(f"{what}: a dict of {', '.join(map(str, images))}: give the images alone, or (images, …)")
    check_unmasked(images, what)
    if _is_jax_array(images):  # it stays where it is
        return images
    try:
        return np.asarray(images)
    except Exception as error:  # a GPU tensor, a ragged list: whatever their own conversion raises
        raise DataError(f"{what}: can't be made a NumPy array ({one_line(error, at_most=200)})") from error


def _is_jax_array(images: Any) -> bool:
    return hasattr(images, "sharding")


def _check_first(images: Any, num_channels: int | None, what: str, any_range: bool) -> None:
    if images.ndim == 4 or num_channels is not None:
        if images.ndim == 4 and 0 not in images.shape and images.shape[3] != num_channels:
            check_layout(images.shape, num_channels=num_channels, what=what, has_option=False)
        check_images(images, num_channels=num_channels, what=what, any_range=any_range)
    elif images.ndim < 2 or not (is_whole(images.dtype) or is_float(np.dtype(images.dtype))):
        raise DataError(
            f"{what}: shape {images.shape}, dtype {images.dtype}, expected [N, …], uint8, uint16 or floating"
        )
    elif images.ndim == 3 and is_whole(images.dtype):
        check_grey(images.shape, num_channels=None, what=what)


def _convert_all(
    iterable: Iterable[Any], start_step: int, check: Callable[..., None], place: Place, stopped: threading.Event
) -> Iterator[Any]:
    first = None
    for step, batch in enumerate(_endless(iterable)):
        if stopped.is_set():
            return
        if step < start_step:
            continue
        what = f"batch {step}"
        images = _to_array(batch, what)
        if first is None:
            check(images, what=what)
            first = (images.shape, images.dtype)
        if (images.shape, images.dtype) != first:
            raise DataError(
                f"{what}: shape {images.shape}, dtype {images.dtype}, the first one {first[0]}, {first[1]}: "
                "give batches of one shape (in torch: drop_last=True), each new one would be compiled anew"
            )
        yield place(own_batch(images))
