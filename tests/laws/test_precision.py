"""Computing in bfloat16: near float32, whoever wrote the network; what is kept, averaged and judged stays float32."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from driver_runs import (
    DRIVERS,
    assert_replicated,
    batches,
    double_and_quickly_compiled,
    initial,
    largest_difference,
    on_host,
    spread,
    whole,
)
from driver_runs import learner as driven
from jax.extend import core
from one_network import WAYS, written

from byol_jax import ConfigurationError, Encoder, Variables, accumulate, from_linen, make_learner, nets
from byol_jax.ema import ema_update
from byol_jax.runs.precision import PRODUCTS, dtype_notes, wide_products
from byol_jax.tree import leaf_names
from interop import from_torch_module

SIZE = 16
EPS = float(jnp.finfo(jnp.bfloat16).eps)
"""2⁻⁷: neighbours of 1 are so far apart."""


@cache
def traced() -> Encoder:
    torch.manual_seed(0)
    block = [torch.nn.Conv2d(6, 6, 3, padding=1), torch.nn.BatchNorm2d(6), torch.nn.ReLU(inplace=True)]
    layers = [torch.nn.Conv2d(3, 6, 2, 2), *block * 2, torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten()]
    return from_torch_module(torch.nn.Sequential(*layers), image_size=SIZE, verify=False)


ENCODERS = {
    "resnet": lambda: nets.resnet((1, 1), width=8, num_classes=None, stem="cifar"),
    "vit": lambda: nets.vit(2, width=16, num_heads=2, patch_size=4, num_classes=None),
    "traced": traced,
    **{way: partial(written, way, (SIZE, SIZE, 3)) for way in WAYS},
}


def unchanged(key, image):
    return image


def learner_in(dtype, name: str, **options):
    sizes = {"image_size": SIZE, "hidden_layer": -1, "projection_size": 16, "projection_hidden_size": 32}
    given = {"augment_fn": unchanged, "augment_fn2": lambda key, image: image[::-1], "normalize": (0.5, 0.25)}
    return make_learner(ENCODERS[name](), dtype=dtype, **(sizes | given | options))


def images(count: int = 32) -> jax.Array:
    """Four colours each, blurred. Images of noise are nearly the same once they are averaged, but for rounding."""
    colours = jax.random.uniform(jax.random.key(1), (count, 2, 2, 3))
    return jax.image.resize(colours, (count, SIZE, SIZE, 3), "linear")


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled():
    """What is compared is rounding of eight bits; programs compile in half the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def norm(tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree))))


def difference(left, right) -> float:
    """The distance of two trees, relative to the second's length."""
    return norm(jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, left, right)) / norm(right)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "functions" else pytest.mark.long) for n in ENCODERS]
)
def test_loss_and_gradient_are_near_those_of_float32(name: str) -> None:
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        learner = learner_in(dtype, name)
        state = initial(learner)
        run = jax.jit(jax.value_and_grad(learner.loss, has_aux=True))
        (value, aux), gradient = run(state.online.params, state, images(), jax.random.key(0))
        found[dtype] = (value, aux, gradient)
    (wanted, there, slope), (value, aux, gradient) = found.values()
    assert {leaf.dtype for leaf in jax.tree.leaves((value, gradient, aux.outputs))} == {jnp.dtype("float32")}
    assert abs(value - wanted) < 0.5 * EPS, "measured: up to 0.26"
    assert difference(aux.outputs.features, there.outputs.features) < 2 * EPS, "measured: up to 1.1"
    assert difference(gradient, slope) < 24 * EPS, "measured: 7 to 18"


