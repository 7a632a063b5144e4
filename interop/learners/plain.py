"""What lightly's and solo-learn's files share: parts under other roots, a backbone without `fc`, plain heads."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from byol_jax.errors import CheckpointFormatError
from interop.learners.cut_names import find_renaming
from interop.learners.fitting import ENCODERS, load_networks, own_names
from interop.learners.states import state_leaves

__all__ = ["check_representation", "load_learner", "translate_names", "without_first_bias"]


def load_learner(
    state_dict: Mapping[str, Any],
    roots: Mapping[str, str],
    *,
    like: Any,
    library: str,
    where: str,
    biasless: Collection[str] = (),
) -> Any:
    """`like` with the networks of a library's state dict.

    Args:
        roots: what stands in front of the library's keys, tested in this order, and of ours; what stands below no root
            keeps its name.
        biasless: the heads' biases that the library may lack.

    Raises:
        CheckpointFormatError: `like` has other heads.
        StateDictMismatchError: lists everything that doesn't fit.
    """
    wanted = [leaf.key for leaf in own_names(state_leaves(like)).values()]
    given = translate_names(state_dict, roots, wanted, find_renaming)
    return load_networks(given, like=like, library=library, where=where, biasless=biasless)


def translate_names(
    state_dict: Mapping[str, Any],
    roots: Mapping[str, str],
    wanted: Collection[str],
    find_renaming: Callable[[Collection[str], Collection[str]], Callable[[str], str]],
) -> dict[str, Any]:
    """A library's state dict under the names of `fitting`; what stands below no root keeps its name.

    Args:
        roots: as in `load_learner`.
        wanted: the names that the learner has.
        find_renaming: gives the function from a backbone's keys to the wanted ones, both without what stands in front.
    """
    given: dict[str, Any] = {}
    for key, value in state_dict.items():
        root = next((root for root in roots if key.startswith(f"{root}.")), None)
        given[key if root is None else roots[root] + key.removeprefix(root)] = value
    for front in ENCODERS:
        names = [key.removeprefix(front) for key in given if key.startswith(front)]
        own = [key.removeprefix(front) for key in wanted if key.startswith(front)]
        rename = find_renaming(names, own)
        given = {
            front + rename(key.removeprefix(front)) if key.startswith(front) else key: value
            for key, value in given.items()
        }
    return given


def check_representation(arrays: Mapping[str, Any], *, library: str, where: str) -> None:
    """Refuses a state whose projector takes the output of `fc`, which the library's backbones lack.

    Raises:
        CheckpointFormatError: see above.
    """
    classifier = arrays.get("online.encoder.fc.weight")
    width = arrays["online.projector.0.weight"].shape[1]
    if classifier is not None and width != classifier.shape[1]:
        raise CheckpointFormatError(
            f"{where}: its projector takes {width} features, fc {classifier.shape[1]}: {library}'s learners take the "
            'pooled ones; make the learner with hidden_layer="avgpool"'
        )


def without_first_bias(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same function without the heads' first bias: it is taken off the running mean behind it.

    In training batch norm takes any constant away; in evaluation `(x + b) - mean` is `x - (mean - b)`. Bits change only
    where the bias isn't 0.
    """
    kept = dict(arrays)
    for key in arrays:
        network, part, rest = key.split(".", 2)
        if part in ("projector", "predictor") and rest == "0.bias":
            mean = f"{network}.{part}.1.running_mean"
            kept[mean] = kept[mean] - kept.pop(key)
    return kept
