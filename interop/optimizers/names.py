"""Which parameter each of a torch optimiser's numbers stands for: optimisers count parameters, they don't name them.

Torch's names, in the optimiser's order, become ours: "net.0.weight" of byol-pytorch, "backbone.0.weight" of lightly,
"backbone.conv1.weight" of solo-learn are all "encoder.conv1.weight". Where no names are given, the order in which
modules are defined is found by shapes, and by `fitting.definition_rank` only where that can't be wrong: numbered
children, torchvision's ResNets, the parts of a learner. Those of several groups may have any order, and are found by
shapes alone. Else names are asked for.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from byol_jax.errors import StateDictMismatchError
from interop.formats.containers import is_extra_state, without_wrappers
from interop.learners.checkpoint import SOURCES
from interop.learners.cut_names import find_renaming
from interop.learners.fitting import CLASSIFIER, definition_rank
from interop.learners.plain import translate_names
from interop.learners.reading import without_owner
from interop.weights.names import LEARNER_PARTS
from interop.weights.transformers import own_key

__all__ = ["Positions", "is_learner", "parameters_of", "positions_by_name", "positions_by_shape"]

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""What a state dict has beside parameters."""

PARTS = ("encoder", "projector", "predictor")
"""A learner's parts in the order in which all three libraries define them."""

ASK = (
    "give parameter_names=[name for name, _ in module.named_parameters()] of the module that it trains, in the order "
    "of param_groups"
)

CERTAIN = (re.compile(r"\d+"), re.compile(r"(conv|bn|layer)\d+|downsample|fc"), re.compile("|".join(PARTS)))
"""Names whose order `definition_rank` certainly knows, among each other: numbered ones, a ResNet's, a learner's."""

AT_MOST = 8

Shape = tuple[int, ...]


class Positions(NamedTuple):
    """A torch optimiser's parameters by our keys.

    Attributes:
        positions: our key, "encoder.conv1.weight", to the parameter's place in the optimiser.
        labels: torch's own name at each place; our key, or the number, where no names were given.
        optional: our keys that one side may lack: biases that a library's heads lack and that change nothing, and
            the classifier that it trains beside.
    """

    positions: dict[str, int]
    labels: list[str]
    optional: Collection[str] = ()


def parameters_of(names: Iterable[str]) -> list[str]:
    """The parameters among the names of a state dict, or of `named_parameters()`; extra state is none.

    Example:
        >>> parameters_of(["bn1.weight", "bn1.running_mean"])
        ['bn1.weight']
    """
    return [name for name in names if name.rpartition(".")[2] not in BUFFERS and not is_extra_state(name)]


def positions_by_name(names: Iterable[str], keys: Collection[str]) -> Positions:
    """The places of the parameters that have these torch names.

    Args:
        names: in the optimiser's order; buffers are passed over, and of several names of one tensor all but the first.
        keys: ours, of a learner ("encoder.…", "projector.…", "predictor.…") or of a network by itself.

    Example:
        >>> keys = ["encoder.0.weight", "projector.0.weight", "predictor.0.weight"]
        >>> names = ["net.0.weight", "online_encoder.net.0.weight", "online_encoder.projector.0.weight"]
        >>> positions_by_name(names, keys).positions
        {'encoder.0.weight': 0, 'projector.0.weight': 1}
    """
    names = parameters_of(names)
    reverse = {name: name for name in reversed(names)}  # where several names become one, the last one counts
    given = without_wrappers(reverse, where="parameter_names")
    optional: Collection[str] = ()
    if is_learner(keys):
        owned, optional = _names_of_learner(given, [f"online.{key}" for key in keys])
        owned = {key.removeprefix("online."): name for key, name in owned.items()}
    else:
        owned = _names_of_network(given, keys)
    ours = {name: key for key, name in owned.items()}
    labels = [name for name in names if name in ours]
    positions = {ours[name]: place for place, name in enumerate(labels) if ours[name] in {*keys, *optional}}
    return Positions(positions, labels, optional)


def is_learner(keys: Collection[str]) -> bool:
    """Whether these are keys of a whole learner, whose encoder may be called otherwise by other libraries.

    Example:
        >>> is_learner(["encoder.conv1.weight", "predictor.0.bias"]), is_learner(["conv1.weight"])
        (True, False)
    """
    parts = {key.partition(".")[0] for key in keys}
    return "encoder" in parts and parts <= LEARNER_PARTS


def _names_of_network(given: Mapping[str, str], keys: Collection[str]) -> Mapping[str, str]:
    """The names without what a module that holds the network put in front of them."""
    stripped: Mapping[str, str] | None = given
    while stripped is not None and not set(keys) & set(stripped):
        stripped = without_owner(stripped)
    given = given if stripped is None else stripped
    rename = _torchvision_names(given, keys)
    return {rename(key): name for key, name in given.items()}


def _torchvision_names(given: Collection[str], wanted: Collection[str]) -> Callable[[str], str]:
    """What gives a cut ResNet, and timm's vision transformers, torchvision's names, which native networks have."""
    rename_cut = find_renaming(given, wanted)
    return lambda key: own_key(rename_cut(key), wanted)


def _names_of_learner(given: Mapping[str, str], keys: Collection[str]) -> tuple[dict[str, str], Collection[str]]:
    """The names as "online.encoder.…" or "target.encoder.…", and the keys that are optional."""
    inner: Mapping[str, str] | None = given
    while inner is not None:
        for library in SOURCES.values():
            if library.parameter_roots is not None and library.recognises(inner):
                optional = (*library.biasless, *(CLASSIFIER if library.has_classifier else ()))
                return translate_names(inner, library.parameter_roots(inner), keys, _torchvision_names), optional
        inner = without_owner(inner)
    return {f"online.{key}": name for key, name in given.items()}, ()


