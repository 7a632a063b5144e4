"""`byol-jax bench`: one training step against byol-pytorch's, by the files that lie in a checkout's `benchmarks/`."""

import argparse
import subprocess
import sys
from pathlib import Path

from byol_jax.cli import values

__all__ = ["USAGE", "add_arguments", "check", "run"]

USAGE = "[--out DIR] [-- OPTIONS OF benchmarks/step.py] | compare DIR DIR"
CHECKOUT = Path(__file__).resolve().parents[3]
SCRIPT = Path("benchmarks") / "step.py"
COMPARE = "compare"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options; whatever stands behind `--` goes to the benchmark as it is."""
    parser.add_argument(
        "--out", type=values.new_path, metavar="DIR", help="where the numbers go (the benchmark's choice)"
    )
    parser.add_argument(
        "rest",
        nargs="*",
        metavar="OPTIONS",
        help="options of benchmarks/step.py, behind --; or compare and two folders of results",
    )


def check(options: argparse.Namespace) -> list[str]:
    """Whether there is a benchmark to run."""
    if not (CHECKOUT / SCRIPT).is_file():
        return [f"{SCRIPT} isn't there: an installed package has no benchmarks, run this in a checkout of the project"]
    return []


def run(options: argparse.Namespace) -> int:
    """Runs the benchmark in a process of its own; its exit code is ours: 0 done, 2 a wrong option, 1 whatever else."""
    out = ["--out", str(options.out)] if options.out else []
    words = [SCRIPT, *out, *options.rest]
    if options.rest[:1] == [COMPARE]:
        words = [SCRIPT.with_name("compare.py"), *options.rest[1:]]
    done = subprocess.run([sys.executable, CHECKOUT / words[0], *words[1:]], check=False)
    return done.returncode if done.returncode in (0, 2) else 1
