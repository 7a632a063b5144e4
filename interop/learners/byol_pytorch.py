"""byol-pytorch's learners: which key of its state dict is which leaf of a training state.

    net.*, online_encoder.net.*      online/encoder      one network under two names, which must agree
    online_encoder.projector.*       online/projector
    online_predictor.*               online/predictor
    target_encoder.{net,projector}.* target/…            momentum only

Layouts C (simplicial embeddings off; releases from 0.6.0 on) and D1 (on, 0.9.1), and C-sim and D1-sim without momentum.
`byol_history` brings other releases' to these and back.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from byol_jax.errors import CheckpointFormatError
from interop.arrays import as_numpy
from interop.errors import warn_caller
from interop.learners.byol_history import BELOW, OLDER, as_current, as_older
from interop.learners.fitting import (
    MLP,
    NORM,
    STATS,
    AbsentHeadsWarning,
    definition_rank,
    network_in_words,
    own_names,
    prefix_names,
    shape_hints,
)
from interop.learners.library import NETWORK_ALONE, Library, Origin, match_roots
from interop.learners.states import replace_networks, state_leaves
from interop.weights.architectures import recognise
from interop.weights.mismatch import Mismatch
from interop.weights.names import Leaf, absent_counters
from interop.weights.packing import pack
from interop.weights.state_dict import match_leaves, to_torch_array

__all__ = ["LIBRARY", "layout_of", "owner_of", "recognises", "roots"]

LAYOUTS = ("C", "C-sim", "D1", "D1-sim", *OLDER)
"""What is read and written; "-sim" is SimSiam, without momentum."""

ROOTS = {
    "online/encoder": "online_encoder.net",
    "online/projector": "online_encoder.projector",
    "online/predictor": "online_predictor",
    "target/encoder": "target_encoder.net",
    "target/projector": "target_encoder.projector",
}
ALIAS = "net"
"""The second name of `online_encoder.net`, written first; safetensors' `save_model` keeps only this one."""

OWNER = re.compile(r"((?:[^.]+\.)*?)online_encoder\.")
"""What may stand before all of it: "learner." in byol-pytorch's Lightning example, "byol." or "byol.module." in its
`BYOLTrainer`, which has the network and its `step` outside as well (`step` is never advanced)."""

AUGMENTATIONS = ("augment.", "augment1.", "augment2.")
"""Buffers of a user's own augmentation modules; no part of the networks."""

ORDER = (ALIAS, *ROOTS.values())

_BARE = ("weight",)
_SIMSIAM = prefix_names("0.", _BARE) | prefix_names("1.", NORM) | prefix_names("3.", _BARE) | prefix_names("4.", NORM)
_SIMSIAM |= prefix_names("6.", _BARE) | prefix_names("7.", STATS)
_EMBEDDER = prefix_names("0.0.", ("weight", "bias")) | prefix_names("0.1.", NORM)

PROJECTORS = {
    "A or B": prefix_names("net.", MLP),
    "C": MLP,
    "C-sim": _SIMSIAM,
    "D0": prefix_names("0.", MLP),
    "D0-sim": prefix_names("0.", _SIMSIAM),
    "D1": _EMBEDDER | prefix_names("2.", MLP),
    "D1-sim": _EMBEDDER | prefix_names("2.", _SIMSIAM),
}
"""Each layout's keys below `online_encoder.projector.`, which tell it; counts of keys don't (B, C and D0 have 393)."""


RELEASES = {"A": "0.0.1 to 0.5.1", "B": "0.5.2 to 0.5.7", "C": "0.6.0 to 0.8.2, or 0.9 without simplicial embeddings"}
RELEASES |= {"D0": "0.9.0, simplicial embeddings behind the heads", "D1": "0.9.1, simplicial embeddings"}


