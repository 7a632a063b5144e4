"""`config.json`: everything that decides a run's result, and the comparison of two configurations.

The file is the configuration itself and two keys more, `format` and `version`, which mark a run's folder. What a result
may depend on besides, versions and devices, is in environment.py; who makes the configuration: artifacts.py.
"""

import json
import os
from pathlib import Path
from typing import Any

from byol_jax import disk
from byol_jax.data.files.file_list import RUN_FORMAT
from byol_jax.errors import ConfigurationError
from byol_jax.tree import flatten

__all__ = [
    "MAY_GROW",
    "NEVER_COMPARED",
    "differences",
    "encode_config",
    "read_config",
    "refuse_differences",
    "uncompared",
    "update_config",
]

NEVER_COMPARED = frozenset(
    {"out", "workers", "log_every", "checkpoint_every", "health_every", "stop_on_collapse", "shard_state"}
    | {"num_processes", "process_id", "coordinator_address"}
)
"""Keys that have no influence on the result but by rounding: a run may be moved, and go on with other machines."""

MAY_GROW = frozenset({"steps", "epochs"})
"""Keys that may be larger than before when a run goes on, but not smaller."""

_FOR_PEOPLE = frozenset({"init_from/file", "init_from/index_sha256"})
"""Of the weights that a run starts from, which are known by their hash."""

_FINGERPRINTS = "fingerprints"
"""Of functions that a run was given from Python; see fingerprint.py. They are compared among themselves."""

_ARRAY_TYPES = ("ndarray", "ArrayImpl")

_MARK = {"format": RUN_FORMAT, "version": 1}


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
        ConfigurationError: it is absent, can't be read, or is another program's.
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


def update_config(out: str | os.PathLike[str], **values: Any) -> None:
    """Replaces values in `config.json`, in one instant: what is known only when the run has begun."""
    disk.write_atomically(Path(out) / "config.json", encode_config(read_config(out) | values))


def differences(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """One text for each key that decides the result and differs; nested keys are joined by "/".

    The batch size of an iterable isn't compared: its batches decide it. Version 0.1.0 stored 256 there for any of them.

    Example:
        >>> differences({"seed": 0, "workers": 1, "steps": 5}, {"seed": 1, "workers": 2, "steps": 9})
        ['seed: stored 0, given 1']
    """
    before, now = _decisive_keys(stored), _decisive_keys(json.loads(encode_config(given)))
    if before.get("data/kind") == now.get("data/kind") == "iterable":
        before.pop("batch_size", None)
        now.pop("batch_size", None)
    index = (given.get("init_from") or {}).get("index_sha256")
    if index is not None and before.get("init_from/sha256") == index:  # earlier runs hashed a sharded set's index alone
        now["init_from/sha256"] = index
    if "init_from/sha256" in before and "init_from/entry" not in before:  # earlier runs didn't note it
        now.pop("init_from/entry", None)
    found = [
        f"{name}: it computes otherwise than the one that the run began with"
        for name, verdict in _compare_functions(stored, given).items()
        if verdict == "differs"
    ]
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if _is_type_of_array(old) or (name == "learner/dtype" and _dtype_name(old) == _dtype_name(new)):
            continue
        if name in MAY_GROW and isinstance(old, int) and isinstance(new, int):
            if new < old:
                found.append(f"{name}: stored {old}, given {new} (may only grow)")
        elif _value(name, before) != _value(name, now):
            found.append(f"{name}: stored {_value(name, before)}, given {_value(name, now)}")
    return found


def uncompared(stored: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """A line for a person about each thing that a run from Python was given and that isn't compared when it goes on.

    Example:
        >>> uncompared({}, {"fingerprints": {"optimizer": "5e0c", "code": {}}})
        ['optimizer: not compared with the run so far, which began before fingerprints were kept']
    """
    then, now = (config.get(_FINGERPRINTS, {}).get("code", {}) for config in (stored, given))
    changed = [f"{name} {then[name]} then, {now[name]} now" for name in now if name in then and then[name] != now[name]]
    reasons = {
        "no fingerprint": ", which began before fingerprints were kept",
        "other code": f": {', '.join(changed)}",
        "not traced": ": it can't be traced without its images",
    }
    lines = [
        f"{name}: not compared with the run so far{reasons[verdict]}"
        for name, verdict in _compare_functions(stored, given).items()
        if verdict in reasons
    ]
    data = given.get("data")
    if data is not None and not data.keys() - {"kind", "count", "dtype"}:
        what = data.get("kind", "a Dataset without an identity")
        lines.append(f"data: the images of {what!r} aren't compared with those of the run so far: give the same")
    lines += [
        f"{name}: not compared with the run so far, which kept no more of it than that it was an array"
        for name, value in _decisive_keys(stored).items()
        if _is_type_of_array(value)
    ]
    if given.get("network", "by name") is None:
        lines.append("encoder: names, shapes and dtypes of its parameters are compared, its code isn't")
    return lines


def _is_type_of_array(value: Any) -> bool:
    """Whether an earlier run kept no more of arrays than their type."""
    return value in _ARRAY_TYPES or (isinstance(value, list) and any(part in _ARRAY_TYPES for part in value))


def _dtype_name(value: Any) -> str:
    """A dtype as it is named today; earlier runs kept "jax.numpy.bfloat16", "Float32DType" and "dtype[bfloat16]"."""
    last = str(value).removeprefix("dtype[").removesuffix("]").rpartition(".")[2]
    return last.removesuffix("DType").lower() if last.endswith("DType") else last


def refuse_differences(out: str | os.PathLike[str], stored: dict[str, Any], given: dict[str, Any]) -> None:
    """Returns if the run in the folder `out` may go on with the configuration `given`.

    Raises:
        ConfigurationError: it may not; every key that differs is named.
    """
    faults = differences(stored, given)
    if faults:
        raise ConfigurationError(
            f"{out} was run with another configuration: {'; '.join(faults)}; give what was stored, or another folder"
        )


def _decisive_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that are compared, flat."""
    apart = NEVER_COMPARED | {_FINGERPRINTS, *_MARK}
    compared = flatten({name: value for name, value in config.items() if name not in apart})
    return {name: value for name, value in compared.items() if name not in _FOR_PEOPLE}


def _compare_functions(stored: dict[str, Any], given: dict[str, Any]) -> dict[str, str]:
    """For each function given: "same", "differs", or why nobody can tell."""
    before, now = stored.get(_FINGERPRINTS, {}), given.get(_FINGERPRINTS, {})

    def verdict(name: str) -> str:
        if name not in before:
            return "no fingerprint"
        if before[name] is None or now[name] is None:
            return "not traced"
        if before[name] == now[name]:
            return "same"
        return "differs" if before.get("code") == now["code"] else "other code"

    return {name: verdict(name) for name in now if name != "code"}


def _value(name: str, config: dict[str, Any]) -> str:
    """As it is shown to a person."""
    return json.dumps(config[name], sort_keys=True) if name in config else "nothing"
