"""All of Fashion-MNIST: the demo's recipe on 60,000 images, with a network twice as wide, in about an hour.

Trained by `byol_jax.train`, as `byol-jax train` does it, in a folder of its own: stopped, it goes on from its last
checkpoint. Measured with all 60,000 labels on all 10,000 test images, beside raw pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from benchmarks.proof.data import Images
from benchmarks.proof.measure import accuracies
from byol_jax import evaluate, make_learner, nets, presets
from byol_jax.hidden import OUTPUT
from byol_jax.recipe import learner_arguments
from byol_jax.runs.folder import run_paths
from byol_jax.runs.metrics import read_metrics
from byol_jax.train import Program, train_recipe

__all__ = ["run"]

CHECKPOINT_EVERY = 1_000


def run(
    options: Mapping[str, Any], images: Images, *, seed: int, work: Path, tell: Callable[[str], None], **_: Any
) -> dict[str, Any]:
    """`knn` and `linear`, and of a training also `steps, train_seconds, loss, feature_std`, the last two of its end.

    `train_seconds` are those of every step that counts, compilation included, also where the run was stopped between.

    Args:
        work: a folder for the run's own; what an interrupted one left there is gone on from.
    """
    if "steps" not in options:
        return accuracies(evaluate.raw_pixels, images, labelled=options["labelled"])
    recipe = presets.small_grey()
    recipe = replace(recipe, steps=options["steps"], batch_size=options["batch_size"], hidden_layer=OUTPUT)
    encoder = nets.small_cnn(tuple(options["widths"]), num_classes=None)
    program = Program(work, seed=seed, resume=True, checkpoint_every=CHECKPOINT_EVERY, log_every=100, progress=False)
    network = {"name": recipe.network, "widths": options["widths"], "num_classes": None}
    tell(f"{recipe.steps:,} steps of {recipe.batch_size}; its log: {run_paths(work).log}")
    state = train_recipe(encoder, images.train, recipe, program, network=network)
    embed = jax.jit(make_learner(encoder, **learner_arguments(recipe)).embed)
    rows = read_metrics(run_paths(work).metrics)[0]
    facts = {"steps": int(state.step), "train_seconds": sum(row["seconds"] for row in rows if "loss" in row)}
    scores = accuracies(lambda batch: embed(state, batch), images, labelled=options["labelled"])
    return scores | facts | {name: rows[-1][name] for name in ("loss", "feature_std")}
