"""Fine-tuning: the whole encoder and a linear classifier, trained with all labels or with a few of them.

The semi-supervised protocol of the BYOL paper's appendix C.1, and with all labels its supervised baseline. Classifiers
on frozen features are in linear_sgd.py and linear.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byol_jax.byol import Learner, encoder_variables
from byol_jax.data.order import epoch_order
from byol_jax.errors import ConfigurationError, DataError
from byol_jax.evaluate.extract import extract
from byol_jax.evaluate.inputs import check_labels
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
from byol_jax.ops.precision import standard_promotion
from byol_jax.tree import copy_leaves
from byol_jax.types import TrainState, Variables
from byol_jax.views import dropout_key, network_input, normalize_images, unit_range

__all__ = ["RATES", "FinetuneResult", "finetune", "label_subset"]

RATES = (0.1, 0.05, 0.02, 0.01, 0.005)
"""Of the paper's sweep (C.1), at its batch of 1,024."""


class FinetuneResult(NamedTuple):
    """What fine-tuning found.

    Attributes:
        accuracy, top5_accuracy: on the test part, in [0, 1]; of five classes or fewer every known one is in the top 5.
        learning_rate: the one chosen.
        validation_accuracy: its accuracy on the held-out labelled images, before the refit; None for one rate alone.
        predictions: [M] int32, labels of the training part.
        top5: [M, min(5, K)] int32, the most likely labels, most likely first.
        labelled: [n] int64, positions of the training images whose labels were used.
        variables: the encoder's `Variables` after training.
        weights, bias: the classifier's [D, K] and [K], column j for the j-th smallest label of the training part.
        epochs, steps, batch_size: of the last fit.
    """

    accuracy: float
    top5_accuracy: float
    learning_rate: float
    validation_accuracy: float | None
    predictions: np.ndarray
    top5: np.ndarray
    labelled: np.ndarray
    variables: Variables
    weights: np.ndarray
    bias: np.ndarray
    epochs: int
    steps: int
    batch_size: int


class _Network(NamedTuple):
    """What is trained, and what goes with it from step to step."""

    params: dict[str, Any]
    stats: Any
    velocity: dict[str, Any]


class _Images(NamedTuple):
    """Labelled images: `images[rows]` [n, H, W, C], and `classes` [N] int32 in [0, K)."""

    images: Any
    classes: np.ndarray


