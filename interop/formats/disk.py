"""Files on the disk: opened where they are regular, read straight into an array, replaced whole or not at all.

What is in a file is not this one's business.
"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from byol_jax.errors import CheckpointFormatError

__all__ = ["atomic_path", "exchanged", "open_regular", "read_exactly"]

CHUNK = 4 << 20
"""Bytes asked for at a time; a reader that makes `bytes` of them needs this much beside the array."""

WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)
"""Opening a named pipe would wait for ever; where there are none the flag is missing."""


@contextlib.contextmanager
def open_regular(path: str) -> Iterator[tuple[IO[bytes], int]]:
    """The file, open for reading, and its size in bytes.

    Raises:
        CheckpointFormatError: a folder, no regular file, or an empty one.
        OSError: absent or unreadable.
    """
    if os.path.isdir(path):
        raise CheckpointFormatError(f"{path}: is a folder; expected a weight file")
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | WITHOUT_WAITING)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointFormatError(f"{path}: is no regular file")
        if status.st_size == 0:
            raise CheckpointFormatError(f"{path}: is empty")
        yield file, status.st_size


def read_exactly(file: IO[bytes], array: np.ndarray) -> int:
    """Fills a contiguous array's memory with the file's next bytes; how many there were, all of them or fewer.

    Example:
        >>> import io
        >>> array = np.empty((2, 1), np.int8)
        >>> read_exactly(io.BytesIO(bytes([1, 2, 3])), array), array.tolist()
        (2, [[1], [2]])
    """
    memory: Any = array.reshape(-1).view(np.uint8)
    room = memoryview(memory)
    done = 0
    while done < len(room):
        count = file.readinto(room[done : done + CHUNK])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done


@contextlib.contextmanager
def atomic_path(path: str) -> Iterator[str]:
    """A temporary name beside `path` to write to; on success it takes `path`'s place, on any failure it is removed.

    Permissions are the replaced file's, or those of any new file. The file and its folder are flushed to the disk
    (fsync), so that a power cut leaves the old or the new file.

    Raises:
        CheckpointFormatError: the folder doesn't exist, or `path` is a folder.
        OSError: the system refused to write.
    """
    target = os.path.realpath(path)  # a link keeps pointing where it pointed
    folder = _folder(target, path)
    with _temporaries([target]) as (temporary,):
        mode = _mode(target if os.path.exists(target) else temporary)
        yield temporary
        _complete(temporary, mode)
        os.replace(temporary, target)
    _flush(folder, os.O_RDONLY)


@contextlib.contextmanager
def exchanged(targets: Sequence[str], outdated: Sequence[str] = ()) -> Iterator[list[str]]:
    """Temporary names for files of one folder that belong together; on success they take their places, the last last.

    What stood there, and the `outdated` files, go when all are in place. On any failure all are back where they were.
    A power cut within the exchange itself can leave files missing, but never new ones among old ones: the old ones go
    before the first new one comes.

    Raises:
        CheckpointFormatError: the folder doesn't exist, or one of the files is a folder.
        OSError: the system refused to write.
    """
    folder = _folder(targets[-1], targets[-1])
    _refuse_folders(outdated)
    with _temporaries(targets) as temporaries:
        modes = [_mode(old if os.path.exists(old) else new) for old, new in zip(targets, temporaries, strict=True)]
        yield temporaries
        for temporary, mode in zip(temporaries, modes, strict=True):
            _complete(temporary, mode)
        aside = {old: _beside(old) for old in reversed([*outdated, *targets]) if os.path.lexists(old)}
        moves = [*aside.items(), *zip(temporaries, targets, strict=True)]
        done = []
        try:
            for source, target in moves:
                os.replace(source, target)
                done.append((source, target))
            _flush(folder, os.O_RDONLY)
        except BaseException:
            for source, target in reversed(done):
                os.replace(target, source)
            raise
    for old in aside.values():
        os.unlink(old)


def _folder(target: str, path: str) -> str:
    folder = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(folder):
        raise CheckpointFormatError(f"{path}: the folder {folder} doesn't exist")
    return folder


def _refuse_folders(paths: Sequence[str]) -> None:
    for path in paths:
        if os.path.isdir(path):
            raise CheckpointFormatError(f"{path}: is a folder; expected a file's name")


def _beside(path: str) -> str:
    return os.path.join(os.path.dirname(path), f".{secrets.token_hex(8)}.tmp")


@contextlib.contextmanager
def _temporaries(targets: Sequence[str]) -> Iterator[list[str]]:
    """An empty file beside each target, gone at the end."""
    _refuse_folders(targets)
    temporaries = [_beside(target) for target in targets]
    try:
        for temporary in temporaries:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporaries
    finally:
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def _complete(temporary: str, mode: int) -> None:
    os.chmod(temporary, mode)  # safetensors makes its files private to the user
    _flush(temporary, os.O_RDWR)


def _flush(path: str, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
