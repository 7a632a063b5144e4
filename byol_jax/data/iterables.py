"""Batches from any iterable, used as a `Loader` is: a list, a generator, a torch DataLoader, a pipeline.

The iterable decides the order and the pixels. Here its batches are checked, counted and placed on the device.
"""

import itertools
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from byol_jax.data.arrays import (
    LAYOUTS,
    check_grey,
    check_images,
    check_layout,
    is_channels_first,
    is_float,
    is_whole,
    to_numpy,
)
from byol_jax.data.items import image_of
from byol_jax.data.loader import Place, check_at_least, device_put
from byol_jax.data.prefetch import Prefetch
from byol_jax.data.sources import ImageWarning
from byol_jax.errors import ConfigurationError, DataError
from byol_jax.memory import own_batch

__all__ = ["Begun", "IterableLoader"]


class Begun:
    """An iterable of batches of which the first is drawn and checked; to iterate over it gives that one too.

    So a fault of the first batch is known before anything is written. No batch is drawn twice: a first pass goes on
    where this one stopped, and a shuffling iterable gives the order that it would have given.

    Args:
        iterable: as `IterableLoader` takes it.
        num_channels: compared with C where the first batch is [N, H, W, C]. images_only: whether others are refused.
        layout, any_range: as for `IterableLoader`.

    Attributes:
        batch_size: images in the first batch.
        num_channels, layout, any_range: for an `IterableLoader` over it.
        remarks: lines for a person about what was recognised.

    Raises:
        DataError: as an `IterableLoader`, of its first batch.
    """

    def __init__(
        self,
        iterable: Iterable[Any],
        *,
        num_channels: int | None,
        images_only: bool,
        layout: str | None = None,
        any_range: bool = False,
    ):
        _check_iterable(iterable, layout)
        self.iterable, batches = iterable, iter(iterable)
        batch = next(batches, _NOTHING)
        if batch is _NOTHING:
            raise DataError(_exhausted(0))
        images = _to_array(batch, "batch 0")
        self.num_channels = num_channels if images_only or images.ndim == 4 else None
        self.any_range = any_range
        self.layout = layout or _recognise(images, self.num_channels, "batch 0")
        self.remarks = (_said(images.shape),) if self.layout == "NCHW" and layout is None else ()
        _check_first(_channels_last(images, self.layout), self.num_channels, "batch 0", any_range)
        self.batch_size = int(images.shape[0])
        self._pass: Iterator[Any] | None = itertools.chain([batch], batches)

    def __iter__(self) -> Iterator[Any]:
        begun, self._pass = self._pass, None
        return iter(self.iterable) if begun is None else begun


_NOTHING = object()


class IterableLoader:
    """The batches of an iterable from `start_step` on, checked, and placed by a thread that works ahead.

    A batch is an array [N, H, W, C] (NumPy, JAX, a torch tensor on the CPU), uint8, uint16 or floating in [0, 1], a
    tuple or list that starts with one, or a dict with one under "image", "images" or "pixel_values". [N, C, H, W] is
    recognised where only its second axis can be the channels, and transposed. Arrays of other ranks pass with any
    floating range: data that isn't images. A batch is copied before the next one is asked for, so the iterable may
    refill its memory; a JAX array that doesn't lie on a CPU is taken as it is.

    Args:
        iterable: iterated again when it ends. It is used in another thread, up to `prefetch` batches ahead.
        start_step: this many batches are drawn and dropped first.
        num_channels: compared with C where given, and then only images pass.
        layout: "NHWC" or "NCHW"; None: as the first batch's shape says.
        any_range: whether floats may have any finite values, since a learner with a `value_range` takes them.
        prefetch, place: as for `Loader`.

    Attributes:
        position, wait_seconds: as for `Loader`.

    Raises:
        ConfigurationError: numbers below their least, or another layout.
        DataError: not iterable. While iterating: not such an array, another shape than the first batch's (each shape
            would be compiled), or the iterable ended and can't start again. Range and channels are checked once.

    Warns:
        ImageWarning: while iterating, of batches that are recognised as [N, C, H, W].

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
        layout: str | None = None,
        any_range: bool = False,
        prefetch: int = 2,
        place: Place | None = None,
    ):
        check_at_least(0, start_step=start_step)
        check_at_least(1, prefetch=prefetch)
        _check_iterable(iterable, layout)
        self.position = start_step
        self._batches = Prefetch(
            lambda stopped: _convert_all(
                iterable, start_step, num_channels, layout, any_range, place or device_put, stopped
            ),
            prefetch,
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


def _check_iterable(iterable: Any, layout: str | None) -> None:
    if layout not in (None, *LAYOUTS):
        raise ConfigurationError(f"layout {layout!r}: give NHWC (channels last) or NCHW")
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
    images = image_of(batch, what)
    return images if _is_jax_array(images) else to_numpy(images, what)  # JAX's stay where they are


def _recognise(images: Any, num_channels: int | None, what: str) -> str:
    """The layout of a first batch; of other ranks than 4 there is one.

    Raises:
        DataError: it could be either.
    """
    if images.ndim != 4 or 0 in images.shape or images.shape[3] == num_channels:
        return "NHWC"
    if is_channels_first(images.shape, num_channels=num_channels):
        return "NCHW"
    check_layout(images.shape, num_channels=num_channels, what=what)
    return "NHWC"


def _said(shape: tuple[int, ...]) -> str:
    return f"batches of shape {tuple(shape)} are taken as [N, C, H, W], channels first, as torch has them"


def _channels_last(images: Any, layout: str | None) -> Any:
    return images.transpose(0, 2, 3, 1) if layout == "NCHW" and images.ndim == 4 else images  # [N, H, W, C]


def _is_jax_array(images: Any) -> bool:
    return hasattr(images, "sharding")


def _check_first(images: Any, num_channels: int | None, what: str, any_range: bool) -> None:
    if images.ndim == 4 or num_channels is not None:
        check_images(images, num_channels=num_channels, what=what, any_range=any_range)
    elif images.ndim < 2 or not (is_whole(images.dtype) or is_float(np.dtype(images.dtype))):
        raise DataError(
            f"{what}: shape {images.shape}, dtype {images.dtype}, expected [N, …], uint8, uint16 or floating"
        )
    elif images.ndim == 3 and is_whole(images.dtype):
        check_grey(images.shape, num_channels=None, what=what)


def _convert_all(
    iterable: Iterable[Any],
    start_step: int,
    num_channels: int | None,
    layout: str | None,
    any_range: bool,
    place: Place,
    stopped: threading.Event,
) -> Iterator[Any]:
    first = None
    for step, batch in enumerate(_endless(iterable)):
        if stopped.is_set():
            return
        if step < start_step:
            continue
        what = f"batch {step}"
        images = _to_array(batch, what)
        if layout is None:
            layout = _recognise(images, num_channels, what)
            if layout == "NCHW":
                warnings.warn(_said(images.shape), ImageWarning, stacklevel=1)
        images = _channels_last(images, layout)
        if first is None:
            _check_first(images, num_channels, what, any_range)
            first = (images.shape, images.dtype)
        if (images.shape, images.dtype) != first:
            raise DataError(
                f"{what}: shape {images.shape}, dtype {images.dtype}, the first one {first[0]}, {first[1]}: "
                "give batches of one shape (in torch: drop_last=True), each new one would be compiled anew"
            )
        yield place(own_batch(images))
