"""`byol-jax embed RUN --data DIR --out FILE`: features of images, for search, clustering or classifiers.

With `--network` instead of RUN: the features of a network that wasn't trained here. Rows are written as they come
(cli/row_files.py), so memory doesn't grow with their number.
"""

import argparse
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

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

if TYPE_CHECKING:
    import numpy as np

__all__ = ["USAGE", "add_arguments", "check", "has_labels", "run"]

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
        help="a folder of images, shards, .npz, .npy, fashion-mnist",
    )
    add_output(
        parser,
        *(".npz", ".npy", ".parquet", ".csv"),
        text="embeddings [N, D] float32, with names, labels and classes if known: arrays in .npz, columns in .parquet"
        " (extra [parquet]) and .csv; beside .npy names in FILE.names.txt, classes in FILE.labels.txt, a line a row",
    )
    add_array_layout(parser)
    add_reading(parser)
    add_which(parser)
    parser.add_argument("--project", action="store_true", help="the projector's output instead of the encoder's")
    parser.add_argument(
        "--keep-map",
        action="store_true",
        help="of a layer that gives maps or tokens write these, [N, H, W, C] or [N, T, D], instead of one row of all"
        " their numbers, C·H·W",
    )
    parser.add_argument("--pool-map", action="store_true", help="write their mean over positions, [N, C]")
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
    for path in (options.out, *values.paths_beside(options.out).values()):
        problems += check_output(path, overwrite=options.overwrite, inputs=inputs)
    problems += check_data(options.data, options) + _check_maps(options)
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


def _check_maps(options: argparse.Namespace) -> list[str]:
    given = [name for name in ("project", "keep_map", "pool_map") if getattr(options, name)]
    if len(given) > 1:
        return [f"--{given[0].replace('_', '-')} and --{given[1].replace('_', '-')} contradict each other, give one"]
    if options.keep_map and options.out.suffix.lower() == ".csv":
        return ["--keep-map with .csv: a line holds one row of numbers, give .npz, .npy or .parquet, or --pool-map"]
    return []


def run(options: argparse.Namespace) -> int:
    """Writes the embeddings; prints their shape and the file's name."""
    from byol_jax.cli.compiled import keep_compiled_programs
    from byol_jax.cli.images import feature_batches, say_late
    from byol_jax.cli.row_files import About, check_format, open_rows

    check_format(options.out)
    keep_compiled_programs()
    open_source = _from_network if options.run is None else _from_run
    source = open_source(options, with_labels=has_labels(options.data))
    dataset, written = source.dataset, Written()
    about = About(dataset.names, dataset.labels, dataset.class_names)
    sizes = {"image_size": source.image_size, "batch_size": options.batch_size}
    with folder_for(options.out), open_rows(options.out, about) as write:
        for rows, numbers in feature_batches(source.function, source.state, dataset, **sizes):
            write(rows, numbers)
            written = written.add(rows, None if dataset.names is None else [dataset.names[row] for row in numbers])
    say_late(dataset)
    written.warn_of_rows()
    print(f"{' x '.join(map(str, (written.count, *written.row_shape)))}: {options.out}")
    return 0


def has_labels(data: str) -> bool | None:
    """Whether the folders in `data` are classes; a warning says where images beside them make them none.

    None where there are neither: of shards it shows when they are opened, and an array keeps what it has.
    """
    folders, images = values.first_level(data)
    if folders and images:
        warnings.warn(
            f"{data}: no labels are written, since images lie beside its folders, {images[0]!r} for one "
            f"({len(images)} in all); where folders are classes, move them into one",
            stacklevel=2,
        )
    return (bool(folders) and not images) if folders or images else None


class Written(NamedTuple):
    """What has been written so far: how many rows of which shape, how many with NaN or infinity, the first of these."""

    count: int = 0
    row_shape: tuple[int, ...] = ()
    wrong: int = 0
    first: str = ""

    def add(self, rows: "np.ndarray", names: list[str] | None) -> "Written":
        """With further rows."""
        import numpy as np

        wrong = np.flatnonzero(~np.isfinite(rows).all(axis=tuple(range(1, rows.ndim))))
        first = self.first
        if len(wrong) and not first:
            first = f"row {self.count + wrong[0]}"
            first = first if names is None else f"{names[wrong[0]]!s}, {first}"
        return Written(self.count + len(rows), rows.shape[1:], self.wrong + len(wrong), first)

    def warn_of_rows(self) -> None:
        """Says how many rows hold NaN or infinity: they would poison whatever is computed next."""
        if self.wrong:
            warnings.warn(
                f"{self.wrong} of {self.count} embeddings aren't finite, the first is {self.first}: look at the "
                "weights (python -m interop inspect FILE) and at the image",
                stacklevel=2,
            )


class FeatureSource(NamedTuple):
    """What features are taken from: `function(state, images)`, the images, and the size that it takes them in."""

    function: Callable[[Any, Any], Any]
    state: Any
    dataset: Any
    image_size: int | tuple[int, int]


def _from_run(options: argparse.Namespace, *, with_labels: bool | None) -> FeatureSource:
    from byol_jax.cli.images import open_images
    from byol_jax.runs.reopen import open_run

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
    if options.keep_map or options.pool_map:
        function = _of_maps(options, trained.learner, trained.which)
    else:
        function = trained.projection() if options.project else trained.embedding()
    return FeatureSource(function, trained.state, dataset, trained.image_size)


def _from_network(options: argparse.Namespace, *, with_labels: bool | None) -> FeatureSource:
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
    if options.keep_map or options.pool_map:
        function = _of_maps(options, network.learner, "online")
    else:
        function = jax.jit(network.learner.embed)
    return FeatureSource(function, network.state, dataset, image_size)


def _of_maps(options: argparse.Namespace, learner: Any, which: str) -> Callable[[Any, Any], Any]:
    """A compiled function from a state and images to maps, or to their means over positions.

    Raises:
        ConfigurationError: the layer gives neither maps nor tokens.
    """
    import jax

    from byol_jax.errors import ConfigurationError

    layout, layer = learner.settings.find_layout(), learner.settings.hidden_layer
    name = "the output" if layer == -1 else f"the layer {layer!r}"
    if len(layout.shape) == 1:
        raise ConfigurationError(
            f"--{'keep' if options.keep_map else 'pool'}-map: {name} gives {layout.shape[0]} numbers an image, no map:"
            " give --network NAME --hidden-layer L (with --init-from RUN/exported/encoder.safetensors the run's)"
        )
    if layout.is_guess:
        shape = " x ".join(map(str, layout.shape))
        warnings.warn(
            f"{name} gives {shape}, which are taken for channels, rows and columns, torch's own order: the shape"
            " doesn't tell",
            stacklevel=2,
        )

    def maps(state: Any, images: Any) -> Any:
        found = learner.feature_map(state, images, which=which)  # [N, H, W, C] or [N, T, D]
        return found if options.keep_map else found.mean(axis=tuple(range(1, found.ndim - 1)))

    return jax.jit(maps)
