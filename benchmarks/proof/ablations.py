"""What BYOL is known to need, taken away one at a time: the demo's recipe, shortened, on 60,000 images.

Where `make_learner` has no argument for it, it is a function on a learner, here. Grey images have no colour: what is
left out in its place are the changes of tone. So that a single operation can be left out, the recipe's set of
augmentations is composed of public functions; all variants, the whole one too, have that.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.proof.data import Images
from benchmarks.proof.measure import accuracies
from byol_jax import augment, evaluate, make_learner, nets, presets
from byol_jax.byol import Learner
from byol_jax.data.order import batches_from
from byol_jax.hidden import OUTPUT
from byol_jax.nets.layers import linear, linear_init
from byol_jax.recipe import learner_arguments
from byol_jax.settings import Network
from byol_jax.types import Variables

__all__ = ["VARIANTS", "Variant", "run", "train", "views", "without_batch_norm", "without_predictor"]

SIZE = 28
BYOL, SIMCLR, SIMSIAM = "BYOL, arXiv:2006.07733", "SimCLR, arXiv:2002.05709", "SimSiam, arXiv:2011.10566"


def views(*without: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """small_grey's operations with its strengths, but for those named: "crop", "tone".

    Unlike in `augment.small_grey` boxes have whole pixels, contrast and brightness come in either order and are
    clipped, and each operation draws its own numbers.
    """
    operations = {
        "crop": [partial(augment.random_crop_and_resize, size=SIZE, scale=(0.4, 1.0))],
        "flip": [augment.random_flip_left_right],
        "tone": [
            partial(augment.random_gamma, strength=0.5),
            partial(augment.color_jitter, brightness=0.5, contrast=0.5),
            partial(augment.random_tone_curve, strength=0.3),
            partial(augment.random_solarize, p=0.3),
        ],
        "cutout": [partial(augment.random_cutout, p=0.5, height=(6 / 28, 14 / 28), width=(6 / 28, 14 / 28))],
    }
    return augment.compose(*(one for name, several in operations.items() if name not in without for one in several))


def without_predictor(learner: Learner) -> Learner:
    """The projection itself is compared with the target's: the predictor is the identity and has no parameters."""

    def apply(variables: Variables, x: Any, *, train: bool, key: jax.Array | None = None) -> Any:
        return x, {}

    return Learner(replace(learner.settings, predictor=Network(lambda key: Variables({}, {}), apply)))


def without_batch_norm(learner: Learner) -> Learner:
    """Projector and predictor are Linear → ReLU → Linear; the encoder keeps its batch norm."""
    s = learner.settings
    hidden = presets.small_grey().projection_hidden_size
    projector = _plain_head(s.feature_size, hidden, s.projection_size)
    return Learner(replace(s, projector=projector, predictor=_plain_head(s.projection_size, hidden, s.projection_size)))


def _plain_head(inputs: int, hidden: int, outputs: int) -> Network:
    def init(key: jax.Array) -> Variables:
        first, second = jax.random.split(key)
        layers = {"0": linear_init(first, inputs, hidden, jnp.float32)}
        return Variables(layers | {"2": linear_init(second, hidden, outputs, jnp.float32)}, {})

    def apply(variables: Variables, x: Any, *, train: bool, key: jax.Array | None = None) -> Any:
        return linear(variables.params["2"], jax.nn.relu(linear(variables.params["0"], x))), {}  # [N, outputs]

    return Network(init, apply)


@dataclass(frozen=True)
class Variant:
    """What is taken away, and what was published of it.

    Attributes:
        title: a few words for the table.
        published: what came of it there, on ImageNet, top-1 of a linear classifier, beside the whole.
        source: where.
        lower: whether it was worse there than the whole; None: nothing was published.
        arguments: of `make_learner`, in place of the recipe's.
        change: a function on the learner.
        trained: False for none.
    """

    title: str
    published: str = "-"
    source: str = "-"
    lower: bool | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[Learner], Learner] = lambda learner: learner
    trained: bool = True


