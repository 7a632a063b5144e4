"""What a training checkpoint says about itself: step, position, every leaf, every file with size and sha256.

`manifest.json` is written last and read first. It holds a checksum of itself, so that any change to it is seen too. No
arrays here and no JAX; `states.py` reads and writes the numbers.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from byol_jax.errors import DamagedCheckpointError

__all__ = ["MANIFEST", "FileEntry", "LeafEntry", "Manifest", "decode", "encode", "file_entry", "read_verified"]

MANIFEST = "manifest.json"
"""The manifest's file name inside a checkpoint's folder."""

_FORMAT = "byol_jax.checkpoint"

_VERSION, _VERSION_IN_PARTS = 1, 2
"""Of a checkpoint whose leaves are whole, and of one that has leaves in parts."""


class FileEntry(NamedTuple):
    """A file's content: hexadecimal sha256 and size in bytes."""

    sha256: str
    size: int


class LeafEntry(NamedTuple):
    """A leaf: name of its dtype, shape, and for a typed PRNG key the implementation's name (None for an array).

    A key's dtype is "key", its shape the shape of the array of keys; the file holds its uint32 key data.
    """

    dtype: str
    shape: tuple[int, ...]
    impl: str | None = None


class Manifest(NamedTuple):
    """All of `manifest.json`.

    Attributes:
        step: of the state.
        position: whatever JSON the caller gave.
        files, leaves: by their names.
        parts: for each leaf that isn't written whole, {name of a file: the boxes of the leaf in it}; see parts.py.
    """

    step: int
    position: Any
    files: dict[str, FileEntry]
    leaves: dict[str, LeafEntry]
    parts: Mapping[str, dict[str, list[str]]] = MappingProxyType({})


def file_entry(data: bytes) -> FileEntry:
    """The entry for a file with this content.

    Example:
        >>> file_entry(b"abc").size
        3
    """
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data))


def encode(manifest: Manifest) -> bytes:
    """The manifest as the bytes of a JSON file, its own checksum included.

    Raises:
        ValueError, TypeError: the position isn't JSON (NaN and infinity aren't either).
    """
    return _seal(
        {
            "format": _FORMAT,
            "version": _VERSION_IN_PARTS if manifest.parts else _VERSION,
            "step": manifest.step,
            "position": manifest.position,
            "files": {name: entry._asdict() for name, entry in manifest.files.items()},
            "leaves": {name: entry._asdict() for name, entry in manifest.leaves.items()},
            **({"parts": manifest.parts} if manifest.parts else {}),
        }
    )


def decode(data: bytes) -> Manifest:
    """The inverse of `encode`.

    Raises:
        ValueError: altered by as little as a bit, cut short, or of another version; the message says which.

    Example:
        >>> manifest = Manifest(3, {"epoch": 1}, {}, {"step": LeafEntry("int32", ())})
        >>> decode(encode(manifest)) == manifest
        True
    """
    try:
        fields = json.loads(data)
        unsealed = {name: value for name, value in fields.items() if name != "sha256"}
        intact = _seal(unsealed) == data
    except (ValueError, TypeError, AttributeError, RecursionError):
        intact, unsealed = False, {}
    if not intact:
        raise ValueError("altered or cut short (its own checksum doesn't match)")
    versions = (_VERSION, _VERSION_IN_PARTS)
    if unsealed.get("format") != _FORMAT or unsealed.get("version") not in versions:
        found = f"{unsealed.get('format')} version {unsealed.get('version')}"
        expected = " or ".join(map(str, versions))
        raise ValueError(f"{found} found, {_FORMAT} version {expected} expected; use the byol_jax that wrote it")
    return Manifest(
        step=unsealed["step"],
        position=unsealed["position"],
        files={name: FileEntry(**entry) for name, entry in unsealed["files"].items()},
        leaves={
            name: LeafEntry(entry["dtype"], tuple(entry["shape"]), entry["impl"])
            for name, entry in unsealed["leaves"].items()
        },
        parts=unsealed.get("parts", {}),
    )


def _seal(fields: dict[str, Any]) -> bytes:
    """JSON with its own checksum."""
    checksum = hashlib.sha256(json.dumps(fields, allow_nan=False).encode()).hexdigest()
    return (json.dumps(fields | {"sha256": checksum}, indent=1, allow_nan=False) + "\n").encode()


def read_verified(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    """A checkpoint's manifest and the content of each file in it, all compared with what was written.

    Files that the manifest doesn't mention are ignored.

    Raises:
        DamagedCheckpointError: a file is absent, unreadable, shorter, longer or altered; the message names each one.
    """
    try:
        manifest = decode(_read(folder / MANIFEST))
    except ValueError as error:
        raise DamagedCheckpointError(f"{folder / MANIFEST}: {error}") from error
    contents, faults = {}, []
    for name, entry in manifest.files.items():
        try:
            contents[name] = _read(folder / name)
            fault = _difference(file_entry(contents[name]), entry)
        except ValueError as error:
            fault = str(error)
        if fault:
            faults.append(f"{folder / name}: {fault}")
    # A folder under another's name would pass all checks and resume at another step.
    if folder.name.isdecimal() and int(folder.name) != manifest.step:
        faults.append(f"{folder / MANIFEST}: step {manifest.step}, but the folder's name is {folder.name}")
    if faults:
        raise DamagedCheckpointError("; ".join(faults))
    return manifest, contents


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError("missing") from None
    except OSError as error:
        raise ValueError(f"unreadable ({error.strerror})") from error


def _difference(found: FileEntry, expected: FileEntry) -> str | None:
    if found.size != expected.size:
        return f"{found.size} bytes, {expected.size} expected (cut short or added to)"
    return None if found.sha256 == expected.sha256 else "altered (sha256 doesn't match the manifest's)"
