"""`config.json`: all that decides a run, and in what two configurations differ.

The file is the configuration itself with two keys more, `format` and `version`, by which a run's folder is known.
"""

import json
import os
from pathlib import Path
from typing import Any

from byol_jax.errors import ConfigurationError
from byol_jax.tree import flatten

__all__ = ["MAY_GROW", "NEVER_COMPARED", "differences", "encode_config", "read_config", "refuse_differences"]

NEVER_COMPARED = frozenset(
    {"out", "workers", "log_every", "checkpoint_every", "num_processes", "process_id", "coordinator_address"}
)
"""Keys that don't decide the result, so that a run may be moved and its machine may change."""

MAY_GROW = frozenset({"steps", "epochs"})
"""Keys that a resumed run may have larger than before, but not smaller."""

_MARK = {"format": "byol_jax.run", "version": 1}


def encode_config(config: dict[str, Any]) -> bytes:
    """The content of `config.json`.

    Raises:
        ConfigurationError: it isn't JSON (functions, arrays, NaN).

    Example:
        >>> b'"steps": 3' in encode_config({"steps": 3})
        True
    """
    try:
        return (json.dumps(_MARK | config, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        message = f"the configuration isn't JSON ({error}): give names, finite numbers and lists of them"
        raise ConfigurationError(message) from None


def read_config(out: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration of the run in the folder `out`.

    Raises:
        ConfigurationError: there is none, it can't be read, or another program wrote it.
    """
    path = Path(out) / "config.json"
    try:
        config = json.loads(path.read_bytes())
        mark = {name: config.pop(name, None) for name in _MARK}
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigurationError(f"{path} not found: {out} isn't a run's folder") from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"{path} can't be read as a configuration ({error}): restore the file") from error
    if mark != _MARK:
        found = f"format {mark['format']}, version {mark['version']}"
        raise ConfigurationError(f"{path} is not of a run that this byol_jax knows ({found}): give a run's folder")
    return config


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """Everything in which two configurations differ that decides the result, one text a key, nested keys by "/".

    Example:
        >>> differences({"seed": 0, "workers": 1, "steps": 5}, {"seed": 1, "workers": 2, "steps": 9})
        ['seed: stored 0, given 1']
    """
    before, now = _decisive(stored), _decisive(json.loads(encode_config(given)))
    if before.get("data/kind") == now.get("data/kind") == "iterable":  # its batches have their own size, which is null
        before.pop("batch_size", None), now.pop("batch_size", None)  # here, and was a number that meant nothing before
    found = []
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if name in MAY_GROW and isinstance(old, int) and isinstance(new, int):
            if new < old:
                found.append(f"{name}: stored {old}, given {new} (may only grow)")
        elif _shown(name, before) != _shown(name, now):
            found.append(f"{name}: stored {_shown(name, before)}, given {_shown(name, now)}")
    return found


def refuse_differences(out: str | os.PathLike[str], stored: dict[str, Any], given: dict[str, Any]) -> None:
    """Nothing, where a run in the folder `out` may go on with `given`.

    Raises:
        ConfigurationError: it may not; every key that differs is named.
    """
    faults = differences(stored, given)
    if faults:
        raise ConfigurationError(
            f"{out} was run with another configuration: {'; '.join(faults)}; give what was stored, or another folder"
        )


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    return flatten({name: value for name, value in config.items() if name not in NEVER_COMPARED | set(_MARK)})


def _shown(name: str, config: dict[str, Any]) -> str:
    return json.dumps(config[name], sort_keys=True) if name in config else "nothing"
