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
def test_every_layer_is_exact(share, figure):
    """Outputs, buffers and gradients, by the layer's input too, in both modes: `from_torch_module` verifies them."""
    names = [name for name in TRACED if hasattr(nn, name)]
    groups = share([names[start : start + 8] for start in range(0, len(names), 8)])
    for group in groups:
        torch.manual_seed(0)
        encoder = interop.from_torch_module(Layers(group), example_input=torch.rand(2, Layers.LENGTH))
        assert {f"layers.{name}" for name in group} <= set(encoder.hidden_layers())
    figure(
        "layer classes of torch.nn that take one tensor: outputs, buffers, gradients by parameters and input",
        cases=sum(map(len, groups)),
        result="as exact as `from_torch_module` asks for, 1e-6 in float64",
    )


@pytest.mark.long
def test_a_layer_that_is_refused_is_refused_by_name(share, figure):
    names = share(list(REFUSED))
    for name in names:
        reason = REFUSED[name]
        report = interop.check(Layers([name]), example_input=torch.rand(2, Layers.LENGTH))
        assert not report.supported, name
        assert (name if ";" in reason else reason) in str(report), name
    figure("layer classes of torch.nn that can't be traced", cases=len(names), result="`check` names what is missing")
