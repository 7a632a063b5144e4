"""byol-pytorch's learners of other releases than 0.9.1, under the names that it has now, and back.

    A    0.0.1 to 0.5.1    heads below "net", no second names for the network
    B    0.5.2 to 0.5.7    heads below "net"
    C    0.6.0 to 0.8.2    as now, without simplicial embeddings
    D0   0.9.0             heads below "0", simplicial embeddings behind them

A and B compute what C computes. Without momentum they have C's heads, not C-sim's, and no target network; neither had
releases up to 0.0.2 right after an update, which take a fresh copy then. Source: the released packages.
"""

from collections.abc import Mapping
from typing import Any

from interop.errors import warn_caller
from interop.learners.fitting import AbsentTargetWarning, EmbeddingsWarning

__all__ = ["OLDER", "as_current", "as_older"]

OLDER = {"A": "C", "B": "C", "D0": "C", "D0-sim": "C-sim"}
"""Layouts that are written as well, and whose heads they have."""

HEADS = ("online_encoder.projector.", "online_predictor.", "target_encoder.projector.")
BELOW = {"A or B": "net.", "A": "net.", "B": "net.", "D0": "0.", "D0-sim": "0."}
"""Where each layout has its heads' layers."""

EMBEDDINGS = (
    "byol-pytorch 0.9.0 (layout {}) has simplicial embeddings behind both heads, which learners here lack: "
    "projections and losses differ, the weights are the same"
)


def as_current(given: Mapping[str, Any], layout: str | None, *, where: str) -> dict[str, Any]:
    """A learner's state dict of any release with its heads named as in 0.9.1; an absent target as a copy.

    Warns of D0's embeddings, which are left out, and of a copy that stands in for a target.

    Example:
        >>> as_current({"online_predictor.net.0.bias": 1, "target_encoder.x": 2}, "A or B", where="x")
        {'online_predictor.0.bias': 1, 'target_encoder.x': 2}
    """
    if layout not in BELOW:
        return dict(given)
    named = {_drop_level(key, BELOW[layout]): value for key, value in given.items()}
    if layout.startswith("D0"):
        warn_caller(EmbeddingsWarning(f"{where}: {EMBEDDINGS.format(layout)}"))
        return named
    if any(key.startswith("target_encoder.") for key in named):
        return named
    message = f"{where}: holds no target network; a copy of the online network starts as one, as byol-pytorch does it"
    warn_caller(AbsentTargetWarning(message))
    online = {key: value for key, value in named.items() if key.startswith("online_encoder.")}
    if not any(key.startswith("online_encoder.net.") for key in online):  # safetensors kept the other name only
        online |= {f"online_encoder.{key}": value for key, value in named.items() if key.startswith("net.")}
    return named | {key.replace("online_encoder.", "target_encoder.", 1): value for key, value in online.items()}


def as_older(state_dict: Mapping[str, Any], layout: str, *, where: str) -> dict[str, Any]:
    """A state dict of layout C or C-sim as one of `OLDER` has it; warns of the embeddings that D0 will compute.

    Example:
        >>> as_older({"net.x": 1, "online_predictor.0.bias": 2}, "A", where="x")
        {'online_predictor.net.0.bias': 2}
    """
    if layout.startswith("D0"):
        warn_caller(EmbeddingsWarning(f"{where}: {EMBEDDINGS.format(layout)}"))
    kept = {key: value for key, value in state_dict.items() if layout != "A" or not key.startswith("net.")}
    return {_insert_level(key, BELOW[layout]): value for key, value in kept.items()}


def _drop_level(key: str, level: str) -> str:
    root = next((root for root in HEADS if key.startswith(root + level)), None)
    return key if root is None else root + key.removeprefix(root + level)


def _insert_level(key: str, level: str) -> str:
    root = next((root for root in HEADS if key.startswith(root)), None)
    return key if root is None else root + level + key.removeprefix(root)
