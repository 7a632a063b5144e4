"""Whose weights a state dict holds, and each tensor's place under one spelling, whichever library trained them.

    online.encoder.conv1.weight      online.projector.0.weight      online.predictor.0.weight      target.…

These are `checkpoints.fitting`'s names. Only names and shapes are looked at, so neither a network nor JAX is needed;
what a file says about sizes is `interop.inspect.anatomy`'s business, loading it into a learner `checkpoints.learners`'.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from interop.arrays import as_numpy
from interop.learners import byol_pytorch, deepmind, lightly, solo_learn
from interop.learners.checkpoint import SOURCES
from interop.learners.cut_names import renaming
from interop.learners.native import Difference, native_difference
from interop.learners.opened import without_owner
from interop.weights.tables import recognise

__all__ = ["Recognised", "difference", "encoder_state_dict", "learner_arrays", "recognised"]

ENCODERS = ("online.encoder.", "target.encoder.")
UNREAD = {
    "BYOL learner, mmselfsup or mmpretrain": {"backbone.": "online", "target_net.module.0.": "target"},
    "BYOL learner, mmselfsup 0.x": {"online_net.0.": "online", "target_net.0.": "target"},
    "BYOL learner, lightning-bolts": {"online_network.encoder.": "online", "target_network.encoder.": "target"},
    "BYOL network, sthalles/PyTorch-BYOL": {"encoder.": "online"},
    "ResNet, VISSL": {"_feature_blocks.": "online", "trunk._feature_blocks.": "online"},
}
"""Learners that `load_byol_checkpoint` doesn't read, by what `tables.recognise` calls them, and where they keep their
networks, which can be taken by themselves."""

RELEASES = {"A": "0.0.1 to 0.5.1", "B": "0.5.2 to 0.5.7", "C": "0.6.0 to 0.8.2, or 0.9 without simplicial embeddings"}
RELEASES |= {"D0": "0.9.0, simplicial embeddings behind the heads", "D1": "0.9.1, simplicial embeddings"}


class Recognised(NamedTuple):
    """What names tell.

    Attributes:
        source: a key of `learners.SOURCES`; "" for a network by itself, or a learner that isn't read.
        title: the same for people: the library, its layout and its releases; "" for a network by itself.
        layout: byol-pytorch's ("A" to "D1-sim"); "" otherwise.
        owner: what stood before the names ("learner."), as a module that holds the learner puts it there.
        names: the file's name to ours, in the file's order. byol-pytorch's two names for its network share one.
        left_out: the file's names that loading leaves out, each with the reason.
    """

    source: str
    title: str
    layout: str
    owner: str
    names: dict[str, str]
    left_out: dict[str, str]


def recognised(state_dict: Mapping[str, Any]) -> Recognised:
    """Whose state dict this is.

    Args:
        state_dict: names, without wrappers' prefixes, to anything with a `shape`; DeepMind's under
            `deepmind.flat_names`.

    Example:
        >>> names = ["model.backbone.conv1.weight", "model.projector.0.weight", "model.predictor.0.weight"]
        >>> found = recognised({name: np.zeros(1) for name in names})
        >>> found.source, found.owner, found.names["model.projector.0.weight"]
        ('solo_learn', 'model.', 'online.projector.0.weight')
    """
    inner: Mapping[str, Any] | None = state_dict
    owner = ""
    while inner is not None:
        source = next((name for name, library in SOURCES.items() if library.recognises(inner)), "")
        kind = recognise({name: tuple(value.shape) for name, value in inner.items()})
        if source or kind != "unknown":
            return _with_owner(_learner(source, inner) if source else _network(kind, inner), owner)
        first = next(iter(inner), "").partition(".")[0]
        owner, inner = f"{owner}{first}.", without_owner(inner)
    return _network("unknown", state_dict)


def learner_arrays(found: Recognised, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays under our names, in torch's layouts; what has no place among them isn't there."""
    arrays: dict[str, np.ndarray] = {}
    for name, ours in found.names.items():
        array = as_numpy(state_dict[name], name)
        if found.source == "deepmind":
            ((_, array),) = deepmind.translated(name.removeprefix(found.owner), array)
        arrays[ours] = array
    return arrays


def difference(found: Recognised, state_dict: Mapping[str, Any]) -> Difference | None:
    """What a native network computes otherwise than the one in this file, if anything is known."""
    return native_difference(found.source, {name.removeprefix(found.owner): state_dict[name] for name in found.names})


