"""A value for several readers is itself, with every derivative; only on CPUs its gradient is copied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from byol_jax import nets, parallel
from byol_jax.ops.fan_out import fan_out

SHAPES = [(4, 6), (3, 5), (2, 7), (1,), (), (2, 3, 4, 5)]


def stream(x, shared):
    """Three residual layers, each of which reads its input twice."""
    for _ in range(3):
        x = shared(x)
        x = x + jnp.sin(x) * jnp.cos(x)
    return x


def numbers(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def gradients(shared):
    """Of reverse mode, forward mode, and both orders of both."""
    total = lambda x: jnp.sum(stream(x, shared) ** 2)  # noqa: E731
    slope = jax.grad(total)
    along = lambda f, x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1]  # noqa: E731
    return lambda x: (slope(x), along(total, x), along(slope, x), jax.grad(lambda x: along(total, x))(x))


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_derivatives_are_as_without(shape):
    with jax.enable_x64(True):
        x = numbers(*shape)
        assert fan_out(jnp.asarray(x)).tolist() == x.tolist()
        for ours, wanted in zip(*(jax.jit(gradients(one))(x) for one in (fan_out, lambda x: x)), strict=True):
            np.testing.assert_allclose(ours, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_batch_of_calls_is_a_call_each():
    with jax.enable_x64(True):
        x = numbers(3, 4)
        slope = jax.grad(lambda x: jnp.sum(stream(x, fan_out) ** 2))
        for axis in (0, 1):
            ours = jax.vmap(slope, axis)(x)
            np.testing.assert_allclose(ours, [slope(row) for row in np.moveaxis(x, axis, 0)], rtol=1e-12)


def loops(function, *arguments, platform="cpu"):
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")


@pytest.mark.parametrize(("platform", "count"), [("cpu", 3), ("cuda", 0), ("tpu", 0)])
def test_only_on_cpus_the_gradient_is_copied(platform, count):
    slope = jax.grad(lambda x: jnp.sum(stream(x, fan_out)))
    assert loops(slope, jnp.ones((4, 6)), platform=platform) == count


def test_native_transformers_copy_once_a_residual_connection():
    encoder = nets.vit(3, width=8, num_heads=2, patch_size=4, num_classes=None)
    variables = encoder.init(jax.random.key(0), (8, 8, 3))

    def total(params):
        features, _ = encoder.apply(
            variables._replace(params=params), jnp.ones((2, 8, 8, 3)), train=True, hidden_layer=-1
        )
        return features.sum()

    assert loops(jax.grad(total), variables.params) == 2 * 3
    assert loops(total, variables.params) == 0


@pytest.mark.slow
def test_traced_networks_copy_where_a_norm_reads_what_something_else_reads_too():
    torch = pytest.importorskip("torch")
    import interop

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)

        def forward(self, x):
            return x + self.linear(self.norm(x))

    class Moved(Block):
        def forward(self, x):
            return x + super().forward(x.transpose(1, 2)).transpose(1, 2)

    class After(Block):
        def forward(self, x):
            return self.norm(x + self.linear(x))

    def count(*blocks):
        network = torch.nn.Sequential(torch.nn.Flatten(1, 2), torch.nn.Linear(8, 8), *blocks)
        example = torch.rand(2, 4, 2, 8)
        encoder = interop.from_torch_module(network, example_input=example, verify=False)
        variables = encoder.init(jax.random.key(0), (2, 8, 4))

        def total(params):
            given = variables._replace(params=params)
            features, _ = encoder.apply(given, jnp.ones((2, 2, 8, 4)), train=True, hidden_layer=-1)
            return features.sum()

        return loops(jax.grad(total), variables.params)

    assert count(Block(), Block(), torch.nn.ReLU(), Block()) == 3
    assert count(Moved()) == 2
    assert count(After(), After()) == 0


@pytest.mark.parametrize("check_vma", [False, True])
def test_over_devices_it_is_the_same(check_vma):
    mesh = parallel.make_mesh(jax.devices()[:8])
    spread = PartitionSpec(parallel.AXIS)
    with jax.enable_x64(True):
        x = numbers(16, 6)
        slope = jax.grad(lambda x: jnp.sum(stream(x, fan_out) ** 2))
        mapped = jax.shard_map(slope, mesh=mesh, in_specs=spread, out_specs=spread, check_vma=check_vma)
        np.testing.assert_allclose(jax.jit(mapped)(x), jax.jit(slope)(x), rtol=1e-12)
        placed = jax.device_put(x, jax.sharding.NamedSharding(mesh, spread))
        program = jax.jit(slope).lower(placed).compile()
        np.testing.assert_allclose(program(placed), jax.jit(slope)(x), rtol=1e-12)
        assert not [word for word in ("all-to-all", "all-gather", "collective-permute") if word in program.as_text()]
