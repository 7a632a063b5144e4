"""Where a run's state lies while it is trained: whole on every device, or with `shard_state` in parts.

What goes where is decided in parallel/sharding.py.
"""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from byol_jax import parallel
from byol_jax.types import TrainState

__all__ = ["place", "places", "sentence", "to_restore"]


def places(state: TrainState, mesh: Mesh, *, shard_state: bool) -> TrainState:
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


def sentence(state: TrainState, mesh: Mesh) -> str:
    """What `shard_state` does to a run, for its log; arguments as above.

    Example:
        >>> import jax.numpy as jnp
        >>> state = TrainState(jnp.int32(0), jax.random.key(0), {}, {"kernel": jnp.ones((1024, 1024))}, ())
        >>> sentence(state, parallel.make_mesh(jax.devices()[:1]))
        'shard_state changes nothing: there is one device'
    """
    if mesh.size == 1:
        return "shard_state changes nothing: there is one device"
    spread, whole = (parallel.state_bytes(state, places(state, mesh, shard_state=each)) / 1e6 for each in (True, False))
    return (
        f"target and optimiser state are spread over {mesh.size} devices: each holds {spread:.1f} MB of the training"
        f" state instead of {whole:.1f}"
    )
