"""Every library's learner in every layout, as a state dict, and a state of ours that it fits."""

from functools import cache

import plain_learners
import pytest
from byol_learners import LAYOUTS, state_of, theirs

from interop.learners.byol_history import as_older
from tests.parity.trajectory import blank

OLDER = {"A": "C", "B": "C", "D0-sim": "C-sim"}


def arrays_of(module, prefix=""):
    return {prefix + name: tensor.numpy() for name, tensor in module.state_dict().items()}


def lightly(momentum="{}_momentum", **options):
    return plain_learners.Lightly(plain_learners.cut(plain_learners.resnet()), momentum, **options)


def without_momentum_layout(layout):
    with pytest.warns(UserWarning, match="embeddings"):
        return as_older(theirs(OLDER[layout]), layout, where="x")


LEARNERS = {
    **{f"byol-pytorch {layout}": (lambda layout=layout: theirs(layout), f"layout {layout} ") for layout in LAYOUTS},
    "byol-pytorch A": (lambda: as_older(theirs("C"), "A", where="x"), "layout A (0.0.1 to 0.5.1)"),
    "byol-pytorch B": (lambda: as_older(theirs("C"), "B", where="x"), "layout B (0.5.2 to 0.5.7)"),
    "byol-pytorch D0-sim": (lambda: without_momentum_layout("D0-sim"), "layout D0-sim (0.9.0"),
    "lightly-examples": (lambda: arrays_of(lightly()), "lightly-examples (1.2.13 and later)"),
    "lightly-models": (lambda: arrays_of(lightly("momentum_{}")), "lightly-models"),
    "lightly-benchmarks": (
        lambda: arrays_of(plain_learners.Lightly(plain_learners.resnet(), "teacher_{}", classifier=True)),
        "lightly-benchmarks",
    ),
    "lightly-cifar": (lambda: arrays_of(plain_learners.Lightly(plain_learners.lightly_cifar())), "lightly-cifar"),
    "solo-learn backbone": (lambda: arrays_of(plain_learners.SoloLearn(plain_learners.resnet())), "1.0.3 and later"),
    "solo-learn encoder": (
        lambda: arrays_of(plain_learners.SoloLearn(plain_learners.resnet(), "encoder")),
        "up to 1.0.2",
    ),
}


@cache
def made(kind):
    return LEARNERS[kind][0]()


def like_of(kind):
    """A state of ours that such a learner fits."""
    if kind.startswith("byol-pytorch"):
        layout = kind.removeprefix("byol-pytorch ")
        return state_of(OLDER.get(layout, layout))
    classes = plain_learners.CLASSES if "solo" in kind or "benchmarks" in kind else None
    stem = "cifar" if "cifar" in kind else "imagenet"
    return blank(plain_learners.learner(num_classes=classes, stem=stem))
