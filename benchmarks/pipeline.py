"""How many images a second come out of a folder of JPEG files as two augmented views?

    python benchmarks/pipeline.py [--files N] [--image-size N] [--batch-size N] [--rounds N] [--out DIR]

Photos of 500 × 375 pixels, as most of ImageNet's, cut out of those that scikit-image ships; byol-pytorch's default set
of augmentations. byol_jax decodes in threads, cuts a square of 8/7 of the view and augments batches in one compiled
program. torch's DataLoader decodes with Pillow and augments with torchvision, in as many processes as there are cores:
the same square first (the same work), or random crops from the whole photo first, as torchvision's users often do;
lightly's dataset and collate function, where lightly is installed, do the first. A step is a pass over the folder;
whatever works ahead begins anew with it. Nothing is kept of a decoded file.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.augmentation import torchvision_default
from benchmarks.harness.command import run_command
from benchmarks.harness.contenders import Contender, jax_device
from benchmarks.harness.dataloader import dataloader
from benchmarks.harness.machine import available_cores
from benchmarks.harness.photos import QUALITY, SIZE, Files, available, read_passes, write_photos
from benchmarks.harness.table import throughput_table
from benchmarks.harness.turns import measure_in_turns, report

__all__ = ["CONTENDERS", "LIGHTLY", "build", "main"]

COMMAND = "python benchmarks/pipeline.py"


def main(words: list[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    about = "From JPEG files to views: byol_jax beside torch's DataLoader and lightly's dataset, alternating."
    return run_command(COMMAND, lambda words: _run(read_passes(COMMAND, about, words)), words)


def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        write_photos(Path(folder), options.files)
        job = Files("photos", folder, options.files, options.image_size, options.batch_size)
        present = available(CONTENDERS, lightly=LIGHTLY)
        raw, machine = measure_in_turns({"photos": job}, present, options, builder="benchmarks.pipeline")
    side, batch = options.image_size, options.batch_size
    text = (
        f"# From JPEG files to two views, {time.strftime('%Y-%m-%d')}\n\n"
        f"{options.files} photos of {SIZE[1]} × {SIZE[0]} pixels, quality {QUALITY}; views of {side} × {side} in"
        f" batches of {batch}; a step is a pass over all. Images a second: both views of one photo count as one. Times:"
        " of seconds, by minima / by medians.\n\n"
    ) + throughput_table(raw["photos"], images=options.files, reference="byol_jax")
    names = ("files", "image_size", "batch_size")
    report(options, text, command=COMMAND, names=names, raw=raw, machine=machine)
    return 0


def _byol_jax(job: Files) -> Contender:
    """The loader and the views of `byol-jax train`."""
    import jax

    from byol_jax import augment
    from byol_jax.data import Loader, open_dataset
    from byol_jax.views import sample_views

    dataset = open_dataset(Path(job.folder), image_size=job.image_size, workers=available_cores(), cache_bytes=0)
    function = augment.simclr(job.image_size)
    views = jax.jit(lambda images, key: sample_views(function, function, images.astype("float32") / 255, key))
    batches = job.files // job.batch_size
    passes = iter(range(2**31))

    def step() -> None:
        start = next(passes) * batches
        with Loader(dataset, batch_size=job.batch_size, seed=0, start_step=start, workers=available_cores()) as loader:
            for number in range(start, start + batches):
                made = views(next(loader), jax.random.key(number))
            jax.block_until_ready(made)

    return Contender(step, jax_device(), dict)


def _lightly(job: Files) -> Contender:
    """lightly's dataset and collate function, with the same views of the same square."""
    from lightly.data import LightlyDataset, MultiViewCollate

    views: Any = _Photos(job, whole=False).views
    return dataloader(
        LightlyDataset(job.folder, transform=views), collate_fn=MultiViewCollate(), batch_size=job.batch_size
    )


class _Photos:
    """A dataset of both views of each photo; `whole`: random crops come first, from the whole photo."""

    def __init__(self, job: Files, *, whole: bool) -> None:
        from torchvision.transforms import v2

        self.paths = sorted(Path(job.folder).iterdir())
        loaded = round(job.image_size * 8 / 7)
        square = [] if whole else [v2.Resize(loaded), v2.CenterCrop(loaded)]
        self.load = v2.Compose([*square, v2.PILToTensor()])
        self.view = torchvision_default(job.image_size, crop_first=whole)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        from PIL import Image

        with Image.open(self.paths[index]) as photo:
            return self.views(photo.convert("RGB"))

    def views(self, photo: Any) -> tuple[Any, Any]:
        pixels = self.load(photo)
        return self.view(pixels), self.view(pixels)


LIGHTLY = "lightly's dataset, the same square"


CONTENDERS: dict[str, Callable[[Files], Contender]] = {
    "byol_jax": _byol_jax,
    "torchvision, the same square": lambda job: dataloader(_Photos(job, whole=False), batch_size=job.batch_size),
    "torchvision, whole photos": lambda job: dataloader(_Photos(job, whole=True), batch_size=job.batch_size),
    LIGHTLY: _lightly,
}


def build(name: str, fields: dict[str, Any]) -> Contender:
    """The contender of this name, for a job that `dataclasses.asdict` and JSON made `fields` of."""
    return CONTENDERS[name](Files(**fields))


if __name__ == "__main__":
    sys.exit(main())
