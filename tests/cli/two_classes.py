"""Labelled photos that the tests of the command line train on. No tests here."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_two_classes(folder: Path) -> None:
    """`folder/dark` and `folder/light`, six images of 20 x 24 each."""
    random = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 128)):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            pixels = random.integers(low, low + 128, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
