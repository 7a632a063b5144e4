"""jit on the whole batch = pmap = shard_map (either check_vma) on eight devices, default augmentation on.

In float64, where the order of a sum shows in the twelfth digit: in float32 Adam's first steps, ± the rate whatever the
gradient's size, turn rounding noise into differences of 1e-3 after two steps (measured).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import make_learner, nets, parallel
from byol_jax.tree import leaf_names

DEVICES, BATCH, SIZE, STEPS = 8, 16, 16, 2


def learner(axis_name: str | None, **options):
    options = {"projection_size": 16, "projection_hidden_size": 32, "dtype": jnp.float64} | options
    return make_learner(nets.small_cnn(), image_size=SIZE, axis_name=axis_name, **options)


def batches() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (STEPS, BATCH, SIZE, SIZE, 3), np.uint8))


def whole(**options):
    one = learner(None, **options)
    state, step = one.init(jax.random.key(0)), jax.jit(one.step)
    rows = []
    for batch in batches():
        state, metrics = step(state, batch)
        rows.append(metrics)
    return state, rows


def spread(driver: str, devices: int = DEVICES, **options):
    mesh = parallel.make_mesh(jax.devices()[:devices])
    many = learner(None if driver == "jit" else parallel.AXIS, **options)
    state, rows = many.init(jax.random.key(0)), []
    if driver == "pmap":
        state, step = parallel.stack(state, devices), parallel.pmap(many, jax.devices()[:devices])
        for batch in batches():
            state, metrics = step(state, parallel.split(batch, devices))
            rows.append(parallel.unstack(metrics))
        return state, rows
    state = parallel.replicate(state, mesh)
    step = {
        "jit": lambda: parallel.jit(many, mesh),
        "shard_map": lambda: parallel.shard_map(many, mesh),
        "shard_map unchecked": lambda: parallel.shard_map(many, mesh, check_vma=False),
    }[driver]()
    for batch in batches():
        state, metrics = step(state, parallel.shard(batch, mesh))
        rows.append(metrics)
    return state, rows


def assert_same(ours, wanted, tolerance: float) -> None:
    for name, left, right in zip(leaf_names(wanted), jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        if not jnp.issubdtype(right.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(left, right, atol=tolerance, rtol=tolerance, err_msg=name)


@pytest.fixture(scope="module")
def reference():
    with jax.enable_x64(True):
        return whole()


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["jit", "pmap", "shard_map", "shard_map unchecked"])
def test_every_driver_gives_the_whole_batchs_numbers(driver: str, reference) -> None:
    with jax.enable_x64(True):
        state, rows = spread(driver)
        if driver == "pmap":
            for name, leaf in zip(leaf_names(state), jax.tree.leaves(state), strict=True):
                if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                    assert (leaf == leaf[:1]).all(), f"{name} differs between devices"
            state = parallel.unstack(state)
        assert_same(rows, reference[1], 1e-6)  # metrics are float32
        assert_same(state, reference[0], 1e-9)
