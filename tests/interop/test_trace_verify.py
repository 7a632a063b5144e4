"""What `verify` refuses, and what it doesn't: rounding that a batch norm over two values makes much of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import interop
from byol_jax.errors import ConversionMismatchError
from byol_jax.hidden import OUTPUT
from interop.trace import verify
from interop.trace.ops import table


def sensitive(depth=40, width=64):
    """Each batch norm of two rows gives ±1, however near the two are; rounding grows from layer to layer."""
    torch.manual_seed(0)
    layers = [[nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()] for _ in range(depth)]
    return nn.Sequential(nn.Flatten(), nn.Linear(48, width), *(layer for block in layers for layer in block))


@pytest.mark.slow
def test_what_rounding_does_to_two_rows_is_no_mistake(monkeypatch):
    """With the two rows alone the same network would be refused."""
    assert interop.from_torch_module(sensitive(), image_size=4).hidden_layers()[-1] == "121"
    monkeypatch.setattr(verify, "ROLLS", 1)
    monkeypatch.setattr(verify, "_first_layer", lambda *rest: None)  # of 122, each run by itself
    with pytest.raises(ConversionMismatchError, match="Sequential in training"):
        interop.from_torch_module(sensitive(), image_size=4)


class SineInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.first(x)
        return self.second(torch.sin(x) if self.training else x)


@pytest.mark.slow
def test_a_mistake_in_training_alone_is_found_on_either_batch(monkeypatch):
    monkeypatch.setattr(table, "OPERATORS", table.OPERATORS | {"aten.sin": table.OPERATORS["aten.cos"]})
    with pytest.raises(ConversionMismatchError, match=r"SineInTraining in training: .* first at second"):
        interop.from_torch_module(SineInTraining(), image_size=4)


def test_more_of_an_example_are_other_inputs_of_the_same_values():
    for example in (torch.arange(12.0).view(2, 6, 1), torch.arange(12).view(2, 2, 3)):
        more = verify.more_inputs(example)
        assert (more.dtype, more.shape) == (example.dtype, (16, *example.shape[1:]))
        assert len({tuple(row.flatten().tolist()) for row in more}) == 12
        assert set(more[::2].flatten().tolist()) == set(example[0].flatten().tolist())


def test_whole_numbers_as_input():
    """An embedding takes them; it computes in its parameters' type."""
    module = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 5))
    encoder = interop.from_torch_module(module, example_input=torch.randint(10, (2, 3)))
    tokens = np.random.default_rng(0).integers(0, 10, (4, 3))
    variables = encoder.init(jax.random.key(0), (3,))
    got, _ = encoder.apply(variables, jnp.asarray(tokens, jnp.int32), train=False, hidden_layer=OUTPUT)
    with torch.no_grad():
        np.testing.assert_allclose(got, module(torch.from_numpy(tokens)), atol=1e-6)
