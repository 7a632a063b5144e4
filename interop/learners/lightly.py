"""lightly's BYOL learners: backbone, projection and prediction head, and a momentum copy of the first two.

    backbone.*, {backbone_momentum, momentum_backbone, teacher_backbone}.*      {online, target}.encoder.*
    projection_head.layers.*, and its momentum copy under the same three names  {online, target}.projector.*
    prediction_head.layers.*                                                    online.predictor.*
    online_classifier.classification_head.*                                     online.encoder.fc.*

Backbones are mostly cut ResNets (`cut_names`). The heads' first linear layer has no bias since 1.2.13; heads before
1.1.19 lack ".layers". Loss, schedule and optimiser are the user's, as in lightly itself. Source: lightly 1.5.26,
`models/modules/heads.py`, `examples/` and `benchmarks/`.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import CheckpointFormatError
from interop.learners.cut_names import FIRST_STAGE, cut_name
from interop.learners.fitting import StemWarning, check_heads, definition_rank, own_arrays
from interop.learners.library import Difference, Library, Origin, match_roots, whole_names
from interop.learners.plain import check_representation, load_learner, without_first_bias

__all__ = ["LIBRARY", "recognises"]


class Layout(NamedTuple):
    """How a kind of lightly program names the momentum copy of a part, and where its backbone's stages begin (None:
    torchvision's own names); whether it has an online classifier."""

    momentum: str
    first_stage: int | None
    classifier: bool = False


LAYOUTS = {
    "lightly-examples": Layout("{}_momentum", FIRST_STAGE["torchvision"]),
    "lightly-cifar": Layout("{}_momentum", FIRST_STAGE["lightly"]),
    "lightly-models": Layout("momentum_{}", FIRST_STAGE["torchvision"]),
    "lightly-benchmarks": Layout("teacher_{}", None, classifier=True),
}
"""The example scripts (and benchmarks in the documentation), the CIFAR-10 one with lightly's own ResNet, the class
`lightly.models.BYOL` of 1.1.8 to 1.5.26, and the ImageNet benchmark."""

ONLINE = {"encoder": "backbone", "projector": "projection_head", "predictor": "prediction_head"}
CLASSIFIER = "online_classifier.classification_head"
BIASLESS = ("projector.0.bias", "predictor.0.bias")
NO_RELU = Difference(
    StemWarning,
    "no ReLU behind the stem",
    "lightly's network for CIFAR has no ReLU behind its stem where it is cut as in lightly's examples, nets.resnet has "
    "one: features are far off; interop.from_torch_module of the cut network computes the same",
)


def _momentum(name: str) -> dict[str, str]:
    return {part: LAYOUTS[name].momentum.format(root) for part, root in ONLINE.items() if part != "predictor"}


def _roots() -> dict[str, str]:
    """What stands in front of a key, longest first, and what takes its place."""
    roots = {CLASSIFIER: "online.encoder.fc"}
    for network, parts in [("online", ONLINE), *(("target", _momentum(name)) for name in LAYOUTS)]:
        for part, root in parts.items():
            if part != "encoder":
                roots[f"{root}.layers"] = f"{network}.{part}"
            roots[root] = f"{network}.{part}"
    return dict(sorted(roots.items(), key=lambda item: -len(item[0])))


ROOTS = _roots()


def recognises(keys: Collection[str]) -> bool:
    """Whether a state dict with these keys is a lightly learner's.

    Example:
        >>> recognises(["backbone.0.weight", "prediction_head.layers.0.weight"])
        True
    """
    return all(any(key.startswith(f"{root}.") for key in keys) for root in ("backbone", "prediction_head"))


def from_state_dict(state_dict: Mapping[str, Any], *, like: Any, where: str) -> Any:
    """`like` with the networks of a lightly learner, of any of its layouts and releases.

    Raises:
        CheckpointFormatError: no such learner, or `like` has other heads.
        StateDictMismatchError: lists everything that doesn't fit.
    """
    if not recognises(state_dict):
        raise CheckpointFormatError(f"{where}: no lightly learner: expected backbone.*, prediction_head.* and others")
    return load_learner(state_dict, ROOTS, like=like, library="lightly", where=where, biasless=BIASLESS)


