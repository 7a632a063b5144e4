"""Effective rank, alignment and uniformity: closed forms, laws, and torch's numbers in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from byol_jax import ConfigurationError, evaluate
from byol_jax.evaluate import alignment, effective_rank, uniformity


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_embeddings_that_are_not_finite_have_no_rank_and_one_has_no_pairs():
    assert np.isnan(effective_rank(jnp.full((4, 3), jnp.nan)))
    assert np.isnan(effective_rank(jnp.eye(4).at[1, 2].set(jnp.nan)))
    with pytest.raises(ConfigurationError, match="1 embeddings have no pairs"):
        uniformity(jnp.ones((1, 3)))


@pytest.mark.parametrize("shape", [(64, 16), (16, 64), (33, 33), (256, 128)])
def test_they_are_torchs(shape):
    """By torch, in float64, from the formulas of the papers."""
    x, y = normal(*shape), normal(*shape, seed=1)
    left, right = (torch.nn.functional.normalize(torch.from_numpy(z).double(), dim=1) for z in (x, y))
    singular = torch.linalg.svdvals(torch.from_numpy(x).double())
    p = singular / singular.sum()
    assert jax.jit(effective_rank)(x) == pytest.approx(torch.exp(-(p * p.log()).sum()).item(), rel=1e-5)
    assert jax.jit(alignment)(x, y) == pytest.approx((left - right).norm(dim=1).square().mean().item(), rel=1e-5)
    distances = torch.pdist(left).square()
    assert jax.jit(uniformity)(x) == pytest.approx(torch.exp(-2 * distances).mean().log().item(), rel=1e-5)
    assert effective_rank(x) == pytest.approx(evaluate.collapse(x).effective_rank, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 7, 16])
def test_equal_singular_values_are_counted(rank):
    """Also after a turn of either side, and whatever the scale."""
    left, right = (np.linalg.qr(normal(32, 32, seed=seed))[0] for seed in (0, 1))
    for scale in (1e-6, 1.0, 1e6):
        assert effective_rank(scale * left[:, :rank] @ right[:rank]) == pytest.approx(rank, rel=1e-3)


def test_the_rank_lies_between_one_and_the_smaller_side():
    for seed in range(20):
        x = normal(12, 8, seed=seed) * np.exp(2 * normal(8, seed=seed + 100))
        assert 1 <= effective_rank(x) <= 8
    assert effective_rank(np.zeros((4, 3), np.float32)) == 1
    assert effective_rank(np.ones((4, 3), np.float32)) == pytest.approx(1, abs=1e-4)


def test_collapse_is_rank_one_and_uniformity_zero():
    same = np.tile(normal(1, 32), (16, 1))
    assert alignment(same, same) == 0
    assert uniformity(same) == pytest.approx(0, abs=1e-5)
    spread = normal(512, 256)
    assert uniformity(spread) == pytest.approx(-4, abs=0.1)
    assert uniformity(spread + 30) > uniformity(spread)


def test_lengths_do_not_matter_and_half_precision_is_summed_in_float32():
    x, y = normal(32, 8), normal(32, 8, seed=1)
    lengths = np.exp(normal(32, 1, seed=2))
    assert float(alignment(x * lengths, y)) == pytest.approx(float(alignment(x, y)), rel=1e-5)
    assert float(uniformity(x * lengths)) == pytest.approx(float(uniformity(x)), rel=1e-5)
    for measure in (effective_rank, uniformity):
        found = measure(jnp.asarray(x, jnp.bfloat16))
        assert found.dtype == jnp.float32
        assert float(found) == pytest.approx(float(measure(x)), rel=2e-2)
