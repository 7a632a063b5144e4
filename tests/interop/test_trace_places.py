"""Sampling at places that are none, or nowhere: torch's shapes and numbers."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from interop.trace.ops.operator import Context
from interop.trace.ops.table import find
from interop.trace.values import from_torch_order, to_torch_order


def sample(x, grid, *options):
    """Ours."""
    operator = find("aten.grid_sampler.default")
    assert operator is not None
    context = Context(jnp.float32, None, None, "")
    given = [from_torch_order(jnp.asarray(part.numpy())) for part in (x, grid)]
    return np.asarray(to_torch_order(operator(context, *given, *options)))


@pytest.mark.parametrize(("images", "height"), [(0, 4), (2, 0)])
def test_no_places_give_no_numbers(images, height):
    x, grid = torch.ones(images, 3, 5, 6), torch.zeros(images, height, 2, 2)
    assert sample(x, grid, 0, 0, False).shape == torch.nn.functional.grid_sample(x, grid, align_corners=False).shape


@pytest.mark.parametrize("padding", range(3))
@pytest.mark.parametrize("mode", range(3))
@pytest.mark.parametrize("align", [False, True])
def test_a_place_that_is_not_finite_gives_what_torch_gives(mode, padding, align):
    x, strange = torch.arange(1.0, 31).reshape(1, 1, 5, 6), (np.nan, np.inf, -np.inf)
    places = [[0.1, 0.2], *([s, 0.1] for s in strange), *([0.1, s] for s in strange), [np.nan, np.inf], [0.9, -2.0]]
    grid = torch.tensor([[places]])
    wanted = torch.ops.aten.grid_sampler.default(x, grid, mode, padding, align).numpy()
    np.testing.assert_allclose(sample(x, grid, mode, padding, align), wanted, rtol=1e-5, atol=1e-5)
