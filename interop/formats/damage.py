"""Whatever goes wrong while a file is read, as one of our errors in one line; what is right is the readers' affair."""

import contextlib
from collections.abc import Iterator

from byol_jax.errors import CheckpointFormatError, InteropError, one_line

__all__ = ["reading"]

LONGEST_REASON, LONGEST_MESSAGE = 200, 2000
"""Characters; a file's names may have millions."""


@contextlib.contextmanager
def reading(where: str, *, damaged: str = "damaged") -> Iterator[None]:
    """Everything that is raised inside becomes a child of InteropError whose message is one printable line.

    Args:
        where: the file's name.
        damaged: what to call a file that makes other code raise: zipfile, zlib, json, struct and NumPy have a dozen
            kinds of exceptions for it.

    Example:
        >>> with reading("net.npz"):
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
