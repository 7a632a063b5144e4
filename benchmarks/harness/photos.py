"""A folder of JPEG photos, and what benchmarks that make passes over it have in common.

Photos of 500 × 375 pixels, as most of ImageNet's, cut out of those that scikit-image ships.
"""

import argparse
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.harness.turns import add_turns, read
from byol_jax.cli import values
from byol_jax.cli.parsing import Parser
from byol_jax.errors import ConfigurationError

__all__ = ["QUALITY", "SIZE", "Files", "available", "read_passes", "write_photos"]

USAGE = "[--files N] [--image-size N] [--batch-size N] [--rounds N] [--chunk N] [--out DIR] [--json]"
SIZE, QUALITY = (375, 500), 90
"""Height and width of the photos, and JPEG's quality."""


@dataclass(frozen=True)
class Files:
    """A pass over a folder of photos, in whole batches.

    Attributes:
        name: in lines of progress.
        folder: holds `files` JPEG files.
        files: how many.
        image_size: side of the views in pixels.
        batch_size: images.
    """

    name: str
    folder: str
    files: int
    image_size: int
    batch_size: int


def read_passes(command: str, about: str, words: list[str]) -> argparse.Namespace:
    """The options of a benchmark of passes over photos.

    Raises:
        ConfigurationError: a wrong one, or photos that are no whole batches.
    """
    parser = Parser(command, USAGE, about)
    positive = {"type": values.positive_int, "metavar": "N"}
    parser.add_argument("--files", **positive, default=256, help="photos (256)")
    parser.add_argument("--image-size", **positive, default=64, help="side of the views in pixels (64)")
    parser.add_argument("--batch-size", **positive, default=64, help="images (64)")
    add_turns(parser, chunk=1, what="passes")
    options = read(parser, words)
    if options.files % options.batch_size:
        raise ConfigurationError(f"--files {options.files}: not a multiple of --batch-size {options.batch_size}")
    return options


def write_photos(folder: Path, count: int) -> None:
    """`count` JPEG files: random cuts of scikit-image's colour photos, scaled to `SIZE`; the same for every call."""
    import skimage.data
    from PIL import Image

    names = ("astronaut", "cat", "coffee", "rocket", "retina")
    photos = [Image.fromarray(getattr(skimage.data, name)()) for name in names]
    random = np.random.default_rng(0)
    for number in range(count):
        photo = photos[number % len(photos)]
        scale = random.uniform(0.5, 1) * min(photo.width / SIZE[1], photo.height / SIZE[0])
        width, height = scale * SIZE[1], scale * SIZE[0]
        left, top = random.uniform(0, photo.width - width), random.uniform(0, photo.height - height)
        cut = photo.resize((SIZE[1], SIZE[0]), Image.Resampling.BICUBIC, (left, top, left + width, top + height))
        cut.convert("RGB").save(folder / f"{number:05d}.jpg", quality=QUALITY)


def available(contenders: Iterable[str], *, lightly: str) -> list[str]:
    """Their names, without the one that is `lightly` where that package isn't installed."""
    return [name for name in contenders if name != lightly or importlib.util.find_spec("lightly")]
