"""How long until the first batch of many small files, and how much memory do they take?

    python benchmarks/listing.py [--files N,N,…] [--kind folder|tar] [--image-size N] [--workers N] [--out DIR]

As many small JPEG and PNG files as asked for are made in a temporary folder, a hundred sub-folders, or a hundred tar
shards. Each number of files is opened as `byol-jax train` opens it, in a process of its own: once as a first start,
which lists, checks and keeps the list, and once as a resumed run, which verifies what was kept. Then the first batch is
decoded; JAX isn't loaded. Of several rounds the least seconds count, each kind by itself. Memory is the process's peak
beside that of a process that only imports, the largest of the rounds. What 1,000,000 files would take is no
measurement: the line through the two largest numbers, drawn on. Files were written just before, so
they come from the system's cache; a cold disk or a network adds its own time for each.
"""

import argparse
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.harness.command import command_line, run_command
from benchmarks.harness.machine import ROOT, available_cores, describe
from benchmarks.harness.results_folder import check_new, write_results
from benchmarks.harness.table import machine_line, markdown
from byol_jax.cli import values
from byol_jax.cli.parsing import Parser

__all__ = ["KINDS", "MILLION", "drawn_on", "main", "open_twice", "table", "write_files", "write_shards"]

COMMAND = "python benchmarks/listing.py"
USAGE = "[--files N,N,…] [--kind folder|tar] [--image-size N] [--workers N] [--rounds N] [--out DIR] [--json]"
MILLION = 1_000_000
PARTS = 100
"""Sub-folders, or shards."""

STARTS = ("first", "second")
SECONDS = {"listing": "listing", "opening": "opening, listing included", "first_batch": "first batch"}

_OPEN = """
import json, sys
sys.path.insert(0, sys.argv[1])
from benchmarks.listing import open_once
print(json.dumps(open_once(**json.loads(sys.argv[2]))))
"""


def main(words: list[str] | None = None) -> int:
    """Measures and prints the table; returns the exit code."""
    return run_command(COMMAND, lambda words: _run(_options(words)), words)


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(
        COMMAND, USAGE, "From many small files to the first batch: seconds and memory by how many there are."
    )
    positive = {"type": values.positive_int, "metavar": "N"}
    sizes = "10000,30000,100000"
    parser.add_argument("--files", type=_counts, default=_counts(sizes), metavar="N,N,…", help=f"how many ({sizes})")
    parser.add_argument(
        "--kind", type=values.one_of(KINDS), default="folder", metavar="KIND", help="folder or tar (folder)"
    )
    parser.add_argument("--image-size", **positive, default=128, help="side of the views in pixels (128)")
    parser.add_argument("--workers", **positive, default=available_cores(), help="threads (as many as cores)")
    parser.add_argument("--rounds", **positive, default=3, help="times that each start is made (3)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder, for the results")
    parser.add_argument("--json", action="store_true", help="print the raw numbers instead of the table")
    options = parser.read(words)
    if options.out is not None:
        check_new(options.out)
    return options


def _counts(word: str) -> tuple[int, ...]:
    """Growing whole numbers with commas between."""
    return tuple(sorted({values.positive_int(part) for part in word.split(",")}))


def _run(options: argparse.Namespace) -> int:
    machine = describe() | {"threads": options.workers, "load_average": [os.getloadavg()], "device": "cpu"}
    machine["allocator"] = "the system's own"
    raw = {"empty": _process(place=None)["peak_bytes"], "files": {}}
    for count in options.files:
        print(f"{count:,} files", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder, "images")
            KINDS[options.kind](place, count)
            raw["files"][str(count)] = open_twice(place, Path(folder, "run"), options)
    machine["load_average"].append(os.getloadavg())
    text = f"{table(raw, options.kind, time.strftime('%Y-%m-%d'))}\n\n{machine_line(machine)}"
    options.files = ",".join(map(str, options.files))
    line = command_line(COMMAND, options, ("files", "kind", "image_size", "workers", "rounds"))
    if options.out is not None:
        write_results(options.out, command=line, machine=machine, raw=raw, table=text)
    print(json.dumps(raw) if options.json else text)
    return 0


