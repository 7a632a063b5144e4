"""A step in parts is the step on the whole batch: to rounding without batch norm, as written down by hand with it."""

import json
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from driver_runs import (
    BATCH,
    DRIVERS,
    assert_replicated,
    batches,
    check_alike,
    compiled,
    double_and_quickly_compiled,
    initial,
    largest_difference,
    learner,
    light,
    on_host,
    trained,
)
from jax import lax

from byol_jax import ConfigurationError, Encoder, Learner, Variables, accumulate, nets, parallel, pretrain
from byol_jax.accumulation import check_parts
from byol_jax.optim import init_optimizer
from byol_jax.runs.metrics import read_metrics
from byol_jax.settings import Network
from byol_jax.views import dropout_key, sample_keys, two_views


def shaded(key, image):
    return image * jax.random.uniform(key, (), image.dtype, 0.5, 1)


def network_without_norm() -> Encoder:
    """One convolution and a buffer that counts its batches; `unused` has no influence."""

    def init(key, shape):
        kernel = jax.random.normal(key, (3, 3, shape[-1], 4)) / 5
        return Variables({"kernel": kernel, "unused": jnp.ones(3)}, {})

    def apply(variables, images, *, train, hidden_layer, key=None, axis_name=None):
        maps = lax.conv_general_dilated(
            images, variables.params["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(maps).reshape(len(maps), -1), {}

    return Encoder(init, apply, lambda variables=None: ())


def linear_head(inputs: int, outputs: int) -> Network:
    def init(key):
        return Variables({"kernel": jax.random.normal(key, (inputs, outputs)) / inputs**0.5}, {})

    return Network(init, lambda variables, x, *, train, key=None: (x @ variables.params["kernel"], {}))


def without_norm(axis_name: str | None = None, **options) -> Learner:
    """A learner with no batch norm anywhere: of `make_learner`'s networks the heads have one."""
    made = learner(
        axis_name, **({"encoder": network_without_norm(), "hidden_layer": -1, "augment_fn": light} | options)
    )
    heads = {"projector": linear_head(made.settings.feature_size, 16), "predictor": linear_head(16, 16)}
    return Learner(replace(made.settings, **heads))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"moving_average_decay": lambda step: 0.9 + 0.01 * step}, 2),
        ({"views": "separate", "optimizer": optax.lars(0.1)}, 4),
        ({"use_momentum": False, "optimizer": optax.sgd(0.1)}, 2),
    ],
)
def test_parts_without_batch_norm_are_the_whole_batch(options: dict, parts: int) -> None:
    with double_and_quickly_compiled():
        whole = without_norm(**options)
        check_alike(trained(accumulate(whole, parts)), trained(whole))


@pytest.mark.slow
@pytest.mark.parametrize(
    "driver", [DRIVERS[0], *(pytest.param(driver, marks=pytest.mark.long) for driver in DRIVERS[1:])]
)
def test_parts_on_several_devices_are_the_whole_batch(driver: str) -> None:
    devices = 2 if driver == "pmap" else 4
    mesh = parallel.make_mesh(jax.devices()[:devices])
    with double_and_quickly_compiled():
        many = accumulate(without_norm(None if driver == "jit" else parallel.AXIS), 2)
        state, rows = initial(many), []
        if driver == "pmap":
            step, place = parallel.pmap(many, jax.devices()[:devices]), partial(parallel.split, count=devices)
            state = parallel.stack(state, devices)
        else:
            step, place = compiled(driver, many, mesh), partial(parallel.shard, mesh=mesh)
            state = parallel.replicate(state, mesh)
        for batch in batches():
            state, metrics = step(state, place(batch))
            rows.append(assert_replicated(driver, devices, metrics))
        check_alike((assert_replicated(driver, devices, state), rows), trained(without_norm()))


def by_hand(some: Learner, parts: int, rate: float, decay: float, given):
    """What a step in parts means, written with the learner's `loss` alone, part after part."""
    state, gradient = initial(some), jax.jit(jax.value_and_grad(some.loss, has_aux=True))
    losses = []
    for batch in given:
        keys = sample_keys(some.settings, jax.random.fold_in(state.key, state.step), len(batch))
        params, total, before = state.online.params, [], state
        for first in range(parts):
            (value, aux), slope = gradient(params, before, batch[first::parts], keys[first::parts])
            online, target = (
                old._replace(stats=new)
                for old, new in ((state.online, aux.online_stats), (state.target, aux.target_stats))
            )
            before = before.replace(online=online, target=target)
            total.append((value, slope))
        value, slope = jax.tree.map(lambda *leaves: jnp.stack(leaves).mean(0), *total)
        params = jax.tree.map(lambda p, g: p - rate * g, params, slope)
        moved = {name: params[name] for name in state.target.params}
        moved = jax.tree.map(lambda t, p: decay * t + (1 - decay) * p, state.target.params, moved)
        online, target = before.online._replace(params=params), before.target._replace(params=moved)
        state = state.replace(step=state.step + 1, online=online, target=target)
        losses.append(float(value))
    return on_host(state), losses


