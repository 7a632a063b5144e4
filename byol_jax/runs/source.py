"""A run's data: what `pretrain` is given, be it a folder, an array or an iterable, as one thing for the loop.

Also how long the run is, because epochs depend on the data. How images are found, decoded and put in order is in data/.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from byol_jax import data, parallel
from byol_jax.accumulation import check_parts
from byol_jax.data.files.file_list import LEFT_OUT_ARRAYS
from byol_jax.data.files.image_names import ANY_EXTENSIONS, is_image_name, is_row_name, is_unread_name
from byol_jax.data.files.kept_list import write_kept
from byol_jax.data.items import gives_images
from byol_jax.data.iterables import Begun
from byol_jax.data.loader import check_at_least
from byol_jax.data.sources import ImageWarning
from byol_jax.errors import ConfigurationError
from byol_jax.runs.progress import progress_bar

__all__ = ["LISTED", "Length", "Source", "open_source", "say_skipped"]

NOTHING: Mapping[str, Any] = MappingProxyType({})

LISTED = 20
"""At most so many images are named in a message or the log. images.json names all that were bad at the first start."""


class Length(NamedTuple):
    """How long a run is, as a person gives it: exactly one of steps and epochs.

    An epoch is the whole batches in the data; with `every_image` incomplete ones add up to steps too. A batch is gone
    through in `parts` parts.
    """

    steps: int | None
    epochs: int | None
    batch_size: int
    every_image: bool = False
    parts: int = 1


class Source(NamedTuple):
    """The data of one run.

    Attributes:
        images: a `Dataset`, or anybody's iterable of batches, `Begun`.
        kept: of files, what is kept for the run's next start, as a `Dataset` gives it: images.json, images.index.
        total_steps: the run's length.
        epoch_steps: whole batches in the data; None for an iterable, whose length is unknown.
        batch_size: images in a step, over all devices and processes; None for an iterable, which decides it itself.
    """

    images: Any
    kept: Callable[[], Mapping[str, bytes]]
    total_steps: int
    epoch_steps: int | None
    batch_size: int | None

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this data from other data, for config.json."""
        return self.images.identity if isinstance(self.images, data.Dataset) else {"kind": "iterable"}

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """Names of the images that can't be used, and why; may grow while a run goes on."""
        return getattr(self.images, "skipped", ())

    @property
    def dtype(self) -> str | None:
        """Of the images as they come to a step; None of an iterable, whose batches tell."""
        return getattr(self.images, "dtype", None)

    def say_skipped(self, say: Callable[[str], None], said: int = 0) -> int:
        """Says which images can't be used, the first `said` of them left out; returns how many there are."""
        skipped = self.skipped
        if parallel.is_writer():
            say_skipped(skipped[said:], say)
        return len(skipped)

    def say_doubts(self, say: Callable[[str], None], *, has_range: bool = False) -> None:
        """Says how images were read, and what is doubtful about them; of the range that they fill only where none is
        given."""
        remarks, narrow = getattr(self.images, "remarks", ()), getattr(self.images, "narrow", None)
        remarks = (*getattr(self.images, "notes", ()), *remarks)
        for remark in remarks if has_range or narrow is None else (*remarks, narrow):
            if parallel.is_writer():
                say(remark)

    def write_kept(self, images: Path) -> None:
        """Writes images.json where the data is files, and what else a next start can use beside it."""
        write_kept(images, self.kept())

    def batch_indices(self, step: int, *, seed: int) -> list[int]:
        """Which images step `step` sees; unknown, so empty, for an iterable."""
        if self.batch_size is None:
            return []
        sizes = {"count": len(self.images), "batch_size": self.batch_size}
        return data.batch_indices(step, seed=seed, order=self.images.order, **sizes).tolist()

    def loader(self, *, start_step: int, seed: int, workers: int, place: Callable) -> Any:
        """Batches from `start_step` on, this process's part of each, placed on the devices."""
        if self.batch_size is None:
            names = ("num_channels", "layout", "any_range")
            options = {name: getattr(self.images, name) for name in names}
            return data.IterableLoader(self.images, start_step=start_step, place=place, **options)
        return data.Loader(
            self.images,
            batch_size=self.batch_size,
            seed=seed,
            start_step=start_step,
            workers=workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            place=place,
        )


def say_skipped(skipped: Sequence[tuple[str, str]], say: Callable[[str], None]) -> None:
    """Says how many images can't be used, what else was left out, and of some of them the name and the reason.

    Example:
        >>> say_skipped([("cats/1.jpg", "empty file"), (".thumbs", "a hidden folder")], print)
        1 image can't be used and was skipped:
        skipped 'cats/1.jpg': empty file
        1 folder or hidden file was left out:
        left out '.thumbs': a hidden folder
    """
    images = [pair for pair in skipped if _is_image(pair[0])]
    others = [pair for pair in skipped if not _is_image(pair[0]) and pair[0] != LEFT_OUT_ARRAYS]
    if images:
        count, verb = ("1 image", "was") if len(images) == 1 else (f"{len(images)} images", "were")
        say(f"{count} can't be used and {verb} skipped:")
        _list("skipped", images, say)
    if others:
        one = len(others) == 1
        say(f"{len(others)} folder{'' if one else 's'} or hidden file{' was' if one else 's were'} left out:")
        _list("left out", others, say)
    for _, line in (pair for pair in skipped if pair[0] == LEFT_OUT_ARRAYS):
        say(line)


