"""Safetensors in several files, as Hugging Face writes them: shards, and an index that gives each name its shard.

    {"metadata": {"total_size": 123}, "weight_map": {"fc.bias": "model-00001-of-00002.safetensors", ...}}

An index is trusted no more than any other file: its shards must lie in its own folder, and hold exactly the names that
it gives them. `safetensors_file` reads each shard.
"""

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from byol_jax.disk import replacements, weights_in
from byol_jax.errors import CheckpointFormatError, UnsafeCheckpointError
from interop.formats.containers import short_list
from interop.formats.pickle_machine import begins_as_pickle
from interop.formats.regular_file import open_regular, refuse_folders
from interop.formats.safetensors_file import read_header, read_safetensors, strict_json, write_safetensors

__all__ = [
    "INDEX",
    "files_of",
    "index_for",
    "index_names",
    "looks_like_index",
    "read_sharded",
    "replaces_input",
    "shard_metadata",
    "shard_paths",
    "write_sharded",
]

BEGINNING, ARCHIVE = 32, b"PK\x03\x04"

SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"
"""What the names of a file, and of the index that stands for it, end with."""

LONGEST_INDEX = 16 << 20
"""Bytes, some 170,000 names; the index of a network of 90,000 tensors has 9 MB."""

SHARD = re.compile(r"-\d{5,}-of-\d{5,}\.safetensors")


def looks_like_index(beginning: bytes) -> bool:
    """Whether a file that begins so can be an index: a JSON object (safetensors' length would have zeros in it)."""
    return beginning.lstrip()[:1] == b"{" and b"\0" not in beginning[:8]


def index_for(path: str) -> str:
    """The index that a path stands for: a folder's only one, or the one beside an absent file; else the path itself.

    Raises:
        CheckpointFormatError: a folder without an index, with several, or with the whole file beside its index.
    """
    if os.path.isdir(path):
        found = sorted(name for name in os.listdir(path) if name.endswith(INDEX))
        if len(found) != 1:
            inside = None if found else weights_in(path)
            what = f"the indices {short_list(found)}" if found else "no index"
            wanted = f"give {inside}" if inside else f"expected a weight file, or one *{INDEX}"
            raise CheckpointFormatError(f"{path}: is a folder with {what}; {wanted}")
        whole = found[0].removesuffix(INDEX) + SUFFIX
        if os.path.lexists(os.path.join(path, whole)):
            raise CheckpointFormatError(f"{path}: holds both {whole} and {found[0]}; give one of the two")
        return os.path.join(path, found[0])
    beside = path.removesuffix(SUFFIX) + INDEX
    return beside if path.endswith(SUFFIX) and not os.path.lexists(path) and os.path.lexists(beside) else path


def read_sharded(file: IO[bytes], *, where: str, size: int, limit: int | None) -> dict[str, np.ndarray]:
    """All tensors of all shards, in the index's order.

    Args:
        file: the index, open at its beginning.
        where: the index's name; the shards lie in its folder.
        size: of the index, in bytes.
        limit: the most bytes that index and shards may have together; None is no limit.

    Raises:
        UnsafeCheckpointError: shards elsewhere, a name given twice, more bytes than `limit`, or an unsafe shard.
        CheckpointFormatError: missing or damaged shards, or shards of other names than the index gives; all at once.
    """
    weight_map = _weight_map(file, where=where, size=size)
    shards = _shard_paths(set(weight_map.values()), where=where)
    total = size + sum(os.stat(path).st_size for path in shards.values())
    if limit is not None and total > limit:
        raise UnsafeCheckpointError(f"{where}: {total} bytes in all, more than max_bytes={limit}")
    _check_names(weight_map, shards, where=where)
    arrays: dict[str, np.ndarray] = {}
    for shard_path in shards.values():
        with open_regular(shard_path) as (shard, shard_size):
            arrays |= read_safetensors(shard, where=shard_path, size=shard_size)
    return {name: arrays[name] for name in weight_map}


