"""Weighted k-nearest-neighbour classification of frozen features: the quickest honest measure, nothing is fitted.

Neighbours are found exactly, by cosine similarity, a chunk of test rows at a time. Not an index for serving.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from byol_jax.errors import ConfigurationError
from byol_jax.evaluate.inputs import exponents_of, labelled_parts

__all__ = ["KNNResult", "knn"]

CHUNK_ELEMENTS = 2**25
"""Bounds the similarities and the votes held at once: 128 MiB of float32 each, whatever the sizes."""


class KNNResult(NamedTuple):
    """`accuracy` in [0, 1]; `predictions` [M] int32, labels of the training part."""

    accuracy: float
    predictions: np.ndarray


@overload
def knn(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    k: int = 20,
    temperature: float = 0.07,
    center: bool = False,
) -> KNNResult: ...


@overload
def knn(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    k: Sequence[int],
    temperature: float = 0.07,
    center: bool = False,
) -> dict[int, KNNResult]: ...


def knn(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    k: int | Sequence[int] = 20,
    temperature: float = 0.07,
    center: bool = False,
) -> KNNResult | dict[int, KNNResult]:
    """Classifies each test row by its k most similar training rows.

        score_c = Σ_{i in k nearest} exp(cos(x, x_i) / temperature) · [y_i = c],  prediction = argmax_c score_c

    Equal similarities: the earlier training row is nearer. Equal scores: the smaller label wins. A row of zeros has
    similarity 0 to everything.

    Args:
        train_features, test_features: [N, D] and [M, D], floating, numpy or JAX (sharded over rows too).
        train_labels, test_labels: [N] and [M] integers ≥ 0.
        k: neighbours, 1 to N. Tables in the literature use 20 or 200: state it beside the number. Several of them,
            each once, take one pass: the neighbours of the largest are found, and each k votes with its nearest.
        temperature: > 0; the smaller, the more the nearest neighbour decides.
        center: subtract the training mean from both parts before normalising. Features that are all positive share
            a large mean which hides their directions; raw pixels gain most, so compare controls with True.

    Returns:
        `KNNResult` for a number; for several, `{k: KNNResult}` in their order.

    Raises:
        ConfigurationError: `k` or `temperature` out of range, no `k`, or one of them twice.
        DataError: features or labels that don't fit.

    Example:
        >>> import numpy as np
        >>> points = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> knn(points, np.array([3, 5]), np.array([[0.9, 0.1]]), np.array([3]), k=1)
        KNNResult(accuracy=1.0, predictions=array([3], dtype=int32))
        >>> results = knn(points, np.array([3, 5]), np.array([[0.9, 0.1]]), np.array([3]), k=(1, 2))
        >>> {k: result.accuracy for k, result in results.items()}
        {1: 1.0, 2: 1.0}

    Source: weights and temperature, Wu et al., arXiv:1805.01978, section 3.4; k = 20, DINO, arXiv:2104.14294.
    """
    parts = labelled_parts(train_features, train_labels, test_features, test_labels)
    train_count, test_count = len(parts.train), len(parts.test)
    counts = _neighbour_counts(k, train_count)
    if not 0 < temperature < np.inf:
        raise ConfigurationError(f"temperature={temperature}: expected a finite number above 0")
    most = max(counts)
    rows = max(1, min(test_count, CHUNK_ELEMENTS // max(train_count, most * len(parts.classes))))
    mean = jnp.mean(parts.train, axis=0) if center else jnp.zeros(parts.train.shape[1], jnp.float32)  # [D]
    train = _directions(parts.train - mean)  # [N, D]
    test = _directions(parts.test - mean)  # [M, D]
    takes_part = np.arange(most) < np.array(counts)[:, None]  # [S, k]: whether a neighbour is among the nearest of each
    vote = partial(_vote, takes_part=takes_part, k=most, temperature=temperature, class_count=len(parts.classes))
    starts = range(0, test_count, rows)
    # The last chunk overlaps the one before, so that every chunk has the same shape and one program serves all.
    chunks = [min(start, test_count - rows) for start in starts]
    winners = np.empty((len(counts), test_count), np.int32)
    for start in chunks:
        winners[:, start : start + rows] = vote(train, parts.train_classes, test, start, rows=rows)
    predictions = parts.classes[winners]  # [S, M]
    results = [KNNResult(float(np.mean(one == parts.test_labels)), one) for one in predictions]
    return results[0] if isinstance(k, int | np.integer) else dict(zip(counts, results, strict=True))


def _neighbour_counts(k: int | Sequence[int], train_count: int) -> list[int]:
    """The values of `k`, checked; a number alone is one of them."""
    counts = [int(k)] if isinstance(k, int | np.integer) else [int(one) for one in k]
    if not counts or len(set(counts)) < len(counts):
        raise ConfigurationError(f"k={k}: expected a number, or several that differ")
    for one in counts:
        if not 1 <= one <= train_count:
            raise ConfigurationError(f"k={one}: expected 1 to {train_count}, the number of training rows")
    return counts


def _directions(x: jax.Array) -> jax.Array:
    x = jnp.ldexp(x, -exponents_of(x, axis=1))  # exact; a square beyond float32's range would be infinite, or 0
    norm = jnp.linalg.norm(x, axis=1, keepdims=True)  # [N, 1]
    return x / jnp.where(norm > 0, norm, 1.0)


@partial(jax.jit, static_argnames=("rows", "k", "class_count"))
def _vote(
    train: jax.Array,
    classes: jax.Array,
    test: jax.Array,
    start: jax.Array,
    *,
    takes_part: jax.Array,
    rows: int,
    k: int,
    class_count: int,
    temperature: jax.Array,
) -> jax.Array:
    """Winning classes of test rows start … start + rows, [S, rows] int32, for each row of `takes_part` [S, k]."""
    chunk = lax.dynamic_slice_in_dim(test, start, rows)  # [B, D]
    similarity = jnp.matmul(chunk, train.T, precision=lax.Precision.HIGHEST)  # [B, N]
    nearest, index = lax.top_k(similarity, k)  # [B, k]; the lower index first among equals
    # Divided by the largest weight, which changes no winner and lets no temperature overflow. Not nearest[:, :1]: XLA's
    # CPU compiler turns a sliced top_k into a whole sort, which took 15 times as long (2,000 of 8,000 rows, k = 20).
    weight = jnp.exp((nearest - jnp.max(nearest, axis=1, keepdims=True)) / temperature)  # [B, k]
    counted = weight[:, None] * takes_part.astype(jnp.float32)  # [B, S, k]
    votes = jax.nn.one_hot(jnp.take(classes, index), class_count, dtype=jnp.float32)  # [B, k, K]
    scores = jnp.einsum("bsk,bkc->sbc", counted, votes, precision=lax.Precision.HIGHEST)
    return jnp.argmax(scores, axis=2).astype(jnp.int32)
