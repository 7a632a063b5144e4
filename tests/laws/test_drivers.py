"""jit on the whole batch = pmap = shard_map (either check_vma) on 1, 2, 4, 8 devices: losses, parameters, statistics.

In float64, where the order of a sum shows in the twelfth digit and beyond: in float32 Adam's first steps, ± the rate
whatever the gradient's size, turn rounding noise into differences of 1e-3 after two steps (measured). Metrics are
float32, so they agree to its last digit or two. What each device holds is compared too: bit for bit.
"""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from driver_runs import (
    DRIVERS,
    METRICS,
    STATE,
    STEPS,
    assert_replicated,
    batches,
    double_and_quickly_compiled,
    initial,
    largest_difference,
    learner,
    light,
    on_host,
    spread,
    traced,
    whole,
)

from byol_jax import ConfigurationError, nets, parallel

MOMENTUM = {"use_momentum": True, "augment_fn": light}
HARDEST = {"use_momentum": False, "views": "separate", "simplicial_embeddings": True, "augment_fn": light}
OPTIONS = [
    {"use_momentum": momentum, "views": views, "simplicial_embeddings": simplicial, "augment_fn": light}
    for momentum, views, simplicial in product((True, False), ("concatenated", "separate"), (False, True))
]


@pytest.fixture(scope="module")
def reference():
    """`whole` of some options, computed once."""
    known = {}

    def of(options):
        key = repr(sorted(options.items()))
        if key not in known:
            known[key] = whole(**options)
        return known[key]

    with double_and_quickly_compiled():
        yield of


def differences(driver: str, devices: int, options: dict, reference) -> tuple[float, float]:
    """The largest in the state and in the metrics, after what the devices hold was found equal."""
    wanted_state, wanted_rows = reference(options)
    state, rows = spread(driver, devices, **options)
    state = assert_replicated(driver, devices, state)
    rows = [assert_replicated(driver, devices, row) for row in rows]
    assert int(state.step) == STEPS
    return largest_difference(state, wanted_state), largest_difference(rows, wanted_rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "devices", "options"),
    [
        ("shard_map", 8, MOMENTUM),
        pytest.param("jit", 4, HARDEST, marks=pytest.mark.long),
        ("pmap", 2, HARDEST),
        ("shard_map unchecked", 8, HARDEST),
    ],
)
def test_every_driver_gives_the_whole_batchs_numbers(driver: str, devices: int, options: dict, reference) -> None:
    state, metrics = differences(driver, devices, options, reference)
    assert state <= STATE
    assert metrics <= METRICS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "devices"),
    [("jit", 8), pytest.param("pmap", 4, marks=pytest.mark.long), ("shard_map", 2), ("shard_map unchecked", 4)],
)
def test_every_driver_with_a_torch_module(driver: str, devices: int, reference) -> None:
    options = {"encoder": traced(), "hidden_layer": -1, "augment_fn": light}
    state, metrics = differences(driver, devices, options, reference)
    assert state <= STATE
    assert metrics <= METRICS


@pytest.mark.long
def test_every_driver_on_every_number_of_devices_with_every_option(reference, share, figure) -> None:
    cases = share(list(product(DRIVERS, (1, 2, 4, 8), OPTIONS)))
    found = [differences(*case, reference) for case in cases]
    state, metrics = (max(column) for column in zip(*found, strict=True))
    assert state <= STATE
    assert metrics <= METRICS
    figure(
        "jit, pmap, shard_map with either check_vma on 1, 2, 4, 8 devices against jit on the whole batch, float64;"
        " momentum or SimSiam, views concatenated or separate, with and without simplicial embeddings; three steps",
        cases=len(cases),
        result=f"largest difference {state:.1e} in the state, {metrics:.1e} in the metrics (float32); every leaf of"
        " state and metrics bitwise equal on all devices",
    )


