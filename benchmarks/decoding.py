"""How many images a second are decoded from JPEG files, and do threads scale to the cores?

    python benchmarks/decoding.py [--files N] [--image-size N] [--batch-size N] [--rounds N] [--out DIR]

Photos of 500 × 375 pixels (`harness/photos.py`) become squares of 8/7 of the view, uint8, in batches: resized to cover
it, the rest cut off, without augmentation. byol_jax decodes in threads, as many as cores and one. Pillow alone is a
loop in one thread over what most people write, `Image.open`, `convert`, `ImageOps.fit`; "scaled" has libjpeg decode at
1/2, 1/4 or 1/8 first, as byol_jax does. torch's DataLoader decodes with Pillow or with torchvision's `decode_jpeg`, in
as many processes as there are cores, and so does lightly's dataset, with Pillow, where lightly is installed. A step is
a pass over the folder; whatever works ahead begins anew with it. Nothing is kept of a decoded file.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.harness.command import run_command
from benchmarks.harness.contenders import Contender
from benchmarks.harness.dataloader import dataloader
from benchmarks.harness.machine import available_cores
from benchmarks.harness.photos import QUALITY, SIZE, Files, available, read_passes, write_photos
from benchmarks.harness.table import throughput_table
from benchmarks.harness.turns import measure_in_turns, report

__all__ = ["CONTENDERS", "LIGHTLY", "build", "main"]

COMMAND = "python benchmarks/decoding.py"


def main(words: list[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    about = "From JPEG files to squares of one size: byol_jax beside Pillow, torch's DataLoader and lightly's dataset."
    return run_command(COMMAND, lambda words: _run(read_passes(COMMAND, about, words)), words)


def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), options.files)
        job = Files("photos", folder, options.files, options.image_size, options.batch_size)
        present = available(CONTENDERS, lightly=LIGHTLY)
        raw, machine = measure_in_turns({"photos": job}, present, options, builder="benchmarks.decoding")
    side, batch = _side(job), options.batch_size
    text = (
        f"# From JPEG files to squares, {time.strftime('%Y-%m-%d')}\n\n"
        f"{options.files} photos of {SIZE[1]} × {SIZE[0]} pixels, quality {QUALITY}; squares of {side} × {side} in"
        f" batches of {batch}; a step is a pass over all. {available_cores()} cores. Times: of seconds, by minima / by"
        " medians.\n\n"
    ) + throughput_table(raw["photos"], images=options.files, reference="byol_jax")
    report(options, text, command=COMMAND, names=("files", "image_size", "batch_size"), raw=raw, machine=machine)
    return 0


def _side(job: Files) -> int:
    return round(job.image_size * 8 / 7)


def _byol_jax(job: Files, *, workers: int) -> Contender:
    """What the loader of `byol-jax train` asks for, batch after batch; a loader would begin some that nobody takes."""
    from byol_jax.data import open_dataset

    dataset = open_dataset(Path(job.folder), image_size=job.image_size, workers=workers, cache_bytes=0)

    def step() -> None:
        for start in range(0, job.files, job.batch_size):
            dataset.take(range(start, start + job.batch_size), workers=workers)

    return Contender(step, "cpu", dict)


def _pillow(job: Files, *, scaled: bool) -> Contender:
    """One thread, one image after the other."""
    paths = sorted(Path(job.folder).iterdir())

    def step() -> None:
        for start in range(0, len(paths), job.batch_size):
            np.stack([_square(path, _side(job), scaled=scaled) for path in paths[start : start + job.batch_size]])

    return Contender(step, "cpu", dict)


def _square(path: Path, side: int, *, scaled: bool) -> np.ndarray:
    """A photo's centre, uint8 [side, side, 3]."""
    from PIL import Image, ImageOps

    with Image.open(path) as photo:
        if scaled:
            photo.draft(None, (2 * side, 2 * side))  # at least twice what is needed
        return np.array(ImageOps.fit(photo.convert("RGB"), (side, side), Image.Resampling.BILINEAR))


class _Photos:
    """A dataset of squares as torch wants it."""

    def __init__(self, job: Files, read: Callable[[Path], Any]) -> None:
        self.paths, self.read = sorted(Path(job.folder).iterdir()), read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.read(self.paths[index])


def _with_pillow(job: Files) -> Contender:
    return dataloader(_Photos(job, lambda path: _square(path, _side(job), scaled=False)), batch_size=job.batch_size)


def _with_decode_jpeg(job: Files) -> Contender:
    from torchvision.io import decode_jpeg, read_file
    from torchvision.transforms import v2

    square = v2.Compose([v2.Resize(_side(job)), v2.CenterCrop(_side(job))])
    return dataloader(_Photos(job, lambda path: square(decode_jpeg(read_file(str(path))))), batch_size=job.batch_size)


def _with_lightly(job: Files) -> Contender:
    from lightly.data import LightlyDataset
    from torchvision.transforms import v2

    square: Any = v2.Compose([v2.Resize(_side(job)), v2.CenterCrop(_side(job)), v2.PILToTensor()])
    return dataloader(LightlyDataset(job.folder, transform=square), batch_size=job.batch_size)


LIGHTLY = "lightly's dataset"

CONTENDERS: dict[str, Callable[[Files], Contender]] = {
    "byol_jax": lambda job: _byol_jax(job, workers=available_cores()),
    "byol_jax, one thread": lambda job: _byol_jax(job, workers=1),
    "Pillow alone": lambda job: _pillow(job, scaled=False),
    "Pillow alone, scaled": lambda job: _pillow(job, scaled=True),
    "DataLoader with Pillow": _with_pillow,
    "DataLoader with decode_jpeg": _with_decode_jpeg,
    LIGHTLY: _with_lightly,
}


def build(name: str, fields: dict[str, Any]) -> Contender:
    """The contender of this name, for a job that `dataclasses.asdict` and JSON made `fields` of."""
    return CONTENDERS[name](Files(**fields))


if __name__ == "__main__":
    sys.exit(main())
