"""Features out of a network, batch by batch, with one compilation whatever the number of images."""

from collections.abc import Callable
from typing import Any

import numpy as np

from byol_jax.errors import ConfigurationError, DataError

__all__ = ["extract"]


def extract(
    embed: Callable[[Any], Any],
    images: Any,
    *,
    batch_size: int = 256,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Applies `embed` to all images, `batch_size` at a time; the last batch is padded with its own last image.

    Args:
        embed: [batch_size, …] -> [batch_size, D]; jit it. One row must not depend on another (evaluation mode). For a
            learner's: `functools.partial(jax.jit(learner.embed), state)`.
        images: [N, …], N at least 1: NumPy, JAX, or anything with a length that gives arrays for slices, such as
            `byol_jax.data.EvaluationImages`.
        batch_size: at least 1.
        progress: `progress(done, N)`, called after each batch.

    Returns:
        [N, D] on the host.

    Raises:
        ConfigurationError: `batch_size` below 1.
        DataError: no images, or `embed` doesn't give one row an image.

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
        kept = len(batch)
        if kept < batch_size:
            padding = [(0, batch_size - kept)] + [(0, 0)] * (batch.ndim - 1)
            batch = np.pad(batch, padding, mode="edge")  # [B, …]
        features = np.asarray(embed(batch))  # [B, D]
        if features.ndim != 2 or len(features) != batch_size:
            raise DataError(f"embed gave shape {features.shape} for {batch_size} images: expected [{batch_size}, D]")
        parts.append(features[:kept])
        if progress is not None:
            progress(start + kept, count)
    return np.concatenate(parts)  # [N, D]
