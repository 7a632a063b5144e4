"""A batch that is spread over the devices of a mapped axis (`pmap`, `shard_map`), and one that isn't, alike.

Every function takes the axis's name, or None where there is none: then it does what one device does.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["device_count", "device_index", "equally_varying", "mean_over", "split_gradient"]


def device_count(axis_name: str | None) -> int:
    """How many devices share the batch."""
    return 1 if axis_name is None else lax.axis_size(axis_name)


def device_index(axis_name: str | None) -> int | jax.Array:
    """Which of them this one is, from 0."""
    return 0 if axis_name is None else lax.axis_index(axis_name)


def split_gradient(params: Any, axis_name: str | None) -> Any:
    """The same numbers, marked as each device's own, so that their gradient is each device's own too.

    `mean_over` then averages it once. Without the mark `shard_map` sums the gradient by itself: see docs/decisions.
    """
    return params if axis_name is None else lax.pcast(params, axis_name, to="varying")


def mean_over(value: Any, axis_name: str | None) -> Any:
    """The mean of a pytree's floating leaves over a mapped axis, or the tree itself where there is none.

    Leaves that aren't floating are counters that every device advances alike: their maximum is taken.
    """
    if axis_name is None:
        return value

    def mean(leaf: jax.Array) -> jax.Array:
        reduce = lax.pmean if jnp.issubdtype(leaf.dtype, jnp.floating) else lax.pmax
        return reduce(leaf, axis_name)

    return jax.tree.map(mean, value)


def equally_varying(*arrays: Any) -> tuple[Any, ...]:
    """Adds a zero of every array to every array, so that all vary over the mapped axes that any of them varies over.

    `shard_map` with `check_vma` asks a hand-written backward pass for gradients that vary exactly as their inputs do.
    With every input varying, that holds, and the sum over devices of a replicated `scale`'s gradient is left to the
    transpose of the cast that this addition brings. XLA removes the addition.
    """
    zeros = [jnp.zeros_like(array, shape=()) for array in arrays if array is not None]

    def vary(array: Any) -> Any:
        return array if array is None else sum((zero.astype(array.dtype) for zero in zeros), array)

    return tuple(vary(array) for array in arrays)