@pytest.mark.long
def test_with_batch_norm_every_part_has_its_own_statistics() -> None:
    """And the running ones move `parts` times a step: the result differs from the whole batch's, by so much."""
    rate, decay, parts, given = 0.05, 0.9, 4, batches(2, uneven=True)
    with double_and_quickly_compiled():
        whole = learner(None, augment_fn=light, moving_average_decay=decay, optimizer=optax.sgd(rate))
        state, rows = trained(accumulate(whole, parts), given)
        wanted, losses = by_hand(whole, parts, rate, decay, given)
        assert largest_difference(state, wanted) <= 1e-12
        np.testing.assert_allclose([row["loss"] for row in rows], losses, rtol=1e-6)
        assert state.online.stats["projector"]["1"]["num_batches_tracked"] == parts * len(given)
        other, _ = trained(whole, given)
    for name in ("encoder", "projector", "predictor"):
        moved = largest_difference(state.online.stats[name], other.online.stats[name])
        assert moved > 1e-2, f"{name}: {moved}"
    assert largest_difference(state.online.params, other.online.params) > 1e-4


@pytest.mark.long
def test_without_momentum_statistics_move_twice_a_part() -> None:
    with double_and_quickly_compiled():
        state, _ = trained(accumulate(learner(None, augment_fn=light, use_momentum=False), 4), batches(1))
    tracked = {name: state.online.stats[name]["1"]["num_batches_tracked"] for name in ("projector", "predictor")}
    assert tracked == {"projector": 8, "predictor": 4}


def test_an_image_has_the_views_of_its_place_in_the_whole_batch() -> None:
    settings = without_norm(dtype=jnp.float32, augment_fn=shaded).settings
    images, key = batches(1)[0], jax.random.key(3)
    draw = jax.jit(partial(two_views, settings))
    wanted, keys = draw(images, key), sample_keys(settings, key, BATCH)
    for first in range(2):
        for view, whole in zip(draw(images[first::2], keys[first::2]), wanted, strict=True):
            np.testing.assert_array_equal(view, whole[first::2])
    assert len(np.unique(np.concatenate(wanted).reshape(2 * BATCH, -1), axis=0)) == 2 * BATCH


def test_every_part_and_every_device_drops_other_units() -> None:
    settings = without_norm(dtype=jnp.float32).settings
    key = jax.random.key(0)
    keys = sample_keys(settings, key, BATCH)
    parts = [tuple(jax.random.key_data(dropout_key(settings, keys[first::4])).tolist()) for first in range(4)]
    whole = tuple(jax.random.key_data(dropout_key(settings, key)).tolist())
    drawn = {tuple(row) for row in np.asarray(jax.random.key_data(keys)).tolist()}
    assert len({*parts, whole, *drawn}) == 4 + 1 + BATCH


@pytest.mark.slow
def test_a_part_that_is_not_finite_changes_nothing() -> None:
    images = batches(1)[0].astype(np.float64) / 255
    images[5] = np.nan
    with double_and_quickly_compiled():
        some = accumulate(without_norm(), 4)
        state = initial(some)
        after, metrics = jax.jit(some.step)(state, images)
    assert metrics["nonfinite"] == 1
    for left, right in zip(
        *(jax.tree.leaves(on_host(one)) for one in (after, state.replace(step=after.step))), strict=True
    ):
        np.testing.assert_array_equal(left, right)


def with_probe(some: Learner, classes: int) -> Learner:
    """A linear classifier on the features; its batches are (images, labels), its loss one that was replaced."""

    def init(key):
        state, width = some.init(key), some.settings.feature_size
        params = state.online.params | {"probe": jnp.zeros((width, classes))}
        opt_state = init_optimizer(some.settings.optimizer, some.settings.select_trained(params))
        return state.replace(online=Variables(params, state.online.stats), opt_state=opt_state)

    def loss(params, state, batch, key):
        images, labels = batch
        value, aux = some.loss(params, state, images, key)
        scores = jax.nn.log_softmax(lax.stop_gradient(aux.outputs.features) @ params["probe"])
        own = -jnp.take_along_axis(scores, jnp.repeat(labels, 2)[:, None], axis=1).mean()
        return value + own, aux._replace(metrics=aux.metrics | {"probe_loss": own})

    return some.replace(init=init, loss=loss)


