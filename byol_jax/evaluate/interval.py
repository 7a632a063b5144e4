"""How sure an accuracy is, and which classes are taken for which: what a table of accuracies leaves out."""

from typing import Any

import numpy as np

from byol_jax.errors import ConfigurationError, DataError

__all__ = ["bootstrap_interval", "confusion_matrix"]

DRAWS = 2**22
"""Bounds the draws held at once: 32 MiB of each array."""


def bootstrap_interval(
    values: Any, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The percentile bootstrap's interval of a mean over images: how far it would move with other test images.

        low, high = quantiles (1 - level)/2 and (1 + level)/2 of  mean_m values[draw_m],  draw_m uniform in 0 … M - 1

    For an accuracy p of M images about p ± 1.96 √(p (1 - p) / M). It holds for the trained classifier as it is: that
    another seed or other training images would give another classifier is not in it.

    Args:
        values: [M], one number an image: right or wrong, as booleans, for an accuracy; the difference of two of these
            for what one is better than another on the same images. [S, M] for several, which share their draws.
        level: in (0, 1).
        resamples: at least 100.
        seed: of the draws.

    Returns:
        (low, high), float64, each of shape [] or [S].

    Raises:
        ConfigurationError: `level` or `resamples` out of range.
        DataError: another shape, no images, or not finite.

    Example:
        >>> low, high = bootstrap_interval(np.arange(100) < 80)
        >>> round(float(low), 2), round(float(high), 2)
        (0.72, 0.88)

    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979; percentile intervals, Efron and Tibshirani,
    "An introduction to the bootstrap", 1993, chapter 13.
    """
    x = np.asarray(values)
    if x.ndim not in (1, 2) or 0 in x.shape:
        raise DataError(f"values have shape {x.shape}: expected [M] or [S, M] with one number for each image")
    x = x.astype(np.float64)
    if not np.all(np.isfinite(x)):
        raise DataError("values have NaN or infinity: expected finite numbers")
    if not 0 < level < 1:
        raise ConfigurationError(f"level={level}: expected a number between 0 and 1")
    if resamples < 100:
        raise ConfigurationError(f"resamples={resamples}: expected at least 100, and better 1,000 or more")
    count, random, means = x.shape[-1], np.random.default_rng(seed), []
    at_once = max(1, DRAWS // count)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        draws = random.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]  # [R, M]
        times = np.bincount(draws.ravel(), minlength=rows * count).reshape(rows, count)  # how often each was drawn
        means.append(times @ x.T / count)  # [R] or [R, S]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def confusion_matrix(labels: Any, predictions: Any, *, classes: Any = None) -> np.ndarray:
    """How many images of each class are taken for each: counts [K, K] int64, row the label, column the prediction.

    Args:
        labels, predictions: [M] integers.
        classes: [K] ascending, the labels of rows and columns; by default all that occur.

    Raises:
        DataError: shapes that differ, classes that don't ascend, or a label that `classes` lacks.

    Example:
        >>> confusion_matrix([0, 0, 1], [0, 1, 1]).tolist()
        [[1, 1], [0, 1]]
    """
    true, predicted = np.asarray(labels), np.asarray(predictions)
    if (
        true.ndim != 1
        or true.shape != predicted.shape
        or true.dtype.kind not in "iu"
        or predicted.dtype.kind not in "iu"
    ):
        given = f"labels {true.dtype} {true.shape} and predictions {predicted.dtype} {predicted.shape}"
        raise DataError(f"{given}: expected integers, [M] each")
    names = np.unique(np.concatenate([true, predicted])) if classes is None else np.asarray(classes)
    if (names[1:] <= names[:-1]).any():
        raise DataError(f"classes {names.tolist()}: expected ascending numbers, each once")
    absent = np.setdiff1d(np.concatenate([true, predicted]), names)
    if len(absent):
        raise DataError(f"classes lack {', '.join(map(str, absent[:5]))}, which labels or predictions have")
    rows, columns = np.searchsorted(names, true), np.searchsorted(names, predicted)
    size = len(names)
    return np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)
