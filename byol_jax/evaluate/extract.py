"""Features out of a network, batch by batch, with one compilation whatever the number of images."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from byol_jax.errors import ConfigurationError, DataError

__all__ = ["extract"]

SAME = 1e-4
"""Of the largest feature: how far rounding may move a row when the others change."""


def extract(
    embed: Callable[[Any], Any],
    images: Any,
    *,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Applies `embed` to all images, `batch_size` at a time; a last batch of fewer is padded with its own last image.

    Args:
        embed: [batch_size, …] -> [batch_size, D]; jit it. For a learner's: `functools.partial(jax.jit(learner.embed),
            state)`. Where a row depends on the others of its batch, as with a batch norm that keeps no statistics, a
            last batch of fewer images is given as it is, which compiles once more.
        images: [N, …], N at least 1: NumPy, JAX, or anything with a length that gives arrays for slices, such as
            `byol_jax.data.EvaluationImages`.
        batch_size: at least 1.
        progress: `progress(done, N)`, called after each batch.

    Returns:
        [N, D] on the host.

    Raises:
        ConfigurationError: `batch_size` below 1.
        DataError: no images, or `embed` doesn't give one row an image.

    Warns: where a row depends on the others of its batch, as far as the padding tells.

    Example:
        >>> import numpy as np
        >>> extract(lambda batch: batch.reshape(len(batch), -1), np.ones((3, 2, 2)), batch_size=2).shape
        (3, 4)
    """
    if batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size}: expected at least 1")
    count = len(images)
    if count == 0:
        raise DataError("no images to embed: expected at least one")
    parts = []
    for start in range(0, count, batch_size):
        batch = np.asarray(images[start : start + batch_size])  # [n, …], n ≤ B
        features = _embed(embed, batch) if len(batch) == batch_size else _embed_fewer(embed, batch, batch_size)
        parts.append(features)
        if progress is not None:
            progress(start + len(batch), count)
    return np.concatenate(parts)  # [N, D]


def _embed(embed: Callable[[Any], Any], batch: np.ndarray) -> np.ndarray:
    features = np.asarray(embed(batch))
    if features.ndim != 2 or len(features) != len(batch):
        raise DataError(f"embed gave shape {features.shape} for {len(batch)} images: expected [{len(batch)}, D]")
    return features


def _embed_fewer(embed: Callable[[Any], Any], batch: np.ndarray, size: int) -> np.ndarray:
    """The features of fewer images than `size`, padded to it, twice: with other padding they must be the same."""
    padding = [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
    first, second = (_embed(embed, np.pad(batch, padding, mode=mode))[: len(batch)] for mode in ("edge", "constant"))
    largest = np.abs(first[np.isfinite(first)]).max(initial=0)
    if np.allclose(first, second, rtol=0, atol=SAME * largest, equal_nan=True):
        return first
    warnings.warn(
        f"an image's features depend on the other images of its batch, and so on batch_size={size}; the last"
        f" {len(batch)} are a batch of their own, as torch would take them",
        stacklevel=3,
    )
    return _embed(embed, batch)
