"""Whatever a user gives, a file's name or a dict, as one flat dict of names to arrays."""

import os
from collections.abc import Mapping
from typing import Any

from byol_jax.errors import CheckpointFormatError
from interop.files import load_state_dict
from interop.formats.containers import find_state_dict, short_list, without_wrappers
from interop.formats.dill_pickle import is_plain_pickle, load_pickle
from interop.learners import deepmind

__all__ = ["read_weights", "without_owner"]


def read_weights(path_or_dict: Any) -> tuple[str, Mapping[str, Any]]:
    """The file's name for messages, and its state dict; DeepMind's trees come under `deepmind.flat_names`.

    Raises:
        CheckpointFormatError, UnsafeCheckpointError, MissingDependencyError: see `load_byol_checkpoint`.

    Example:
        >>> read_weights({"state_dict": {"module.fc.bias": np.zeros(2)}})
        ('the state dict', {'fc.bias': array([0., 0.])})
    """
    if isinstance(path_or_dict, Mapping):
        where = "the state dict"
        if deepmind.is_experiment(path_or_dict):
            return where, deepmind.flat_names(path_or_dict, where=where)
        found = find_state_dict(path_or_dict, where=where, is_tensor=lambda value: hasattr(value, "dtype"))
        return where, without_wrappers(found, where=where)
    if not isinstance(path_or_dict, str | os.PathLike):
        raise CheckpointFormatError(
            f"expected a file's name or a dict of arrays, got {type(path_or_dict).__name__}; "
            "a torch module's is module.state_dict()"
        )
    where = os.fspath(path_or_dict)
    if not is_plain_pickle(where):
        return where, _check_names(load_state_dict(where), where=where)
    content = load_pickle(where)
    if not deepmind.is_experiment(content):
        raise CheckpointFormatError(
            f"{where}: a pickle without DeepMind's experiment_state; other learners are read from .pt, .ckpt, .npz or "
            ".safetensors"
        )
    return where, _check_names(deepmind.flat_names(content, where=where), where=where)


def _check_names(state_dict: Mapping[str, Any], *, where: str) -> Mapping[str, Any]:
    """The same, unless some name holds line breaks or the like: names are shown in every message that follows."""
    strange = [repr(name[:100]) for name in state_dict if not name.isprintable()]
    if strange:
        raise CheckpointFormatError(f"{where}: no learner has names like {short_list(strange)}")
    return state_dict


def without_owner(state_dict: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The same without the first segment of its names, where all share one: a module that holds the learner.

    Example:
        >>> without_owner({"model.backbone.fc.bias": 1, "model.projector.0.bias": 2})
        {'backbone.fc.bias': 1, 'projector.0.bias': 2}
        >>> without_owner({"backbone.fc.bias": 1, "projector.0.bias": 2})
    """
    owners = {key.partition(".")[0] for key in state_dict}
    if len(owners) != 1 or not all("." in key for key in state_dict):
        return None
    return {key.partition(".")[2]: value for key, value in state_dict.items()}
