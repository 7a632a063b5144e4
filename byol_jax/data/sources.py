"""Makes a `Dataset` of what a person gives: a folder, a file, an array, or a word; says what is wrong with it."""

import difflib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from byol_jax.data.arrays import LAYOUTS, array_dataset, read_array_file
from byol_jax.data.dataset import Dataset
from byol_jax.data.embedded import FASHION_MNIST_CLASSES, fashion_mnist
from byol_jax.data.files.encoded import EncodedImages, open_encoded
from byol_jax.data.files.folder import folder_images
from byol_jax.data.fit import check_fit
from byol_jax.data.items import gives_images, item_dataset
from byol_jax.data.readers.reading import make_reading
from byol_jax.data.shards.find import Shards, find_shards
from byol_jax.data.shards.parquet import parquet_images
from byol_jax.data.shards.records import record_images
from byol_jax.data.shards.tar import tar_images
from byol_jax.errors import ConfigurationError, DataError
from byol_jax.file_names import describe_data
from byol_jax.image_size import image_sides

__all__ = ["EMBEDDED", "SCAN_LIMIT", "ImageWarning", "open_dataset"]

EMBEDDED = "fashion-mnist"
"""The word for the images that come with the package."""

SCAN_LIMIT = 20_000
"""Folders of at most this many images are decoded once before training: about 80 s at 4 ms for a JPEG of 500 × 375."""

CACHE_BYTES = 512 * 2**20
"""Decoded images that fit into this much memory are kept, and no file is decoded twice."""


class ImageWarning(UserWarning):
    """Images of a folder are used, and may not be what they seem; the text counts and names them."""


