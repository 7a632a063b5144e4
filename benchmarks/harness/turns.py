"""What benchmarks whose contenders take turns have in common: options, machine, turns, results."""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness.command import command_line
from benchmarks.harness.coordinator import Job, measure
from benchmarks.harness.machine import available_cores, describe
from benchmarks.harness.results_folder import check_new, write_results
from benchmarks.harness.table import machine_line
from byol_jax.cli import values
from byol_jax.cli.parsing import Parser

__all__ = ["add_turns", "measure_in_turns", "read", "report"]


def add_turns(parser: Parser, *, chunk: int, what: str) -> None:
    """Options of the turns, `chunk` of `what` each by default, and of the results."""
    positive = {"type": values.positive_int, "metavar": "N"}
    parser.add_argument("--rounds", **positive, default=10, help="turns of each contender (10)")
    parser.add_argument("--chunk", **positive, default=chunk, help=f"{what} a turn ({chunk})")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder, for the results")
    parser.add_argument("--json", action="store_true", help="print the raw numbers instead of the table")


def read(parser: Parser, words: list[str]) -> argparse.Namespace:
    """The options; `--out` is new, which is known before minutes of work."""
    options = parser.read(words)
    if options.out is not None:
        check_new(options.out)
    return options


def measure_in_turns(
    jobs: Mapping[str, Job], contenders: Iterable[str], options: argparse.Namespace, *, builder: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The answers of `coordinator.measure` by job, and the machine."""
    machine = describe() | {"threads": available_cores(), "load_average": [os.getloadavg()], "device": "cpu"}
    machine["allocator"] = "freed memory kept in the process"
    raw = {
        name: measure(
            job,
            [*contenders],
            builder=builder,
            rounds=options.rounds,
            chunk=options.chunk,
            threads=available_cores(),
            keep_memory=True,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )
        for name, job in jobs.items()
    }
    machine["load_average"].append(os.getloadavg())
    return raw, machine


def report(
    options: argparse.Namespace, text: str, *, command: str, names: Iterable[str], raw: Any, machine: dict[str, Any]
) -> None:
    """Prints the table, or JSON, and writes the results where they are wanted; `names`: options of the command."""
    text = f"{text}\n\n{machine_line(machine)}"
    line = command_line(command, options, (*names, "rounds", "chunk"))
    if options.out is not None:
        write_results(options.out, command=line, machine=machine, raw=raw, table=text)
    print(json.dumps(raw) if options.json else text)
