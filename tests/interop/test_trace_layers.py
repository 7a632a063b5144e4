"""Every layer class of torch.nn that takes one tensor is in the table of docs/operators.md, and the table is right."""

import pytest
import torch
from torch import nn

import interop
from tests.torch_layers import REFUSED, TRACED, Layers, layer_names


def test_the_table_has_every_layer_of_the_installed_torch():
    assert not set(TRACED) & set(REFUSED)
    assert set(layer_names()) <= {*TRACED, *REFUSED}


@pytest.mark.long
def test_nothing_is_in_the_way_of_a_layer(share, figure):
    names = share([name for name in TRACED if hasattr(nn, name)])
    for name in names:
        report = interop.check(Layers([name]), example_input=torch.rand(2, Layers.LENGTH))
        assert report.supported, f"{name}: {report}"
    figure(
        "layer classes of torch.nn that take one tensor", cases=len(names), result="`check` finds nothing in the way"
    )
