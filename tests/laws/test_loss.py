"""Laws of the loss, the target's update and the metrics, against closed forms and torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from byol_jax import ema_update, normalized_mse
from byol_jax.metrics import feature_std, global_norm
from byol_jax.ops.axis import mean_over

VECTORS = st.integers(0, 2**32 - 1)


def pair(seed: int, shape: tuple[int, int] = (5, 7)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return tuple(random.normal(size=shape).astype(np.float32) for _ in range(2))


@given(VECTORS)
@settings(deadline=None, max_examples=20)
def test_loss_is_torchs_two_minus_two_cosines(seed: int) -> None:
    prediction, projection = pair(seed)
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(prediction), torch.from_numpy(projection))
    ours = normalized_mse(jnp.asarray(prediction), jnp.asarray(projection))
    np.testing.assert_allclose(ours, 2 - 2 * cosine.numpy(), atol=2e-6)
    assert ours.shape == (5,)


def test_loss_doesnt_see_lengths_and_spans_zero_to_four() -> None:
    x = jnp.array([[3.0, 4.0]])
    np.testing.assert_allclose(normalized_mse(x, 10 * x), 0, atol=1e-6)
    np.testing.assert_allclose(normalized_mse(x, -x), 4, atol=1e-6)
    np.testing.assert_allclose(normalized_mse(x, jnp.array([[-4.0, 3.0]])), 2, atol=1e-6)


def test_a_zero_vector_costs_two_and_has_torchs_gradient() -> None:
    zero, other = np.zeros((1, 3), np.float32), np.array([[1.0, 2.0, 2.0]], np.float32)
    tensor = torch.from_numpy(zero).requires_grad_()
    unit = torch.nn.functional.normalize(tensor, dim=-1) * torch.nn.functional.normalize(
        torch.from_numpy(other), dim=-1
    )
    (2 - 2 * unit.sum()).backward()
    value, gradient = jax.value_and_grad(lambda x: normalized_mse(x, jnp.asarray(other)).sum())(jnp.asarray(zero))
    assert value == 2
    np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-6)


def test_half_precision_neither_overflows_nor_loses_the_floor() -> None:
    large, zero = jnp.full((1, 4), 300, jnp.float16), jnp.zeros((1, 4), jnp.float16)
    values = [normalized_mse(large, large), normalized_mse(large, zero), normalized_mse(large, -large)]
    assert [(value.item(), value.dtype) for value in values] == [(each, jnp.float16) for each in (0, 2, 4)]


def test_gradient_is_the_finite_difference() -> None:
    with jax.enable_x64(True):
        x, z = (jnp.asarray(part, jnp.float64) for part in pair(3))
        gradient = jax.grad(lambda p: normalized_mse(p, z).sum())(x)
        direction = jnp.asarray(pair(4)[0], jnp.float64)
        ahead, behind = (normalized_mse(x + h * direction, z).sum() for h in (1e-6, -1e-6))
        np.testing.assert_allclose(jnp.sum(gradient * direction), (ahead - behind) / 2e-6, rtol=1e-7)


@given(st.floats(0, 1), VECTORS)
@settings(deadline=None, max_examples=20)
def test_ema_is_between_both_and_exact_at_the_ends(decay: float, seed: int) -> None:
    target, online = pair(seed)
    moved = ema_update({"w": jnp.asarray(target)}, {"w": jnp.asarray(online)}, decay)["w"]
    np.testing.assert_allclose(moved, decay * target + (1 - decay) * online, atol=1e-6)
    assert (ema_update(target, online, 1.0) == target).all()
    assert (ema_update(target, online, 0.0) == online).all()


def test_ema_keeps_a_python_decay_exact_in_float64() -> None:
    with jax.enable_x64(True):
        moved = ema_update(jnp.ones((), jnp.float64), jnp.zeros((), jnp.float64), 0.99)
        assert moved == 0.99
        assert moved.dtype == jnp.float64


def test_ema_of_counters_takes_the_online_one() -> None:
    assert ema_update(jnp.int32(3), jnp.int32(7), 0.9) == 7


def test_feature_std_of_even_and_of_collapsed_directions() -> None:
    even = jax.random.normal(jax.random.key(0), (4096, 64))
    np.testing.assert_allclose(feature_std(even), 1 / 8, rtol=0.01)
    np.testing.assert_allclose(feature_std(jnp.ones((16, 64))), 0, atol=1e-6)


@pytest.mark.slow
def test_feature_std_over_an_axis_is_the_whole_batchs() -> None:
    x = jax.random.normal(jax.random.key(1), (8, 4, 16))
    spread = jax.vmap(lambda part: feature_std(part, "axis"), axis_name="axis")(x)
    np.testing.assert_allclose(spread, feature_std(x.reshape(32, 16)), rtol=1e-5)
    assert spread.shape == (8,)


def test_mean_over_averages_floats_and_keeps_counters() -> None:
    tree = {"mean": jnp.arange(4.0), "count": jnp.full((4,), 3, jnp.int32)}
    mean = jax.vmap(lambda part: mean_over(part, "axis"), axis_name="axis")(tree)
    np.testing.assert_array_equal(mean["mean"], [1.5] * 4)
    np.testing.assert_array_equal(mean["count"], [3] * 4)
    assert mean["count"].dtype == jnp.int32


def test_global_norm_skips_none_and_shows_what_isnt_finite() -> None:
    tree = {"a": jnp.array([3.0]), "b": [jnp.array([[4.0]]), None]}
    assert global_norm(tree) == 5
    assert global_norm({}) == 0
    assert not np.isfinite(global_norm({"a": jnp.array([1.0, jnp.nan])}))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_norms_of_half_precision_are_float32(dtype) -> None:
    assert global_norm({"a": jnp.full((70000,), 1, dtype)}).dtype == jnp.float32
    np.testing.assert_allclose(global_norm({"a": jnp.full((70000,), 1, dtype)}), 70000**0.5, rtol=1e-6)
