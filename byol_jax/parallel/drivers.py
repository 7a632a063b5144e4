"""Three drivers of the one step.

    jit        one program over a sharded batch; the compiler inserts the communication. What `pretrain` uses.
    shard_map  the same devices, communication written out: the learner needs `axis_name=parallel.AXIS`.
    pmap       a stacked state, one row a device; for scripts that are built around it.

All three give the same losses, views and parameters to reduction noise (tests/laws/test_drivers.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from byol_jax.byol import Learner
from byol_jax.errors import ConfigurationError
from byol_jax.parallel.placement import check_even
from byol_jax.parallel.sharding import AXIS
from byol_jax.types import TrainState

__all__ = ["Step", "jit", "pmap", "shard_map"]

Step = Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def jit(learner: Learner, mesh: Mesh, *, state_shardings: TrainState | None = None) -> jax.stages.Wrapped:
    """The step under `jax.jit`: state replicated and donated, batch [N, H, W, C] sharded, N a multiple of the devices.

    The learner has no `axis_name`: batch statistics are those of the whole batch by themselves.

    Args:
        state_shardings: where each leaf of the state is, before the step and after it, as `parallel.state_shardings`
            says; None: everywhere. The result is the same to rounding, 1e-9 in float64.

    Raises:
        ConfigurationError: a learner with an axis, which nothing here maps.
    """
    _check_axis(learner, None, driver="jit")
    everywhere, spread = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    state = everywhere if state_shardings is None else state_shardings
    return jax.jit(
        learner.step,
        in_shardings=(state, spread),
        out_shardings=(state, everywhere),
        donate_argnums=0,
    )


def shard_map(learner: Learner, mesh: Mesh, *, check_vma: bool = True) -> Step:
    """The step under `jax.shard_map`: global state (replicated, donated) and batch (sharded) in, the same out.

    The learner was made with `axis_name=AXIS`.

    Raises:
        ConfigurationError: a learner with another axis or none, whose devices would train apart.
    """
    _check_axis(learner, AXIS, driver="shard_map")
    replicated, spread = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        learner.step,
        mesh=mesh,
        in_specs=(replicated, spread),
        out_specs=(replicated, replicated),
        check_vma=check_vma,
    )

    def step(state: TrainState, images: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        check_even(images, mesh.size)
        return mapped(state, images)

    return jax.jit(step, donate_argnums=0)


def pmap(learner: Learner, devices: Sequence[Any] | None = None) -> Step:
    """The step under `jax.pmap`: `stack`ed state (donated) and `split` batch in; stacked state and metrics out.

    The learner was made with `axis_name=AXIS`.

    Raises:
        ConfigurationError: a learner with another axis or none, whose devices would train apart.
    """
    _check_axis(learner, AXIS, driver="pmap")
    return jax.pmap(learner.step, axis_name=AXIS, devices=devices, donate_argnums=0)


def _check_axis(learner: Learner, expected: str | None, *, driver: str) -> None:
    given = learner.settings.axis_name
    if given != expected:
        raise ConfigurationError(
            f"parallel.{driver}: the learner has axis_name={given!r}: make it with axis_name={expected!r}"
        )
