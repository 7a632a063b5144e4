"""Images that are numbers already: NumPy and JAX arrays, `.npy` and `.npz` files."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from byol_jax.data.dataset import Dataset, row_numbers
from byol_jax.errors import DataError, one_line

__all__ = [
    "LAYOUTS",
    "array_dataset",
    "check_grey",
    "check_images",
    "check_layout",
    "is_channels_first",
    "is_float",
    "is_whole",
    "read_array_file",
    "to_numpy",
]

LAYOUTS = ("NHWC", "NCHW")
"""Where an array [N, ., ., .] may have its channels: last, as everything here has them, or first, as torch has them."""

_IMAGE_KEYS = ("images", "x", "x_train", "arr_0")
_LABEL_KEYS = ("labels", "y", "y_train")

_LOOKED_AT = 2**30
"""Bytes. Of a larger array only evenly spaced images that make up this much are checked and hashed: otherwise a
memory-mapped file of 100 GB would be read for minutes before anything starts."""


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype is floating; bfloat16 is, though NumPy doesn't know it as such."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def is_whole(dtype: Any) -> bool:
    """Whether a dtype is uint8 or uint16, in either order of bytes, which images may have whatever their range."""
    return np.dtype(dtype).newbyteorder("=") in (np.uint8, np.uint16)


def check_images(images: Any, *, num_channels: int | None, what: str, any_range: bool = False) -> None:
    """Checks an array of images: rank 4, channels last and as many as wanted, uint8, uint16 or floating in [0, 1].

    Args:
        images: [N, H, W, C]; all of it is looked at for floats.
        what: the data's name in messages.
        any_range: whether floats may have any finite values, since whoever takes them knows their range.

    Raises:
        DataError: it is something else; the message says what.
    """
    shape = images.shape
    if len(shape) != 4 or 0 in shape:
        hint = "; volumes go with their whole shape, image_size=(D, H, W, C), and an augment_fn" * (len(shape) == 5)
        raise DataError(f"{what}: shape {shape}, expected [N, H, W, C] with at least one image{hint}")
    if num_channels is not None and shape[3] != num_channels:
        raise DataError(f"{what}: images of {shape[3]} channels (shape {shape}), but num_channels is {num_channels}")
    _check_numbers(images, what=what, any_range=any_range)


def _check_numbers(images: Any, *, what: str, any_range: bool) -> None:
    """The dtype and the range, as `check_images` says."""
    dtype = np.dtype(images.dtype)
    if is_whole(dtype):
        return
    if not is_float(dtype) and dtype.kind not in "iub":
        raise DataError(f"{what}: dtype {dtype}, expected uint8, uint16 or floats in [0, 1]")
    low, high = np.min(images), np.max(images)
    if not is_float(dtype):
        raise DataError(
            f"{what}: dtype {dtype} with values {low} to {high}, expected uint8, uint16 or floats in [0, 1]"
        )
    if any_range and not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{what}: {dtype} values from {low} to {high}, expected finite floats")
    if not any_range and not (low >= 0 and high <= 1):  # NaN fails both
        raise DataError(
            f"{what}: {dtype} values from {low} to {high}, expected floats in [0, 1] (or uint8, uint16, or a value"
            " range: --value-range, value_range=)"
        )


def _check_inputs(inputs: Any, *, input_shape: tuple[int, ...], what: str, any_range: bool) -> None:
    """Checks an array of inputs that aren't images: as many axes and channels as wanted.

    Raises:
        DataError: it is something else; the message says what.
    """
    shape = inputs.shape
    if len(shape) != 1 + len(input_shape) or shape[-1] != input_shape[-1] or 0 in shape:
        axes = ", ".join(["N", *("…" for _ in input_shape[:-1]), str(input_shape[-1])])
        raise DataError(f"{what}: shape {shape}, expected [{axes}] for inputs of shape {input_shape}, channels last")
    _check_numbers(inputs, what=what, any_range=any_range)


def _check_unmasked(array: Any, what: str) -> None:
    """Raises DataError for a masked array: NumPy gives what lies below the mask, which is anything."""
    if isinstance(array, np.ma.MaskedArray):
        raise DataError(
            f"{what}: a masked array, of which the numbers below the mask would be used: fill it first, .filled(0)"
        )


def to_numpy(array: Any, what: str) -> np.ndarray:
    """Anything array-like as an array of NumPy's, without a copy where none is needed.

    Raises:
        DataError: masked, or it can't be converted.

    Example:
        >>> to_numpy([[1, 2], [3, 4]], "batch 0").shape
        (2, 2)
    """
    _check_unmasked(array, what)
    try:
        return np.asarray(array)
    except Exception as error:  # a GPU tensor, a ragged list: whatever their own conversion raises
        raise DataError(f"{what}: can't be made a NumPy array ({one_line(error, at_most=200)})") from error


def is_channels_first(shape: tuple[int, ...], *, num_channels: int | None) -> bool:
    """Whether the second axis of an array [N, ., ., .] alone has the channels' number, or else 1 or 3: [N, C, H, W].

    Example:
        >>> is_channels_first((8, 3, 32, 32), num_channels=3), is_channels_first((8, 3, 3, 3), num_channels=3)
        (True, False)
    """
    _, first, second, third = shape
    known = (1, 3) if num_channels is None else (num_channels,)
    return first in known and third not in known and min(second, third) > 1


def check_layout(shape: tuple[int, ...], *, num_channels: int | None, what: str) -> None:
    """Returns where the last axis of an array [N, ., ., .] alone can be its channels.

    The channels' number, or else 1 and 3, decides where one axis alone has it. Otherwise the last axis is taken for the
    channels where it is shorter than the rows and not longer than the columns: as channels the rows were too many. But
    where the last two axes are equal and no number is given, [N, 64, 32, 32], they may be rows and columns.

    Raises:
        DataError: the channels are first, or could be.
    """
    _, first, second, third = shape
    known = (1, 3) if num_channels is None else (num_channels,)
    square = num_channels is None and second == third != first
    if third in known and first not in known and not square:
        return
    if is_channels_first(shape, num_channels=num_channels):
        raise DataError(
            f"{what}: shape {shape} has its channels first: give [N, H, W, C], array.transpose(0, 2, 3, 1)"
            ", or say layout NCHW (--layout, layout=)"
        )
    if third < first and third <= second and not square:
        return
    raise DataError(
        f"{what}: shape {shape} may be {first} × {second} pixels of {third} channels (NHWC) or"
        f" {second} × {third} pixels of {first} channels (NCHW): say which layout (--layout, layout=)"
    )


def check_grey(shape: tuple[int, ...], *, num_channels: int | None, what: str) -> None:
    """Returns where an array of rank 3 can only be grey images, [N, H, W].

    Raises:
        DataError: it could be one image of 1, 3 or 4 channels, and nobody says that there is one; or a stack [H, W, N].
    """
    count, height, width = shape
    grey = f"{what}: shape {shape} may be {count} grey images of {height} × {width} pixels"
    if width in (1, 3, 4):
        if num_channels != 1:
            raise DataError(
                f"{grey} or one of {count} × {height} pixels and {width} channels: give array[..., None] or array[None]"
            )
    elif count == height != width:
        raise DataError(f"{grey} or {width} of {count} × {height}: give array[..., None] or np.moveaxis(array, -1, 0)")


def _check_labels(labels: Any, count: int, what: str) -> np.ndarray:
    _check_unmasked(labels, f"{what}: labels")
    labels = np.asarray(labels)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{what}: labels of shape {labels.shape} and dtype {labels.dtype} for {count} images, "
            f"expected one whole number for each image, shape ({count},)"
        )
    return labels.astype(np.int32)


def _identity(images: np.ndarray, looked_at: np.ndarray, kind: str) -> dict[str, Any]:
    digest = hashlib.sha256(f"{images.shape} {images.dtype.name}".encode())
    for image in looked_at:
        digest.update(np.ascontiguousarray(image).view(np.uint8).data)
    deep = {"dtype": "uint16"} if _dtype(images) == "uint16" else {}
    return {"kind": kind, "count": len(images), "sha256": digest.hexdigest(), **deep}


def _dtype(images: np.ndarray) -> str:
    """What `take` gives of an array: its own whole numbers, in the machine's order of bytes, or float32."""
    return images.dtype.newbyteorder("=").name if is_whole(images.dtype) else "float32"


