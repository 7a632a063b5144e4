"""Every accuracy beside its protocol: what the evaluation protocols find, as plain facts for a table and for JSON.

A protocol's function gives `{key: Score}`; `facts_of` turns these, for several kinds of features of the same images,
into accuracies, intervals and confusion matrices. The protocols themselves are in knn.py, linear.py, linear_sgd.py and
finetune.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import DataError
from byol_jax.evaluate.finetune import FinetuneResult, label_subset
from byol_jax.evaluate.interval import bootstrap_interval, confusion_matrix
from byol_jax.evaluate.knn import knn
from byol_jax.evaluate.linear import L2_CANDIDATES, linear_probe
from byol_jax.evaluate.linear_sgd import LEARNING_RATES, LinearSGDResult, Progress, linear_sgd
from byol_jax.evaluate.sgd import TOP, hits

__all__ = [
    "CONFUSION_CLASSES",
    "Labelled",
    "Score",
    "facts_of",
    "finetune_scores",
    "finetune_title",
    "knn_scores",
    "labelled_pixels_scores",
    "linear_scores",
    "logistic_scores",
]

CONFUSION_CLASSES = 50
"""Confusion matrices of at most so many classes are kept: 2,500 counts each, about a number for a test image."""
TEMPERATURE = 0.07
VALIDATION = "chosen on 20 % of the images to fit, then fitted on all of them"


class Labelled(NamedTuple):
    """Features and labels to fit on and to measure on: the first four arguments of `knn`."""

    train: Any
    train_labels: Any
    test: Any
    test_labels: Any


class Score(NamedTuple):
    """One protocol's outcome on the test images.

    Attributes:
        title: a few words for a table, such as "kNN, k = 20".
        how: the protocol in one line.
        right: [M] bool.
        predictions: [M] labels; None for a top-5 accuracy.
        chosen: what was chosen on validation images, by name.
    """

    title: str
    how: str
    right: np.ndarray
    predictions: np.ndarray | None
    chosen: Mapping[str, float]


def knn_scores(data: Labelled, counts: Sequence[int]) -> dict[str, Score]:
    """kNN at each of `counts`: "knn" where it is one alone, else "knn_10" and so on."""
    results = knn(*data, k=counts, temperature=TEMPERATURE, center=True)
    scores = {}
    for k, result in results.items():
        how = f"weighted vote of the {k:,} nearest by cosine, temperature {TEMPERATURE}, training mean subtracted"
        key = "knn" if len(counts) == 1 else f"knn_{k}"
        scores[key] = Score(f"kNN, k = {k:,}", how, _right(result.predictions, data), result.predictions, {})
    return scores


def logistic_scores(data: Labelled, *, seed: int) -> dict[str, Score]:
    """The probe that is solved to its optimum; its key is "linear", as it always was."""
    result = linear_probe(*data, seed=seed)
    candidates = ", ".join(map(str, L2_CANDIDATES))
    how = f"logistic regression by L-BFGS on standardised features; L2 of {candidates} {VALIDATION}"
    right = _right(result.predictions, data)
    return {"linear": Score("logistic regression", how, right, result.predictions, {"l2": result.l2})}


def linear_scores(
    data: Labelled, *, batch_norm: bool, epochs: int, seed: int, progress: Progress | None = None
) -> dict[str, Score]:
    """Linear evaluation by SGD: "linear_sgd" or "linear_sgd_bn", and their top 5 where there are more classes."""
    result = linear_sgd(*data, batch_norm=batch_norm, epochs=epochs, seed=seed, progress=progress)
    key, title = ("linear_sgd_bn", "linear, SGD, batch norm") if batch_norm else ("linear_sgd", "linear, SGD")
    rates = ", ".join(map(str, LEARNING_RATES))
    how = (
        ("features through a batch norm without scale and offset; " if batch_norm else "")
        + f"SGD, Nesterov 0.9, cosine, no weight decay, {result.epochs:,} epochs of batches of {result.batch_size:,}"
        f" ({result.steps:,} steps); learning rate of {rates} {VALIDATION}; centre views, nothing augmented"
    )
    chosen = {"learning_rate": result.learning_rate}
    scores = {key: Score(title, how, _right(result.predictions, data), result.predictions, chosen)}
    return scores | _top5(key, title, result, data.test_labels)


def finetune_title(fraction: float) -> str:
    """`0.01` as "fine-tuned, 1 % of labels".

    Example:
        >>> finetune_title(0.01)
        'fine-tuned, 1 % of labels'
    """
    return f"fine-tuned, {100 * fraction:.4g} % of labels"


def finetune_scores(
    result: FinetuneResult, test_labels: Any, *, fraction: float, rates: Sequence[float], augmentation: str
) -> dict[str, Score]:
    """Fine-tuning with a part of the labels: "finetune_0.01" and so on, and their top 5 of more than five classes."""
    key, title = f"finetune_{fraction:g}", finetune_title(fraction)
    several = f"learning rate of {', '.join(map(str, rates))} {VALIDATION}" if len(rates) > 1 else f"rate {rates[0]}"
    how = (
        f"encoder and classifier on {len(result.labelled):,} labels, of each class its share and at least one; SGD,"
        f" Nesterov 0.9, cosine, no weight decay, {result.epochs:,} epochs of batches of {result.batch_size:,}"
        f" ({result.steps:,} steps); {several}; {augmentation}; of raw pixels logistic regression on the same labels"
    )
    right, chosen = hits(result.top5[:, :1], np.asarray(test_labels)), {"learning_rate": result.learning_rate}
    return {key: Score(title, how, right, result.predictions, chosen)} | _top5(key, title, result, test_labels)


def labelled_pixels_scores(data: Labelled, *, fraction: float, seed: int) -> dict[str, Score]:
    """The pixels' control of fine-tuning: logistic regression on the same labels; none where these are too few."""
    rows = label_subset(data.train_labels, fraction=fraction, seed=seed)
    try:
        found = logistic_scores(data._replace(train=data.train[rows], train_labels=data.train_labels[rows]), seed=seed)
    except DataError:  # one label a class: none to choose the L2 on
        return {}
    return {f"finetune_{fraction:g}": found["linear"]}


