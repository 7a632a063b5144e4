"""Is a training step of byol_jax faster than byol-pytorch's? One whole step, network by network, in one run:

    python benchmarks/step.py            or: make bench, or: byol-jax bench

Contenders: byol_jax, with a traced torch module and, for ResNets, with its own network; byol-pytorch, eager (NCHW, as
in its README), in channels_last, and compiled by torch. In `harness/`, `workloads.py` has the equal work and
`coordinator.py` how they alternate. The floor is `flops.py` over a measured matrix-multiply peak.
Writes a folder with command.txt, machine.json, raw.json (seconds of every step) and table.md, and prints the table.
"""

import argparse
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.harness.command import run_command
from benchmarks.harness.contenders import CONTENDERS, PEAKS, available
from benchmarks.harness.coordinator import measure
from benchmarks.harness.flops import counted_flops, step_flops, taps_inside, taps_with_padding
from benchmarks.harness.machine import ROOT, available_cores, describe
from benchmarks.harness.results_folder import check_new, write_results
from benchmarks.harness.table import heading, machine_line, workload_table
from benchmarks.harness.workloads import QUICK, WORKLOADS, Resnet, Workload
from byol_jax.cli import values
from byol_jax.cli.parsing import Parser
from byol_jax.errors import ConfigurationError
from interop.trace.modules import find_module

__all__ = ["main"]

COMMAND = "python benchmarks/step.py"
USAGE = "[--workload NAME | --module NAME] [--rounds N] [--contenders LIST] [--out DIR] [--json] [--quick] ..."
ROUNDS, QUICK_ROUNDS, CHUNK = 10, 2, 3
KEPT = "freed memory kept in the process (four mallopt settings, byol_jax/cli/allocator.py)"
DEFAULT = "the system's default"


def main(words: list[str] | None = None) -> int:
    """Runs the benchmark with the command line `words` (default: the process's own); returns the exit code."""
    return run_command(COMMAND, lambda words: run(_options(words)), words)


def run(options: argparse.Namespace) -> int:
    """Measures, writes the results' folder, prints the table."""
    date = time.strftime("%Y-%m-%d")
    out = _results_folder(options, date)
    workloads = _workloads(options)
    machine = describe() | {"threads": options.threads, "load_average": [os.getloadavg()]}
    raw = {}
    for workload in workloads:
        results = measure(
            workload,
            [*available(options.contenders, workload), *(f"peak {name}" for name in PEAKS)],
            rounds=options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS),
            chunk=options.chunk,
            threads=options.threads,
            keep_memory=not options.default_allocator,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )
        raw[workload.name] = {"title": workload.title, "flops": _flops(workload), "results": results}
    machine["load_average"].append(os.getloadavg())
    machine |= _common_facts([result for part in raw.values() for result in part["results"].values()])
    table = "\n\n".join([heading(date), machine_line(machine), *(workload_table(**part) for part in raw.values())])
    write_results(out, command=_command(options), machine=machine, raw=raw, table=table)
    print(f"results: {out}", file=sys.stderr)
    print(json.dumps(raw) if options.json else table)
    return 0


