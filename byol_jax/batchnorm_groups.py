"""Batch norm over groups of the batch: each group is normalised by its own statistics, as many devices do it.

A function from a learner to a learner. How a batch norm computes is in ops/norm.py, which sees one group at a time.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.byol import Learner
from byol_jax.errors import ConfigurationError
from byol_jax.ops.axis import mean_over
from byol_jax.settings import Network, check_sizes
from byol_jax.types import Images, PyTree, Variables

__all__ = ["check_groups", "with_batchnorm_groups"]

GROUPS = "batchnorm_groups"
"""The axis that the groups are mapped over; not one of devices."""


def with_batchnorm_groups(learner: Learner, groups: int) -> Learner:
    """A learner whose networks see a training batch as `groups` groups, each by itself.

        group of image n = ⌊n · groups / N⌋;   y = network(its group),   new statistics = mean over groups

    So batch norm's mean and variance are a group's, in encoder, projector and predictor, of whatever kind the network
    is; what else a network computes across its batch stays within a group too. Loss, views, metrics and evaluation are
    those of the whole batch. With as many groups as devices it is what `shard_map` computes with `sync_batchnorm=False`
    (1e-9 in float64), and under `parallel.jit` a device's batch norms then wait for no other device.

    - Running statistics are the mean of the groups'; the variance's correction n / (n - 1) has a group's n.
    - Dropout draws other numbers, from another key in every group.
    - Under `accumulate` the groups are those of a part: group first, then accumulate, or add a probe.

    Args:
        learner: made by `make_learner` without `axis_name`, nothing of it replaced yet but its `init`.
        groups: how many, at least 1; 1 is the learner itself. The batch must be a multiple of it, with at least 2
            images a group.

    Raises:
        ConfigurationError: `groups` isn't a whole number of at least 1, the learner has a mapped axis, or its loss or
            step is replaced already. When a step is traced: a batch that can't be shared evenly.

    Example:
        >>> import byol_jax
        >>> learner = byol_jax.make_learner(byol_jax.nets.small_cnn(), image_size=16, num_channels=1,
        ...                                 projection_size=8, projection_hidden_size=16)
        >>> step = jax.jit(byol_jax.with_batchnorm_groups(learner, 2).step, donate_argnums=0)
        >>> state, metrics = step(learner.init(jax.random.key(0)), jnp.zeros((8, 16, 16, 1)))
        >>> int(state.online.stats["projector"]["1"]["num_batches_tracked"])
        1

    Source: Hoffer et al., "Train longer, generalize better", arXiv:1705.08741, section 4 (ghost batch normalisation).
    """
    [groups] = check_sizes(of="with_batchnorm_groups", groups=groups)
    if groups == 1:
        return learner
    s = learner.settings
    if s.axis_name is not None:
        raise ConfigurationError(
            f"with_batchnorm_groups: the learner has a mapped axis, {s.axis_name!r}: make it without axis_name for"
            " parallel.jit, or with sync_batchnorm=False for a group on each device"
        )
    if learner.replacements.loss is not None or learner.replacements.step is not None:
        raise ConfigurationError(
            "with_batchnorm_groups: the learner's loss or step is replaced already (by accumulate or a probe, perhaps)"
            " and would go on without groups: group first"
        )
    images = 1 if s.separate_views else 2  # rows that an image has in a network's batch
    networks = {
        name: _in_groups(network, groups, images)
        for name, network in {"encoder": s.encoder, "projector": s.projector, "predictor": s.predictor}.items()
    }
    return replace(learner, settings=replace(s, **networks))


def check_groups(count: int, groups: int) -> None:
    """Returns if a batch of `count` images can be seen as `groups` groups.

    Raises:
        ConfigurationError: groups would differ in size, or have a single image.

    Example:
        >>> check_groups(4096, 16)
    """
    if count % groups or count < 2 * groups:
        raise ConfigurationError(
            f"batch norm in {groups} groups: a batch of {count} can't be shared: use a multiple of {groups}, at least"
            f" {2 * groups}"
        )


def _in_groups(network: Network, groups: int, rows_of_an_image: int) -> Network:
    """`network` that applies itself to each group of its rows; in evaluation as before."""

    def apply(variables: Variables, x: Images, *, train: bool, key: jax.Array | None = None) -> tuple[Any, PyTree]:
        if not train:
            return network.apply(variables, x, train=False, key=key)
        check_groups(len(x) // rows_of_an_image, groups)

        def of_group(rows: Images, key: jax.Array | None) -> tuple[jax.Array, PyTree]:
            y, stats = network.apply(variables, rows, train=True, key=key)
            return y, mean_over(stats, GROUPS)

        keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(groups))
        rows = x.reshape(groups, -1, *x.shape[1:])  # [groups, n, ...]: rows that are spread over devices stay there
        y, stats = jax.vmap(of_group, out_axes=(0, None), axis_name=GROUPS)(rows, keys)
        return y.reshape(-1, *y.shape[2:]), stats  # [N, D]

    return Network(network.init, apply)
