"""The errors that this package raises, under its own name, and how its warnings reach whoever called it.

The errors are defined in byol_jax/errors.py.
"""

import sys
import warnings

from byol_jax.errors import (
    CheckpointFormatError,
    ConversionMismatchError,
    HiddenLayerNotFoundError,
    InteropError,
    MissingDependencyError,
    StateDictMismatchError,
    UnsafeCheckpointError,
    UnsupportedModuleError,
    UnsupportedOpError,
)

__all__ = [
    "CheckpointFormatError",
    "ConversionMismatchError",
    "HiddenLayerNotFoundError",
    "InteropError",
    "MissingDependencyError",
    "StateDictMismatchError",
    "UnsafeCheckpointError",
    "UnsupportedModuleError",
    "UnsupportedOpError",
    "warn_caller",
]


def warn_caller(warning: Warning) -> None:
    """`warnings.warn`, said of the first line outside these two packages that led here."""
    frame, level = sys._getframe(1), 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("interop", "byol_jax"):
        frame, level = frame.f_back, level + 1
    warnings.warn(warning, stacklevel=level)
