"""The online probe: a softmax regression on stopped features, trained by the step and without influence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from driver_runs import double_and_quickly_compiled
from optax import contrib

from byol_jax import (
    ConfigurationError,
    Variables,
    accumulate,
    checkpoint,
    encoder_variables,
    make_learner,
    nets,
    optim,
    parallel,
    with_online_probe,
)

CLASSES, COUNT = 3, 16


def small(**options):
    given = {"image_size": 8, "num_channels": 1, "projection_size": 8, "projection_hidden_size": 16}
    given |= {"augment_fn": shaded, "hidden_layer": -1, "optimizer": optax.adam(1e-2)}
    return make_learner(nets.small_cnn((4,), num_classes=None), **(given | options))


def shaded(key, image):
    return image * jax.random.uniform(key, (), image.dtype, 0.5, 1)


def batches(count=3, dtype=np.float32):
    random = np.random.default_rng(0)
    return [(random.random((COUNT, 8, 8, 1)).astype(dtype), random.integers(0, CLASSES, COUNT)) for _ in range(count)]


def run(learner, given, step=None):
    state, rows = learner.init(jax.random.key(0)), []
    step = step or jax.jit(learner.step)
    for batch in given:
        state, metrics = step(state, batch)
        rows.append({name: float(number) for name, number in metrics.items()})
    return state, rows


def assert_equal(ours, wanted):
    jax.tree.map(np.testing.assert_array_equal, ours, wanted)


def without_classifier(state):
    params = {name: part for name, part in state.online.params.items() if name != "classifier"}
    return Variables(params, state.online.stats), state.target, state.opt_state["learner"]


OPTIMIZERS = [
    optax.adam(1e-2),
    optim.lars(0.2, weight_decay=1e-4),
    optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
    contrib.reduce_on_plateau(patience=1),
]


def check_untouched(optimizer, compare, *, count=3, steps=lambda learner: jax.jit(learner.step), dtype=np.float64):
    plain = small(optimizer=optimizer, dtype=dtype)
    probed, given = with_online_probe(plain, CLASSES), batches(count, dtype)
    state, rows = run(probed, given, steps(probed))
    wanted, wanted_rows = run(plain, [images for images, _ in given], steps(plain))
    jax.tree.map(compare, without_classifier(state), (wanted.online, wanted.target, wanted.opt_state))
    for name in ("loss", "feature_std", "decay", "nonfinite"):
        compare([row[name] for row in rows], [row[name] for row in wanted_rows])
    assert np.abs(state.online.params["classifier"]["kernel"]).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_nothing_else_changes(optimizer):
    """Also where the optimiser looks at the norm of all gradients together, or at the loss.

    Biases before a batch norm have a gradient of rounding alone, which Adam makes 2e-9 of; all else agreed to 1e-12.
    """
    with double_and_quickly_compiled():
        check_untouched(optimizer, partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-8))


@pytest.mark.long
def test_nothing_else_changes_by_a_bit_where_no_program_is_compiled():
    """Op by op; compiled, the two programs add up in other orders."""
    with jax.disable_jit():
        check_untouched(
            OPTIMIZERS[2], np.testing.assert_array_equal, count=2, steps=lambda learner: learner.step, dtype=np.float32
        )


@pytest.mark.slow
def test_the_classifier_is_softmax_regression_of_view_1():
    """By numpy and optax, on the features that the loss itself gives; in float64."""
    optimizer = optax.adam(1e-2)
    with double_and_quickly_compiled():
        plain = small(dtype=jnp.float64, optimizer=optimizer)
        learner, given = with_online_probe(plain, CLASSES), batches(dtype=np.float64)
        state = learner.init(jax.random.key(0))
        theirs = {name: np.asarray(part) for name, part in state.online.params["classifier"].items()}
        moments, step, loss = optimizer.init(theirs), jax.jit(learner.step), jax.jit(plain.loss)
        for images, labels in given:
            key = jax.random.fold_in(state.key, state.step)
            _, aux = loss(state.online.params, state, images, key)
            features = np.asarray(aux.outputs.features)[0::2]  # view 1's
            logits = features @ theirs["kernel"] + theirs["bias"]
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            odds /= odds.sum(axis=1, keepdims=True)
            error = (odds - np.eye(CLASSES)[labels]) / COUNT
            gradient = {"kernel": features.T @ error, "bias": error.sum(axis=0)}
            state, metrics = step(state, (images, labels))
            assert metrics["probe_loss"] == pytest.approx(-np.log(odds[np.arange(COUNT), labels]).mean(), rel=1e-6)
            assert metrics["probe_accuracy"] == pytest.approx(np.mean(logits.argmax(axis=1) == labels))
            with jax.numpy_dtype_promotion("standard"):
                updates, moments = optimizer.update(gradient, moments, theirs)
                theirs = {name: np.asarray(part) for name, part in optax.apply_updates(theirs, updates).items()}
            for name, ours in state.online.params["classifier"].items():
                np.testing.assert_allclose(ours, theirs[name], rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["jit", "shard_map", "pmap"])
def test_every_driver_trains_the_same(driver):
    """Over four devices, to rounding in float64; a batch of two arrays is spread as one is."""
    with double_and_quickly_compiled():
        options = {"dtype": jnp.float64}
        wanted, wanted_rows = run(with_online_probe(small(**options), CLASSES), batches(2, np.float64))
        axis = None if driver == "jit" else parallel.AXIS
        learner = with_online_probe(small(**options, axis_name=axis), CLASSES)
        mesh = parallel.make_mesh(jax.devices()[:4])
        state, rows = learner.init(jax.random.key(0)), []
        if driver == "pmap":
            step, state = parallel.pmap(learner, jax.devices()[:4]), parallel.stack(state, 4)
        else:
            step = parallel.jit(learner, mesh) if driver == "jit" else parallel.shard_map(learner, mesh)
            state = parallel.replicate(state, mesh)
        for batch in batches(2, np.float64):
            placed = parallel.split(batch, 4) if driver == "pmap" else parallel.shard(batch, mesh)
            state, metrics = step(state, placed)
            rows.append(parallel.unstack(metrics) if driver == "pmap" else metrics)
        state = parallel.unstack(state) if driver == "pmap" else state
        for ours, theirs in zip(jax.tree.leaves(state.online), jax.tree.leaves(wanted.online), strict=True):
            np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-7, atol=1e-9)
        for ours, theirs in zip(rows, wanted_rows, strict=True):
            for name in ("probe_loss", "probe_accuracy", "loss"):
                assert float(ours[name]) == pytest.approx(theirs[name], rel=1e-5)


@pytest.mark.slow
def test_it_is_cut_into_parts_and_saved_and_embeds(tmp_path):
    learner = accumulate(with_online_probe(small(), CLASSES), 2)
    state, rows = run(learner, [{"images": images, "labels": labels} for images, labels in batches(2)])
    assert all(0 <= row["probe_accuracy"] <= 1 and row["nonfinite"] == 0 for row in rows)
    checkpoint.save(tmp_path, state)
    restored = checkpoint.restore(tmp_path, like=learner.init(jax.random.key(1))).state
    assert_equal(restored.online, state.online)
    assert_equal(restored.opt_state, state.opt_state)
    assert learner.embed(state, batches(1)[0][0]).shape == (COUNT, learner.settings.feature_size)
    assert set(encoder_variables(state).params) == set(encoder_variables(learner.init(jax.random.key(0))).params)


@pytest.mark.slow
def test_it_is_evaluated_where_the_optimiser_says():
    """To rounding: two programs."""
    options = {"optimizer": contrib.schedule_free_sgd(0.1), "evaluation_params": contrib.schedule_free_eval_params}
    learner = with_online_probe(small(**options), CLASSES)
    state, _ = run(learner, batches(2))
    plain = small(**options)
    wanted, _ = run(plain, [images for images, _ in batches(2)])
    evaluated = learner.evaluation_state(state)
    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, encoder_variables(evaluated), encoder_variables(plain.evaluation_state(wanted)))
    assert evaluated.online.params["classifier"]["kernel"].shape == state.online.params["classifier"]["kernel"].shape


@pytest.mark.slow
@pytest.mark.parametrize("label", [-1, CLASSES, 1000])
def test_a_label_outside_the_classes_changes_nothing_and_is_counted(label):
    learner, ((images, labels),) = with_online_probe(small(), CLASSES), batches(1)
    state = learner.init(jax.random.key(0))
    after, metrics = jax.jit(learner.step)(state, (images, np.where(np.arange(COUNT) == 5, label, labels)))
    assert metrics["nonfinite"] == 1
    assert_equal((after.online, after.target, after.opt_state), (state.online, state.target, state.opt_state))


@pytest.mark.parametrize("classes", [1, 0, -3, 2.0, True, None])
def test_numbers_of_classes_that_are_none_are_refused(classes):
    with pytest.raises(ConfigurationError, match="num_classes"):
        with_online_probe(small(), classes)


def test_it_comes_before_accumulate():
    with pytest.raises(ConfigurationError, match="add the probe first"):
        with_online_probe(accumulate(small(), 2), CLASSES)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (np.zeros((4, 8, 8, 1), np.float32), "a batch that is a .*: expected"),
        ({"image": 1, "label": 2}, "a dict of image, label"),
        ((np.zeros((4, 8, 8, 1), np.float32), np.zeros(4, np.float32)), "dtype float32: expected"),
        ((np.zeros((4, 8, 8, 1), np.float32), np.zeros((4, 3), np.int32)), "expected .N. integers"),
        ((np.zeros((4, 8, 8, 1), np.float32), np.zeros(3, np.int32)), "for 4 images"),
    ],
)
def test_batches_that_are_none_are_refused_when_a_step_is_traced(batch, words):
    learner = with_online_probe(small(), CLASSES)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    with pytest.raises(ConfigurationError, match=words):
        jax.eval_shape(learner.step, state, batch)