def open_dataset(
    source: Any,
    *,
    image_size: int | tuple[int, ...] | None = None,
    num_channels: int | None = None,
    with_labels: bool | None = False,
    fit: str = "cover",
    layout: str | None = None,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    verdict_path: str | Path | None = None,
    scan_limit: int = SCAN_LIMIT,
    cache_bytes: int = CACHE_BYTES,
    dtype: str | None = None,
    any_range: bool = False,
    bands: Sequence[int] | None = None,
    tiff_axes: str | None = None,
    dicom_rescale: bool = False,
) -> Dataset:
    """Images from anywhere, checked before anything is trained on them.

    Args:
        source: a folder of image files (nested; pictures and TIFFs, or DICOM, or .npy files); shards, as a folder of
            them, a file or a pattern, "shards/{000..099}.tar" or "shards/*.tar"; a `.npz` or `.npy` file;
            "fashion-mnist", the embedded images; an array [N, H, W, C] or [N, H, W], uint8, uint16 or floating in
            [0, 1]; (images, labels); or a map-style dataset, torch's for instance, whose items are pictures or arrays,
            or begin with one.
        image_size: the size to train with. A folder's images are resized for it; with None they keep their size, which
            must be the same for all. Arrays keep theirs. With a whole input shape, as `make_learner` takes
            it, (D, H, W, C) of a volume, an array [N, …] has these axes, and as many channels.
        num_channels: of a folder 1 (luminance) or 3, to which pictures are converted, or any other, which its files
            then have; None: as many as `bands`, or 3. An array must have as many.
        with_labels: whether labels are needed: a folder's first-level sub-folders, sorted; of shards what stands beside
            an image. None: of a folder or shards where they have them, else one of the dataset's `notes` says what is
            wrong. Arrays keep theirs anyway.
        fit: how a folder's images get one shape. "cover": resized to cover `load_size(image_size)`, the rest of the
            longer side cut off; "contain": resized to fit into it, the rest black; "none": nothing is cut off, each
            side is resized by itself to a shape that the folder's images have in common, and which covers it.
        layout: "NHWC" or "NCHW" for an array of rank 4; None: NHWC, and a question where it could be the other.
        workers: threads that decode. progress: `progress(done, total)`, called while a folder is looked through.
        verdict_path: where the list of usable files is kept. It is written if absent, else read, so that a resumed run
            starts at once and sees the same images even if the folder has changed. Of tar shards it is kept beside it
            where their images lie, in a file of the same name that ends with .index. Neither is written again: a run
            does that.
        scan_limit: of more images than this only the headers are read at first; what fails later is replaced.
        cache_bytes: a folder whose decoded images fit is kept in memory.
        dtype: "uint8", "uint16" or "float32" for a folder's images. None: float32 where at least half of the files have
            signed numbers, those of 32 bits or floats; uint16 where at least half have 16 bits a channel (one of 8 is
            then multiplied by 257, which is said); else uint8.
        any_range: whether whoever takes the images gives the range that becomes [0, 1]: then floats may have any
            finite values, and nothing is said of 16 bits that fill little of 0 to 65,535.
        bands: which channels of a folder's files are used, counted from 1, in this order; channels are then as they are
            stored, and grey isn't made of colour.
        tiff_axes: letters of a TIFF's axes that become channels, every other axis gives images; None: C and S.
        dicom_rescale: whether slope and intercept of DICOM files are applied.

    Raises:
        DataError: absent, empty, not images, over half of it unusable, of another shape, dtype or range, or an array
            that could be read in either layout.
        ConfigurationError: an impossible image size, number of channels, dtype or workers; `fit`, `dtype`, `bands`,
            `tiff_axes` or `dicom_rescale` without a folder, or `layout` with one.

    Warns:
        ImageWarning: for each of the dataset's `remarks`, and of what is `narrow`.

    Example:
        >>> open_dataset("fashion-mnist", num_channels=1).image_shape
        (28, 28, 1)
    """
    if workers < 1:
        raise ConfigurationError(f"workers {workers}: at least 1 is needed")
    input_shape = tuple(image_size) if isinstance(image_size, tuple | list) and len(image_size) > 2 else None
    if image_size is not None and input_shape is None:
        image_sides(image_size)
    check_fit(fit)
    if dtype not in (None, "uint8", "uint16", "float32"):
        raise ConfigurationError(f"dtype {dtype!r}: give 'uint8', 'uint16', 'float32' or None")
    if layout is not None and layout not in LAYOUTS:
        raise ConfigurationError(f"layout {layout!r}: give NHWC (channels last) or NCHW")
    if isinstance(source, str) and not source:
        raise DataError(f"an empty name for the data: give a folder of images, a .npz or .npy file, or {EMBEDDED}")
    path = Path(source) if isinstance(source, (str, Path)) and source != EMBEDDED else None
    shards = None if path is None else find_shards(source)
    if path is not None and (shards is not None or os.path.isdir(path)):
        if layout is not None:
            raise ConfigurationError(f"layout {layout}: only an array has one, and {path} holds image files")
        if input_shape is not None:
            raise ConfigurationError(f"image_size {image_size}: a whole input shape is for arrays, {path} holds files")
        if fit != "cover" and image_size is None:
            raise ConfigurationError(f"fit {fit!r}: needs an image_size")
        if shards is not None and (tiff_axes is not None or dicom_rescale):
            raise ConfigurationError("tiff_axes, dicom_rescale: only for a folder of image files; shards hold pictures")
        dataset = open_encoded(
            folder_images(path, workers=workers)
            if shards is None
            else _shard_images(shards, workers, progress, verdict_path),
            image_size=cast("int | tuple[int, int] | None", image_size),
            fit=fit,
            reading=make_reading(num_channels, bands=bands, tiff_axes=tiff_axes, dicom_rescale=dicom_rescale),
            with_labels=with_labels,
            workers=workers,
            progress=progress,
            verdict_path=None if verdict_path is None else Path(verdict_path),
            scan_limit=scan_limit,
            cache_bytes=cache_bytes,
            dtype=dtype,
        )
        _warn(dataset, str(path) if shards is None else shards.place, any_range)
        return dataset
    if dtype is not None:
        raise ConfigurationError(f"dtype {dtype!r}: only for a folder of image files; an array has its own")
    named = {"bands": bands, "tiff_axes": tiff_axes, "dicom_rescale": dicom_rescale or None}
    if given := [name for name, value in named.items() if value is not None]:
        raise ConfigurationError(
            f"{', '.join(given)}: only for a folder of image files; of an array give the part itself"
        )
    if isinstance(source, str) and source == EMBEDDED and (layout is not None or input_shape is not None):
        given = f"image_size {image_size}" if layout is None else f"layout {layout}"
        raise ConfigurationError(f"{given}: {EMBEDDED} has its own")
    if path is None and not isinstance(source, str) and input_shape is None and gives_images(source):
        options: dict[str, Any] = {"image_size": image_size, "num_channels": num_channels, "with_labels": with_labels}
        options |= {"fit": fit, "layout": layout, "workers": workers, "any_range": any_range}
        dataset = item_dataset(source, **options)
        _warn(dataset, type(source).__name__, any_range)
        return dataset
    if fit != "cover":
        raise ConfigurationError(f"fit {fit!r}: only for a folder of image files; an array's images keep their size")
    dataset = _open_numbers(source, path, num_channels, layout, any_range, input_shape)
    if with_labels and dataset.labels is None:
        raise DataError("labels are needed, and these images have none: give (images, labels), or a .npz with both")
    _warn(dataset, "array" if path is None else str(path), any_range)
    return dataset


