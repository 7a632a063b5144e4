"""One network written three ways trains alike; so do five expressions of `small_cnn`. In float64, and in float32.

The largest differences from the functions measured in float64: 8e-15, linen's and nnx's; 1e-12 is asked for.
"""

import itertools
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from one_network import WAYS, largest_difference, start, train, written

from byol_jax import Variables, encoder_variables, from_linen, from_nnx, nets
from byol_jax.nets.pretrained import with_variables

SHAPE = (16, 16, 1)
DECAY = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.05, momentum=0.9))
"""Not Adam: it scales gradients that are only rounding noise (a bias before batch norm) up to 3e-9 in four steps."""


def three_ways(shape, **options):
    return {way: train(written(way, shape), shape, **options) for way in WAYS}


def assert_alike(results, tolerance):
    expected = results["functions"]
    for way in ("linen", "nnx"):
        assert largest_difference(results[way], expected) < tolerance, way


@pytest.mark.slow
def test_three_ways_train_alike_and_compile_once(caplog):
    with jax.enable_x64(True), jax.log_compiles(True), caplog.at_level(logging.WARNING):
        results = three_ways((16, 16, 3), hidden_layer="shared", dtype=jnp.float64, optimizer=DECAY)
        assert_alike(results, 1e-12)
        state, rows = results["linen"]
        before, after = start((16, 16, 3)).params, state.online.params["encoder"]
        moved = {name: all((leaf != before[name][kind]).any() for kind, leaf in after[name].items()) for name in after}
    assert moved == {"stem": True, "norm": True, "shared": True, "head": False}, "decay is for what the loss depends on"
    assert len({float(row["loss"]) for row in rows}) == 4
    compiled = [record.getMessage() for record in caplog.records if "Compiling jit(step)" in record.getMessage()]
    assert len(compiled) == len(WAYS), compiled


AUGMENTED = {"augment_fn": None, "augment_fn2": None}
INPUTS = {"augmented": ((16, 16, 3), AUGMENTED), "five channels": ((16, 12, 5), {}), "a signal": ((128, 2), {})}


@pytest.mark.long
def test_three_ways_train_alike_on_other_inputs(share, figure):
    cases = share(list(INPUTS.values()))
    for shape, options in cases:
        with jax.enable_x64(True):
            results = three_ways(shape, hidden_layer="drop", dtype=jnp.float64, optimizer=DECAY, steps=3, **options)
            assert_alike(results, 1e-12)
            before = start(shape).stats["batch_stats"]["norm"]
            now = results["nnx"][0].online.stats["encoder"]["batch_stats"]["norm"]
            assert all((now[name] != before[name]).all() for name in ("mean", "var"))
    figure(
        "one network as linen, nnx and functions: the default augmentation, five channels, signals; float64",
        cases=len(cases) * len(WAYS),
        result="at most 1e-12 apart",
    )


GRID = list(
    itertools.product(
        ("float64", "float32"), (True, False), (False, True), ("concatenated", "separate"), ("shared", "drop", -1)
    )
)


STEPS = {"float64": 4, "float32": 1}


@pytest.mark.long
def test_three_ways_train_alike_whatever_the_options(share, figure):
    """Four steps in float64, one in float32: there simplicial embeddings (temperature 0.1, gradients of norm 25) make
    rounding noise ten to twenty times as large in each step, from 7e-4 in the first one's norm to 2 in the fourth's."""
    worst = {"float64": 0.0, "float32": 0.0}
    cells = share(GRID)
    for dtype, momentum, simplicial, views, layer in cells:
        options = {"use_momentum": momentum, "simplicial_embeddings": simplicial, "views": views, "hidden_layer": layer}
        with jax.enable_x64(dtype == "float64"):
            options |= {"dtype": jnp.dtype(dtype), "steps": STEPS[dtype]}
            results = three_ways((16, 12, 3), optimizer=optax.sgd(0.05), **options)
            apart = [largest_difference(results[way], results["functions"]) for way in ("linen", "nnx")]
        worst[dtype] = max(worst[dtype], *apart)
        assert max(apart) < {"float64": 1e-9, "float32": 1e-2}[dtype], (options, apart)
    figure(
        "one network as linen, nnx and functions: momentum, simplicial, views, hidden layers, dtype",
        cases=len(cells) * len(WAYS),
        result="; ".join(f"{dtype}, {STEPS[dtype]} step(s): at most {gap:.0e} apart" for dtype, gap in worst.items()),
    )


class LinenCnn(nn.Module):
    """`nets.small_cnn((4, 6), num_classes=5)`; flattened in torch's order, as its linear layer expects."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        for index, (width, size) in enumerate(((4, 4), (6, 3))):
            conv = nn.Conv(width, (size, size), strides=2, padding=1, use_bias=False, name=str(3 * index))
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.95, name=str(3 * index + 1))
            x = nn.relu(norm(conv(x)))
        return nn.Dense(5, name="7")(x.transpose(0, 3, 1, 2).reshape(len(x), -1))


class NnxCnn(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.Dict()
        for index, (channels, width, size) in enumerate(((1, 4, 4), (4, 6, 3))):
            conv = nnx.Conv(channels, width, (size, size), strides=2, padding=1, use_bias=False, rngs=rngs)
            self.layers[str(3 * index)] = conv
            self.layers[str(3 * index + 1)] = nnx.BatchNorm(width, momentum=0.95, rngs=rngs)
        self.layers["7"] = nnx.Linear(96, 5, rngs=rngs)

    def __call__(self, x):
        for conv, norm in (("0", "1"), ("3", "4")):
            x = nnx.relu(self.layers[norm](self.layers[conv](x)))
        return self.layers["7"](x.transpose(0, 3, 1, 2).reshape(len(x), -1))


@pytest.mark.long(tenth=False)
def test_small_cnn_trains_alike_as_linen_and_nnx(figure):
    """Not the running variance: torch's, and the native one, is that of the sample, Flax's that of the batch."""
    with jax.enable_x64(True):
        native = nets.small_cnn((4, 6), num_classes=5)
        linen, own = from_linen(LinenCnn()), from_nnx(NnxCnn(nnx.Rngs(0)))
        params, fresh = native.init(jax.random.key(1), SHAPE).params, linen.init(jax.random.key(0), SHAPE).stats
        ways = {
            "native": native._replace(init=lambda key, shape: Variables(params, native.init(key, shape).stats)),
            "linen": with_variables(linen, Variables(params, fresh)),
            "nnx": with_variables(own, Variables({"layers": params}, own.init(None, None).stats)),
        }
        results = {}
        for way, encoder in ways.items():
            state, rows = train(encoder, SHAPE, hidden_layer=-1, dtype=jnp.float64, optimizer=DECAY, steps=3)
            params_after = [encoder_variables(state, which).params for which in ("online", "target")]
            results[way] = [tree.get("layers", tree) for tree in params_after], [row["loss"] for row in rows]
        apart = max(largest_difference(results[way], results["native"]) for way in ("linen", "nnx"))
    assert apart < 1e-12
    figure("small_cnn native, as linen and as nnx, 3 steps in float64", cases=3, result=f"at most {apart:.0e} apart")
