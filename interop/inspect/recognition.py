"""Whose weights a state dict holds, and each tensor's place under one spelling, whichever library trained them.

    online.encoder.conv1.weight      online.projector.0.weight      online.predictor.0.weight      target.…

These are the names of `learners.fitting`. Only names and shapes are looked at, so neither a network nor JAX is needed.
What a library's own names mean is in its file in `learners`; what sizes tell, in `anatomy`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from interop.arrays import as_numpy
from interop.learners.checkpoint import SOURCES
from interop.learners.cut_names import find_renaming
from interop.learners.library import Difference, Origin, match_roots, whole_names
from interop.learners.reading import without_owner
from interop.weights.architectures import recognise
from interop.weights.hugging_face import HUGGING_FACE, is_another, is_hugging_face, left_out, torchvision_arrays
from interop.weights.transformers import own_key

__all__ = ["UNREAD", "difference", "find_origin", "learner_arrays", "network_arrays"]

UNREAD = {
    "BYOL learner, mmselfsup or mmpretrain": {"backbone.": "online", "target_net.module.0.": "target"},
    "BYOL learner, mmselfsup 0.x": {"online_net.0.": "online", "target_net.0.": "target"},
    "BYOL learner, lightning-bolts": {"online_network.encoder.": "online", "target_network.encoder.": "target"},
    "BYOL network, sthalles/PyTorch-BYOL": {"encoder.": "online"},
    "ResNet, VISSL": {"_feature_blocks.": "online", "trunk._feature_blocks.": "online"},
}
"""Learners that `load_byol_checkpoint` doesn't read, by what `architectures.recognise` calls them, and where they keep
their networks, which can be taken by themselves."""


def find_origin(state_dict: Mapping[str, Any]) -> Origin:
    """Where a state dict comes from.

    Args:
        state_dict: names, without wrappers' prefixes, to anything with a `shape`; DeepMind's under
            `deepmind.flat_names`.

    Example:
        >>> names = ["model.backbone.conv1.weight", "model.projector.0.weight", "model.predictor.0.weight"]
        >>> origin = find_origin({name: np.zeros(1) for name in names})
        >>> origin.source, origin.owner, origin.names["model.projector.0.weight"]
        ('solo_learn', 'model.', 'online.projector.0.weight')
    """
    inner: Mapping[str, Any] | None = state_dict
    owner = ""
    while inner is not None:
        source = next((name for name, library in SOURCES.items() if library.recognises(inner)), "")
        if source:
            return _with_owner(SOURCES[source].origin(inner)._replace(source=source), owner)
        kind = recognise({name: tuple(value.shape) for name, value in inner.items()})
        if kind != "unknown":
            return _with_owner(_network(kind, inner), owner)
        first = next(iter(inner), "").partition(".")[0]
        owner, inner = f"{owner}{first}.", without_owner(inner)
    return _network("unknown", state_dict)


def learner_arrays(origin: Origin, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays under our names, in torch's layouts; what has no place among them isn't there."""
    if origin.source:
        return SOURCES[origin.source].arrays(origin, state_dict)
    return {ours: as_numpy(state_dict[name], name) for name, ours in origin.names.items()}


def difference(origin: Origin, state_dict: Mapping[str, Any]) -> Difference | None:
    """What a native network computes otherwise than the one in this file, if anything is known."""
    if not origin.source:
        return None
    return SOURCES[origin.source].difference(
        {name.removeprefix(origin.owner): state_dict[name] for name in origin.names}
    )


def network_arrays(
    arrays: Mapping[str, np.ndarray], *, which: str = "online", wanted: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """One of the networks by itself, its classifier included, as a state dict under torchvision's names.

    Args:
        arrays: what `learner_arrays` gave.
        which: "online" or "target".
        wanted: the names that the network to load into has, where it may be a cut one itself, or have Hugging Face's or
            timm's.

    Returns:
        The arrays; none where there is no such network.

    Example:
        >>> learner = {"backbone.0.weight": np.zeros(1), "prediction_head.layers.0.weight": np.zeros(1)}
        >>> list(network_arrays(learner_arrays(find_origin(learner), learner)))
        ['0.weight']
    """
    front = f"{which}.encoder."
    network = {name.removeprefix(front): array for name, array in arrays.items() if name.startswith(front)}
    is_theirs = is_hugging_face(network) and not is_another({name: array.shape for name, array in network.items()})
    if is_theirs and not set(wanted) & set(network):
        network = torchvision_arrays(network)
    rename = find_renaming(network, wanted)
    renamed = {rename(name): array for name, array in network.items()}
    named = {own_key(name, wanted): array for name, array in renamed.items()}
    return named if len(named) == len(renamed) else renamed  # two names of one tensor: loading says which


def _with_owner(origin: Origin, owner: str) -> Origin:
    names = {owner + name: ours for name, ours in origin.names.items()}
    left_out = {owner + name: reason for name, reason in origin.left_out.items()}
    return origin._replace(owner=owner + origin.owner, names=names, left_out=left_out)


def _network(kind: str, keys: Collection[str]) -> Origin:
    """A network by itself, or the network of a learner that isn't read."""
    if kind not in UNREAD:
        omitted = dict.fromkeys(left_out(keys) if kind in HUGGING_FACE else (), "no part of torchvision's network")
        return Origin("", {name: f"online.encoder.{name}" for name in keys}, omitted)
    roots = {root: f"{network}.encoder." for root, network in UNREAD[kind].items()}
    names = whole_names(match_roots(keys, roots))
    reason = "only the networks of such a file are read, not its heads"
    return Origin(kind, names, {name: reason for name in keys if name not in names})