def _shard_images(
    shards: Shards, workers: int, progress: Callable[[int, int], None] | None, verdict_path: str | Path | None
) -> EncodedImages:
    if shards.kind == "parquet":
        images = parquet_images(shards)
    elif shards.kind == "tar":
        known = None if verdict_path is None else Path(verdict_path).with_suffix(".index")
        images = tar_images(shards, workers=workers, progress=progress, known=known)
    else:
        images = record_images(shards, workers=workers, progress=progress)
    return images._replace(notes=shards.notes)


def _warn(dataset: Dataset, what: str, any_range: bool) -> None:
    narrow = () if any_range or dataset.narrow is None else (dataset.narrow,)
    for remark in (*dataset.remarks, *narrow):
        warnings.warn(f"{what}: {remark}", ImageWarning, stacklevel=3)


def _open_numbers(
    source: Any,
    path: Path | None,
    num_channels: int | None,
    layout: str | None,
    any_range: bool,
    input_shape: tuple[int, ...] | None,
) -> Dataset:
    """All sources but folders."""
    options: dict[str, Any] = {"num_channels": num_channels, "layout": layout, "any_range": any_range}
    options["input_shape"] = input_shape
    if path is not None:
        _check_array_file(path)
        return array_dataset(*read_array_file(path), **options, what=str(path))
    if isinstance(source, str):
        names = FASHION_MNIST_CLASSES
        return array_dataset(
            *fashion_mnist(), num_channels=num_channels, what=EMBEDDED, kind=EMBEDDED, class_names=names
        )
    return array_dataset(*_images_and_labels(source), **options)


def _nearest_path(path: Path) -> str | None:
    """What the user may have meant: a name beside the one given, or the embedded images' word."""
    try:
        siblings = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        siblings = []
    alike = difflib.get_close_matches(path.name, [*siblings, EMBEDDED], n=1, cutoff=0.5)
    return None if not alike else alike[0] if alike[0] not in siblings else str(path.parent / alike[0])


def _check_array_file(path: Path) -> None:
    if not os.path.exists(path):
        alike = _nearest_path(path)
        hint = f"did you mean {alike}?" if alike else f"give a folder of images, a .npz or .npy file, or {EMBEDDED}"
        raise DataError(f"{path}: no such folder or file: {hint}")
    if words := describe_data(path.name):
        raise DataError(f"{path}: is {words}")
    if path.suffix.lower() not in (".npy", ".npz") or not path.is_file():
        raise DataError(f"{path}: is neither a folder of images nor a .npz or .npy file: give one of these")


def _images_and_labels(source: Any) -> tuple[Any, Any]:
    if isinstance(source, tuple) and len(source) == 2:
        return source
    if isinstance(source, (list, tuple, dict)) or not (hasattr(source, "__array__") or isinstance(source, np.ndarray)):
        raise DataError(
            f"{type(source).__name__}: give a folder, a .npz or .npy file, {EMBEDDED!r}, an array or (images, labels); "
            "batches from elsewhere go through IterableLoader"
        )
    return source, None
