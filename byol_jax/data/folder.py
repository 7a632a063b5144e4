"""A folder of image files as a `Dataset`: looked through once, decoded when asked for, labelled by its sub-folders.

A file may fail although it was looked at before training: it vanished or changed since, or the folder was so large
that only headers were read. Then the next file in order replaces it, of the same class where there are labels. The
same file always gets the same replacement, whoever asks and when.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from byol_jax.data.dataset import Dataset, row_numbers
from byol_jax.data.decode import UnusableImageError, check_header, read_image, uniform_warnings
from byol_jax.data.file_list import (
    Listing,
    Verdict,
    identity_of,
    is_image_name,
    judge,
    list_images,
    load_verdict,
    save_verdict,
)
from byol_jax.data.fit import common_shape, load_size
from byol_jax.data.survey import WHOLE, Survey
from byol_jax.errors import ConfigurationError, DataError
from byol_jax.image_size import image_sides

__all__ = ["open_folder"]


def open_folder(
    root: Path,
    *,
    image_size: int | tuple[int, int] | None,
    fit: str,
    num_channels: int,
    with_labels: bool,
    workers: int,
    progress: Callable[[int, int], None] | None,
    verdict_path: Path | None,
    scan_limit: int,
    cache_bytes: int,
    dtype: str | None,
) -> Dataset:
    """A folder of images; `open_dataset` documents the arguments and checks `root`."""
    if num_channels not in (1, 3):
        raise ConfigurationError(f"num_channels {num_channels}: image files give 1 or 3; others come from arrays only")
    listing, added, reasons = _list_or_refuse(root), (), {}
    kept = load_verdict(verdict_path, listing, folder=root) if verdict_path and verdict_path.exists() else None
    if kept is not None:
        added = kept.additions(listing)
        listing = Listing(kept.files, kept.skipped, ())
    names = [name for name, _ in listing.files]

    survey, doubts, mixture = Survey(root, names, workers=workers, progress=progress), (), ()
    with uniform_warnings():
        used = kept.dtype if kept is not None else dtype or _dtype(is_deep=survey.first_depth() in WHOLE)
        is_grey = kept is not None and kept.is_grey
        wanted = size = None if image_size is None else load_size(image_size)
        sizes: dict[int, tuple[int, int]] = {}
        if wanted is not None and fit == "none":
            if kept is None or kept.shape is None:
                sizes = survey.sizes()
            size = (kept and kept.shape) or common_shape(list(sizes.values()), wanted)
        shape = (*size, num_channels) if size is not None else _shape_of_first(root, listing, num_channels)
        options = {"fit": None if size is None else fit, "cache_bytes": cache_bytes}
        decode = _Decoder(root, names, shape, dtype=used, **options)
        if kept is None:
            reasons = survey.failures(decode if len(names) <= scan_limit else None)
            used, before = dtype or _dtype(is_deep=survey.is_deep(reasons)), used
            is_grey = used == "uint16" and survey.is_grey(reasons)
            doubts = survey.doubts(reasons, dtype=used)
            mixture = survey.mixture(reasons) if used == "uint16" else ()
            if used != before:  # the first file's depth isn't the folder's: the others are decoded again when asked for
                decode = _Decoder(root, names, shape, dtype=used, **options)
        if wanted is not None and reasons.keys() & sizes.keys():  # of pictures that aren't used no shape is taken
            size = common_shape([one for file, one in sizes.items() if file not in reasons], wanted)
            if (*size, num_channels) != shape:
                shape = (*size, num_channels)
                decode = _Decoder(root, names, shape, dtype=used, **options)
    verdict = kept or judge(root, listing, reasons)._replace(
        shape=size if fit == "none" else None, dtype=used, is_grey=is_grey
    )
    labels, class_names = _labels(verdict, root) if with_labels else (None, None)
    if kept is None and verdict_path is not None:
        save_verdict(verdict_path, verdict)

    files = np.array([file for file in range(len(names)) if file not in reasons], np.int64)
    taker = _Taker(decode, files, labels, shape=shape, dtype=used, workers=workers)
    return Dataset(
        take=taker.take,
        count=len(files),
        image_shape=shape,
        identity=identity_of(verdict),
        labels=labels,
        class_names=class_names,
        names=tuple(name for name, _ in verdict.files),
        evaluation_crop=None if image_size is None else _evaluation_crop(image_size, fit, shape),
        remarks=mixture if used == "uint16" else doubts,
        dtype=used,
        range_is_known=not is_grey,
        narrow=next(iter(doubts), None) if used == "uint16" else None,
        list_skipped=lambda: (
            *verdict.skipped,
            *added,
            *((verdict.files[index][0], reason) for index, reason in taker.failures().items()),
        ),
    )


def _dtype(*, is_deep: bool) -> str:
    return "uint16" if is_deep else "uint8"


def _evaluation_crop(
    image_size: int | tuple[int, int], fit: str, shape: tuple[int, int, int]
) -> tuple[int, int] | None:
    """The centre crop of an evaluation: 7/8 of what covers the view; of a contained picture nothing is cut off."""
    if fit == "contain":
        return None
    (height, width), loaded = image_sides(image_size), load_size(image_size)
    scale = min(shape[0] / loaded[0], shape[1] / loaded[1])  # 1 but for a long shape, which is smaller
    return round(height * scale), round(width * scale)


def _list_or_refuse(root: Path) -> Listing:
    listing = list_images(root)
    if not listing.files and not any(is_image_name(name) for name, _ in listing.skipped):
        names = listing.others or [name for name, _ in listing.skipped[:3]]
        found = f"it holds {', '.join(map(repr, names))}" if names else "it is empty"
        raise DataError(
            f"{root}: no file in it is named as an image (.jpg .png .webp .bmp .tif .gif): {found}: give another folder"
        )
    return listing


def _shape_of_first(root: Path, listing: Listing, num_channels: int) -> tuple[int, int, int]:
    """The shape of the first image that can be used, for a folder whose images keep their size."""
    for name, _ in listing.files:
        try:
            check_header(root / name)
            height, width, _ = read_image(root / name, size=None, num_channels=num_channels).shape
        except UnusableImageError:
            continue
        return height, width, num_channels
    return 1, 1, num_channels  # none can be used: the scan says so, file by file


def _labels(verdict: Verdict, root: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels from the first-level folders; a class counts even where none of its images is usable."""
    outside = [name for name, _ in verdict.files if "/" not in name]
    if outside:
        raise DataError(
            f"{root}: labels come from its sub-folders, and {len(outside)} images lie outside of them "
            f"(the first: {outside[0]!r}): move them into a folder named after their class"
        )
    paths = [name for name, _ in (*verdict.files, *verdict.skipped) if is_image_name(name) and "/" in name]
    class_names = tuple(sorted({path.split("/")[0] for path in paths}))
    number = {name: label for label, name in enumerate(class_names)}
    return np.array([number[name.split("/")[0]] for name, _ in verdict.files], np.int32), class_names