def open_twice(place: Path, run: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What `open_once` finds at first starts and at second ones, and how many bytes were kept between them."""
    fields = {"place": str(place), "kept": str(run / "images.json")}
    fields |= {"image_size": options.image_size, "workers": options.workers}
    found: dict[str, Any] = {start: [] for start in STARTS}
    for _ in range(options.rounds):
        shutil.rmtree(run, ignore_errors=True)
        for start in STARTS:
            found[start].append(_process(**fields))
    return found | {"kept_bytes": sum(path.stat().st_size for path in run.iterdir())}


def _process(**fields: Any) -> dict[str, Any]:
    """`open_once` in a process of its own."""
    words = [sys.executable, "-c", _OPEN, str(ROOT), json.dumps(fields)]
    return json.loads(subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout)


def open_once(place: str | None, kept: str = "", image_size: int = 1, workers: int = 1) -> dict[str, Any]:
    """Opens images and takes a batch of 64; seconds, those of the processor, and the process's peak in bytes.

    With None nothing is opened: what the imports take.
    """
    from benchmarks.harness.worker import peak_memory_bytes
    from byol_jax.data import Loader, open_dataset
    from byol_jax.data.files.file_list import list_images
    from byol_jax.data.shards.find import find_shards

    if place is None:
        return {"peak_bytes": peak_memory_bytes()}
    seconds: dict[str, float] = {}
    processor: dict[str, float] = {}

    def timed(name: str, do: Callable[[], Any]) -> Any:
        clocks = time.perf_counter(), time.process_time()
        result = do()
        seconds[name], processor[name] = time.perf_counter() - clocks[0], time.process_time() - clocks[1]
        return result

    if find_shards(place) is None:
        timed("listing", lambda: len(list_images(Path(place), workers=workers).files))
    dataset = timed("opening", lambda: open_dataset(place, image_size=image_size, workers=workers, verdict_path=kept))
    with Loader(
        dataset, batch_size=min(64, len(dataset)), seed=0, workers=workers, place=lambda batch: batch
    ) as batches:
        timed("first_batch", lambda: next(batches))
    return {"count": len(dataset), "seconds": seconds, "processor": processor, "peak_bytes": peak_memory_bytes()}


def _pictures() -> list[tuple[str, bytes]]:
    """Sixteen small pictures, (ending, content), of 160 to 750 bytes."""
    from PIL import Image

    random, found = np.random.default_rng(0), []
    for number in range(16):
        ending, file = ("jpg", "png")[number % 2], io.BytesIO()
        squares = random.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(squares.repeat(4, 0).repeat(4, 1)).save(file, "JPEG" if ending == "jpg" else "PNG")
        found.append((ending, file.getvalue()))
    return found


def _named(count: int) -> Iterator[tuple[int, str, bytes]]:
    """(part, name, content) of each file, part after part."""
    pictures = itertools.cycle(_pictures())
    for number, (ending, content) in zip(range(count), pictures, strict=False):
        yield number * PARTS // count, f"n{number:09}.{ending}", content


def write_files(place: Path, count: int) -> None:
    """Small files in sub-folders; the same for every call."""
    for part, name, content in _named(count):
        folder = place / f"n{part:04}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_shards(place: Path, count: int) -> None:
    """The same files in tar shards."""
    place.mkdir(parents=True)
    for part, files in itertools.groupby(_named(count), key=lambda file: file[0]):
        with tarfile.open(place / f"n{part:04}.tar", "w") as shard:
            for _, name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))


KINDS: dict[str, Callable[[Path, int], None]] = {"folder": write_files, "tar": write_shards}


def drawn_on(counts: Sequence[int], amounts: Sequence[float], count: int) -> float | None:
    """Where the line through the last two points is at `count`, or at the last where it falls; None with one point.

    Example:
        >>> drawn_on([10, 20], [3.0, 5.0], 100)
        21.0
    """
    if len(counts) < 2:
        return None
    slope = (amounts[-1] - amounts[-2]) / (counts[-1] - counts[-2])
    return amounts[-1] + max(slope, 0) * (count - counts[-1])


def table(raw: dict[str, Any], kind: str, date: str) -> str:
    """Markdown: a line for each number of files, and one that is drawn on, for either start."""
    counts = [int(count) for count in raw["files"]]
    what = f"files in {PARTS} folders" if kind == "folder" else f"members of {PARTS} tar shards"
    parts = [
        f"# From many small files to the first batch, {date}\n\nSmall JPEG and PNG {what}, read from the system's"
        " cache. Seconds, and in brackets those of the processor, all threads together, the least of the rounds. Up to"
        " 20,000 are decoded once before, of more the headers are read. Memory: a process's peak above that of one that"
        f" only imports, {raw['empty'] / 2**20:,.0f} MiB; JAX isn't loaded. The last line is no measurement: the line"
        " through the two above it, drawn on."
    ]
    for start, title in zip(STARTS, ("A first start", "A second one, which finds the list"), strict=True):
        found = [raw["files"][str(count)][start] for count in counts]
        names = [name for name in SECONDS if name in found[0][0]["seconds"]]
        pairs = [(clock, name) for name in names for clock in ("seconds", "processor")]
        columns = [[min(one[clock][name] for one in rounds) for rounds in found] for clock, name in pairs]
        columns += [[max(one["peak_bytes"] for one in rounds) - raw["empty"] for rounds in found]]
        rows = [["files", *(f"{SECONDS[name]}, s" for name in names), "memory, MiB", "bytes a file"]]
        for row, count in enumerate(counts):
            rows.append(_cells(f"{count:,}", [column[row] for column in columns], count))
        if len(counts) > 1:
            amounts = [drawn_on(counts, column, MILLION) or 0.0 for column in columns]
            rows.append(_cells(f"{MILLION:,}, drawn on", amounts, MILLION))
        parts += [f"## {title}", markdown(rows)]
    kept = raw["files"][str(counts[-1])]["kept_bytes"] / counts[-1]
    parts.append(f"Kept beside the run: {kept:.0f} bytes a file.")
    return "\n\n".join(parts)


def _cells(title: str, amounts: Sequence[float], count: int) -> list[str]:
    *times, memory = amounts
    pairs = zip(times[::2], times[1::2], strict=True)
    shown = [f"{wall:,.2f} ({processor:,.2f})" for wall, processor in pairs]
    return [title, *shown, f"{memory / 2**20:,.1f}", f"{memory / count:,.0f}"]


if __name__ == "__main__":
    sys.exit(main())
