"""The same numbers as byol-pytorch 0.9.1 itself, after every step, in float64; the start goes through our loader."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.parity.trajectory import RESNET18, RESULT, SMALL, TOLERANCE, Case, check_there_and_back, named
from tests.parity.trajectory_cases import PAIRWISE, PRODUCT, RESNET_CASES, pairs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_pair_is_covered() -> None:
    assert set().union(*map(pairs, PAIRWISE)) == set().union(*map(pairs, PRODUCT))
    assert len(PAIRWISE) == 21, "the least there can be: seven layers times three optimisers"


def test_trajectory_is_byol_pytorchs(tmp_path: Path) -> None:
    assert check_there_and_back(SMALL, Case("flip", "adam", -2, "constant", False), tmp_path)[0] <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("case", PAIRWISE, ids=named)
def test_trajectories_of_all_pairs(case: Case, tmp_path: Path) -> None:
    assert check_there_and_back(SMALL, case, tmp_path)[0] <= TOLERANCE


@pytest.mark.long
def test_trajectories_of_all_combinations(tmp_path: Path, share: Any, figure: Any) -> None:
    cases = share(PRODUCT)
    largest, rounding = np.max([check_there_and_back(SMALL, case, tmp_path) for case in cases], axis=0)
    figure("small_cnn against byol-pytorch, five steps", cases=len(cases), result=RESULT.format(largest, rounding))
    assert largest <= TOLERANCE


@pytest.mark.long
def test_trajectories_with_resnet18(tmp_path: Path, share: Any, figure: Any) -> None:
    """XLA's optimisations as users have them."""
    cases = share(RESNET_CASES)
    largest, rounding = np.max([check_there_and_back(RESNET18, case, tmp_path, {}) for case in cases], axis=0)
    figure("resnet18 against byol-pytorch, five steps", cases=len(cases), result=RESULT.format(largest, rounding))
    assert largest <= TOLERANCE
