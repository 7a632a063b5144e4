"""`byol-jax embed RUN --data DIR --out FILE`: features of images, for search, clustering or classifiers.

With `--network` instead of RUN: the features of a network that wasn't trained here.
"""

import argparse
import io
import warnings
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from byol_jax.cli import values
from byol_jax.cli.common import (
    add_array_layout,
    add_channels,
    add_fit,
    add_network,
    add_output,
    add_reading,
    add_value_range,
    add_which,
    check_data,
    check_output,
    folder_for,
    reading_of,
)
from byol_jax.cli.networks import check_network, find_network, needs_network
from byol_jax.cli.recipe_options import add_hidden_layer

__all__ = ["USAGE", "add_arguments", "check", "has_labels", "names_path", "run"]

USAGE = "RUN|--network NAME --data DIR --out FILE [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "run", nargs="?", type=values.run_folder, metavar="RUN", help="the folder that byol-jax train wrote to"
    )
    parser.add_argument(
        "--data",
        type=values.data_source,
        required=True,
        metavar="DIR",
        help="a folder of images, .npz, .npy, fashion-mnist",
    )
    add_output(
        parser,
        ".npz",
        ".npy",
        text="embeddings [N, D] float32; in .npz also names, and labels and classes if known; beside .npy the names in"
        " FILE.names.txt, a line for each row",
    )
    add_array_layout(parser)
    add_reading(parser)
    add_which(parser)
    parser.add_argument("--project", action="store_true", help="the projector's output instead of the encoder's")
    parser.add_argument(
        "--batch-size", type=values.positive_int, default=256, metavar="N", help="images at a time (256)"
    )
    parser.add_argument("--workers", type=values.positive_int, default=2, metavar="N", help="threads that decode (2)")
    network = parser.add_argument_group("a network instead of a run")
    add_network(network)
    network.add_argument(
        "--image-size", type=values.image_size, metavar="N", help="pixels, N or HxW (224; that of arrays)"
    )
    add_channels(network)
    add_fit(network)
    add_value_range(network)
    add_hidden_layer(network)