def finetune(
    learner: Learner,
    state: TrainState,
    train_images: Any,
    train_labels: Any,
    test_images: Any,
    test_labels: Any,
    *,
    which: str = "online",
    label_fraction: float = 1.0,
    learning_rates: Sequence[float] = RATES,
    augment_fn: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    epochs: int = 30,
    batch_size: int = 1024,
    validation_fraction: float = 0.2,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FinetuneResult:
    """Trains a state's encoder and a linear classifier on its features by SGD, and scores both on the test part.

        g = ∇ mean cross-entropy,   v = 0.9 v + g,   w = w - η(k) (g + 0.9 v),   v = 0 at first
        η(k) = learning_rate · (1 + cos(π k / K)) / 2,   K = epochs · ⌊n / batch⌋ steps

    The encoder runs in training mode: batch norm takes each batch's statistics and moves its running ones. The
    classifier starts from zeros. Of several learning rates each trains without `validation_fraction` of each class of
    the labelled images; the one with the best accuracy on these (among equals the first) trains again on all of them.

    Args:
        learner, state: the network and its weights; `state` is left as it is. The state that pre-training started from,
            with the same options, says what it was worth.
        train_images, test_images: [N, H, W, C] and [M, H, W, C] of the learner's size, as its `step` takes
            them; arrays, or anything that gives arrays for slices and for rows, such as
            `byol_jax.data.EvaluationImages`.
        train_labels, test_labels: [N] and [M] integers ≥ 0.
        which: "online" or "target", the network.
        label_fraction: in (0, 1], the part of each class whose labels are used; `label_subset` chooses, at least one.
        learning_rates: each > 0, for the batch as it is: they are not scaled.
        augment_fn: `(key, image) -> image` for one float image [H, W, C] in [0, 1], before normalisation; None: none.
            The paper's is `augment.crop_and_flip(image_size)`.
        epochs: at least 1; the remainder of an epoch is dropped.
        batch_size: at least 2; fewer images than this are one batch.
        validation_fraction: in (0, 1).
        seed: of the subset, the validation images, the batches, augmentation and dropout.
        progress: `progress(done, total)` in steps, of all fits together.

    Raises:
        ConfigurationError: an option out of range, a learner with an `axis_name`, or the target of a learner without
            momentum.
        DataError: labels that don't fit, fewer than two classes, several rates and too few labelled images to hold any
            out, or no fit stays finite.

    Example:
        >>> import byol_jax
        >>> images, labels = np.repeat(np.array([[0.0], [1.0]]), 8).reshape(16, 1, 1, 1), np.repeat([0, 1], 8)
        >>> images = (images * np.ones((1, 8, 8, 1))).astype(np.float32)
        >>> learner = byol_jax.make_learner(byol_jax.nets.small_cnn((4,)), image_size=8, num_channels=1,
        ...                                 projection_size=4, projection_hidden_size=4)
        >>> state = learner.init(jax.random.key(0))
        >>> result = finetune(learner, state, images, labels, images, labels, learning_rates=[0.1], epochs=3)
        >>> result.steps, len(result.labelled)
        (3, 16)

    Source: BYOL, arXiv:2006.07733, appendix C.1: Nesterov 0.9, batch 1,024, no weight decay, five rates, 30 or 50
    epochs, random crops and flips; labels in the shares of SimCLR's splits, arXiv:2002.05709. The cosine is that of
    google-deepmind/deepmind-research, `byol/`.
    """
    rates = positive_numbers("learning_rates", learning_rates)
    _check_options(learner, epochs, batch_size, validation_fraction)
    labels = check_labels(train_labels, len(train_images), name="train_labels", rows="images")
    tested = check_labels(test_labels, len(test_images), name="test_labels", rows="images")
    names, classes = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise DataError("train_labels have one class only: expected at least two")
    labelled = label_subset(classes, fraction=label_fraction, seed=seed)  # [n]
    held_out = np.zeros(len(labelled), bool)
    if len(rates) > 1:
        held_out = validation_rows(classes[labelled], fraction=validation_fraction, seed=seed)
    fitted, left = labelled[~held_out], labelled[held_out]
    encoder = encoder_variables(learner.evaluation_state(state), which)
    train, test = _Images(train_images, classes.astype(np.int32)), _Images(test_images, tested)

    lengths = [_steps(len(fitted), batch_size, epochs)] * (len(rates) if len(rates) > 1 else 0)
    lengths.append(_steps(len(labelled), batch_size, epochs))
    done = 0

    def fit(rows: np.ndarray, rate: float) -> _Network:
        nonlocal done
        before, done = done, done + _steps(len(rows), batch_size, epochs)
        said = None if progress is None else partial(_say, progress, before, sum(lengths))
        run = {"rate": rate, "epochs": epochs, "batch_size": batch_size, "seed": seed, "progress": said}
        return _fit(learner, encoder, train, rows, len(names), augment_fn, **run)

    scores = []
    for rate in rates if len(rates) > 1 else ():
        top = _top_classes(learner, fit(fitted, rate), train.images, left, batch_size)
        scores.append(-1.0 if np.any(top < 0) else float(np.mean(hits(top[:, :1], train.classes[left]))))
    best = int(np.argmax(scores)) if scores else 0
    network = fit(labelled, rates[best])
    top = _top_classes(learner, network, test.images, np.arange(len(tested)), batch_size)
    if np.any(top < 0):
        raise DataError(f"no fit stayed finite at learning rates {tuple(learning_rates)}: give smaller ones")
    top5, classifier = names[top], network.params["classifier"]
    return FinetuneResult(
        float(np.mean(hits(top5[:, :1], tested))),
        float(np.mean(hits(top5, tested))),
        rates[best],
        scores[best] if scores else None,
        top5[:, 0],
        top5,
        labelled,
        Variables(network.params["encoder"], network.stats),
        np.asarray(classifier.weights),
        np.asarray(classifier.bias),
        epochs,
        lengths[-1],
        min(batch_size, len(labelled)),
    )


def label_subset(labels: Any, *, fraction: float, seed: int) -> np.ndarray:
    """Which rows' labels are used: of each class the nearest whole number to `fraction`, at least one; ascending.

    The same seed's smaller fraction is a part of its larger one.

    Args:
        labels: [N] integers.
        fraction: in (0, 1].
        seed: of the choice.

    Raises:
        ConfigurationError: `fraction` out of range.

    Example:
        >>> label_subset(np.array([0, 0, 0, 0, 1]), fraction=0.5, seed=0).shape
        (3,)
    """
    if not 0 < fraction <= 1:
        raise ConfigurationError(f"label_fraction={fraction}: expected a number above 0, at most 1")
    random, rows = np.random.default_rng(seed), []
    array = np.asarray(labels)
    if not len(array):
        raise DataError("labels are empty: expected at least one")
    for label in np.unique(array):
        of_class = random.permutation(np.flatnonzero(array == label))
        rows.append(of_class[: max(1, round(fraction * len(of_class)))])
    return np.sort(np.concatenate(rows))


def _say(progress: Callable[[int, int], None], before: int, total: int, step: int) -> None:
    progress(before + step, total)


def _steps(count: int, batch_size: int, epochs: int) -> int:
    return epochs * (count // min(batch_size, count))


def _fit(
    learner: Learner,
    encoder: Variables,
    data: _Images,
    rows: np.ndarray,
    class_count: int,
    augment_fn: Callable | None,
    *,
    rate: float,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] | None,
) -> _Network:
    """The encoder and a classifier after training on these rows."""
    settings, count, batch = learner.settings, len(rows), min(batch_size, len(rows))
    classifier = LinearClassifier(
        jnp.zeros((settings.feature_size, class_count), settings.storage_dtype),
        jnp.zeros(class_count, settings.storage_dtype),
    )
    params = {"encoder": copy_leaves(encoder.params), "classifier": classifier}
    network = _Network(params, copy_leaves(encoder.stats), jax.tree.map(jnp.zeros_like, params))
    factors, key, step = cosine_factors(_steps(count, batch_size, epochs)), jax.random.key(seed), 0
    for epoch in range(epochs):
        order = rows[epoch_order(seed, epoch, count)]
        for start in range(0, count - batch + 1, batch):
            chosen = order[start : start + batch]
            images, classes = np.asarray(data.images[chosen]), data.classes[chosen]
            network = _step(network, images, classes, rate * factors[step], key, step, learner, augment_fn)
            step += 1
            if progress is not None:
                progress(step)
    return network


@partial(jax.jit, static_argnums=(6, 7), donate_argnums=0)
def _step(network, images, classes, rate, key, step, learner, augment_fn) -> _Network:
    """One step on images [B, H, W, C] as they came and their classes [B]."""
    settings, key = learner.settings, jax.random.fold_in(key, step)
    inputs = unit_range(settings, images)
    if augment_fn is not None:
        with standard_promotion():
            keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(len(images)))
            inputs = jax.vmap(augment_fn)(keys, inputs)
    inputs = normalize_images(settings, inputs.astype(settings.storage_dtype))

    def loss(params):
        variables = Variables(params["encoder"], network.stats)
        features, stats = settings.encoder.apply(variables, inputs, train=True, key=dropout_key(settings, key))
        losses = optax.softmax_cross_entropy_with_integer_labels(_logits(params["classifier"], features), classes)
        return jnp.mean(losses), stats

    gradient, stats = jax.grad(loss, has_aux=True)(network.params)
    params, velocity = nesterov_update(network.params, gradient, network.velocity, rate)
    return _Network(params, stats, velocity)


