"""`byol-jax train DATA`: trains an encoder on unlabelled images and writes a run's folder."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

from byol_jax.cli import values
from byol_jax.cli.common import add_channels, add_network, check_folder
from byol_jax.cli.networks import check_network, find_network
from byol_jax.cli.recipe import add_recipe, check_recipe, learner_arguments, recipe_from

__all__ = ["USAGE", "add_arguments", "check", "run"]

IMAGE_SIZE = 224
USAGE = "DATA --out RUN (--steps N | --epochs N) [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options; their meanings are in design and help."""
    whole, positive = values.whole_number, values.positive_int
    parser.add_argument(
        "data", type=values.data_source, metavar="DATA", help="a folder of images, an .npz or .npy file, fashion-mnist"
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--out", type=values.new_path, required=True, metavar="RUN", help="the folder that the run writes")
    run.add_argument("--resume", action="store_true", help="go on from RUN's newest complete checkpoint")
    run.add_argument("--overwrite", action="store_true", help="delete what RUN holds, then start")
    run.add_argument("--steps", type=positive, metavar="N", help="length in optimiser steps")
    run.add_argument("--epochs", type=positive, metavar="N", help="length in passes over the images")
    run.add_argument("--batch-size", type=positive, default=256, metavar="N", help="images a step, in all (256)")
    run.add_argument("--seed", type=whole, default=0, metavar="N", help="decides everything random (0)")
    run.add_argument("--checkpoint-every", type=positive, metavar="N", help="steps between checkpoints")
    run.add_argument("--log-every", type=positive, metavar="N", help="steps between lines of metrics.jsonl")
    run.add_argument("--tensorboard", action="store_true", help="write RUN/tensorboard too (needs the extra [logs])")
    run.add_argument("--workers", type=positive, default=2, metavar="N", help="threads that decode images (2)")
    network = parser.add_argument_group("the network and its images")
    add_network(network, default="resnet18")
    network.add_argument(
        "--image-size", type=values.image_size, metavar="N", help="pixels, N or HxW (224; that of arrays)"
    )
    add_channels(network)
    add_recipe(parser)
    processes = parser.add_argument_group("several processes (the same command in each, but for --process-id)")
    processes.add_argument("--num-processes", type=positive, metavar="N", help="how many processes train together")
    processes.add_argument("--process-id", type=whole, metavar="I", help="this process's number, from 0")
    processes.add_argument(
        "--coordinator-address", type=_address, metavar="A", help="host:port of process 0, which all can reach"
    )


def check(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options together."""
    problems = []
    if (options.steps is None) == (options.epochs is None):
        problems.append("give either --steps or --epochs" + (", not both" if options.steps else ""))
    if options.resume and options.overwrite:
        problems.append("--resume and --overwrite contradict each other, give one of them")
    problems += check_folder(options.out, replaceable=options.resume or options.overwrite, hint="--resume, --overwrite")
    if options.batch_size < 2:
        problems.append("--batch-size 1: batch norm has nothing to compare, give 2 or more")
    problems += check_network(options)
    return problems + check_recipe(options) + _check_processes(options)


def run(options: argparse.Namespace) -> int:
    """Trains; then process 0 prints the run's folder."""
    from byol_jax.cli.allocator import keep_freed_memory

    keep_freed_memory()
    make_network = _found_network(options)  # before data or devices: a wrong name costs nothing
    if options.num_processes is None or options.num_processes == 1:
        _train(options, make_network)
    else:
        _keep_stdout_for_results()
        _train_together(options, make_network)
    if not options.process_id:
        print(options.out)
    return 0


def _found_network(options: argparse.Namespace) -> Callable[..., Any]:
    """What makes the network; where a torch module's run goes on, from what the run keeps of it."""
    if options.resume and ":" in options.network:
        from byol_jax.cli.torch_networks import find_kept

        return find_kept(options.out, options.network, options.weights) or find_network(
            options.network, options.weights
        )
    return find_network(options.network, options.weights)


def _train_together(options: argparse.Namespace, make_network: Callable[..., Any]) -> None:
    from byol_jax import parallel

    parallel.initialize(
        num_processes=options.num_processes,
        process_id=options.process_id,
        coordinator_address=options.coordinator_address,
    )
    _train(options, make_network)


def _train(options: argparse.Namespace, make_network: Callable[..., Any]) -> None:
    import interop
    from byol_jax import pretrain

    data, image_size, channels = _source(options)
    recipe = recipe_from(options, channels)
    weights = None if options.init_from is None else interop.open_weights(options.init_from)
    start = None if weights is None else weights.network()
    network, encoder = make_network(image_size=image_size, channels=channels, seed=options.seed, start=start)
    total_steps = options.steps if options.epochs is None else options.epochs * _steps_per_epoch(data, options)
    same = (
        "out",
        "epochs",
        "steps",
        "batch_size",
        "seed",
        "resume",
        "overwrite",
        "workers",
        "tensorboard",
    )
    pretrain(
        encoder,
        data,
        image_size=image_size,
        network=network,
        options=recipe,
        init_from=weights,
        **{name: value for name, value in vars(options).items() if name in same},
        **_given(options, "checkpoint_every", "log_every"),
        **learner_arguments(recipe, network=network, image_size=image_size, total_steps=total_steps),
    )


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


def _source(options: argparse.Namespace) -> tuple[Any, int | tuple[int, int], int]:
    """What to give to `pretrain`, the image size and the channels; what isn't said follows from an array itself.

    A folder is left to `pretrain`, unless a schedule needs to know beforehand how many images there are.
    """
    needs_count = options.schedule == "cosine" and options.epochs is not None
    if values.is_folder(options.data) and not needs_count:
        return options.data, options.image_size or IMAGE_SIZE, options.channels or 3
    from byol_jax.cli.images import open_training_images

    return open_training_images(options.data, options.image_size, options.channels, workers=options.workers)


def _steps_per_epoch(data: Any, options: argparse.Namespace) -> int:
    """Whole batches in the data; 1 where it isn't known and a constant schedule doesn't ask."""
    return 1 if isinstance(data, str) else max(len(data) // options.batch_size, 1)


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given; the others keep the default of the function that takes them."""
    return {name: value for name, value in vars(options).items() if name in names and value is not None}


def _check_processes(options: argparse.Namespace) -> list[str]:
    count, number, address = options.num_processes, options.process_id, options.coordinator_address
    if count is None:
        named = {"--process-id": number, "--coordinator-address": address}
        return [f"{option} needs --num-processes" for option, value in named.items() if value is not None]
    problems = []
    if count > 1 and (number is None or address is None):
        needed = {"--process-id": number, "--coordinator-address": address}
        lacking = [option for option, value in needed.items() if value is None]
        problems.append(f"--num-processes {count} needs {' and '.join(lacking)}")
    if number is not None and number >= count:
        problems.append(f"--process-id {number} must be below --num-processes {count}")
    if options.batch_size % count:
        problems.append(f"--batch-size {options.batch_size} must be a multiple of --num-processes {count}")
    return problems


def _address(word: str) -> str:
    host, _, port = word.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{word!r} is not host:port, such as 10.0.0.1:1234")
    return word
