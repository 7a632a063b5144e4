"""What is kept here: the runs by their command lines, the learners, the images. By public calls only.

`make.py` runs this with the code of commit f664bb0, `test_kept.py` with the code as it is.
"""

from functools import cache

import jax
import numpy as np
import optax
import their_code
from PIL import Image

import byol_jax
import interop
from byol_jax import nets, schedules

SIDE = 16
SMALL_HEADS = ("--projection-size", 16, "--projection-hidden-size", 16)
TRACED = ("--network", "their_code:make", "--hidden-layer", "pool", "--image-size", SIDE, "--batch-size", 8)
NATIVE = ("--network", "small_cnn", "--image-size", SIDE, "--batch-size", 8)
LARS = ("--optimizer", "lars", "--learning-rate", 0.3, "--schedule", "cosine", "--warmup-steps", 1)
GREY = ("--channels", 1, "--augment", "small_grey")
COSINE = ("--optimizer", "sgd", "--schedule", "cosine", "--warmup-steps", 2)

RUNS = {
    "lars": (*NATIVE, *SMALL_HEADS, *LARS, "--steps", 6, "--seed", 3, "--init-from", "colour.safetensors"),
    "adam": (*NATIVE, *SMALL_HEADS, *GREY, "--epochs", 3, "--init-from", "start.safetensors"),
    "traced": (*TRACED, *SMALL_HEADS, "--steps", 4, "--optimizer", "adamw", "--augment", "byol"),
    "alone": (*TRACED, *SMALL_HEADS, "--epochs", 3, "--no-momentum", *COSINE),
}
"""A run's name to the options of `byol-jax train photos --out NAME` behind these; rows of metrics are every step's."""

STOPPED = {"lars": 3, "adam": 4, "alone": 4, "python": 3}
"""After which step a run was stopped by SIGTERM; the others ended."""

LONGER = {"traced": ("--steps", 6)}
"""What of a run's options is larger when it goes on."""

START = {"lars": ("colour.safetensors", 3), "adam": ("start.safetensors", 1)}
"""The runs of a native network: the file that each began with, which lies in NAME.zip with it, and its channels.

Such a network is 400 KB a copy. Nearly all weights in these files are zero and stay so; zipped they take no room.
"""

HAVE_TARGET = ("lars", "adam", "traced")


def train_words(name, *others):
    """The words of a run's command line."""
    words = ("train", "photos", "--out", name, *RUNS[name], "--log-every", 1, *others)
    return [str(word) for word in words]


def write_photos(folder):
    """`folder/photos/dark` and `/light`: eight pictures each of 20 x 18, with something to see in them."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:20, 0:18]
    for name, low in (("dark", 20), ("light", 120)):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(8):
            waves = np.sin(rows / random.uniform(1, 4) + columns / random.uniform(1, 4) + random.uniform(0, 6))
            pixels = low + 50 + 50 * waves[..., None] * random.uniform(0.3, 1, 3)
            picture = Image.fromarray(np.round(pixels).astype(np.uint8))
            picture.save(folder / "photos" / name / f"{number}.png")


def write_start(path, channels):
    """Weights for a run of `START`: 4 x 4 channels of each convolution aren't zero, and nothing of the last layer."""
    random = np.random.default_rng(1)
    variables = nets.small_cnn().init(key(), (SIDE, SIDE, channels))
    state_dict = {name: np.array(array) for name, array in interop.to_torch_state_dict(variables).items()}
    for name, array in state_dict.items():
        if array.ndim > 1:
            few = (slice(4), slice(4)) if array.ndim == 4 else slice(0)
            kept = np.zeros_like(array)
            kept[few] = random.normal(size=kept[few].shape).astype(np.float32) / 4
            state_dict[name] = kept
    interop.save_state_dict(path, state_dict)


def key():
    """That of everything random outside the runs."""
    return jax.random.key(0)


def batch():
    """Images for steps and features of the learners below, uint8 [8, 16, 16, 3]."""
    return np.random.default_rng(5).integers(0, 256, (8, SIDE, SIDE, 3)).astype(np.uint8)


def array():
    """Images for the run `python`, [24, 18, 20, 3]."""
    return np.random.default_rng(6).integers(0, 256, (24, 18, 20, 3)).astype(np.uint8)