class _Decoder:
    """`decoder(i)` gives the pixels of file number i, `shape`; none is decoded twice where all fit `cache_bytes`.

    Args:
        root, names: the files.
        shape: (h, w, C) of every image.
        dtype: "uint8" or "uint16".
        fit: how an image gets `shape`, one of `FITS`; with None an image of another size is a DataError.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        shape: tuple[int, int, int],
        *,
        dtype: str,
        fit: str | None,
        cache_bytes: int,
    ) -> None:
        self.root, self.names, self.shape, self.dtype, self.fit = root, names, shape, np.dtype(dtype), fit
        fits = len(names) * int(np.prod(shape)) * self.dtype.itemsize <= cache_bytes
        self.cache = np.empty((len(names), *shape), self.dtype) if fits else None  # untouched pages cost nothing
        self.filled = np.zeros(len(names), bool)

    def __call__(self, file: int) -> np.ndarray:
        if self.cache is not None and self.filled[file]:
            return self.cache[file]
        name = self.names[file]
        image = self._read(self.root / name)
        if image.shape != self.shape:
            raise DataError(
                f"{self.root}: images differ in size ({name!r} is {image.shape[0]} × {image.shape[1]}, the first is "
                f"{self.shape[0]} × {self.shape[1]}): give image_size"
            )
        if self.cache is not None:
            self.cache[file] = image
            self.filled[file] = True  # last: another thread may look at any moment
        return image

    def _read(self, path: Path) -> np.ndarray:
        if self.fit is None:
            return read_image(path, size=None, num_channels=self.shape[2], dtype=self.dtype)
        return read_image(path, size=self.shape[:2], num_channels=self.shape[2], fit=self.fit, dtype=self.dtype)


class _Taker:
    """The `take` of a folder, which remembers the files that failed.

    Args:
        decode: `decode(file number) -> [h, w, C]`, raises `UnusableImageError`.
        files: int64 [count], the file number of each image.
        labels: int32 [count] or None; a replacement has the same label.
        shape: (h, w, C). dtype: "uint8" or "uint16".
        workers: threads, where the caller gives no number.

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
        dtype: str,
        workers: int,
    ) -> None:
        self.decode, self.files, self.labels, self.workers = decode, files, labels, workers
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.failed: dict[int, str] = {}
        self.lock = threading.Lock()

    def replacements(self, index: int) -> np.ndarray:
        """The images that may replace one, in the order of trying: later ones, then from the start again."""
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
        wanted = row_numbers(indices, len(self.files))
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
