"""A traced network in bfloat16: activations have 16 bits; what torch keeps in float32, whatever they have, has 32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn
from traced_modules import MODULES

from byol_jax import make_learner
from byol_jax.tree import cast
from interop import check, from_torch_module


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Counting(nn.Module):
    """Counts its steps, and averages a one and its outputs over many of them."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 8)
        for name, value in {"steps": torch.zeros(()), "average": torch.zeros(8), "centre": torch.zeros(8)}.items():
            self.register_buffer(name, value)

    def forward(self, x):
        y = self.linear(x.flatten(1))
        if self.training:
            self.steps += 1
            with torch.no_grad():
                self.average.mul_(0.999).add_(torch.ones_like(self.average), alpha=0.001)
                self.centre.mul_(0.999).add_(y.mean(0), alpha=0.001)
        return y - self.centre


@pytest.mark.long
def test_buffers_count_and_average_over_many_steps():
    encoder = from_torch_module(Counting(), image_size=4, verify=False)
    images = np.random.default_rng(0).random((2, 4, 4, 3), np.float32)
    stats = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        learner = make_learner(
            encoder, image_size=4, hidden_layer=-1, projection_size=8, optimizer=optax.sgd(0.0), dtype=dtype
        )
        step = jax.jit(learner.step)
        state = learner.init(jax.random.key(0))
        for _ in range(600):
            state, _ = step(state, images)
        stats[dtype] = jax.device_get(state.online.stats["encoder"])
        assert stats[dtype]["steps"] == 600
    np.testing.assert_allclose(stats[jnp.bfloat16]["average"], 1 - 0.999**600, rtol=1e-4)
    np.testing.assert_allclose(stats[jnp.bfloat16]["centre"], stats[jnp.float32]["centre"], atol=2e-3)


class Positioned(nn.Module):
    """Sines of positions up to a thousand."""

    def __init__(self):
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 8)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        rates = torch.exp(torch.arange(0, 16, dtype=torch.float32) * -0.3)
        angles = torch.arange(tokens.shape[1], dtype=torch.float32)[:, None] * rates
        return self.head((tokens * torch.sin(angles).to(tokens.dtype)).mean(1))


class Fractions(nn.Module):
    """Positions as fractions of whole numbers, which torch has in its default dtype."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 8)

    def forward(self, x):
        places = torch.arange(x.shape[-1] * x.shape[-2]) * 0.37
        return self.head((x * torch.cos(places).reshape(x.shape[-2:])).mean(1).flatten(1))


@pytest.mark.slow
@pytest.mark.parametrize(("make", "size"), [(Positioned, 32), (Fractions, 8)])
def test_positions_are_exact(make, size):
    """What is left is the rounding of the weights and activations: torch's own bfloat16 has 3e-3 of the first."""
    module = make().eval()
    encoder = from_torch_module(module, image_size=size, verify=False)
    variables = encoder.init(None, (size, size, 3))
    images = np.random.default_rng(0).random((4, size, size, 3), np.float32)
    with torch.no_grad():
        wanted = module(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    half = variables._replace(params=cast(variables.params, jnp.bfloat16))
    ours, _ = encoder.apply(half, jnp.asarray(images, jnp.bfloat16), train=False, hidden_layer=-1)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(ours, np.float32), wanted, atol=8e-3 * np.abs(wanted).max())


class Masked(nn.Module):
    """Scores that see none behind them, by the usual masks: a number beyond 16 bits, multiplied, added, filled in."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.register_buffer("seen", torch.ones(8, 8).tril())

    def forward(self, x):
        y, least = self.conv(x), torch.finfo(torch.float32).min
        multiplied = torch.softmax(y + (1 - self.seen) * least, -1)
        added = torch.softmax(y + torch.where(self.seen > 0, 0.0, least), -1)
        filled = torch.softmax(y.masked_fill(self.seen == 0, least), -1)
        full = torch.softmax(torch.where(self.seen > 0, y, torch.full_like(y, least)), -1)
        return torch.cat([multiplied, added, filled, full, y / 1e5 * 6e4, (y < 1e5).to(y.dtype)], 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_numbers_beyond_16_bits_are_as_in_float32(dtype):
    """torch too computes with such a number in float32."""
    encoder = from_torch_module(Masked(), image_size=8, verify=False)
    variables = encoder.init(None, (8, 8, 3))
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))

    def run(params, dtype):
        y, _ = encoder.apply(
            variables._replace(params=cast(params, dtype)), images.astype(dtype), train=True, hidden_layer=-1
        )
        return jnp.square(y.astype(jnp.float32)).mean(), y

    both = [jax.jit(jax.grad(run, has_aux=True), static_argnums=1)(variables.params, d) for d in (jnp.float32, dtype)]
    (wanted, right), (gradients, ours) = both
    assert ours.dtype == dtype
    np.testing.assert_allclose(np.asarray(ours, np.float32), right, atol=2e-2)
    for mine, theirs in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(np.asarray(mine, np.float32), theirs, atol=2e-2 * np.abs(theirs).max())


class Meetings(nn.Module):
    """Float32 that meets activations in every kind of product."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.lstm, self.cell, self.bilinear = nn.LSTM(4, 5), nn.GRUCell(5, 4), nn.Bilinear(4, 4, 6)
        self.weights = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        wide = torch.linspace(0.5, 1.5, 4)  # torch's default dtype, whatever the network's
        y = self.up(self.conv(x) * wide[:, None, None]) * wide[:, None, None]
        tokens = y.flatten(2).transpose(1, 2) * wide
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        scores = torch.einsum("bid,bjd->bij", tokens, self.conv(x).flatten(2).transpose(1, 2))
        z = self.lstm((tokens + scores.mean((1, 2), keepdim=True)).transpose(0, 1))[0][-1]
        z = self.cell(z, torch.zeros(len(x), 4))
        return torch.cat([self.bilinear(z, z * wide), torch.addmm(wide, z, self.weights), wide @ self.weights + z], 1)


