"""What the benchmarks' command lines have in common: how one runs, and how it is written down."""

import argparse
import sys
from collections.abc import Callable, Iterable

from byol_jax.cli.boundary import guard

__all__ = ["command_line", "run_command"]


def run_command(command: str, run: Callable[[list[str]], int], words: list[str] | None) -> int:
    """The exit code of `run(words)`, by default of the process's own words; an error is one line."""
    words = sys.argv[1:] if words is None else words
    return guard(command, lambda: run(words), debug="--debug" in words)


def command_line(command: str, options: argparse.Namespace, names: Iterable[str]) -> str:
    """The command with these options as they were resolved.

    Example:
        >>> command_line("python x.py", argparse.Namespace(batch_size=8), ["batch_size"])
        'python x.py --batch-size 8'
    """
    return " ".join([command, *(f"--{name.replace('_', '-')} {getattr(options, name)}" for name in names)])
