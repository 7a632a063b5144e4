"""Options that several sub-commands share, and what can be wrong with them. Looks at the disk, writes nothing."""

import argparse
import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from byol_jax.cli import values
from byol_jax.cli.networks import ALL_NETWORKS, any_network_name

__all__ = [
    "add_array_layout",
    "add_channels",
    "add_choice",
    "add_fit",
    "add_network",
    "add_output",
    "add_reading",
    "add_run",
    "add_value_range",
    "add_which",
    "check_data",
    "check_folder",
    "check_output",
    "folder_for",
    "reading_of",
]

NOTHING: Mapping[str, Path | str | None] = {}
RUN_PARTS, WRITTEN_PICTURES = ("checkpoints", "network"), (".png",)
"""Of a run's folder, what is read; and of what commands write, what a folder of images would have as its own."""

READING = ("bands", "tiff_axes", "dicom_rescale")
"""Options of `add_reading`; the keys of runs/reopen.py, which loads JAX."""

FITS, LAYOUTS = ("cover", "contain", "none"), ("NHWC", "NCHW")
"""The words of data/fit.py and data/arrays.py, which load Pillow and NumPy."""


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
    """Adds `--channels`."""
    parser.add_argument(
        "--channels",
        type=values.positive_int,
        metavar="N",
        help="1 for grey, 3 for colour, to which pictures are converted; others as many as the files have; of an array"
        " as many as it has (3; that of arrays)",
    )


def add_reading(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds `--bands`, `--tiff-axes` and `--dicom-rescale`."""
    parser.add_argument(
        "--bands",
        type=values.bands,
        metavar="LIST",
        help="which channels of a folder's files are used, from 1, in this order: 3,2,1; as they are stored (all)",
    )
    parser.add_argument(
        "--tiff-axes",
        type=values.tiff_axes,
        metavar="AXES",
        help="letters of a TIFF's axes that become channels, such as Z for depth; all others give images (CS, channels"
        " and samples)",
    )
    parser.add_argument(
        "--dicom-rescale", action="store_true", help="apply slope and intercept of DICOM files (numbers as stored)"
    )


def reading_of(options: argparse.Namespace) -> dict[str, Any]:
    """What was said of how files are read, as arguments of `open_dataset`; empty where nothing was."""
    given = {name: getattr(options, name, None) or None for name in READING}
    return {name: value for name, value in given.items() if value is not None}


def add_array_layout(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds `--layout`."""
    parser.add_argument(
        "--layout",
        type=values.one_of(LAYOUTS),
        metavar="AXES",
        help="NHWC or NCHW: where an array has its channels (NHWC; asked for where the shape leaves doubt)",
    )


def add_fit(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds `--fit`."""
    parser.add_argument(
        "--fit",
        type=values.one_of(FITS),
        metavar="HOW",
        help="how image files get one shape: cover (the longer side is cut), contain (black is added) or none (neither:"
        " each side is resized to what the folder has in common) (cover)",
    )


def add_value_range(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds `--value-range`."""
    parser.add_argument(
        "--value-range",
        type=values.value_range,
        metavar="RANGE",
        help="which numbers of the images become 0 and 1: LOW:HIGH (one a channel with commas between); auto, the"
        " percentiles 0.1 and 99.9 of each channel in 256 images; percentile:P, others (auto for a folder of grey"
        " images of 16 bits; else 0:255 of 8 bits, 0:65535 of 16, and floats as they are)",
    )


def check_data(data: str, options: argparse.Namespace) -> list[str]:
    """What is wrong with the options that say how `data` is read, those of them that the command has."""
    channels, layout, fit = (getattr(options, name, None) for name in ("channels", "layout", "fit"))
    folder, problems = values.holds_files(data), []
    reading = reading_of(options)
    bands = reading.get("bands")
    if bands is not None and channels not in (None, len(bands)):
        problems.append(f"--bands: {len(bands)} of them, and --channels {channels}: give as many, or --bands alone")
    channels = channels if bands is None else len(bands)
    if reading and not folder:
        named = ", ".join(f"--{name.replace('_', '-')}" for name in reading)
        problems.append(f"{named}: only for a folder of image files")
    given = getattr(options, "value_range", None)
    if isinstance(given, tuple) and len(given[0]) not in (1, channels or (3 if folder else len(given[0]))):
        problems.append(
            f"--value-range: {len(given[0])} ranges for images of {channels or 3} channels: give one, or one a channel"
        )
    if layout is not None and (folder or data == values.EMBEDDED):
        problems.append(f"--layout {layout}: only .npy and .npz files have a layout")
    if fit is not None and not folder:
        problems.append(f"--fit {fit}: only for a folder of image files; an array's images keep their size")
    return problems


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


def check_output(
    path: Path, *, overwrite: bool, name: str = "--out", inputs: Mapping[str, Path | str | None] = NOTHING
) -> list[str]:
    """The complaint about a file that would be replaced without having been asked for, or is one that is read.

    Args:
        inputs: what the command reads, by the names of its options: a file, a sharded set, a folder of images, a run.
    """
    if not path.exists():
        return []
    read = [option for option, source in inputs.items() if source is not None and _is_read(path, Path(source))]
    if read:
        return [f"{name}: '{path}' is read as {read[0]} and would be lost, give another name"]
    return [] if overwrite else [f"{name}: '{path}' exists, give --overwrite or another name"]


def _is_read(path: Path, source: Path) -> bool:
    """Whether a file that is there is (a part of) what is read: of a folder, its images, or a run's checkpoints."""
    if any(file.exists() and path.samefile(file) for file in (source, *_shards(source))):
        return True
    inside = [source / part for part in RUN_PARTS if (source / "config.json").is_file()]
    inside += [source] if path.suffix.lower() in WRITTEN_PICTURES else []
    return any(part.is_dir() and path.resolve().is_relative_to(part.resolve()) for part in inside)


def check_folder(path: Path, *, replaceable: bool, hint: str) -> list[str]:
    """The complaint about a folder to write that is a file, or holds something already."""
    if path.exists() and not path.is_dir():
        return [f"--out: '{path}' is a file, a folder is wanted"]
    if path.is_dir() and not replaceable and any(path.iterdir()):
        return [f"--out: '{path}' isn't empty, give {hint} or another folder"]
    return []


def _shards(source: Path) -> list[Path]:
    """The index and the shards that a set of safetensors is, whichever of its names is given; none for other files."""
    if source.is_dir():
        indices = list(source.glob(f"*{values.INDEX}"))
    elif source.name.endswith(values.INDEX):
        indices = [source]
    else:
        indices = [] if source.exists() else [values.index_beside(str(source))]
    found = []
    for index in indices:
        with contextlib.suppress(
            OSError, ValueError, LookupError, TypeError, AttributeError
        ):  # what is wrong with it, reading says
            names = json.loads(index.read_bytes())["weight_map"].values()
            found += [index, *(index.parent / name for name in set(names))]
    return found


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
