"""Whole training states on disk, exactly: saved all or nothing, and only what is intact is loaded."""

from byol_jax.checkpoint.states import DamagedCheckpointWarning, Restored, latest, restore, save

__all__ = ["DamagedCheckpointWarning", "Restored", "latest", "restore", "save"]
