"""Other people's networks in a learner: what its state holds, what steps change, names, and mistakes, a line each."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from one_network import QUICKLY, WAYS, LinenNet, batches, learner_of, written

from byol_jax import ConfigurationError, Encoder, HiddenLayerNotFoundError, Variables, from_linen, from_nnx

SHAPE = (16, 16, 3)


def flat(x):
    return x.reshape(x.shape[0], -1)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_state_holds_no_random_state_but_its_own_key(way):
    learner = learner_of(written(way, SHAPE, 0.5), SHAPE, hidden_layer="drop")
    state = jax.eval_shape(lambda: learner.init(jax.random.key(0)))
    numbers = jax.tree.leaves((state.online, state.target, state.opt_state))
    assert {str(leaf.dtype) for leaf in numbers} == {"float32", "int32"}
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    encoder = jax.tree.leaves((state.online.params["encoder"], state.online.stats["encoder"]))
    assert sorted(leaf.shape for leaf in encoder) == sorted([(3, 3, 3, 4), (3, 3, 4, 4), (4, 7), (7,), *[(4,)] * 6]), (
        "weights, scale, bias, mean and variance, and nothing else"
    )


class LinenKept(nn.Module):
    """Three collections of its own: a count that starts as Python's 0, a memory, a mask with an infinity in it."""

    @nn.compact
    def __call__(self, x, train: bool):
        count = self.variable("counts", "steps", lambda: 0)
        memory = self.variable("memory", "mean", lambda: jnp.zeros((), jnp.bfloat16))
        mask = self.variable("constants", "mask", lambda: jnp.array([0.0, -jnp.inf]))
        noise = jax.random.normal(self.make_rng("noise"), (3,)) if train else jnp.zeros(3)
        if train:
            count.value, memory.value = count.value + 1, x.mean().astype(jnp.bfloat16)
        return nn.Dense(3, name="head")(flat(x)) + noise + jax.nn.softmax(mask.value)[1]


class Kept(nnx.Variable):
    pass


class NnxKept(nnx.Module):
    """The same; train() and eval() set `deterministic`."""

    def __init__(self, rngs):
        self.head = nnx.Linear(768, 3, rngs=rngs)
        self.steps, self.mean = Kept(jnp.zeros((), jnp.int32)), Kept(jnp.zeros((), jnp.bfloat16))
        self.mask, self.rngs, self.deterministic = Kept(jnp.array([0.0, -jnp.inf])), rngs, False

    def __call__(self, x):
        noise = jnp.zeros(3)
        if not self.deterministic:
            self.steps[...] += 1
            self.mean[...] = x.mean().astype(jnp.bfloat16)
            noise = jax.random.normal(self.rngs.noise(), (3,))
        return self.head(flat(x)) + noise + jax.nn.softmax(self.mask[...])[1]


def kept_functions():
    def init(key, shape):
        start = {"steps": 0, "mean": jnp.zeros((), jnp.bfloat16), "mask": np.array([0.0, -np.inf])}
        return Variables({"head": {"kernel": jax.random.normal(key, (768, 3)) / 28}}, start)

    def apply(variables, images, *, train, hidden_layer, key=None, axis_name=None):
        stats, noise = variables.stats, jax.random.normal(key, (3,)) if train else 0.0
        new = stats | {"steps": stats["steps"] + 1, "mean": images.mean().astype(jnp.bfloat16)}
        features = flat(images) @ variables.params["head"]["kernel"] + noise + jax.nn.softmax(stats["mask"])[1]
        return features, new if train else stats

    return Encoder(init, apply, lambda variables=None: ())


KEPT = {
    "linen": lambda: from_linen(LinenKept(), rngs=("noise",)),
    "nnx": lambda: from_nnx(NnxKept(nnx.Rngs(0, noise=1))),
    "functions": kept_functions,
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_everything_a_network_keeps_moves_in_training_alone_and_is_compiled_for_once(way, caplog):
    learner = learner_of(KEPT[way](), SHAPE, hidden_layer=-1)
    state, step = learner.init(jax.random.key(0)), jax.jit(learner.step, compiler_options=QUICKLY)
    with jax.log_compiles(True):
        for batch in batches(SHAPE, 3):
            state, metrics = step(state, jnp.asarray(batch))
    assert sum("Compiling jit(step)" in record.getMessage() for record in caplog.records) == 1
    assert metrics["nonfinite"] == 0, "the mask's own infinity is no fault"
    kept = {path[-1].key: leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state.online.stats["encoder"])}
    assert kept["steps"] == 3
    assert kept["mean"].dtype == jnp.float32, "stored wide, whatever the network gives"
    np.testing.assert_allclose(kept["mean"], batch.mean(), rtol=1e-2)
    np.testing.assert_array_equal(kept["mask"], [0, -np.inf])
    np.testing.assert_array_equal(learner.embed(state, batch), learner.embed(state, batch))


