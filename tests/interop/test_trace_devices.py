"""Which statistics of a traced network are the whole batch's where devices have a part of it each, and which aren't."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from byol_jax import ConfigurationError, make_learner, parallel
from interop import from_torch_module


class OfOneRow(nn.Module):
    """An instance norm as a batch norm of [1, N · C, H, W]."""

    def forward(self, x):
        n, c, h, w = x.shape
        return F.batch_norm(x.reshape(1, n * c, h, w), None, None, training=True).reshape(n, c, h, w)


class OfColumns(nn.Module):
    """The same of [C, N, H, W], whose rows are each image's."""

    def forward(self, x):
        return F.batch_norm(x.flatten(1).t(), None, None, training=True).t().reshape(x.shape)


class StandardWeights(nn.Conv2d):
    """Its weights' statistics by a batch norm, too."""

    def forward(self, x):
        w = self.weight.reshape(1, self.out_channels, -1)
        return F.conv2d(x, F.batch_norm(w, None, None, training=True).reshape(self.weight.shape), self.bias)


class Mixing(nn.Module):
    """One graph for each size of the batch, with a batch norm and an instance norm."""

    def __init__(self):
        super().__init__()
        self.norm, self.own = nn.BatchNorm2d(4), OfOneRow()

    def forward(self, x):
        rows = [x[i] for i in range(len(x))]
        return self.own(self.norm(torch.stack(rows)))


NORMS = {
    "batch": lambda: nn.BatchNorm2d(4),
    "batch, nothing kept": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "instance, kept": lambda: nn.InstanceNorm2d(4, track_running_stats=True, affine=True),
    "one row": OfOneRow,
    "columns": OfColumns,
    "weights": lambda: nn.Sequential(StandardWeights(4, 4, 1), nn.BatchNorm2d(4)),
    "a graph for each size": Mixing,
}


def network(norm) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 6))


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_a_step_is_that_of_one_device(name):
    with jax.enable_x64(True):
        encoder = from_torch_module(network(NORMS[name]()).double(), image_size=8, verify=False)
        options = {"image_size": 8, "hidden_layer": -1, "projection_size": 8, "projection_hidden_size": 16}
        options |= {"augment_fn": lambda key, image: image[::-1], "dtype": jnp.float64, "optimizer": optax.sgd(0.1)}
        images = np.random.default_rng(0).random((4, 8, 8, 3))
        one, two = make_learner(encoder, **options), make_learner(encoder, **options, axis_name=parallel.AXIS)
        state = one.init(jax.random.key(0))
        wanted, metrics = jax.jit(one.step)(state, images)
        mesh = parallel.make_mesh(jax.devices()[:2])
        step = parallel.shard_map(two, mesh)
        got, others = step(parallel.replicate(state, mesh), parallel.shard(images, mesh))
        assert others["loss"] == pytest.approx(float(metrics["loss"]), abs=1e-12)
        for a, b in zip(jax.tree.leaves(wanted.online), jax.tree.leaves(got.online), strict=True):
            np.testing.assert_allclose(np.asarray(b), np.asarray(a), atol=1e-11)


@pytest.mark.slow
def test_what_counts_over_the_batch_is_refused_there():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 4, scale_grad_by_freq=True)

        def forward(self, x):
            return self.table((x.flatten(1)[:, :5] > 0).long()).flatten(1)

    encoder = from_torch_module(Table(), image_size=4, verify=False)
    variables = encoder.init(None, (4, 4, 3))
    with pytest.raises(ConfigurationError, match=r"scale_grad_by_freq .* parallel.jit"):
        encoder.apply(variables, jnp.zeros((2, 4, 4, 3)), train=True, hidden_layer=-1, axis_name="devices")