def layout_of(keys: Collection[str]) -> str | None:
    """The layout whose projector has most in common with that of `keys`; None where there is hardly anything.

    Example:
        >>> layout_of([f"online_encoder.projector.{key}" for key in PROJECTORS["D1"]])
        'D1'
    """
    root = ROOTS["online/projector"] + "."
    given = {key.removeprefix(root) for key in keys if key.startswith(root)}
    shares = {layout: len(given & wanted) / len(given | wanted) for layout, wanted in PROJECTORS.items()}
    best = max(shares, key=lambda layout: shares[layout])
    return best if shares[best] > 0.5 else None


def recognises(keys: Collection[str]) -> bool:
    """Whether a state dict with these keys is a byol-pytorch learner's, of any release.

    Example:
        >>> recognises(["learner.net.fc.bias", "learner.online_encoder.projector.0.bias"])
        True
    """
    return owner_of(keys) is not None


def owner_of(keys: Collection[str]) -> str | None:
    """What stands before all of a learner's keys (`OWNER`), "" as a rule; None where these are no learner's.

    Example:
        >>> owner_of(["step", "byol.online_encoder.projector.0.bias"])
        'byol.'
    """
    return next((found[1] for key in keys if (found := OWNER.match(key))), None)


def roots(keys: Collection[str]) -> dict[str, str]:
    """What stands in front of such a learner's keys, in any release, and what takes its place; heads first.

    Example:
        >>> roots(["net.fc.bias", "online_encoder.net.fc.bias"])["net"]
        'online.encoder'
    """
    owner = owner_of(keys) or ""
    below = BELOW.get(layout_of([key.removeprefix(owner) for key in keys]) or "", "").rstrip(".")
    plain = {f"{owner}{theirs}": ours.replace("/", ".") for ours, theirs in ROOTS.items()}
    heads = {f"{theirs}.{below}": ours for theirs, ours in plain.items() if below and not ours.endswith("encoder")}
    return heads | plain | {f"{owner}{ALIAS}": "online.encoder"}


def from_state_dict(state_dict: Mapping[str, Any], *, like: Any, where: str) -> Any:
    """`like` with the parameters and statistics of `state_dict`; step, key and optimiser's state stay `like`'s.

    Raises:
        CheckpointFormatError: no byol-pytorch learner, other heads than `like` has, or no target network.
        StateDictMismatchError: lists every missing, unexpected, wrong-shape and wrong-dtype key, and every `net.*`
            that isn't its `online_encoder.net.*`.
    """
    owner = owner_of(state_dict)
    if owner is None:
        return _load_trainer_network(state_dict, like, where)
    given = {key.removeprefix(owner): value for key, value in state_dict.items() if key.startswith(owner)}
    given = {key: value for key, value in given.items() if not key.startswith(AUGMENTATIONS)}
    given = as_current(given, layout_of(given), where=where)
    leaves = state_leaves(like)
    names = _names(leaves)
    _check_layout(given, names, where)
    networks = {root for root in (ALIAS, ROOTS["online/encoder"]) if any(key.startswith(f"{root}.") for key in given)}
    aliases = _aliases(names)
    if ALIAS in networks and len(networks) == 1:  # deduplicated
        names |= {path: aliases[f"alias/{path}"] for path in names if f"alias/{path}" in aliases}
    elif ALIAS in networks:
        names |= aliases
        leaves |= {path: leaves[path.removeprefix("alias/")] for path in aliases}
    for path, alias in aliases.items():  # of a tensor with two names one is enough, as in torch
        keys = [alias.key, names[path.removeprefix("alias/")].key]
        given |= {
            one: given[other] for one, other in (keys, keys[::-1]) if other in given and absent_counters(given, [one])
        }
    arrays, mismatch = match_leaves(given, leaves, names, strict=True, cast_to_like=False)
    mismatch.values += [
        f"{names[path].key} (differs from {names[path.removeprefix('alias/')].key}, the same tensor)"
        for path in aliases
        if _differ(arrays.get(path), arrays.get(path.removeprefix("alias/")))
    ]
    mismatch.raise_if_any(f"{where} doesn't fit the learner", hint=_hint(given, names, leaves, mismatch))
    return replace_networks(like, arrays)


