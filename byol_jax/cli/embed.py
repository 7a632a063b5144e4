"""`byol-jax embed RUN --data DIR --out FILE`: features of images, for search, clustering or classifiers."""

import argparse
import io
from typing import Any

from byol_jax.cli import values
from byol_jax.cli.common import add_output, add_run, add_which, check_output, folder_for

__all__ = ["USAGE", "add_arguments", "check", "run"]

USAGE = "RUN --data DIR --out FILE [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add_run(parser)
    parser.add_argument(
        "--data",
        type=values.data_source,
        required=True,
        metavar="DIR",
        help="a folder of images, .npz, .npy, fashion-mnist",
    )
    add_output(
        parser, ".npz", ".npy", text="embeddings [N, D] float32 (in .npz also names, and labels and classes if known)"
    )
    add_which(parser)
    parser.add_argument("--project", action="store_true", help="the projector's output instead of the encoder's")
    parser.add_argument(
        "--batch-size", type=values.positive_int, default=256, metavar="N", help="images at a time (256)"
    )
    parser.add_argument("--workers", type=values.positive_int, default=2, metavar="N", help="threads that decode (2)")


def check(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options together."""
    return check_output(options.out, overwrite=options.overwrite)


def run(options: argparse.Namespace) -> int:
    """Writes the embeddings; prints their shape and the file's name."""
    import numpy as np

    from byol_jax.cli.images import features_of, open_images
    from byol_jax.cli.opened_run import open_run

    opened = open_run(options.run, options.which)
    dataset = open_images(
        options.data,
        image_size=opened.image_size,
        num_channels=opened.config["learner"]["num_channels"],
        with_labels=values.has_classes(options.data),
        workers=options.workers,
    )
    embeddings = features_of(
        opened.projection() if options.project else opened.embedding(),
        opened.state,
        dataset,
        np.arange(len(dataset)),
        image_size=opened.image_size,
        batch_size=options.batch_size,
    )
    _write(options.out, _arrays(embeddings, dataset))
    print(f"{embeddings.shape[0]} x {embeddings.shape[1]}: {options.out}")
    return 0


def _arrays(embeddings: Any, dataset: Any) -> dict[str, Any]:
    """What the file holds, `embeddings` first; nothing in it needs pickle."""
    import numpy as np

    arrays = {"embeddings": embeddings}
    if dataset.names is not None:
        arrays["names"] = np.asarray(dataset.names, dtype=np.str_)
    if dataset.labels is not None:
        arrays["labels"] = dataset.labels
    if dataset.class_names is not None:
        arrays["class_names"] = np.asarray(dataset.class_names, dtype=np.str_)
    return arrays


def _write(path: Any, arrays: dict[str, Any]) -> None:
    import numpy as np

    from byol_jax import disk

    buffer = io.BytesIO()
    if path.suffix.lower() == ".npz":
        np.savez(buffer, allow_pickle=False, **arrays)
    else:
        np.save(buffer, arrays["embeddings"], allow_pickle=False)
    with folder_for(path):
        disk.write_atomically(path, buffer.getvalue())
