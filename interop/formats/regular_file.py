"""A weight file as the system gives it: opened only where it is a regular file, read straight into an array.

Whatever goes wrong while it is read becomes one of our errors, in one line. What the bytes mean, the formats know.
"""

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from byol_jax.errors import CheckpointFormatError, InteropError, one_line

__all__ = ["open_regular", "read_exactly", "refuse_damage", "refuse_folders"]

CHUNK = 4 << 20
"""Bytes asked for at a time; a reader that makes `bytes` of them needs this much beside the array."""

WITHOUT_WAITING = getattr(os, "O_NONBLOCK", 0)
"""Opening a named pipe would wait for ever. Systems without named pipes have no such flag."""

LONGEST_REASON, LONGEST_MESSAGE = 200, 2000
"""Characters; a file's names may have millions."""


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
    """Fills a contiguous array's memory with the file's next bytes; returns how many came, all of them or fewer.

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
def refuse_damage(where: str, *, damaged: str = "damaged") -> Iterator[None]:
    """Turns everything that is raised inside into a child of InteropError whose message is one printable line.

    Args:
        where: the file's name.
        damaged: what to call a file on which other code fails: zipfile, zlib, json, struct and NumPy raise a dozen
            kinds of exceptions.

    Example:
        >>> with refuse_damage("net.npz"):
        ...     [][0]
        Traceback (most recent call last):
        byol_jax.errors.CheckpointFormatError: net.npz: damaged: IndexError: list index out of range
    """
    try:
        yield
    except InteropError as error:
        if str(error).isprintable() and len(str(error)) <= LONGEST_MESSAGE:
            raise
        raise type(error)(one_line(error, at_most=LONGEST_MESSAGE)) from error
    except OSError as error:
        raise CheckpointFormatError(f"{where}: cannot be read: {error.strerror or one_line(error)}") from error
    except MemoryError as error:
        raise CheckpointFormatError(f"{where}: needs more memory than there is") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error, at_most=LONGEST_REASON)}"
        raise CheckpointFormatError(f"{where}: {damaged}: {reason}") from error


def refuse_folders(paths: Iterable[str | Path]) -> None:
    """Raises CheckpointFormatError where a place that a file will be written to is a folder."""
    for path in paths:
        if os.path.isdir(path):
            raise CheckpointFormatError(f"{path}: is a folder; expected a file's name")
