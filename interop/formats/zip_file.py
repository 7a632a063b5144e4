"""What a zip archive of weights may look like; .npz and torch's .pt are both zip archives.

Nothing is ever extracted to disk. Everything is checked from the archive's directory, before a byte is unpacked.
"""

import os
import re
import zipfile
from typing import IO, Any

from byol_jax.errors import CheckpointFormatError, UnsafeCheckpointError

__all__ = ["check_member_name", "checked_members", "member_at"]

ENCRYPTED = 0x1
SMALLEST_LOCAL_HEADER = 30
"""Bytes in front of a member's name (APPNOTE 4.3.7)."""


def check_member_name(name: str, *, where: str) -> None:
    """Refuses names that would leave the archive's folder if somebody extracted it.

    Raises:
        UnsafeCheckpointError: an absolute path, a parent folder, a backslash or a NUL in the name.
    """
    climbs = ".." in name.split("/")
    if name.startswith("/") or climbs or "\\" in name or "\0" in name or re.match(r"[A-Za-z]:/", name):
        raise UnsafeCheckpointError(
            f"{where}: the member name {name!r} leads out of the archive; expected a plain name"
        )


def checked_members(archive: zipfile.ZipFile, *, where: str, size: int, limit: int) -> list[zipfile.ZipInfo]:
    """The archive's files, after checks of names, duplicates, encryption, compression, overlaps and unpacked size.

    Args:
        archive: open for reading.
        where: the file's name, for messages.
        size: the file's size in bytes.
        limit: the largest number of bytes that all members together may unpack to.

    Raises:
        UnsafeCheckpointError, CheckpointFormatError: see above.
    """
    members = [member for member in archive.infolist() if not member.is_dir()]
    seen = set()
    for member in members:
        check_member_name(member.orig_filename, where=where)
        if member.filename in seen:
            raise UnsafeCheckpointError(f"{where}: {member.filename} occurs twice; expected every name once")
        seen.add(member.filename)
        if member.flag_bits & ENCRYPTED:
            raise CheckpointFormatError(f"{where}: {member.filename} is encrypted; expected a plain archive")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise CheckpointFormatError(f"{where}: {member.filename} is packed by an unknown method")
        if member.compress_type == zipfile.ZIP_STORED and member.file_size != member.compress_size:
            raise UnsafeCheckpointError(f"{where}: {member.filename} states two different sizes")
    total = sum(member.file_size for member in members)
    if total > limit:
        raise UnsafeCheckpointError(
            f"{where}: {size} bytes that unpack to {total}, more than {limit}; give max_bytes if that is meant"
        )
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise UnsafeCheckpointError(f"{where}: {member.filename} overlaps another member")
        end = member.header_offset + SMALLEST_LOCAL_HEADER + member.compress_size
    if end > size:
        raise CheckpointFormatError(f"{where}: ends in the middle of a member: truncated")
    return members


def member_at(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """A stream at the beginning of a member's content: the archive's own file where nothing is packed.

    Check sums aren't looked at, and a read beyond the member's end gives the next member's bytes.
    """
    if member.compress_type != zipfile.ZIP_STORED:
        return archive.open(member)
    file: Any = archive.fp
    file.seek(member.header_offset)
    header = file.read(SMALLEST_LOCAL_HEADER)
    file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
    return file
