"""Every error that the two packages raise on purpose, and two helpers for their messages. Pure Python.

A message is one line: what is wrong, where, what was expected, what to do. Lists inside a message are separated by
commas or semicolons. The command line prints the message and exits with 2.

This file raises nothing itself; it is not the place for checks.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointFormatError",
    "CollapsedError",
    "ConfigurationError",
    "ConversionMismatchError",
    "DamagedCheckpointError",
    "DataError",
    "DivergedError",
    "HiddenLayerNotFoundError",
    "InteropError",
    "MissingDependencyError",
    "StateDictMismatchError",
    "UnsafeCheckpointError",
    "UnsupportedModuleError",
    "UnsupportedOpError",
    "nearest",
    "one_line",
]


class ConfigurationError(ValueError):
    """An argument, an option or a combination of them is wrong. Nothing was computed or written yet."""


class DataError(ValueError):
    """The data given cannot be used: absent, unreadable, too few, of another shape than stated."""


class DamagedCheckpointError(ValueError):
    """A training checkpoint on disk is incomplete, altered, or doesn't fit the state it is restored into."""


class DivergedError(RuntimeError):
    """Training met too many steps in a row whose loss or gradient wasn't finite; the last good state was saved."""


class CollapsedError(RuntimeError):
    """Training was to stop when its projections have collapsed, and they have; the state was saved."""


class InteropError(ValueError):
    """Parent of everything that can go wrong between frameworks. Never raised itself."""


class StateDictMismatchError(InteropError):
    """A state dict doesn't fit the network: missing, unexpected, wrong-shape and wrong-dtype keys at once, of each kind
    how many, and the first twelve by name."""


class UnsupportedOpError(InteropError):
    """A traced module uses operators that have no JAX counterpart yet; all of them are listed."""


class UnsupportedModuleError(InteropError):
    """A module cannot be imported as it stands; the message says where and what to change."""


class HiddenLayerNotFoundError(InteropError):
    """The hidden layer asked for doesn't exist or gives no output; the names that exist are listed, nearest first."""


class ConversionMismatchError(InteropError):
    """Both frameworks ran and disagreed by more than the tolerance."""


class CheckpointFormatError(InteropError):
    """A weight file is absent, unreadable, truncated or in a format that isn't known."""


class UnsafeCheckpointError(InteropError):
    """A weight file asks for more than tensors: to call or import something. Nothing in it was executed."""


class MissingDependencyError(InteropError, ImportError):
    """An optional package is needed for this call; the message names the extra that installs it."""


def nearest(name: object, names: Iterable[str], *, at_most: int = 8) -> list[str]:
    """The names most like `name`, nearest first, then the others in their own order; `at_most` of them.

    Example:
        >>> nearest("avgpol", ["conv1", "avgpool", "fc"])
        ['avgpool', 'conv1', 'fc']
    """
    names = list(names)
    alike = difflib.get_close_matches(str(name), names, n=at_most, cutoff=0.5)
    return (alike + [other for other in names if other not in alike])[:at_most]


def one_line(text: object, *, at_most: int | None = None) -> str:
    r"""A text, or what an exception says, as one printable line: for a message that quotes somebody else's.

    A run of white space becomes one space, any other character that can't be printed its escape sequence. An exception
    without a text gives the name of its type. The line ends after `at_most` characters.

    Example:
        >>> one_line(ValueError("two\nlines, \x1b[31mred")), one_line(KeyError())
        ('two lines, \\x1b[31mred', 'KeyError')
    """
    line = " ".join(str(text).split())
    if not line and isinstance(text, BaseException):
        line = type(text).__name__
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)[:at_most]
