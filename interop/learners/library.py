"""What is known of a library: one `Library` holds all of it, and nothing elsewhere asks for a library by its name."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from interop.arrays import as_numpy
from interop.errors import warn_caller
from interop.learners.cut_names import find_renaming
from interop.learners.fitting import ENCODERS, MLP
from interop.learners.states import state_leaves

__all__ = [
    "NETWORK_ALONE",
    "Difference",
    "Library",
    "Origin",
    "difference_in",
    "match_roots",
    "mlp_heads",
    "warn_of_difference",
    "whole_names",
]

NETWORK_ALONE = (
    "its network alone is read by interop.open_weights(FILE).variables(encoder, like=variables), and on the command "
    "line by byol-jax import FILE --out encoder.safetensors"
)
"""The advice about a file that holds no learner that can be read, whatever its network's names."""

SETTLE = "; encoder= tells how it pads, and settles it"


class Origin(NamedTuple):
    """Where a state dict comes from, as far as its names tell.

    Attributes:
        title: for people: the library, its layout and its releases; "" for a network by itself.
        names: the file's name to ours, in the file's order. Two names of one tensor share one of ours.
        left_out: the file's names that loading leaves out, each with the reason.
        owner: what stands before the names ("learner."), as a module that holds the learner puts it there.
        layout: byol-pytorch's ("A" to "D1-sim"); "" otherwise.
        source: a key of `checkpoint.SOURCES`; "" for a network by itself, or a learner that isn't read.
    """

    title: str
    names: dict[str, str]
    left_out: dict[str, str]
    owner: str = ""
    layout: str = ""
    source: str = ""


class Difference(NamedTuple):
    """What a network of `nets.resnet` computes otherwise than the one that the weights were trained in.

    Attributes:
        category: of the warning.
        detail: a few words, for a list of details.
        sentence: what differs, and what to do about it.
        padding: the rule ("same") with which the network computes the same; None where padding doesn't matter.
        unsettled: the sentence where it isn't known how the network pads.
    """

    category: type[Warning]
    detail: str
    sentence: str
    padding: str | None = None
    unsettled: str = ""


def mlp_heads(origin: Origin) -> frozenset[str]:
    """The names, among ours, of heads that are Linear, batch norm, ReLU, Linear."""
    parts = ("online.projector.", "online.predictor.", "target.projector.")
    return frozenset(part + leaf for part in parts for leaf in MLP)


def _same_array(name: str, array: np.ndarray) -> np.ndarray:
    return array


def _nothing(*_: Any) -> None:
    return None


def _no_refusals(origin: Origin, state_dict: Mapping[str, np.ndarray]) -> Iterable[tuple[str, str]]:
    return ()


@dataclass(frozen=True)
class Library:
    """A library whose BYOL learners are read, and mostly written.

    Attributes:
        layouts: names of what is written; none where nothing is.
        recognises: `recognises(keys)`: whether a state dict with these keys is a learner of this library's.
        origin: `origin(keys)`, for keys that it recognises; `source` is filled in by `inspect.recognition`.
        from_state_dict: `from_state_dict(state_dict, *, like, where)`: the training state `like` with its networks.
        to_state_dict: `to_state_dict(state, *, layout, where)`: what the library has for a training state.
        torch_array: `torch_array(name, array)`: one of its tensors in torch's layout; itself, as a rule.
        difference: `difference(state_dict)`: what a native network computes otherwise, for names without owner.
        heads: `heads(origin)`: our names of all leaves of its heads.
        biasless: heads' biases ("projector.3.bias") that it lacks, which load as zeros.
        has_classifier: whether a linear classifier is trained beside the learner.
        parameter_roots: `parameter_roots(keys)`: what stands in front of its parameters' names, and what takes its
            place, for optimisers' states; None where no torch module has these names.
        refusals: `refusals(origin, state_dict)`: (name, reason) of what else loading refuses.
    """

    layouts: Collection[str]
    recognises: Callable[[Collection[str]], bool]
    origin: Callable[[Collection[str]], Origin]
    from_state_dict: Callable[..., Any]
    to_state_dict: Callable[..., dict[str, np.ndarray]]
    torch_array: Callable[[str, np.ndarray], np.ndarray] = _same_array
    difference: Callable[[Mapping[str, Any]], Difference | None] = _nothing
    heads: Callable[[Origin], frozenset[str]] = mlp_heads
    biasless: Collection[str] = ()
    has_classifier: bool = False
    parameter_roots: Callable[[Collection[str]], Mapping[str, str]] | None = None
    refusals: Callable[[Origin, Mapping[str, np.ndarray]], Iterable[tuple[str, str]]] = _no_refusals

    def arrays(self, origin: Origin, state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The state dict's arrays under our names, in torch's layouts; what has no place among them isn't there."""
        return {
            ours: self.torch_array(name.removeprefix(origin.owner), as_numpy(state_dict[name], name))
            for name, ours in origin.names.items()
        }


def match_roots(keys: Collection[str], roots: Mapping[str, str]) -> dict[str, str]:
    """Each key below one of `roots`, with what takes the root's place; the first root that fits counts.

    Example:
        >>> match_roots(["backbone.fc.bias", "step"], {"backbone.": "online.encoder."})
        {'backbone.fc.bias': 'online.encoder.fc.bias'}
    """
    found = {key: next((root for root in roots if key.startswith(root)), None) for key in keys}
    return {key: roots[root] + key.removeprefix(root) for key, root in found.items() if root is not None}


def whole_names(names: Mapping[str, str]) -> dict[str, str]:
    """The same names, those of a cut ResNet made torchvision's.

    Example:
        >>> whole_names({"backbone.4.0.conv1.weight": "online.encoder.4.0.conv1.weight"})
        {'backbone.4.0.conv1.weight': 'online.encoder.layer1.0.conv1.weight'}
    """
    whole = dict(names)
    for front in ENCODERS:
        own = {key: ours.removeprefix(front) for key, ours in names.items() if ours.startswith(front)}
        rename = find_renaming(own.values(), ("conv1.weight",))
        whole |= {key: front + rename(ours) for key, ours in own.items()}
    return whole


def difference_in(difference: Difference | None, encoder: Any) -> Difference | None:
    """What this encoder computes otherwise; None where that is nothing, or isn't known.

    Only `nets.resnet` says how it pads. A traced network computes what its own code says.
    """
    padding = encoder.facts.padding
    if difference is None or difference.padding is None:
        return None if padding is None else difference
    if padding is None:
        return difference._replace(sentence=difference.unsettled)
    return None if padding == difference.padding else difference


def warn_of_difference(difference: Difference | None, *, state: Any, where: str, encoder: Any = None) -> None:
    """Warns of what the network of `state` computes otherwise.

    Args:
        state: a `TrainState`.
        where: the file, in front of the sentence.
        encoder: the network; without it only its leaves' names tell whether it is one of `nets.resnet`'s.

    Raises:
        StateDictMismatchError: there is a difference, and `state` is no `TrainState`.
    """
    if difference is None:
        return
    if encoder is not None:
        found = difference_in(difference, encoder)
    else:
        is_native = "online/encoder/conv1/kernel" in state_leaves(state)
        found = difference if is_native else None
        if difference.padding is not None:
            found = difference._replace(sentence=difference.unsettled + (SETTLE if is_native else ""))
    if found is not None:
        warn_caller(found.category(f"{where}: {found.sentence}"))