PYTHON_OPTIONS = {"hidden_layer": "avgpool", "projection_size": 8, "projection_hidden_size": 16}
PYTHON_OPTIONS |= {"augment_fn": their_code.views, "augment_fn2": their_code.darker_views, "views": "separate"}
PYTHON_OPTIONS |= {"normalize": None, "moving_average_decay": 0.9}


def small_resnet(**options):
    """Two blocks, four channels."""
    return nets.resnet((1, 1), width=4, num_classes=5, **options)


def pretrain(out, **others):
    """The run `python`; its optimiser has no name in config.json but that of its type."""
    options = {"image_size": SIDE, "steps": 6, "batch_size": 8, "seed": 4, "log_every": 1, "progress": False}
    rate = optax.sgd(schedules.learning_rate(0.5, 256, 1, 6), momentum=0.9)
    return byol_jax.pretrain(small_resnet(), array(), out=out, optimizer=rate, **PYTHON_OPTIONS, **options, **others)


@cache
def learner(name):
    """One of `LEARNERS`."""
    return LEARNERS[name]()


def _learner(encoder, hidden_layer="avgpool", **options):
    heads = {"projection_size": 8, "projection_hidden_size": 16}
    return byol_jax.make_learner(encoder, image_size=SIDE, hidden_layer=hidden_layer, **(heads | options))


def _separate():
    decay = schedules.target_decay(0.9, 8)
    optimizer = byol_jax.lars(schedules.learning_rate(0.2, 512, 1, 8), weight_decay=1e-6)
    return _learner(
        small_resnet(block="bottleneck", stem="cifar"),
        moving_average_decay=decay,
        optimizer=optimizer,
        augment_fn=byol_jax.augment.byol(SIDE, view=1),
        augment_fn2=byol_jax.augment.byol(SIDE, view=2),
        views="separate",
        prediction_hidden_size=12,
    )


def _transformer():
    return nets.vit(2, width=8, num_heads=2, patch_size=8, num_classes=5)


LEARNERS = {
    "padded": lambda: _learner(small_resnet(padding="same", shortcut="always")),
    "plain": lambda: _learner(small_resnet(), optimizer=optax.adamw(1e-3)),
    "alone": lambda: _learner(nets.small_cnn((4, 8)), -2, use_momentum=False, optimizer=optax.sgd(0.05, momentum=0.9)),
    "embeddings": lambda: _learner(small_resnet(), simplicial_embeddings=True, optimizer=optax.sgd(0.1)),
    "separate": _separate,
    "transformer": lambda: _learner(_transformer(), "pooled"),
    "linen": lambda: _learner(byol_jax.from_linen(their_code.linen_network()), -1),
    "nnx": lambda: _learner(byol_jax.from_nnx(their_code.nnx_network()), -1),
}
"""Checkpoints alone: written by `checkpoint.save` after two steps on `batch()`."""

FILES = {
    "byol_pytorch_C.pt": ("plain", "C"),
    "byol_pytorch_C-sim.npz": ("alone", "C-sim"),
    "byol_pytorch_D1.safetensors": ("embeddings", "D1"),
    "lightly.safetensors": ("plain", "lightly"),
    "solo_learn.pt": ("plain", "solo_learn"),
}
"""Whole learners of other libraries: a file's name to the learner above and the layout."""

NETWORKS = {"resnet.safetensors": "plain", "padded.pt": "padded", "transformer.npz": "transformer"}
"""Networks alone, by `to_torch_state_dict` and `save_state_dict`: a file's name to the learner whose online network."""


def first_state(name):
    """Before any step."""
    return learner(name).init(key())


@cache
def step_of(name):
    """The compiled step."""
    return jax.jit(learner(name).step)


@cache
def _features(name):
    made = learner(name)

    def features(state, images):
        networks = ("online", "target") if state.target.params else ("online",)
        functions = {"embed": made.embed, "project": made.project}
        return {
            f"{what}_{which}": function(state, images, which=which)
            for what, function in functions.items()
            for which in networks
        }

    return jax.jit(features)


def features_of(name, state):
    """Features and projections of `batch()`, of both networks where there are two; float32 arrays by name."""
    return {key: np.asarray(value) for key, value in _features(name)(state, batch()).items()}
