"""The two sets of images: all of Fashion-MNIST from Debian's files, and photos of solar cells from elpv-dataset.

Neither is part of this project. The photos are CC BY-NC-SA 4.0: for tests and benchmarks, never shipped.
"""

import csv
import gzip
import hashlib
import importlib.util
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from byol_jax.errors import DataError

__all__ = ["DEBIAN", "Images", "fashion_mnist", "fingerprint", "first", "open_images", "photos", "rgb"]

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts the files."""
HOW_FASHION = "apt-get install dataset-fashion-mnist, or unpack it with dpkg-deb -x: --fashion-mnist DIR"
HOW_PHOTOS = "pip install elpv-dataset (CC BY-NC-SA 4.0), or name the folder of its labels.csv: --photos DIR"
HELD_OUT = 4
"""Of the photos every fourth, in the order of labels.csv, is for testing: the set has no split of its own."""


class Images(NamedTuple):
    """uint8 [N, H, W, C] and int32 [N], to train on and to test on."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def open_images(name: str, places: Mapping[str, Path | None], *, image_size: int) -> Images:
    """The set `name`, "fashion-mnist" or "photos"; `places` are the folders that the user gave.

    Args:
        image_size: of the photos, which are 300 x 300. Fashion-MNIST stays at 28.

    Raises:
        DataError: it isn't there or isn't whole; the line says how to get it.
    """
    folder = places.get(name)
    return fashion_mnist(folder or DEBIAN) if name == "fashion-mnist" else photos(folder, image_size=image_size)


def fashion_mnist(folder: Path) -> Images:
    """60,000 and 10,000 grey images of clothes, 28 x 28, ten classes; in file order.

    Raises:
        DataError: a file isn't there or isn't what its name says.
    """
    arrays = []
    for part in ("train", "t10k"):
        images = _idx(folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)
        labels = _idx(folder / f"{part}-labels-idx1-ubyte.gz", dimensions=1)
        if len(images) != len(labels):
            raise DataError(f"{folder}: {len(images):,} images and {len(labels):,} labels in {part}; {HOW_FASHION}")
        arrays += [images[..., None], labels.astype(np.int32)]
    return Images(*arrays)


def _idx(path: Path, *, dimensions: int) -> np.ndarray:
    """One IDX file of bytes: 0, 0, 8 for unsigned bytes, the number of dimensions, their sizes, the bytes."""
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); {HOW_FASHION}") from error
    start = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", data[4:start]) if len(data) >= start else ()
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) - start != np.prod(shape, dtype=np.int64):
        raise DataError(f"{path}: not an IDX file of bytes with {dimensions} dimensions; {HOW_FASHION}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def photos(folder: Path | None, *, image_size: int) -> Images:
    """2,624 grey photos of solar cells, resized to `image_size`; the label is one of four likelihoods of a defect.

    Raises:
        DataError: elpv-dataset isn't there, or a photo isn't.
    """
    folder = _installed() if folder is None else folder
    images, likelihoods = [], []
    try:
        with open(folder / "labels.csv", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file, delimiter=" ", skipinitialspace=True) if row]
        for path, likelihood, *_ in rows:
            with Image.open(folder / path) as photo:
                resized = photo.convert("L").resize((image_size, image_size), Image.Resampling.BOX)
            images.append(np.asarray(resized))
            likelihoods.append(float(likelihood))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: cannot be read ({error}); {HOW_PHOTOS}") from error
    labels = np.unique(likelihoods, return_inverse=True)[1].astype(np.int32)
    array, held_out = np.stack(images)[..., None], np.arange(len(images)) % HELD_OUT == HELD_OUT - 1
    return Images(array[~held_out], labels[~held_out], array[held_out], labels[held_out])


def _installed() -> Path:
    found = importlib.util.find_spec("elpv_dataset")
    if found is None or found.origin is None:
        raise DataError(f"elpv-dataset isn't installed; {HOW_PHOTOS}")
    return Path(found.origin).parent / "data"


def first(images: Images, count: int | None) -> Images:
    """The first `count` images to train on and to test on; all of them for None."""
    return Images(*(array[:count] for array in images))


def rgb(images: Images) -> Images:
    """Grey images as three equal channels."""
    return images._replace(train=np.repeat(images.train, 3, axis=3), test=np.repeat(images.test, 3, axis=3))


def fingerprint(images: Images) -> str:
    """The first half of the sha256 of all images and labels."""
    digest = hashlib.sha256()
    for array in images:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]
