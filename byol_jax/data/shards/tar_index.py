"""Where the images of tar shards lie: what a look at each member finds, and how it is kept for a next start.

What is kept of a shard is used where the shard has the size and the time of change that it had when it was looked at.
Anything else, a damaged file too, is as good as nothing: the shard is looked at again.

    8 bytes that say what the file is, the SHA-256 of the rest, and the rest, compressed by zlib: three lengths, then as
    many bytes of JSON, of numbers (int64, little-endian) and of names (JSON).
"""

import hashlib
import itertools
import json
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["COLUMNS", "ShardIndex", "Stamp", "decode_indices", "encode_indices", "read_indices"]

_MAGIC = b"byoltar1"
_LENGTHS = struct.Struct("<3Q")
COLUMNS = 5

Stamp = tuple[int, int]
"""A file's size in bytes, and when it was last changed, in nanoseconds since 1970."""


class ShardIndex(NamedTuple):
    """What lies in a shard.

    Attributes:
        names: of the images, "shard.tar/member", in their order there.
        places: int64 [n, 5]: where an image's bytes begin, and how many there are; then the same of its label, -1 and 0
            where there is none; and whether that is a .json.
        skipped: (name, reason) of what can't be used.
        parts: members named as images that are parts of a sample that has another image.
        lost: bytes of each place that can't be read.
    """

    names: tuple[str, ...]
    places: np.ndarray
    skipped: tuple[tuple[str, str], ...]
    parts: tuple[str, ...]
    lost: tuple[int, ...]


def encode_indices(indices: Iterable[tuple[str, Stamp, ShardIndex]]) -> bytes:
    """(shard's name, its stamp, what lies in it) of some shards, as a file keeps them.

    Example:
        >>> index = ShardIndex(("a.tar/0.png",), np.array([[512, 80, -1, 0, 0]]), (), (), ())
        >>> decode_indices(encode_indices([("a.tar", (10240, 7), index)]))["a.tar"][1].names
        ('a.tar/0.png',)
    """
    indices = list(indices)
    shards = [
        {"name": name, "stamp": stamp, "images": len(index.names)}
        | {"skipped": index.skipped, "parts": index.parts, "lost": index.lost}
        for name, stamp, index in indices
    ]
    names = [name for _, _, index in indices for name in index.names]
    numbers = b"".join(index.places.astype("<i8").tobytes() for _, _, index in indices)
    parts = (json.dumps(shards).encode("ascii"), numbers, json.dumps(names).encode("ascii"))
    body = zlib.compress(b"".join([_LENGTHS.pack(*map(len, parts)), *parts]), 1)
    return _MAGIC + hashlib.sha256(body).digest() + body


def decode_indices(content: bytes) -> Mapping[str, tuple[Stamp, ShardIndex]]:
    """By shard's name its stamp and what lies in it.

    Raises:
        ValueError, KeyError, TypeError, zlib.error, struct.error: the bytes aren't those that `encode_indices` made.
    """
    body = content[len(_MAGIC) + 32 :]
    if content[: len(_MAGIC) + 32] != _MAGIC + hashlib.sha256(body).digest():
        raise ValueError("damaged, or something else")
    body = zlib.decompress(body)
    ends = np.cumsum([_LENGTHS.size, *_LENGTHS.unpack_from(body)]).tolist()
    shards, numbers, names = (body[start:end] for start, end in itertools.pairwise(ends))
    listed: list[str] = json.loads(names)
    places = np.frombuffer(numbers, "<i8").astype(np.int64).reshape(-1, COLUMNS)
    if len(places) != len(listed):
        raise ValueError("not a name for each place")
    found, first = {}, 0
    for shard in json.loads(shards):
        rows = slice(first, first + shard["images"])
        skipped, (size, time) = tuple(map(tuple, shard["skipped"])), shard["stamp"]
        index = ShardIndex(tuple(listed[rows]), places[rows], skipped, tuple(shard["parts"]), tuple(shard["lost"]))
        found[shard["name"]] = ((size, time), index)
        first = rows.stop
    return found


def read_indices(path: Path | None) -> tuple[bytes, Mapping[str, tuple[Stamp, ShardIndex]]]:
    """A file of them as it is, and what it says; nothing where there is none, or none that is whole."""
    try:
        content = b"" if path is None else path.read_bytes()
        return content, decode_indices(content)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, zlib.error, struct.error):
        return b"", {}
