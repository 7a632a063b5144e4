"""One spelling for a leaf's name: the path to it, joined by "/", as in "encoder/layer1/0/conv1/kernel".

`flatten` and `unflatten` serve nested dicts and need nothing but Python (flax's `traverse_util` loads JAX, and files of
weights are read without it); `leaf_names` names the leaves of any JAX pytree in the order in which `jax.tree.leaves`
gives them; `cast` and `copy_leaves` change dtypes and buffers, never values.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["cast", "copy_leaves", "flatten", "leaf_names", "unflatten"]


def flatten(tree: Mapping[str, Any], *, separator: str = "/") -> dict[str, Any]:
    """Nested dicts to one flat dict, depth first in their own order. Empty dicts vanish.

    Example:
        >>> flatten({"fc": {"kernel": 1, "bias": 2}})
        {'fc/kernel': 1, 'fc/bias': 2}
    """
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}{separator}{rest}": leaf for rest, leaf in flatten(value, separator=separator).items()}
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Any], *, separator: str = "/") -> dict[str, Any]:
    """The inverse of `flatten`.

    Raises:
        ValueError: one name is both a leaf and a branch.

    Example:
        >>> unflatten({"fc/kernel": 1, "fc/bias": 2})
        {'fc': {'kernel': 1, 'bias': 2}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *branches, last = path.split(separator)
        node = tree
        for branch in branches:
            node = node.setdefault(branch, {})
            if not isinstance(node, dict):
                raise ValueError(f"{path}: {branch} is a leaf and a branch at once")
        if last in node:
            raise ValueError(f"{path}: named twice, or a leaf and a branch at once")
        node[last] = leaf
    return tree


def leaf_names(tree: Any) -> list[str]:
    """Names of a pytree's leaves, in the order of `jax.tree.leaves`; fields, keys and indices joined by "/".

    Example:
        >>> leaf_names({"layer1": [{"kernel": 1}]})
        ['layer1/0/kernel']
    """
    import jax

    return [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def cast(tree: Any, dtype: Any) -> Any:
    """A pytree of arrays with its floating leaves in `dtype`, the others as they are."""
    import jax
    import jax.numpy as jnp

    def convert(leaf: Any) -> Any:
        changes = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype != dtype
        return leaf.astype(dtype) if changes else leaf  # else astype compiles what does nothing

    return jax.tree.map(convert, tree)


def copy_leaves(tree: Any) -> Any:
    """Copies of all leaves as JAX arrays, so that donating the copy deletes no array of the original.

    A Python number gets the dtype that it would have; a weakly typed leaf would be compiled for twice.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.core import Tracer

    from byol_jax.memory import copy_on_device

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray):
            array = copy_on_device(leaf.copy())  # it is read later than this returns
        elif isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer):
            array = copy_on_device(leaf)
        else:
            array = jnp.array(leaf, copy=True)
        is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)  # keys have no weak type
        return array if is_key or not array.weak_type else array.astype(array.dtype)

    return jax.tree.map(copy, tree)