def _load_trainer_network(state_dict: Mapping[str, Any], like: Any, where: str) -> Any:
    """`like` with both encoders as in a `checkpoint.N.pt` of `BYOLTrainer`, which holds the network and nothing else.

    `BYOL(net)` goes on from such a file in the same way: with new heads, and the target a copy.
    """
    leaves = state_leaves(like)
    root = ROOTS["online/encoder"] + "."
    named = {path: leaf for path, leaf in _names(leaves).items() if leaf.key.startswith(root)}
    named = {path: Leaf(leaf.key.removeprefix(root), leaf.rule) for path, leaf in named.items()}
    if not {leaf.key for leaf in named.values()} & set(state_dict):
        kind = recognise({key: tuple(value.shape) for key, value in state_dict.items()})
        raise CheckpointFormatError(
            f"{where}: no byol-pytorch learner, nor the network of this one (names tell: {kind}); {NETWORK_ALONE}"
        )
    arrays, mismatch = match_leaves(
        state_dict, {path: leaves[path] for path in named}, named, strict=True, cast_to_like=False
    )
    mismatch.raise_if_any(f"{where} doesn't fit the learner's network")
    targets = {path.replace("online/", "target/", 1): array for path, array in arrays.items()}
    arrays |= {path: array for path, array in targets.items() if path in leaves}
    state = replace_networks(like, {path: np.asarray(leaf) for path, leaf in leaves.items()} | arrays)
    message = f"{where}: holds a network without heads, as byol-pytorch's trainer saves it; the heads are like's"
    warn_caller(AbsentHeadsWarning(message))
    return state


def to_state_dict(state: Any, *, layout: str, where: str) -> dict[str, np.ndarray]:
    """What byol-pytorch has for this state: all of its keys in its order, its layouts, counters as int64.

    Args:
        layout: one of `LAYOUTS`, which must be the state's own ("C" for A, B and D0); anything else writes the state's
            own of release 0.9.1.

    Raises:
        CheckpointFormatError: the state's heads have another layout.
    """
    leaves = state_leaves(state)
    names = _names(leaves)
    own = layout_of([leaf.key for leaf in names.values()])
    needed = OLDER.get(layout, layout)
    if own not in LAYOUTS or (needed in LAYOUTS and needed != own):
        raise CheckpointFormatError(
            f"{where}: the state has "
            + (f"layout {own}, not {layout}: use layout={own!r}" if own in LAYOUTS else "no heads of byol-pytorch's")
        )
    arrays = {names[path].key: to_torch_array(as_numpy(leaf, path), names[path].rule) for path, leaf in leaves.items()}
    for path, alias in _aliases(names).items():
        arrays[alias.key] = arrays[names[path.removeprefix("alias/")].key]
    arrays = pack(arrays)
    ordered = {
        key: arrays[key]
        for root in ORDER
        for key in sorted((key for key in arrays if key.startswith(f"{root}.")), key=definition_rank)
    }
    return as_older(ordered, layout, where=where) if layout in OLDER else ordered


def _names(leaves: Mapping[str, Any]) -> dict[str, Leaf]:
    """The file's key for every leaf "online/encoder/…" of a state."""
    names = {}
    for path, leaf in own_names(leaves).items():
        network, part, rest = leaf.key.split(".", 2)
        if f"{network}/{part}" not in ROOTS:
            raise CheckpointFormatError(f"{path}: byol-pytorch's learners have no such part")
        names[path] = Leaf(f"{ROOTS[f'{network}/{part}']}.{rest}", leaf.rule)
    return names