@pytest.mark.long
def test_every_driver_with_the_default_augmentation(reference, share, figure) -> None:
    cases = share(list(product(DRIVERS, (8, 4, 2, 1))))
    options = {"encoder": nets.small_cnn((32, 64, 128))}
    found = [differences(driver, devices, options, reference) for driver, devices in cases]
    state, metrics = (max(column) for column in zip(*found, strict=True))
    assert state <= STATE
    assert metrics <= METRICS
    figure(
        "the same with the default augmentation, uint8 images, three convolutions",
        cases=len(cases),
        result=f"largest difference {state:.1e} in the state, {metrics:.1e} in the metrics (float32)",
    )


def by_hand(devices: int, rate: float, decay: float, given) -> tuple:
    """What `sync_batchnorm=False` means: each device on its own, then means; the state and the losses.

    Written with the one-device learner's `loss` and formulas alone: no axis, no driver, no optimiser.
    """
    one = learner(None, augment_fn=lambda key, image: image, moving_average_decay=decay, optimizer=optax.sgd(rate))
    state, losses = initial(one), []
    gradient = jax.jit(jax.value_and_grad(one.loss, has_aux=True))
    for batch in given:
        key = jax.random.key(0)  # nothing here is random
        parts = [gradient(state.online.params, state, part, key) for part in np.split(batch, devices)]
        (value, aux), slope = jax.tree.map(lambda *leaves: jnp.stack(leaves).mean(0).astype(leaves[0].dtype), *parts)
        params = jax.tree.map(lambda p, g: p - rate * g, state.online.params, slope)
        target = {name: state.target.params[name] for name in ("encoder", "projector")}
        target = jax.tree.map(lambda t, p: decay * t + (1 - decay) * p, target, {n: params[n] for n in target})
        state = state.replace(
            step=state.step + 1,
            online=state.online._replace(params=params, stats=aux.online_stats),
            target=state.target._replace(params=target, stats=aux.target_stats),
        )
        losses.append(float(value))
    return on_host(state), losses


@pytest.mark.slow
@pytest.mark.parametrize(("driver", "devices"), [("pmap", 2), ("shard_map", 4)])
def test_without_synchronisation_statistics_are_the_mean_of_the_devices_own(driver: str, devices: int) -> None:
    with double_and_quickly_compiled():
        given, rate, decay = batches(uneven=True), 0.05, 0.9
        wanted, losses = by_hand(devices, rate, decay, given)
        state, rows = spread(
            driver,
            devices,
            given,
            sync_batchnorm=False,
            augment_fn=lambda key, image: image,
            moving_average_decay=decay,
            optimizer=optax.sgd(rate),
        )
        state = assert_replicated(driver, devices, state)
        assert largest_difference(state, wanted) <= 1e-12
        np.testing.assert_allclose([float(np.ravel(row["loss"])[0]) for row in rows], losses, rtol=1e-6)


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_uneven_batch_is_one_clear_error(driver: str) -> None:
    images, mesh = np.zeros((12, 16, 16, 3), np.uint8), parallel.make_mesh()
    many = learner(None if driver == "jit" else parallel.AXIS, dtype=jnp.float32)
    state = jax.eval_shape(many.init, jax.random.key(0))  # nothing is computed
    calls = {
        "jit": lambda: parallel.jit(many, mesh)(state, parallel.shard(images, mesh)),
        "pmap": lambda: parallel.pmap(many)(state, parallel.split(images, 8)),
        "shard_map": lambda: parallel.shard_map(many, mesh)(state, images),
        "shard_map unchecked": lambda: parallel.shard_map(many, mesh, check_vma=False)(state, images),
    }
    with pytest.raises(ConfigurationError) as error:
        calls[driver]()
    assert str(error.value) == "a batch of 12 can't be shared by 8 devices: use a multiple of 8"


@pytest.mark.parametrize(("driver", "axis"), [("jit", "batch"), ("pmap", None), ("pmap", "i"), ("shard_map", None)])
def test_a_learner_of_another_axis_is_refused_and_does_not_train_apart(driver: str, axis: str | None) -> None:
    given = () if driver == "pmap" else (parallel.make_mesh(),)
    expected = None if driver == "jit" else parallel.AXIS
    with pytest.raises(ConfigurationError, match=f"axis_name={axis!r}: make it with axis_name={expected!r}"):
        getattr(parallel, driver)(learner(axis, dtype=jnp.float32), *given)
