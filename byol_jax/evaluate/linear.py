"""Linear probe: how much a straight line through frozen features knows about the labels.

The transfer protocol of the BYOL paper (arXiv:2006.07733, appendix D.2) at a size that needs no epochs: multinomial
logistic regression by L-BFGS, L2 chosen on held-out training rows, refitted on all of them. Test rows choose nothing.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConfigurationError, DataError
from byol_jax.evaluate.inputs import exponents_of, labelled_parts
from byol_jax.evaluate.logistic import LogisticFit, fit_logistic, principal_axes

__all__ = ["L2_CANDIDATES", "LinearProbeResult", "linear_probe", "validation_rows"]

L2_CANDIDATES = (0.1, 0.03, 0.01, 0.003)
"""Half a decade apart, around the best for standardised features of thousands of images (Fashion-MNIST: 0.03)."""
CHOICE_TOLERANCE = 1e-3
"""Of the fits that only choose the L2. It decides the same accuracies in half the iterations that the final fit's 1e-4
takes."""
CONSTANT = 1e-6
"""A dimension whose standard deviation is below this part of its mean is constant up to float32 rounding."""


class LinearProbeResult(NamedTuple):
    """What the probe found.

    Attributes:
        accuracy: on the test part, in [0, 1].
        l2: the candidate chosen.
        validation_accuracy: its accuracy on the held-out training rows, before the refit.
        predictions: [M] int32, labels of the training part.
        weights, bias: [D, K] and [K] float32, for features as they came: `features @ weights + bias` are the logits,
            column j for the j-th smallest label that the training part has.
        gradient_norm: of the final fit, 1e-4 or less if it converged.
    """

    accuracy: float
    l2: float
    validation_accuracy: float
    predictions: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    gradient_norm: float


def linear_probe(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    l2: Sequence[float] = L2_CANDIDATES,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> LinearProbeResult:
    """Fits a linear classifier on the training part and scores it on the test part.

        minimise  mean cross-entropy + l2/2 · ‖W‖²  over features standardised by the training mean and deviation

    Every class gives `validation_fraction` of its rows to validation. Among equals the largest `l2` is chosen.

    Args:
        train_features, test_features: [N, D] and [M, D], floating, numpy or JAX (sharded over rows too).
        train_labels, test_labels: [N] and [M] integers ≥ 0.
        l2: candidates, each > 0, in any order.
        validation_fraction: in (0, 1).
        seed: of the choice of validation rows.

    Raises:
        ConfigurationError: an option out of range.
        DataError: features or labels that don't fit, fewer than two classes, too few rows to hold any out.

    Example:
        >>> import numpy as np
        >>> points, labels = np.array([[-1.0], [1.0]] * 10), np.array([0, 1] * 10)
        >>> linear_probe(points, labels, points, labels).accuracy
        1.0
    """
    candidates = _candidates(l2, validation_fraction)
    parts = labelled_parts(train_features, train_labels, test_features, test_labels)
    held_out = validation_rows(parts.train_classes, fraction=validation_fraction, seed=seed)  # [N] bool
    mean, inverse_std = _standardisation(parts.train)
    train, test = (parts.train - mean) * inverse_std, (parts.test - mean) * inverse_std
    # One rotation, one shape and so one compilation serve all fits; a held-out row has weight 0.
    fit = partial(fit_logistic, principal_axes(train), parts.train_classes, class_count=len(parts.classes))
    chosen, validation_accuracy, start = candidates[0], -1.0, None
    best = start
    for candidate in candidates:  # strongest penalty first: each optimum starts the next
        start = fit(l2=candidate, row_weights=~held_out, start=start, tolerance=CHOICE_TOLERANCE)
        accuracy = float(np.mean((_predict(start, train) == parts.train_classes)[held_out]))
        if accuracy > validation_accuracy:
            chosen, validation_accuracy, best = candidate, accuracy, start
    final = fit(l2=chosen, start=best)
    predictions = parts.classes[_predict(final, test)]
    weights = final.weights * inverse_std[:, None]  # [D, K]
    return LinearProbeResult(
        float(np.mean(predictions == parts.test_labels)),
        chosen,
        validation_accuracy,
        predictions,
        np.asarray(weights),
        np.asarray(final.bias - mean @ weights),
        float(final.gradient_norm),
    )


def validation_rows(classes: np.ndarray, *, fraction: float, seed: int) -> np.ndarray:
    """Which rows are held out: [N] bool; of each class the nearest whole number to `fraction`, but never all rows.

    Raises:
        DataError: fewer than two classes, or no row to hold out.
    """
    random = np.random.default_rng(seed)
    held_out = np.zeros(len(classes), bool)
    present, counts = np.unique(classes, return_counts=True)
    if len(present) < 2:
        raise DataError("train_labels have one class only: expected at least two")
    for label, count in zip(present, counts, strict=True):
        rows = random.permutation(np.flatnonzero(classes == label))
        held_out[rows[: min(round(fraction * int(count)), int(count) - 1)]] = True
    if not held_out.any():
        raise DataError(f"validation_fraction={fraction} of {len(classes)} training rows leaves none to validate on")
    return held_out


def _candidates(l2: Sequence[float], validation_fraction: float) -> list[float]:
    """The L2 strengths to try, strongest first, after checks of both options."""
    candidates = sorted({float(value) for value in l2}, reverse=True)
    if not candidates or not all(0 < value < np.inf for value in candidates):
        raise ConfigurationError(f"l2={tuple(l2)}: expected one or more finite numbers above 0")
    if not 0 < validation_fraction < 1:
        raise ConfigurationError(f"validation_fraction={validation_fraction}: expected a number between 0 and 1")
    return candidates


@jax.jit
def _standardisation(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and inverse standard deviation, [D] each. The inverse is 0 for constant dimensions, so their weight is 0."""
    mean = jnp.mean(x, axis=0)
    exponents = exponents_of(x - mean, axis=0)  # [1, D]
    std = jnp.ldexp(jnp.sqrt(jnp.mean(jnp.square(jnp.ldexp(x - mean, -exponents)), axis=0)), exponents[0])
    varies = std > CONSTANT * jnp.abs(mean)
    return mean, jnp.where(varies, 1 / jnp.where(varies, std, 1.0), 0.0)


def _predict(fit: LogisticFit, x: jax.Array) -> np.ndarray:
    return np.asarray(jnp.argmax(x @ fit.weights + fit.bias, axis=1))
