"""Batch norm: the hand-written backward pass is autodiff's, and a mapped axis makes many devices one batch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from byol_jax.ops.norm import batch_norm_eval, batch_norm_train

SHAPES = [(16, 3), (4, 3, 5, 3)]


def numbers(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def plain(x, scale, bias, *, epsilon=1e-5, relu=False):
    axes = tuple(range(x.ndim - 1))
    mean = x.mean(axes)
    y = (x - mean) / jnp.sqrt(jnp.square(x - mean).mean(axes) + epsilon)
    y = y if scale is None else y * scale + bias
    return jax.nn.relu(y) if relu else y


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_value_and_gradient_are_autodiffs(shape, relu, affine):
    with jax.enable_x64(True):
        x, cotangent = 3 * numbers(*shape) + 1, numbers(*shape, seed=1)
        extra = (numbers(3, seed=2), numbers(3, seed=3)) if affine else (None, None)

        def mine(x, *extra):
            return batch_norm_train(x, *extra, np.zeros(3), np.ones(3), relu=relu)[0]

        y, pull = jax.vjp(jax.jit(mine), x, *extra)
        expected, expected_pull = jax.vjp(jax.jit(partial(plain, relu=relu)), x, *extra)
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)
        for got, wanted in zip(
            jax.tree.leaves(pull(cotangent)), jax.tree.leaves(expected_pull(cotangent)), strict=True
        ):
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-12)


def test_running_statistics_are_pytorchs_and_carry_no_gradient():
    with jax.enable_x64(True):
        x, mean, var = numbers(5, 3), numbers(3, seed=1), np.abs(numbers(3, seed=2))

        @jax.jit
        def run(x):
            return batch_norm_train(x, None, None, mean, var, momentum=0.3)[1:]

        new_mean, new_var = run(x)
        np.testing.assert_allclose(new_mean, 0.7 * mean + 0.3 * x.mean(0), atol=1e-15)
        np.testing.assert_allclose(new_var, 0.7 * var + 0.3 * x.var(0, ddof=1), atol=1e-15)
        assert not np.any(jax.grad(lambda x: sum(part.sum() for part in run(x)))(x))


def test_a_large_mean_does_not_cancel_the_variance():
    x = 4096 + numbers(1024, 1, dtype=np.float32)
    y = batch_norm_train(x, None, None, jnp.zeros(1), jnp.ones(1))[0]
    exact = x.astype(np.float64)
    np.testing.assert_allclose(y, (exact - exact.mean()) / exact.std(), atol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_keeps_its_dtype_and_float32_statistics(dtype):
    x = jnp.asarray(10 * numbers(64, 3), dtype)
    scale = jnp.ones(3, dtype)

    def run(x, scale):
        y, *new = batch_norm_train(x, scale, scale, jnp.zeros(3), jnp.ones(3), relu=True)
        return y.sum().astype(jnp.float32), (y, *new)

    gradients, (y, mean, var) = jax.jit(jax.grad(run, (0, 1), has_aux=True))(x, scale)
    assert (y.dtype, mean.dtype, var.dtype) == (dtype, jnp.float32, jnp.float32)
    assert {gradient.dtype for gradient in gradients} == {jnp.dtype(dtype)}
    np.testing.assert_allclose(mean, 0.1 * np.asarray(x, np.float32).mean(0), rtol=1e-5)


def test_evaluation_is_the_affine_map_of_the_running_statistics():
    with jax.enable_x64(True):
        x, scale, bias, mean, var = numbers(4, 2, 2, 3), *(np.abs(numbers(3, seed=seed)) for seed in range(4))
        expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
        np.testing.assert_allclose(batch_norm_eval(x, scale, bias, mean, var), expected, atol=1e-13)
        np.testing.assert_allclose(
            batch_norm_eval(x, scale, bias, mean, var, relu=True), np.maximum(expected, 0), atol=1e-13
        )


def test_one_value_a_channel_is_refused_in_training():
    arguments = (None, None, jnp.zeros(3), jnp.ones(3))
    with pytest.raises(ValueError, match="batch of 2 or more"):
        batch_norm_train(jnp.ones((1, 1, 1, 3)), *arguments)
    assert batch_norm_train(jnp.ones((1, 2, 1, 3)), *arguments)[0].shape == (1, 2, 1, 3)
    mapped = jax.vmap(lambda x: batch_norm_train(x, *arguments, axis_name="batch")[0], axis_name="batch")
    assert mapped(jnp.ones((4, 1, 3))).shape == (4, 1, 3)


def mean_loss_and_gradient(params, x, weights, mean, var, *, axis_name=None, varying=False):
    """The mean over images of a non-linear function, its gradients, and the new statistics."""

    def loss(params, x):
        y, *new = batch_norm_train(x, *params, mean, var, axis_name=axis_name, relu=True)
        return (jnp.square(y) * weights).sum() / x.shape[0], new

    own = jax.lax.pcast(params, axis_name, to="varying") if varying else params
    (value, new), (dparams, dx) = jax.value_and_grad(loss, (0, 1), has_aux=True)(own, x)
    if axis_name is not None:
        value, dparams = jax.lax.pmean((value, dparams), axis_name)
        dx = dx / jax.lax.axis_size(axis_name)
    return (value, new, dparams), dx


@pytest.mark.parametrize("driver", ["vmap", "pmap", "shard_map", "shard_map unchecked"])
def test_a_mapped_axis_is_one_batch(driver):
    x, weights = numbers(16, 3, 2, 3, dtype=np.float32), numbers(16, 3, 2, 3, seed=1, dtype=np.float32)
    params = (1 + jnp.arange(3.0), jnp.arange(3.0) - 1)
    stats = (jnp.zeros(3), jnp.ones(3))
    expected, expected_dx = jax.jit(mean_loss_and_gradient)(params, x, weights, *stats)
    if driver.startswith("shard_map"):
        mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        split, whole = PartitionSpec("batch"), PartitionSpec()
        run = jax.shard_map(
            partial(mean_loss_and_gradient, axis_name="batch", varying=True),
            mesh=mesh,
            in_specs=(whole, split, split, whole, whole),
            out_specs=(whole, split),
            check_vma=driver == "shard_map",
        )
        got, dx = jax.jit(run)(params, x, weights, *stats)
    else:
        run = partial(mean_loss_and_gradient, axis_name="batch", varying=driver == "pmap")
        mapped = {"vmap": jax.vmap, "pmap": jax.pmap}[driver](run, axis_name="batch", in_axes=(None, 0, 0, None, None))
        got, dx = jax.jit(mapped)(params, x.reshape(8, 2, 3, 2, 3), weights.reshape(8, 2, 3, 2, 3), *stats)
        got, dx = jax.tree.map(lambda leaf: leaf[5], got), dx.reshape(x.shape)  # replicated: any device's copy
    for mine, wanted in zip(jax.tree.leaves((got, dx)), jax.tree.leaves((expected, expected_dx)), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("x_varies", [False, True])
def test_replicated_and_varying_inputs_mix_under_shard_map(x_varies):
    """Without a synchronised axis x or the parameters may vary alone; the gradient of a replicated input sums."""
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = PartitionSpec("batch"), PartitionSpec()
    x, scale = numbers(8, 3, dtype=np.float32), np.tile(numbers(3, seed=1, dtype=np.float32), 4)
    scale = scale[:3] if x_varies else scale

    def square_sum(x, scale):
        return jnp.square(batch_norm_train(x, scale, None, jnp.zeros(3), jnp.ones(3))[0]).sum()

    specs = (split, whole) if x_varies else (whole, split)
    gradient = jax.shard_map(jax.grad(square_sum, (0, 1)), mesh=mesh, in_specs=specs, out_specs=specs)
    dx, dscale = jax.jit(gradient)(x, scale)
    if x_varies:
        parts = [jax.grad(square_sum, 1)(x[2 * i : 2 * i + 2], scale) for i in range(4)]
        np.testing.assert_allclose(dscale, sum(parts), rtol=1e-5)
    else:
        one = jax.grad(square_sum, (0, 1))(x, scale[:3])
        np.testing.assert_allclose(dx, 4 * one[0], atol=1e-5)
        np.testing.assert_allclose(dscale, np.tile(one[1], 4), rtol=1e-5)
