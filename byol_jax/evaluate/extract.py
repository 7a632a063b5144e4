"""Features out of a network, batch by batch, with one compilation whatever the number of images."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from byol_jax.errors import ConfigurationError, DataError

__all__ = ["extract", "extract_batches"]

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
    return np.concatenate(list(_batches(embed, images, batch_size, progress, rank=2)))  # [N, D]


def extract_batches(
    embed: Callable[[Any], Any],
    images: Any,
    *,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[np.ndarray]:
    """What `extract` gives, batch by batch and of any rank: memory for one, however many images there are.

    Args:
        embed: [batch_size, …] -> [batch_size, …]; see `extract` for what is said of it and of the others.
        images, batch_size, progress: as in `extract`.

    Yields:
        [n, …] on the host, n = batch_size but for the last.

    Raises:
        ConfigurationError: `batch_size` below 1.
        DataError: no images, or `embed` doesn't give one row an image.

    Example:
        >>> import numpy as np
        >>> [len(rows) for rows in extract_batches(lambda batch: batch[:, :, None], np.ones((3, 2)), batch_size=2)]
        [2, 1]
    """
    return _batches(embed, images, batch_size, progress, rank=None)


def _batches(
    embed: Callable[[Any], Any],
    images: Any,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
    *,
    rank: int | None,
) -> Iterator[np.ndarray]:
    """What `extract_batches` gives; with a rank, rows of others are refused."""
    if batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size}: expected at least 1")
    count = len(images)
    if count == 0:
        raise DataError("no images to embed: expected at least one")
    for start in range(0, count, batch_size):
        batch = np.asarray(images[start : start + batch_size])  # [n, …], n ≤ B
        is_whole = len(batch) == batch_size
        yield _embed(embed, batch, rank) if is_whole else _embed_fewer(embed, batch, batch_size, rank)
        if progress is not None:
            progress(start + len(batch), count)


def _embed(embed: Callable[[Any], Any], batch: np.ndarray, rank: int | None) -> np.ndarray:
    features = np.asarray(embed(batch))
    if features.ndim < 2 or features.ndim != (rank or features.ndim) or len(features) != len(batch):
        axes = "…" if rank is None else "D"
        raise DataError(f"embed gave shape {features.shape} for {len(batch)} images: expected [{len(batch)}, {axes}]")
    return features


def _embed_fewer(embed: Callable[[Any], Any], batch: np.ndarray, size: int, rank: int | None) -> np.ndarray:
    """The features of fewer images than `size`, padded to it, twice: with other padding they must be the same."""
    padding = [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
    first, second = (
        _embed(embed, np.pad(batch, padding, mode=mode), rank)[: len(batch)] for mode in ("edge", "constant")
    )
    largest = np.abs(first[np.isfinite(first)]).max(initial=0)
    if np.allclose(first, second, rtol=0, atol=SAME * largest, equal_nan=True):
        return first
    warnings.warn(
        f"an image's features depend on the other images of its batch, and so on batch_size={size}; the last"
        f" {len(batch)} are a batch of their own, as torch would take them",
        stacklevel=4,
    )
    return _embed(embed, batch, rank)