def _definition_order(keys: Mapping[str, Shape], shapes: Sequence[Shape | None]) -> list[str]:
    """The keys in the order in which their module defines them.

    Taken are, time and again, the first parameters by the rule whose shapes fit. A layer's own are weight, then bias.

    Args:
        keys: ours, with the shapes that they have in torch.
        shapes: of the optimiser's parameters, in its order; None where it doesn't tell. As many as `keys`.

    Raises:
        StateDictMismatchError: no order has these shapes, or several have and the rule doesn't decide between them.

    Example:
        >>> _definition_order({"out.weight": (2, 8), "hidden.weight": (8, 4)}, [(8, 4), (2, 8)])
        ['hidden.weight', 'out.weight']
    """
    layers: dict[str, list[str]] = {}
    for key in sorted(keys, key=_rule):
        layer, _, leaf = key.rpartition(".")
        layers.setdefault(layer if leaf in ("weight", "bias") else key, []).append(key)
    return _order_of_layers(list(layers.values()), keys, shapes, _is_decided)


def _order_of_shapes(keys: Mapping[str, Shape], shapes: Sequence[Shape | None]) -> list[str]:
    """The keys in the order that their shapes alone tell; see `_definition_order`.

    Example:
        >>> _order_of_shapes({"0.weight": (8, 4), "2.weight": (2, 8)}, [(2, 8), (8, 4)])
        ['2.weight', '0.weight']
    """
    return _order_of_layers([[key] for key in sorted(keys, key=_rule)], keys, shapes, lambda one, other: False)


def _order_of_layers(
    layers: Iterable[list[str]],
    keys: Mapping[str, Shape],
    shapes: Sequence[Shape | None],
    is_decided: Callable[[str, str], bool],
) -> list[str]:
    """Of layers of keys the first one that fits, time and again, unless another fits that `is_decided` doesn't put
    behind it."""
    left, order = list(layers), []
    while left:
        ahead = shapes[len(order) :]
        fitting = [layer for layer in left if _fits([keys[key] for key in layer], ahead)]
        if not fitting:
            there = _first_names(f"{key} {list(keys[key])}" for layer in left for key in layer)
            raise StateDictMismatchError(
                f"no order of the parameters fits the torch optimiser's shapes: number {len(order)} has "
                f"{list(ahead[0] or ())}, left are {there}; {ASK}"
            )
        unsure = [layer[0] for layer in fitting[1:] if not is_decided(fitting[0][0], layer[0])]
        if unsure:
            raise StateDictMismatchError(
                f"the torch optimiser counts its parameters and doesn't name them: number {len(order)} may be "
                f"{_first_names([fitting[0][0], *unsure])}; {ASK}"
            )
        order += fitting[0]
        left.remove(fitting[0])
    return order


def _rule(key: str) -> Any:
    part = key.partition(".")[0]
    return PARTS.index(part) if part in PARTS else len(PARTS), definition_rank(key)


def _fits(wanted: Sequence[Shape], ahead: Sequence[Shape | None]) -> bool:
    pairs = list(zip(wanted, ahead, strict=False))
    return len(pairs) == len(wanted) and all(given is None or given == shape for shape, given in pairs)


def _is_decided(one: str, other: str) -> bool:
    """Whether the rule certainly tells which of two keys is defined first: by the first segment that differs."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    differing = next(((a, b) for a, b in pairs if a != b), ("", ""))
    return any(all(kind.fullmatch(name) for name in differing) for kind in CERTAIN)


def _first_names(items: Iterable[str]) -> str:
    items = list(items)
    return ", ".join(items[:AT_MOST]) + (f" and {len(items) - AT_MOST} more" if len(items) > AT_MOST else "")


def positions_by_shape(
    keys: Mapping[str, Shape],
    known: Mapping[str, Shape],
    targets: int,
    shapes: Sequence[Shape | None],
    used: Sequence[int],
    *,
    is_in_order: bool,
) -> Positions:
    """The places of an optimiser's parameters where nothing but their shapes is known.

    Args:
        keys: ours, of the parameters with moments, with torch's shapes.
        known: the same of all parameters of the online network, those without moments included.
        targets: how many parameters may follow that the target network has.
        shapes: at each of the optimiser's places; None where it doesn't tell.
        used: the places at which there is some state.
        is_in_order: whether the places are in the order in which the module defines its parameters.

    Raises:
        StateDictMismatchError: their number or their shapes leave several possibilities, or none.
    """
    order_of, targets = (_definition_order, targets) if is_in_order else (_order_of_shapes, 0)
    if used and len(used) == len(keys):
        positions = dict(zip(order_of(keys, [shapes[place] for place in used]), used, strict=True))
    else:
        fitting = [some for some in (keys, known) if len(shapes) in (len(some), len(some) + targets)]
        if not fitting:
            raise StateDictMismatchError(
                f"the torch optimiser has {len(shapes)} parameters, {len(used)} with state, and names none; the "
                f"JAX side has {len(known)}, {len(keys)} with moments: {ASK}"
            )
        order = order_of(fitting[0], shapes[: len(fitting[0])])
        positions = {key: place for place, key in enumerate(order) if key in keys}
    owners = {place: key for key, place in positions.items()}
    return Positions(positions, [owners.get(place, f"number {place}") for place in range(len(shapes))])
