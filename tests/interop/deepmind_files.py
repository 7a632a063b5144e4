"""DeepMind's two small checkpoints, and learners of ours with networks of their shapes.

Their stems have 64 channels beside stages of 8 or 4, which no width of `nets.resnet` gives, so shapes are written down
here; the functions go by the arrays that they are given.
"""

import io
import tarfile
from functools import cache
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from byol_jax import Variables, make_learner, nets

FOLDER = Path(__file__).parent / "deepmind"
SIZES = ("64", "65", "96x80", "224")
TINY = {
    "tiny18": {"stages": (1, 1, 1, 1), "block": "basic", "num_classes": 5},
    "tiny50": {"stages": (3, 4, 6, 3), "block": "bottleneck", "num_classes": 10},
}
WIDTHS = {"tiny18": (8, 8, 8, 8), "tiny50": (4, 8, 16, 32)}
"""Inner channels of each stage."""

HEADS = {"tiny18": (16, 32, 32), "tiny50": (32, 64, 48)}
"""Projection, and the hidden layers of projector and predictor."""


@cache
def pickles():
    """The four files' bytes by name, "tiny18/pretrain.pkl"."""
    with tarfile.open(FOLDER / "pickles.tar.xz") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive.getmembers()}


@cache
def arrays(name):
    return dict(np.load(io.BytesIO((FOLDER / f"{name}.npz").read_bytes())))


def zeros(name):
    """An encoder's variables in the file's shapes, as `nets.resnet` names them."""
    stages, bottleneck = TINY[name]["stages"], TINY[name]["block"] == "bottleneck"
    params, stats = {"conv1": conv(7, 3, 64)}, {}
    params["bn1"], stats["bn1"] = norm(64)
    entering = 64
    for number, (blocks, inner) in enumerate(zip(stages, WIDTHS[name], strict=True), start=1):
        layer, layer_stats = params.setdefault(f"layer{number}", {}), stats.setdefault(f"layer{number}", {})
        leaving = 4 * inner if bottleneck else inner
        for index in range(blocks):
            shapes = [(3, entering, inner), (3, inner, inner)]
            if bottleneck:
                shapes = [(1, entering, inner), (3, inner, inner), (1, inner, leaving)]
            block, block_stats = {}, {}
            for place, shape in enumerate(shapes, start=1):
                block[f"conv{place}"] = conv(*shape)
                block[f"bn{place}"], block_stats[f"bn{place}"] = norm(shape[2])
            if index == 0:
                scale, mean = norm(leaving)
                block["downsample"], block_stats["downsample"] = (
                    {"0": conv(1, entering, leaving), "1": scale},
                    {"1": mean},
                )
            layer[str(index)], layer_stats[str(index)] = block, block_stats
            entering = leaving
    classes = TINY[name]["num_classes"]
    params["fc"] = {"kernel": jnp.zeros((entering, classes)), "bias": jnp.zeros(classes)}
    return Variables(params, stats)


def conv(size, channels, features):
    return {"kernel": jnp.zeros((size, size, channels, features))}


def norm(channels):
    stats = {"mean": jnp.zeros(channels), "var": jnp.ones(channels), "num_batches_tracked": jnp.zeros((), jnp.int32)}
    return {"scale": jnp.ones(channels), "bias": jnp.zeros(channels)}, stats


def encoder_of(name, *, padding="same"):
    """A network of the file's shapes."""
    return nets.with_variables(nets.resnet(**TINY[name], width=8, shortcut="always", padding=padding), zeros(name))


def learner_of(name, *, image_size=64, padding="same"):
    """A learner whose states have the file's shapes."""
    size, hidden, predictor_hidden = HEADS[name]
    return make_learner(
        encoder_of(name, padding=padding),
        image_size=image_size,
        hidden_layer="avgpool",
        projection_size=size,
        projection_hidden_size=hidden,
        prediction_hidden_size=predictor_hidden,
    )


def normalised(images):
    return (images - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
