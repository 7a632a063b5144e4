"""What of a weight file would not convert: leaves that loading refuses or leaves out, each with its reason.

The rules of `learners` and `weights` are applied to names, shapes and types alone. Whether the rest fits a network and
its heads' sizes is known only when there is one: then loading lists what doesn't.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from interop.learners.checkpoint import SOURCES
from interop.learners.fitting import CONVERT, ENCODERS
from interop.learners.library import Origin
from interop.learners.states import NETWORKS
from interop.weights.names import absent_counters

__all__ = ["LEFT_OUT", "REFUSED", "Refusal", "refusals"]

REFUSED, LEFT_OUT = "refused", "left out"
UNPRINTABLE = "a name with characters that can't be printed"

FLOATING = ("weight", "bias", "running_mean", "running_var")


class Refusal(NamedTuple):
    """One leaf: its name in the file, `REFUSED` (loading ends with an error) or `LEFT_OUT`, and why."""

    name: str
    verdict: str
    reason: str


def refusals(origin: Origin, state_dict: Mapping[str, np.ndarray]) -> list[Refusal]:
    """Everything that `load_byol_checkpoint`, or `from_torch_state_dict` for a network by itself, wouldn't take.

    Args:
        origin: what `recognition.find_origin` says about `state_dict`.

    Example:
        >>> from interop.inspect.recognition import find_origin
        >>> network = {"fc.bias": np.zeros(2, np.complex64)}
        >>> [(one.name, one.verdict) for one in refusals(find_origin(network), network)]
        [('fc.bias', 'refused')]
    """
    left_out = [Refusal(name, LEFT_OUT, reason) for name, reason in origin.left_out.items()]
    unprintable = [Refusal(name, REFUSED, UNPRINTABLE) for name in state_dict if not name.isprintable()]
    left_out = [*unprintable, *left_out]
    if not origin.source:
        return [*_prefix_refusal(origin), *_network_types(origin, state_dict), *left_out]
    strangers = list(_strangers(origin, state_dict))
    absent = _missing_leaves(origin, [refusal.name.removeprefix(origin.owner) for refusal in strangers])
    others = [Refusal(name, REFUSED, reason) for name, reason in SOURCES[origin.source].refusals(origin, state_dict)]
    return [*strangers, *absent, *_learner_types(origin, state_dict), *others, *left_out]


def _prefix_refusal(origin: Origin) -> Iterator[Refusal]:
    if origin.owner and not origin.title:
        yield Refusal(
            f"{origin.owner}*", REFUSED, "the network's names have this in front; byol-jax import takes it off"
        )


def _strangers(origin: Origin, state_dict: Mapping[str, np.ndarray]) -> Iterator[Refusal]:
    """Names with no place in a learner, and layers that its heads don't have."""
    wanted = SOURCES[origin.source].heads(origin)
    for name in state_dict:
        ours = origin.names.get(name)
        if name in origin.left_out:
            continue
        if ours is None:
            queue = name.removeprefix(origin.owner).startswith("queue")
            yield Refusal(name, REFUSED, "a queue, which BYOL doesn't have" if queue else "no part of such a learner")
        elif not ours.startswith(ENCODERS) and ours not in wanted:
            yield Refusal(name, REFUSED, "no layer of such a head")


def _missing_leaves(origin: Origin, strangers: Collection[str]) -> Iterator[Refusal]:
    """Heads' leaves that aren't there, with the nearest stranger."""
    present = set(origin.names.values())
    library = SOURCES[origin.source]
    optional = {f"{network}.{bias}" for network in NETWORKS for bias in library.biasless}
    optional |= set(absent_counters(present, library.heads(origin)))
    has_target = any(ours.startswith("target.") for ours in present)
    for ours in sorted(library.heads(origin) - present - optional):
        if has_target or ours.startswith("online."):
            alike = difflib.get_close_matches(ours, strangers, n=1, cutoff=0.6)
            yield Refusal(ours, REFUSED, "isn't there" + (f" (nearest: {alike[0]})" if alike else ""))


def _learner_types(origin: Origin, state_dict: Mapping[str, np.ndarray]) -> Iterator[Refusal]:
    """A learner's leaves are float32, its counters integers."""
    for name in origin.names:
        dtype = state_dict[name].dtype
        counter = re.split(r"[./]", name)[-1] in ("num_batches_tracked", "counter")
        if counter and dtype.kind not in "iu":
            yield Refusal(name, REFUSED, f"{dtype}, where a counter is an integer")
        elif not counter and dtype != np.float32:
            yield Refusal(name, REFUSED, f"{dtype}, where a learner has float32: {CONVERT} converts")


def _network_types(origin: Origin, state_dict: Mapping[str, np.ndarray]) -> Iterator[Refusal]:
    """Parameters and statistics that aren't floating; buffers of a traced network may be anything."""
    for name in origin.names:
        dtype, leaf = state_dict[name].dtype, name.rpartition(".")[2]
        if dtype.kind == "c" or (dtype.kind in "biu" and leaf in FLOATING):
            yield Refusal(name, REFUSED, f"{dtype}, where a network has floating numbers (quantised ones aren't read)")
