"""A folder of image files as a `Dataset`: listed, looked through once, labelled by its sub-folders."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from byol_jax.data.dataset import Dataset, height_and_width
from byol_jax.data.decode import UnusableImageError, check_header, load_size, read_image, uniform_warnings
from byol_jax.data.listing import Listing, list_images
from byol_jax.data.reading import Decoder, Taker
from byol_jax.data.verdict import Verdict, identity_of, judge, load_verdict, save_verdict, scan
from byol_jax.errors import ConfigurationError, DataError

__all__ = ["open_folder"]


def _list_or_refuse(root: Path) -> Listing:
    listing = list_images(root)
    if not listing.files and not listing.skipped:
        found = f"it holds {', '.join(map(repr, listing.others))}" if listing.others else "it is empty"
        raise DataError(
            f"{root}: no file in it is named as an image (.jpg .png .webp .bmp .tif .gif): {found}: give another folder"
        )
    return listing


def _shape_of_first(root: Path, listing: Listing, num_channels: int) -> tuple[int, int, int]:
    """The shape of the first image that decodes, for a folder whose images keep their size."""
    for name, _ in listing.files:
        try:
            height, width, _ = read_image(root / name, size=None, num_channels=num_channels).shape
        except UnusableImageError:
            continue
        return height, width, num_channels
    return 1, 1, num_channels  # nothing decodes: the scan says so, file by file


def _labels(verdict: Verdict, root: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels from the first-level folders; a class counts even where none of its images is usable."""
    outside = [name for name, _ in verdict.files if "/" not in name]
    if outside:
        raise DataError(
            f"{root}: labels come from its sub-folders, and {len(outside)} images lie outside of them "
            f"(the first: {outside[0]!r}): move them into a folder named after their class"
        )
    paths = [name for name, _ in (*verdict.files, *verdict.skipped) if "/" in name]
    class_names = tuple(sorted({path.split("/")[0] for path in paths}))
    number = {name: label for label, name in enumerate(class_names)}
    return np.array([number[name.split("/")[0]] for name, _ in verdict.files], np.int32), class_names


def open_folder(
    root: Path,
    *,
    image_size: int | tuple[int, int] | None,
    num_channels: int,
    with_labels: bool,
    workers: int,
    progress: Callable[[int, int], None] | None,
    verdict_path: Path | None,
    scan_limit: int,
    cache_bytes: int,
) -> Dataset:
    """A folder of images; `open_dataset` documents the arguments and checks `root`."""
    if num_channels not in (1, 3):
        raise ConfigurationError(f"num_channels {num_channels}: image files give 1 or 3; others come from arrays only")
    listing, added, reasons = _list_or_refuse(root), (), {}
    kept = load_verdict(verdict_path, listing, folder=root) if verdict_path and verdict_path.exists() else None
    if kept is not None:
        added = kept.added(listing)
        listing = Listing(kept.files, kept.skipped, ())
    names = [name for name, _ in listing.files]

    with uniform_warnings():
        fit = image_size is not None
        shape = (*load_size(image_size), num_channels) if fit else _shape_of_first(root, listing, num_channels)
        decode = Decoder(root, names, shape, fit=fit, cache_bytes=cache_bytes)
        if kept is None:
            check = decode if len(names) <= scan_limit else lambda file: check_header(root / names[file])
            reasons = scan(check, len(names), workers=workers, progress=progress)
    verdict = kept or judge(root, listing, reasons)
    labels, class_names = _labels(verdict, root) if with_labels else (None, None)
    if kept is None and verdict_path is not None:
        save_verdict(verdict_path, verdict)

    files = np.array([file for file in range(len(names)) if file not in reasons], np.int64)
    taker = Taker(decode, files, labels, shape=shape, workers=workers)
    return Dataset(
        take=taker.take,
        count=len(files),
        image_shape=shape,
        identity=identity_of(verdict),
        labels=labels,
        class_names=class_names,
        names=tuple(name for name, _ in verdict.files),
        evaluation_crop=height_and_width(image_size) if image_size is not None else None,
        list_skipped=lambda: (
            *verdict.skipped,
            *added,
            *((verdict.files[index][0], reason) for index, reason in taker.failures().items()),
        ),
    )
