"""Does BYOL learn here? Runs what is missing, skips what is done, rewrites the page after each run:

    python -m benchmarks.proof [--only LIST] [--minutes N] [--list] [--scale smoke]

Everything together takes at most eight hours on two idle cores. It may be stopped at any time: the run that is under
way is begun again, the long ones go on from their last checkpoint.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.harness.command import run_command
from benchmarks.harness.machine import ROOT
from benchmarks.proof.data import open_images
from benchmarks.proof.items import SCALES, Item, chosen, of_scale
from benchmarks.proof.page import page, plots
from benchmarks.proof.rows import RESULTS, begin, check_clean, load, row_of, stored, write
from benchmarks.proof.worker import run_alone
from byol_jax.cli import values
from byol_jax.cli.parsing import Parser
from byol_jax.disk import write_atomically
from byol_jax.errors import one_line

__all__ = ["main"]

COMMAND = "python -m benchmarks.proof"
USAGE = "[--only LIST] [--minutes N] [--list] [--scale smoke] [--fashion-mnist DIR] [--photos DIR] [--out DIR]"


def main(words: list[str] | None = None) -> int:
    """Runs the command with `words` (default: the process's own); returns the exit code."""
    return run_command(COMMAND, lambda words: _run(_options(words)), words)


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(COMMAND, USAGE, "Does BYOL learn here? Runs what is missing and skips what is done.")
    parser.add_argument(
        "--only", type=values.several(str), default=[], metavar="LIST", help="experiments, groups, runs (all)"
    )
    parser.add_argument("--minutes", type=values.positive_number, metavar="N", help="start no run after N minutes")
    parser.add_argument("--list", action="store_true", help="print every run, its budget and whether it is done")
    parser.add_argument("--scale", type=values.one_of(SCALES), default="full", help="smoke: a tiny trial (full)")
    folder = {"type": Path, "metavar": "DIR"}
    parser.add_argument("--fashion-mnist", **folder, help="the four idx.gz files (where Debian puts them)")
    parser.add_argument("--photos", **folder, help="elpv-dataset's labels.csv and images (of the installed package)")
    parser.add_argument("--out", **folder, help="rows and page (benchmarks/results/proof; of a trial, a new folder)")
    parser.add_argument("--work", **folder, help="what the long runs need to go on (runs/proof; of a trial, in --out)")
    options = parser.read(words)
    trial = options.scale != "full"
    if options.out is None:
        options.out = Path(tempfile.mkdtemp(prefix="proof_")) if trial and not options.list else RESULTS
    if options.work is None:
        options.work = options.out / "work" if trial else ROOT / "runs" / "proof"
    return options


def _run(options: argparse.Namespace) -> int:
    items = of_scale(options.scale)
    wanted = chosen(items, options.only)
    if options.list:
        for item in wanted:
            print(f"{item.name:36} {item.budget:6,} s  {'done' if load(options.out, item) else 'missing'}")
        print(f"{sum(item.budget for item in wanted) / 3600:.1f} hours at most")
        return 0
    due = [item for item in wanted if load(options.out, item) is None]
    places = {"fashion-mnist": options.fashion_mnist, "photos": options.photos}
    full = options.scale == "full"
    if due and full:
        check_clean()
    for name in dict.fromkeys(item.data for item in due):
        open_images(name, places, image_size=8)  # what isn't there is said before hours of work
    print(f"{len(wanted) - len(due)} of {len(wanted)} runs are done; results: {options.out}", file=sys.stderr)
    failed = 0
    for item in _in_time(due, options.minutes):
        if full:
            check_clean()  # it may have changed since
        print(f"{item.name}: at most {item.budget:,} s", file=sys.stderr, flush=True)
        began = begin()
        try:
            outcome = run_alone(item, places, options.work)
        except Exception as error:  # a run that fails has no row; the others go on
            failed += 1
            print(f"{item.name}: failed: {one_line(error)}", file=sys.stderr, flush=True)
            continue
        write(options.out, item, row_of(item, outcome, scale=options.scale, began=began))
        print(f"{item.name}: done in {outcome['seconds']:,.0f} s", file=sys.stderr, flush=True)
        _write_page(options.out, items, options.scale)
    _write_page(options.out, items, options.scale)
    return 1 if failed else 0


def _in_time(items: Sequence[Item], minutes: float | None) -> Iterator[Item]:
    began = time.monotonic()
    for number, item in enumerate(items):
        if minutes is not None and time.monotonic() - began > 60 * minutes:
            print(f"{minutes:g} minutes are over: {len(items) - number} runs are left", file=sys.stderr)
            return
        yield item


def _write_page(out: Path, items: Sequence[Item], scale: str) -> None:
    rows = stored(out, items)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "README.md", page(items, rows, scale=scale).encode())
    for name, text in plots(items, rows).items():
        write_atomically(out / name, text.encode())


if __name__ == "__main__":
    sys.exit(main())