def _aliases(names: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """ "alias/online/encoder/…" to its key `net.…`."""
    own = ROOTS["online/encoder"]
    return {
        f"alias/{path}": Leaf(ALIAS + leaf.key.removeprefix(own), leaf.rule)
        for path, leaf in names.items()
        if path.startswith("online/encoder/")
    }


def _check_layout(given: Collection[str], names: Mapping[str, Leaf], where: str) -> None:
    layout, wanted = layout_of(given), layout_of([leaf.key for leaf in names.values()])
    if layout is None:
        raise CheckpointFormatError(f"{where}: no projector of byol-pytorch's below {ROOTS['online/projector']}")
    if wanted not in LAYOUTS:
        raise CheckpointFormatError(f"{where}: the learner to load it into has no heads of byol-pytorch's")
    if layout != wanted:
        options = [("simplicial_embeddings", "D1" in layout, "D1" in wanted)]
        options += [("use_momentum", "-sim" not in layout, "-sim" not in wanted)]
        needed = " and ".join(f"{option}={value}" for option, value, other in options if value != other)
        raise CheckpointFormatError(
            f"{where}: has byol-pytorch's layout {layout}, the learner has {wanted}: make the learner with {needed}"
        )
    if "-sim" not in layout and not any(key.startswith("target_encoder.") for key in given):
        raise CheckpointFormatError(
            f"{where}: has no target_encoder.*; after reset_moving_average() call the learner once, then save"
        )


def _differ(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is not None and other is not None and one.tobytes() != other.tobytes()


def _hint(given: Mapping[str, Any], names: Mapping[str, Leaf], leaves: Mapping[str, Any], mismatch: Mismatch) -> str:
    """What to make the learner with, where the shapes tell."""
    if mismatch.missing or mismatch.unexpected:
        return network_in_words(given, ROOTS["online/encoder"] + ".")
    return shape_hints(given, names, leaves, mismatch)


def origin(keys: Collection[str]) -> Origin:
    """Whose the names of a byol-pytorch learner are, its trainer's among them."""
    owner = owner_of(keys) or ""
    inner = [key.removeprefix(owner) for key in keys if key.startswith(owner)]
    layout = layout_of(inner) or ""
    if layout == "A or B":
        layout = "B" if any(key.startswith(f"{ALIAS}.") for key in inner) else "A"
    left_out = {key: "what stands beside the learner in its trainer" for key in keys if not key.startswith(owner)}
    left_out |= {owner + key: "a buffer of an augmentation" for key in inner if key.startswith(AUGMENTATIONS)}
    releases = RELEASES.get(layout.removesuffix("-sim"))
    title = f"byol-pytorch, layout {layout} ({releases})" if releases else "byol-pytorch"
    title += ", without momentum" if layout.endswith("-sim") else ""
    in_trainer = owner.startswith("byol.") and any(key.startswith(f"{ALIAS}.") for key in keys)
    title += " in its trainer" if in_trainer else ""
    names = match_roots(keys, {f"{theirs}.": f"{ours}." for theirs, ours in roots(keys).items()})
    return Origin(title, names, left_out, owner=owner, layout=layout)


def _parameter_roots(keys: Collection[str]) -> dict[str, str]:
    return roots(keys) | {ALIAS: "online.encoder"}  # its trainer has the network by itself, too


def _heads(origin: Origin) -> frozenset[str]:
    layout = {"A": "C", "B": "C", "D0": "C", "D0-sim": "C-sim"}.get(origin.layout, origin.layout)
    projector = PROJECTORS.get(layout, MLP)
    heads = prefix_names("online.projector.", projector) | prefix_names("online.predictor.", MLP)
    return heads if layout.endswith("-sim") else heads | prefix_names("target.projector.", projector)


def _refusals(origin: Origin, state_dict: Mapping[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """A target that isn't there, and the two names of a tensor of the network with unlike bits."""
    if origin.layout in ("C", "D0", "D1") and not any(ours.startswith("target.") for ours in origin.names.values()):
        yield "target_encoder.*", "isn't there: call the learner once after reset_moving_average(), then save"
    alias = f"{origin.owner}{ALIAS}."
    for name in origin.names:
        other = f"{origin.owner}{ROOTS['online/encoder']}.{name.removeprefix(alias)}"
        is_alias = name.startswith(alias) and other in origin.names
        if is_alias and state_dict[name].tobytes() != state_dict[other].tobytes():
            yield name, f"differs from {other}"


LIBRARY = Library(
    layouts=LAYOUTS,
    recognises=recognises,
    origin=origin,
    from_state_dict=from_state_dict,
    to_state_dict=to_state_dict,
    heads=_heads,
    parameter_roots=_parameter_roots,
    refusals=_refusals,
)
