"""Images of many bands and of 16 bits for multichannel.py: two made ones, and tiles of a real scan; folders of TIFFs.

bands    13 bands, uint16. An object of one of three shapes is in bands 0 to 3, among them blue, green and red (1 to
         3), and in one of three groups of bands beyond: 3 x 3 classes, of which red, green and blue tell the shape
         alone, which is right for a third.
cells    1 channel, uint16: a disc or a ring 256 counts above a background of 384, striped across, striped down or
         plain, 85 counts deep, beside specks of up to 30,000: 2 x 3 classes. The upper 8 of the 16 bits, steps of
         256 counts, leave the shape and none of the stripes, which is right for a third.
scan     A magnetic resonance image of a head, 128 x 96 in 24 slices, 0 to 1,162 in int16: nibabel's own example4d,
         the first of its two volumes (Public Domain Dedication and License). Its classes are regions of 24 x 24
         pixels, of which a tile has one in its middle. Tiles of every other slice train, those between are measured.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import MissingDependencyError

__all__ = ["GROUPS", "RED_GREEN_BLUE", "SIDE", "Parts", "bands", "cells", "scan", "tiles", "write_folders"]

SIDE, BANDS = 24, 13
RED_GREEN_BLUE = (3, 2, 1)
GROUPS = ((4, 5, 6), (7, 8, 9), (10, 11, 12))
STRIDE, LEAST, FEWEST = 8, 150, 60
"""Of tiles: pixels from one to the next, the mean of those that are used, and how many a region has. Air is 0, tissue
about 450."""


class Parts(NamedTuple):
    """Images [N, 24, 24, C] uint16 and labels [N] to train on, and others to measure on."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray


def bands(count: int, seed: int) -> Parts:
    """Images of 13 bands; labels: 3 x shape + group of bands."""
    random = np.random.default_rng((1, seed))
    labels = random.integers(0, 9, count)
    images = np.empty((count, SIDE, SIDE, BANDS), np.uint16)
    for image, label in zip(images, labels, strict=True):
        shape = _shape(label // 3, random)  # [H, W] in [0, 1]
        levels = random.uniform(1500, 2500, BANDS) + 400 * _smooth(random)[..., None]
        shown = np.zeros(BANDS)
        shown[:4] = random.uniform(0.5, 1.5)
        shown[list(GROUPS[label % 3])] = random.uniform(0.5, 1.5)
        noisy = levels + 1200 * shape[..., None] * shown + random.normal(0, 150, (SIDE, SIDE, BANDS))
        image[:] = np.clip(noisy, 0, 65535)
    return _parts(images, labels)


def cells(count: int, seed: int) -> Parts:
    """Images of one channel; labels: 3 x (a disc, a ring) + (stripes across, stripes down, neither)."""
    random = np.random.default_rng((2, seed))
    labels = random.integers(0, 6, count)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    images = np.empty((count, SIDE, SIDE, 1), np.uint16)
    for image, label in zip(images, labels, strict=True):
        radius = np.hypot(*(np.mgrid[:SIDE, :SIDE] - random.uniform(10, SIDE - 11, (2, 1, 1))))
        cell = (radius < random.uniform(8, 10)) & ((label < 3) | (radius > 4))
        wave, phase = 2 * np.pi / random.uniform(4, 5), random.uniform(0, 2 * np.pi)
        texture = np.sin(wave * (rows, columns, 0 * rows)[label % 3] + phase) * (label % 3 < 2)
        counts = 384 + 256 * cell + 10 * _smooth(random) + 85 * texture * cell + random.normal(0, 7, cell.shape)
        specks = random.uniform(size=cell.shape) < 5e-4
        image[..., 0] = np.clip(counts + specks * random.uniform(5_000, 30_000), 0, 65535)
    return _parts(images, labels)


def scan(count: int, seed: int) -> Parts:
    """Tiles of a scan, whatever count and seed are: there is one scan.

    Raises:
        MissingDependencyError: nibabel is absent.
    """
    del count, seed
    try:
        import nibabel  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            "--kind scan: the scan lies in nibabel, which is absent: pip install nibabel"
        ) from error
    path = Path(nibabel.__path__[0]) / "tests" / "data" / "example4d.nii.gz"
    return tiles(np.asarray(nibabel.load(path).dataobj[..., 0]).astype(np.uint16))


def tiles(volume: np.ndarray) -> Parts:
    """Tiles of a volume [x, y, slice], of even slices and of odd ones; labels are numbers of regions."""
    windows = np.lib.stride_tricks.sliding_window_view(volume, (SIDE, SIDE), axis=(0, 1))[::STRIDE, ::STRIDE]
    found = windows.transpose(2, 0, 1, 3, 4)  # [slice, row, column, 24, 24]
    used = found.mean(axis=(3, 4)) >= LEAST
    of, *places = np.nonzero(used)
    row, column = ((place * STRIDE + SIDE // 2) // SIDE for place in places)
    region = row * volume.shape[1] + column
    kept = np.isin(region, [one for one in np.unique(region) if (region == one).sum() >= FEWEST])
    images, labels = found[used][kept][..., None], np.unique(region[kept], return_inverse=True)[1]
    train = of[kept] % 2 == 0
    return Parts(images[train], labels[train], images[~train], labels[~train])


def write_folders(root: Path, parts: Parts) -> Path:
    """The images as TIFFs, root/train/CLASS/NUMBER.tif and root/test, which tifffile writes; returns `root`."""
    import tifffile

    for name, images, labels in (("train", *parts[:2]), ("test", *parts[2:])):
        for label in np.unique(labels):
            (root / name / f"{label:02}").mkdir(parents=True, exist_ok=True)
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            stored = image[..., 0] if image.shape[-1] == 1 else image
            options: dict[str, Any] = {} if image.shape[-1] == 1 else {"planarconfig": "contig"}
            path = root / name / f"{label:02}" / f"{number:05}.tif"
            tifffile.imwrite(path, stored, photometric="minisblack", metadata=None, **options)
    return root


def _parts(images: np.ndarray, labels: np.ndarray) -> Parts:
    """Three quarters to train on."""
    at = len(images) * 3 // 4
    return Parts(images[:at], labels[:at], images[at:], labels[at:])


def _shape(kind: int, random: np.random.Generator) -> np.ndarray:
    """A disc, a ring or a cross somewhere in the image, [H, W] in [0, 1]."""
    rows, columns = np.mgrid[:SIDE, :SIDE] - random.uniform(8, SIDE - 9, (2, 1, 1))
    radius, size = np.hypot(rows, columns), random.uniform(4, 6)
    if kind == 2:
        near = (np.minimum(abs(rows), abs(columns)) < 1.2) & (np.maximum(abs(rows), abs(columns)) < size)
        return near.astype(float)
    return ((radius < size) & (kind == 0) | (abs(radius - size) < 1.2) & (kind == 1)).astype(float)


def _smooth(random: np.random.Generator) -> np.ndarray:
    """A slow wave over the image, [H, W] in [-1, 1]."""
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    down, right, phase = random.uniform(-4, 4, 3)
    return np.sin(down * rows + right * columns + phase)