@pytest.mark.slow
def test_a_replaced_loss_is_cut_into_parts_and_a_step_may_be_replaced_after() -> None:
    given = [(batch, np.arange(BATCH) % 3) for batch in batches()]
    with double_and_quickly_compiled():
        whole = with_probe(without_norm(), 3)
        parts = accumulate(whole, 4)

        def step(state, batch):
            state, metrics = parts.step(state, batch)
            return state, metrics | {"rows": jnp.float32(len(batch[1]))}

        state, rows = trained(parts.replace(step=step), given)
        assert [row.pop("rows") for row in rows] == [BATCH] * len(given)
        check_alike((state, rows), trained(whole, given))
        assert np.abs(state.online.params["probe"]).max() > 0


def test_the_loss_is_traced_as_often_however_many_parts_there_are() -> None:
    base, traces = without_norm(dtype=jnp.float32), []

    def loss(*given):
        traces.append(None)
        return base.loss(*given)

    counts, state = [], jax.eval_shape(base.init, jax.random.key(0))
    for parts in (2, 8):
        traces.clear()
        jax.make_jaxpr(accumulate(base.replace(loss=loss), parts).step)(state, batches(1)[0])
        counts.append(len(traces))
    assert counts == [2, 2], "once for CPUs, once for others"


@pytest.mark.slow
def test_no_image_leaves_its_device() -> None:
    """With batch norm in network and heads: sums are all that devices send."""
    mesh = parallel.make_mesh(jax.devices()[:4])
    many = accumulate(learner(None, augment_fn=light, dtype=jnp.float32), 2)
    state, images = parallel.replicate(initial(many), mesh), parallel.shard(batches(1)[0], mesh)
    text = parallel.jit(many, mesh).lower(state, images).compile().as_text()
    sent = re.findall(r" (all-to-all|all-gather|collective-permute|reduce-scatter|all-reduce)(?:-start)?\(", text)
    assert set(sent) == {"all-reduce"}


