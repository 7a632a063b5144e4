"""Options that several sub-commands share, and what can be wrong with them. Looks at the disk, writes nothing."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from byol_jax.cli import values
from byol_jax.cli.networks import ALL_NETWORKS, any_network_name

__all__ = [
    "add_channels",
    "add_choice",
    "add_network",
    "add_output",
    "add_run",
    "add_which",
    "check_folder",
    "check_output",
    "folder_for",
]


def add_run(parser: argparse.ArgumentParser) -> None:
    """Adds RUN, a folder to read."""
    parser.add_argument("run", type=values.run_folder, metavar="RUN", help="the folder that byol-jax train wrote to")


def add_which(parser: argparse.ArgumentParser) -> None:
    """Adds `--which online|target`."""
    parser.add_argument(
        "--which",
        type=values.one_of(("online", "target")),
        default="online",
        metavar="NETWORK",
        help="online or target: which of the two networks (online)",
    )


def add_channels(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds `--channels 1|3`."""
    parser.add_argument(
        "--channels", type=values.channels, metavar="N", help="1 for grey, 3 for colour (3; that of arrays)"
    )


def add_network(parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, default: str | None = None) -> None:
    """Adds `--network`, `--weights` and `--init-from`; the help names what stands in where no network is given."""
    parser.add_argument(
        "--network",
        type=any_network_name,
        metavar="NAME",
        help=f"one of {ALL_NETWORKS}" + (f" ({default})" if default else ""),
    )
    parser.add_argument(
        "--weights",
        metavar="NAME",
        help="torchvision's or timm's weights, and with them mean and std: DEFAULT, IMAGENET1K_V2, a tag (random)",
    )
    parser.add_argument(
        "--init-from",
        type=values.weight_file,
        metavar="FILE",
        help="start from these weights: a network's or a whole BYOL learner's",
    )
    add_choice(parser, "--init-from's file")


def add_choice(parser: argparse.ArgumentParser | argparse._ArgumentGroup, file: str) -> None:
    """Adds `--which-weights` and `--prefix`: which of a file's weights are taken."""
    parser.add_argument(
        "--which-weights",
        metavar="NAME",
        help=f"where {file} holds several sets of weights, the entry to take: state_dict_ema, teacher and so on, as "
        "python -m interop inspect lists them (the first; timm's average in timm's files)",
    )
    parser.add_argument(
        "--prefix", metavar="PREFIX", help=f"of {file} take what stands below this, without it: encoder_q of MoCo's"
    )


def add_output(parser: argparse.ArgumentParser, *suffixes: str, metavar: str = "FILE", text: str) -> None:
    """Adds `--out FILE` and `--overwrite`."""
    parser.add_argument(
        "--out",
        type=values.new_file(*suffixes),
        required=True,
        metavar=metavar,
        help=f"{text}; the name ends in {' or '.join(suffixes)}",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if there is one")


def check_output(path: Path, *, overwrite: bool, name: str = "--out") -> list[str]:
    """The complaint about a file that would be replaced without having been asked for."""
    if path.exists() and not overwrite:
        return [f"{name}: '{path}' exists, give --overwrite or another name"]
    return []


def check_folder(path: Path, *, replaceable: bool, hint: str) -> list[str]:
    """The complaint about a folder to write that is a file, or holds something already."""
    if path.exists() and not path.is_dir():
        return [f"--out: '{path}' is a file, a folder is wanted"]
    if path.is_dir() and not replaceable and any(path.iterdir()):
        return [f"--out: '{path}' isn't empty, give {hint} or another folder"]
    return []


@contextlib.contextmanager
def folder_for(path: Path) -> Iterator[None]:
    """While inside, the folder that `path` will lie in is there; one made for it goes again if what follows fails."""
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: somebody else uses it by now
            for folder in made:
                folder.rmdir()
        raise
