"""`byol-jax preview DATA --out PNG`: a picture of images beside their two views, before time is spent on training.

With `--network` it also checks that the network takes such images, and prints what it would learn from.
"""

import argparse

from byol_jax.cli import values
from byol_jax.cli.common import (
    add_array_layout,
    add_channels,
    add_fit,
    add_network,
    add_output,
    add_reading,
    add_value_range,
    check_data,
    check_output,
    folder_for,
    reading_of,
)
from byol_jax.cli.networks import check_network, find_network, needs_network
from byol_jax.cli.recipe_options import add_augment, add_hidden_layer
from byol_jax.recipe import DEFAULT, augmentations

__all__ = ["USAGE", "add_arguments", "check", "run"]

USAGE = "DATA --out PNG [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "data",
        type=values.data_source,
        metavar="DATA",
        help="a folder of images, shards, an .npz or .npy file, fashion-mnist",
    )
    add_output(parser, ".png", metavar="PNG", text="the picture")
    parser.add_argument(
        "--image-size", type=values.image_size, metavar="N", help="pixels, N or HxW (224; that of arrays)"
    )
    add_channels(parser)
    add_reading(parser)
    add_array_layout(parser)
    add_fit(parser)
    add_value_range(parser)
    add_augment(parser, "the random changes")
    add_network(parser)
    add_hidden_layer(parser)
    parser.add_argument("--count", type=values.positive_int, default=8, metavar="N", help="how many images (8)")
    parser.add_argument("--seed", type=values.whole_number, default=0, metavar="N", help="which images and views (0)")


def check(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options together."""
    inputs = {"DATA": options.data, "--init-from": options.init_from}
    problems = check_output(options.out, overwrite=options.overwrite, inputs=inputs)
    problems += check_data(options.data, options)
    problems += needs_network(options, "weights", "init_from", "hidden_layer")
    return problems + check_network(options, network=options.network)


def run(options: argparse.Namespace) -> int:
    """Draws the picture; prints its name, and with `--network` what the network makes of such images."""
    import jax

    from byol_jax.cli.images import open_training_images, say_late, say_range
    from byol_jax.cli.open_network import open_network, summary
    from byol_jax.data import epoch_order
    from byol_jax.data.ranges import to_unit
    from byol_jax.runs.pictures import sample_grid, say_shown

    make_network = find_network(options.network, options.weights) if options.network else None
    dataset, image_size, channels = open_training_images(
        options.data,
        options.image_size,
        options.channels,
        fit=options.fit or "cover",
        layout=options.layout,
        value_range=options.value_range,
        reading=reading_of(options),
    )
    value_range = say_range(options.value_range, dataset, seed=options.seed)
    lines = []
    if make_network is not None:
        sizes = {"image_size": image_size, "channels": channels}
        network = open_network(options, make_network, **sizes, seed=options.seed, value_range=value_range)
        lines = summary(options.network, network)
    images = dataset.take(epoch_order(options.seed, 0, len(dataset))[: options.count])  # [n, h, w, C]
    say_late(dataset)
    first, second = augmentations(options.augment or DEFAULT.augmentation, image_size)
    with folder_for(options.out):
        sample_grid(
            to_unit(images, value_range),
            first,
            second,
            jax.random.fold_in(jax.random.key(options.seed), 0),
            options.out,
        )
    shown = say_shown(channels, options.bands)
    print("\n".join([str(options.out), *([shown] if shown else []), *lines]))
    return 0
