"""Computing in bfloat16: near float32, whoever wrote the network; what is kept, averaged and judged stays float32."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from driver_runs import BATCH, DRIVERS, assert_replicated, batches, initial, on_host
from driver_runs import learner as driven
from jax.extend import core
from one_network import WAYS, written

from byol_jax import ConfigurationError, Encoder, Variables, accumulate, make_learner, nets, parallel
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


def images(count: int = 16) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (count, SIZE, SIZE, 3))


def norm(tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(tree))))


def difference(left, right) -> float:
    """The distance of two trees, relative to the second's length."""
    return norm(jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, left, right)) / norm(right)


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_loss_and_gradient_are_near_those_of_float32(name: str) -> None:
    found = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        learner = learner_in(dtype, name)
        state = initial(learner)
        run = jax.jit(jax.value_and_grad(learner.loss, has_aux=True))
        (value, aux), gradient = run(state.online.params, state, images(), jax.random.key(0))
        found[dtype] = (value, aux, gradient)
    (wanted, _, slope), (value, aux, gradient) = found.values()
    assert {leaf.dtype for leaf in jax.tree.leaves((value, gradient, aux.outputs))} == {jnp.dtype("float32")}
    assert abs(value - wanted) < TOLERANCES["loss"] * EPS
    assert difference(gradient, slope) < TOLERANCES["gradient"] * EPS


TOLERANCES = {"loss": 4, "gradient": 16}
"""In units of bfloat16's eps. TODO"""


def products(jaxpr: core.Jaxpr):
    """The dtypes of both sides of every product, inside every function."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield tuple(atom.aval.dtype.name for atom in equation.invars)
        for inner in core.jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_product_of_encoder_and_heads_is_in_the_compute_dtype(name: str, dtype: str) -> None:
    learner = learner_in(dtype, name)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    gradient = jax.grad(lambda params, *given: learner.loss(params, *given)[0])
    traced = jax.make_jaxpr(gradient)(state.online.params, state, images(), jax.random.key(0))
    found = list(products(traced.jaxpr))
    assert len(found) > 8
    assert set(found) == {(dtype, dtype)}


def floats(tree) -> dict[str, str]:
    leaves = zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)
    return {name: leaf.dtype.name for name, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "views"), [("resnet", "constant"), ("resnet", "large"), ("traced", "large")])
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
def test_statistics_are_not_rounded() -> None:
    """A running mean that moves by a thousandth of itself: bfloat16 would leave it where it is."""
    learner = learner_in(jnp.bfloat16, "resnet", moving_average_decay=0.9999, optimizer=optax.sgd(1e-4))
    state, step = initial(learner), jax.jit(learner.step)
    for _ in range(2):
        before = state
        state, _ = step(state, images())
    for old, new in [(before.online, state.online), (before.target, state.target)]:
        for name, left, right in zip(leaf_names(old), jax.tree.leaves(old), jax.tree.leaves(new), strict=True):
            if jnp.issubdtype(left.dtype, jnp.floating):
                assert left.dtype == jnp.float32
                short = right.astype(jnp.bfloat16).astype(jnp.float32)
                assert right.size < 3 or not np.array_equal(short, right) or np.array_equal(left, right), name
    moved = [
        not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before.target, state.target)), strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)


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
        return jax.lax.linalg.cholesky(x[:, :3, :3, 0] + 100 * jnp.eye(3, dtype=x.dtype)).reshape(len(x), -1), {}

    return Encoder(init, apply, lambda variables=None: ())


@pytest.mark.parametrize("makes", ["convolution", "decomposition"])
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


def both(name: str = "resnet") -> Encoder:
    return nets.with_remat(ENCODERS[name]())


SHARED = {"encoder": both(), "hidden_layer": -1, "augment_fn": unchanged, "optimizer": optax.sgd(0.05)}


@pytest.mark.slow
@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_with_both(driver: str) -> None:
    """Two devices' step is the whole batch's: statistics are sums in another order, so activations round apart."""
    options, given = SHARED | {"dtype": jnp.bfloat16}, batches(1)[0]
    one = driven(None, **options)
    wanted, _ = jax.jit(one.step)(initial(one), given)
    start = on_host(initial(one).online.params)
    chosen = jax.devices()[:2]
    mesh, many = parallel.make_mesh(chosen), driven(None if driver == "jit" else parallel.AXIS, **options)
    if driver == "pmap":
        state, _ = parallel.pmap(many, chosen)(parallel.stack(initial(many), 2), parallel.split(given, 2))
    else:
        make = {"jit": parallel.jit, "shard_map": parallel.shard_map}.get(driver)
        make = make or partial(parallel.shard_map, check_vma=False)
        state, _ = make(many, mesh)(parallel.replicate(initial(many), mesh), parallel.shard(given, mesh))
    state = assert_replicated(driver, 2, state)
    moved = [jax.tree.map(np.subtract, now.online.params, start) for now in (state, on_host(wanted))]
    assert difference(*moved) < 4 * EPS


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["shard_map", "pmap"])
def test_every_driver_with_remat_gives_the_whole_batchs_numbers(driver: str) -> None:
    from driver_runs import double_and_quickly_compiled, largest_difference, spread, whole

    with double_and_quickly_compiled():
        wanted, _ = whole(**(SHARED | {"encoder": ENCODERS["resnet"]()}))
        state, _ = spread(driver, 2, **SHARED)
        assert largest_difference(assert_replicated(driver, 2, state), wanted) < 1e-9


@pytest.mark.slow
def test_parts_of_a_batch_with_both() -> None:
    given, found = batches(1)[0], {}
    for kind, encoder in (("plain", ENCODERS["resnet"]()), ("remat", both())):
        learner = accumulate(driven(None, **(SHARED | {"encoder": encoder, "dtype": jnp.bfloat16})), 2)
        state, metrics = jax.jit(learner.step)(initial(learner), given)
        assert metrics["nonfinite"] == 0
        assert set(floats((state, metrics)).values()) == {"float32"}
        found[kind] = on_host(state.online)
    assert BATCH % 2 == 0
    assert difference(found["remat"].params, found["plain"].params) < EPS**2
