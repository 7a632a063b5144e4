"""`byol-jax evaluate RUN --data DIR`: what a run's features are worth, beside two controls that saw the same test.

Weighted kNN and a linear probe on frozen features; the controls are the images' own pixels and the same network before
it was trained. Nothing of the run's folder is changed but `evaluation.json`.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from byol_jax.cli import values
from byol_jax.cli.common import add_array_layout, add_run, add_which, check_data
from byol_jax.errors import one_line

__all__ = ["USAGE", "add_arguments", "check", "run"]

NAMED = 4
"""At most so many classes are named in the table."""
USAGE = "RUN --data DIR [options]"
CONTROL_PIXELS = 32
"""The pixels control sees images of at most this size: a linear probe on 224 x 224 x 3 numbers would need gigabytes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add_run(parser)
    parser.add_argument(
        "--data",
        type=values.data_source,
        required=True,
        metavar="DIR",
        help="labelled images: a folder with a sub-folder for each class (or train/ and test/ of such), an .npz with"
        " images and labels, fashion-mnist",
    )
    parser.add_argument(
        "--labels",
        type=values.existing_file,
        metavar="FILE",
        help="a .npy of whole numbers, for an .npy or .npz without",
    )
    add_array_layout(parser)
    add_which(parser)
    parser.add_argument("--k", type=values.positive_int, default=20, metavar="N", help="neighbours of the kNN (20)")
    parser.add_argument(
        "--seed", type=values.whole_number, default=0, metavar="N", help="of the split and the probe (0)"
    )
    parser.add_argument(
        "--batch-size", type=values.positive_int, default=256, metavar="N", help="images at a time (256)"
    )
    parser.add_argument("--workers", type=values.positive_int, default=2, metavar="N", help="threads that decode (2)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def check(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options together."""
    problems = check_data(options.data, options)
    if options.labels is not None and values.is_folder(options.data):
        problems.append("--labels with a folder: a folder's labels are its sub-folders")
    return problems


def run(options: argparse.Namespace) -> int:
    """Measures; prints a table or JSON and writes RUN/evaluation.json."""
    from byol_jax import disk, evaluate, report
    from byol_jax.cli.compiled import keep_compiled_programs
    from byol_jax.cli.images import open_labelled, say_late
    from byol_jax.cli.open_run import open_run
    from byol_jax.runs.folder import run_paths

    keep_compiled_programs()
    opened = open_run(options.run, options.which)
    train, test, class_names, split = open_labelled(
        options.data,
        options.labels,
        seed=options.seed,
        image_size=opened.image_size,
        num_channels=opened.config["learner"]["num_channels"],
        fit=opened.evaluation_fit,
        layout=options.layout,
        workers=options.workers,
    )
    parts = _features(options, opened, train, test)
    for dataset in {id(part.dataset): part.dataset for part in (train, test)}.values():
        say_late(dataset)
    scores = evaluate.compare(parts, train.labels, test.labels, k=min(options.k, len(train.labels)), seed=options.seed)
    facts = {
        "which": options.which,
        "step": int(opened.state.step),
        "data": options.data,
        "split": split,
        "train_images": len(train.labels),
        "test_images": len(test.labels),
        "classes": len(class_names) if class_names else int(train.labels.max()) + 1,
        "k": min(options.k, len(train.labels)),
        "seed": options.seed,
        "scores": scores,
    }
    if len(test.labels) > 1:  # with one image there is nothing to compare
        facts["projections"] = evaluate.collapse(_projections(options, opened, test))._asdict()
    disk.write_atomically(run_paths(options.run).evaluation, json.dumps(facts, indent=2).encode())
    report.write_report(options.run)
    if options.json:
        print(json.dumps(facts))
    else:
        _print_table(facts, class_names)
    return 0


def _features(options: argparse.Namespace, opened: Any, train: Any, test: Any) -> dict[str, Any]:
    """Features of both parts, [n, D] each, for the run and its controls."""
    from byol_jax.cli.images import features_of, pixels_of
    from byol_jax.image_size import image_sides

    height, width = (min(side, CONTROL_PIXELS) for side in image_sides(opened.image_size))
    embed = opened.embedding()
    control, start = _start(options, opened)
    sizes = {"image_size": opened.image_size, "batch_size": options.batch_size}
    parts = {
        "raw_pixels": tuple(pixels_of(part.dataset, part.indices, image_size=(height, width)) for part in (train, test))
    }
    for name, state in {control: start, "byol": opened.state}.items():
        parts[name] = tuple(
            features_of(embed, state, part.dataset, part.indices, label=name, **sizes) for part in (train, test)
        )
    return parts


def _start(options: argparse.Namespace, opened: Any) -> tuple[str, Any]:
    """The control's name and state: what the run started from, random or given weights."""
    import jax

    import interop
    from byol_jax.cli.networks import starts_random
    from byol_jax.runs.artifacts import START
    from byol_jax.runs.folder import run_paths

    state = opened.learner.init(jax.random.key(opened.config["seed"]))
    weights = run_paths(options.run).exported / START
    if weights.exists():
        return "starting_weights", interop.open_weights(weights).start(opened.encoder, state)
    return "random_init" if starts_random(opened.config["network"]) else "starting_weights", state


def _projections(options: argparse.Namespace, opened: Any, part: Any) -> Any:
    """Projections [n, P] of the measured images: where a network that no longer tells images apart shows it."""
    from byol_jax.cli.images import features_of

    return features_of(
        opened.projection(),
        opened.state,
        part.dataset,
        part.indices,
        image_size=opened.image_size,
        batch_size=options.batch_size,
        label="projections",
    )


def _print_table(facts: dict[str, Any], class_names: Sequence[str] | None) -> None:
    """The scores in per cent, on standard output; with the classes, since what was taken for one may be none."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    some = [one_line(name, at_most=30) for name in (class_names or ())[:NAMED]]
    named = f" ({', '.join(some)}{', …' if len(class_names or ()) > NAMED else ''})" if some else ""
    table = Table(
        title=escape(f"accuracy on {facts['test_images']:,} images of {facts['classes']:,} classes{named}, per cent"),
        caption=escape(
            f"{facts['train_images']:,} images fit the classifiers; {facts['split']}; step {facts['step']:,},"
            f" {facts['which']} network"
        ),
    )
    table.add_column("features")
    table.add_column(f"kNN, k = {facts['k']}", justify="right")
    table.add_column("linear", justify="right")
    for name, score in facts["scores"].items():
        table.add_row(name.replace("_", " "), f"{100 * score['knn']:.1f}", f"{100 * score['linear']:.1f}")
    console = Console(highlight=False)
    console.print(table)
    if "projections" in facts:
        spread = facts["projections"]
        console.print(
            f"projections: spread {spread['feature_std']:.4f}, effective rank {spread['effective_rank']:.1f}"
            + (": collapsed, all images look alike to this network" if spread["collapsed"] else "")
        )
