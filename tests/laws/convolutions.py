"""What a convolution of ours is compared in: its value and every derivative, of both orders, forward and reverse."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from byol_jax import parallel

__all__ = ["assert_same_derivatives", "assert_same_gradients", "assert_same_over_devices", "numbers", "program"]


def numbers(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_same_gradients(ours, wanted, x, kernel):
    """Value and gradients, to rounding in float64."""

    def first_order(convolve, x, kernel):
        y, pull = jax.vjp(convolve, x, kernel)
        return y, pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    assert_equal(*(jax.jit(partial(first_order, one))(x, kernel) for one in (ours, wanted)))


def assert_same_derivatives(ours, wanted, x, kernel, *, outputs_axis=3):
    """Forward; forward over reverse; reverse over reverse; and reverse for many images, many kernels, or both."""

    def derivatives(convolve, x, kernel):
        def loss(x, kernel):
            return jnp.sin(convolve(x, kernel)).sum()

        def squares(x, kernel):
            return sum((part**2).sum() for part in slope(x, kernel))

        slope, along = jax.grad(loss, argnums=(0, 1)), (jnp.sin(x), jnp.cos(kernel))
        kernels = jnp.stack([kernel, 2 * kernel], outputs_axis)
        return (
            jax.jvp(convolve, (x, kernel), along),
            jax.jvp(slope, (x, kernel), along),
            jax.grad(squares, argnums=(0, 1))(x, kernel),
            jax.vmap(slope, (0, None))(jnp.stack([x, 2 * x]), kernel),
            jax.vmap(slope, (None, outputs_axis), (1, 0))(x, kernels),
            jax.vmap(slope, (2, outputs_axis))(jnp.stack([x, jnp.sin(x)], 2), kernels),
        )

    assert_equal(*(jax.jit(partial(derivatives, one))(x, kernel) for one in (ours, wanted)))


def assert_same_over_devices(ours, wanted, x, kernel, *, check_vma):
    """The images spread over eight devices, the kernel on all of them; under shard_map, and in one program, which is
    returned as it was compiled."""
    mesh = parallel.make_mesh(jax.devices()[:8])
    spread, kept = PartitionSpec(parallel.AXIS), PartitionSpec()

    def slope(convolve, x, kernel):
        return jax.grad(lambda x, kernel: jnp.sin(convolve(x, kernel)).sum(), argnums=(0, 1))(x, kernel)

    def summed(x, kernel):
        own = kernel if not check_vma else jax.lax.pcast(kernel, parallel.AXIS, to="varying")
        dx, dk = slope(ours, x, own)
        return dx, jax.lax.psum(dk, parallel.AXIS)

    alone = jax.jit(partial(slope, wanted))(x, kernel)
    mapped = jax.shard_map(summed, mesh=mesh, in_specs=(spread, kept), out_specs=(spread, kept), check_vma=check_vma)
    assert_equal(jax.jit(mapped)(x, kernel), alone)
    placed = jax.device_put(x, NamedSharding(mesh, spread))
    compiled = jax.jit(partial(slope, ours)).lower(placed, kernel).compile()
    assert_equal(compiled(placed, kernel), alone)
    return compiled.as_text()


def assert_equal(ours, wanted):
    assert jax.tree.structure(ours) == jax.tree.structure(wanted)
    for mine, its in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(mine, its, rtol=0, atol=1e-12 * max(1, np.abs(its).max()))


def program(convolve, platform, *arrays):
    """The result and both gradients, as lowered for a platform."""

    def run(x, kernel):
        y, pull = jax.vjp(convolve, x, kernel)
        return y, pull(y)

    return jax.jit(run).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
