"""Which combinations of views, optimiser, layer, target and heads the trajectories are compared in."""

import itertools
from typing import Any

from tests.parity.trajectory import OPTIMIZERS, Case

FACTORS = {
    "second_view": ("flip", "identity"),
    "optimizer": tuple(OPTIMIZERS),
    "hidden_layer": (-2, "6", 5, "1", 0, -6, -1),  # late by three ways of naming, early by three, the output
    "target": ("constant", "scheduled", "simsiam"),
    "simplicial": (False, True),
}
PRODUCT = [Case(*values) for values in itertools.product(*FACTORS.values())]


def pairs(case: Case) -> set[Any]:
    return set(itertools.combinations(enumerate(case), 2))


def covering(cases: list[Case]) -> list[Case]:
    """A few of `cases` in which every two values of two factors occur together; greedy, always the same."""
    left = set().union(*map(pairs, cases))
    chosen = []
    while left:
        chosen.append(max(cases, key=lambda case: len(pairs(case) & left)))
        left -= pairs(chosen[-1])
    return chosen


PAIRWISE = covering(PRODUCT)

RESNET_CASES = [
    Case("flip", "adam", "avgpool", "constant", True),  # byol-pytorch's default
    Case("flip", "sgd", -2, "scheduled", False),
    Case("identity", "adam", -1, "constant", False),
    Case("flip", "adamw", 8, "simsiam", True),
    Case("identity", "adamw", "layer2.0.downsample.1", "scheduled", True),
    Case("flip", "adam", "layer1.1.bn1", "simsiam", False),
    Case("flip", "sgd", "layer3.0.conv2", "constant", True),
    Case("identity", "sgd", 0, "simsiam", True),
    Case("flip", "adamw", -9, "constant", False),
    Case("flip", "adam", "fc", "scheduled", False),
]
