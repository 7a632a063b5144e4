"""Over which devices a training state lies: a mesh of them, and for each leaf its place; nothing is moved here.

A state is online network, target and optimiser state. Every device needs the online parameters all through a step; to
update target and optimiser state it needs a part of them alone. So these may be spread: each device keeps and updates
its part, and the compiler inserts the communication (stage 1 of ZeRO, with the target as one more state).

Sources: Rajbhandari et al., "ZeRO", arXiv:1910.02054; the same by annotation: Xu et al., "Automatic cross-replica
sharding of weight update", arXiv:2004.13336.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from byol_jax.types import TrainState

__all__ = ["AXIS", "SMALLEST", "make_mesh", "state_bytes", "state_shardings"]

AXIS = "devices"
"""Name of the one mesh axis; what to pass as `make_learner(axis_name=...)` for `pmap` and `shard_map`."""

SMALLEST = 2**14
"""Elements from which a leaf is spread. Each leaf that is costs messages at every step. Of the 672 leaves of a
ResNet-50's target and Adam's state 508 are smaller, biases and batch norms above all: 0.3 % of the numbers."""


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh over `devices`; all of them, those of other processes included, by default."""
    chosen = list(jax.devices() if devices is None else devices)
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def state_shardings(state: TrainState, mesh: Mesh | AbstractMesh, *, smallest: int = SMALLEST) -> TrainState:
    """Where each leaf goes if target and optimiser state are spread over the devices: a state of `NamedSharding`s.

        a leaf of target or opt_state with at least `smallest` elements:  along its longest axis that the number of
        devices divides, the first of several; one without such an axis, and every other leaf:  on all devices whole

    For `jit(learner, mesh, state_shardings=...)`; `spread_state` puts a state there. Typed keys are never spread.

    Args:
        state: arrays or `jax.ShapeDtypeStruct`s, for instance `jax.eval_shape(learner.init, key)`.
        mesh: as `make_mesh` gives it, or an abstract one of devices that aren't here.

    Example:
        >>> mesh = AbstractMesh((8,), (AXIS,))
        >>> kernel = jax.ShapeDtypeStruct((2048, 4096), jnp.float32)
        >>> state = TrainState(jnp.int32(0), jax.random.key(0), {"kernel": kernel}, {"kernel": kernel}, ())
        >>> places = state_shardings(state, mesh)
        >>> places.online["kernel"].spec, places.target["kernel"].spec
        (P(), P(None, 'devices'))
    """
    whole = NamedSharding(mesh, PartitionSpec())
    count = mesh.shape[AXIS]

    def spread(leaf: Any) -> NamedSharding:
        if math.prod(leaf.shape) < smallest or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return whole
        axis = max(
            (axis for axis, size in enumerate(leaf.shape) if size and size % count == 0),
            key=lambda axis: (leaf.shape[axis], -axis),
            default=None,
        )
        return whole if axis is None else NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))

    everywhere = jax.tree.map(lambda leaf: whole, state)
    target, opt_state = (jax.tree.map(spread, part) for part in (state.target, state.opt_state))
    return everywhere.replace(target=target, opt_state=opt_state)


def state_bytes(state: TrainState, shardings: TrainState) -> int:
    """Bytes that a state takes on each device.

    Args:
        state: arrays or `jax.ShapeDtypeStruct`s.
        shardings: as `state_shardings` gives them.

    Example:
        >>> kernel = jax.ShapeDtypeStruct((2048, 4096), jnp.float32)
        >>> state = TrainState(jnp.int32(0), jax.random.key(0), {"kernel": kernel}, {"kernel": kernel}, ())
        >>> one, eight = (state_shardings(state, AbstractMesh((count,), (AXIS,))) for count in (1, 8))
        >>> state_bytes(state, one), state_bytes(state, eight)
        (67108876, 37748748)
    """
    sizes = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize, state, shardings
    )
    return sum(jax.tree.leaves(sizes))
