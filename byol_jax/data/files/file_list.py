"""Which files of a folder are named as images, how large they are, and when they were last changed.

No image is opened here; what becomes of the list, and how it is kept: kept_list.py.
"""

import heapq
import itertools
import json
import os
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from byol_jax.data.files.image_names import (
    EXTENSIONS,
    OTHER_EXTENSIONS,
    extension_of,
    extensions_of,
    is_image_name,
    last_part,
    say_unread,
)
from byol_jax.data.files.scan import scan
from byol_jax.data.member import shard_kind
from byol_jax.data.readers.open import READERS
from byol_jax.data.unusable import UnusableImageError, open_without_waiting
from byol_jax.errors import DataError

__all__ = [
    "LEFT_OUT_ARRAYS",
    "RUN_FORMAT",
    "Files",
    "Listing",
    "check_kind",
    "extensions_in",
    "files_of",
    "is_run_folder",
    "leads_to_folder",
    "list_images",
    "size_and_time",
]

SYSTEM_FOLDERS = frozenset(
    {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
"""What macOS, Python, Synology, Windows and Linux leave in folders: copies, thumbnails and waste, no images and no
class. Hidden folders are treated alike, Jupyter's .ipynb_checkpoints for instance."""

RUN_FORMAT = "byol_jax.run"
"""What the config.json of a run's folder says under "format": the pictures in such a folder are the run's own."""

_MOST_CONFIG = 2**20
"""Bytes of a config.json that are read to know that."""

_LARGEST = 2**63 - 1
"""What an array of int64 holds."""

LEFT_OUT_ARRAYS = ".npy files"
"""What stands in a file's place where many are left out in one line."""


@dataclass(frozen=True, eq=False)
class Files:
    """Files by name; their numbers in arrays, since there may be millions.

    Attributes:
        names: sorted; relative to the folder, with "/" between parts.
        sizes: int64 [n], bytes.
        times: int64 [n], when each was last changed, in nanoseconds since 1970; None where nobody knows, as of what
            lies in shards.

    Example:
        >>> len(Files(("a.png", "b.png"), np.array([80, 90])))
        2
    """

    names: tuple[str, ...]
    sizes: np.ndarray
    times: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def without(self, rows: Collection[int]) -> "Files":
        """All but these."""
        if not rows:
            return self
        is_kept = np.ones(len(self), bool)
        is_kept[list(rows)] = False
        names = tuple(itertools.compress(self.names, is_kept))
        return Files(names, self.sizes[is_kept], None if self.times is None else self.times[is_kept])


def files_of(sizes: Iterable[tuple[str, int]]) -> Files:
    """Files by (name, bytes), in any order."""
    pairs = sorted(sizes)
    return Files(tuple(name for name, _ in pairs), np.array([size for _, size in pairs], np.int64))


class Listing(NamedTuple):
    """What lies under a folder.

    Attributes:
        files: each regular file with an image's extension.
        skipped: (name, reason) of everything else with such an extension, of images with another one, of hidden images,
            and of folders that can't be read or aren't entered.
        others: a few names without an extension of an image, for a message.
        extensions: that images have here, see `extensions_of`.
    """

    files: Files
    skipped: tuple[tuple[str, str], ...]
    others: tuple[str, ...]
    extensions: frozenset[str] = EXTENSIONS


def list_images(root: Path, *, workers: int = 1) -> Listing:
    """Lists a folder and the folders in it.

    The order depends on names alone, and no image is opened. Only names with an image's extension (`extensions_of`)
    count, in either case, and no hidden ones; hidden folders, those that systems make beside somebody's images
    (`SYSTEM_FOLDERS`), and those of our own runs aren't entered. The folder itself may be any of these.
    Links are followed and must lead to a regular file. Names may hold anything that a file system allows,
    newlines and undecodable bytes included.

    Args:
        workers: threads that ask for sizes and times, which takes most of the time where files lie on a network.
    """
    names, refused = _walk(root)
    groups = _by_extension(names)
    extensions = extensions_of(names)
    found = sorted(_among(groups, extensions))
    files, reasons = _look_at(root, found, workers)
    skipped = refused | reasons
    skipped |= {name: say_unread(name) for name in _among(groups, OTHER_EXTENSIONS - extensions)}
    hidden = _among(groups, EXTENSIONS | OTHER_EXTENSIONS, hidden=True)
    # "._name" is what macOS leaves beside a file on other systems' disks: its attributes, never the image.
    skipped |= {name: "a hidden file: rename it to use it" for name in hidden if not last_part(name).startswith("._")}
    rest = [
        name for (ending, is_hidden), some in groups.items() if is_hidden or ending not in extensions for name in some
    ]
    skipped |= _left_out_arrays(groups, extensions) | _left_out_shards(groups, len(found))
    return Listing(files, tuple(sorted(skipped.items())), tuple(heapq.nsmallest(3, rest)), extensions)


_Groups = Mapping[tuple[str, bool], list[str]]
"""Names by their extension, in lower case, and whether they are hidden."""


def _by_extension(names: Iterable[str]) -> _Groups:
    groups: dict[tuple[str, bool], list[str]] = {}
    for name in names:
        groups.setdefault((extension_of(name), last_part(name).startswith(".")), []).append(name)
    return groups


def _among(groups: _Groups, extensions: Iterable[str], *, hidden: bool = False) -> list[str]:
    return [name for extension in extensions for name in groups.get((extension, hidden), ())]


def _look_at(root: Path, names: list[str], workers: int) -> tuple[Files, dict[str, str]]:
    """The files of these names, and by name why others can't be opened."""
    sizes, times = np.zeros(len(names), np.int64), np.zeros(len(names), np.int64)
    folder = os.path.join(root, "")

    def look(row: int) -> None:
        sizes[row], times[row] = size_and_time(folder + names[row])

    reasons = scan(look, len(names), workers=workers)
    files = Files(tuple(names), sizes, times).without(reasons)
    return files, {names[row]: reason for row, reason in reasons.items()}


def _left_out_arrays(groups: _Groups, extensions: frozenset[str]) -> dict[str, str]:
    """A line on .npy files that aren't read, where they are more than the images; else they are labels, say."""
    named = READERS["npy"].extensions
    arrays, images = (len(_among(groups, kind)) for kind in (named, extensions))
    if extensions == named or arrays <= images:
        return {}
    others = f"{images} other image{'s' * (images != 1)}"
    return {LEFT_OUT_ARRAYS: f"{arrays} .npy files aren't read beside {others}: give them a folder of their own"}


def check_kind(root: object, listing: Listing) -> None:
    """Returns where a folder's images are of the kind that most of its files have.

    Raises:
        DataError: they are pictures beside more DICOM files, a logo for instance.
    """
    left_out = READERS["dicom"].extensions - listing.extensions
    scans, pictures = sum(is_image_name(name, left_out) for name, _ in listing.skipped), len(listing.files)
    if scans > pictures > 0:
        raise DataError(
            f"{root}: {scans} DICOM files beside {pictures} picture{'s' * (pictures != 1)} (the first:"
            f" {listing.files.names[0]!r}): give them a folder of their own"
        )


def extensions_in(root: Path) -> frozenset[str]:
    """The extensions that images have in a folder, all the folders in it included: see `extensions_of`."""
    return extensions_of(_walk(root)[0])


def _left_out_shards(groups: _Groups, images: int) -> dict[str, str]:
    """A line on shards, which are read where no images lie beside them."""
    shards = [name for (ending, _), some in groups.items() if shard_kind(ending) for name in some]
    if not shards:
        return {}
    return {
        "shards": f"{len(shards)} shards, {min(shards)!r} for one, aren't read beside {images} images: give them alone"
    }


def size_and_time(path: str | Path) -> tuple[int, int]:
    """A file's size in bytes, and when it was last changed, in nanoseconds since 1970.

    Raises:
        UnusableImageError: it can't be opened. (`stat` follows links and never blocks.)
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise UnusableImageError("a link to nothing" if os.path.islink(path) else "no longer there") from None
    except OSError as error:
        raise UnusableImageError(error.strerror or "cannot be looked at") from error
    if stat.S_ISDIR(status.st_mode):
        raise UnusableImageError("a folder with an image's name")
    if not stat.S_ISREG(status.st_mode):
        raise UnusableImageError("not a regular file")
    return status.st_size, status.st_mtime_ns & _LARGEST  # a file system may claim any year


def _walk(root: Path) -> tuple[list[str], dict[str, str]]:
    """Names of all under `root` that isn't a plain folder, and {folder: reason} of folders that couldn't be entered.

    Links to folders are followed after all real folders, each folder once: a loop ends, and a linked folder that is
    also really there keeps its real name.
    """
    names: list[str] = []
    refused: dict[str, str] = {}
    entered = set()
    real, linked = [""], []
    while real or linked:
        folder = real.pop() if real else linked.pop(0)
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                refused[folder] = "a link to a folder that was read under another name"
                continue
            entered.add((status.st_dev, status.st_ino))
            plain, folders = _entries(root / folder)
        except OSError as error:
            refused[folder or "."] = error.strerror or "cannot be read"
            continue
        if folder and "config.json" in plain and is_run_folder(root / folder):
            refused[folder] = "a run's folder of byol_jax: not entered"
            continue
        below = f"{folder}/" if folder else ""
        names += [below + name for name in plain]
        for name, is_link in sorted(folders.items()):
            if _is_hidden(name):
                refused[below + name] = "a hidden folder or a system's own: not entered"
            elif is_link:
                linked = sorted([*linked, below + name])
            else:
                real.append(below + name)
    return names, refused


def _entries(folder: Path) -> tuple[list[str], dict[str, bool]]:
    """What lies in a folder: names of all but plain folders, and of these whether each is a link."""
    names: list[str] = []
    folders: dict[str, bool] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            if not leads_to_folder(entry) or is_image_name(entry.name):
                names.append(entry.name)
            else:
                folders[entry.name] = entry.is_symlink()
    return names, folders


def _is_hidden(folder: str) -> bool:
    return folder.startswith(".") or folder in SYSTEM_FOLDERS


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is a run's of ours."""
    try:
        with open(folder / "config.json", "rb", opener=open_without_waiting) as file:
            return json.loads(file.read(_MOST_CONFIG))["format"] == RUN_FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def leads_to_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link loop
        return False
