"""What of a weight file would not convert: leaves that loading refuses or leaves out, each with its reason.

The rules are `checkpoints`' and `convert`'s, applied to names, shapes and types alone. Whether the rest fits a network
and its heads' sizes is known only when there is one: then loading lists what doesn't.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from interop.inspect.recognition import Recognised, learner_arrays
from interop.learners import byol_pytorch, deepmind, lightly
from interop.learners.fitting import MLP

__all__ = ["LEFT_OUT", "REFUSED", "Refusal", "refusals"]

REFUSED, LEFT_OUT = "refused", "left out"

EMBEDDED = {"D0": "C", "D0-sim": "C-sim", "A": "C", "B": "C"}
"""Layouts whose heads, as `recognition` names them, are another's."""

BIASLESS = {"lightly": lightly.BIASLESS, "deepmind": deepmind.BIASLESS}
FLOATING = ("weight", "bias", "running_mean", "running_var")
PARTS = {"online": ("projector", "predictor"), "target": ("projector",)}


class Refusal(NamedTuple):
    """One leaf: its name in the file, `REFUSED` (loading ends with an error) or `LEFT_OUT`, and why."""

    name: str
    verdict: str
    reason: str


def refusals(found: Recognised, state_dict: Mapping[str, np.ndarray]) -> list[Refusal]:
    """Everything that `load_byol_checkpoint`, or `from_torch_state_dict` for a network by itself, wouldn't take.

    Args:
        found: what `recognition.recognised` says about `state_dict`.

    Example:
        >>> from interop.inspect.recognition import recognised
        >>> network = {"fc.bias": np.zeros(2, np.complex64)}
        >>> [(one.name, one.verdict) for one in refusals(recognised(network), network)]
        [('fc.bias', 'refused')]
    """
    left_out = [Refusal(name, LEFT_OUT, reason) for name, reason in found.left_out.items()]
    if not found.source:
        return [*_prefixed(found), *_network_types(found, state_dict), *left_out]
    strangers = list(_strangers(found, state_dict))
    absent = _absent(found, [refusal.name.removeprefix(found.owner) for refusal in strangers])
    return [*strangers, *absent, *_learner_types(found, state_dict), *_disagreeing(found, state_dict), *left_out]


def _prefixed(found: Recognised) -> Iterator[Refusal]:
    if found.owner and not found.title:
        yield Refusal(
            f"{found.owner}*", REFUSED, "the network's names have this in front; byol-jax import takes it off"
        )


def _strangers(found: Recognised, state_dict: Mapping[str, np.ndarray]) -> Iterator[Refusal]:
    """Names with no place in a learner, and layers that its heads haven't."""
    wanted = _heads(found)
    for name in state_dict:
        ours = found.names.get(name)
        if name in found.left_out:
            continue
        if ours is None:
            queue = name.removeprefix(found.owner).startswith("queue")
            yield Refusal(name, REFUSED, "a queue, which BYOL hasn't" if queue else "no part of such a learner")
        elif not ours.startswith(("online.encoder.", "target.encoder.")) and ours not in wanted:
            yield Refusal(name, REFUSED, "no layer of such a head")


def _absent(found: Recognised, strangers: Collection[str]) -> Iterator[Refusal]:
    """Heads' leaves that aren't there, with the nearest stranger, and a network that isn't."""
    present = set(found.names.values())
    optional = {f"{network}.{bias}" for network in PARTS for bias in BIASLESS.get(found.source, ())}
    has_target = any(ours.startswith("target.") for ours in present)
    for ours in sorted(_heads(found) - present - optional):
        if has_target or ours.startswith("online."):
            alike = difflib.get_close_matches(ours, strangers, n=1, cutoff=0.6)
            yield Refusal(ours, REFUSED, "isn't there" + (f" (nearest: {alike[0]})" if alike else ""))
    if found.layout in ("C", "D0", "D1") and not has_target:
        reason = "isn't there: call the learner once after reset_moving_average(), then save"
        yield Refusal("target_encoder.*", REFUSED, reason)


def _heads(found: Recognised) -> frozenset[str]:
    """The names that the heads' leaves have."""
    layout = EMBEDDED.get(found.layout, found.layout)
    projector = byol_pytorch.PROJECTORS.get(layout, MLP)
    rows = {"projector": projector, "predictor": MLP}
    networks = ("online",) if layout.endswith("-sim") else tuple(PARTS)
    return frozenset(
        f"{network}.{part}.{leaf}" for network in networks for part in PARTS[network] for leaf in rows[part]
    )


def _learner_types(found: Recognised, state_dict: Mapping[str, np.ndarray]) -> Iterator[Refusal]:
    """A learner's leaves are float32, its counters integers."""
    for name in found.names:
        dtype = state_dict[name].dtype
        counter = re.split(r"[./]", name)[-1] in ("num_batches_tracked", "counter")
        if counter and dtype.kind not in "iu":
            yield Refusal(name, REFUSED, f"{dtype}, where a counter is an integer")
        elif not counter and dtype != np.float32:
            yield Refusal(name, REFUSED, f"{dtype}, where a learner has float32: convert it first")


def _network_types(found: Recognised, state_dict: Mapping[str, np.ndarray]) -> Iterator[Refusal]:
    """Parameters and statistics that aren't floating; buffers of a traced network may be anything."""
    for name in found.names:
        dtype, leaf = state_dict[name].dtype, name.rpartition(".")[2]
        if dtype.kind == "c" or (dtype.kind in "biu" and leaf in FLOATING):
            yield Refusal(name, REFUSED, f"{dtype}, where a network has floating numbers (quantised ones aren't read)")


def _disagreeing(found: Recognised, state_dict: Mapping[str, np.ndarray]) -> Iterator[Refusal]:
    """byol-pytorch's two names for a tensor of its network, with unlike bits."""
    if found.source != "byol_pytorch":
        return
    kept = learner_arrays(found, state_dict)
    for name, ours in found.names.items():
        if name.startswith(f"{found.owner}{byol_pytorch.ALIAS}.") and (
            state_dict[name].tobytes() != kept[ours].tobytes()
        ):
            yield Refusal(name, REFUSED, f"differs from {found.owner}online_encoder.{name.removeprefix(found.owner)}")