def encoder_state_dict(
    found: Recognised, state_dict: Mapping[str, Any], *, which: str = "online", wanted: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """One of the networks by itself, its classifier included, as a state dict under torchvision's names.

    Args:
        which: "online" or "target".
        wanted: the names that the network to load into has, where it may be a cut one itself.

    Returns:
        The arrays; none where the file has no such network.

    Example:
        >>> learner = {"backbone.0.weight": np.zeros(1), "prediction_head.layers.0.weight": np.zeros(1)}
        >>> list(encoder_state_dict(recognised(learner), learner))
        ['0.weight']
    """
    front = f"{which}.encoder."
    arrays = learner_arrays(found, state_dict)
    arrays = {name.removeprefix(front): array for name, array in arrays.items() if name.startswith(front)}
    rename = renaming(arrays, wanted)
    return {rename(name): array for name, array in arrays.items()}


def _with_owner(found: Recognised, owner: str) -> Recognised:
    names = {owner + name: ours for name, ours in found.names.items()}
    left_out = {owner + name: reason for name, reason in found.left_out.items()}
    return found._replace(owner=owner + found.owner, names=names, left_out=left_out)


def _learner(source: str, keys: Collection[str]) -> Recognised:
    readers: dict[str, Callable[[Collection[str]], Recognised]] = {
        "byol_pytorch": _byol_pytorch,
        "lightly": _lightly,
        "solo_learn": _solo_learn,
        "deepmind": _deepmind,
    }
    return readers[source](keys)


def _network(kind: str, keys: Collection[str]) -> Recognised:
    """A network by itself, or the network of a learner that isn't read."""
    if kind not in UNREAD:
        return Recognised("", "", "", "", {name: f"online.encoder.{name}" for name in keys}, {})
    roots = {root: f"{network}.encoder." for root, network in UNREAD[kind].items()}
    names = _uncut(_below(keys, roots))
    reason = "only the networks of such a file are read, not its heads"
    return Recognised("", kind, "", "", names, {name: reason for name in keys if name not in names})


def _byol_pytorch(keys: Collection[str]) -> Recognised:
    owner = byol_pytorch.owner_of(keys) or ""
    inner = [key.removeprefix(owner) for key in keys if key.startswith(owner)]
    layout = byol_pytorch.layout_of(inner) or ""
    names = _below(keys, {f"{theirs}.": f"{ours}." for theirs, ours in byol_pytorch.roots(keys).items()})
    left_out = {key: "what stands beside the learner in its trainer" for key in keys if not key.startswith(owner)}
    left_out |= {
        owner + key: "a buffer of an augmentation" for key in inner if key.startswith(byol_pytorch.AUGMENTATIONS)
    }
    if layout == "A or B":
        layout = "B" if any(key.startswith("net.") for key in inner) else "A"
    releases = RELEASES.get(layout.removesuffix("-sim"))
    title = f"byol-pytorch, layout {layout} ({releases})" if releases else "byol-pytorch"
    title += ", without momentum" if layout.endswith("-sim") else ""
    title += " in its trainer" if any(key.startswith("net.") for key in keys) and owner.startswith("byol.") else ""
    return Recognised("byol_pytorch", title, layout, owner, names, left_out)


def _lightly(keys: Collection[str]) -> Recognised:
    names = _uncut(_below(keys, {f"{theirs}.": f"{ours}." for theirs, ours in lightly.ROOTS.items()}))
    starts = {key.partition(".")[0] for key in keys}
    kinds = {kind: layout.momentum.format("backbone") for kind, layout in lightly.LAYOUTS.items()}
    kind = next((kind for kind, momentum in kinds.items() if momentum in starts), "")
    if kind == "lightly-examples" and any(re.match(r"backbone\.[23]\.0\.conv1\.", key) for key in keys):
        kind = "lightly-cifar"
    if not any(key.startswith("prediction_head.layers.") for key in keys):
        releases = "1.1.8 to 1.1.18"
    else:
        releases = "1.1.19 to 1.2.12" if "prediction_head.layers.0.bias" in keys else "1.2.13 and later"
    return Recognised("lightly", f"lightly, {kind or 'without a target'} ({releases})", "", "", names, {})


def _solo_learn(keys: Collection[str]) -> Recognised:
    name = "backbone" if any(key.startswith("backbone.") for key in keys) else "encoder"
    names = _uncut(_below(keys, {f"{theirs}.": f"{ours}." for theirs, ours in solo_learn.roots(keys).items()}))
    releases = "1.0.3 and later" if name == "backbone" else "up to 1.0.2"
    return Recognised("solo_learn", f"solo-learn ({releases})", "", "", names, {})


def _deepmind(keys: Collection[str]) -> Recognised:
    names, left_out = {}, {}
    evaluation = any(key.startswith("classif_params/") for key in keys)
    for key in keys:
        found = [name for name, _ in deepmind.translated(key, np.zeros((1, 1, 1, 1) if key.endswith("/w") else 1))]
        if not found:
            target = key.startswith(("target_params/predictor", "target_state/predictor"))
            left_out[key] = "the target's predictor, which nothing uses" if target else "a running average's own state"
        elif found[0] != key:
            names[key] = found[0]
    for leaf in ("weight", "bias"):  # linear evaluation's classifier takes the old one's place
        names = {
            key: f"online.encoder.fc.{leaf}" if ours == f"classifier.{leaf}" else ours for key, ours in names.items()
        }
    return Recognised(
        "deepmind", f"DeepMind's {'linear evaluation' if evaluation else 'pre-training'}", "", "", names, left_out
    )


def _below(keys: Collection[str], roots: Mapping[str, str]) -> dict[str, str]:
    """Each key below one of `roots`, with what takes the root's place; the first root that fits counts."""
    found = {key: next((root for root in roots if key.startswith(root)), None) for key in keys}
    return {key: roots[root] + key.removeprefix(root) for key, root in found.items() if root is not None}


def _uncut(names: Mapping[str, str]) -> dict[str, str]:
    """The same, with the names of a cut ResNet made torchvision's."""
    uncut = dict(names)
    for front in ENCODERS:
        own = {key: ours.removeprefix(front) for key, ours in names.items() if ours.startswith(front)}
        rename = renaming(own.values(), ("conv1.weight",))
        uncut |= {key: front + rename(ours) for key, ours in own.items()}
    return uncut
