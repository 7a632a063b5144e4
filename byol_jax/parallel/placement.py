"""Arrays onto the devices and back: states whole or in parts, batches spread, copies stacked for `pmap`.

What is placed is copied: no buffer is shared with the caller, so that a step may be given it to donate.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from byol_jax.errors import ConfigurationError
from byol_jax.memory import fresh_array, own_batch
from byol_jax.parallel.sharding import AXIS, SMALLEST, state_shardings
from byol_jax.types import TrainState

__all__ = [
    "check_even",
    "gather",
    "replicate",
    "shard",
    "shard_in_place",
    "split",
    "spread_state",
    "stack",
    "unstack",
]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same values on every device of the mesh, as global arrays in fresh buffers. Every process calls it."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _place(leaf, everywhere), tree)


def spread_state(state: TrainState, mesh: Mesh, *, smallest: int = SMALLEST) -> TrainState:
    """`state` on the devices of the mesh, target and optimiser state in parts, as `state_shardings` says of `smallest`.

    Global arrays in fresh buffers, as `replicate` makes them. Every process calls it with the same values.

    Example:
        >>> from byol_jax.parallel import make_mesh
        >>> target = {"kernel": jnp.ones((128, 128))}
        >>> state = TrainState(jnp.int32(0), jax.random.key(0), {}, target, ())
        >>> mesh = make_mesh()
        >>> kernel = spread_state(state, mesh).target["kernel"]
        >>> kernel.addressable_data(0).shape == (128 // mesh.size, 128)
        True
    """
    return jax.tree.map(_place, state, state_shardings(state, mesh, smallest=smallest))


def _place(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """One leaf's values where `sharding` says; keys are replicated ones."""
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _place(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return fresh_array(_on_host(leaf), sharding)


def shard(batch: Any, mesh: Mesh) -> Any:
    """This process's part of the batch, [n, ...], as a global array spread over the mesh, [n * processes, ...].

    Of a batch of several arrays, `(images, labels)`, each is spread so. The batch is copied; its memory may be filled
    with the next one when this returns.

    Raises:
        ConfigurationError: the batch can't be shared evenly among the devices.
    """
    return shard_in_place(jax.tree.map(own_batch, batch, is_leaf=_is_list), mesh)


def shard_in_place(batch: Any, mesh: Mesh) -> Any:
    """`shard` without the copy, for a batch that nobody writes to any more: on a CPU its own memory is used."""
    local = len([device for device in mesh.devices.flat if device.process_index == jax.process_index()])
    check_even(batch, local)
    spread = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda part: jax.make_array_from_process_local_data(spread, np.asarray(part)), batch)


def stack(tree: Any, count: int) -> Any:
    """For `pmap`: every leaf `count` times along a new first axis."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * count), tree)


def unstack(tree: Any) -> Any:
    """The inverse of `stack`: of every leaf in `tree` the first device's row, [count, ...] to [...]."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def split(batch: Any, count: int) -> Any:
    """For `pmap`: [N, ...] to [count, N / count, ...], of each array of the batch.

    Raises:
        ConfigurationError: N isn't a multiple of `count`.
    """
    check_even(batch, count)
    return jax.tree.map(lambda part: part.reshape(count, -1, *part.shape[1:]), batch)


def gather(tree: Any) -> Any:
    """A `tree` of global arrays as NumPy arrays of the same shapes and dtypes; typed keys stay JAX arrays.

    Where leaves are spread over several processes, all of them call it, and each gets the whole.

    Example:
        >>> gather({"w": jnp.ones((2, 3))})["w"].shape
        (2, 3)
    """
    is_key = jax.dtypes.prng_key
    return jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, is_key) else _on_host(leaf), tree)


def _on_host(leaf: Any) -> np.ndarray:
    """The whole leaf; of one that is spread over processes their parts are brought together, a leaf at a time."""
    if not isinstance(leaf, jax.Array):
        return np.asarray(leaf)
    if leaf.is_fully_replicated or leaf.is_fully_addressable:
        return np.asarray(leaf.addressable_data(0) if leaf.is_fully_replicated else leaf)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _is_list(part: Any) -> bool:
    """A list of images is one array; a tuple, a dict, or a list of arrays that differ in shape is several."""
    return isinstance(part, list) and len({np.shape(item) for item in part}) <= 1


def check_even(batch: Any, devices: int) -> None:
    """Raises ConfigurationError where an array of the batch can't be shared evenly among so many devices."""
    for part in jax.tree.leaves(batch):
        if part.shape[0] % devices:
            raise ConfigurationError(
                f"a batch of {part.shape[0]} can't be shared by {devices} devices: use a multiple of {devices}"
            )
