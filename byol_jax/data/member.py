"""Where an image's bytes lie: a file, or a part of something larger. Words only."""

from pathlib import Path
from typing import BinaryIO, Protocol

__all__ = ["Member", "Root"]


class Member(Protocol):
    """An image's bytes within something larger, a shard for instance."""

    def open(self) -> BinaryIO:
        """The bytes, from their start; it can seek. OSError or UnusableImageError where there are none."""
        ...


class Root(Protocol):
    """Where names lead to bytes, as a folder's path does; `str(root)` is its name in messages."""

    def __truediv__(self, name: str, /) -> Path | Member: ...
