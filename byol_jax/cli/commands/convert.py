"""`byol-jax convert IN OUT`: the same tensors in another file format. Needs neither jax nor torch for most of them.

Names stay; another library's are what `byol-jax import --layout` gives.
"""

import argparse
import json
from collections.abc import Sequence

from byol_jax.cli import values
from byol_jax.cli.commands.export import WRITABLE_WEIGHTS
from byol_jax.cli.common import add_choice, check_output, folder_for
from byol_jax.errors import one_line

__all__ = ["USAGE", "add_arguments", "check", "run"]

USAGE = "IN OUT [options]"
LISTED = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "source",
        type=values.weight_file,
        metavar="IN",
        help="a .pt, .pth, .ckpt, .safetensors or .npz file, or DeepMind's .pkl",
    )
    parser.add_argument(
        "target",
        type=values.new_file(*WRITABLE_WEIGHTS),
        metavar="OUT",
        help=f"a file in {', '.join(WRITABLE_WEIGHTS)}",
    )
    add_choice(parser, "IN")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def check(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options together."""
    return check_output(options.target, overwrite=options.overwrite, name="OUT", inputs={"IN": options.source})


def run(options: argparse.Namespace) -> int:
    """Converts; prints a summary."""
    import interop

    with folder_for(options.target):
        summary = interop.convert_file(
            options.source,
            options.target,
            overwrite=options.overwrite,
            which_weights=options.which_weights,
            prefix=options.prefix,
        )
    if options.json:
        print(json.dumps(summary, default=str))
    else:
        print(f"{summary['tensors']} tensors ({summary['kind']}), {summary['bytes']:,} bytes: {options.target}")
        if summary["left_behind"]:
            print(one_line(f"left behind: {_first_of(summary['left_behind'])}"))
    return 0


def _first_of(names: Sequence[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
