"""Where a run's state lies while it is trained: whole on every device, or with `shard_state` in parts.

What goes where is decided in parallel/sharding.py.
"""

import math

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from byol_jax import parallel
from byol_jax.parallel.sharding import SMALLEST
from byol_jax.types import TrainState

__all__ = ["place", "places", "sentence", "to_restore"]


def places(state: TrainState, mesh: Mesh | AbstractMesh, *, shard_state: bool) -> TrainState:
    """Where each leaf of a state is, as a state of `NamedSharding`s; arguments as below."""
    if shard_state:
        return parallel.state_shardings(state, mesh)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: everywhere, state)


def place(state: TrainState, mesh: Mesh, *, shard_state: bool) -> TrainState:
    """A state on the devices of the mesh.

    Args:
        state: arrays on the host or on any device; every process has the same.
        mesh: as `parallel.make_mesh` gives it.
        shard_state: spread target and optimiser state.
    """
    return parallel.spread_state(state, mesh) if shard_state else parallel.replicate(state, mesh)


def to_restore(state: TrainState, mesh: Mesh, *, shard_state: bool) -> TrainState:
    """What a checkpoint is restored against: shapes, dtypes and places, without numbers; arguments as above."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        places(state, mesh, shard_state=shard_state),
    )


def sentence(state: TrainState, mesh: Mesh | AbstractMesh) -> str:
    """What `shard_state` does to a run, for its log, and what it leaves whole; arguments as above.

    Example:
        >>> import jax.numpy as jnp
        >>> state = TrainState(jnp.int32(0), jax.random.key(0), {}, {"kernel": jnp.ones((1024, 1024))}, ())
        >>> sentence(state, parallel.make_mesh(jax.devices()[:1]))
        'shard_state changes nothing: there is one device'
    """
    if mesh.size == 1:
        return "shard_state changes nothing: there is one device"
    found = places(state, mesh, shard_state=True)
    whole, spread = (parallel.state_bytes(state, each) for each in (places(state, mesh, shard_state=False), found))
    if spread == whole:
        return (
            f"shard_state changes nothing: no axis of the large leaves, of {SMALLEST:,} elements or more, is a multiple"
            f" of {mesh.size}"
        )
    said = (
        f"target and optimiser state are spread over {mesh.size} devices: each holds {spread / 1e6:.1f} MB of the"
        f" training state instead of {whole / 1e6:.1f}"
    )
    left = _large_and_whole(state, found) / 1e6
    return said if not left else f"{said}; {left:.1f} MB of them stay whole: no axis there is a multiple of {mesh.size}"


def _large_and_whole(state: TrainState, found: TrainState) -> int:
    """Bytes of the leaves of target and optimiser state that are large enough to be spread, and aren't."""
    leaves, where = (jax.tree.leaves((each.target, each.opt_state)) for each in (state, found))
    return sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize
        for leaf, place in zip(leaves, where, strict=True)
        if math.prod(leaf.shape) >= SMALLEST and place.is_fully_replicated
    )
