"""From a leaf of the JAX side to its tensor in torch: the name, the order of the axes, the integer type.

    layer1/0/conv1/kernel [*spatial, in, out]  ↔  layer1.0.conv1.weight [out, in, *spatial]
    scale ↔ weight    bias ↔ bias    mean ↔ running_mean    var ↔ running_var    num_batches_tracked int32 ↔ int64

Transposes only, never arithmetic: a round trip is bit-identical.

That is for native networks. A traced one has torch's names already (`weight`, `running_mean`, and whatever its authors
chose, `scale` included), and nothing of it may be renamed. The two are told apart by names that a native network never
has.
"""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import StateDictMismatchError
from interop.weights.packing import PARTS, part_key, whole_key

__all__ = [
    "LEARNER_PARTS",
    "Leaf",
    "absent_counters",
    "named_leaves",
    "native_order",
    "torch_dtype",
    "torch_leaf",
    "torch_names",
    "torch_order",
    "torch_shape",
    "whole_shape",
]

NATIVE_TO_TORCH = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
"""Leaf names that differ; all others (bias, num_batches_tracked, class_token, …) are the same on both sides."""

TORCH_ONLY = frozenset({"weight", "running_mean", "running_var"})
"""Leaf names that a native network never has and nearly every torch network does."""

COUNTER = "num_batches_tracked"


def absent_counters(given: Collection[str], wanted: Iterable[str]) -> list[str]:
    """The counters among `wanted` that aren't given, though their batch norm's statistics are.

    Files of torch before 0.4.1, and converted ones of Caffe2's, have none. torch itself starts them at 0, where a state
    dict doesn't say that it is of a later version, which no file of names and arrays does.

    Example:
        >>> absent_counters(["bn1.running_var"], ["bn1.num_batches_tracked", "bn2.num_batches_tracked"])
        ['bn1.num_batches_tracked']
    """
    fronts = {name: name.removesuffix(COUNTER) for name in wanted if name.rpartition(".")[2] == COUNTER}
    return [name for name, front in fronts.items() if name not in given and f"{front}running_var" in given]


def torch_leaf(leaf: str) -> str:
    """Torch's name of a native leaf.

    Example:
        >>> torch_leaf("mean")
        'running_mean'
    """
    return NATIVE_TO_TORCH.get(leaf, leaf)


def torch_order(leaf: str, rank: int) -> tuple[int, ...]:
    """The axes of a native leaf in torch's order, as `np.transpose` takes them.

    A kernel of rank 2 is a linear layer's [in, out]; of rank 3, 4 or 5 a convolution's [*spatial, in / groups, out],
    which becomes [out, in / groups, *spatial]. Everything else stays as it is.

    Example:
        >>> torch_order("kernel", 4)
        (3, 2, 0, 1)
    """
    if leaf != "kernel" or rank < 2:
        return tuple(range(rank))
    return (rank - 1, rank - 2, *range(rank - 2))


def native_order(leaf: str, rank: int) -> tuple[int, ...]:
    """The inverse of `torch_order`.

    Example:
        >>> native_order("kernel", 4)
        (2, 3, 1, 0)
    """
    return tuple(int(axis) for axis in np.argsort(torch_order(leaf, rank)))


def torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a native leaf of `shape` has in torch.

    Example:
        >>> torch_shape("kernel", (7, 7, 3, 64))
        (64, 3, 7, 7)
    """
    return tuple(shape[axis] for axis in torch_order(leaf, len(shape)))


def torch_dtype(leaf: str, dtype: np.dtype) -> np.dtype:
    """The type that a leaf has in torch's files: its own, but batch norm's counters are int64 there."""
    return np.dtype(np.int64) if leaf == COUNTER and dtype == np.int32 else dtype


LEARNER_PARTS = frozenset({"encoder", "projector", "predictor"})
"""Top-level keys of a whole learner, whose encoder may be traced while its heads are native."""


class Leaf(NamedTuple):
    """What a leaf is in torch.

    Attributes:
        key: torch's name, joined by "."; where torch packs several leaves into one tensor, the part's (`packing.py`).
        rule: the name that `torch_order`, `torch_shape` and `torch_dtype` go by: the leaf's own in a native network and
            for a counter; "" for others of a traced network, where nothing changes.
    """

    key: str
    rule: str


def whole_shape(leaf: Leaf, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the tensor that a leaf of `shape` is in torch, or is a part of.

    Example:
        >>> whole_shape(Leaf("self_attention.in_proj_weight[key]", "kernel"), (8, 8))
        (24, 8)
    """
    rows, *rest = torch_shape(leaf.rule, shape) or (0,)
    return (len(PARTS) * rows, *rest) if whole_key(leaf.key) != leaf.key else torch_shape(leaf.rule, shape)


def named_leaves(variables: Any) -> dict[str, Any]:
    """All leaves of a `Variables`, params first, by their paths.

    Raises:
        StateDictMismatchError: not a `Variables`, or one path is in both of its parts.

    Example:
        >>> from byol_jax.types import Variables
        >>> named_leaves(Variables({"fc": {"bias": 1}}, {"bn1": {"mean": 2}}))
        {'fc/bias': 1, 'bn1/mean': 2}
    """
    import jax

    from byol_jax.tree import leaf_names

    if not hasattr(variables, "params") or not hasattr(variables, "stats"):
        raise StateDictMismatchError(
            f"expected Variables(params, stats), got {type(variables).__name__}; "
            "a training state's are byol_jax.encoder_variables(state)"
        )
    parts = [
        dict(zip(leaf_names(part), jax.tree.leaves(part), strict=True)) for part in (variables.params, variables.stats)
    ]
    both = sorted(set(parts[0]) & set(parts[1]))
    if both:
        raise StateDictMismatchError(f"these leaves are in params and in stats: {', '.join(both)}")
    return parts[0] | parts[1]


def torch_names(paths: Iterable[str]) -> dict[str, Leaf]:
    """Torch's name for each path.

    Raises:
        StateDictMismatchError: two leaves would have the same name.

    Example:
        >>> torch_names(["bn1/scale", "bn1/var"])["bn1/scale"].key
        'bn1.weight'
        >>> torch_names(["block/scale", "block/conv/weight"])["block/scale"].key
        'block.scale'
        >>> torch_names(["self_attention/value/kernel"])["self_attention/value/kernel"].key
        'self_attention.in_proj_weight[value]'
    """
    paths = list(paths)
    parts = {path.partition("/")[0] for path in paths}
    split = "encoder" in parts and parts <= LEARNER_PARTS
    traced = {_part(path, split) for path in paths if path.rpartition("/")[2] in TORCH_ONLY}
    named = {path: _leaf(path, native=_part(path, split) not in traced) for path in paths}
    owners: dict[str, str] = {}
    for path, leaf in named.items():
        other = owners.setdefault(leaf.key, path)
        if other != path:
            raise StateDictMismatchError(f"{other} and {path} would both be {leaf.key} in torch")
    return named


def _part(path: str, split: bool) -> str:
    return path.partition("/")[0] if split else ""


def _leaf(path: str, *, native: bool) -> Leaf:
    *branches, last = path.split("/")
    rule = last if native or last == "num_batches_tracked" else ""
    if native and branches[-2:-1] == ["self_attention"] and branches[-1] in PARTS:
        return Leaf(part_key(".".join(branches[:-1]), torch_leaf(last), branches[-1]), rule)
    return Leaf(".".join([*branches, torch_leaf(last) if native else last]), rule)