@pytest.mark.long
def test_four_parts_take_a_third_of_the_memory() -> None:
    """Temporary arrays of the compiled step; measured: 0.26."""
    whole = learner(None, augment_fn=light, dtype=jnp.float32)
    state = jax.eval_shape(whole.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((256, 16, 16, 3), jnp.uint8)
    programs = (jax.jit(some.step).lower(state, images).compile() for some in (accumulate(whole, 4), whole))
    in_parts, at_once = (program.memory_analysis().temp_size_in_bytes for program in programs)
    assert in_parts < at_once / 3, (in_parts, at_once)


@pytest.mark.parametrize("parts", [0, -1, 1.0, True, "2", None])
def test_parts_are_a_whole_number_of_at_least_1(parts) -> None:
    with pytest.raises(ConfigurationError, match=r"^accumulate: parts=.*: expected a whole number of at least 1$"):
        accumulate(without_norm(dtype=jnp.float32), parts)


def test_one_part_is_the_learner_itself() -> None:
    some = without_norm(dtype=jnp.float32)
    assert accumulate(some, 1) is some
    assert accumulate(some, 2).settings is some.settings


def test_a_replaced_step_is_refused_and_so_is_another_loss_after_it() -> None:
    some = without_norm(dtype=jnp.float32)
    in_parts = accumulate(some, 2)
    with pytest.raises(ConfigurationError, match="accumulate: the learner's step is replaced already"):
        accumulate(in_parts, 2)
    with pytest.raises(ConfigurationError, match=r"replace\(loss=...\): the learner's step is replaced already"):
        in_parts.replace(loss=some.loss)
    assert in_parts.replace(loss=some.loss, step=some.step).replacements.loss == some.loss


@pytest.mark.parametrize(
    ("images", "parts", "words"),
    [
        (np.zeros((10, 16, 16, 3), np.uint8), 4, "a batch of 10 can't be cut into 4 equal parts: use a multiple of 4"),
        (np.zeros((0, 16, 16, 3), np.uint8), 2, "a batch of 0 images can't train: use at least 4"),
        (np.zeros((4, 16, 16, 3), np.uint8), 4, "4 in 4 parts has 1 image a part: .*; use at most 2 parts"),
        ((np.zeros((4, 16, 16, 3), np.uint8), np.zeros(2)), 2, "a batch of arrays of 2, 4 rows can't be cut"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_one_clear_error(images, parts: int, words: str) -> None:
    some = accumulate(without_norm(dtype=jnp.float32), parts)
    state = jax.eval_shape(some.init, jax.random.key(0))
    with pytest.raises(ConfigurationError, match=f"^accumulate: .*{words}"):
        jax.eval_shape(some.step, state, images)


@pytest.mark.parametrize("driver", [driver for driver in DRIVERS if driver != "pmap"])
def test_a_batch_that_devices_cannot_cut_is_one_clear_error(driver: str) -> None:
    images, mesh = np.zeros((24, 16, 16, 3), np.uint8), parallel.make_mesh()
    many = accumulate(without_norm(None if driver == "jit" else parallel.AXIS, dtype=jnp.float32), 2)
    state = jax.eval_shape(many.init, jax.random.key(0))
    step, batch = compiled(driver, many, mesh), parallel.shard(images, mesh)
    with pytest.raises(ConfigurationError) as error:
        jax.eval_shape(step, state, batch)
    wanted = "accumulate: a batch of 24 can't be cut into 2 equal parts on 8 devices: use a multiple of 16"
    assert str(error.value) == wanted
    check_parts(32, 2, devices=8)


SMALL = {"image_size": 16, "num_channels": 1, "projection_size": 8, "projection_hidden_size": 16, "progress": False}


def images(count: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 1), np.uint8)


@pytest.mark.long
def test_a_run_in_parts_goes_on_bit_for_bit_and_only_in_as_many(tmp_path) -> None:
    run = partial(
        pretrain,
        nets.small_cnn((4,)),
        images(),
        batch_size=32,
        augment_fn=shaded,
        log_every=1,
        checkpoint_every=1,
        **SMALL,
    )
    whole = run(out=tmp_path / "whole", steps=4, accumulate=2)
    run(out=tmp_path / "run", steps=2, accumulate=2)
    assert json.loads((tmp_path / "run/config.json").read_text())["accumulate"] == 2
    for other, words in ((1, "accumulate: stored 2, given nothing"), (4, "accumulate: stored 2, given 4")):
        with pytest.raises(ConfigurationError, match=words if other == 1 else "multiple of 32|" + words):
            run(out=tmp_path / "run", steps=4, accumulate=other, resume=True)
    state = run(out=tmp_path / "run", steps=4, accumulate=2, resume=True)
    for left, right in zip(*(jax.tree.leaves(on_host(one)) for one in (state, whole)), strict=True):
        np.testing.assert_array_equal(left, right)
    rows, _ = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    run(out=tmp_path / "old", steps=1)
    assert "accumulate" not in json.loads((tmp_path / "old/config.json").read_text()), "as of runs before it was there"
    assert int(run(out=tmp_path / "old", steps=2, resume=True).step) == 2
    with pytest.raises(ConfigurationError, match="accumulate: stored nothing, given 2"):
        run(out=tmp_path / "old", steps=3, accumulate=2, resume=True)


@pytest.mark.parametrize("kind", [lambda array: array, lambda array: [array[:24]]], ids=["array", "iterable"])
def test_a_run_whose_batch_cannot_be_cut_writes_nothing(tmp_path, kind) -> None:
    out = tmp_path / "run"
    with pytest.raises(ConfigurationError, match="a batch of 24 can't be cut into 2 equal parts on 8 devices"):
        pretrain(nets.small_cnn((4,)), kind(images()), out=out, steps=2, batch_size=24, accumulate=2, **SMALL)
    with pytest.raises(ConfigurationError, match="accumulate: parts=0"):
        pretrain(nets.small_cnn((4,)), kind(images()), out=out, steps=2, batch_size=24, accumulate=0, **SMALL)
    assert not out.exists()


def test_raw_keys_begin_as_typed_ones_do() -> None:
    raw, typed = (without_norm(dtype=jnp.float32).init(key) for key in (jax.random.PRNGKey(3), jax.random.key(3)))
    assert raw.key.dtype == typed.key.dtype
    for a, b in zip(jax.tree.leaves(raw.online), jax.tree.leaves(typed.online), strict=True):
        np.testing.assert_array_equal(a, b)
