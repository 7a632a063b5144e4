"""What the value of an option may be: converters from a word to a value, for argparse's `type`.

Each raises `argparse.ArgumentTypeError` with a phrase that follows the option's name, as in
"--steps: '0' is not a whole number above 0". They look at the disk where a path is given, and change nothing there.
"""

import argparse
import difflib
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from byol_jax.disk import weights_in
from byol_jax.errors import nearest
from byol_jax.file_names import describe_data

__all__ = [
    "EMBEDDED",
    "INDEX",
    "bands",
    "data_source",
    "existing_file",
    "first_level",
    "hidden_layer",
    "holds_files",
    "image_size",
    "index_beside",
    "is_folder",
    "new_file",
    "new_path",
    "non_negative_number",
    "one_of",
    "paths_beside",
    "positive_int",
    "positive_number",
    "positive_probability",
    "probability",
    "run_folder",
    "several",
    "tiff_axes",
    "value_range",
    "weight_file",
    "whole_number",
]

EMBEDDED = "fashion-mnist"
"""The word that stands for the embedded images."""

ARRAY_SUFFIXES = (".npz", ".npy")

SHARD, PATTERN = re.compile(r"\.(?:tar|tgz|parquet|tfrecord|array_?record)", re.IGNORECASE), re.compile(r"[*?\[{]")
"""What is in the names of shards, and in patterns for them; byol_jax/data/shards has them, and loads NumPy."""

INDEX = ".safetensors.index.json"
"""What the name of a sharded set's index ends with."""


def whole_number(word: str) -> int:
    """0, 1, 2, … below 2**31."""
    return _integer(word, 0, "a whole number, 0 or more")


def positive_int(word: str) -> int:
    """1, 2, 3, … below 2**31."""
    return _integer(word, 1, "a whole number above 0")


def positive_number(word: str) -> float:
    """A finite number above 0."""
    return _number(word, lambda value: 0 < value < math.inf, "a number above 0")


def non_negative_number(word: str) -> float:
    """A finite number, 0 or more."""
    return _number(word, lambda value: 0 <= value < math.inf, "a number, 0 or more")


