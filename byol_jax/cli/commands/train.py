"""`byol-jax train DATA`: trains an encoder on unlabelled images and writes a run's folder."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byol_jax.cli import values
from byol_jax.cli.common import (
    READING,
    add_array_layout,
    add_channels,
    add_fit,
    add_network,
    add_reading,
    add_value_range,
    check_data,
    check_folder,
    reading_of,
)
from byol_jax.cli.join import add_processes, check_processes, join
from byol_jax.cli.networks import check_network, find_network, warn_of_layer
from byol_jax.cli.recipe_options import add_preset, add_recipe, check_recipe, recipe_from
from byol_jax.recipe import DEFAULT, Recipe
from byol_jax.runs.network import NamedNetwork

if TYPE_CHECKING:
    from byol_jax.runs.probe import Probe

__all__ = ["USAGE", "add_arguments", "check", "run"]

USAGE = "DATA --out RUN (--steps N | --epochs N | --preset NAME) [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options; what each means is in its help."""
    whole, positive = values.whole_number, values.positive_int
    parser.add_argument(
        "data",
        type=values.data_source,
        metavar="DATA",
        help="a folder of images, shards, an .npz or .npy file, fashion-mnist",
    )
    run = parser.add_argument_group("the run")
    add_preset(run)
    run.add_argument("--out", type=values.new_path, required=True, metavar="RUN", help="the folder that the run writes")
    run.add_argument("--resume", action="store_true", help="go on from RUN's newest complete checkpoint")
    run.add_argument("--overwrite", action="store_true", help="delete what RUN holds, then start")
    run.add_argument("--steps", type=positive, metavar="N", help="length in optimiser steps")
    run.add_argument("--epochs", type=positive, metavar="N", help="length in passes over the images, whole batches")
    run.add_argument("--batch-size", type=positive, metavar="N", help="images a step, in all (256)")
    run.add_argument(
        "--accumulate",
        type=positive,
        default=1,
        metavar="N",
        help="parts of a batch, gone through one after another with the memory of one; batch norm sees a part (1)",
    )
    run.add_argument(
        "--batchnorm-group",
        type=positive,
        metavar="N",
        help="devices (replicas) over which batch norm takes its statistics, a divisor of their number (all)",
    )
    run.add_argument(
        "--shard-state",
        action="store_true",
        help="spread target and optimiser state over the devices instead of keeping them whole on each: less memory",
    )
    run.add_argument("--seed", type=whole, default=0, metavar="N", help="decides everything random (0)")
    run.add_argument(
        "--checkpoint-every", type=positive, metavar="N", help="steps between checkpoints; three are kept (1000)"
    )
    run.add_argument("--log-every", type=positive, metavar="N", help="steps between lines of metrics.jsonl (50)")
    run.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard too (needs the extra [logs])")
    run.add_argument("--workers", type=positive, default=2, metavar="N", help="threads that decode images (2)")
    _add_watching(parser.add_argument_group("watching it"))
    network = parser.add_argument_group("the network and its images")
    add_network(network, default=DEFAULT.network)
    network.add_argument(
        "--image-size", type=values.image_size, metavar="N", help="pixels, N or HxW (224; that of arrays)"
    )
    add_channels(network)
    add_reading(network)
    add_array_layout(network)
    add_fit(network)
    add_value_range(network)
    network.add_argument(
        "--remat",
        action="store_true",
        help="keep few activations and compute the others again for the gradient: less memory, a quarter more work",
    )
    add_recipe(parser)
    add_processes(parser)


def _add_watching(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--health-every",
        type=values.positive_int,
        metavar="N",
        help="steps between measures of spread, effective rank, uniformity and, where it is given, alignment; they come"
        " with the next row that is logged (1000)",
    )
    group.add_argument(
        "--stop-on-collapse", action="store_true", help="end the run when its projections have collapsed, which is said"
    )
    group.add_argument(
        "--probe",
        type=values.data_source,
        metavar="DIR",
        help="labelled images, as evaluate --data takes them, on which kNN and logistic regression are measured on the"
        " way; what is trained doesn't see them",
    )
    group.add_argument("--probe-every", type=values.positive_int, metavar="N", help="steps between probes (1000)")


