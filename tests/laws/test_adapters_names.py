"""`from_linen` and `from_nnx`: the layers' names and their order, repeated calls, what is state, one-line errors."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from byol_jax import ConfigurationError, HiddenLayerNotFoundError, Variables, from_linen, from_nnx


class Twice(nn.Module):
    def setup(self):
        self.last = nn.Dense(2)  # defined first, called last
        self.shared = nn.Dense(3)
        self.unused = nn.Dense(3)
        self.blocks = [nn.remat(nn.Dense)(3), nn.Dense(3)]

    def __call__(self, x):
        self.sow("losses", "activity", x.sum())
        return self.last(self.blocks[1](self.blocks[0](self.shared(self.shared(x)))))


class TwiceNnx(nnx.Module):
    def __init__(self, rngs):
        self.last = nnx.Linear(3, 2, rngs=rngs)
        self.shared = nnx.Linear(3, 3, rngs=rngs)
        self.unused = nnx.Linear(3, 3, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(3, 3, rngs=rngs), type("Inherited", (nnx.Linear,), {})(3, 3, rngs=rngs)])
        self.alias = self.shared
        self.steps = jnp.zeros((), jnp.int32)
        self.kind = nnx.Param(jnp.arange(2))

    def __call__(self, x):
        self.sow(nnx.Intermediate, "activity", x.sum())
        self.steps = self.steps + 1
        x = nnx.remat(lambda block, x: block(x))(self.blocks[0], self.shared(self.shared(x)))
        return self.last(self.blocks[1](x))


TWICE = {
    "linen": (partial(from_linen, Twice(), train_argument=None), ("last", "shared", "unused", "blocks_0", "blocks_1")),
    "nnx": (
        lambda: from_nnx(TwiceNnx(nnx.Rngs(0))),
        ("last", "shared", "unused", "blocks", "blocks.0", "blocks.1"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TWICE)
def test_definition_order_last_call_and_what_is_never_called(kind):
    build, names = TWICE[kind]
    encoder = build()
    variables = encoder.init(jax.random.key(0), (3,))
    assert encoder.hidden_layers(variables) == names
    shared = variables.params["alias" if kind == "nnx" else "shared"]
    x = jax.random.normal(jax.random.key(1), (4, 3))

    def taken(name, given=variables):
        return jax.jit(partial(encoder.apply, train=True, hidden_layer=name))(given, x)

    once = x @ shared["kernel"] + shared["bias"]
    np.testing.assert_allclose(taken("shared")[0], once @ shared["kernel"] + shared["bias"], rtol=1e-5, atol=1e-6)
    for name in names[-2:]:
        assert taken(name)[0].shape == (4, 3)
    with pytest.raises(HiddenLayerNotFoundError, match="'unused' gives no output: use one of") as caught:
        taken("unused")
    assert "\n" not in str(caught.value)
    with pytest.raises(HiddenLayerNotFoundError, match="'shard' not found: use one of shared, "):
        taken("shard")
    assert taken(0)[0].shape == (4, 2)  # an index means the child


def test_what_sow_collects_is_not_state():
    encoder = TWICE["linen"][0]()
    assert encoder.init(jax.random.key(0), (3,)).stats == {}


def test_nnx_state_is_every_other_array_and_is_carried_on():
    encoder = TWICE["nnx"][0]()
    variables = encoder.init(jax.random.key(0), (3,))
    assert set(variables.stats) == {"steps", "kind"}  # a Param of whole numbers has no gradient
    step = jax.jit(partial(encoder.apply, train=True, hidden_layer=-1))
    stats = step(Variables(variables.params, step(variables, jnp.ones((2, 3)))[1]), jnp.ones((2, 3)))[1]
    assert (int(stats["steps"]), stats["kind"].tolist()) == (2, [0, 1])
    assert jax.grad(lambda p: step(Variables(p, stats), jnp.ones((2, 3)))[0].sum())(variables.params)


class Opposite(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        return nn.Dropout(0.5, deterministic=deterministic)(x)


def test_linen_flags_that_mean_the_opposite_of_training():
    encoder = from_linen(Opposite(), train_argument="deterministic")
    x, key = jnp.ones((8, 8)), jax.random.key(0)
    variables = encoder.init(key, (8,))
    assert set(np.unique(encoder.apply(variables, x, train=True, hidden_layer=-1, key=key)[0])) == {0.0, 2.0}
    np.testing.assert_array_equal(encoder.apply(variables, x, train=False, hidden_layer=-1)[0], x)


def test_a_network_without_sub_modules_names_none():
    encoder = from_linen(nn.Dense(2), train_argument=None)
    assert encoder.hidden_layers(encoder.init(jax.random.key(0), (3,))) == ()
    assert from_nnx(nnx.Linear(3, 2, rngs=nnx.Rngs(0))).hidden_layers() == ()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: from_linen(Opposite(), train_argument="training"),
            "no argument 'training' .it has deterministic.",
        ),
        (lambda: from_linen(Opposite(), train_argument=None), "needs deterministic"),
        (lambda: from_linen(nn.Dense(3)), "train_argument=None"),
        (lambda: from_linen(nn.Sequential([nn.Dense(3)])).init(jax.random.key(0), (3,)), "passes 'train' on"),
        (lambda: from_linen(TwiceNnx(nnx.Rngs(0))), "from_nnx"),
        (lambda: from_nnx(Twice()), "from_linen"),
    ],
)
def test_wrong_modules_and_arguments_are_one_clear_line(build, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_an_undeclared_random_stream_is_named():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return x + jax.random.normal(self.make_rng("noise"), x.shape) if train else x

    apply = partial(from_linen(Noisy()).apply, Variables({}, {}), jnp.ones((2, 3)), train=True, hidden_layer=-1)
    with pytest.raises(ConfigurationError, match=r'rngs=.*"noise"'):
        apply(key=jax.random.key(0))
    told = from_linen(Noisy(), rngs=("noise",)).apply
    assert told(Variables({}, {}), jnp.ones((2, 3)), train=True, hidden_layer=-1, key=jax.random.key(0))[0].std() > 0
