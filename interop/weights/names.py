"""From a leaf's path to torch's name for it: "layer1/0/conv1/kernel" is "layer1.0.conv1.weight".

Two kinds of network meet here. A native one has its own leaf names (`kernel`, `scale`, `mean`, `var`), renamed by
`rules.py`. A traced one keeps torch's (`weight`, `running_mean`, and whatever its authors called theirs, `scale`
included), so nothing of it may be renamed. They are told apart by names that a native network never has.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

from byol_jax.errors import StateDictMismatchError
from interop.weights.packed import PARTS, part_key
from interop.weights.rules import TORCH_ONLY, torch_leaf

__all__ = ["Leaf", "named_leaves", "torch_names"]

LEARNER_PARTS = frozenset({"encoder", "projector", "predictor"})
"""Top-level keys of a whole learner, whose encoder may be traced while its heads are native."""


class Leaf(NamedTuple):
    """Where a leaf of the JAX side is found in torch.

    Attributes:
        key: torch's name, joined by "."; where torch packs several leaves into one tensor, that of the part
            (`packed.py`).
        rule: the leaf's name for `rules.py`: its own in a native network, "" (nothing changes but the counters'
            integer type) in a traced one.
    """

    key: str
    rule: str


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