def _logits(classifier: LinearClassifier, features: jax.Array) -> jax.Array:
    return jnp.matmul(features, classifier.weights, precision=jax.lax.Precision.HIGHEST) + classifier.bias  # [B, K]


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows of images, slice by slice."""

    images: Any
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> np.ndarray:
        return self.images[self.rows[part]]


def _top_classes(learner: Learner, network: _Network, images: Any, rows: np.ndarray, batch_size: int) -> np.ndarray:
    """The most likely classes of these images in evaluation mode, [len(rows), min(5, K)]; -1 where not finite."""
    variables, batch_size = Variables(network.params["encoder"], network.stats), min(batch_size, len(rows))
    features = extract(partial(_features, learner, variables), _Rows(images, rows), batch_size=batch_size)
    return top_classes(network.params["classifier"], features, count=TOP)


@partial(jax.jit, static_argnums=0)
def _features(learner: Learner, variables: Variables, images: jax.Array) -> jax.Array:
    inputs = network_input(learner.settings, images)
    return learner.settings.encoder.apply(variables, inputs, train=False)[0]


def _check_options(learner: Learner, epochs: int, batch_size: int, validation_fraction: float) -> None:
    if learner.settings.axis_name is not None:
        raise ConfigurationError(
            f"finetune runs without a mapped axis: make the learner without axis_name={learner.settings.axis_name!r}"
        )
    if epochs < 1:
        raise ConfigurationError(f"epochs={epochs}: expected at least 1")
    if batch_size < 2:
        raise ConfigurationError(f"batch_size={batch_size}: expected at least 2; batch norm compares images")
    if not 0 < validation_fraction < 1:
        raise ConfigurationError(f"validation_fraction={validation_fraction}: expected a number between 0 and 1")
