"""`python -m interop convert IN OUT` and `python -m interop inspect FILE`: weight files, whole learners among them.

JAX isn't needed, and torch only to write PyTorch's own files. Results go to stdout with exit code 0; an error is one
line on stderr with exit code 2.
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from byol_jax.errors import InteropError, one_line
from interop.formats.containers import short_list
from interop.inspect.commands import convert_file, inspect_file, inspection_text

__all__ = ["main"]

WRITTEN = ".safetensors, .pt, .pth, .ckpt or .npz"
READ = f"{WRITTEN}, or DeepMind's .pkl"


class OneLineParser(argparse.ArgumentParser):
    """A parser that says in one line which option is wrong; argparse's own prints its usage too."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    options = _parser().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _warn_in_one_line
        return _run(options)


def _warn_in_one_line(message: Any, *_: Any) -> None:
    print(f"interop: warning: {one_line(message)}", file=sys.stderr)


def _run(options: argparse.Namespace) -> int:
    try:
        if options.command == "convert":
            done = convert_file(
                options.source,
                options.target,
                overwrite=options.overwrite,
                which_weights=options.which_weights,
                prefix=options.prefix,
            )
            print(f"{done['target']}: {done['tensors']} tensors, {done['bytes']:,} bytes, {done['kind']}")
            if done["left_behind"]:
                print(one_line(f"left behind: {short_list(done['left_behind'])}"))
        else:
            inspection = inspect_file(options.file, which_weights=options.which_weights, prefix=options.prefix)
            print(json.dumps(inspection, allow_nan=False) if options.json else inspection_text(inspection))
        sys.stdout.flush()
    except InteropError as error:
        print(f"interop: {one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(prog="python -m interop", description="Weight files: change the format, or look inside.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    convert = commands.add_parser(
        "convert", help="change a weight file's format", description="Change a weight file's format, bit for bit."
    )
    convert.add_argument("source", metavar="IN", help=f"{READ}; told by content")
    convert.add_argument("target", metavar="OUT", help=f"{WRITTEN}; the ending decides the format")
    convert.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    inspect = commands.add_parser(
        "inspect",
        help="show what is in a weight file",
        description="Show what is in a weight file: whose learner or network, its architecture and heads, every leaf "
        "with its statistics, and what wouldn't convert.",
    )
    inspect.add_argument("file", metavar="FILE", help=f"{READ}; told by content")
    for command in (convert, inspect):
        command.add_argument(
            "--which-weights", metavar="NAME", help="the entry of a PyTorch file to take, as inspect lists them"
        )
        command.add_argument("--prefix", metavar="PREFIX", help="take what stands below this, without it")
    inspect.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
