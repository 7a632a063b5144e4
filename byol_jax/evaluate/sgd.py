"""What linear evaluation and fine-tuning share: torch's SGD with Nesterov momentum, half a cosine, a linear classifier.

Checks and formulas; the protocols are in linear_sgd.py and finetune.py.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConfigurationError

__all__ = [
    "MOMENTUM",
    "TOP",
    "LinearClassifier",
    "cosine_factors",
    "hits",
    "nesterov_update",
    "positive_numbers",
    "top_classes",
]

MOMENTUM = 0.9
"""Of every SGD in the BYOL paper's appendices C and D."""
TOP = 5
LOGITS = 2**25
"""Bounds the logits held at once: 128 MiB of float32."""


class LinearClassifier(NamedTuple):
    """`features @ weights + bias` are the logits.

    Attributes:
        weights: [D, K], or [S, D, K] of several classifiers.
        bias: [K] or [S, K].
    """

    weights: jax.Array
    bias: jax.Array


def nesterov_update(
    params: Any, gradient: Any, velocity: Any, rate: Any, *, weight_decay: Any = 0.0
) -> tuple[Any, Any]:
    """One step of SGD: the new parameters and the new velocity, whose first is 0.

        g = gradient + weight_decay · w,   v = 0.9 v + g,   w = w - rate (g + 0.9 v)

    Example:
        >>> one = jnp.ones(())
        >>> nesterov_update(one, one, 0 * one, 0.5)[0].item()
        0.05...
    """

    def scaled(number: Any, leaf: jax.Array) -> jax.Array:
        return jnp.asarray(number, leaf.dtype) * leaf

    gradient = jax.tree.map(lambda g, w: g + scaled(weight_decay, w), gradient, params)
    velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, gradient)
    moved = jax.tree.map(lambda w, g, v: w - scaled(rate, g + MOMENTUM * v), params, gradient, velocity)
    return moved, velocity


def cosine_factors(steps: int) -> np.ndarray:
    """What the learning rate is multiplied by at each step: half a cosine from 1 towards 0, float64 [steps].

    Example:
        >>> cosine_factors(2).round(3).tolist()
        [1.0, 0.5]
    """
    return 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))


def top_classes(classifier: LinearClassifier, features: Any, *, count: int = TOP) -> np.ndarray:
    """The most likely classes of each row, most likely first, [M, min(count, K)] int32; -1 where logits aren't finite.

    Among equals the smaller class comes first.
    """
    class_count = classifier.bias.shape[-1]
    rows, parts = max(1, LOGITS // class_count), []
    for start in range(0, len(features), rows):
        parts.append(_top(classifier, features[start : start + rows], min(count, class_count)))
    return np.concatenate(parts)


@partial(jax.jit, static_argnums=2)
def _top(classifier: LinearClassifier, features: jax.Array, count: int) -> jax.Array:
    logits = jnp.matmul(features, classifier.weights, precision=jax.lax.Precision.HIGHEST) + classifier.bias  # [M, K]
    order = jax.lax.top_k(logits, count)[1].astype(jnp.int32)
    return jnp.where(jnp.all(jnp.isfinite(logits), axis=1, keepdims=True), order, -1)


def hits(top: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether a row's label is among those given for it, [M] bool.

    Example:
        >>> hits(np.array([[3, 1], [0, 2]]), np.array([1, 1])).tolist()
        [True, False]
    """
    return np.any(top == labels[:, None], axis=1)


def positive_numbers(name: str, numbers: Sequence[float]) -> list[float]:
    """`numbers` as floats.

    Raises:
        ConfigurationError: none, or one that isn't finite and above 0; `name` says which argument.
    """
    values = [float(number) for number in numbers]
    if not values or not all(0 < value < np.inf for value in values):
        raise ConfigurationError(f"{name}={tuple(numbers)}: expected one or more finite numbers above 0")
    return values
