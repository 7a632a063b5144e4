"""A run's health without labels: measured in evaluation mode on the same few images, again and again while it trains.

    evaluation_feature_std   the spread of the projections: does the network, as it is used, tell images apart?
    effective_rank           how many of their dimensions are used (RankMe)
    alignment, uniformity    how near two views of an image are, and how evenly images are spread (Wang and Isola)

The spread that every step reports is that of training mode, where batch norm takes each batch's own mean and variance.
It can look healthy while with the running statistics, which every use of the network takes, all images look alike.
Measured beside the step, on one device of process 0; nothing of the training state is changed. The formulas are in
metrics.py; a collapse that lasts is called so in collapse_watch.py.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax import data, parallel
from byol_jax.byol import Learner
from byol_jax.data.dataset import resize
from byol_jax.evaluate.collapse import HEALTHY_FRACTION
from byol_jax.metrics import alignment, effective_rank, feature_std, uniformity
from byol_jax.types import TrainState
from byol_jax.views import network_input, sample_keys, two_views

__all__ = [
    "EVALUATION_SPREAD",
    "HEALTH_EVERY",
    "MEASURED_IMAGES",
    "SETTLED_STEPS",
    "compile_health",
    "fixed_images",
    "is_due",
    "local_state",
    "raw_images",
    "warning",
]

EVALUATION_SPREAD = "evaluation_feature_std"
"""Its name in metrics.jsonl."""

MEASURED_IMAGES = 256
"""At most so many, so that the effective rank, which can't exceed them, reaches the usual width of a projection."""

CHUNK = 64
"""Images that go through the network at once. 256 images cost as many forward passes, thrice as many with two views of
each; a step on B images costs about as much as 8 B of them."""

HEALTH_EVERY = 1000
"""Steps between measures unless a run says otherwise; the end of a run counts too. 256 images then cost a training on
batches of 256 about a part in 8,000 of its time, and one on batches of 8 about one in 250."""

DRAW = np.uint32(2**32 - 2)
"""Folded into a run's key for the two views that alignment compares, always the same; no step's number gets there."""

SETTLED_STEPS = 1000
"""Before, running statistics still hold much of what they started from, and nothing is said. Runs that learn well had,
as a part of the even spread, 0.10 and 0.06 after 10 steps and 0.8 after 100 (ResNet-18 and 50, momentum 0.9); with five
layers of Flax's batch norm (momentum 0.99) 0.05 after 20, 0.14 after 100, 0.40 after 200 (Fashion-MNIST, batch 32). The
many layers of torchvision's MobileNetV3-small, momentum 0.99 too, traced, had 0.000 until step 300, 0.09 after 500 and
0.57 after 600, and 0.57 to 0.76 in training mode all the while (the same images at 32 px, Adam at 3e-4)."""


