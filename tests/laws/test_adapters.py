"""`from_linen` and `from_nnx`: one network written three ways is one network; names, randomness, state and errors."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byol_jax import Encoder, Variables, from_linen, from_nnx

SHAPE = (6, 5, 3)


class LinenNet(nn.Module):
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(7)(x.mean((1, 2)))


class NnxNet(nnx.Module):
    def __init__(self, rngs, rate=0.0):
        self.Conv_0 = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.BatchNorm_0 = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.Dropout_0 = nnx.Dropout(rate, rngs=rngs)
        self.Dense_0 = nnx.Linear(4, 7, rngs=rngs)

    def __call__(self, x):
        x = self.Dropout_0(nnx.relu(self.BatchNorm_0(self.Conv_0(x))))
        return self.Dense_0(x.mean((1, 2)))


def pure_net() -> Encoder:
    """The same network in plain JAX, its numbers laid out as Linen does."""

    def init(key, image_shape):
        raise NotImplementedError

    def apply(variables, images, *, train, hidden_layer, key=None, axis_name=None):
        params, stats = variables.params, variables.stats["batch_stats"]["BatchNorm_0"]
        layout = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(images, params["Conv_0"]["kernel"], (1, 1), "SAME", dimension_numbers=layout)
        x = convolved = x + params["Conv_0"]["bias"]
        mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
        norm = params["BatchNorm_0"]
        x = jax.nn.relu((x - mean) / jnp.sqrt(var + 1e-5) * norm["scale"] + norm["bias"])
        x = x.mean((1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
        new = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
        return x if hidden_layer == -1 else convolved, {"batch_stats": {"BatchNorm_0": new if train else stats}}

    return Encoder(init, apply, lambda variables=None: ())


def images(count=4, seed=1):
    return jax.random.normal(jax.random.key(seed), (count, *SHAPE))


def numbers():
    """Variables for all three, with statistics and scales that aren't trivial."""
    variables = from_linen(LinenNet()).init(jax.random.key(3), SHAPE)
    return jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), variables)


def for_nnx(variables):
    return Variables(variables.params, variables.stats["batch_stats"])


def same(actual, expected, **tolerance):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(partial(np.testing.assert_allclose, **(tolerance or {"rtol": 2e-5, "atol": 2e-6})), actual, expected)


SLOWLY_TRAINED = [pytest.param(True, layer, marks=pytest.mark.slow) for layer in (-1, "Conv_0")]


@pytest.mark.slow
@pytest.mark.parametrize(("train", "hidden_layer"), [*SLOWLY_TRAINED, (False, -1)])
def test_one_network_written_three_ways_is_one_network(train, hidden_layer):
    variables = numbers()

    def outcome(encoder, given):
        def loss(params):
            features, stats = encoder.apply(
                Variables(params, given.stats), images(), train=train, hidden_layer=hidden_layer, key=jax.random.key(0)
            )
            return (features**2).sum(), (features, stats)

        (_, aux), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(given.params)
        return *aux, gradient

    features, stats, gradient = outcome(pure_net(), variables)
    assert hidden_layer != -1 or float(jnp.abs(gradient["Conv_0"]["kernel"]).max()) > 1e-3
    same(outcome(from_linen(LinenNet()), variables), (features, stats, gradient))
    nnx_outcome = outcome(from_nnx(NnxNet(nnx.Rngs(0))), for_nnx(variables))
    same(nnx_outcome, (features, stats["batch_stats"], gradient))
    if not train:
        same(stats, variables.stats, rtol=0)


def adapters(rate=0.0):
    return [from_linen(LinenNet(rate)), from_nnx(NnxNet(nnx.Rngs(0), rate))]


@pytest.mark.parametrize("which", [0, 1], ids=["linen", "nnx"])
def test_names_in_order_and_every_one_can_be_taken(which):
    encoder = adapters()[which]
    variables = jax.eval_shape(lambda key: encoder.init(key, SHAPE), jax.random.key(0))  # as make_learner does
    names = encoder.hidden_layers(variables)
    assert names == ("Conv_0", "BatchNorm_0", "Dropout_0", "Dense_0")
    assert encoder.hidden_layers() == names
    widths = {}
    for name in (*names, -1):
        apply = partial(encoder.apply, train=True, hidden_layer=name, key=jax.random.key(0))
        widths[name] = jax.eval_shape(apply, variables, images())[0].shape
    assert widths["Dropout_0"] == (4, 6, 5, 4)
    assert widths["Dense_0"] == widths[-1] == (4, 7)