def index_names(path: str) -> list[str]:
    """The tensors' names in the index that `path` stands for, in its order."""
    where = index_for(path)
    with open_regular(where) as (file, size):
        return list(_weight_map(file, where=where, size=size))


def files_of(path: str) -> list[str]:
    """The files that are read where `path` is given: itself, or an index and its shards.

    Example:
        >>> files_of("net.pt")
        ['net.pt']
    """
    where = index_for(path)
    return [where, *shard_paths(where)] if where.endswith(INDEX) else [where]


def replaces_input(target: str | os.PathLike[str], source: str | os.PathLike[str]) -> bool:
    """Whether writing to `target` replaces what is read as `source`: that file, by whatever name, or one of its shards.

    Of a source that can't be read that is no matter: reading says what is wrong with it before anything is written.
    """
    try:
        return any(os.path.samefile(target, path) for path in files_of(os.fspath(source)))
    except (OSError, CheckpointFormatError, UnsafeCheckpointError):
        return False


def shard_metadata(index: str) -> dict[str, str]:
    """What the shards' headers say besides tensors, as far as they don't contradict each other."""
    found: dict[str, str] = {}
    contradicted = set()
    for path in shard_paths(index):
        with open_regular(path) as (file, size):
            for key, value in read_header(file, where=path, size=size).metadata.items():
                if found.setdefault(key, value) != value:
                    contradicted.add(key)
    return {key: value for key, value in found.items() if key not in contradicted}


def shard_paths(index: str) -> list[str]:
    """The files that an index names."""
    with open_regular(index) as (file, size):
        return list(_shard_paths(set(_weight_map(file, where=index, size=size).values()), where=index).values())


def _weight_map(file: IO[bytes], *, where: str, size: int) -> dict[str, str]:
    """`metadata.total_size` isn't looked at: files exist in which it counts tied weights twice."""
    if size > LONGEST_INDEX:
        raise UnsafeCheckpointError(f"{where}: an index of {size} bytes; at most {LONGEST_INDEX} are read")
    weight_map = strict_json(file.read(size), where=where).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointFormatError(f"{where}: JSON without a weight_map; expected an index of safetensors files")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointFormatError(f"{where}: weight_map must give each name the name of a file")
    return weight_map


def _shard_paths(names: Iterable[str], *, where: str) -> dict[str, str]:
    """The shards' names, in order, to their paths; each is a regular file in the index's folder."""
    folder = os.path.dirname(os.path.abspath(where))
    allowed = {os.path.realpath(folder), *_blob_folders(folder)}
    elsewhere, missing, paths = [], [], {}
    for name in sorted(names):
        path = os.path.realpath(os.path.join(folder, name)) if _is_plain(name) else None
        if path is None or os.path.dirname(path) not in allowed:
            elsewhere.append(repr(name))
        elif not os.path.exists(path) or not stat.S_ISREG(os.stat(path).st_mode):
            missing.append(name)
        else:
            paths[name] = os.path.join(folder, name)
    if elsewhere:
        raise UnsafeCheckpointError(
            f"{where}: shards outside its folder: {short_list(elsewhere)}; expected plain names"
        )
    if missing:
        raise CheckpointFormatError(f"{where}: these shards are missing: {short_list(missing)}")
    return paths


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set('/\\:\0"') and len(os.fsencode(name)) <= 255


def _blob_folders(folder: str) -> set[str]:
    """Hugging Face's cache: `snapshots/REVISION/` holds links into the `blobs/` beside `snapshots/`."""
    parents = Path(os.path.realpath(folder)).parents
    return {os.path.realpath(parent.parent / "blobs") for parent in parents if parent.name == "snapshots"}