class Positioned(nn.Module):
    """Insists on its images' size, as networks with learnt positions do."""

    positions: tuple

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (4, 4), strides=4, name="patch")(x)
        x = nn.LayerNorm(name="norm")(x + self.param("positions", nn.initializers.zeros, self.positions))
        return nn.Dense(3, name="head")(x.mean((1, 2)))


@pytest.mark.parametrize(("shape", "positions"), [((16, 16, 3), (4, 4, 4)), ((16, 24, 5), (4, 6, 4))])
def test_layers_of_a_network_that_insists_on_its_size_are_found(shape, positions):
    encoder = from_linen(Positioned(positions))
    assert learner_of(encoder, shape, hidden_layer="norm")
    assert encoder.hidden_layers() == ("patch", "norm", "head")


class Nested(nn.Module):
    """setup() around compact modules in a list."""

    def setup(self):
        self.blocks = [LinenNet(name=f"block{index}") for index in range(2)]

    def __call__(self, x, train: bool = False):
        return self.blocks[0](x, train) + self.blocks[1](x, train)


class NestedNnx(nnx.Module):
    def __init__(self, rngs):
        inner = [nnx.Sequential(nnx.Linear(768, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)) for _ in range(2)]
        self.blocks = nnx.List(inner)

    def __call__(self, x):
        return self.blocks[0](flat(x)) + self.blocks[1](flat(x))


def test_dotted_names_reach_into_modules_of_modules():
    encoder = from_linen(Nested())
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), SHAPE))
    names = encoder.hidden_layers(variables)
    first = tuple(name for name in names if name.startswith(names[0]))
    assert first == (names[0], *(f"{names[0]}.{name}" for name in ("stem", "norm", "shared", "drop", "head")))
    layers = {f"{names[0]}.shared": (2, 16, 16, 4), names[0]: (2, 7)}
    own = from_nnx(NestedNnx(nnx.Rngs(0)))
    assert own.hidden_layers()[:4] == ("blocks", "blocks.0", "blocks.0.layers", "blocks.0.layers.0")
    for given, layer, wanted in [(encoder, *item) for item in layers.items()] + [(own, "blocks.1.layers.0", (2, 4))]:
        start = jax.eval_shape(lambda given=given: given.init(jax.random.key(0), SHAPE))
        apply = partial(given.apply, train=True, hidden_layer=layer)
        assert jax.eval_shape(apply, start, jnp.zeros((2, *SHAPE)))[0].shape == wanted


class Flat(nn.Module):
    """No sub-modules, so no names."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        return flat(x) @ self.param("w", nn.initializers.lecun_normal(), (768, 3))


class FlatNnx(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.ones((768, 3)))

    def __call__(self, x):
        return flat(x) @ self.w[...]


@pytest.mark.parametrize("build", [lambda: from_linen(Flat()), lambda: from_nnx(FlatNnx()), kept_functions])
def test_a_network_that_names_nothing_gives_its_output_alone(build):
    assert learner_of(build(), SHAPE, hidden_layer=-1)
    for layer in (-2, 0, "w", "head"):
        with pytest.raises(HiddenLayerNotFoundError, match="this encoder names no layers; use hidden_layer=-1"):
            learner_of(build(), SHAPE, hidden_layer=layer)


class Rows(nn.Module):
    """Reads an image row by row, over and over."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        rows = x.reshape(*x.shape[:2], -1)  # [N, H, W·C]
        return nn.RNN(nn.OptimizedLSTMCell(4))(rows)[:, -1]


