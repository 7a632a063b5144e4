"""Many devices, several processes: one step, driven in three ways, and the moves of arrays that it needs.

    drivers       `jit`, `shard_map` and `pmap` of the step
    sharding      which leaves of a state are spread over the devices; nothing is moved
    placement     states and batches onto the devices, and back
    processes     starting several of them, and what they settle among themselves
    exchange      work that they share: what fails in one is raised in all

The step itself is in byol.py; nothing here computes.
"""

from byol_jax.parallel.drivers import Step as Step
from byol_jax.parallel.drivers import jit, pmap, shard_map
from byol_jax.parallel.exchange import tell_all as tell_all
from byol_jax.parallel.placement import gather, replicate, shard, split, spread_state, stack, unstack
from byol_jax.parallel.placement import shard_in_place as shard_in_place
from byol_jax.parallel.processes import agreement, check_same, initialize, is_writer, wait_for_all
from byol_jax.parallel.sharding import AXIS, make_mesh, state_bytes, state_shardings

__all__ = [
    "AXIS",
    "agreement",
    "check_same",
    "gather",
    "initialize",
    "is_writer",
    "jit",
    "make_mesh",
    "pmap",
    "replicate",
    "shard",
    "shard_map",
    "split",
    "spread_state",
    "stack",
    "state_bytes",
    "state_shardings",
    "unstack",
    "wait_for_all",
]
