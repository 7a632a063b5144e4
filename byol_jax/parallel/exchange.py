"""Work that several processes share: each does its part, all hear how it went, and none waits for one that failed.

A process that dies instead takes the others with it, as anywhere (`initialize`).
"""

import errno
import os
from collections.abc import Callable

import numpy as np

from byol_jax.errors import ConfigurationError, one_line

__all__ = ["tell_all"]

_NOTE = 256
"""Bytes that a process tells the others at once: four of a number, and a text."""

_REFUSED, _FAILED = -1, -2
"""The numbers of failures that the system has none for: a ConfigurationError, and any other exception."""


def tell_all(work: Callable[[], str]) -> list[str]:
    """What `work` gives in each process, by the processes' numbers. Every process calls it, with work of its own.

    Args:
        work: gives a text of up to 252 bytes in UTF-8.

    Raises:
        Exception: what `work` raised in this process, whatever it is.
        OSError, ConfigurationError: `work` raised it in another process, which is named.
        RuntimeError: so too, for what isn't one of these.

    Example:
        >>> tell_all(lambda: "here")
        ['here']
    """
    from jax.experimental import multihost_utils

    number, text, failure = 0, b"", None
    try:
        text = work().encode()
        if len(text) > _NOTE - 4:
            raise ValueError(f"{len(text)} bytes to tell the other processes: expected at most {_NOTE - 4}")
    except Exception as error:  # whatever it is, the others wait to hear of it
        number, text, failure = _number(error), _sentence(error), error
    note = np.frombuffer(np.int32(number).tobytes() + text.ljust(_NOTE - 4, b"\0"), np.uint8)
    notes = np.asarray(multihost_utils.process_allgather(note)).reshape(-1, _NOTE)  # [processes, _NOTE]
    if failure is not None:
        raise failure
    numbers = np.ascontiguousarray(notes[:, :4]).view(np.int32).ravel().tolist()
    texts = [row[4:].tobytes().rstrip(b"\0").decode(errors="ignore") for row in notes]
    for process, (number, text) in enumerate(zip(numbers, texts, strict=True)):
        if number:
            raise _failure(number, text, process)
    return texts


def _number(error: Exception) -> int:
    if isinstance(error, OSError):
        return error.errno if error.errno is not None and error.errno > 0 else errno.EIO
    return _REFUSED if isinstance(error, ConfigurationError) else _FAILED


def _sentence(error: Exception) -> bytes:
    text = str(error) if isinstance(error, ConfigurationError) else f"{type(error).__name__}: {error}"
    return one_line(text).encode()[: _NOTE - 4]


def _failure(number: int, text: str, process: int) -> Exception:
    """What another process's failure is here."""
    if number > 0:
        return OSError(number, f"{os.strerror(number)} in process {process}")
    return (ConfigurationError if number == _REFUSED else RuntimeError)(f"process {process}: {text}")