def fixed_images(images: Any, batch: jax.Array, image_shape: tuple[int, ...]) -> np.ndarray | None:
    """The images that a run is measured on, without augmentation, on the host: [n, *image_shape], n at most 256.

    Of a `Dataset` evenly spaced ones; of an iterable the first ones of its first batch. Above 64 they are a multiple of
    64.

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
        found = data.evaluation_images(images, _chosen(len(images)), (image_shape[0], image_shape[1]))
    else:
        found = raw_images(images, batch)  # [n, …]
        if found.ndim == len(image_shape) + 1 == 4:
            found = resize(found, (image_shape[0], image_shape[1]))
    return found if found.shape[1:] == image_shape and len(found) > 1 else None


def raw_images(images: Any, batch: jax.Array) -> np.ndarray:
    """The same images as a step gets them, to be augmented, [n, h, w, C]; arguments as above."""
    if isinstance(images, data.Dataset):
        return images.take(_chosen(len(images)))
    local = np.concatenate([np.asarray(shard.data) for shard in batch.addressable_shards])
    local = local[: _count(len(local))]
    return local if local.dtype in (np.uint8, np.uint16) else local.astype(np.float32)


def compile_health(
    learner: Learner, state: TrainState, images: np.ndarray, raw: np.ndarray | None = None
) -> Callable[[TrainState], dict[str, float]]:
    """`measure(state)`: spread, effective rank and uniformity of the online network's projections of `images`.

    With `raw` also the alignment of two views of each of these, always the same; to draw them takes a program that is
    compiled in about the time of the step (a small_cnn at 32 px, one core: 23 s for 2 s without).

    Args:
        state: as the step takes it, or what `local_state` gives; `measure` likewise.
        images, raw: as `fixed_images` and `raw_images` give them.
    """
    s, part = learner.settings, local_state(learner, state)
    arrays = (images,) if raw is None else (images, raw, sample_keys(s, _draw_key(state), len(images)))
    chunks = [slice(start, start + CHUNK) for start in range(0, len(images), CHUNK)]  # equal: see `_count`
    given = [tuple(array[rows] for array in arrays) for rows in chunks]

    def project(part: TrainState, images: jax.Array, *views: jax.Array) -> tuple[jax.Array, ...]:
        online = learner.evaluation_state(part).online
        inputs = (network_input(s, images), *(two_views(s, *views) if views else ()))
        return tuple(learner.target_apply(online, some, train=False)[0].projection for some in inputs)

    def numbers(whole: jax.Array, *views: jax.Array) -> dict[str, jax.Array]:  # [n, P] each
        return {
            EVALUATION_SPREAD: feature_std(whole),
            "effective_rank": effective_rank(whole),
            **({"alignment": alignment(*views)} if views else {}),
            "uniformity": uniformity(whole),
        }

    projections = jax.jit(project).lower(part, *given[0]).compile()
    shape = jax.ShapeDtypeStruct((len(images), s.projection_size), s.storage_dtype)
    summary = jax.jit(numbers).lower(*[shape] * (1 if raw is None else 3)).compile()

    def measure(state: TrainState) -> dict[str, float]:
        part = local_state(learner, state)
        parts = [jax.device_get(projections(part, *some)) for some in given]
        whole = (np.concatenate(column) for column in zip(*parts, strict=True))  # [n, P] each
        return {name: float(number) for name, number in summary(*whole).items()}

    return measure


def is_due(step: int, *, log_every: int, last: bool, every: int = HEALTH_EVERY) -> bool:
    """Whether the row of `step` has the measures: the first row at or after every `every` steps, and the run's last.

    Example:
        >>> [step for step in range(300, 3001, 300) if is_due(step, log_every=300, last=False)]
        [1200, 2100, 3000]
    """
    before = (step - 1) // log_every * log_every
    return last or step // every > before // every


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


def _draw_key(state: TrainState) -> jax.Array:
    return jax.random.fold_in(_local_leaf(state.key), DRAW)


def _chosen(count: int) -> np.ndarray:
    """Evenly spaced numbers of images, of `count`."""
    return np.linspace(0, count - 1, _count(count)).astype(int)


def _count(available: int) -> int:
    """How many images are measured: whole chunks of them, or fewer than one."""
    return available if available < CHUNK else min(available // CHUNK * CHUNK, MEASURED_IMAGES)


def local_state(learner: Learner, state: TrainState) -> TrainState:
    """What evaluation takes of a state, on one device of this process: without a copy of what is replicated.

    Where the optimiser's state belongs to it (`evaluation_params`) and is spread, it is brought together: of several
    processes all call this.
    """
    nothing: Any = None
    evaluated = learner.settings.evaluation_params is not None
    opt_state = jax.tree.map(_local_leaf, state.opt_state) if evaluated else nothing
    online = jax.tree.map(_local_leaf, state.online)
    return TrainState(_local_leaf(state.step), _local_leaf(state.key), online, nothing, opt_state)


def _local_leaf(leaf: jax.Array) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_local_leaf(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
    return leaf.addressable_data(0) if leaf.is_fully_replicated else jnp.asarray(parallel.gather(leaf))