VARIANTS = {
    "baseline": Variant("the whole", "72.5", f"{BYOL}, baseline of the ablations, 300 epochs"),
    "untrained": Variant("not trained", "1.4", f"{BYOL}, ablations", lower=True, trained=False),
    "no_predictor": Variant("no predictor", "0.2", f"{BYOL}, ablations", lower=True, change=without_predictor),
    "decay_zero": Variant(
        "decay 0: the target is the online network",
        "0.3; SimSiam has a recipe that learns so",
        f"{BYOL}, ablations; {SIMSIAM}",
        lower=True,
        arguments={"moving_average_decay": 0.0},
    ),
    "decay_one": Variant(
        "decay 1: the target stays as it began",
        "18.8",
        f"{BYOL}, ablations",
        lower=True,
        arguments={"moving_average_decay": 1.0},
    ),
    "no_batch_norm": Variant(
        "no batch norm in the heads",
        "34.6 beside 68.1, without a moving average",
        f"{SIMSIAM}, table 3, 100 epochs",
        lower=True,
        change=without_batch_norm,
    ),
    "no_tone": Variant(
        "no change of tone (in colour: no jitter, no grey)",
        "63.4",
        f"{BYOL}, ablations of the augmentations",
        lower=True,
        arguments={"augment_fn": views("tone"), "augment_fn2": None},
    ),
    "no_crop": Variant(
        "no crop",
        "lower without crops or without colour, each by itself",
        f"{SIMCLR}, section 3.1",
        lower=True,
        arguments={"augment_fn": views("crop"), "augment_fn2": None},
    ),
    "separate_views": Variant(
        "batch norm of each view by itself (the whole: of both together)", arguments={"views": "separate"}
    ),
}
"""By the name that items.py has."""


def run(
    options: Mapping[str, Any], images: Images, *, seed: int, tell: Callable[[str], None], **_: Any
) -> dict[str, Any]:
    """`knn, linear, steps, train_seconds`; `spread` and `collapsed` of the test images' projections; `loss`.

    `spread` is over that of directions spread evenly, 1; see `evaluate.collapse`.
    """
    variant = VARIANTS[options["change"]]
    recipe = presets.small_grey()
    recipe = replace(recipe, steps=options["steps"], batch_size=options["batch_size"], hidden_layer=OUTPUT)
    arguments = learner_arguments(recipe) | {"augment_fn": views(), "augment_fn2": None} | dict(variant.arguments)
    learner = variant.change(make_learner(nets.small_cnn(num_classes=None), **arguments))
    state, facts = train(learner, images.train, options, seed=seed, steps=options["steps"] if variant.trained else 0)
    embed, project = jax.jit(learner.embed), jax.jit(learner.project)
    scores = accuracies(lambda batch: embed(state, batch), images, labelled=options["labelled"])
    size = min(500, len(images.test))
    spread = evaluate.collapse(evaluate.extract(lambda batch: project(state, batch), images.test, batch_size=size))
    even = 1 / np.sqrt(learner.settings.projection_size)
    tell(f"kNN {scores['knn']:.4f}, linear {scores['linear']:.4f}, spread {spread.feature_std / even:.3f}")
    return scores | {"spread": spread.feature_std / even, "collapsed": spread.collapsed} | facts


def train(
    learner: Learner, images: np.ndarray, options: Mapping[str, Any], *, seed: int, steps: int
) -> tuple[Any, dict[str, Any]]:
    """The state after `steps`, and `steps, train_seconds, loss` (the last step's) and `nonfinite` (how many steps)."""
    state = learner.init(jax.random.key(seed))
    step = jax.jit(learner.step, donate_argnums=0)
    batches = batches_from(0, seed=seed, count=len(images), batch_size=options["batch_size"])
    began, metrics, nonfinite = time.perf_counter(), {}, []
    for _ in range(steps):
        state, metrics = step(state, images[next(batches)])
        nonfinite.append(metrics["nonfinite"])
        if len(nonfinite) > 2:
            jax.block_until_ready(nonfinite[-3])  # not further ahead than two steps
    jax.block_until_ready(state)
    seconds = time.perf_counter() - began
    loss = {"loss": float(metrics["loss"])} if metrics else {}
    return state, {"steps": steps, "train_seconds": seconds, "nonfinite": int(np.sum(nonfinite))} | loss