def products(jaxpr: core.Jaxpr):
    """The dtypes of both sides of every product, inside every function."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            yield tuple(atom.aval.dtype.name for atom in equation.invars)
        for inner in core.jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_every_product_of_encoder_and_heads_is_in_the_compute_dtype(name: str, dtype: str) -> None:
    learner = learner_in(dtype, name)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    gradient = jax.grad(lambda params, *given: learner.loss(params, *given)[0])
    traced = jax.make_jaxpr(gradient)(state.online.params, state, images(), jax.random.key(0))
    found = list(products(traced.jaxpr))
    assert len(found) > 8
    assert set(found) == {(dtype, dtype)}


@pytest.mark.parametrize(("own", "wide"), [(None, 0), (jnp.bfloat16, 0), (jnp.float32, 1)])
def test_a_network_that_has_its_own_dtype_is_said(own, wide: int) -> None:
    module = nn.Sequential([lambda x: x.reshape(len(x), -1), nn.Dense(4, dtype=own), nn.Dense(3, dtype=jnp.bfloat16)])
    options = {"image_size": SIZE, "hidden_layer": -1, "augment_fn": unchanged, "dtype": jnp.bfloat16}
    learner = make_learner(from_linen(module, train_argument=None), **options)
    assert wide_products(learner, jnp.bfloat16) == (wide, 2)
    notes = dtype_notes(learner, jnp.bfloat16)
    said = "1 of the encoder's 2 products aren't in bfloat16: the network has them in a wider dtype"
    assert (said in notes) == bool(wide)
    assert "on a CPU is slower" in notes[0]
    assert dtype_notes(learner, "float32") == []


def floats(tree) -> dict[str, str]:
    leaves = zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
    return {name: leaf.dtype.name for name, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)}


@pytest.mark.parametrize(
    ("name", "views"),
    [
        pytest.param("resnet", "constant", marks=pytest.mark.long),
        pytest.param("resnet", "large", marks=pytest.mark.slow),
        pytest.param("traced", "large", marks=pytest.mark.long),
    ],
)
def test_fifty_steps_over_constant_and_over_large_images_stay_finite_and_float32(name: str, views: str) -> None:
    """Batch norm divides by √(0 + ε) of constant images, and large ones leave bfloat16's 8 bits far from 1."""
    learner = learner_in(jnp.bfloat16, name, optimizer=optax.adam(1e-3), normalize=None)
    state, step = initial(learner), jax.jit(learner.step, donate_argnums=0)
    kinds = floats(state)
    for number in range(50):
        batch = jax.random.uniform(jax.random.key(number), (8, SIZE, SIZE, 3), minval=-1e4, maxval=1e4)
        batch = batch if views == "large" else jnp.full_like(batch, 0.3)
        state, metrics = step(state, batch)
        assert metrics["nonfinite"] == 0
        assert np.isfinite([metrics["loss"], metrics["grad_norm"], metrics["param_norm"]]).all()
    assert set(floats((state, metrics)).values()) == {"float32"}
    assert floats(state) == kinds
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(on_host((state.online, state.target))))


@pytest.mark.slow
def test_the_target_and_the_statistics_are_not_rounded() -> None:
    """A target that moves by a ten-thousandth of the way: bfloat16 would leave most of it where it is."""
    learner = learner_in(jnp.bfloat16, "resnet", moving_average_decay=0.9999, optimizer=optax.sgd(0.1))
    state, step = initial(learner), jax.jit(learner.step)
    for _ in range(2):
        before = state
        state, _ = step(state, images())
    kernels = [one.target.params["encoder"]["conv1"]["kernel"] for one in (before, state)]
    online = state.online.params["encoder"]["conv1"]["kernel"]
    np.testing.assert_allclose(kernels[1], ema_update(kernels[0], online, 0.9999), rtol=1e-6)
    moved = np.abs(kernels[1] - kernels[0])
    assert np.mean(moved > 0) > 0.5
    assert moved.max() < EPS / 8 * np.abs(kernels[0]).max()
    for network in (state.online, state.target):
        for part, name in (("encoder", "bn1"), ("projector", "1")):
            for statistic in ("mean", "var"):
                exact = network.stats[part][name][statistic]
                assert not np.array_equal(exact, exact.astype(jnp.bfloat16).astype(jnp.float32))


