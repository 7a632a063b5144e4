"""A whole learner of images of 3 channels in one of images of others: its first layers inflated, online and target.

Everything else of a learner is loaded as it is, by the function that loads it into a learner of 3 channels.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from interop.arrays import as_numpy
from interop.learners.fitting import own_names
from interop.learners.states import NETWORKS, place_like, state_leaves
from interop.weights.first_layer import COLOURS, inflate
from interop.weights.names import named_leaves, native_order, torch_order

__all__ = ["load_inflated"]


def load_inflated(load: Callable[[Any], Any], *, like: Any, keys: Collection[str]) -> Any:
    """`load(like)`, where the encoder's first layers have 3 input channels in what is loaded and others in `like`.

    Args:
        load: loads a learner into the training state that it is given; of the first layers that has shapes alone.
        like: a `TrainState` of arrays.
        keys: torch's names of the encoder's first layers; where there are none, `load(like)` is all.
    """
    leaves = state_leaves(like)
    wanted = {f"{network}.encoder.{key}" for network in NETWORKS for key in keys}
    rules = {path: leaf.rule for path, leaf in own_names(leaves).items() if leaf.key in wanted}
    loaded = load(_with_leaves(like, {path: _for_colours(leaves[path], rule) for path, rule in rules.items()}))
    found = state_leaves(loaded)
    return _with_leaves(loaded, {path: _inflated(found[path], leaves[path], rule) for path, rule in rules.items()})


def _for_colours(leaf: Any, rule: str) -> Any:
    """Shape and type of a first layer for 3 channels."""
    import jax

    axis = torch_order(rule, leaf.ndim)[1]
    return jax.ShapeDtypeStruct((*leaf.shape[:axis], COLOURS, *leaf.shape[axis + 1 :]), leaf.dtype)


def _inflated(leaf: Any, like: Any, rule: str) -> Any:
    order = torch_order(rule, leaf.ndim)
    weight = inflate(as_numpy(leaf, "").transpose(order), like.shape[order[1]])  # [O, C, *kernel]
    return place_like(weight.transpose(native_order(rule, leaf.ndim)), like)


def _with_leaves(state: Any, new: Mapping[str, Any]) -> Any:
    """The state with some leaves of its networks replaced, by their paths in `state_leaves`."""
    import jax

    networks = {}
    for network in NETWORKS:
        variables = getattr(state, network)
        leaves = [new.get(f"{network}/{path}", leaf) for path, leaf in named_leaves(variables).items()]
        networks[network] = jax.tree.unflatten(jax.tree.structure(variables), leaves)
    return state.replace(**networks)
