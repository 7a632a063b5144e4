"""What `byol-jax evaluate` measures: the protocols asked for, on a run's network and on its controls.

The controls are the images' own pixels, and the network as it was before it was trained. Options and the table are in
cli/commands/evaluate.py, the protocols in evaluate/.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from byol_jax import augment, evaluate
from byol_jax.cli.images import LabelledImages, features_of, pixels_of
from byol_jax.data import EvaluationImages, evaluation_images
from byol_jax.data.ranges import to_unit
from byol_jax.errors import DataError
from byol_jax.evaluate import scores
from byol_jax.evaluate.linear import validation_rows
from byol_jax.image_size import image_sides
from byol_jax.runs.artifacts import START
from byol_jax.runs.folder import run_paths
from byol_jax.runs.network import starts_random
from byol_jax.runs.pictures import channels_shown, neighbours_grid
from byol_jax.runs.progress import progress_bar
from byol_jax.runs.reopen import Run
from byol_jax.types import TrainState

__all__ = ["measure"]

CONTROL_PIXELS = 32
"""The pixels control sees images of at most this size: a linear probe on 224 x 224 x 3 numbers would need gigabytes."""
LOOKED_UP, NEAREST = 8, 4
"""Test images whose neighbours are drawn, and neighbours of each."""
MAPPED = 500
"""Test images on the map at most: more dots hide each other, and each costs 60 bytes of the report."""
VALIDATION_FRACTION = 0.2
"""The default of the protocols that choose something."""


def measure(
    options: argparse.Namespace,
    opened: Run,
    train: LabelledImages,
    test: LabelledImages,
    class_names: Sequence[str] | None,
) -> dict[str, Any]:
    """The part of evaluation.json that is measured: `scores.facts_of`, "k" of a kNN, "map" and "projections".

    Draws RUN/neighbours.png too, or removes an older one, where features or colours for it are lacking.

    Raises:
        DataError: fine-tuning has too few labels to choose a learning rate on; before anything is computed.
    """
    if "finetune" in options.protocol:
        _check_labels(options, train.labels)
    counts = _neighbour_counts(options.k, len(train.labels))
    control, start = _start(options, opened)
    states = {control: start, "byol": opened.state}
    found: dict[str, dict[str, scores.Score]] = {name: {} for name in ("raw_pixels", *states)}
    features: dict[str, scores.Labelled] = {}
    if set(options.protocol) - {"finetune"}:
        features = _features(options, opened, states, train, test)
        for name, parts in features.items():
            try:
                found[name] |= _frozen(options, counts, parts, label=name)
            except DataError as error:
                raise DataError(f"{name}: {error}") from None
    if "finetune" in options.protocol:
        tune = _fine_tuning(options, opened, train, test)
        pixels = _pixels(opened, train, test)
        for fraction in options.label_fraction:
            found["raw_pixels"] |= scores.labelled_pixels_scores(pixels, fraction=fraction, seed=options.seed)
            for name, state in states.items():
                found[name] |= tune(state, fraction, name)
    found = {name: of_features for name, of_features in found.items() if of_features}
    _draw_neighbours(options, opened, features, train, test)
    facts: dict[str, Any] = {}
    if "knn" in options.protocol:
        facts["k"] = counts if len(counts) > 1 else counts[0]
    facts |= scores.facts_of(found, test.labels, names=class_names, seed=options.seed)
    if len(test.labels) > 1:  # with one image there is nothing to compare
        facts |= _map(features, test.labels, class_names, seed=options.seed)
        facts["projections"] = evaluate.collapse(_projections(options, opened, test))._asdict()
    return facts


def _check_labels(options: argparse.Namespace, labels: np.ndarray) -> None:
    """Refuses several learning rates where a part of the labels leaves none to choose on."""
    if len(options.finetune_learning_rate) == 1:
        return
    for fraction in options.label_fraction:
        labelled = labels[evaluate.label_subset(labels, fraction=fraction, seed=options.seed)]
        try:
            validation_rows(labelled, fraction=VALIDATION_FRACTION, seed=options.seed)
        except DataError:
            raise DataError(
                f"--label-fraction {fraction:g} leaves {len(labelled)} labels, too few to choose a learning rate on:"
                " give one, as --finetune-learning-rate 0.02, or more labels"
            ) from None


def _neighbour_counts(asked: Sequence[int], train_count: int) -> list[int]:
    """`--k`, at most as many as there are; says where that are fewer."""
    counts = list(dict.fromkeys(min(k, train_count) for k in asked))
    if max(asked) > train_count:
        print(f"--k {max(asked)}: {train_count:,} images fit the classifiers, so k = {train_count}", file=sys.stderr)
    return counts


def _features(
    options: argparse.Namespace,
    opened: Run,
    states: dict[str, TrainState],
    train: LabelledImages,
    test: LabelledImages,
) -> dict[str, scores.Labelled]:
    """Features of both parts, [n, D] each, for the run and its controls, with the labels."""
    embed = opened.embedding()
    sizes = {"image_size": opened.image_size, "batch_size": options.batch_size}
    found = {"raw_pixels": _pixels(opened, train, test)}
    for name, state in states.items():
        of, on = (features_of(embed, state, part.dataset, part.indices, label=name, **sizes) for part in (train, test))
        found[name] = scores.Labelled(of, train.labels, on, test.labels)
    return found


def _pixels(opened: Run, train: LabelledImages, test: LabelledImages) -> scores.Labelled:
    """The images themselves, small, with their labels."""
    height, width = (min(side, CONTROL_PIXELS) for side in image_sides(opened.image_size))
    options = {"image_size": (height, width), "value_range": opened.learner.settings.value_range}
    of, on = (pixels_of(part.dataset, part.indices, **options) for part in (train, test))
    return scores.Labelled(of, train.labels, on, test.labels)


def _frozen(
    options: argparse.Namespace, counts: Sequence[int], data: scores.Labelled, *, label: str
) -> dict[str, scores.Score]:
    """The protocols on frozen features, in the order of the help."""
    found = {}
    if "knn" in options.protocol:
        found |= scores.knn_scores(data, counts)
    if "logistic" in options.protocol:
        found |= scores.logistic_scores(data, seed=options.seed)
    if "linear" in options.protocol:
        for batch_norm in (False, True):
            with progress_bar(f"{label}, linear" + ", batch norm" * batch_norm) as update:
                found |= scores.linear_scores(
                    data, batch_norm=batch_norm, epochs=options.linear_epochs, seed=options.seed, progress=update
                )
    return found


def _fine_tuning(
    options: argparse.Namespace, opened: Run, train: LabelledImages, test: LabelledImages
) -> Callable[[TrainState, float, str], dict[str, scores.Score]]:
    """A function that fine-tunes the network from a state, with a part of the labels; its third argument is a name."""
    crops, rates = options.finetune_augment == "crop-flip", options.finetune_learning_rate
    augmentation = "random crops of the centre view, flips" if crops else "centre views, nothing augmented"
    augment_fn = augment.crop_and_flip(opened.image_size) if crops else None
    of, on = (EvaluationImages(part.dataset, part.indices, opened.image_size) for part in (train, test))

    def tune(state: TrainState, fraction: float, name: str) -> dict[str, scores.Score]:
        with progress_bar(f"{name}, {scores.finetune_title(fraction)}") as update:
            result = evaluate.finetune(
                opened.learner,
                state,
                of,
                train.labels,
                on,
                test.labels,
                which=options.which,
                label_fraction=fraction,
                learning_rates=rates,
                augment_fn=augment_fn,
                epochs=options.finetune_epochs,
                batch_size=options.finetune_batch_size,
                validation_fraction=VALIDATION_FRACTION,
                seed=options.seed,
                progress=update,
            )
        return scores.finetune_scores(result, test.labels, fraction=fraction, rates=rates, augmentation=augmentation)

    return tune


def _draw_neighbours(
    options: argparse.Namespace,
    opened: Run,
    features: dict[str, scores.Labelled],
    train: LabelledImages,
    test: LabelledImages,
) -> None:
    """RUN/neighbours.png: a few test images, and what each kind of features finds nearest of the images to fit."""
    path = run_paths(options.run).neighbours
    path.unlink(missing_ok=True)
    if not features:
        return
    shown = channels_shown(train.dataset.image_shape[-1])
    rows = np.sort(np.random.default_rng(options.seed).permutation(len(test.labels))[:LOOKED_UP])
    blocks = {}
    for name, data in features.items():
        nearest = _nearest(data.train, data.test[rows], min(NEAREST, len(train.labels)))  # [N, k]
        found = evaluation_images(train.dataset, train.indices[nearest.ravel()], opened.image_size)
        found = to_unit(found, opened.learner.settings.value_range)[..., :shown]
        alike = train.labels[nearest] == test.labels[rows][:, None]
        blocks[name.replace("_", " ")] = found.reshape(*nearest.shape, *found.shape[1:]), alike
    looked_up = evaluation_images(test.dataset, test.indices[rows], opened.image_size)
    neighbours_grid(to_unit(looked_up, opened.learner.settings.value_range)[..., :shown], blocks, path)


def _nearest(train: np.ndarray, test: np.ndarray, count: int) -> np.ndarray:
    """The `count` most similar training rows of each test row, as kNN finds them, [N, count]."""
    mean = train.mean(axis=0)
    of, on = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (train - mean, test - mean))
    return np.argsort(-(on @ of.T), axis=1, kind="stable")[:, :count]


def _map(
    features: dict[str, scores.Labelled], labels: np.ndarray, names: Sequence[str] | None, *, seed: int
) -> dict[str, Any]:
    """{"map": …}: some test images of each kind of features on two principal components, to five digits."""
    if not features or min(data.test.shape[1] for data in features.values()) < 2:
        return {}
    rows = np.sort(np.random.default_rng(seed).permutation(len(labels))[:MAPPED])
    classes = np.arange(len(names)) if names else np.unique(labels)
    coordinates = {}
    for name, data in features.items():
        found = evaluate.principal_components(data.test[rows])
        x, y = ([float(f"{value:.5g}") for value in axis] for axis in found.coordinates.T)
        coordinates[name] = {"x": x, "y": y, "explained": float(found.explained.sum())}
    groups = np.searchsorted(classes, labels[rows]).tolist()
    shown = list(names) if names else classes.tolist()
    return {"map": {"classes": shown, "groups": groups, "coordinates": coordinates}}


def _start(options: argparse.Namespace, opened: Run) -> tuple[str, TrainState]:
    """The control's name and state: what the run started from, random or given weights."""
    import interop

    state = opened.learner.init(jax.random.key(opened.config["seed"]))
    weights = run_paths(options.run).exported / START
    if weights.exists():
        return "starting_weights", interop.open_weights(weights).start(opened.encoder, state)
    return "random_init" if starts_random(opened.config["network"]) else "starting_weights", state


def _projections(options: argparse.Namespace, opened: Run, part: LabelledImages) -> np.ndarray:
    """Projections [n, P] of the measured images: where a network that no longer tells images apart shows it."""
    return features_of(
        opened.projection(),
        opened.state,
        part.dataset,
        part.indices,
        image_size=opened.image_size,
        batch_size=options.batch_size,
        label="projections",
    )
