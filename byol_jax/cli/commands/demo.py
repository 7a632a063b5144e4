"""`byol-jax demo`: trains on the embedded images and shows that the features got better."""

import argparse
from pathlib import Path

from byol_jax.cli import values
from byol_jax.cli.common import check_folder

__all__ = ["USAGE", "add_arguments", "check", "run"]

USAGE = "[--out DIR] [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "--out", type=values.new_path, default=Path("demo"), metavar="DIR", help="the folder to write (demo)"
    )
    parser.add_argument("--overwrite", action="store_true", help="delete what DIR holds, then start")
    parser.add_argument("--steps", type=values.positive_int, metavar="N", help="length in steps (some minutes' worth)")
    parser.add_argument(
        "--seed", type=values.whole_number, default=0, metavar="N", help="decides everything random (0)"
    )


def check(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options together."""
    return check_folder(options.out, replaceable=options.overwrite, hint="--overwrite")


def run(options: argparse.Namespace) -> int:
    """Runs the demo, which prints its own results."""
    from byol_jax.cli import demo_run
    from byol_jax.cli.allocator import keep_freed_memory
    from byol_jax.cli.compiled import keep_compiled_programs

    keep_freed_memory()
    keep_compiled_programs()
    demo_run.run(options.out, steps=options.steps, seed=options.seed, overwrite=options.overwrite)
    return 0