def to_state_dict(state: Any, *, layout: str, where: str) -> dict[str, np.ndarray]:
    """What a lightly learner has for this state: all of its keys in its order.

    The representation must be the pooled one: an unused `fc` becomes the benchmark's online classifier and has no place
    in the other layouts. The heads' first bias, which batch norm takes away again, is taken off the running mean.

    Args:
        layout: one of `LAYOUTS`; anything else is "lightly-examples".

    Raises:
        CheckpointFormatError: the state's heads, or its representation, are none that lightly has.
    """
    kind = LAYOUTS.get(layout, LAYOUTS["lightly-examples"])
    arrays = own_arrays(state)
    check_heads(arrays, library="lightly", where=where)
    check_representation(arrays, library="lightly", where=where)
    arrays = without_first_bias(arrays)
    roots = {f"online.{part}.": f"{root}." for part, root in ONLINE.items()}
    roots |= {f"target.{part}.": f"{kind.momentum.format(ONLINE[part])}." for part in ("encoder", "projector")}
    written = {}
    for root, theirs in roots.items():
        names = {key.removeprefix(root): key for key in arrays if key.startswith(root)}
        if root.endswith(".encoder."):
            names = {name: key for name, key in names.items() if not name.startswith("fc.")}
            if kind.first_stage is not None:
                names = {cut_name(name, kind.first_stage): key for name, key in names.items()}
        else:
            names = {f"layers.{name}": key for name, key in names.items()}
        written |= {f"{theirs}{name}": arrays[names[name]] for name in sorted(names, key=definition_rank)}
    if kind.classifier:
        classifier = {f"{CLASSIFIER}.{leaf}": arrays.get(f"online.encoder.fc.{leaf}") for leaf in ("weight", "bias")}
        written |= {key: array for key, array in classifier.items() if array is not None}
    return written


def origin(keys: Collection[str]) -> Origin:
    """Whose the names of a lightly learner are."""
    names = whole_names(match_roots(keys, {f"{theirs}.": f"{ours}." for theirs, ours in ROOTS.items()}))
    starts = {key.partition(".")[0] for key in keys}
    momentum = {kind: layout.momentum.format("backbone") for kind, layout in LAYOUTS.items()}
    kind = next((kind for kind, root in momentum.items() if root in starts), "")
    if kind == "lightly-examples" and any(re.match(r"backbone\.[23]\.0\.conv1\.", key) for key in keys):
        kind = "lightly-cifar"
    if not any(key.startswith("prediction_head.layers.") for key in keys):
        releases = "1.1.8 to 1.1.18"
    else:
        releases = "1.1.19 to 1.2.12" if "prediction_head.layers.0.bias" in keys else "1.2.13 and later"
    return Origin(f"lightly, {kind or 'without a target'} ({releases})", names, {})


def difference(state_dict: Mapping[str, Any]) -> Difference | None:
    """The stem of lightly's own ResNet, where it is cut.

    Example:
        >>> difference({"backbone.2.0.conv1.weight": np.zeros((4, 4, 3, 3))}).detail
        'no ReLU behind the stem'
        >>> difference({"backbone.4.0.conv1.weight": np.zeros((4, 4, 3, 3))})
    """
    return NO_RELU if f"backbone.{FIRST_STAGE['lightly']}.0.conv1.weight" in state_dict else None


LIBRARY = Library(
    layouts=LAYOUTS,
    recognises=recognises,
    origin=origin,
    from_state_dict=from_state_dict,
    to_state_dict=to_state_dict,
    difference=difference,
    biasless=BIASLESS,
    has_classifier=True,
    parameter_roots=lambda keys: ROOTS,
)
