"""How many images a second do the augmentations make, beside kornia's and torchvision's?

    python benchmarks/augmentation.py [--set NAME] [--image-size N] [--batch-size N] [--rounds N] [--out DIR]

Two views of each image of a batch, random for each image: byol-pytorch's default set and the BYOL paper's. The same
operations with the same probabilities and ranges in all three; the images are float32 in [0, 1] and lie in memory, of
the size of the views. kornia works on the batch with parameters for each image; torchvision on one image after the
other, in as many worker processes of torch's DataLoader as there are cores. A step is a pass over a few batches: within
one the DataLoader works ahead, from one to the next it doesn't.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.harness.command import run_command
from benchmarks.harness.contenders import Contender, jax_device
from benchmarks.harness.dataloader import dataloader
from benchmarks.harness.table import throughput_table
from benchmarks.harness.turns import add_turns, measure_in_turns, read, report
from byol_jax.cli import values
from byol_jax.cli.parsing import Parser

__all__ = ["CONTENDERS", "Augmentation", "build", "main", "table", "torchvision_default"]

COMMAND = "python benchmarks/augmentation.py"
USAGE = "[--set NAME] [--image-size N] [--batch-size N] [--rounds N] [--chunk N] [--out DIR] [--json]"
BATCHES = 4
"""Batches a step."""

SETS = {"simclr": "byol-pytorch's default set", "byol": "the BYOL paper's set"}


@dataclass(frozen=True)
class Augmentation:
    """Two views of each image of a few batches.

    Attributes:
        name: of the set, in `SETS`.
        image_size: side in pixels, of images and views.
        batch_size: images; twice as many views.
    """

    name: str
    image_size: int
    batch_size: int


def main(words: list[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    return run_command(COMMAND, lambda words: _run(_options(words)), words)


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(COMMAND, USAGE, "Augmentation: byol_jax beside kornia and torchvision, alternating.")
    positive = {"type": values.positive_int, "metavar": "N"}
    choice = values.one_of([*SETS, "all"])
    parser.add_argument("--set", type=choice, default="all", metavar="NAME", help=f"{', '.join(SETS)} or all (all)")
    parser.add_argument("--image-size", **positive, default=96, help="side in pixels (96)")
    parser.add_argument("--batch-size", **positive, default=64, help="images at a time (64)")
    add_turns(parser, chunk=2, what=f"steps of {BATCHES} batches")
    return read(parser, words)


def _run(options: argparse.Namespace) -> int:
    names = SETS if options.set == "all" else [options.set]
    jobs = {name: Augmentation(name, options.image_size, options.batch_size) for name in names}
    raw, machine = measure_in_turns(jobs, CONTENDERS, options, builder="benchmarks.augmentation")
    facts = {"image_size": options.image_size, "batch_size": options.batch_size, "sets": raw}
    text = table(facts, time.strftime("%Y-%m-%d"))
    report(options, text, command=COMMAND, names=("set", "image_size", "batch_size"), raw=facts, machine=machine)
    return 0


def table(facts: dict[str, Any], date: str) -> str:
    """Markdown: for each set a line for each contender."""
    size, count = facts["image_size"], facts["batch_size"]
    parts = [
        f"# Augmentation, {date}\n\nTwo views of each of {count} images of {size} × {size} pixels, float32, in turns. A"
        f" step is {BATCHES} batches. Images a second: both views of one image count as one. Times: of seconds, by"
        " minima / by medians."
    ]
    for name, results in facts["sets"].items():
        parts += [f"## {SETS[name]}", throughput_table(results, images=BATCHES * count, reference="byol_jax")]
    return "\n\n".join(parts)


def _byol_jax(job: Augmentation) -> Contender:
    """Both views as a step makes them, jitted."""
    import jax

    from byol_jax import augment
    from byol_jax.views import sample_views

    size = job.image_size
    if job.name == "simclr":
        functions = (augment.simclr(size), augment.simclr(size))
    else:
        functions = (augment.byol(size, view=1), augment.byol(size, view=2))
    images = jax.random.uniform(jax.random.key(0), (job.batch_size, size, size, 3))
    views = jax.jit(lambda images, key: sample_views(*functions, images, key))
    keys = iter(range(2**31))

    def step() -> None:
        for _ in range(BATCHES):
            jax.block_until_ready(views(images, jax.random.key(next(keys))))

    return Contender(step, jax_device(), dict)


def _kornia(job: Augmentation) -> Contender:
    """kornia's sequential containers on the batch, parameters drawn for each image."""
    import torch
    from kornia import augmentation as kornia

    size = (job.image_size, job.image_size)
    if job.name == "simclr":
        transforms = [
            kornia.ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.3),
            kornia.RandomGrayscale(p=0.2),
            kornia.RandomHorizontalFlip(p=0.5),
            kornia.RandomGaussianBlur((3, 3), (1.0, 2.0), p=0.2),
            kornia.RandomResizedCrop(size, scale=(0.08, 1.0)),
        ]
        views = [kornia.AugmentationSequential(*transforms)] * 2
    else:
        views = [_kornia_paper(job.image_size, blur, solarize) for blur, solarize in ((1.0, 0.0), (0.1, 0.2))]
    images = torch.rand(job.batch_size, 3, *size, generator=torch.Generator().manual_seed(0))

    def step() -> None:
        for _ in range(BATCHES):
            for view in views:
                view(images)

    return Contender(step, "cpu", dict)