def check(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options together."""
    problems, recipe = [], recipe_from(options)
    if (recipe.steps is None) == (recipe.epochs is None):
        problems.append("give either --steps or --epochs" + (", not both" if options.steps else " (or a --preset)"))
    if options.resume and options.overwrite:
        problems.append("--resume and --overwrite contradict each other, give one of them")
    problems += check_folder(options.out, replaceable=options.resume or options.overwrite, hint="--resume, --overwrite")
    if options.overwrite and options.init_from is not None and _is_deleted(options.init_from, options.out):
        problems.append(
            f"--init-from: '{options.init_from}' is part of what --overwrite deletes, copy it to another place"
        )
    if recipe.batch_size < 2:
        problems.append("--batch-size 1: batch norm has nothing to compare, give 2 or more")
    problems += _check_parts(options.accumulate, recipe.batch_size) + _check_probe(options)
    problems += check_network(options, network=recipe.network) + check_data(options.data, options)
    return problems + check_recipe(options, recipe) + check_processes(options, recipe.batch_size)


def _check_parts(parts: int, batch_size: int) -> list[str]:
    if batch_size % parts:
        return [f"--accumulate {parts} must divide --batch-size {batch_size}"]
    if parts > 1 and batch_size < 2 * parts:
        return [
            f"--accumulate {parts} leaves 1 image of --batch-size {batch_size} a part: give {batch_size // 2} or less"
        ]
    return []


def _check_probe(options: argparse.Namespace) -> list[str]:
    if options.probe is None:
        return ["--probe-every needs --probe DIR"] if options.probe_every is not None else []
    if options.probe.lower().endswith(".npy") and not values.is_folder(options.probe):
        return ["--probe: an .npy has no labels, give an .npz with images and labels or a folder"]
    return []


def _is_deleted(weights: Path, run: Path) -> bool:
    """Whether a file of weights is what an earlier run left in its folder."""
    return any(weights.resolve().is_relative_to((run / part).resolve()) for part in WRITTEN_WEIGHTS)


WRITTEN_WEIGHTS = ("exported", "checkpoints", "network")
"""Where a run's folder has weights."""


def run(options: argparse.Namespace) -> int:
    """Trains; then process 0 prints the run's folder."""
    from byol_jax.cli.allocator import keep_freed_memory
    from byol_jax.cli.compiled import keep_compiled_programs

    keep_freed_memory()
    keep_compiled_programs()
    recipe = recipe_from(options)
    make_network = find_network(  # before data or devices: a wrong name costs nothing
        recipe.network,
        options.weights,
        options={**recipe.network_options, **({"remat": True} if options.remat else {})},
        run=options.out if options.resume else None,
    )
    if options.processes.count != 1:
        _keep_stdout_for_results()
    remark = join(options.processes, command="byol-jax train")
    _train(options, recipe, make_network, remarks=(remark,) if remark else ())
    from byol_jax import parallel

    if parallel.is_writer():
        print(options.out)
    return 0


def _train(
    options: argparse.Namespace, recipe: Recipe, make_network: Callable[..., NamedNetwork], *, remarks: tuple[str, ...]
) -> None:
    import interop
    from byol_jax import train

    data, recipe = _open_array(options, recipe)
    if options.resume:
        recipe = _keep_old_rate(recipe, options.out)
    probe = None if options.probe is None else _open_probe(options, recipe)
    weights = None
    if options.init_from is not None:
        weights = interop.open_weights(options.init_from, which_weights=options.which_weights, prefix=options.prefix)
    network = make_network(
        image_size=recipe.image_size,
        channels=recipe.num_channels,
        seed=options.seed,
        start=None if weights is None else weights.network(),
    )
    warn_of_layer(network.description, recipe.hidden_layer)
    program = train.Program(
        init_from=weights,
        probe=probe,
        remarks=remarks,
        **{name: value for name, value in vars(options).items() if name in PROGRAM and value is not None},
    )
    train.train_recipe(
        network.encoder,
        data,
        recipe,
        program,
        network=network.description,
        every_image=options.epochs is None,
    )


PROGRAM = (
    "out",
    "seed",
    "resume",
    "overwrite",
    "workers",
    "checkpoint_every",
    "log_every",
    "tensorboard",
    "fit",
    "accumulate",
    "health_every",
    "stop_on_collapse",
    "batchnorm_group",
    "shard_state",
    *READING,
)
"""Options that are `train.Program`'s; what isn't given has its default there."""


def _open_array(options: argparse.Namespace, recipe: Recipe) -> tuple[Any, Recipe]:
    """The data, and the recipe with its image size and channels: an array's own, where neither option nor preset says.

    A folder is left to the program, which keeps the list of its images.
    """
    if values.holds_files(options.data):
        return options.data, recipe
    from byol_jax.cli.images import open_training_images

    said = options.preset is not None
    size = recipe.image_size if said else options.image_size
    channels = recipe.num_channels if said else options.channels or _known_channels(options)
    dataset, size, channels = open_training_images(
        options.data,
        size,
        channels,
        layout=options.layout,
        workers=options.workers,
        value_range=recipe.value_range,
    )
    return dataset, replace(recipe, image_size=size, num_channels=channels)


def _open_probe(options: argparse.Namespace, recipe: Recipe) -> "Probe":
    """The labelled images of `--probe`, split as `byol-jax evaluate` splits them.

    Raises:
        DataError: they can't be used, or some class has too few; says that it is about the probe.
    """
    from byol_jax.cli.images import open_labelled
    from byol_jax.data import EvaluationImages
    from byol_jax.errors import DataError
    from byol_jax.runs.probe import PROBE_EVERY, Probe, check_probe

    try:
        train, test, names, _ = open_labelled(
            options.probe,
            None,
            seed=options.seed,
            image_size=recipe.image_size,
            num_channels=recipe.num_channels,
            fit="contain" if options.fit == "contain" else "cover",
            layout=None if values.holds_files(options.probe) else options.layout,
            workers=options.workers,
            dtype=_known_probe_dtype(options),
            value_range=recipe.value_range,
            reading=reading_of(options),
        )
        check_probe(train.labels, test.labels, names)
    except DataError as error:
        where = "" if str(error).startswith(options.probe) else f"{options.probe}: "
        raise DataError(f"--probe {where}{error}") from None
    every = PROBE_EVERY if options.probe_every is None else options.probe_every
    identity: dict[str, Any] = {"fit": train.dataset.identity}
    if test.dataset is not train.dataset:
        identity["measure"] = test.dataset.identity
    of, on = (EvaluationImages(part.dataset, part.indices, recipe.image_size) for part in (train, test))
    return Probe(of, train.labels, on, test.labels, identity | {"every": every}, every, options.seed)


def _known_probe_dtype(options: argparse.Namespace) -> str | None:
    """Of a run that goes on the dtype that its probe began with: an earlier version read 16 bits as 8."""
    from byol_jax.runs.config import read_config
    from byol_jax.runs.folder import has_checkpoint, run_paths

    if not options.resume or not has_checkpoint(run_paths(options.out)):
        return None
    probe = read_config(options.out).get("probe")
    fit = probe.get("fit") if isinstance(probe, dict) else None
    return fit.get("dtype", "uint8") if isinstance(fit, dict) else None


def _known_channels(options: argparse.Namespace) -> int | None:
    """The channels of a run that goes on: they settle an array's layout without a question."""
    from byol_jax.runs.config import read_config
    from byol_jax.runs.folder import has_checkpoint, run_paths

    if not options.resume or not has_checkpoint(run_paths(options.out)):
        return None
    learner = read_config(options.out).get("learner")
    return learner.get("num_channels") if isinstance(learner, dict) else None


def _keep_old_rate(recipe: Recipe, run: Path) -> Recipe:
    """The recipe as a run that goes on has it: one that began before LARS's rate was scaled keeps its rate."""
    from byol_jax.runs.config import read_config
    from byol_jax.runs.folder import has_checkpoint, run_paths

    if recipe.optimizer != "lars" or not has_checkpoint(run_paths(run)):
        return recipe
    learner = read_config(run).get("learner")
    began_unscaled = isinstance(learner, dict) and "scale_learning_rate" not in learner
    return replace(recipe, scale_learning_rate=False) if began_unscaled else recipe


def _keep_stdout_for_results() -> None:
    """From here on only Python prints to the true stdout; what writes to file descriptor 1 itself goes to stderr.

    The C++ library that connects CPU processes (Gloo) prints its notes there, from its own threads, at any time until
    the process has ended: hence for good. Nothing happens inside another program that has a stdout of its own.
    """
    if sys.stdout is not sys.__stdout__:
        return
    sys.stdout.flush()
    results = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(results, "w", encoding=sys.stdout.encoding)
