"""The images that come with the package: the 10,000 test images of Fashion-MNIST, so that a demo needs no download.

Source and licence: `fashion_mnist/README.md`, `fashion_mnist/LICENSE` beside this file.
"""

import gzip
import hashlib
from pathlib import Path

import numpy as np

from byol_jax.errors import DataError

__all__ = ["FASHION_MNIST_CLASSES", "fashion_mnist"]

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""The meaning of labels 0 to 9, as the data set's authors name them."""

_FOLDER = Path(__file__).parent / "fashion_mnist"
_IMAGES = ("t10k-images-idx3-ubyte.gz", "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa")
_LABELS = ("t10k-labels-idx1-ubyte.gz", "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05")


def _unpack(folder: Path, name: str, sha256: str) -> bytes:
    try:
        packed = (folder / name).read_bytes()
    except OSError as error:
        raise DataError(f"embedded file {name} cannot be read ({error.strerror}): install byol-jax again") from error
    found = hashlib.sha256(packed).hexdigest()
    if found != sha256:
        raise DataError(f"embedded file {name} is damaged (sha256 {found[:8]}…): install byol-jax again")
    return gzip.decompress(packed)


def fashion_mnist(*, folder: Path = _FOLDER) -> tuple[np.ndarray, np.ndarray]:
    """The embedded images and their labels, in file order.

    Returns:
        images uint8 [10000, 28, 28, 1], white clothes on black; labels int32 [10000], 0 to 9 (`FASHION_MNIST_CLASSES`).

    Raises:
        DataError: a file is absent, or its sha256 is another.

    Example:
        >>> images, labels = fashion_mnist()
        >>> images.shape, labels[:3].tolist()
        ((10000, 28, 28, 1), [9, 2, 1])
    """
    # IDX: 4 bytes of magic number, then 4 for each dimension's size (3 dimensions, 1 dimension), then the bytes.
    images = np.frombuffer(_unpack(folder, *_IMAGES), np.uint8, offset=16).reshape(10_000, 28, 28, 1)
    labels = np.frombuffer(_unpack(folder, *_LABELS), np.uint8, offset=8).astype(np.int32)  # [10000]
    return images, labels
