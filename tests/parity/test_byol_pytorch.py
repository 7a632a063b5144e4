"""The same numbers as byol-pytorch 0.9.1 itself, after every step, in float64; the start goes through our loader."""

import itertools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch

import interop
from tests.parity.trajectory import (
    OPTIMIZERS,
    QUICK,
    RESNET18,
    SMALL,
    STEPS,
    TOLERANCE,
    Case,
    Network,
    both_learners,
    check,
    some_images,
    torch_images,
)

pytestmark = pytest.mark.usefixtures("one_thread")

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


RESULT = "largest difference {:.1e}; {:.1e} in biases whose gradient is rounding alone"


def named(case: Case) -> str:
    return " ".join([*map(str, case[:-1]), "simplicial" if case.simplicial else "plain"])


def check_there_and_back(network: Network, case: Case, folder: Path, options: Any = QUICK) -> np.ndarray:
    """Five steps compared; then a new learner of theirs loads what ours saved, and has our next loss.

    Returns the largest difference met, of all that has a gradient or a value of its own, and of the rest.
    """
    with jax.enable_x64(True):
        state, advance, *largest = check(network, case, options=options)
        interop.save_byol_checkpoint(folder / "learner.safetensors", state, layout="byol_pytorch")
        batch = some_images(network, STEPS + 1)[-1]
        ours = float(advance(state, batch)[0])
        theirs, _ = both_learners(network, case, "float64", seed=1)
    saved = interop.load_state_dict(folder / "learner.safetensors")
    theirs.load_state_dict({key: torch.from_numpy(array) for key, array in saved.items()}, strict=True)
    np.testing.assert_allclose(ours, theirs(torch_images(batch)).item(), rtol=1e-12)
    return np.array(largest)


def test_every_pair_is_covered() -> None:
    assert set().union(*map(pairs, PAIRWISE)) == set().union(*map(pairs, PRODUCT))
    assert len(PAIRWISE) == 21, "the least there can be: seven layers times three optimisers"


def test_trajectory_is_byol_pytorchs(tmp_path: Path) -> None:
    assert check_there_and_back(SMALL, Case("flip", "adam", -2, "constant", False), tmp_path)[0] <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", PAIRWISE, ids=named)
def test_trajectories_of_all_pairs(case: Case, tmp_path: Path) -> None:
    assert check_there_and_back(SMALL, case, tmp_path)[0] <= TOLERANCE


@pytest.mark.slow
def test_trajectory_with_resnet18(tmp_path: Path) -> None:
    """XLA's optimisations as users have them."""
    case = Case("flip", "adamw", "avgpool", "scheduled", False)
    assert check_there_and_back(RESNET18, case, tmp_path, {})[0] <= TOLERANCE


@pytest.mark.long
def test_trajectories_of_all_combinations(tmp_path: Path, share: Any, figure: Any) -> None:
    cases = share(PRODUCT)
    largest, rounding = np.max([check_there_and_back(SMALL, case, tmp_path) for case in cases], axis=0)
    figure("small_cnn against byol-pytorch, five steps", cases=len(cases), result=RESULT.format(largest, rounding))
    assert largest <= TOLERANCE


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


@pytest.mark.long
def test_trajectories_with_resnet18(tmp_path: Path, share: Any, figure: Any) -> None:
    cases = share(RESNET_CASES)
    largest, rounding = np.max([check_there_and_back(RESNET18, case, tmp_path, {}) for case in cases], axis=0)
    figure("resnet18 against byol-pytorch, five steps", cases=len(cases), result=RESULT.format(largest, rounding))
    assert largest <= TOLERANCE
