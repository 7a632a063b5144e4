"""Linear evaluation as tables on ImageNet report it: a linear classifier trained by SGD on frozen features.

The protocol of the BYOL paper's appendix C.1 but for one thing: features are those of the centre view, made once, so
nothing is augmented while the classifier trains. The whole sweep trains at once, under `vmap`. The probe that is solved
to its optimum is in linear.py.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byol_jax.data.order import epoch_order
from byol_jax.errors import ConfigurationError, DataError
from byol_jax.evaluate.inputs import labelled_parts
from byol_jax.evaluate.linear import validation_rows
from byol_jax.evaluate.sgd import (
    TOP,
    LinearClassifier,
    cosine_factors,
    hits,
    nesterov_update,
    positive_numbers,
    top_classes,
)

__all__ = ["LEARNING_RATES", "LinearSGDResult", "linear_sgd", "train_classifiers"]

LEARNING_RATES = (0.4, 0.3, 0.2, 0.1, 0.05)
"""Of the paper's sweep (C.1), at its batch of 1,024."""
BATCH_NORM_EPSILON = 1e-6
"""MAE's."""
Progress = Callable[[int, int], None]


class LinearSGDResult(NamedTuple):
    """What linear evaluation found.

    Attributes:
        accuracy, top5_accuracy: on the test part, in [0, 1]; of five classes or fewer every known one is in the top 5.
        learning_rate, weight_decay: the pair chosen.
        validation_accuracy: its accuracy on the held-out training rows, before the refit.
        predictions: [M] int32, labels of the training part.
        top5: [M, min(5, K)] int32, the most likely labels, most likely first.
        weights, bias: [D, K] and [K] float32, for features as they came, batch norm included: `features @ weights +
            bias` are the logits, column j for the j-th smallest label that the training part has.
        epochs, steps, batch_size: of the last fit.
    """

    accuracy: float
    top5_accuracy: float
    learning_rate: float
    weight_decay: float
    validation_accuracy: float
    predictions: np.ndarray
    top5: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    epochs: int
    steps: int
    batch_size: int


