"""`cond_in_rows` is `lax.cond`, whatever is inside; and what it is for: narrow arrays are calculated with as rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from byol_jax import lars, parallel
from byol_jax.ops.rows import cond, cond_in_rows

SHAPES = {"conv": (4, 3, 3, 3), "depthwise": (5, 1, 7, 7), "signal": (4, 2, 5), "wide": (3, 3, 2, 16), "linear": (6, 4),
          "bias": (4,), "scalar": (), "nothing": (0, 2, 3), "one": (1, 1, 1, 1)}  # fmt: skip

OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "adamw": optax.adamw(1e-2, weight_decay=0.1),
    "sgd": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "lars": lars(0.1, weight_decay=1e-3),
    "lamb": optax.lamb(1e-2),
    "lion": optax.lion(1e-3),
    "adafactor": optax.adafactor(1e-2, min_dim_size_to_factor=3),
    "schedule and clipping": optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-2, 10), mu_dtype=jnp.bfloat16)
    ),
    "noise": optax.chain(optax.add_noise(0.1, 0.55, jax.random.key(0)), optax.sgd(0.1)),
}


def arrays(seed):
    random = np.random.default_rng(seed)
    return {name: jnp.asarray(random.standard_normal(shape), jnp.float32) for name, shape in SHAPES.items()}


@pytest.mark.parametrize(
    "name", ["adam", *(pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS if name != "adam")]
)
def test_an_optimisers_step_is_the_same(name):
    optimizer, params, gradient = OPTIMIZERS[name], arrays(0), arrays(1)

    def step(cond, params, opt_state, good):
        def update():
            updates, new = optimizer.update(gradient, opt_state, params)
            return optax.apply_updates(params, updates), new

        return cond(good, update, lambda: (params, opt_state))

    plain = jax.jit(lambda *given: step(lambda p, t, f: lax.cond(p, t, f), *given))
    ours = jax.jit(lambda *given: step(cond_in_rows, *given))
    with jax.numpy_dtype_promotion("standard"):
        state = (params, optimizer.init(params))
        for good in (True, False, True):
            wanted, got = plain(*state, good), ours(*state, good)
            assert jax.tree.structure(wanted) == jax.tree.structure(got)
            for left, right in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
                assert (left.dtype, left.shape) == (right.dtype, right.shape)
                if not jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
                    np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-7)
            state = got


def test_anything_else_sees_the_true_shape():
    kernel = arrays(0)["conv"]

    def work():
        mixed = jnp.einsum("oihw,pihw->op", kernel, kernel) + kernel.shape[3]
        ordered = jnp.sort(kernel, axis=-1) + kernel.mean((2, 3), keepdims=True)
        return mixed, ordered[:, :, ::-1], jnp.linalg.norm(kernel, axis=1), jax.nn.softmax(kernel, axis=2)

    def zeros():
        return jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), jax.eval_shape(work))

    for good in (True, False):
        for left, right in zip(lax.cond(good, work, zeros), cond_in_rows(jnp.asarray(good), work, zeros), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-6)


def test_narrow_arrays_are_rows_for_elementwise_work():
    kernel = arrays(0)["conv"]
    text = str(jax.make_jaxpr(lambda good: cond_in_rows(good, lambda: jnp.sqrt(kernel), lambda: kernel))(True))
    assert "f32[4,27] = sqrt" in text
    assert "f32[4,3,3,3] = sqrt" not in text


@pytest.mark.slow
def test_it_works_under_vmap_and_shard_map_and_is_differentiable():
    kernels = jnp.stack([arrays(seed)["conv"] for seed in range(8)])
    good = jnp.arange(8) % 2 == 0

    def one(cond, good, kernel):
        return cond(good, lambda: jnp.tanh(kernel) * 2, lambda: kernel)

    def plain(p, t, f):
        return lax.cond(p, t, f)

    wanted = jax.vmap(lambda *given: one(plain, *given))(good, kernels)
    np.testing.assert_array_equal(jax.vmap(lambda *given: one(cond_in_rows, *given))(good, kernels), wanted)
    mesh = parallel.make_mesh()
    spec = PartitionSpec(parallel.AXIS)
    for check in (True, False):
        spread = jax.shard_map(
            lambda good, kernels: one(cond_in_rows, good[0], kernels),
            mesh=mesh, in_specs=(spec, spec), out_specs=spec, check_vma=check,
        )  # fmt: skip
        np.testing.assert_allclose(jax.jit(spread)(good, kernels), wanted, rtol=1e-6)
    slopes = [
        jax.grad(lambda kernel, cond=cond: (one(cond, jnp.asarray(True), kernel) ** 2).sum())(kernels[0])
        for cond in (plain, cond_in_rows)
    ]
    np.testing.assert_allclose(slopes[1], slopes[0], rtol=1e-6)


def test_what_gives_nothing_back_still_happens():
    seen, kernel = [], arrays(0)["conv"]

    def work():
        jax.debug.callback(seen.append, kernel)
        return kernel * 2

    doubled = jax.jit(lambda good: cond_in_rows(good, work, lambda: kernel))(True)
    jax.effects_barrier()
    np.testing.assert_array_equal(doubled, kernel * 2)
    assert [value.shape for value in seen] == [kernel.shape]


def test_branches_that_differ_are_refused():
    with pytest.raises(TypeError):
        cond_in_rows(jnp.asarray(True), lambda: (jnp.ones(2),), lambda: [jnp.ones(2)])


@pytest.mark.parametrize(("platform", "rows"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_rows_are_for_the_cpu_alone(platform, rows):
    kernel = arrays(0)["conv"]
    traced = jax.jit(lambda good: cond(good, lambda: jnp.sqrt(kernel), lambda: kernel)).trace(True)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    roots = [line for line in text.splitlines() if "stablehlo.sqrt" in line]
    assert len(roots) == 1
    assert ("tensor<4x27xf32>" in roots[0]) == rows