def facts_of(
    scores: Mapping[str, Mapping[str, Score]],
    test_labels: Any,
    *,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Plain facts for JSON, of `{features: {key: Score}}`.

    Args:
        names: of the classes, by label.
        seed: of the bootstrap's draws, the same for all.

    Returns:
        "scores": {features: {key: accuracy}}; "intervals": {features: {key: [low, high]}}, 95 %; "protocols": {key:
        {"title", "how"}}, where features differ as of the last; "chosen": {features: {key: {name: value}}}, where
        something was chosen. For at most `CONFUSION_CLASSES` classes also "confusion": {"classes": names or labels,
        "counts": {features: {key: [K, K]}}}, row the label, column the prediction; of several kNN only the first has
        counts.
    """
    labels = np.asarray(test_labels)
    several = [(name, key, score) for name, found in scores.items() for key, score in found.items()]
    low, high = bootstrap_interval(np.stack([score.right for _, _, score in several]), seed=seed)
    facts: dict[str, Any] = {"scores": {}, "intervals": {}, "protocols": {}, "chosen": {}}
    for (name, key, score), *ends in zip(several, low, high, strict=True):
        facts["scores"].setdefault(name, {})[key] = float(np.mean(score.right))
        facts["intervals"].setdefault(name, {})[key] = [float(end) for end in ends]
        if score.chosen:
            facts["chosen"].setdefault(name, {})[key] = dict(score.chosen)
    for found in reversed(list(scores.values())):
        for key, score in found.items():
            facts["protocols"].setdefault(key, {"title": score.title, "how": score.how})
    return facts | _confusion(several, labels, names)


def _confusion(several: Sequence[tuple[str, str, Score]], labels: np.ndarray, names: Sequence[str] | None) -> dict:
    first = next((key for _, key, _ in several if key.startswith("knn")), None)
    shown = [one for one in several if one[2].predictions is not None and (one[1] == first or "knn" not in one[1])]
    occurring = [labels, *(score.predictions for _, _, score in shown)]
    classes = np.arange(len(names)) if names else np.unique(np.concatenate(occurring))
    if len(classes) > CONFUSION_CLASSES:
        return {}
    counts: dict[str, Any] = {}
    for name, key, score in shown:
        counts.setdefault(name, {})[key] = confusion_matrix(labels, score.predictions, classes=classes).tolist()
    return {"confusion": {"classes": list(names) if names else classes.tolist(), "counts": counts}}


def _right(predictions: np.ndarray, data: Labelled) -> np.ndarray:
    return predictions == np.asarray(data.test_labels)


def _top5(key: str, title: str, result: LinearSGDResult | FinetuneResult, labels: Any) -> dict[str, Score]:
    """Nothing for five classes or fewer, of which any answer is among five."""
    if len(result.bias) <= TOP:
        return {}
    right = hits(result.top5, np.asarray(labels))
    return {f"{key}_top5": Score(f"{title}, top 5", "the same; right where the label is among five", right, None, {})}
