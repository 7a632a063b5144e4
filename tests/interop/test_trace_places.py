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
