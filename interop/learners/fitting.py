"""A training state's leaves under torch's names, and arrays under such names fitted into a state.

    online.encoder.conv1.weight      online.projector.{0,1,3}.*      online.predictor.{0,1,3}.*      target.…

These are our names: every library's file here translates its own to and from them. What is missing, unexpected, of
another shape or type is one error. Files are opened elsewhere.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from byol_jax.errors import CheckpointFormatError
from interop.arrays import as_numpy
from interop.errors import warn_caller
from interop.learners.states import NETWORKS, replace_networks, state_leaves
from interop.weights.architectures import recognise
from interop.weights.mismatch import Mismatch
from interop.weights.names import Leaf, torch_names
from interop.weights.packing import pack
from interop.weights.state_dict import match_leaves, to_torch_array

__all__ = [
    "CLASSIFIER",
    "ENCODERS",
    "MLP",
    "NORM",
    "STATS",
    "AbsentHeadsWarning",
    "AbsentTargetWarning",
    "EmbeddingsWarning",
    "PaddingWarning",
    "StemWarning",
    "check_heads",
    "definition_rank",
    "load_networks",
    "network_in_words",
    "own_arrays",
    "own_names",
    "prefix_names",
    "shape_hints",
]

ENCODERS = ("online.encoder.", "target.encoder.")

CLASSIFIER = ("encoder.fc.weight", "encoder.fc.bias")
"""Where other libraries' online linear classifier is kept: torchvision's `fc`, which ResNets here have too."""

ORDER_OF_LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""A layer's tensors: parameters first, then buffers."""

DEFINED_LAST = ("fc", "head", "heads")
"""Classifiers, defined last."""


class AbsentHeadsWarning(UserWarning):
    """A file holds a network alone; the projector and the predictor are those of the state it is loaded into."""


class AbsentTargetWarning(UserWarning):
    """A file holds no target network; the online network's copy stands in its place."""


class EmbeddingsWarning(UserWarning):
    """byol-pytorch 0.9.0's simplicial embeddings stand where nothing here has any; projections and losses differ."""


class PaddingWarning(UserWarning):
    """The network pads otherwise than the one that the weights were trained in."""


class StemWarning(UserWarning):
    """The network has another activation behind its stem than the one that the weights were trained in."""


def prefix_names(prefix: str, *names: Iterable[str]) -> frozenset[str]:
    """All names with `prefix` in front."""
    return frozenset(prefix + name for group in names for name in group)


STATS = ("running_mean", "running_var", "num_batches_tracked")
LINEAR, NORM = ("weight", "bias"), ("weight", "bias", *STATS)
MLP = prefix_names("0.", LINEAR) | prefix_names("1.", NORM) | prefix_names("3.", LINEAR)
"""Keys of `byol_jax.nets.heads.mlp`: Linear, batch norm, ReLU, Linear."""

CONVERT = "byol-jax import FILE --layout NAME --dtype float32"
"""What changes the types of a whole learner's file."""

WIDTH = "a hidden_layer (or image_size) that gives {} features"
OPTIONS = {
    "projector/0/kernel": (WIDTH, "projection_hidden_size={}"),
    "projector/0/0/kernel": (WIDTH, "projection_hidden_size={}"),
    "predictor/0/kernel": ("projection_size={}", "prediction_hidden_size={}"),
}
"""Which options of `make_learner` decide a kernel's [in, out]."""


def own_names(leaves: Mapping[str, Any]) -> dict[str, Leaf]:
    """The torch name, with the network in front, of every path of `state_leaves`.

    Example:
        >>> own_names({"online/encoder/conv1/kernel": 0})["online/encoder/conv1/kernel"].key
        'online.encoder.conv1.weight'
    """
    names = {}
    for network in NETWORKS:
        paths = [path.removeprefix(f"{network}/") for path in leaves if path.startswith(f"{network}/")]
        for path, leaf in torch_names(paths).items():
            names[f"{network}/{path}"] = Leaf(f"{network}.{leaf.key}", leaf.rule)
    return names


def own_arrays(state: Any) -> dict[str, np.ndarray]:
    """A training state's networks under those names, in torch's layouts; fresh arrays, counters as int64."""
    leaves = state_leaves(state)
    names = own_names(leaves)
    arrays = {names[path].key: to_torch_array(as_numpy(leaf, path), names[path].rule) for path, leaf in leaves.items()}
    return pack(arrays)


def check_heads(keys: Collection[str], *, library: str, where: str) -> None:
    """Refuses a state whose heads aren't Linear, batch norm, ReLU, Linear, or that has no target network.

    Raises:
        CheckpointFormatError: see above.
    """
    root = "target.projector."
    if {key.removeprefix(root) for key in keys if key.startswith(root)} != MLP:
        raise CheckpointFormatError(
            f"{where}: {library}'s learners have a target network, and Linear, batch norm, ReLU, Linear as heads: "
            "make the learner with use_momentum=True and simplicial_embeddings=False"
        )


