"""Where an image's bytes lie: a file, or a part of something larger, a shard for instance. Words only."""

import re
from pathlib import Path
from typing import BinaryIO, Protocol

__all__ = ["SHARDS", "Member", "Root", "shard_kind"]

SHARDS = {
    "tar": r"\.tar",
    "parquet": r"\.parquet",
    "tfrecord": r"\.tfrecords?",
    "array_record": r"\.array_?records?",
}
"""What the names of shards end with, by kind; a number may follow, as in "train.tfrecord-00000-of-00008"."""


def shard_kind(name: str) -> str | None:
    """The kind of shard that a file is named as; None for others.

    Example:
        >>> shard_kind("train-000.tar"), shard_kind("a.tfrecord-00000-of-00008"), shard_kind("a.jpg")
        ('tar', 'tfrecord', None)
    """
    last = re.sub(r"-\d+-of-\d+\Z", "", name)
    return next((kind for kind, ending in SHARDS.items() if re.search(rf"{ending}\Z", last, re.IGNORECASE)), None)


class Member(Protocol):
    """An image's bytes within something larger, a shard for instance."""

    def open(self) -> BinaryIO:
        """The bytes, from their start; it can seek. OSError or UnusableImageError where there are none."""
        ...


class Root(Protocol):
    """Where names lead to bytes, as a folder's path does; `str(root)` is its name in messages."""

    def __truediv__(self, name: str, /) -> Path | Member: ...
