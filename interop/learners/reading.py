"""Whatever a user gives, a file's name or a dict, as one flat dict of names to arrays."""

import os
from collections.abc import Mapping
from typing import Any

from byol_jax.errors import CheckpointFormatError
from interop.errors import warn_caller
from interop.files import SeveralWeightsWarning, WeightSet, read_weight_set
from interop.formats.containers import below_prefix, choose_weights, short_list, without_wrappers
from interop.formats.dill_pickle import is_plain_pickle, load_pickle
from interop.learners import deepmind

__all__ = ["read_weights", "refuse_choice", "without_owner"]


def read_weights(
    path_or_dict: Any, *, which_weights: str | None = None, prefix: str | None = None
) -> tuple[str, WeightSet]:
    """The file's name for messages, and its weights; DeepMind's trees come under `deepmind.flat_names`.

    Args:
        which_weights, prefix: as in `load_state_dict`.

    Raises:
        CheckpointFormatError, UnsafeCheckpointError, MissingDependencyError: see `load_byol_checkpoint`.

    Example:
        >>> where, weights = read_weights({"state_dict": {"module.fc.bias": np.zeros(2)}})
        >>> where, weights.arrays, weights.entry, list(weights.stored)
        ('the state dict', {'fc.bias': array([0., 0.])}, 'state_dict', ['module.fc.bias'])
    """
    if isinstance(path_or_dict, Mapping):
        where = "the state dict"
        if deepmind.is_experiment(path_or_dict):
            refuse_choice(which_weights, prefix, where=where)
            return where, WeightSet(deepmind.flat_names(path_or_dict, where=where))
        return where, _choose_in(path_or_dict, which_weights, prefix, where=where)
    if not isinstance(path_or_dict, str | os.PathLike):
        raise CheckpointFormatError(
            f"expected a file's name or a dict of arrays, got {type(path_or_dict).__name__}; "
            "a torch module's is module.state_dict()"
        )
    where = os.fspath(path_or_dict)
    if not is_plain_pickle(where):
        weights = read_weight_set(where, which_weights=which_weights, prefix=prefix)
        _check_names(weights.arrays, where=where)
        return where, weights
    refuse_choice(which_weights, prefix, where=where)
    content = load_pickle(where)
    if not deepmind.is_experiment(content):
        raise CheckpointFormatError(
            f"{where}: a pickle without DeepMind's experiment_state; other learners are read from .pt, .ckpt, .npz or "
            ".safetensors"
        )
    flat = deepmind.flat_names(content, where=where)
    _check_names(flat, where=where)
    return where, WeightSet(flat)


def _choose_in(content: Mapping[str, Any], which_weights: str | None, prefix: str | None, *, where: str) -> WeightSet:
    """The weights in a dict that was never a file."""
    choice = choose_weights(content, where=where, is_tensor=lambda value: hasattr(value, "dtype"), which=which_weights)
    if choice.sentence(where):
        warn_caller(SeveralWeightsWarning(choice.sentence(where)))
    stored = choice.state_dict
    if prefix is not None:
        stored = below_prefix(stored, prefix, where=where)
    return WeightSet(without_wrappers(stored, where=where), choice.name, choice.beside, stored)


def refuse_choice(which_weights: str | None, prefix: str | None, *, where: str) -> None:
    """Refuses to choose in one of DeepMind's checkpoints.

    Raises:
        CheckpointFormatError: either is given.
    """
    if which_weights is not None or prefix is not None:
        raise CheckpointFormatError(
            f"{where}: DeepMind's checkpoint has neither entries nor prefixes to choose by; "
            'which="target" (--which target) takes its other network'
        )


def _check_names(state_dict: Mapping[str, Any], *, where: str) -> None:
    """Refuses names that hold line breaks or the like: they are shown in every message that follows."""
    strange = [repr(name[:100]) for name in state_dict if not name.isprintable()]
    if strange:
        raise CheckpointFormatError(f"{where}: no learner has names like {short_list(strange)}")


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