def probability(word: str) -> float:
    """A number from 0 to 1, both included."""
    return _number(word, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def positive_probability(word: str) -> float:
    """A number above 0, at most 1."""
    return _number(word, lambda value: 0 < value <= 1, "a number above 0, at most 1")


def several(converter: Callable[[str], Any]) -> Callable[[str], list]:
    """A converter for values with commas between them, each given once."""

    def values(word: str) -> list:
        found = [converter(part.strip()) for part in word.split(",")]
        twice = [part for number, part in enumerate(found) if part in found[:number]]
        if twice:
            raise argparse.ArgumentTypeError(f"{word!r} has {twice[0]} twice")
        return found

    return values


def one_of(names: Iterable[str]) -> Callable[[str], str]:
    """A converter that accepts these names only and suggests the nearest of them."""
    names = tuple(names)

    def choice(word: str) -> str:
        if word not in names:
            raise argparse.ArgumentTypeError(
                f"{word!r} is not one of {', '.join(names)}; {nearest(word, names, at_most=1)[0]} is the nearest"
            )
        return word

    return choice


def image_size(word: str) -> int | tuple[int, int]:
    """`96` (or `96x96`) for a square, `96x128` for height x width, in pixels."""
    try:
        sizes = [int(part) for part in word.lower().split("x")]
    except ValueError:
        sizes = []
    if not 1 <= len(sizes) <= 2 or not all(1 <= size <= 16384 for size in sizes):
        raise argparse.ArgumentTypeError(f"{word!r} is not a size in pixels such as 96, or 96x128 for height x width")
    return sizes[0] if len(set(sizes)) == 1 else (sizes[0], sizes[1])


def bands(word: str) -> tuple[int, ...]:
    """`3,2,1`: numbers of channels, counted from 1; one may be given several times."""
    try:
        found = tuple(int(part) for part in word.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not numbers of channels, from 1, such as 3,2,1")
    return found


def tiff_axes(word: str) -> str:
    """Letters of axes but Y and X, such as `CS` or `Z`."""
    if not word.isascii() or not word.isalpha() or {"X", "Y"} & set(word.upper()):
        raise argparse.ArgumentTypeError(f"{word!r} is not letters of axes that become channels, such as CS or Z")
    return word.upper()


def value_range(word: str) -> str | tuple[tuple[float, ...], tuple[float, ...]]:
    """`auto`, `percentile:P`, or `LOW:HIGH`, one such or one a channel with commas between: a rule, or (low, high)."""
    parts = word.split(",")
    try:
        if word == "auto" or (
            parts[0].startswith("percentile:") and 50 < float(word.removeprefix("percentile:")) <= 100
        ):
            return word
        low, high = zip(*((float(low), float(high)) for low, high in (part.split(":") for part in parts)), strict=True)
    except ValueError:
        low = high = (math.nan,)
    if not all(-math.inf < below < above < math.inf for below, above in zip(low, high, strict=True)):
        raise argparse.ArgumentTypeError(
            f"{word!r} is not auto, LOW:HIGH with LOW below HIGH, such as 0:4095, or percentile:P with P above 50, at"
            " most 100"
        )
    return low, high


def hidden_layer(word: str) -> int | str:
    """An index into the network's children, or a dotted name."""
    try:
        return int(word)
    except ValueError:
        return word


def data_source(word: str) -> str:
    """A folder of images, shards, a `.npz` or `.npy` file, or the word `fashion-mnist`."""
    path = Path(word)
    if word == EMBEDDED or _may_be_shards(word):
        return word
    if not path.exists():
        raise argparse.ArgumentTypeError(
            f"{_describe_absence(path)}; a folder of images, shards, an .npz or .npy file or {EMBEDDED}"
        )
    if not path.is_dir() and not _is_array_name(path):
        words = describe_data(path.name) or (
            "neither a folder nor a shard (.tar, .parquet, .tfrecord, .array_record)"
            f" nor an {' or '.join(ARRAY_SUFFIXES)} file"
        )
        raise argparse.ArgumentTypeError(f"{word!r} is {words}")
    return word


def _is_array_name(path: Path) -> bool:
    return path.suffix.lower() in ARRAY_SUFFIXES


def _may_be_shards(word: str) -> bool:
    """Whether it is a shard, or a pattern for some; what is wrong with them, opening them says."""
    is_named = SHARD.search(Path(word).name) is not None
    return "://" in word or (is_named and (Path(word).is_file() or PATTERN.search(word) is not None))


def holds_files(source: str) -> bool:
    """Whether a data source holds image files, in a folder or in shards; else it is numbers."""
    return source != EMBEDDED and (Path(source).is_dir() or not _is_array_name(Path(source)))


def is_folder(source: str) -> bool:
    """Whether a data source is a folder, of images or of shards."""
    return source != EMBEDDED and Path(source).is_dir()


def first_level(source: str) -> tuple[list[str], list[str]]:
    """Names of the folders and of the images that lie in a folder of images; none of other sources.

    Images are of the kind that the whole folder has: an .npy beside folders of pictures may hold labels. The folders
    are looked into only where that can't be known otherwise.
    """
    from byol_jax.data.files.file_list import extensions_in, is_run_folder, leads_to_folder
    from byol_jax.data.files.image_names import ANY_EXTENSIONS, is_image_name
    from byol_jax.data.shards.find import find_shards

    if not is_folder(source) or find_shards(source) is not None:
        return [], []
    folders, images = [], []
    with os.scandir(source) as entries:  # a flat folder may hold a million: no file is asked for anything
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if leads_to_folder(entry):
                folders += [] if is_run_folder(Path(entry.path)) else [entry.name]
            elif is_image_name(entry.name, ANY_EXTENSIONS):
                images.append(entry.name)
    pictures = [name for name in images if is_image_name(name)]
    if folders and images and not pictures:  # some may lie in the folders
        extensions = extensions_in(Path(source))
        images = [name for name in images if is_image_name(name, extensions)]
    return sorted(folders), sorted(pictures or images)


def existing_file(word: str) -> Path:
    """A file that is there; a regular one, since opening a named pipe would wait for a writer."""
    path = Path(word)
    if not path.exists():
        raise argparse.ArgumentTypeError(_describe_absence(path))
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{word!r} is a folder, a file is wanted")
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{word!r} is a pipe, a socket or a device, a file is wanted")
    return path


def index_beside(word: str) -> Path:
    """The index of the sharded set that would be one file of this name."""
    return Path(word.removesuffix(".safetensors") + INDEX)


def weight_file(word: str) -> Path:
    """A file of weights, or a sharded set of safetensors: its folder, or the name that the whole file would have."""
    path = Path(word)
    if path.is_dir() and not any(path.glob(f"*{INDEX}")):
        inside = weights_in(path)
        raise argparse.ArgumentTypeError(
            f"{word!r} is a folder, a file of weights is wanted"
            + (f": {str(inside)!r}" if inside else f", or a folder with one *{INDEX}")
        )
    index = index_beside(word)
    is_set = path.is_dir() or (path.suffix == ".safetensors" and not path.exists() and index.is_file())
    return path if is_set else existing_file(word)


def run_folder(word: str) -> Path:
    """A folder that `byol-jax train` wrote."""
    path = Path(word)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{_describe_absence(path)}; give the folder that byol-jax train wrote to")
    if not (path / "config.json").is_file():
        raise argparse.ArgumentTypeError(f"{word!r} holds no config.json; give the folder that byol-jax train wrote to")
    return path


def new_path(word: str) -> Path:
    """Somewhere that can be written: the nearest folder above that exists is one, and lets us write."""
    path = Path(word)
    if not word.strip():
        raise argparse.ArgumentTypeError("the path is empty")
    above = next((folder for folder in path.absolute().parents if folder.exists()), Path("/"))
    if not above.is_dir():
        raise argparse.ArgumentTypeError(f"{word!r} lies below {str(above)!r}, which is a file")
    if not path.exists() and not os.access(above, os.W_OK):
        raise argparse.ArgumentTypeError(f"{word!r}: no permission to write in {str(above)!r}")
    return path


def new_file(*suffixes: str) -> Callable[[str], Path]:
    """A converter for a file to write, whose name ends in one of `suffixes`."""

    def file(word: str) -> Path:
        path = new_path(word)
        if path.is_dir():
            raise argparse.ArgumentTypeError(f"{word!r} is a folder, a file is wanted")
        if path.suffix.lower() not in suffixes:
            raise argparse.ArgumentTypeError(f"{word!r} must end in {' or '.join(suffixes)}")
        return path

    return file


def paths_beside(out: Path) -> dict[str, Path]:
    """Where "names" and "labels" of an .npy file's rows go, beside it; none of other files, which hold them."""
    kinds = ("names", "labels") if out.suffix.lower() == ".npy" else ()
    return {kind: out.with_name(f"{out.name}.{kind}.txt") for kind in kinds}


def _describe_absence(path: Path) -> str:
    """Says that `path` isn't there, and which name beside it is the nearest, if any is near."""
    if not path.parent.is_dir():
        return f"{str(path)!r} doesn't exist, nor does the folder {str(path.parent)!r}"
    alike = difflib.get_close_matches(path.name, sorted(os.listdir(path.parent)), n=1)
    return f"{str(path)!r} doesn't exist" + (f", the nearest is {str(path.parent / alike[0])!r}" if alike else "")


def _integer(word: str, lowest: int, wanted: str) -> int:
    try:
        value = int(word)
    except ValueError:
        value = -1
    if not lowest <= value < 2**31:
        raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}")
    return value


def _number(word: str, accepted: Callable[[float], bool], wanted: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not accepted(value):
        raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}")
    return value