class Layers(nn.Module):
    """The same layer twice, each time with weights of its own, as a loop over them."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.tanh(nn.Dense(768)(x)), None

        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return layers()(flat(x), None)[0]


class NnxRows(nnx.Module):
    def __init__(self, rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(48, 4, rngs=rngs))

    def __call__(self, x):
        return self.rnn(x.reshape(*x.shape[:2], -1))[:, -1]


class NnxLayers(nnx.Module):
    def __init__(self, rngs):
        make = nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: nnx.Linear(768, 768, rngs=rngs)))
        self.layers = make(rngs)

    def __call__(self, x):
        return nnx.scan(lambda x, layer: nnx.tanh(layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(
            flat(x), self.layers
        )


@pytest.mark.parametrize(
    "build",
    [
        lambda: from_linen(Rows()),
        lambda: from_linen(Layers()),
        lambda: from_nnx(NnxRows(nnx.Rngs(0))),
        lambda: from_nnx(NnxLayers(nnx.Rngs(0))),
    ],
    ids=["linen RNN", "linen scan", "nnx RNN", "nnx scan"],
)
def test_every_weight_of_a_network_with_a_loop_in_it_is_trained(build):
    learner = learner_of(build(), SHAPE, hidden_layer=-1)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    weights = [leaf.shape for leaf in jax.tree.leaves(state.online.params)]
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state.opt_state[0].mu)) == sorted(weights)


class Pair(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x, x


class GivesPair(nn.Module):
    last: bool

    @nn.compact
    def __call__(self, x, train: bool = False):
        pair = Pair(name="pair")(flat(x))
        return pair if self.last else nn.Dense(3, name="head")(sum(pair))


def plain(apply=None, init=None):
    """An encoder of functions with one of them replaced."""

    def own(variables, images, *, train, hidden_layer, key=None, axis_name=None):
        return flat(images) @ variables.params["w"], variables.stats

    def start(key, shape):
        return Variables({"w": jnp.ones((768, 3))}, {"n": jnp.zeros(3)})

    return Encoder(init or start, apply or own, lambda variables=None: ())


def product(variables, images):
    return flat(images) @ variables.params["w"]


@pytest.mark.parametrize(
    ("build", "layer", "words"),
    [
        (lambda: nn.Dense(3), -1, r"a Dense has no function hidden_layers: expected a byol_jax.Encoder; .*from_linen"),
        (lambda: FlatNnx(), -1, "a FlatNnx has no function init, apply, hidden_layers"),
        (lambda: plain()._replace(hidden_layers=()), -1, "has no function hidden_layers"),
        (lambda: from_linen(nn.Dense), -1, r"got the class Dense, expected a module: Dense\("),
        (lambda: from_nnx(nnx.Linear), -1, r"got the class Linear, expected a module: Linear\("),
        (lambda: from_linen(GivesPair(False)), "pair", "'pair' gives a tuple: expected floating"),
        (lambda: from_linen(GivesPair(True)), -1, "hidden layer -1 gives a tuple"),
        (lambda: from_nnx(NestedNnx(nnx.Rngs(0))), -2, "use one of blocks, blocks.0, "),
        (lambda: from_nnx(NestedNnx(nnx.Rngs(0))), 0, "'blocks' gives no output: use one of blocks."),
        (
            lambda: plain(init=lambda key, shape: {"w": jnp.ones((768, 3))}),
            -1,
            "init gives a dict: expected .*Variables",
        ),
        (lambda: plain(lambda v, x, **_: product(v, x)), -1, r"expected a pair, \(features, new_stats\)"),
        (lambda: plain(lambda v, x, **_: (product(v, x), {})), -1, r"statistics of other names or shapes .*\(n\)"),
        (lambda: plain(lambda v, x, **_: (product(v, x)[:1], v.stats)), -1, r"shape \(1, 3\) for 2 images"),
        (lambda: plain(lambda v, x, **_: (product(v, x).astype(int), v.stats)), -1, "dtype int32: expected floating"),
        (lambda: plain(lambda v, x, *, train: (product(v, x), v.stats)), -1, "unexpected keyword argument"),
    ],
)
def test_each_mistake_is_one_line(build, layer, words):
    with pytest.raises((ConfigurationError, HiddenLayerNotFoundError), match=words) as caught:
        learner_of(build(), SHAPE, hidden_layer=layer)
    assert "\n" not in str(caught.value)
