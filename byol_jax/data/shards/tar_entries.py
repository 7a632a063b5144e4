"""What a tar holds, member by member, also where it is damaged.

A damaged header loses the members up to the next whole one, and is named by its place. (Python's tarfile ends there
without a word, and so do those who read by it.) Members' bytes have no checksum in a tar: damage to them shows when
they are decoded, or not at all, as in a folder.
"""

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

__all__ = ["Entry", "read_entries"]

_PIECE = 2**20
"""Bytes that are looked at together."""


class Entry(NamedTuple):
    """A member of a tar: its name, where its bytes begin, how many there are; or why they can't be had."""

    name: str
    offset: int
    size: int
    reason: str | None = None


def read_entries(file: BinaryIO) -> Iterator[Entry]:
    """What a tar holds, in order, folders left out; a damaged place is an entry whose name is empty.

    Concatenated tars are read to the end.
    """
    end = file.seek(0, os.SEEK_END)
    covered = start = 0
    while start < end:
        file.seek(start)
        archive = None
        try:
            archive = tarfile.TarFile(fileobj=file, ignore_zeros=True)
            while (member := archive.next()) is not None:
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  else all stay in memory
                if archive.offset <= member.offset:
                    archive.offset = member.offset
                    raise tarfile.ReadError("a size below zero")
                if _holds_bytes(file, covered, member.offset):
                    yield Entry("", covered, member.offset - covered, "damaged: members may be lost")
                covered = archive.offset
                if not member.isdir():
                    yield Entry(member.name, member.offset_data, member.size, _complaint(member, end))
                if covered > end:
                    break
            break
        except (tarfile.TarError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError):
            # whatever a damaged header leads tarfile to; a disk's errors aren't the tar's
            start = (start if archive is None else max(start, archive.offset)) + tarfile.BLOCKSIZE
    if _holds_bytes(file, covered, end):
        yield Entry("", covered, end - covered, "damaged: members may be lost")
    elif 0 < end < covered + tarfile.BLOCKSIZE:
        yield Entry("", end, 0, "the shard ends without an end mark: members may be lost")


def _complaint(member: tarfile.TarInfo, end: int) -> str | None:
    if member.islnk() or member.issym():
        return f"a link to {member.linkname!r}, not an image's bytes"
    if not member.isreg() or member.issparse():
        return "not a plain file"
    return "cut short: the shard ends before" if member.offset_data + member.size > end else None


def _holds_bytes(file: BinaryIO, start: int, end: int) -> bool:
    """Whether anything but zeros lies there."""
    for place in range(start, end, _PIECE):
        file.seek(place)
        if file.read(min(_PIECE, end - place)).strip(b"\0"):
            return True
    return False