def load_networks(
    given: Mapping[str, Any], *, like: Any, library: str, where: str, biasless: Collection[str] = (), hint: str = ""
) -> Any:
    """`like` with the arrays of `given`; step, key and optimiser's state stay `like`'s.

    Args:
        given: arrays under the names above. A classifier, `encoder.fc`, is left out where the network has none, and
            where `given` has none, the network keeps `like`'s, or takes the online one's if `like` holds shapes alone:
            no representation depends on it.
        biasless: head keys ("projector.3.bias") that the library lacks; where absent, they start as zeros: the same
            function.
        hint: said where names don't fit.

    Raises:
        CheckpointFormatError: other heads than `MLP`, or no target network.
        StateDictMismatchError: lists everything that doesn't fit.
    """
    leaves = state_leaves(like)
    names = own_names(leaves)
    wanted = {leaf.key: leaves[path] for path, leaf in names.items()}
    check_heads(wanted, library=library, where=where)
    given = _with_target(dict(given), where=where)
    given = _with_classifier(given, leaves, names)
    for key in (f"{network}.{bias}" for network in NETWORKS for bias in biasless):
        if key in wanted and key not in given:
            given[key] = np.zeros(wanted[key].shape, wanted[key].dtype)
    arrays, mismatch = match_leaves(given, leaves, names, strict=True, cast_to_like=False)
    hints = _hints(given, names, leaves, mismatch, hint)
    mismatch.raise_if_any(f"{where} doesn't fit the learner", hint=hints)
    return replace_networks(like, arrays)


def _with_classifier(given: dict[str, Any], leaves: Mapping[str, Any], names: Mapping[str, Leaf]) -> dict[str, Any]:
    paths = {leaf.key: path for path, leaf in names.items()}
    for key in (f"{network}.{name}" for network in NETWORKS for name in CLASSIFIER):
        if key not in paths:
            given.pop(key, None)
        elif key not in given and hasattr(leaves[paths[key]], "__array__"):
            path = paths[key]
            given[key] = to_torch_array(as_numpy(leaves[path], path), names[path].rule)
        elif key not in given and (other := key.replace("target.", "online.")) in given:  # `like` has no values
            given[key] = given[other]
    return given


def _with_target(given: dict[str, Any], *, where: str) -> dict[str, Any]:
    if any(key.startswith("target.") for key in given):
        return given
    warn_caller(AbsentTargetWarning(f"{where}: holds no target network; a copy of the online network starts as one"))
    online = {key.removeprefix("online."): value for key, value in given.items() if key.startswith("online.")}
    return given | {f"target.{key}": value for key, value in online.items() if not key.startswith("predictor.")}


def _hints(given: Mapping[str, Any], names: Any, leaves: Any, mismatch: Mismatch, hint: str) -> str:
    if mismatch.missing or mismatch.unexpected:
        return hint or network_in_words(given, "online.encoder.")
    return shape_hints(given, names, leaves, mismatch)


def network_in_words(given: Mapping[str, Any], root: str) -> str:
    """What the network below `root` is, in words; "" where nothing tells."""
    shapes = {key.removeprefix(root): tuple(value.shape) for key, value in given.items() if key.startswith(root)}
    kind = recognise(shapes)
    return "" if kind == "unknown" else f"the file's network: {kind}"


def shape_hints(
    given: Mapping[str, Any], names: Mapping[str, Leaf], leaves: Mapping[str, Any], mismatch: Mismatch
) -> str:
    """What to make the learner with, where the heads' shapes tell."""
    hints = []
    for path, options in OPTIONS.items():
        key, leaf = names.get(f"online/{path}", Leaf("", "")).key, leaves.get(f"online/{path}")
        shape = getattr(given.get(key), "shape", ())
        if leaf is not None and len(shape) == 2:
            pairs = zip(options, reversed(shape), leaf.shape, strict=True)  # torch has [out, in]
            hints += [f"{option.format(a)} (not {b})" for option, a, b in pairs if option and a != b]
    if hints:
        return f"make the learner with {', '.join(hints)}"
    return f"convert the file's tensors first, as {CONVERT} does" if mismatch.dtypes else ""


def definition_rank(key: str) -> tuple[tuple[int, int, int, str], ...]:
    """A sorting key for names joined by ".": numbers by value, `conv1, bn1, conv2, bn2, …`, the others, a classifier.

    Example:
        >>> sorted(["fc.weight", "layer1.0.bn1.bias", "layer1.0.conv1.weight", "bn1.weight"], key=definition_rank)
        ['bn1.weight', 'layer1.0.conv1.weight', 'layer1.0.bn1.bias', 'fc.weight']
    """
    *branches, leaf = key.split(".")
    rank = ORDER_OF_LEAVES.index(leaf) if leaf in ORDER_OF_LEAVES else len(ORDER_OF_LEAVES)
    return (*(_branch(branch) for branch in branches), (0, rank, 0, leaf))


def _branch(name: str) -> tuple[int, int, int, str]:
    if name.isdecimal():
        return 0, int(name), 0, ""
    if pair := re.fullmatch(r"(conv|bn)(\d+)", name):
        return 1, int(pair[2]), int(pair[1] == "bn"), ""
    number = re.search(r"\d+$", name)
    return 3 if name in DEFINED_LAST else 2, 0, int(number[0]) if number else 0, name
