"""byol-pytorch's learners in its four layouts, ours that fit them, and their states without compiling anything."""

from functools import cache

import jax

from tests.parity.trajectory import SMALL, Case, blank, both_learners

LAYOUTS = {
    "C": Case("flip", "adam", -2, "constant", False),
    "C-sim": Case("flip", "adam", -2, "simsiam", False),
    "D1": Case("flip", "adam", -2, "constant", True),
    "D1-sim": Case("flip", "adam", -2, "simsiam", True),
}


def torch_learner(layout, *, seed=0, network=SMALL):
    return both_learners(network, LAYOUTS[layout], "float32", seed=seed)[0]


def our_learner(layout, *, network=SMALL, **options):
    return both_learners(network, LAYOUTS[layout], "float32", **options)[1]


def state_of(layout, **options):
    """A state of zeros at step 7."""
    return blank(our_learner(layout, **options), step=7)


@cache
def shapes(layout, **options):
    return jax.eval_shape(our_learner(layout, **options).init, jax.random.key(0))


@cache
def theirs(layout):
    return {key: tensor.numpy() for key, tensor in torch_learner(layout).state_dict().items()}
