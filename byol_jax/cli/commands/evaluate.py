"""`byol-jax evaluate RUN --data DIR`: what a run's features are worth, beside two controls that saw the same test.

Here are the options, the table and JSON; what is measured is in cli/protocols.py. Nothing of the run's folder is
changed but `evaluation.json`, `neighbours.png` and `report.html`.
"""

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any

from byol_jax.cli import values
from byol_jax.cli.common import add_array_layout, add_reading, add_run, add_which, check_data, reading_of
from byol_jax.errors import one_line

__all__ = ["USAGE", "add_arguments", "check", "run"]

NAMED = 4
"""At most so many classes are named in the table."""
USAGE = "RUN --data DIR [options]"
PROTOCOLS = ("knn", "logistic", "linear", "finetune")
DEFAULT_PROTOCOLS = ["knn", "logistic"]
AUGMENTATIONS = ("crop-flip", "none")
OF_PROTOCOL = {
    "k": "knn",
    "linear_epochs": "linear",
    "label_fraction": "finetune",
    "finetune_epochs": "finetune",
    "finetune_learning_rate": "finetune",
    "finetune_batch_size": "finetune",
    "finetune_augment": "finetune",
}
"""Options that only one protocol reads; none of them has a default of argparse's, so that a given one is seen."""
DEFAULTS = {
    "k": [20],
    "linear_epochs": 80,
    "label_fraction": [1.0],
    "finetune_epochs": 30,
    "finetune_learning_rate": [0.1, 0.05, 0.02, 0.01, 0.005],
    "finetune_batch_size": 1024,
    "finetune_augment": "crop-flip",
}
"""The BYOL paper's (appendix C.1), as in evaluate/linear_sgd.py and evaluate/finetune.py; k = 20 is DINO's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add_run(parser)
    parser.add_argument(
        "--data",
        type=values.data_source,
        required=True,
        metavar="DIR",
        help="labelled images: a folder with a sub-folder for each class (or train/ and test/ of such), shards with"
        " labels, an .npz with images and labels, fashion-mnist",
    )
    parser.add_argument(
        "--labels",
        type=values.existing_file,
        metavar="FILE",
        help="a .npy of whole numbers, for an .npy or .npz without",
    )
    add_array_layout(parser)
    add_reading(parser)
    add_which(parser)
    parser.add_argument(
        "--protocol",
        type=values.several(values.one_of(PROTOCOLS)),
        default=DEFAULT_PROTOCOLS,
        metavar="NAMES",
        help="what to measure, with commas between: knn, logistic (logistic regression to its optimum), linear (the"
        " paper's linear evaluation: SGD, with and without batch norm), finetune (the whole network) (knn,logistic)",
    )
    parser.add_argument(
        "--k",
        type=values.several(values.positive_int),
        metavar="N",
        help="neighbours of the kNN; several with commas between: 10,20,100,200 (20)",
    )
    parser.add_argument("--linear-epochs", type=values.positive_int, metavar="N", help="of linear (80)")
    parser.add_argument(
        "--label-fraction",
        type=values.several(values.positive_probability),
        metavar="X",
        help="of finetune: the part of each class whose labels are used, at least one: 0.01, 0.1; several with commas"
        " between (1.0)",
    )
    parser.add_argument("--finetune-epochs", type=values.positive_int, metavar="N", help="of finetune (30)")
    parser.add_argument(
        "--finetune-learning-rate",
        type=values.several(values.positive_number),
        metavar="X",
        help="of finetune, not scaled by the batch; of several the best on 20 %% of the labelled images"
        " (0.1,0.05,0.02,0.01,0.005)",
    )
    parser.add_argument(
        "--finetune-batch-size", type=values.positive_int, metavar="N", help="of finetune; fewer images are one (1024)"
    )
    parser.add_argument(
        "--finetune-augment",
        type=values.one_of(AUGMENTATIONS),
        metavar="SET",
        help="of finetune: crop-flip (the paper's random crop and flip) or none (crop-flip)",
    )
    parser.add_argument(
        "--seed", type=values.whole_number, default=0, metavar="N", help="of the split and all that is drawn (0)"
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
    if options.labels is None and options.data.lower().endswith(".npy") and not values.is_folder(options.data):
        problems.append("--data: an .npy has no labels: give --labels FILE")
    for name, protocol in OF_PROTOCOL.items():
        if getattr(options, name) is not None and protocol not in options.protocol:
            chosen = ",".join([*options.protocol, protocol])
            problems.append(f"--{name.replace('_', '-')} is of {protocol}: give --protocol {chosen}")
    if options.finetune_batch_size == 1:
        problems.append("--finetune-batch-size 1: batch norm compares images, 2 or more")
    return problems


def run(options: argparse.Namespace) -> int:
    """Measures; prints a table or JSON and writes RUN/evaluation.json."""
    from byol_jax import disk, report
    from byol_jax.cli.compiled import keep_compiled_programs
    from byol_jax.cli.images import open_labelled, say_late
    from byol_jax.cli.protocols import measure
    from byol_jax.runs.environment import hide_credentials
    from byol_jax.runs.folder import run_paths
    from byol_jax.runs.reopen import open_run

    for name, default in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
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
        **opened.reading(reading_of(options)),
    )
    for part in (train, test):
        opened.check_images(part.dataset, options.data)
    measured = measure(options, opened, train, test, class_names)
    for dataset in {id(part.dataset): part.dataset for part in (train, test)}.values():
        say_late(dataset)
    facts = {
        "which": options.which,
        "step": int(opened.state.step),
        "data": hide_credentials(options.data),
        "split": split,
        "train_images": len(train.labels),
        "test_images": len(test.labels),
        "classes": len(class_names) if class_names else int(train.labels.max()) + 1,
    }
    facts |= {"seed": options.seed} | measured
    disk.write_atomically(run_paths(options.run).evaluation, _text(facts).encode())
    report.write_report(options.run)
    if options.json:
        print(json.dumps(facts))
    else:
        _print_table(facts, class_names)
    return 0


def _text(facts: dict[str, Any]) -> str:
    """JSON for a person too: a list of numbers, such as a matrix's row, is one line."""
    inner = re.compile(r"\[\s+([-\d.e+,\s]+?)\s+\]")
    return inner.sub(lambda found: f"[{' '.join(found[1].split())}]", json.dumps(facts, indent=2))


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
            f" {facts['which']} network; in brackets 95 % intervals: bootstrap over the test images"
        ),
    )
    table.add_column("protocol")
    for name in facts["scores"]:
        table.add_column(name.replace("_", " "), justify="right", no_wrap=True)
    for key, protocol in facts["protocols"].items():
        table.add_row(escape(protocol["title"]), *(_cell(facts, name, key) for name in facts["scores"]))
    console = Console(highlight=False)
    console.print(table)
    for protocol in facts["protocols"].values():
        console.print(escape(f"{protocol['title']}: {protocol['how']}"))
    if "projections" in facts:
        spread = facts["projections"]
        console.print(
            f"projections: spread {spread['feature_std']:.4f}, effective rank {spread['effective_rank']:.1f}"
            + (": collapsed, all images look alike to this network" if spread["collapsed"] else "")
        )


def _cell(facts: dict[str, Any], name: str, key: str) -> str:
    """An accuracy and its interval; a dash where there is none."""
    if key not in facts["scores"][name]:
        return "–"
    low, high = facts["intervals"][name][key]
    return f"{100 * facts['scores'][name][key]:.1f} ({100 * low:.1f}–{100 * high:.1f})"
