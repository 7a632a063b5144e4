"""Images for the sub-commands: opened with a progress bar, split where labels are needed, turned into features.

Which of a folder's files can't be used is said on stderr, as `byol-jax train` says it.
"""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from byol_jax.cli.values import holds_files, is_folder
from byol_jax.data import Dataset, EvaluationImages, open_dataset
from byol_jax.data.sources import ImageWarning
from byol_jax.errors import DataError, one_line
from byol_jax.evaluate import extract, extract_batches, raw_pixels
from byol_jax.runs.progress import progress_bar
from byol_jax.runs.source import say_skipped
from byol_jax.runs.value_range import find_range

__all__ = [
    "LabelledImages",
    "feature_batches",
    "features_of",
    "open_images",
    "open_labelled",
    "open_training_images",
    "pixels_of",
    "say_late",
    "say_range",
]

IMAGE_SIZE = 224
TRAIN_FOLDERS = ("train", "training")
TEST_FOLDERS = ("test", "testing", "val", "valid", "validation")
"""Folders that aren't classes but parts of a set, whatever the case of their letters; the first that is there."""

TRAIN_PART = 0.8
"""Of a set that comes in one piece: this part of it trains the classifiers, the rest measures them."""


class LabelledImages(NamedTuple):
    """Some images of a dataset, `indices` [n], and their `labels` [n] int32."""

    dataset: Dataset
    indices: np.ndarray
    labels: np.ndarray


def open_images(
    source: str | Path,
    *,
    image_size: int | tuple[int, int] | None,
    num_channels: int | None,
    with_labels: bool | None = False,
    fit: str = "cover",
    layout: str | None = None,
    workers: int = 2,
    dtype: str | None = None,
    value_range: Any = None,
    reading: Mapping[str, Any] | None = None,
) -> Dataset:
    """`open_dataset` with a bar for folders, which take a while to be looked through; says what was skipped.

    Args:
        dtype: of a folder's images, as there; arrays have their own.
        value_range: what is known of the images' range, numbers or a rule; None: nothing.
        reading: what was said of how a folder's files are read, as arguments of `open_dataset`.
    """
    with progress_bar("looking through images") as update:
        dataset = open_dataset(
            str(source),
            image_size=image_size,
            num_channels=num_channels,
            with_labels=with_labels,
            fit=fit if holds_files(str(source)) else "cover",  # arrays keep their size
            layout=layout,
            workers=workers,
            progress=update,
            dtype=dtype if holds_files(str(source)) else None,
            any_range=value_range is not None or holds_files(str(source)),
            **(reading or {} if holds_files(str(source)) else {}),
        )
    for note in dataset.notes:
        _say(note)
    if dataset.narrow is not None and value_range is None and dataset.range_is_known and holds_files(str(source)):
        warnings.warn(
            f"{source}: {dataset.narrow}", ImageWarning, stacklevel=2
        )  # of grey files it is found: find_range
    say_skipped(dataset.skipped, _say)
    return dataset


def say_late(dataset: Dataset) -> None:
    """Says which files failed only when their images were taken; another took their place.

    A folder of very many files isn't decoded before (`open_dataset`), and files may change.
    """
    names = set(dataset.names or ())
    late = [(name, reason) for name, reason in dataset.skipped if name in names]
    say_skipped(late, _say)


def say_range(wanted: Any, dataset: Dataset, *, seed: int) -> Any:
    """The value range of images without a run, as `find_range` has it; says what was found."""
    found = find_range(wanted, dataset, seed=seed)
    if found.sentence is not None:
        _say(("warning: " if found.is_narrow else "") + found.sentence)
    return found.value_range


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr)


def open_training_images(
    source: str, image_size: int | tuple[int, int] | None, num_channels: int | None, **options: Any
) -> tuple[Dataset, int | tuple[int, int], int]:
    """Images, their size and their channels: as asked for, else an array's own, else 224 and colour.

    `options`: `open_images`' others.
    """
    size = image_size or (IMAGE_SIZE if holds_files(source) else None)
    dataset = open_images(source, image_size=size, num_channels=num_channels, **options)
    height, width, channels = dataset.image_shape
    return dataset, size or (height if height == width else (height, width)), channels