def linear_sgd(
    train_features: Any,
    train_labels: Any,
    test_features: Any,
    test_labels: Any,
    *,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = (0.0,),
    batch_norm: bool = False,
    epochs: int = 80,
    batch_size: int = 1024,
    validation_fraction: float = 0.2,
    seed: int = 0,
    progress: Progress | None = None,
) -> LinearSGDResult:
    """Trains linear classifiers by SGD with Nesterov momentum, chooses one on held-out rows, scores it on test rows.

        g = ∇ mean cross-entropy + weight_decay · w,   v = 0.9 v + g,   w = w - η(k) (g + 0.9 v),   w = v = 0 at first
        η(k) = learning_rate · (1 + cos(π k / K)) / 2,   K = epochs · ⌊N / batch⌋ steps

    Every pair of a learning rate and a weight decay trains at the same time on the same batches, without
    `validation_fraction` of each class; the pair with the best accuracy on these (among equals the first) trains again
    on all rows. Nothing is augmented: give features of the centre view. Features keep their scale, as in the paper, and
    so the best rate depends on it; `batch_norm` takes it away.

    Args:
        train_features, test_features: [N, D] and [M, D], floating, numpy or JAX.
        train_labels, test_labels: [N] and [M] integers ≥ 0.
        learning_rates: each > 0, for the batch as it is: they are not scaled.
        weight_decays: each ≥ 0, on weights and bias, as torch's SGD has it.
        batch_norm: normalise each batch's features by its mean and deviation, without scale and offset, and test rows
            by those of the training rows: torch's BatchNorm1d(D, affine=False, eps=1e-6). Features are frozen, so that
            these are known, where running statistics would begin at (0, 1) and depend on the number of steps.
        epochs: at least 1; the remainder of an epoch is dropped.
        batch_size: at least 1, with `batch_norm` 2; fewer rows than this are one batch.
        validation_fraction: in (0, 1).
        seed: of the validation rows and of the batches.
        progress: `progress(done, total)` in epochs, of the sweep and the refit together.

    Raises:
        ConfigurationError: an option out of range.
        DataError: features or labels that don't fit, fewer than two classes, too few rows to hold any out, or no pair
            of the sweep stays finite.

    Example:
        >>> import numpy as np
        >>> points, labels = np.array([[-1.0], [1.0]] * 10), np.array([0, 1] * 10)
        >>> result = linear_sgd(points, labels, points, labels, epochs=5)
        >>> result.accuracy, result.steps
        (1.0, 5)

    Source: BYOL, arXiv:2006.07733, appendix C.1: Nesterov 0.9, 80 epochs, batch 1,024, no weight decay, five rates. The
    cosine is that of google-deepmind/deepmind-research, `byol/`; batch norm without affine before the classifier that
    of MAE, arXiv:2111.06377, appendix A.1.
    """
    pairs = _sweep(learning_rates, weight_decays)
    _check_options(epochs, batch_size, validation_fraction, batch_norm=batch_norm)
    parts = labelled_parts(train_features, train_labels, test_features, test_labels)
    held_out = validation_rows(parts.train_classes, fraction=validation_fraction, seed=seed)  # [N] bool
    if batch_norm and np.count_nonzero(~held_out) < 2:
        raise DataError("batch_norm needs two rows to train on: give more, or batch_norm=False")
    train = partial(
        train_classifiers,
        parts.train,
        parts.train_classes,
        class_count=len(parts.classes),
        batch_norm=batch_norm,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
    )
    first = None if progress is None else lambda done: progress(done, 2 * epochs)
    swept = train(np.flatnonzero(~held_out), pairs, progress=first)
    accuracies = [
        _accuracy(LinearClassifier(*one), parts.train[held_out], parts.train_classes[held_out])
        for one in zip(*swept, strict=True)
    ]
    best = int(np.argmax(accuracies))
    if accuracies[best] < 0:
        raise DataError(
            f"no classifier stayed finite at learning rates {tuple(learning_rates)}: scale the features down, give"
            " smaller rates, or batch_norm=True"
        )
    second = None if progress is None else lambda done: progress(epochs + done, 2 * epochs)
    final = LinearClassifier(*(part[0] for part in train(np.arange(len(held_out)), [pairs[best]], progress=second)))
    top5 = parts.classes[top_classes(final, parts.test, count=TOP)]  # [M, min(5, K)]
    count, batch = len(held_out), min(batch_size, len(held_out))
    return LinearSGDResult(
        float(np.mean(hits(top5[:, :1], parts.test_labels))),
        float(np.mean(hits(top5, parts.test_labels))),
        *pairs[best],
        accuracies[best],
        top5[:, 0],
        top5,
        np.asarray(final.weights),
        np.asarray(final.bias),
        epochs,
        epochs * (count // batch),
        batch,
    )


def train_classifiers(
    features: jax.Array,
    classes: np.ndarray,
    rows: np.ndarray,
    pairs: Sequence[tuple[float, float]],
    *,
    class_count: int,
    batch_norm: bool = False,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> LinearClassifier:
    """One classifier [D, K] for each (learning rate, weight decay), trained together on `rows`; in features' dtype.

    Args:
        features: [N, D].
        classes: [N] int32 in [0, class_count).
        rows: [n] positions, those that are trained on.
        progress: told the number of epochs done.

    Returns:
        weights [S, D, K] and bias [S, K] for features as they came; what `batch_norm` does is in them.
    """
    dtype, (_, dimensions), batch = features.dtype, features.shape, min(batch_size, len(rows))
    steps = len(rows) // batch  # of an epoch
    rates, decays = (jnp.asarray(column, dtype) for column in zip(*pairs, strict=True))  # [S] each
    factors = cosine_factors(epochs * steps).astype(dtype)
    zeros = LinearClassifier(
        jnp.zeros((len(pairs), dimensions, class_count), dtype), jnp.zeros((len(pairs), class_count), dtype)
    )
    state = (zeros, zeros)
    classes = np.asarray(classes, np.int32)
    for epoch in range(epochs):
        order = rows[epoch_order(seed, epoch, len(rows))][: steps * batch].reshape(steps, batch)
        part = factors[epoch * steps : (epoch + 1) * steps]
        state = _train_epoch(state, features, classes, order.astype(np.int32), part, rates, decays, batch_norm)
        if progress is not None:
            progress(epoch + 1)
    classifiers, _ = state
    if not batch_norm:
        return classifiers
    seen = features[rows]  # [n, D]
    inverse = jax.lax.rsqrt(jnp.var(seen, axis=0, ddof=1) + BATCH_NORM_EPSILON)  # [D]
    weights = classifiers.weights * inverse[:, None]  # [S, D, K]
    shift = jnp.einsum("d,sdk->sk", jnp.mean(seen, axis=0), weights, precision=jax.lax.Precision.HIGHEST)
    return LinearClassifier(weights, classifiers.bias - shift)


@partial(jax.jit, static_argnums=7)
def _train_epoch(state, features, classes, order, factors, rates, decays, batch_norm):
    """All classifiers through one epoch: `order` [steps, B], `factors` [steps], `rates` and `decays` [S]."""

    def loss(classifier: LinearClassifier, x: jax.Array, labels: jax.Array) -> jax.Array:
        logits = jnp.matmul(x, classifier.weights, precision=jax.lax.Precision.HIGHEST) + classifier.bias  # [B, K]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    def update(classifier, velocity, rate, decay, x, labels):
        gradient = jax.grad(loss)(classifier, x, labels)
        return nesterov_update(classifier, gradient, velocity, rate, weight_decay=decay)

    def step(state, inputs):
        rows, factor = inputs
        x = features[rows]  # [B, D]
        if batch_norm:
            x = (x - jnp.mean(x, axis=0)) * jax.lax.rsqrt(jnp.var(x, axis=0) + BATCH_NORM_EPSILON)
        each = jax.vmap(update, in_axes=(0, 0, 0, 0, None, None))
        classifiers, velocity = state
        return each(classifiers, velocity, factor * rates, decays, x, jnp.take(classes, rows)), None

    return jax.lax.scan(step, state, (order, factors))[0]


def _accuracy(classifier: LinearClassifier, features: jax.Array, classes: np.ndarray) -> float:
    """On these rows; -1 where a logit isn't finite, which no accuracy is below."""
    top = top_classes(classifier, features, count=1)
    return -1.0 if np.any(top < 0) else float(np.mean(hits(top, classes)))


def _sweep(learning_rates: Sequence[float], weight_decays: Sequence[float]) -> list[tuple[float, float]]:
    """Every (learning rate, weight decay), after checks of both."""
    rates = positive_numbers("learning_rates", learning_rates)
    decays = [float(decay) for decay in weight_decays]
    if not decays or not all(0 <= decay < np.inf for decay in decays):
        raise ConfigurationError(
            f"weight_decays={tuple(weight_decays)}: expected finite numbers, one or more, each ≥ 0"
        )
    return list(itertools.product(rates, decays))


def _check_options(epochs: int, batch_size: int, validation_fraction: float, *, batch_norm: bool) -> None:
    if epochs < 1:
        raise ConfigurationError(f"epochs={epochs}: expected at least 1")
    if batch_size < 1 + batch_norm:
        raise ConfigurationError(f"batch_size={batch_size}: expected at least {1 + batch_norm}")
    if not 0 < validation_fraction < 1:
        raise ConfigurationError(f"validation_fraction={validation_fraction}: expected a number between 0 and 1")
