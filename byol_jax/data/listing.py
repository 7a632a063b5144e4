"""The image files under a folder, in an order that depends on their names alone. No file is opened here."""

import os
import stat
from pathlib import Path
from typing import NamedTuple

from byol_jax.data.decode import EXTENSIONS

__all__ = ["Listing", "list_images"]


class Listing(NamedTuple):
    """What lies under a folder.

    Attributes:
        files: (name, bytes) of each regular file with an image's extension, sorted by name; names are relative to
            the folder, with "/" between parts.
        skipped: (name, reason) of everything else that has such an extension, and of folders that can't be read.
        others: a few names without such an extension, for a message.
    """

    files: tuple[tuple[str, int], ...]
    skipped: tuple[tuple[str, str], ...]
    others: tuple[str, ...]


def _is_image_name(name: str) -> bool:
    # "._name" is what macOS leaves beside a file on other systems' disks: its attributes, never the image.
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith("._")


def _reason_or_size(path: Path) -> str | int:
    """Why this isn't a file to open, or its size. `stat` follows links and never blocks."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else "no longer there"
    except OSError as error:
        return error.strerror or "cannot be looked at"
    if stat.S_ISDIR(status.st_mode):
        return "a folder with an image's name"
    return status.st_size if stat.S_ISREG(status.st_mode) else "not a regular file"


def _walk(root: Path) -> tuple[list[str], dict[str, str]]:
    """Names under `root` but plain folders, and (folder, reason) for those that couldn't be entered.

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
            with os.scandir(root / folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            refused[folder or "."] = error.strerror or "cannot be read"
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if _is_image_name(entry.name) or not _is_folder(entry):
                names.append(name)
            elif entry.is_symlink():
                linked = sorted([*linked, name])
            else:
                real.append(name)
    return names, refused


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link loop
        return False


def list_images(root: Path) -> Listing:
    """Lists a folder and the folders in it.

    Only names with an extension of `EXTENSIONS` count, in either case. Links are followed; what they lead to has to
    be a regular file. Names may hold anything a file system allows, newlines and undecodable bytes included.
    """
    names, refused = _walk(root)
    found = {name: _reason_or_size(root / name) for name in sorted(names) if _is_image_name(name.rsplit("/")[-1])}
    files = tuple((name, size) for name, size in found.items() if isinstance(size, int))
    skipped = refused | {name: reason for name, reason in found.items() if isinstance(reason, str)}
    return Listing(files, tuple(sorted(skipped.items())), tuple(sorted(set(names) - set(found))[:3]))