@pytest.mark.parametrize("which", [0, 1], ids=["linen", "nnx"])
def test_dropout_follows_the_key_and_only_in_training(which):
    encoder = adapters(0.5)[which]
    variables = encoder.init(jax.random.key(0), SHAPE)

    def outputs(seed, train=True):
        key = None if seed is None else jax.random.key(seed)
        return encoder.apply(variables, images(), train=train, hidden_layer="Dropout_0", key=key)[0]

    np.testing.assert_array_equal(outputs(1), outputs(1))
    assert float(jnp.abs(outputs(1) - outputs(2)).max()) > 0.1
    np.testing.assert_array_equal(outputs(None, train=False), outputs(5, train=False))
    with pytest.raises(ValueError, match="no key") as caught:
        outputs(None)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no key"):
        jax.jit(lambda: outputs(None))()


@pytest.mark.parametrize("which", [0, 1], ids=["linen", "nnx"])
def test_without_randomness_no_key_is_needed_and_nothing_random_is_stored(which):
    encoder = adapters(0.0)[which]
    variables = encoder.init(jax.random.key(0), SHAPE)
    _, stats = encoder.apply(variables, images(), train=True, hidden_layer=-1)
    assert jax.tree.structure(stats) == jax.tree.structure(variables.stats)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(stats)) == [(4,), (4,)]
    assert all(type(node) is dict for node in (variables.params, variables.params["Conv_0"], variables.stats))


@pytest.mark.parametrize("which", [0, 1], ids=["linen", "nnx"])
def test_pmap_is_the_loop_over_devices(which):
    encoder = adapters()[which]
    variables = encoder.init(jax.random.key(0), SHAPE)
    batches = images(8).reshape(4, 2, *SHAPE)  # [devices, N, H, W, C]
    apply = jax.jit(partial(encoder.apply, train=True, hidden_layer=-1))
    features, stats = jax.pmap(apply, in_axes=(None, 0))(variables, batches)
    for device, batch in enumerate(batches):
        same(jax.tree.map(lambda leaf, i=device: leaf[i], (features, stats)), apply(variables, batch))


def test_linen_batch_norm_synchronises_over_the_axis_that_the_module_names():
    class Synchronised(nn.Module):
        @nn.compact
        def __call__(self, x, train: bool):
            return nn.BatchNorm(use_running_average=not train, axis_name="devices")(x)

    encoder, whole = from_linen(Synchronised()), images(4)
    variables = encoder.init(jax.random.key(0), SHAPE)
    apply = partial(encoder.apply, train=True, hidden_layer=-1)
    parts, _ = jax.pmap(apply, in_axes=(None, 0), axis_name="devices")(variables, whole.reshape(2, 2, *SHAPE))
    expected, _ = jax.vmap(apply, in_axes=(None, 0), axis_name="devices")(variables, whole[None])
    same(parts.reshape(whole.shape), expected[0])


def test_nnx_gives_fresh_copies_of_the_numbers_it_was_given_and_leaves_the_module_alone():
    module = NnxNet(nnx.Rngs(0), 0.5)
    before = module.Conv_0.kernel[...]
    encoder = from_nnx(module)
    first, second = (encoder.init(jax.random.key(seed), SHAPE) for seed in (0, 1))
    same(first, second, rtol=0)
    np.testing.assert_array_equal(first.params["Conv_0"]["kernel"], before)
    assert first.params["Conv_0"]["kernel"].unsafe_buffer_pointer() != before.unsafe_buffer_pointer()
    module.Conv_0.kernel[...] = before + 1
    np.testing.assert_array_equal(encoder.init(jax.random.key(0), SHAPE).params["Conv_0"]["kernel"], before)
    encoder.apply(first, images(), train=True, hidden_layer=-1, key=jax.random.key(0))
    assert type(module.Conv_0) is nnx.Conv
    np.testing.assert_array_equal(module.BatchNorm_0.mean[...], jnp.zeros(4))
