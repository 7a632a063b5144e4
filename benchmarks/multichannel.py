"""Are thirteen bands worth more than three of them, and sixteen bits more than eight?

    python benchmarks/multichannel.py [--kind bands|cells|scan] [--steps N] [--seeds 0,1,2] [--images N] [--out DIR]

Folders of TIFFs are written (harness/deep_images.py says of what), and the command line does the rest as users do:
`byol-jax train` a small_cnn on the images without labels, with `--augment multichannel`, `embed` what it wasn't trained
on, and `evaluate`: kNN, k = 20, beside raw pixels and the same network untrained. Then with less of the same images:

    bands    `--bands 4,3,2`, red, green and blue of the same folder.
    cells    a folder of 8 bits: the upper 8 of the 16.
    scan     the same, and a folder of 8 bits over which the scan's numbers are stretched.

Views are 21 pixels wide, so that images of 24 are used as they are stored, without a resize (`data.load_size`). The
value range is what `--value-range auto` finds at the first seed, one for all seeds. The table has what a guess gets.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.harness import deep_images
from benchmarks.harness.command import run_command
from benchmarks.harness.deep_images import RED_GREEN_BLUE, Parts
from benchmarks.harness.machine import describe
from benchmarks.harness.results_folder import check_new, write_results
from byol_jax.cli import values
from byol_jax.cli.parsing import Parser
from byol_jax.errors import ConfigurationError

__all__ = ["CONTENDERS", "Contender", "main", "measure", "table"]

COMMAND = "python benchmarks/multichannel.py"
USAGE = "[--kind bands|cells|scan] [--steps N] [--seeds 0,1,2] [--images N] [--out DIR]"
VIEW, NEIGHBOURS, BATCH = 21, 20, 64
NETWORK = "--network small_cnn --hidden-layer 8 --projection-size 64 --projection-hidden-size 256 --learning-rate 0.001"
COLUMNS = {"raw_pixels": "raw pixels", "random_init": "untrained", "byol": "BYOL"}


class Contender(NamedTuple):
    """What makes the images, what is left of them in the files, and what `train` is told beside."""

    make: Callable[[int, int], Parts]
    cut: Callable[[np.ndarray], np.ndarray]
    words: tuple[str, ...]


def _upper(images: np.ndarray) -> np.ndarray:
    return (images >> 8).astype(np.uint8)


def _stretched(images: np.ndarray) -> np.ndarray:
    return np.rint(images * (255 / SCAN_MOST)).astype(np.uint8)


SCAN_MOST = 1162
"""The largest number in the scan; the least is 0."""

ALL_BANDS = ("--channels", str(deep_images.BANDS))
COLOURS = ("--bands", ",".join(str(band + 1) for band in RED_GREEN_BLUE))
GREY = ("--channels", "1")
CONTENDERS = {
    "bands: all 13": Contender(deep_images.bands, np.asarray, ALL_BANDS),
    "bands: red, green and blue": Contender(deep_images.bands, np.asarray, COLOURS),
    "cells: 16 bits": Contender(deep_images.cells, np.asarray, GREY),
    "cells: the upper 8": Contender(deep_images.cells, _upper, GREY),
    "scan: 16 bits": Contender(deep_images.scan, np.asarray, GREY),
    "scan: the upper 8": Contender(deep_images.scan, _upper, GREY),
    "scan: 8 bits, stretched": Contender(deep_images.scan, _stretched, GREY),
}


def measure(name: str, *, steps: int, images: int, seed: int, value_range: str = "auto") -> dict[str, Any]:
    """Accuracies by kNN of one contender, and the value range that it was trained with.

    Args:
        value_range: as the option has it.
    """
    make, cut, words = CONTENDERS[name]
    parts = make(images, seed)
    with tempfile.TemporaryDirectory() as folder:
        data, run, features = Path(folder) / "data", Path(folder) / "run", Path(folder) / "features.npz"
        deep_images.write_folders(data, parts._replace(train=cut(parts.train), test=cut(parts.test)))
        seeded = ["--seed", str(seed), "--workers", "1"]
        given = [*words, "--image-size", str(VIEW), "--augment", "multichannel", f"--value-range={value_range}"]
        length = ["--steps", str(steps), "--batch-size", str(BATCH), "--out", str(run)]
        _call("train", str(data / "train"), *NETWORK.split(), *given, *length, *seeded)
        _call("embed", str(run), "--data", str(data / "test"), "--out", str(features))
        _call("evaluate", str(run), "--data", str(data), "--protocol", "knn", "--k", str(NEIGHBOURS), *seeded)
        found = json.loads((run / "evaluation.json").read_text())
        low, high = json.loads((run / "config.json").read_text())["learner"]["value_range"]
        with np.load(features) as embedded:
            counted = np.bincount(embedded["labels"]).tolist()
    return {
        "accuracies": {title: found["scores"][key]["knn"] for key, title in COLUMNS.items()},
        "value_range": [np.ravel(low).tolist(), np.ravel(high).tolist()],
        "images": [found["train_images"], found["test_images"]],
        "embedded": counted,
        "guess": 1 / found["classes"],
    }


def _call(*words: str) -> None:
    """A command of byol-jax in this process, what it prints kept back.

    Raises:
        ConfigurationError: it failed; the text is what it said.
    """
    from byol_jax.cli.main import main as byol_jax

    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = byol_jax(list(words))
    if code != 0:
        raise ConfigurationError(f"byol-jax {words[0]} ended with {code}: {said.getvalue().strip()}")


def _as_words(value_range: Sequence[Sequence[float]]) -> str:
    """A range for the command line.

    Example:
        >>> _as_words([[0.0, 1.0], [9.0, 9.5]])
        '0.0:9.0,1.0:9.5'
    """
    return ",".join(f"{low!r}:{high!r}" for low, high in zip(*value_range, strict=True))


def table(raw: dict[str, list[dict[str, Any]]]) -> str:
    """Means over the seeds, and the trained network's seed by seed."""
    lines = ["| images | a guess | raw pixels | untrained | BYOL | BYOL, seed by seed |", "|---|---|---|---|---|---|"]
    for name, runs in raw.items():
        means = [np.mean([run["accuracies"][title] for run in runs]) for title in COLUMNS.values()]
        each = ", ".join(f"{100 * run['accuracies']['BYOL']:.1f}" for run in runs)
        cells_of_row = [runs[0]["guess"], *means]
        lines.append(f"| {name} | {' | '.join(f'{100 * cell:.1f} %' for cell in cells_of_row)} | {each} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    return run_command(COMMAND, lambda words: _run(_options(words)), words)


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(COMMAND, USAGE, "Thirteen bands against three of them, sixteen bits against eight, in folders.")
    kinds = ("bands", "cells", "scan", "all")
    parser.add_argument(
        "--kind", type=values.one_of(kinds), default="all", metavar="NAME", help=f"{', '.join(kinds)} (all)"
    )
    parser.add_argument("--steps", type=values.positive_int, default=400, metavar="N", help="of training (400)")
    parser.add_argument("--seeds", type=_seeds, default=(0, 1, 2), metavar="LIST", help="with commas between (0,1,2)")
    parser.add_argument(
        "--images", type=values.positive_int, default=2000, metavar="N", help="that are made of each kind (2000)"
    )
    parser.add_argument("--out", type=values.new_path, metavar="DIR", help="the folder for the results")
    options = parser.read(words)
    if options.out is not None:
        check_new(options.out)
    return options


def _seeds(word: str) -> tuple[int, ...]:
    return tuple(values.several(values.whole_number)(word))


def _run(options: argparse.Namespace) -> int:
    raw: dict[str, list[dict[str, Any]]] = {}
    machine = describe() | {"load_average": [os.getloadavg()]}
    for name in [name for name in CONTENDERS if options.kind in ("all", name.partition(":")[0])]:
        value_range = "auto"
        for seed in options.seeds:
            found = measure(name, steps=options.steps, images=options.images, seed=seed, value_range=value_range)
            raw.setdefault(name, []).append(found)
            value_range = _as_words(found["value_range"])  # so that all seeds share a compiled program
            said = ", ".join(f"{which} {100 * accuracy:.1f} %" for which, accuracy in found["accuracies"].items())
            print(f"{name}, seed {seed}: {said}", file=sys.stderr)
    machine["load_average"].append(os.getloadavg())
    shown = table(raw)
    if options.out is not None:
        seeds = ",".join(map(str, options.seeds))
        numbers = f"--steps {options.steps} --seeds {seeds} --images {options.images}"
        command = f"{COMMAND} --kind {options.kind} {numbers}"
        write_results(options.out, command=command, machine=machine, raw=raw, table=shown)
    print(shown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
