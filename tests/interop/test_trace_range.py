"""Numbers that 16 bits can't hold: what is finite in float32 stays finite, and every other one as it is."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from byol_jax.tree import cast
from interop import from_torch_module
from interop.trace.ops.operator import Context
from interop.trace.ops.table import find
from interop.trace.values import from_torch_order, to_torch_order


class MaskedByBuffer(nn.Module):
    """Adds a far number, held by a buffer or a plain attribute, where a mask is true."""

    def __init__(self, least, *, buffer, persistent=True):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        if buffer:
            self.register_buffer("least", torch.tensor(least), persistent=persistent)
        else:
            self.least = torch.tensor(least)

    def forward(self, x):
        return torch.softmax(self.linear(x) + (x > 1).float() * self.least, -1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("least", [-1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("held", [{"buffer": True}, {"buffer": True, "persistent": False}, {"buffer": False}])
def test_a_buffer_beyond_16_bits_masks_as_in_float32(held, least, dtype):
    torch.manual_seed(0)
    module = MaskedByBuffer(least, **held)
    images = torch.tensor([[0.5, 2.0, -1.0, 0.25], [2.0, 0.0, 0.0, 3.0]])
    encoder = from_torch_module(module, example_input=images, verify=False)
    variables = encoder.init(None, (4,))
    half = variables._replace(params=cast(variables.params, dtype))
    ours, _ = encoder.apply(half, jnp.asarray(images.numpy(), dtype), train=False, hidden_layer=-1)
    np.testing.assert_allclose(np.asarray(ours, np.float32), module(images).detach().numpy(), atol=1e-2)


CALLS = {
    "aten.constant_pad_nd.default": (((1, 1), -1e9), lambda x: F.pad(x, (1, 1), value=-1e9)),
    "aten.threshold.default": ((0.5, -1e9), lambda x: F.threshold(x, 0.5, -1e9)),
    "aten.hardtanh.default": ((-1e9, 1e9), lambda x: F.hardtanh(x, -1e9, 1e9)),
    "aten.nan_to_num.default": ((1e9, 1e9, -1e9), lambda x: torch.nan_to_num(x, 1e9, 1e9, -1e9)),
}


@pytest.mark.parametrize("name", CALLS)
def test_numbers_given_to_operators_stay_finite(name):
    """torch's float32 result, clipped to float16's range."""
    numbers = [0.25, 1.0, *([np.nan, np.inf, -np.inf] if "nan" in name else [])]
    args, theirs = CALLS[name]
    context = Context(jnp.float16, None, None, "")
    operator = find(name)
    assert operator is not None
    ours = to_torch_order(operator(context, from_torch_order(jnp.asarray(numbers, jnp.float16)), *args))
    wanted = theirs(torch.tensor(numbers)).numpy().clip(-65504, 65504)
    assert ours.dtype == jnp.float16
    np.testing.assert_array_equal(np.asarray(ours, np.float32), wanted)