def _kornia_paper(size: int, blur: float, solarize: float) -> Any:
    from kornia import augmentation as kornia

    kernel = 2 * (size // 20) + 1
    return kornia.AugmentationSequential(
        kornia.RandomResizedCrop((size, size), scale=(0.08, 1.0), resample="bicubic"),
        kornia.RandomHorizontalFlip(p=0.5),
        kornia.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
        kornia.RandomGrayscale(p=0.2),
        kornia.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=blur),
        kornia.RandomSolarize(0.5, 0.0, p=solarize),
    )


def _torchvision(job: Augmentation) -> Contender:
    """torchvision's v2 transforms, image by image, in worker processes."""
    import torch

    if job.name == "simclr":
        views = [torchvision_default(job.image_size)] * 2
    else:
        views = [_torchvision_paper(job.image_size, blur, solarize) for blur, solarize in ((1.0, 0.0), (0.1, 0.2))]
    images = torch.rand(job.batch_size, 3, job.image_size, job.image_size)
    return dataloader(_Views(images, views, BATCHES), batch_size=job.batch_size, shuffle=False)


def torchvision_default(size: int, *, crop_first: bool = False) -> Callable:
    """byol-pytorch's default set; `crop_first`: the crop, which comes last there, before all else."""
    from torchvision.transforms import v2

    crop = v2.RandomResizedCrop(size, antialias=True)
    changes = [
        v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.3),
        v2.RandomGrayscale(p=0.2),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.GaussianBlur((3, 3), (1.0, 2.0))], p=0.2),
    ]
    return v2.Compose([crop, *changes] if crop_first else [*changes, crop])


def _torchvision_paper(size: int, blur: float, solarize: float) -> Callable:
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=False, interpolation=v2.InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(2 * (size // 20) + 1, (0.1, 2.0))], p=blur),
            v2.RandomSolarize(0.5, p=solarize),
        ]
    )


class _Views:
    """A dataset of both views of each image, each image several times."""

    def __init__(self, images: Any, views: list[Callable], times: int) -> None:
        self.images, self.views, self.times = images, views, times

    def __len__(self) -> int:
        return self.times * len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(view(self.images[index % len(self.images)]) for view in self.views)


CONTENDERS: dict[str, Callable[[Augmentation], Contender]] = {
    "byol_jax": _byol_jax,
    "kornia": _kornia,
    "torchvision": _torchvision,
}


def build(name: str, fields: dict[str, Any]) -> Contender:
    """The contender of this name, for a job that `dataclasses.asdict` and JSON made `fields` of."""
    return CONTENDERS[name](Augmentation(**fields))


if __name__ == "__main__":
    sys.exit(main())