def _is_image(name: str) -> bool:
    """Whether a name is a file's that was meant to be an image, or an image's in it or in a shard, "stack.tif#3"."""
    return is_image_name(name, ANY_EXTENSIONS) or is_unread_name(name) or is_row_name(name)


def _list(what: str, pairs: Sequence[tuple[str, str]], say: Callable[[str], None]) -> None:
    for name, reason in pairs[:LISTED]:
        say(f"{what} {name!r}: {reason}")
    if len(pairs) > LISTED:
        say(f"and {len(pairs) - LISTED} more")


def open_source(
    source: Any,
    length: Length,
    *,
    image_size: Any,
    num_channels: Any,
    fit: str,
    layout: str | None,
    workers: int,
    known: Path | None,
    show: bool,
    any_range: bool = False,
    reading: Mapping[str, Any] = NOTHING,
) -> Source:
    """Opens the data and says how long the run is.

    Args:
        source, fit, layout: as `pretrain` takes them.
        known: where an earlier start left its images.json; if the file exists, its list is used.
        show: show a bar on the terminal while a folder is looked through.
        any_range: whether a value range is given, so that floats may have any finite values.
        reading: what was said of how a folder's files are read, as `open_dataset`'s arguments.

    Raises:
        ConfigurationError: lengths that don't fit together or the data, or batches that can't be cut into parts.
        DataError: data that can't be used.
    """
    images, kept = source, dict
    opens = isinstance(source, str | Path | tuple) or _is_array(source) or gives_images(source)
    if length.parts > 1 and (opens or isinstance(source, data.Dataset)):  # an iterable's batch is known when it is open
        check_parts(length.batch_size, length.parts, jax.device_count())
    if opens:
        options = {"image_size": image_size, "num_channels": num_channels, "fit": fit, "layout": layout}
        options |= {"any_range": any_range, **reading}
        listed = known if known is not None and known.exists() else None  # else it would be written before all is well
        with progress_bar("looking through images", show=show) as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)  # the run's log says it
            images = data.open_dataset(source, progress=progress, verdict_path=listed, workers=workers, **options)
        kept = images.kept
    elif fit != "cover" or (layout is not None and isinstance(source, data.Dataset)) or reading:
        given = f"fit {fit!r}" if fit != "cover" else f"layout {layout!r}" if layout is not None else ", ".join(reading)
        raise ConfigurationError(f"{given}: only where byol_jax opens the data, not with a {type(source).__name__}")
    steps = _steps(images, length)
    if isinstance(images, data.Dataset):
        return Source(images, kept, *steps, length.batch_size)
    sides = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    channels = num_channels if len(sides) == 2 and num_channels is not None else sides[-1]  # or a whole input shape
    options = {"images_only": isinstance(image_size, int), "layout": layout, "any_range": any_range}
    begun = Begun(images, num_channels=channels, **options)
    size, devices = begun.batch_size, jax.local_device_count()
    if size % devices:
        raise ConfigurationError(f"a batch of {size} can't be shared by {devices} devices: use a multiple of {devices}")
    if length.parts > 1:
        check_parts(size * jax.process_count(), length.parts, jax.device_count())
    return Source(begun, kept, *steps, None)


def _is_array(source: Any) -> bool:
    """Whether it is one array, a tensor of torch for instance, rather than an iterable of them."""
    return hasattr(source, "__array__") and hasattr(source, "shape")


def _steps(images: Any, length: Length) -> tuple[int, int | None]:
    """Steps in all, and in an epoch."""
    steps, epochs, batch_size, every_image, _ = length
    if (steps is None) == (epochs is None):
        raise ConfigurationError(f"steps={steps} and epochs={epochs}: give exactly one of them")
    check_at_least(
        1, **{name: count for name, count in {"steps": steps, "epochs": epochs}.items() if count is not None}
    )
    if not isinstance(images, data.Dataset):
        if steps is None:
            raise ConfigurationError("an iterable of batches has no known length: give steps instead of epochs")
        return steps, None
    if batch_size % jax.device_count():
        devices = jax.device_count()
        raise ConfigurationError(f"batch_size={batch_size} can't be shared by {devices} devices: use a multiple of it")
    if batch_size > len(images):
        raise ConfigurationError(f"batch_size={batch_size} is larger than the data, {len(images)} images: lower it")
    epoch_steps = len(images) // batch_size
    if epochs is None:
        return steps or 0, epoch_steps
    return epochs * len(images) // batch_size if every_image else epochs * epoch_steps, epoch_steps
