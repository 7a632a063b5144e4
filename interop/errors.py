"""The errors that this package raises, under its own name. They are defined in byol_jax/errors.py."""

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
]