def only_float32(makes: str) -> Encoder:
    """A function whose own constants are float32, in an operation that takes no two dtypes."""

    def init(key, shape):
        return Variables({"scale": jnp.ones(shape[-1])}, {})

    def apply(variables, x, *, train, hidden_layer, key=None, axis_name=None):
        x = x * variables.params["scale"]
        if makes == "convolution":
            kernel = jnp.ones((3, 3, 3, 4), jnp.float32)
            y = jax.lax.conv_general_dilated(x, kernel, (4, 4), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            return y.mean((1, 2)), {}
        return jnp.abs(jax.lax.fft(x[..., 0], "RFFT", (SIZE,))).reshape(len(x), -1), {}

    return Encoder(init, apply, lambda variables=None: ())


@pytest.mark.parametrize("makes", ["convolution", "transform"])
def test_a_network_that_cannot_be_computed_so_is_refused_by_name(makes: str) -> None:
    options = {"image_size": SIZE, "hidden_layer": -1, "augment_fn": unchanged}
    make_learner(only_float32(makes), **options)
    with pytest.raises(ConfigurationError) as error:
        make_learner(only_float32(makes), dtype=jnp.bfloat16, **options)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(
        "the encoder can't be computed in bfloat16, in float32 it can: leave out dtype=bfloat16 ("
    )


SMALL = nets.small_cnn((8,))
SHARED = {"encoder": nets.with_remat(SMALL), "hidden_layer": -2, "augment_fn": unchanged, "optimizer": optax.sgd(0.05)}
"""For `driver_runs`, whose learners are of 16 images of 16 pixels."""


@cache
def moved_whole() -> tuple:
    """The online parameters before a step in bfloat16 on the whole batch, and how far it moves them."""
    one = driven(None, **SHARED, dtype=jnp.bfloat16)
    start = on_host(initial(one).online.params)
    state, _ = jax.jit(one.step)(initial(one), batches(1)[0])
    return start, jax.tree.map(np.subtract, on_host(state.online.params), start)


@pytest.mark.parametrize(
    "driver", [pytest.param(d, marks=pytest.mark.slow if d == "shard_map" else pytest.mark.long) for d in DRIVERS]
)
def test_every_driver_with_both(driver: str) -> None:
    """Two devices' step is the whole batch's: statistics are sums in another order, so activations round apart."""
    state, _ = spread(driver, 2, batches(1), **SHARED, dtype=jnp.bfloat16)
    state = assert_replicated(driver, 2, state)
    assert floats(state) == floats(jax.eval_shape(driven(None, **SHARED, dtype=jnp.bfloat16).init, jax.random.key(0)))
    start, wanted = moved_whole()
    assert difference(jax.tree.map(np.subtract, state.online.params, start), wanted) < 4 * EPS


@pytest.mark.long
@pytest.mark.parametrize("driver", ["pmap", "shard_map"])
def test_every_driver_with_remat_gives_the_numbers_without(driver: str) -> None:
    with double_and_quickly_compiled():
        wanted, _ = whole(**SHARED | {"encoder": SMALL})
        state, _ = spread(driver, 2, **SHARED)
        assert largest_difference(assert_replicated(driver, 2, state), wanted) < 1e-9


@pytest.mark.long
def test_parts_of_a_batch_with_both() -> None:
    """Beside the same parts without remat, in float32; in bfloat16 near that."""
    found = []
    for encoder, dtype in ((SMALL, jnp.float32), (SHARED["encoder"], jnp.float32), (SHARED["encoder"], jnp.bfloat16)):
        learner = accumulate(driven(None, **SHARED | {"encoder": encoder, "dtype": dtype}), 2)
        state, metrics = jax.jit(learner.step)(initial(learner), batches(1)[0])
        assert metrics["nonfinite"] == 0
        assert set(floats((state, metrics)).values()) == {"float32"}
        found.append(on_host(state.online.params))
    plain, again, short = found
    assert difference(again, plain) < 1e-6
    assert 1e-6 < difference(short, plain) < 3 * EPS  # Adam's first step has the size of no gradient: 1.4 measured


def test_convolutions_in_forms_of_our_own_are_counted() -> None:
    """3×3 ones on 64 channels, and grouped ones: stem, and two blocks of three with one shortcut."""
    encoder = nets.resnet((1, 1), block="bottleneck", groups=2, width_per_group=32, num_classes=None, dtype=jnp.float32)
    learner = make_learner(encoder, image_size=32, hidden_layer=-1, dtype=jnp.bfloat16)
    assert wide_products(learner, jnp.bfloat16) == (9, 9)
    encoder = nets.resnet((1,), num_classes=None, dtype=jnp.float32)
    learner = make_learner(encoder, image_size=32, hidden_layer=-1, dtype=jnp.bfloat16)
    assert wide_products(learner, jnp.bfloat16) == (3, 3)
