"""The main job on embedded data, end to end: train, measure against controls, hand the weights to PyTorch, report.

    byol-jax demo --out demo

Data: the 10,000-image half of Fashion-MNIST in file order; the first 8,000 train (pre-training sees only these, without
their labels), the last 2,000 test. Network and recipe: `presets.small_grey`. Both controls get the same evaluation: raw
pixels, and the same network at random initialisation. Where PyTorch isn't installed, only the hand-over is left out.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from byol_jax import evaluate, nets, presets, report
from byol_jax.byol import Learner, encoder_variables, make_learner
from byol_jax.data import open_dataset
from byol_jax.disk import write_atomically
from byol_jax.errors import ConfigurationError, ConversionMismatchError, DataError, MissingDependencyError
from byol_jax.evaluate.scores import Labelled, facts_of, knn_scores, logistic_scores
from byol_jax.hidden import OUTPUT
from byol_jax.nets.cnn import torch_expression
from byol_jax.recipe import learner_arguments
from byol_jax.runs.artifacts import ENCODER
from byol_jax.runs.folder import run_paths
from byol_jax.train import Program, train_recipe
from byol_jax.types import TrainState

__all__ = ["run"]

IMAGE_SIZE = 28
TRAIN_IMAGES = 8_000
NEIGHBOURS = 20
FEATURE_TOLERANCE = 1e-5
"""Largest difference allowed between JAX's and PyTorch's features, relative to their largest value."""


def run(out: str | Path, *, steps: int | None = None, seed: int = 0, overwrite: bool = False) -> dict[str, Any]:
    """Runs the demo into the folder `out`; returns what results.json holds.

    Args:
        out: made if it isn't there; refused when it isn't empty, unless `overwrite`.
        steps: training steps; the preset's by default, so that the result doesn't depend on the machine's speed.
        seed: of weights, augmentation and order.

    Returns:
        {"raw_pixels": {"knn", "linear"}, "random_init": {…}, "byol": {…}, "pytorch": expression}; accuracies in [0, 1].
        `expression` builds the network that takes the weights in PyTorch.
    """
    if steps is not None and steps < 1:
        raise ConfigurationError(f"steps={steps}: expected at least 1")
    say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print
    out = Path(out)
    recipe = replace(presets.small_grey(), hidden_layer=OUTPUT)  # without a classifier the output is the flattened map
    if steps is not None:
        recipe = replace(recipe, steps=steps)
    images, labels = _embedded_images()
    train = images[:TRAIN_IMAGES]
    length = f"{recipe.steps:,} steps of {recipe.batch_size}"
    say(f"training on {len(train):,} images of {IMAGE_SIZE} x {IMAGE_SIZE}, {length}")
    missing = _missing_for_hand_over()
    if missing:
        say(f"the hand-over to PyTorch at the end is left out: {missing}")
    if overwrite and run_paths(out).config.exists():
        for stale in ("results.json", "improved-net.pt"):
            (out / stale).unlink(missing_ok=True)
    encoder = nets.small_cnn(num_classes=None)
    program = Program(
        out=out,
        seed=seed,
        overwrite=overwrite,
        log_every=100,
        checkpoint_every=5_000,
        advice_when_stopped="--overwrite starts the demo anew",
    )
    network = {"name": recipe.network, "channels": recipe.num_channels, "num_classes": None}
    state = train_recipe(encoder, train, recipe, program, network=network)
    say("measuring: weighted kNN and a linear probe, with both controls")
    arguments = learner_arguments(recipe)
    learner = make_learner(encoder, **arguments)
    features = {
        "raw_pixels": evaluate.raw_pixels(images),
        "random_init": _features(learner, learner.init(jax.random.key(seed)), images),
        "byol": _features(learner, state, images),
    }
    facts = _measure(features, labels)
    scores = facts["scores"]
    _print(scores, test_images=len(images) - TRAIN_IMAGES)

    expression = torch_expression(num_classes=None, image_size=IMAGE_SIZE)
    weights = run_paths(out).exported / ENCODER if missing else out / "improved-net.pt"
    if not missing:
        test, expected = images[TRAIN_IMAGES:], features["byol"][TRAIN_IMAGES:]
        say(_hand_over(weights, expression, state, test, expected, normalize=arguments["normalize"]))
    results = scores | {"pytorch": expression}
    write_atomically(out / "results.json", json.dumps(results, indent=2).encode())
    write_atomically(run_paths(out).evaluation, json.dumps(facts | {"k": NEIGHBOURS}).encode())
    report.write_report(out, title="byol-jax demo: Fashion-MNIST")
    say(f"written to {out}: results.json, {weights.relative_to(out)}, views.png, report.html")
    return results


def _embedded_images() -> tuple[np.ndarray, np.ndarray]:
    dataset = open_dataset("fashion-mnist", image_size=IMAGE_SIZE, num_channels=1, with_labels=True)
    if dataset.labels is None:
        raise DataError("the embedded images came without labels: reinstall the package")
    return dataset.take(np.arange(len(dataset))), dataset.labels


def _features(learner: Learner, state: TrainState, images: np.ndarray) -> np.ndarray:
    embed = jax.jit(learner.embed)
    return evaluate.extract(lambda batch: embed(state, batch), images, batch_size=500)


def _measure(features: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, Any]:
    """kNN and logistic regression on each kind of features, as `byol-jax evaluate` reports them."""
    found = {}
    for name, both in features.items():
        parts = both[:TRAIN_IMAGES], labels[:TRAIN_IMAGES], both[TRAIN_IMAGES:], labels[TRAIN_IMAGES:]
        data = Labelled(*parts)
        found[name] = knn_scores(data, [NEIGHBOURS]) | logistic_scores(data, seed=0)
    return facts_of(found, labels[TRAIN_IMAGES:])


def _print(scores: dict[str, dict[str, float]], *, test_images: int) -> None:
    """The table, on stdout."""
    table = Table(title=f"accuracy on {test_images:,} test images, per cent", min_width=44)
    table.add_column("features")
    table.add_column(f"kNN, k = {NEIGHBOURS}", justify="right")
    table.add_column("linear", justify="right")
    for name, score in scores.items():
        table.add_row(name.replace("_", " "), f"{100 * score['knn']:.1f}", f"{100 * score['linear']:.1f}")
    Console(highlight=False).print(table)


def _missing_for_hand_over() -> str | None:
    """What to install before weights can go to PyTorch, found out by writing a file; None where it is there."""
    import interop

    with tempfile.TemporaryDirectory() as folder:
        try:
            interop.save_state_dict(Path(folder, "number.pt"), {"number": np.ones(1, np.float32)})
        except MissingDependencyError as error:
            return str(error)
    return None


def _hand_over(
    path: Path, expression: str, state: TrainState, images: np.ndarray, expected: np.ndarray, *, normalize: Any
) -> str:
    """Writes the encoder for PyTorch, loads it strictly into a plain PyTorch network and compares the features.

    Raises:
        ConversionMismatchError: the features differ by more than the tolerance.
    """
    import torch
    from torch import nn

    import interop

    interop.save_state_dict(path, interop.to_torch_state_dict(encoder_variables(state)))
    network = eval(expression, {"__builtins__": {}}, {"nn": nn})  # the very text that results.json gives to readers
    network.load_state_dict(torch.load(path, weights_only=True), strict=True)
    network.eval()
    (mean,), (std,) = normalize
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255  # [N, C, H, W]
    with torch.no_grad():
        features = network((floats - mean) / std).flatten(1).numpy()
    difference = float(np.abs(features - expected).max() / np.abs(expected).max())
    if difference > FEATURE_TOLERANCE:
        raise ConversionMismatchError(
            f"{path}: PyTorch's features differ from JAX's by {difference:.1e} of the largest, expected"
            f" {FEATURE_TOLERANCE:.0e}"
        )
    return f"{path.name} loads strictly into PyTorch; features agree to {difference:.0e} of the largest"
