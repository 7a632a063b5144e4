"""Are thirteen bands worth more than three of them, and sixteen bits more than eight?

    python benchmarks/multichannel.py [--kind bands|cells] [--steps N] [--seeds 0,1,2] [--images N] [--out DIR]

Images of known structure are made, a small_cnn is trained on them without labels, with `augment.multichannel`, and its
last maps (of cells, whose stripes have any phase, averaged over positions) are measured by kNN, k = 20, on images that
it wasn't trained on; beside them raw pixels and the same network untrained. Then the same with less of the same images.

    bands    13 bands, uint16. An object of one of three shapes is in bands 0 to 3, among them blue, green and red (1 to
             3), and in one of three groups of bands beyond: 3 x 3 classes, of which red, green and blue tell the shape
             alone, which is right for a third. The cut: bands 3, 2, 1.
    cells    1 channel, uint16: a disc or a ring 256 counts above a background of 384, striped across, striped down or
             plain, 85 counts deep, beside specks of up to 30,000: 2 x 3 classes. The cut: the upper 8 of the 16 bits,
             whose steps of 256 counts leave the shape and none of the stripes, which is right for a third.

Each contender's value range is what `--value-range auto` finds in its images of seed 0, one for all seeds, so that they
share a compiled program. What a guess gets right is in the table.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.command import run_command
from benchmarks.folder import check_new, write_results
from benchmarks.machine import describe
from byol_jax.cli import values
from byol_jax.cli.parsing import Parser

__all__ = ["CONTENDERS", "bands", "cells", "main", "measure", "table"]

COMMAND = "python benchmarks/multichannel.py"
USAGE = "[--kind bands|cells] [--steps N] [--seeds 0,1,2] [--images N] [--out DIR]"
SIDE, BANDS, NEIGHBOURS, BATCH = 24, 13, 20, 64
RED_GREEN_BLUE = (3, 2, 1)
GROUPS = ((4, 5, 6), (7, 8, 9), (10, 11, 12))


def bands(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, 24, 24, 13] uint16 and labels: 3 x shape + group of bands."""
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
    return images, labels


def cells(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, 24, 24, 1] uint16 and labels: 3 x (a disc, a ring) + (stripes across, stripes down, neither)."""
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
    return images, labels


CONTENDERS: dict[str, tuple[Callable[..., Any], Callable[[np.ndarray], np.ndarray], int]] = {
    "bands: all 13": (bands, lambda images: images, 9),
    "bands: red, green and blue": (bands, lambda images: images[..., RED_GREEN_BLUE], 9),
    "cells: 16 bits": (cells, lambda images: images, 6),
    "cells: the upper 8": (cells, lambda images: (images >> 8).astype(np.uint8), 6),
}
"""What makes the images, what is left of them, and how many classes there are."""


def measure(name: str, *, steps: int, images: int, seed: int) -> dict[str, float]:
    """Accuracies by kNN of one contender: of its raw pixels, of the network untrained and of the network trained."""
    import jax
    import optax

    import byol_jax
    from byol_jax import augment, evaluate, nets
    from byol_jax.data import open_dataset
    from byol_jax.data.ranges import estimate_range

    make, cut, _ = CONTENDERS[name]
    data, labels = make(images, seed)
    data = cut(data)
    train, test = data[: images * 3 // 4], data[images * 3 // 4 :]
    dataset = open_dataset(cut(make(images, 0)[0]), num_channels=data.shape[-1], any_range=True)
    value_range = estimate_range(dataset, percentile=99.9, seed=0).value_range
    encoder = nets.small_cnn()
    options: dict[str, Any] = {
        "image_size": SIDE,
        "hidden_layer": "8",
        "num_channels": data.shape[-1],
        "augment_fn": augment.multichannel(SIDE),
        "value_range": value_range,
        "projection_size": 64,
        "projection_hidden_size": 256,
        "optimizer": optax.adam(1e-3),
    }
    learner = byol_jax.make_learner(encoder, **options)
    with tempfile.TemporaryDirectory() as folder:
        run = {"out": f"{folder}/run", "steps": steps, "batch_size": BATCH, "seed": seed, "progress": False}
        trained = byol_jax.pretrain(encoder, train, **run, **options)
    pooled = jax.jit(lambda state, images: learner.feature_map(state, images).mean((1, 2)))  # [n, 128]
    embed = pooled if make is cells else jax.jit(learner.embed)
    found = {"raw pixels": [evaluate.raw_pixels(part, value_range) for part in (train, test)]}
    for which, state in {"untrained": learner.init(jax.random.key(seed)), "BYOL": trained}.items():
        found[which] = [evaluate.extract(lambda x, s=state: embed(s, x), part) for part in (train, test)]
    sides = labels[: len(train)], labels[len(train) :]
    return {
        which: evaluate.knn(fit, sides[0], on, sides[1], k=NEIGHBOURS, center=True).accuracy
        for which, (fit, on) in found.items()
    }


def table(raw: dict[str, list[dict[str, float]]]) -> str:
    """Means over the seeds, and the trained network's seed by seed."""
    lines = ["| images | a guess | raw pixels | untrained | BYOL | BYOL, seed by seed |", "|---|---|---|---|---|---|"]
    for name, runs in raw.items():
        means = {which: np.mean([run[which] for run in runs]) for which in runs[0]}
        each = ", ".join(f"{100 * run['BYOL']:.1f}" for run in runs)
        cells_of_row = [1 / CONTENDERS[name][2], *means.values()]
        lines.append(f"| {name} | {' | '.join(f'{100 * cell:.1f} %' for cell in cells_of_row)} | {each} |")
    return "\n".join(lines)


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


def main(words: list[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    return run_command(COMMAND, lambda words: _run(_options(words)), words)


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(COMMAND, USAGE, "Thirteen bands against three of them, sixteen bits against eight.")
    kinds = ("bands", "cells", "all")
    parser.add_argument(
        "--kind", type=values.one_of(kinds), default="all", metavar="NAME", help=f"{', '.join(kinds)} (all)"
    )
    parser.add_argument("--steps", type=values.positive_int, default=400, metavar="N", help="of training (400)")
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2), metavar="LIST", help="with commas between (0,1,2)")
    parser.add_argument("--images", type=values.positive_int, default=2000, metavar="N", help="of each kind (2000)")
    parser.add_argument("--out", type=values.new_path, metavar="DIR", help="the folder for the results")
    options = parser.read(words)
    if options.out is not None:
        check_new(options.out)
    return options


def _seeds(word: str) -> tuple[int, ...]:
    return tuple(values.several(values.whole_number)(word))


def _run(options: argparse.Namespace) -> int:
    from byol_jax.cli.compiled import keep_compiled_programs

    keep_compiled_programs()  # a contender's seeds compile once
    raw: dict[str, list[dict[str, float]]] = {}
    for name in [name for name in CONTENDERS if options.kind in ("all", name.partition(":")[0])]:
        for seed in options.seeds:
            found = measure(name, steps=options.steps, images=options.images, seed=seed)
            raw.setdefault(name, []).append(found)
            said = ", ".join(f"{which} {100 * accuracy:.1f} %" for which, accuracy in found.items())
            print(f"{name}, seed {seed}: {said}", file=sys.stderr)
    shown = table(raw)
    if options.out is not None:
        seeds = ",".join(map(str, options.seeds))
        numbers = f"--steps {options.steps} --seeds {seeds} --images {options.images}"
        command = f"{COMMAND} --kind {options.kind} {numbers}"
        write_results(options.out, command=command, machine=describe(), raw=raw, table=shown)
    print(shown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