def open_labelled(
    source: str, labels: Path | None, *, seed: int, **options: Any
) -> tuple[LabelledImages, LabelledImages, tuple[str, ...] | None, str]:
    """Images to fit classifiers on, images to measure them on, the classes' names, and how the two were split.

    A folder with a part to train on and one to test on (`TRAIN_FOLDERS`, `TEST_FOLDERS`) keeps its split; anything else
    is shuffled by `seed` and split 80 to 20.

    Raises:
        DataError: no labels, other classes in train and test, two parts to train on, or fewer than two classes.
    """
    first, second = (_parts(source, words) if labels is None else [] for words in (TRAIN_FOLDERS, TEST_FOLDERS))
    if first and second:
        alike = [part.name for part in second if part.name.lower() == second[0].name.lower()]
        for names in ([part.name for part in first], alike):
            if len(names) > 1:
                raise DataError(f"{source}: holds {' and '.join(names)}: leave one of them there, or rename the other")
        train, measured = (open_images(part, with_labels=True, **options) for part in (first[0], second[0]))
        names = f"{first[0].name} and {second[0].name}"
        if train.class_names != measured.class_names:
            raise DataError(f"{source}: {names} have different classes, the sub-folders must be the same")
        fit, measure = (_with_labels(part, np.arange(len(part))) for part in (train, measured))
        return fit, measure, train.class_names, f"as in {source}: {names}"
    dataset = open_images(source, with_labels=labels is None, **options)
    given = dataset.labels if labels is None else _read_labels(labels, len(dataset))
    order = np.random.default_rng(seed).permutation(len(dataset))
    first = int(TRAIN_PART * len(dataset))
    fit, measure = (_with_labels(dataset, part, given) for part in (order[:first], order[first:]))
    return fit, measure, dataset.class_names, f"80 % to fit, 20 % to measure, shuffled with seed {seed}"


def _parts(source: str, words: Sequence[str]) -> list[Path]:
    """The folders in `source` that are named so, in the order of the words."""
    if not is_folder(source):
        return []
    folders = sorted(entry for entry in Path(source).iterdir() if entry.name.lower() in words and entry.is_dir())
    return sorted(folders, key=lambda folder: words.index(folder.name.lower()))


def features_of(
    function: Callable[[Any, Any], Any],
    state: Any,
    dataset: Dataset,
    indices: np.ndarray,
    *,
    image_size: int | tuple[int, int],
    batch_size: int = 256,
    label: str = "features",
) -> np.ndarray:
    """`function(state, images)` of the dataset's images, [len(indices), D] float32, with a progress bar."""
    images = EvaluationImages(dataset, indices, image_size)
    with progress_bar(label) as update:
        features = extract(partial(function, state), images, batch_size=batch_size, progress=update)
    return features.astype(np.float32, copy=False)


def feature_batches(
    function: Callable[[Any, Any], Any],
    state: Any,
    dataset: Dataset,
    *,
    image_size: int | tuple[int, int],
    batch_size: int = 256,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`function(state, images)` of all images of a dataset as it comes, with a progress bar: (rows, their numbers).

    Rows are [n, …] float32, numbers [n]. A row whose file has failed by then, so that another image took its place, is
    left out; a batch without any other isn't given.
    """
    images = EvaluationImages(dataset, np.arange(len(dataset)), image_size)
    start = 0
    with progress_bar("features") as update:
        for rows in extract_batches(partial(function, state), images, batch_size=batch_size, progress=update):
            numbers = np.arange(start, start + len(rows))
            start += len(rows)
            failed = {name for name, _ in dataset.skipped}
            if dataset.names is not None and failed:
                kept = [dataset.names[number] not in failed for number in numbers]
                rows, numbers = rows[kept], numbers[kept]
            if len(rows):
                yield rows.astype(np.float32, copy=False), numbers


def pixels_of(
    dataset: Dataset, indices: np.ndarray, *, image_size: int | tuple[int, int], value_range: Any = None
) -> np.ndarray:
    """The images themselves, resized and flattened, [len(indices), H W C] float32 in [0, 1], by the range given."""
    images, starts = EvaluationImages(dataset, indices, image_size), range(0, len(indices), 256)
    return np.concatenate([raw_pixels(images[start : start + 256], value_range) for start in starts])


def _with_labels(dataset: Dataset, indices: np.ndarray, labels: np.ndarray | None = None) -> LabelledImages:
    labels = dataset.labels if labels is None else labels
    if labels is None:
        raise DataError("no labels: put each class in a sub-folder of its own, or give --labels")
    if len(indices) == 0 or len(np.unique(labels)) < 2:
        raise DataError(f"{len(labels)} images of {len(np.unique(labels))} classes: at least 2 classes are needed")
    return LabelledImages(dataset, indices, labels[indices].astype(np.int32))


def _read_labels(path: Path, count: int) -> np.ndarray:
    """Whole numbers from a `.npy`, one for each image in the data's own order."""
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable .npy file of labels ({error})") from error
    if not isinstance(labels, np.ndarray) or labels.shape != (count,) or labels.dtype.kind not in "iu":
        shape = getattr(labels, "shape", "several arrays")
        raise DataError(f"{path}: labels of shape {shape}, expected {count} whole numbers, one for each image")
    return labels
