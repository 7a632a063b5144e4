"""A training state as named leaves, and a training state from them: what every library's file here needs."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from byol_jax.errors import ConfigurationError, StateDictMismatchError
from byol_jax.memory import fresh_array
from interop.arrays import fresh_copy
from interop.weights.names import named_leaves

__all__ = ["NETWORKS", "place_like", "replace_networks", "state_leaves"]

NETWORKS = ("online", "target")


def state_leaves(state: Any) -> dict[str, Any]:
    """Both networks' leaves by their paths, "online/encoder/conv1/kernel"; a target without leaves adds none.

    Raises:
        StateDictMismatchError: not a `TrainState`.

    Example:
        >>> from types import SimpleNamespace as State
        >>> from byol_jax.types import Variables
        >>> state_leaves(State(online=Variables({"encoder": {"bias": 1}}, {}), target=Variables({}, {})))
        {'online/encoder/bias': 1}
    """
    if not all(hasattr(state, network) for network in NETWORKS):
        raise StateDictMismatchError(f"expected a TrainState, as learner.init(key) gives, got {type(state).__name__}")
    return {
        f"{network}/{path}": leaf
        for network in NETWORKS
        for path, leaf in named_leaves(getattr(state, network)).items()
    }


def replace_networks(like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """`like` with `arrays` as its networks, and fresh copies of all else; shardings stay `like`'s.

    Args:
        like: a `TrainState` of arrays.
        arrays: a NumPy array in `like`'s shape and type for every path of `state_leaves(like)`.

    Raises:
        ConfigurationError: step, key or optimiser's state of `like` aren't arrays.
    """
    import jax

    from byol_jax.tree import copy_leaves

    kept = (like.step, like.key, like.opt_state)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(kept)):
        raise ConfigurationError(
            "like: step, key and opt_state are taken from it, so it must hold arrays: use learner.init(key)"
        )
    networks = {}
    for network in NETWORKS:
        variables = getattr(like, network)
        leaves = [place_like(arrays[f"{network}/{path}"], leaf) for path, leaf in named_leaves(variables).items()]
        networks[network] = jax.tree.unflatten(jax.tree.structure(variables), leaves)
    step, key, opt_state = copy_leaves(kept)
    return like.replace(step=step, key=key, opt_state=opt_state, **networks)


def place_like(array: np.ndarray, like: Any) -> Any:
    """A copy of `array` on the devices of `like`; in NumPy where JAX, as it is set up, can't hold the type."""
    import jax

    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return fresh_copy(array)
    if isinstance(like, jax.Array) and like.committed:
        return fresh_array(array, like.sharding)
    return jax.numpy.array(array)