def _flops(workload: Workload) -> dict[str, int]:
    """Of a step: `inside` the maps, where there is a closed form, and `with_padding`."""
    if not isinstance(workload.network, Resnet):
        return {"with_padding": counted_flops(workload)}
    return {"inside": step_flops(workload, taps_inside), "with_padding": step_flops(workload, taps_with_padding)}


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(COMMAND, USAGE, "One BYOL training step: byol_jax against byol-pytorch, alternating.")
    positive = {"type": values.positive_int, "metavar": "N"}
    choice = values.one_of([*WORKLOADS, "all"])
    parser.add_argument("--workload", type=choice, default="all", metavar="NAME", help=f"{', '.join(WORKLOADS)} or all")
    parser.add_argument(
        "--module", metavar="NAME", help="instead: a torch module, as `byol-jax train --network` has it"
    )
    parser.add_argument("--hidden-layer", default="-1", metavar="NAME", help="its features (-1: its output)")
    parser.add_argument("--image-size", **positive, default=64, help="its images' side (64)")
    parser.add_argument("--batch-size", **positive, default=16, help="its images a step (16)")
    parser.add_argument("--rounds", **positive, help=f"turns of each contender ({ROUNDS}; {QUICK_ROUNDS} with --quick)")
    parser.add_argument("--chunk", **positive, default=CHUNK, help=f"steps a turn ({CHUNK})")
    parser.add_argument("--threads", **positive, default=available_cores(), help="cores to use (all)")
    parser.add_argument(
        "--contenders",
        type=_contenders,
        default=list(CONTENDERS),
        metavar="LIST",
        help=f"of {','.join(CONTENDERS)} (all)",
    )
    parser.add_argument("--default-allocator", action="store_true", help="leave the allocator as it is, for all alike")
    parser.add_argument("--quick", action="store_true", help="a tiny network: tries the harness, measures nothing")
    parser.add_argument("--json", action="store_true", help="print raw.json instead of the table")
    parser.add_argument("--out", type=Path, metavar="DIR", help="results (benchmarks/results/DATE_step)")
    options = parser.read(words)
    if options.threads > available_cores():
        raise ConfigurationError(f"--threads {options.threads}: there are {available_cores()} cores")
    absent = [name for name in ("torch", "torchvision", "byol_pytorch") if importlib.util.find_spec(name) is None]
    if absent:
        raise ConfigurationError(f"{', '.join(absent)} not installed: pip install 'byol-jax[dev]'")
    if options.module is not None:
        find_module(options.module)  # before anything is measured
    return options


def _contenders(word: str) -> list[str]:
    """Names with commas between them, each once."""
    return list(dict.fromkeys(values.one_of(CONTENDERS)(name.strip()) for name in word.split(",")))


def _workloads(options: argparse.Namespace) -> list[Workload]:
    if options.quick:
        return [QUICK]
    if options.module is not None:
        return [_own_workload(options)]
    return list(WORKLOADS.values()) if options.workload == "all" else [WORKLOADS[options.workload]]


def _own_workload(options: argparse.Namespace) -> Workload:
    size, batch, layer = options.image_size, options.batch_size, options.hidden_layer
    title = f"{options.module}, {size} px, batch {batch}"
    return Workload("module", title, options.module, -1 if layer == "-1" else layer, size, batch)


def _results_folder(options: argparse.Namespace, date: str) -> Path:
    """An empty folder: the one that --out names, or the next free name of today. Results are never overwritten."""
    if options.out is not None:
        check_new(options.out)
        out = options.out
    else:
        results = ROOT / "benchmarks" / "results"
        name = f"{date}_{'quick' if options.quick else 'step'}"
        number = next(n for n in range(1, 1000) if not (results / _with_number(name, n)).exists())
        out = results / _with_number(name, number)
    out.mkdir(parents=True, exist_ok=True)  # now, not after minutes of work
    return out


def _with_number(name: str, number: int) -> str:
    return name if number == 1 else f"{name}_{number}"


def _common_facts(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Device and allocator, as the processes reported them."""
    kept = {result["memory_kept"] for result in results}
    return {
        "device": ", ".join(sorted({result["device"] for result in results})),
        "allocator": " and ".join(KEPT if one else DEFAULT for one in sorted(kept)),
    }


def _command(options: argparse.Namespace) -> str:
    """The command with every option as it was resolved, without --out."""
    words = [COMMAND, "--quick" if options.quick else f"--workload {options.workload}"]
    if options.module is not None:
        words[1:] = [f"--module {options.module}", f"--hidden-layer {options.hidden_layer}"]
        words += [f"--image-size {options.image_size}", f"--batch-size {options.batch_size}"]
    words += [f"--rounds {options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)}", f"--chunk {options.chunk}"]
    words += [f"--threads {options.threads}", f"--contenders {','.join(options.contenders)}"]
    return " ".join([*words, *(["--default-allocator"] if options.default_allocator else [])])


if __name__ == "__main__":
    sys.exit(main())
