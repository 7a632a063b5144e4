"""The two schedules of the BYOL recipe: the target's decay and the learning rate, as functions of the step.

A schedule takes the index of the step *before* its update (0, 1, …), a Python int or an int32 array of any shape, and
returns float32 of that shape. It works under `jit`; one compilation serves all steps. Optimisers are in `optim`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError

__all__ = ["learning_rate", "target_decay"]

REFERENCE_BATCH_SIZE = 256
"""The batch size that base learning rates are quoted for (BYOL, section 3.3)."""


def target_decay(base_decay: float, total_steps: int) -> Callable[[Any], jax.Array]:
    """The target's decay: from `base_decay` at step 0 to 1 at `total_steps`, by a half cosine.

        τ(k) = 1 - (1 - base_decay) · (1 + cos(π · min(k, K) / K)) / 2,    K = total_steps

    Raises:
        ConfigurationError: base_decay outside [0, 1], or total_steps < 1.

    Example:
        >>> target_decay(0.996, 1000)(500)
        Array(0.998, dtype=float32)

    Source: BYOL (arXiv:2006.07733), section 3.3.
    """
    if not 0 <= base_decay <= 1:
        raise ConfigurationError(f"target_decay: base_decay={base_decay}: expected a number in [0, 1]")
    _check_total(total_steps, "target_decay")

    def schedule(step: Any) -> jax.Array:
        return 1.0 - (1.0 - base_decay) * _half_cosine(_number(step), total_steps)

    return schedule


def learning_rate(
    base_learning_rate: float, batch_size: int, warmup_steps: int, total_steps: int
) -> Callable[[Any], jax.Array]:
    """The learning rate: linear from 0 to its peak over the warm-up, then a half cosine to 0 at `total_steps`.

        peak = base_learning_rate · batch_size / 256
        η(k) = peak · k / W                                          for k < W = warmup_steps
        η(k) = peak · (1 + cos(π · min(k - W, K - W) / (K - W))) / 2 for k >= W,    K = total_steps

    The rate of the first step is 0, unless there is no warm-up. `batch_size` is the global one.

    Raises:
        ConfigurationError: base_learning_rate < 0, batch_size or total_steps < 1, or warmup_steps outside
            [0, total_steps].

    Example:
        >>> learning_rate(0.2, 4096, 100, 1000)(50)
        Array(1.6, dtype=float32)

    Source: BYOL (arXiv:2006.07733), section 3.3, and google-deepmind/deepmind-research, `byol/`, for the details.
    """
    if not base_learning_rate >= 0:
        raise ConfigurationError(f"learning_rate: base_learning_rate={base_learning_rate}: expected at least 0")
    if not batch_size >= 1:
        raise ConfigurationError(f"learning_rate: batch_size={batch_size}: expected at least 1")
    _check_total(total_steps, "learning_rate")
    if not 0 <= warmup_steps <= total_steps:
        raise ConfigurationError(
            f"learning_rate: warmup_steps={warmup_steps}: expected 0 to total_steps={total_steps}; shorten the warm-up"
        )
    peak = base_learning_rate * batch_size / REFERENCE_BATCH_SIZE

    def schedule(step: Any) -> jax.Array:
        number = _number(step)
        rising = number / max(warmup_steps, 1)
        falling = _half_cosine(number - warmup_steps, max(total_steps - warmup_steps, 1))
        return peak * jnp.where(number < warmup_steps, rising, falling)

    return schedule


def _number(step: Any) -> jax.Array:
    """A step as float32: exact up to 2**24, far beyond any run's length."""
    return jnp.asarray(step, dtype=jnp.float32)


def _half_cosine(step: jax.Array, length: int) -> jax.Array:
    """From 1 at step 0 to 0 at step `length`, and 0 from there on.

    optax's cosine rounds otherwise: with a warm-up of 1,000 of 100,000 steps 426 rates differ, by up to 1.3e-5 of
    themselves near the end. A run that is resumed keeps its rates to the last bit.
    """
    return 0.5 * (1.0 + jnp.cos(jnp.pi * (jnp.minimum(step, length) / length)))


def _check_total(total_steps: int, where: str) -> None:
    if not total_steps >= 1:
        raise ConfigurationError(f"{where}: total_steps={total_steps}: expected at least 1")
