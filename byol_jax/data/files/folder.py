"""A folder's files as encoded images, and the labels that its sub-folders give them."""

from functools import partial
from pathlib import Path

import numpy as np

from byol_jax.data.files.encoded import EncodedImages
from byol_jax.data.files.file_list import list_images
from byol_jax.data.files.image_names import extensions_of, is_image_name
from byol_jax.data.files.kept_list import KeptList
from byol_jax.errors import DataError
from byol_jax.file_names import describe_data

__all__ = ["folder_images"]


def folder_images(root: Path, *, workers: int) -> EncodedImages:
    """A folder's files; their labels are its sub-folders.

    Args:
        workers: threads that look at them.

    Raises:
        DataError: no file in it is named as an image.
    """
    listing = list_images(root, workers=workers)
    if not listing.files and not any(is_image_name(name, listing.extensions) for name, _ in listing.skipped):
        names = listing.others or [name for name, _ in listing.skipped[:3]]
        found = f"it holds {', '.join(map(repr, names))}" if names else "it is empty"
        advice = next(
            (f"{name!r} is {words}" for name in names if (words := describe_data(name))), "give another folder"
        )
        raise DataError(
            f"{root}: no file in it is named as an image (.jpg .png .webp .bmp .tif .gif .dcm .npy): {found}: {advice}"
        )
    return EncodedImages(root, listing, partial(_labels, root=root), "folder")


def _labels(kept: KeptList, *, root: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels from the first-level folders; a class counts even where none of its images is usable."""
    outside = [name for name in kept.files.names if "/" not in name]
    if outside:
        raise DataError(
            f"{root}: labels come from its sub-folders, and {len(outside)} images lie outside of them "
            f"(the first: {outside[0]!r}): move them into a folder named after their class"
        )
    names = [*kept.files.names, *(name for name, _ in kept.skipped)]
    extensions = extensions_of(kept.files.names)
    paths = [name for name in names if is_image_name(name, extensions) and "/" in name]
    class_names = tuple(sorted({path.split("/")[0] for path in paths}))
    number = {name: label for label, name in enumerate(class_names)}
    return np.array([number[name.split("/")[0]] for name in kept.image_names], np.int32), class_names