def check(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options together."""
    inputs = {"RUN": options.run, "--data": options.data, "--init-from": options.init_from}
    problems = []
    for path in filter(None, (options.out, names_path(options.out))):
        problems += check_output(path, overwrite=options.overwrite, inputs=inputs)
    problems += check_data(options.data, options)
    if options.run is None and options.network is None:
        problems.append("RUN is missing, the folder that byol-jax train wrote to; or give --network NAME")
    elif options.run is not None and options.network is not None:
        problems.append("give either RUN or --network, not both")
    elif options.run is not None:
        of_network = ("weights", "init_from", "image_size", "channels", "fit", "value_range", "hidden_layer")
        problems += needs_network(options, *of_network)
    elif options.project or options.which != "online":
        problems.append(f"{'--project' if options.project else '--which target'} needs RUN: a network has no such part")
    return problems + check_network(options, network=options.network)


def run(options: argparse.Namespace) -> int:
    """Writes the embeddings; prints their shape and the file's name."""
    import numpy as np

    from byol_jax.cli.compiled import keep_compiled_programs
    from byol_jax.cli.images import features_of, say_late

    keep_compiled_programs()
    open_source = _from_network if options.run is None else _from_run
    source = open_source(options, with_labels=has_labels(options.data))
    embeddings = features_of(
        source.function,
        source.state,
        source.dataset,
        np.arange(len(source.dataset)),
        image_size=source.image_size,
        batch_size=options.batch_size,
    )
    arrays = _arrays(embeddings, source.dataset, left_out=say_late(source.dataset))
    _warn_of_rows(arrays)
    _write(options.out, arrays)
    print(f"{len(arrays['embeddings'])} x {embeddings.shape[1]}: {options.out}")
    return 0


def has_labels(data: str) -> bool:
    """Whether the folders in `data` are classes; a warning says where images beside them make them none."""
    folders, images = values.first_level(data)
    if folders and images:
        warnings.warn(
            f"{data}: no labels are written, since images lie beside its folders, {images[0]!r} for one "
            f"({len(images)} in all); where folders are classes, move them into one",
            stacklevel=2,
        )
    return bool(folders) and not images


class FeatureSource(NamedTuple):
    """What features are taken from: `function(state, images)`, the images, and the size that it takes them in."""

    function: Callable[[Any, Any], Any]
    state: Any
    dataset: Any
    image_size: int | tuple[int, int]


def _from_run(options: argparse.Namespace, *, with_labels: bool) -> FeatureSource:
    from byol_jax.cli.images import open_images
    from byol_jax.cli.open_run import open_run

    trained = open_run(options.run, options.which)
    dataset = open_images(
        options.data,
        image_size=trained.image_size,
        num_channels=trained.config["learner"]["num_channels"],
        with_labels=with_labels,
        fit=trained.evaluation_fit,
        layout=options.layout,
        workers=options.workers,
        **trained.reading(reading_of(options)),
    )
    trained.check_images(dataset, options.data)
    function = trained.projection() if options.project else trained.embedding()
    return FeatureSource(function, trained.state, dataset, trained.image_size)


def _from_network(options: argparse.Namespace, *, with_labels: bool) -> FeatureSource:
    import jax

    from byol_jax.cli.images import open_training_images, say_range
    from byol_jax.cli.open_network import open_network

    make_network = find_network(options.network, options.weights)
    dataset, image_size, channels = open_training_images(
        options.data,
        options.image_size,
        options.channels,
        with_labels=with_labels,
        fit=options.fit or "cover",
        layout=options.layout,
        workers=options.workers,
        value_range=options.value_range,
        reading=reading_of(options),
    )
    value_range = say_range(options.value_range, dataset, seed=0)
    network = open_network(options, make_network, image_size=image_size, channels=channels, value_range=value_range)
    return FeatureSource(jax.jit(network.learner.embed), network.state, dataset, image_size)


def names_path(out: Path) -> Path | None:
    """Where the names of the rows go: beside an .npy file; None for .npz, which holds them."""
    return out.with_name(f"{out.name}.names.txt") if out.suffix.lower() == ".npy" else None


def _arrays(embeddings: Any, dataset: Any, *, left_out: Collection[str]) -> dict[str, Any]:
    """What the file holds, `embeddings` first, without the rows of files that failed; nothing in it needs pickle."""
    import numpy as np

    arrays = {"embeddings": embeddings}
    if dataset.names is not None:
        arrays["names"] = np.asarray(dataset.names, dtype=np.str_)
    if dataset.labels is not None:
        arrays["labels"] = dataset.labels
    if left_out:
        kept = [row for row, name in enumerate(arrays["names"].tolist()) if name not in left_out]
        arrays = {key: array[kept] for key, array in arrays.items()}
    if dataset.class_names is not None:
        arrays["class_names"] = np.asarray(dataset.class_names, dtype=np.str_)
    return arrays


def _warn_of_rows(arrays: dict[str, Any]) -> None:
    """Says how many rows hold NaN or infinity, and which is the first: they would poison whatever is computed next."""
    import numpy as np

    rows = np.flatnonzero(~np.isfinite(arrays["embeddings"]).all(axis=1))
    if len(rows):
        names = arrays.get("names")
        first = f"row {rows[0]}" if names is None else f"{names[rows[0]]!s}, row {rows[0]}"
        warnings.warn(
            f"{len(rows)} of {len(arrays['embeddings'])} embeddings aren't finite, the first is {first}: look at the "
            "weights (python -m interop inspect FILE) and at the image",
            stacklevel=2,
        )


def _write(path: Path, arrays: dict[str, Any]) -> None:
    import numpy as np

    from byol_jax import disk

    buffer, names = io.BytesIO(), names_path(path)
    if names is None:
        np.savez(buffer, **arrays)  # numpy before 2.2 would take allow_pickle for an array
    else:
        np.save(buffer, arrays["embeddings"], allow_pickle=False)
    with folder_for(path):
        if names is not None:
            _write_names(names, arrays.get("names", ()))
        disk.write_atomically(path, buffer.getvalue())


def _write_names(path: Path, names: Iterable[str]) -> None:
    """One line a name; a character that would break the line, or can't be printed, as its escape sequence.

    An array's images have no names: then a file that tells those of an earlier run goes.
    """
    from byol_jax import disk

    lines = [
        "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(name)) + "\n"
        for name in names
    ]
    if lines:
        disk.write_atomically(path, "".join(lines).encode())
    else:
        path.unlink(missing_ok=True)
