"""`nets.with_remat`: the numbers of the encoder itself, and less kept for its gradient, whoever wrote the network."""

import itertools
import random
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from driver_runs import double_and_quickly_compiled
from flax import nnx
from one_network import WAYS, written

from byol_jax import Encoder, Variables, from_linen, from_nnx, make_learner, nets
from byol_jax.nets.remat import KEEP_BARRIERS, cuts_below
from byol_jax.tree import cast
from interop import from_torch_module

SIZE = 12


@cache
def traced() -> Encoder:
    torch.manual_seed(0)
    block = [torch.nn.Conv2d(6, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(inplace=True)]
    layers = [torch.nn.Conv2d(3, 6, 1), *block * 4, torch.nn.Dropout(0.2)]
    layers += [torch.nn.Flatten(), torch.nn.Linear(6 * SIZE * SIZE, 5)]
    return from_torch_module(torch.nn.Sequential(*layers), image_size=SIZE, verify=False)


ENCODERS = {
    "resnet": lambda: nets.resnet((1, 1), width=8, num_classes=5, stem="cifar"),
    "vit": lambda: nets.vit(3, width=8, num_heads=2, patch_size=4, num_classes=5, dropout=0.2),
    "traced": traced,
    **{way: partial(written, way, (SIZE, SIZE, 3), 0.2) for way in WAYS},
}


def value_and_gradient(encoder: Encoder, layer: str | int = -1):
    """Of a loss in training mode: (loss, (features, statistics)) and the gradient, in float64."""
    variables = cast(encoder.init(jax.random.key(0), (SIZE, SIZE, 3)), jnp.float64)
    images = jax.random.uniform(jax.random.key(1), (4, SIZE, SIZE, 3), jnp.float64)

    @jax.jit
    def run(params, images):
        def loss(params, images):
            given = Variables(params, variables.stats)
            y, stats = encoder.apply(given, images, train=True, hidden_layer=layer, key=jax.random.key(2))
            return jnp.sum(jnp.sin(y.astype(jnp.float64))), (y, stats)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, images)

    with jax.numpy_dtype_promotion("standard"):
        return run(variables.params, images)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.long if n in ("vit", "traced") else pytest.mark.slow) for n in ENCODERS],
)
def test_outputs_statistics_and_gradients_are_the_encoders_own(name: str) -> None:
    with double_and_quickly_compiled():
        encoder = ENCODERS[name]()
        wanted, ours = value_and_gradient(encoder), value_and_gradient(nets.with_remat(encoder))
    assert jax.tree.structure(ours) == jax.tree.structure(wanted)
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-12 * max(1, float(np.abs(right).max())))


DEEP = 12


class DeepLinen(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(DEEP):
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x)))
        return x.mean((1, 2))


class DeepNnx(nnx.Module):
    def __init__(self):
        rngs, sizes = nnx.Rngs(0), itertools.pairwise((3, *[8] * DEEP))
        self.convs = nnx.List([nnx.Conv(size, after, (3, 3), rngs=rngs) for size, after in sizes])
        self.norms = nnx.List([nnx.BatchNorm(8, rngs=rngs) for _ in range(DEEP)])

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.relu(norm(conv(x)))
        return x.mean((1, 2))


def deep_function() -> Encoder:
    """Jitted as a whole, and a residual stream: what is alive at a cut isn't the last output alone."""

    def init(key, shape):
        kernels = 0.3 * jax.random.normal(key, (DEEP, 3, 3, 8, 8))
        return Variables({"in": jnp.ones((shape[-1], 8)), "kernels": list(kernels)}, {})

    @partial(jax.jit, static_argnames=("train", "hidden_layer", "axis_name"))
    def apply(variables, images, *, train, hidden_layer, key=None, axis_name=None):
        x = images @ variables.params["in"]
        for kernel in variables.params["kernels"]:
            y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = x + jnp.tanh(y)
        return x.mean((1, 2)), variables.stats

    return Encoder(init, apply, lambda variables=None: ())


@cache
def deep_traced() -> Encoder:
    torch.manual_seed(0)
    sizes = itertools.pairwise((3, *[8] * DEEP))
    blocks = [[torch.nn.Conv2d(size, after, 3, padding=1), torch.nn.BatchNorm2d(8)] for size, after in sizes]
    layers = [layer for block in blocks for layer in (*block, torch.nn.ReLU(inplace=True))]
    module = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    return from_torch_module(module, image_size=16, verify=False)