def in_dtypes(encoder, size):
    """Features and gradients in training, for float32 and for bfloat16."""
    variables = encoder.init(None, (size, size, 3))
    images = jax.random.normal(jax.random.key(1), (4, size, size, 3))

    def run(params, dtype):
        given = variables._replace(params=cast(params, dtype))
        y, _ = encoder.apply(given, images.astype(dtype), train=True, hidden_layer=-1, key=jax.random.key(0))
        assert y.dtype == dtype
        y = y.astype(jnp.float32)
        return jnp.square(y).mean(), y

    both = [jax.jit(jax.grad(run, has_aux=True), static_argnums=1)(variables.params, dtype) for dtype in FLOATS]
    return [(np.asarray(y), jax.tree.leaves(gradient)) for gradient, y in both]


FLOATS = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


@pytest.mark.long
@pytest.mark.parametrize("name", ["Meetings", *MODULES])
def test_it_runs_and_is_near_float32(name):
    """Whatever meets; the rounding of 8 bits grows in some layers, hence the wide bounds."""
    module = Meetings() if name == "Meetings" else MODULES[name]()
    size = 8 if name == "Meetings" else 4
    (wanted, gradients), (ours, others) = in_dtypes(from_torch_module(module, image_size=size, verify=False), size)
    np.testing.assert_allclose(ours, wanted, atol=0.1 * np.abs(wanted).max())
    for ours, wanted in zip(others, gradients, strict=True):
        assert np.isfinite(ours).all()
        assert ours.dtype == wanted.dtype


class Steered(nn.Module):
    """A spatial transformer, and the bins of its numbers."""

    def __init__(self):
        super().__init__()
        self.where = nn.Linear(3, 6)
        self.register_buffer("bounds", torch.tensor([-1, 0, 1]))

    def forward(self, x):
        maps = 0.1 * self.where(x.mean((2, 3))).reshape(-1, 2, 3) + torch.eye(2, 3)
        y = nn.functional.grid_sample(x, nn.functional.affine_grid(maps, list(x.shape), False), align_corners=False)
        return torch.cat([y.flatten(1), torch.bucketize(x.flatten(1), self.bounds).to(x.dtype)], 1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_places_and_bins_meet_activations_of_16_bits(dtype):
    module = Steered().eval()
    encoder = from_torch_module(module, image_size=4, verify=False)
    variables = encoder.init(None, (4, 4, 3))
    images = jax.random.normal(jax.random.key(1), (2, 4, 4, 3)).astype(dtype)
    half = variables._replace(params=cast(variables.params, dtype))
    ours, _ = encoder.apply(half, images, train=False, hidden_layer=-1)
    with torch.no_grad():
        wanted = module(torch.from_numpy(np.array(images, np.float32)).permute(0, 3, 1, 2)).numpy()
    assert ours.dtype == dtype
    np.testing.assert_allclose(np.asarray(ours, np.float32), wanted, atol=5e-2)
    np.testing.assert_array_equal(np.asarray(ours, np.float32)[:, 48:], wanted[:, 48:])


@pytest.mark.slow
def test_check_takes_a_constant_of_16_bits():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.scale = nn.Linear(4, 4), torch.ones(4, dtype=torch.bfloat16)

        def forward(self, x):
            return self.linear(x) * self.scale.float()

    report = check(Scaled(), example_input=torch.ones(2, 4))
    assert report.supported, report
