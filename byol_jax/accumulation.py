"""Batches larger than a device's memory: the gradient of a step as the mean over parts of its batch, one at a time.

A function from a learner to a learner; how a step begins and ends is in byol.py, which numbers belong to which image in
views.py. An optimiser that accumulates (`optax.MultiSteps`) can't do it: the target would move between its updates.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from byol_jax.byol import Learner, Metrics, update_state
from byol_jax.errors import ConfigurationError
from byol_jax.metrics import feature_std
from byol_jax.ops.axis import device_count, mean_over, split_gradient
from byol_jax.ops.loops import scan_parts
from byol_jax.settings import check_sizes
from byol_jax.types import LossAux, Outputs, TrainState, Variables
from byol_jax.views import sample_keys

__all__ = ["accumulate", "check_parts"]


def accumulate(learner: Learner, parts: int) -> Learner:
    """A learner whose step goes through its batch in `parts` equal parts, and so needs the memory of one.

        gradient = mean over parts of  ∇ loss(part),   then one update of optimiser, target, schedules and counter

    It computes what the learner's own step computes on the whole batch: image n's views come from its index in the
    whole batch, loss and metrics are the whole batch's, and a step in which any part isn't finite changes nothing. But:

    - Batch norm sees one part: its statistics are a part's (of all devices together, where they are synchronised), and
      the running statistics move `parts` times a step. The heads have batch norm, so parts should stay large; without
      it the step is the same to rounding, 1e-9 in float64.
    - Dropout draws other numbers, from other keys in every part.
    - Metrics that a replaced loss adds are means over the parts; feature_std is that of all projections.

    A replaced loss is differentiated part by part: replace it first, then accumulate. It gets as `key` its images' own
    keys, [n] (`views.sample_keys`), to hand on to the loss inside; where it draws from `key` itself, JAX refuses it.
    Of a batch of several arrays each is cut along its first axis. A part holds every `parts`-th image, so that each
    device keeps its own images: under `parallel.jit` the batch must be a multiple of parts · devices, under a mapped
    axis each device's share a multiple of parts.

    Args:
        learner: made by `make_learner`; its `init` and `loss` may be replaced, its `step` not.
        parts: how many, at least 1; 1 is the learner itself. How much memory that saves is in docs/recipes.md. On CPUs
            the parts are written out, so that compiling takes longer with each.

    Raises:
        ConfigurationError: `parts` isn't a whole number of at least 1, or the learner's step is replaced already. When
            a step is traced: a batch that can't be cut so, or parts of 1 image.

    Example:
        >>> import byol_jax
        >>> learner = byol_jax.make_learner(byol_jax.nets.small_cnn(), image_size=16, num_channels=1,
        ...                                 projection_size=8, projection_hidden_size=16)
        >>> step = jax.jit(byol_jax.accumulate(learner, 2).step, donate_argnums=0)
        >>> state, metrics = step(learner.init(jax.random.key(0)), jnp.zeros((8, 16, 16, 1)))
        >>> int(state.step)
        1

    Source: the mean of gradients of equal parts is the whole's, for a loss that is a mean over images.
    """
    [parts] = check_sizes(of="accumulate", parts=parts)
    if parts == 1:
        return learner
    if learner.replacements.step is not None:
        raise ConfigurationError(
            "accumulate: the learner's step is replaced already, and what it does can't be cut into parts: accumulate"
            " first, then replace the step by one that calls the accumulated learner's"
        )

    def step(state: TrainState, images: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        value, gradient, aux = _mean_gradient(learner, parts, state, images, key)
        return update_state(learner.settings, state, value, gradient, aux)

    return learner.replace(step=step)


def check_parts(count: int, parts: int, devices: int = 1) -> None:
    """Returns if a batch of `count` images on `devices` devices can be cut into `parts` parts to train with.

    Raises:
        ConfigurationError: parts would differ in size between devices, or have a single image.

    Example:
        >>> check_parts(4096, 8, devices=4)
    """
    if count % (parts * devices):
        where = "" if devices == 1 else f" on {devices} devices"
        raise ConfigurationError(
            f"accumulate: a batch of {count} can't be cut into {parts} equal parts{where}: use a multiple of"
            f" {parts * devices}"
        )
    if count < 2:
        raise ConfigurationError(f"accumulate: a batch of {count} images can't train: use at least {2 * parts}")
    if count < 2 * parts:
        raise ConfigurationError(
            f"accumulate: a batch of {count} in {parts} parts has 1 image a part: batch norm has nothing to compare;"
            f" use at most {count // 2} parts"
        )


def _mean_gradient(
    learner: Learner, parts: int, state: TrainState, images: Any, key: jax.Array
) -> tuple[jax.Array, Any, LossAux]:
    """The loss, its gradient and what came with it, as `Learner.step` has them of the whole batch."""
    s = learner.settings
    images = jax.tree.map(jnp.asarray, images)
    count = _count(images)
    devices = _mesh_size(images) if s.axis_name is None else device_count(s.axis_name)
    check_parts(count if s.axis_name is None else count * devices, parts, devices)
    rows = jax.tree.map(
        lambda leaf: leaf.reshape(count // parts, parts, *leaf.shape[1:]), (images, sample_keys(s, key, count))
    )  # [n, parts, ...]: a batch spread over devices stays where it is
    params = split_gradient(state.online.params, s.axis_name)
    trained = s.select_trained(jax.tree.map(jnp.zeros_like, state.online.params))

    def add(carry: Any, number: jax.Array) -> tuple[Any, Any]:
        total, online_stats, target_stats = carry
        part, keys = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, number, 1, keepdims=False), rows)
        online, target = Variables(state.online.params, online_stats), Variables(state.target.params, target_stats)
        before = TrainState(state.step, state.key, online, target, state.opt_state)
        (value, aux), gradient = jax.value_and_grad(learner.loss, has_aux=True)(params, before, part, keys)
        total = jax.tree.map(lambda sum_, leaf: sum_ + leaf / parts, total, s.select_trained(gradient))
        stats = mean_over((aux.online_stats, aux.target_stats), s.axis_name)
        return (total, *stats), (value, aux.metrics, lax.stop_gradient(aux.outputs.projection))

    start = (split_gradient(trained, s.axis_name), state.online.stats, state.target.stats)
    (gradient, online_stats, target_stats), (values, metrics, projections) = scan_parts(add, start, parts)
    metrics = jax.tree.map(lambda numbers: jnp.mean(numbers, axis=0), metrics)
    if "feature_std" in metrics:
        projections = jnp.moveaxis(projections, 0, 1)  # [2n, parts, P], then [2N, P] without a move between devices
        metrics |= {"feature_std": feature_std(projections.reshape(-1, projections.shape[-1]), s.axis_name)}
    value, gradient = mean_over((jnp.mean(values), gradient), s.axis_name)
    return value, gradient, LossAux(online_stats, target_stats, Outputs(None, None, None), metrics)


def _count(images: Any) -> int:
    """How many images there are: the length of every array's first axis."""
    counts = {leaf.shape[0] if leaf.ndim else 0 for leaf in jax.tree.leaves(images)}
    if len(counts) != 1:
        raise ConfigurationError(
            f"accumulate: a batch of arrays of {', '.join(map(str, sorted(counts)))} rows can't be cut into parts: give"
            " every array a row for each image"
        )
    return counts.pop()


def _mesh_size(images: Any) -> int:
    """Over how many devices a batch of global arrays is spread, where its type tells: those of a mesh of one axis."""
    mesh = jax.typeof(jax.tree.leaves(images)[0]).sharding.mesh
    return mesh.size if len(mesh.axis_names) == 1 else 1
