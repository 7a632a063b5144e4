"""Where every error of the command line becomes one line on standard error and an exit code.

0: done. 1: the run failed. 2: an option, a file or a configuration is wrong, and the line says what to change.
130: stopped from the keyboard. With `--debug` a traceback is printed first.
"""

import errno
import os
import sys
import traceback
import warnings
from collections.abc import Callable

from byol_jax.errors import (
    CollapsedError,
    ConfigurationError,
    DamagedCheckpointError,
    DataError,
    DivergedError,
    InteropError,
    one_line,
)

__all__ = ["guard"]

WRONG_INPUT = (ConfigurationError, DataError, DamagedCheckpointError, InteropError)
NOT_THE_USERS_PATH = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE)
"""A full or failing disk, a limit on sizes, used-up file handles: the run failed, though the options were right."""


def guard(command: str, work: Callable[[], int], *, debug: bool = False) -> int:
    """`work()`'s exit code, or that of the error it ended with, said in one line that begins with `command`.

    Warnings are one line as well. `SystemExit` with a number is passed on as that number.
    """
    with warnings.catch_warnings():
        warnings.showwarning = _one_line_warning(command)
        try:
            return _exit_code(work)
        except KeyboardInterrupt:
            return _say(f"{command}: stopped from the keyboard", 130)
        except BrokenPipeError:
            return _silence_stdout()
        except Exception as error:
            if debug:
                traceback.print_exc()
            return _say(*_verdict(command, error))


def _exit_code(work: Callable[[], int]) -> int:
    """What `work` returns or exits with, its output written out: a reader who has gone is noticed here, not at exit."""
    try:
        code = work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    sys.stdout.flush()
    return code


def _verdict(command: str, error: Exception) -> tuple[str, int]:
    """What to say about `error`, and the exit code."""
    if isinstance(error, WRONG_INPUT):
        return f"{command}: {error}", 2
    if isinstance(error, OSError) and error.filename is not None and error.errno not in NOT_THE_USERS_PATH:
        return f"{command}: {os.fsdecode(error.filename)}: {error.strerror or type(error).__name__}", 2
    if isinstance(error, DivergedError | CollapsedError):
        return f"{command}: failed: {error}", 1
    return f"{command}: failed: {type(error).__name__}: {error} (--debug shows where)", 1


def _say(line: str, code: int) -> int:
    print(one_line(line), file=sys.stderr)
    return code


def _one_line_warning(command: str) -> Callable[..., None]:
    def show(message, category, filename, lineno, file=None, line=None) -> None:
        print(one_line(f"{command}: warning: {message}"), file=file or sys.stderr)

    return show


def _silence_stdout() -> int:
    """The reader of our output has gone, as in `byol-jax env | head -1`: no more output, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
