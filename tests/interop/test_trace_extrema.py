"""Maxima and minima: torch's values and gradients, ties among them, however XLA compiles what stands before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import interop
from byol_jax.hidden import OUTPUT
from interop.trace.ops.extrema import first_maximum, maximum, minimum
from interop.trace.ops.operator import Context
from interop.trace.ops.table import find
from interop.trace.values import from_torch_order, to_torch_order

LEVELS = pytest.mark.parametrize("level", [0, 3])


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 2), (2, 0), ()])
@pytest.mark.parametrize(("ours", "theirs"), [(maximum, torch.amax), (minimum, torch.amin)])
def test_equal_ones_share_the_gradient_as_in_torch(ours, theirs, axes):
    x = np.random.default_rng(0).integers(-2, 3, (3, 4, 5)).astype(np.float32)
    given = torch.from_numpy(x).requires_grad_()
    wanted = theirs(given, axes, keepdim=True) if axes else given * 1
    weights = np.random.default_rng(1).normal(size=wanted.shape).astype(np.float32)
    (wanted * torch.from_numpy(weights)).sum().backward()
    np.testing.assert_array_equal(ours(jnp.asarray(x), axes), wanted.detach())
    gradient = jax.grad(lambda x: (ours(x, axes) * weights).sum())(jnp.asarray(x))
    np.testing.assert_allclose(gradient, given.grad, rtol=1e-6)
    pushed = jax.jvp(lambda x: ours(x, axes), (jnp.asarray(x),), (jnp.ones_like(x),))[1]
    np.testing.assert_allclose(pushed, np.ones(wanted.shape), rtol=1e-6)


def test_no_number_is_the_extremum_and_whole_numbers_stay_whole():
    x = jnp.array([1.0, jnp.nan, jnp.inf])
    assert jnp.isnan(maximum(x, (0,))).all()
    assert jax.grad(lambda x: maximum(x, (0,))[0])(x).tolist() == [0.0, 1.0, 0.0]
    assert maximum(jnp.array([jnp.inf, 1.0, jnp.inf]), (0,)).tolist() == [jnp.inf]
    whole = maximum(jnp.arange(3, dtype=jnp.int8), (0,))
    assert (whole.dtype, whole.tolist()) == (jnp.int8, [2])
    assert jax.grad(lambda x: first_maximum(x, 0)[0])(jnp.array([1.0, 2.0, 2.0])).tolist() == [0.0, 1.0, 0.0]


class Normed(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv1d(2, 4, 5, stride=2), nn.BatchNorm1d(4), last

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.conv(x))))


LAST = {
    "amax": lambda x: x.amax(-1),
    "amin of the negative": lambda x: (-x).amin((1, 2)),
    "max": lambda x: x.max() * x,
    "max over an axis": lambda x: x.max(-1).values,
    "norm": lambda x: torch.linalg.vector_norm(x, torch.inf, -1),
    "pool": lambda x: nn.functional.max_pool1d(x, 2),
    "adaptive pool": lambda x: nn.functional.adaptive_max_pool1d(x, 2),
}


@pytest.mark.slow
@LEVELS
@pytest.mark.parametrize("last", LAST)
def test_behind_a_batch_norm_the_gradient_arrives(last, level):
    """In one compiled function, where XLA may compute the batch norm more than once."""
    torch.manual_seed(0)
    module = Normed(LAST[last]).double()
    example = torch.randn(5, 2, 16, dtype=torch.float64)
    encoder = interop.from_torch_module(module, example_input=example, verify=False)
    output = module.train()(example)
    weights = torch.randn(output.shape, dtype=torch.float64)
    (output * weights).sum().backward()
    with jax.enable_x64(True):
        variables = encoder.init(jax.random.key(0), (2, 16))
        images = jnp.asarray(example.numpy())

        def total(params):
            features, _ = encoder.apply(
                variables._replace(params=params), images, train=True, hidden_layer=OUTPUT, key=jax.random.key(0)
            )
            return (features * weights.numpy()).sum()

        gradients = jax.jit(jax.grad(total), compiler_options={"xla_backend_optimization_level": level})(
            variables.params
        )
        for name, parameter in module.named_parameters():
            part, leaf = name.split(".")
            np.testing.assert_allclose(gradients[part][leaf], parameter.grad, atol=1e-10, err_msg=name)


def test_the_largest_difference_has_the_whole_gradient_at_ties():
    x, y = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    x.requires_grad_()
    wanted = torch.cdist(x, y, p=float("inf"))
    wanted.sum().backward()
    operator = find("aten.cdist.default")
    assert operator is not None

    def distances(array):
        context = Context(jnp.float32, None, None, "")
        found = operator(context, from_torch_order(array), from_torch_order(jnp.asarray(y.numpy())), float("inf"))
        return to_torch_order(found)

    rows = jnp.asarray(x.detach().numpy())
    assert x.grad is not None
    np.testing.assert_array_equal(distances(rows), wanted.detach().numpy())
    np.testing.assert_array_equal(jax.grad(lambda array: distances(array).sum())(rows), x.grad.numpy())