def _check_names(weight_map: Mapping[str, str], shards: Mapping[str, str], *, where: str) -> None:
    """Compares the index with all shards' headers, before any tensor is read."""
    missing, unexpected = set(weight_map), []
    for shard, path in shards.items():
        with open_regular(path) as (file, size):
            beginning = file.read(BEGINNING)
            file.seek(0)
            if beginning.startswith(ARCHIVE) or begins_as_pickle(beginning):
                raise CheckpointFormatError(
                    f"{where}: {shard} is in PyTorch's format, of which shards aren't read: save the network as "
                    "safetensors (transformers: save_pretrained(FOLDER, safe_serialization=True)), or give a whole file"
                )
            for entry in read_header(file, where=path, size=size).entries:
                if weight_map.get(entry.name) == shard:
                    missing.discard(entry.name)
                else:
                    unexpected.append(f"{entry.name} ({shard})")
    lines = [f"not in their shards: {short_list(sorted(missing))}"] if missing else []
    lines += [f"in shards that the index doesn't name for them: {short_list(unexpected)}"] if unexpected else []
    if lines:
        raise CheckpointFormatError(f"{where}: {'; '.join(lines)}; index and shards are of different sets")


def write_sharded(path: str, arrays: Mapping[str, np.ndarray], *, where: str, max_shard_bytes: int) -> None:
    """Writes shards of at most `max_shard_bytes` bytes of values, and their index last; one file where that is enough.

    The old set goes when the new one is in place: `path` itself, its index and the shards that the index names.

    Raises:
        CheckpointFormatError: a name or a type that the format can't hold.
        OSError: the system refused to write; the old set is back in its place.
    """
    folder, name = os.path.dirname(os.path.abspath(path)), os.path.basename(path)
    stem = name.removesuffix(SUFFIX)
    shards = split(arrays, max_shard_bytes)
    names = [f"{stem}-{number:05d}-of-{len(shards):05d}{SUFFIX}" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [name]
    new = [*names, stem + INDEX] if len(shards) > 1 else names
    old = [other for other in [name, stem + INDEX, *_old_shards(folder, stem)] if other not in new]
    targets, outdated = ([Path(folder, other) for other in some] for some in (new, old))
    refuse_folders([*outdated, *targets])
    with replacements(targets, outdated) as temporaries:
        for temporary, shard in zip(temporaries, shards, strict=False):
            write_safetensors(str(temporary), {key: arrays[key] for key in shard}, where=where)
        if len(shards) > 1:
            owners = {key: names[number] for number, shard in enumerate(shards) for key in shard}
            content: dict[str, Any] = {"metadata": {"total_size": sum(array.nbytes for array in arrays.values())}}
            content["weight_map"] = {key: owners[key] for key in arrays}
            temporaries[-1].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def split(arrays: Mapping[str, np.ndarray], most: int) -> list[list[str]]:
    """The names of each shard: in order, a new one where the next array would make it too large.

    An array that is larger than the limit gets a shard of its own. This is how huggingface_hub splits.

    Example:
        >>> split({"a": np.zeros(3, np.int8), "b": np.zeros(9, np.int8), "c": np.zeros(2, np.int8)}, 5)
        [['b'], ['a', 'c']]
    """
    shards, current, room = [], [], most
    for name, array in arrays.items():
        if array.nbytes > most:
            shards.append([name])
            continue
        if array.nbytes > room:
            shards.append(current)
            current, room = [], most
        current.append(name)
        room -= array.nbytes
    return [*shards, current] if current or not shards else shards


def _old_shards(folder: str, stem: str) -> set[str]:
    """The shards that the old index names, as far as their names have the form that is written here."""
    where = os.path.join(folder, stem + INDEX)
    try:
        with open_regular(where) as (file, size):
            names = set(_weight_map(file, where=where, size=size).values())
    except (OSError, CheckpointFormatError, UnsafeCheckpointError, RecursionError):
        return set()
    return {name for name in names if name.startswith(stem) and SHARD.fullmatch(name.removeprefix(stem))}