DEEP_ENCODERS = {
    "resnet": lambda: nets.resnet((DEEP // 2,), width=8, num_classes=None, stem="cifar"),
    "vit": lambda: nets.vit(DEEP, width=32, num_heads=2, patch_size=2, num_classes=None),
    "linen": lambda: from_linen(DeepLinen()),
    "nnx": lambda: from_nnx(DeepNnx()),
    "function": deep_function,
    "traced": deep_traced,
}


def kept_bytes(encoder: Encoder) -> int:
    """Bytes that the backward pass takes over from the forward pass, parameters and images left out."""
    variables = encoder.init(jax.random.key(0), (16, 16, 3))
    images = jnp.ones((32, 16, 16, 3))

    def backward(params):
        def features(params):
            given = Variables(params, variables.stats)
            return encoder.apply(given, images, train=True, hidden_layer=-1, key=jax.random.key(0))[0]

        return jax.vjp(features, params)[1]

    with jax.numpy_dtype_promotion("standard"):
        kept = jax.tree.leaves(jax.eval_shape(backward, variables.params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in kept) - sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables.params)
    )


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "function")) for n in DEEP_ENCODERS])
def test_less_is_kept_for_the_gradient(name: str) -> None:
    encoder = DEEP_ENCODERS[name]()
    before, after = kept_bytes(encoder), kept_bytes(nets.with_remat(encoder))
    assert after < 0.45 * before, f"{before / 1e6:.2f} MB before, {after / 1e6:.2f} MB after"


@pytest.mark.long
def test_the_compiled_step_takes_less_memory() -> None:
    """What one checkpoint around the whole encoder doesn't bring: XLA:CPU's own figures."""

    def whole(encoder: Encoder) -> Encoder:
        def apply(variables, images, *, key=None, **options):
            return jax.checkpoint(lambda *given: encoder.apply(*given, key=key, **options))(variables, images)

        return encoder._replace(apply=apply)

    def temporary_bytes(encoder: Encoder) -> int:
        sizes = {"image_size": 16, "hidden_layer": -1, "projection_size": 8, "projection_hidden_size": 16}
        learner = make_learner(encoder, augment_fn=lambda key, image: image, **sizes)
        state, images = jax.eval_shape(learner.init, jax.random.key(0)), jnp.ones((64, 16, 16, 3))
        memory = jax.jit(learner.step).lower(state, images).compile(compiler_options=KEEP_BARRIERS).memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    plain = DEEP_ENCODERS["resnet"]()
    usual = temporary_bytes(plain)
    assert temporary_bytes(whole(plain)) > 0.95 * usual
    assert temporary_bytes(nets.with_remat(plain)) < 0.6 * usual


def test_cuts_are_the_cheapest_within_the_bound() -> None:
    """Beside all sets of cuts of short random programs."""
    draw = random.Random(0)
    for _ in range(60):
        count = draw.randint(1, 8)
        sizes, alive = ([draw.randint(0, 9) for _ in range(count)] for _ in range(2))
        made = [0, *itertools.accumulate(sizes)]
        bound = draw.randint(max(sizes), max(sum(sizes), 1))

        def fits(cuts, made=made, count=count, bound=bound):
            return all(made[b] - made[a] <= bound for a, b in itertools.pairwise((0, *cuts, count)))

        every = [cuts for n in range(count) for cuts in itertools.combinations(range(1, count), n) if fits(cuts)]
        found = cuts_below(bound, made, alive)
        assert fits(found)
        assert sum(alive[cut] for cut in found) == min(sum(alive[cut] for cut in cuts) for cuts in every)


def test_evaluation_and_what_is_known_of_the_network_stay() -> None:
    encoder = nets.resnet((1,), width=8, num_classes=3, stem="cifar", padding="same")
    ours = nets.with_remat(encoder)
    assert (ours.init, ours.hidden_layers) == (encoder.init, encoder.hidden_layers)
    assert ours.facts == encoder.facts._replace(remat=True)
    variables = encoder.init(jax.random.key(0), (8, 8, 3))
    images = jnp.ones((2, 8, 8, 3))
    for layer in ("layer1.0.bn1", -1):
        left, right = (one.apply(variables, images, train=False, hidden_layer=layer) for one in (ours, encoder))
        jax.tree.map(np.testing.assert_array_equal, left, right)


def test_a_network_that_computes_nothing() -> None:
    def apply(variables, images, *, train, hidden_layer, key=None, axis_name=None):
        return images, variables.stats

    encoder = nets.with_remat(Encoder(lambda key, shape: Variables({}, {}), apply, lambda variables=None: ()))
    y, stats = encoder.apply(Variables({}, {}), jnp.ones((2, 3)), train=True, hidden_layer=-1)
    assert y.tolist() == [[1.0] * 3] * 2
    assert stats == {}
