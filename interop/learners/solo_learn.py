"""solo-learn's BYOL learners, as its Lightning checkpoints hold them.

    backbone.*, momentum_backbone.*          {online, target}.encoder.*; encoder.*, momentum_encoder.* up to 1.0.2
    projector.*, momentum_projector.*        {online, target}.projector.*
    predictor.*                              online.predictor.*
    classifier.*, momentum_classifier.*      {online, target}.encoder.fc.*

Heads have all biases. For CIFAR solo-learn pads its 3×3 stem by 2, which no file tells, where `nets.resnet(...,
stem="cifar")` pads by 1. Source: solo-learn 1.0.2 and its successors, `solo/methods/byol.py` and `base.py`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from byol_jax.errors import CheckpointFormatError
from interop.learners.fitting import PaddingWarning, check_heads, definition_rank, own_arrays
from interop.learners.library import Difference, Library, Origin, match_roots, whole_names
from interop.learners.plain import check_representation, load_learner

__all__ = ["LIBRARY", "recognises", "roots"]

LAYOUTS = {"solo-learn-backbone": "backbone", "solo-learn-encoder": "encoder"}
"""What the network is called: since 1.0.3, and up to 1.0.2."""

HEADS = {
    "projector": "online.projector",
    "momentum_projector": "target.projector",
    "predictor": "online.predictor",
}
CLASSIFIERS = {"classifier": "online.encoder.fc", "momentum_classifier": "target.encoder.fc"}

WIDER_STEM = Difference(
    PaddingWarning,
    "stem padded by 2",
    "solo-learn pads its 3×3 stem by 2 pixels, nets.resnet by 1, and no file tells: give the network images that are "
    "padded by one more zero on every side (after normalisation), and it computes the same",
)


def recognises(keys: Collection[str]) -> bool:
    """Whether a state dict with these keys is a solo-learn BYOL learner's.

    Example:
        >>> recognises(["backbone.conv1.weight", "projector.0.weight", "predictor.0.weight", "classifier.bias"])
        True
    """
    return {"projector.0.weight", "predictor.0.weight"} <= set(keys) and _network(keys) is not None


def _network(keys: Collection[str]) -> str | None:
    return next((name for name in LAYOUTS.values() if any(key.startswith(f"{name}.") for key in keys)), None)


def roots(keys: Collection[str]) -> dict[str, str]:
    """What stands in front of such a learner's keys, and what takes its place.

    Example:
        >>> roots(["encoder.conv1.weight"])["momentum_encoder"]
        'target.encoder'
    """
    name = _network(keys)
    return CLASSIFIERS | HEADS | {name: "online.encoder", f"momentum_{name}": "target.encoder"} if name else {}


def from_state_dict(state_dict: Mapping[str, Any], *, like: Any, where: str) -> Any:
    """`like` with the networks of a solo-learn learner.

    Raises:
        CheckpointFormatError: no such learner, or `like` has other heads.
        StateDictMismatchError: lists everything that doesn't fit.
    """
    if not recognises(state_dict):
        raise CheckpointFormatError(f"{where}: no solo-learn learner: expected backbone.*, projector.*, predictor.*")
    return load_learner(state_dict, roots(state_dict), like=like, library="solo-learn", where=where)


def to_state_dict(state: Any, *, layout: str, where: str) -> dict[str, np.ndarray]:
    """What a solo-learn learner has for this state: all of its keys in its order.

    `fc` becomes its online classifier, without which solo-learn doesn't load strictly; the target's has no place.

    Args:
        layout: one of `LAYOUTS`; anything else is "solo-learn-backbone".

    Raises:
        CheckpointFormatError: the state's heads, or its representation, are none that solo-learn has.
    """
    name = LAYOUTS.get(layout, "backbone")
    arrays = own_arrays(state)
    check_heads(arrays, library="solo-learn", where=where)
    check_representation(arrays, library="solo-learn", where=where)
    roots = {name: "online.encoder", "classifier": "online.encoder.fc", f"momentum_{name}": "target.encoder"} | HEADS
    written = {}
    for theirs, ours in roots.items():
        names = [key.removeprefix(f"{ours}.") for key in arrays if key.startswith(f"{ours}.")]
        names = [key for key in names if not (ours.endswith(".encoder") and key.startswith("fc."))]
        written |= {f"{theirs}.{key}": arrays[f"{ours}.{key}"] for key in sorted(names, key=definition_rank)}
    return written


def origin(keys: Collection[str]) -> Origin:
    """Whose the names of a solo-learn learner are."""
    names = whole_names(match_roots(keys, {f"{theirs}.": f"{ours}." for theirs, ours in roots(keys).items()}))
    releases = "1.0.3 and later" if _network(keys) == "backbone" else "up to 1.0.2"
    return Origin(f"solo-learn ({releases})", names, {})


def difference(state_dict: Mapping[str, Any]) -> Difference | None:
    """The stem for CIFAR, told by its kernel's size."""
    stems = [state_dict[key] for key in ("backbone.conv1.weight", "encoder.conv1.weight") if key in state_dict]
    return WIDER_STEM if any(tuple(stem.shape[2:]) == (3, 3) for stem in stems) else None


LIBRARY = Library(
    layouts=LAYOUTS,
    recognises=recognises,
    origin=origin,
    from_state_dict=from_state_dict,
    to_state_dict=to_state_dict,
    difference=difference,
    has_classifier=True,
    parameter_roots=roots,
)
