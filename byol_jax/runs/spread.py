"""Projections in evaluation mode, measured on the same few images while a run goes on: does it tell them apart?

The spread that every step reports is that of training mode, where batch norm takes each batch's own mean and variance.
It can look healthy while with the running statistics, which every use of the network takes, all images look alike.
Measured beside the step, on one device of process 0; nothing of the training state is changed.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax import data
from byol_jax.byol import Learner
from byol_jax.data.dataset import resize
from byol_jax.evaluate.collapse import HEALTHY_FRACTION
from byol_jax.metrics import feature_std
from byol_jax.types import TrainState

__all__ = [
    "EVALUATION_SPREAD",
    "MEASURED_IMAGES",
    "SETTLED_STEPS",
    "compile_spread",
    "fixed_images",
    "is_due",
    "warning",
]

EVALUATION_SPREAD = "evaluation_feature_std"
"""Its name in metrics.jsonl."""

MEASURED_IMAGES = 64
"""At most so many: a step on B images costs about as much as 8 B of these, forwards only."""

MEASURED_EVERY = 1000
"""Steps; the end of a run counts too. A constant, so that a run has the same rows however often it saves."""

SETTLED_STEPS = 200
"""Before, running statistics still hold much of what they started from, and nothing is said. Runs that learn well had,
as a part of the even spread, 0.10 and 0.06 after 10 steps and 0.8 after 100 (ResNet-18 and 50, momentum 0.9); with five
layers of Flax's batch norm (momentum 0.99) 0.05 after 20, 0.14 after 100, 0.40 after 200 (Fashion-MNIST, batch 32)."""


def fixed_images(images: Any, batch: jax.Array, image_shape: tuple[int, ...]) -> np.ndarray | None:
    """The images that a run is measured on, without augmentation, on the host: [n, *image_shape], n at most 64.

    Of a `Dataset` evenly spaced ones; of an iterable the first ones of its first batch.

    Args:
        images: the run's data.
        batch: its first batch, on the devices.
        image_shape: what the network takes.

    Returns:
        None where they can't be given that shape, or there is one alone.
    """
    if isinstance(images, data.Dataset) and len(image_shape) != 3:
        return None
    if isinstance(images, data.Dataset):
        chosen = np.linspace(0, len(images) - 1, min(MEASURED_IMAGES, len(images))).astype(int)
        found = data.evaluation_images(images, chosen, (image_shape[0], image_shape[1]))
    else:
        local = [np.asarray(shard.data) for shard in batch.addressable_shards]
        found = np.concatenate(local)[:MEASURED_IMAGES]  # [n, …]
        found = found if found.dtype == np.uint8 else found.astype(np.float32)
        if found.ndim == len(image_shape) + 1 == 4:
            found = resize(found, (image_shape[0], image_shape[1]))
    return found if found.shape[1:] == image_shape and len(found) > 1 else None


def compile_spread(learner: Learner, state: TrainState, images: np.ndarray) -> Callable[[TrainState], float]:
    """`spread(state)`: `metrics.feature_std` of the online network's projections of `images` in evaluation mode.

    Args:
        state: replicated, as the step takes it.
    """

    def spread(part: TrainState, images: jax.Array) -> jax.Array:
        return feature_std(learner.project(part, images))

    program = jax.jit(spread).lower(_local(learner, state), images).compile()
    return lambda state: float(program(_local(learner, state), images))


def is_due(step: int, *, log_every: int, last: bool) -> bool:
    """Whether the row of `step` has the measure: the first row at or after every 1,000 steps, and the run's last one.

    Example:
        >>> [step for step in range(300, 3001, 300) if is_due(step, log_every=300, last=False)]
        [1200, 2100, 3000]
    """
    before = (step - 1) // log_every * log_every
    return last or step // MEASURED_EVERY > before // MEASURED_EVERY


def warning(row: dict[str, Any], projection_size: int) -> str | None:
    """What to say of a row whose projections have collapsed in evaluation mode; None where there is nothing to say.

    Example:
        >>> row = {"step": 1000, "feature_std": 0.08, "evaluation_feature_std": 0.004}
        >>> warning(row, 64).partition(":")[0]
        'collapsed in evaluation mode after step 1000'
        >>> warning(row | {"step": 100}, 64)
    """
    spread, even = row.get(EVALUATION_SPREAD), 1 / math.sqrt(projection_size)
    if spread is None or row["step"] < SETTLED_STEPS or spread >= HEALTHY_FRACTION * even:
        return None
    how = f"all alike, spread {spread:.4f}," if math.isfinite(spread) else "not finite,"
    return (
        f"collapsed in evaluation mode after step {row['step']}: projections of different images are {how} where"
        f" evenly spread ones have {even:.4f}; batch norm hides it in training mode ({row['feature_std']:.4f}); lower"
        " the learning rate or the weight decay, or see whether running statistics are too slow to follow"
    )


def _local(learner: Learner, state: TrainState) -> TrainState:
    """What evaluation takes of a replicated state, on one device of this process, without a copy."""

    def local(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(local(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return leaf.addressable_data(0)

    nothing: Any = None
    opt_state = nothing if learner.settings.evaluation_params is None else jax.tree.map(local, state.opt_state)
    return TrainState(nothing, nothing, jax.tree.map(local, state.online), nothing, opt_state)
