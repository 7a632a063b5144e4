"""A run that is trained in a moment, for tests that do something to it: its options, its images, what it left."""

import numpy as np

from byol_jax.runs.metrics import read_metrics

RECIPE = ["--network", "small_cnn", "--image-size", "16", "--channels", "1", "--batch-size", "8", "--augment", "none"]
RECIPE += ["--projection-size", "8", "--projection-hidden-size", "16", "--learning-rate", "0.001"]

SMALL = {
    "image_size": 16,
    "batch_size": 8,
    "num_channels": 1,
    "projection_size": 8,
    "projection_hidden_size": 16,
    "progress": False,
}
"""Much the same for `pretrain`."""

MEASURED = ("seconds", "seconds_per_step", "images_per_second", "data_wait", "compile_seconds")
"""What a row says about the machine; the rest of it must be the same however often a run was stopped."""


def save_images(path, count=28):
    np.save(path, np.random.default_rng(0).integers(0, 256, (count, 20, 20, 1), np.uint8))
    return path


def states(out):
    """Step to the name of its file of leaves, which has their hash in it."""
    found = sorted((out / "checkpoints").glob("[0-9]*/state-*"))
    return {int(path.parent.name): path.name for path in found}


def contents(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def plain_rows(out):
    """The rows of metrics.jsonl without what was measured by the clock; every line is whole."""
    rows, unreadable = read_metrics(out / "metrics.jsonl")
    assert unreadable == 0
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


def temporaries(out):
    return [path for path in out.rglob("*") if path.name.startswith(".tmp-")]
