"""byol-pytorch with its own torch network, and ours with the same network traced: the same numbers, in float64.

The network is never written in JAX; its leaves keep torch's names, the heads are ours.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torchvision
from torch import nn

from interop import from_torch_module
from tests.parity.reference import traced
from tests.parity.trajectory import RESNET18, RESULT, SMALL, TOLERANCE, Case, Network, check_there_and_back
from tests.parity.trajectory_cases import PAIRWISE, RESNET_CASES

pytestmark = pytest.mark.usefixtures("one_thread")

DEFAULT = Case("flip", "adam", -2, "constant", True)


def network(make: Callable[[], nn.Module], size: int) -> Network:
    """Both from `make`; what is traced has other weights, which the loader replaces."""
    return Network(make, lambda: from_torch_module(make(), image_size=size, verify=False), size, traced)


TRACED_SMALL, TRACED_RESNET18 = (network(native.theirs, native.size) for native in (SMALL, RESNET18))

NEVER_IN_JAX = {
    "squeeze and excitation": network(lambda: timm.create_model("test_efficientnet"), 32),
    "channel shuffle": network(torchvision.models.shufflenet_v2_x0_5, 32),
    "layer norm, attention": network(lambda: timm.create_model("test_vit", img_size=32, patch_size=8), 32),
    "layer scale, depthwise": network(lambda: timm.create_model("test_convnext"), 32),
}


@pytest.mark.slow
def test_trajectory_of_a_traced_network(tmp_path: Path) -> None:
    assert check_there_and_back(TRACED_SMALL, DEFAULT, tmp_path)[0] <= TOLERANCE


@pytest.mark.long
def test_trajectories_of_traced_networks(tmp_path: Path, share: Any, figure: Any) -> None:
    """A ResNet-18 first, so that the tenth has one, too."""
    further = [
        Case("identity", "adam", -1, "simsiam", True),
        Case("flip", "adamw", "1", "constant", True),
        Case("identity", "adamw", -6, "simsiam", False),
        Case("flip", "sgd", 5, "scheduled", False),
    ]
    cases = share(
        [(TRACED_RESNET18, case) for case in RESNET_CASES[::2]]
        + [(TRACED_SMALL, case) for case in dict.fromkeys([*PAIRWISE, *further])]
        + [(one, DEFAULT._replace(target="scheduled")) for one in NEVER_IN_JAX.values()]
        + [(NEVER_IN_JAX["layer norm, attention"], DEFAULT)]
    )
    largest, rounding = np.max([check_there_and_back(*case, tmp_path) for case in cases], axis=0)
    figure(
        "byol-pytorch's own torch networks traced, against byol-pytorch, five steps",
        cases=len(cases),
        result=RESULT.format(largest, rounding),
    )
    assert largest <= TOLERANCE