def _narrow(looked_at: np.ndarray) -> str | None:
    """A line on whole numbers of 16 bits that fill at most a quarter of their range."""
    if _dtype(looked_at) != "uint16" or (looked_at.max() - looked_at.min()) > 65535 // 4:
        return None
    return (
        f"uint16 values from {looked_at.min()} to {looked_at.max()} fill at most a quarter of 0 to 65535, which becomes"
        " [0, 1]: give the range that does, value_range=(low, high) or --value-range auto"
    )


def array_dataset(
    images: Any,
    labels: Any = None,
    *,
    num_channels: int | None = None,
    what: str = "array",
    kind: str = "array",
    class_names: tuple[str, ...] | None = None,
    layout: str | None = None,
    any_range: bool = False,
    input_shape: tuple[int, ...] | None = None,
) -> Dataset:
    """An array of images as a `Dataset`; nothing is copied until images are taken.

    Args:
        images: [N, H, W, C] or [N, H, W] (one channel): uint8, uint16, or any floating type with values in [0, 1],
            which `take` gives as float32. Up to 1 GiB all values are checked, above that evenly spaced images.
        labels: [N] whole numbers, or None.
        num_channels: compared with C where given.
        layout: "NHWC" or "NCHW", [N, C, H, W]; None where there is no doubt.
        any_range: whether floats may have any finite values.
        input_shape: of inputs that aren't images, one's whole shape, (D, H, W, C) of a volume: then the array has these
            axes behind N and as many channels; its other sides may differ, since an augmentation gives them.

    Raises:
        DataError: masked, another shape, dtype, range or number of channels or labels, or a shape that could be
            something else; the message says which.

    Example:
        >>> array_dataset(np.zeros((10, 32, 32, 3), np.uint8)).image_shape
        (32, 32, 3)
    """
    images = to_numpy(images, what)
    if input_shape is not None:
        pass  # its axes are known
    elif images.ndim == 3:
        check_grey(images.shape, num_channels=num_channels, what=what)
        images = images[..., None]  # [N, H, W, 1]
    elif images.ndim == 4 and layout == "NCHW":
        images = images.transpose(0, 2, 3, 1)  # [N, H, W, C]
    elif images.ndim == 4 and layout is None:
        check_layout(images.shape, num_channels=num_channels, what=what)
    size = images.nbytes if images.ndim else 0
    rows = len(images) if size <= _LOOKED_AT else max(1, int(len(images) * _LOOKED_AT / size))
    looked_at = images if not size or rows == len(images) else images[np.linspace(0, len(images) - 1, rows).astype(int)]
    if input_shape is None:
        check_images(looked_at, num_channels=num_channels, what=what, any_range=any_range)
    else:
        _check_inputs(looked_at, input_shape=input_shape, what=what, any_range=any_range)
    labels = None if labels is None else _check_labels(labels, len(images), what)
    out_dtype = _dtype(images)

    def take(indices: Any, *, workers: int | None = None) -> np.ndarray:
        del workers  # nothing to decode
        return np.asarray(images[row_numbers(indices, len(images))]).astype(out_dtype, copy=False)  # [n, H, W, C]

    return Dataset(
        take,
        len(images),
        tuple(map(int, images.shape[1:])),
        _identity(images, looked_at, kind),
        labels,
        class_names,
        dtype=out_dtype,
        narrow=_narrow(looked_at),
    )


def _first_of(archive: Any, keys: tuple[str, ...]) -> str | None:
    return next((key for key in keys if key in archive), None)


def read_array_file(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Images and labels from a `.npy` (memory-mapped, no labels) or `.npz` file; nothing in it is ever unpickled.

    In a `.npz` the images are `images`, `x`, `x_train` or `arr_0`, the labels `labels`, `y` or `y_train`, if any.

    Raises:
        DataError: not such a file, damaged, or without images.
    """
    try:
        if path.suffix.lower() == ".npy":
            images = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(images, np.ndarray):
                raise ValueError("it is an archive: name it .npz")
            return images, None
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            images_key, labels_key = _first_of(archive, _IMAGE_KEYS), _first_of(archive, _LABEL_KEYS)
            if images_key is None:
                raise DataError(f"{path}: holds {', '.join(archive) or 'nothing'}; name the images {_IMAGE_KEYS[0]!r}")
            return archive[images_key], archive[labels_key] if labels_key else None
    except DataError:
        raise
    except Exception as error:  # zip, zlib, header and memory errors of a damaged file
        reason = one_line(error, at_most=200)
        raise DataError(f"{path}: can't be read as a NumPy file of plain numbers ({reason})") from error
