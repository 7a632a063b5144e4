"""A learner is an object that explains itself, and a function from a learner to a learner makes it do more."""

import inspect
from dataclasses import FrozenInstanceError, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driver_runs import DRIVERS, STEPS, assert_replicated, batches, compiled, initial, light, on_host
from jax import lax

from byol_jax import ConfigurationError, Learner, Variables, make_learner, nets, parallel, pretrain
from byol_jax.optim import init_optimizer
from byol_jax.train import run as train_run
from byol_jax.tree import leaf_names

SIZES = {"image_size": 16, "projection_size": 8, "projection_hidden_size": 16}
METHODS = ("init", "step", "loss", "online_apply", "target_apply", "embed", "project")


def small(axis_name=None, **options) -> Learner:
    return make_learner(nets.small_cnn((4,)), axis_name=axis_name, **SIZES, **options)


def with_image_count(learner: Learner) -> Learner:
    """Counts the images that a run has seen: a leaf more in the state and in the metrics."""

    def init(key):
        state = learner.init(key)
        return state.replace(opt_state={"inner": state.opt_state, "images": jnp.zeros((), jnp.int32)})

    def step(state, images):
        count = lax.psum(len(images), learner.settings.axis_name) if learner.settings.axis_name else len(images)
        new, metrics = learner.step(state.replace(opt_state=state.opt_state["inner"]), images)
        seen = state.opt_state["images"] + count
        new = new.replace(opt_state={"inner": new.opt_state, "images": seen})
        return new, metrics | {"images": seen.astype(jnp.float32)}

    return learner.replace(init=init, step=step)


def with_probe(learner: Learner, classes: int) -> Learner:
    """A linear classifier on the features, without influence on them, trained by the same optimiser on labels."""

    def init(key):
        state, width = learner.init(key), learner.settings.feature_size
        dtype = learner.settings.storage_dtype
        probe = {"kernel": jnp.zeros((width, classes), dtype), "bias": jnp.zeros(classes, dtype)}
        params = state.online.params | {"probe": probe}
        opt_state = init_optimizer(learner.settings.optimizer, learner.settings.select_trained(params))
        return state.replace(online=Variables(params, state.online.stats), opt_state=opt_state)

    def loss(params, state, batch, key):
        images, labels = batch
        value, aux = learner.loss(params, state, images, key)
        scores = lax.stop_gradient(aux.outputs.features) @ params["probe"]["kernel"] + params["probe"]["bias"]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), jnp.repeat(labels, 2)[:, None], axis=1)
        return value - chosen.mean(), aux._replace(metrics=aux.metrics | {"probe_loss": -chosen.mean()})

    return learner.replace(init=init, loss=loss)


def assert_alike(ours, wanted):
    """To rounding: two programs needn't add in the same order."""
    assert leaf_names(ours) == leaf_names(wanted)
    for name, left, right in zip(leaf_names(wanted), jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_takes_and_gives(name):
    method = inspect.getattr_static(Learner, name)
    assert inspect.isfunction(method), "an editor finds it"
    told = inspect.getdoc(method)
    assert told is not None
    assert any(word in told for word in ("[N, ", "TrainState", "online_apply", "embed"))
    parameters = list(inspect.signature(method).parameters.values())[1:]
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in parameters)
    assert inspect.signature(method).return_annotation is not inspect.Signature.empty


def test_a_wrapped_learner_has_the_same_documentation():
    learner, more = small(), with_image_count(small())
    for name in METHODS:
        assert inspect.getdoc(getattr(learner, name)) == inspect.getdoc(getattr(more, name))
        assert inspect.signature(getattr(learner, name)) == inspect.signature(getattr(more, name))


@pytest.mark.slow
def test_a_learner_is_frozen_and_hashable():
    learner = small(normalize=((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)))
    with pytest.raises(FrozenInstanceError):
        learner.settings = None  # pyright: ignore[reportAttributeAccessIssue]
    assert learner.step == learner.step
    assert hash(learner.step) == hash(learner.step)
    assert learner != small()
    assert {learner: 1}[learner] == 1
    other = Learner(replace(learner.settings, mean_std=None))
    images = np.zeros((2, 16, 16, 3), np.uint8)
    state = jax.jit(learner.init)(jax.random.key(0))
    assert (learner.embed(state, images) != other.embed(state, images)).any()


@pytest.mark.slow
def test_methods_are_pure_functions_under_grad_and_vmap():
    learner = small(augment_fn=light)
    states = jax.jit(jax.vmap(learner.init))(jax.random.split(jax.random.key(0)))
    images = batches(1)[0][:4]

    def gradient(state):
        return jax.grad(lambda params: learner.loss(params, state, images, jax.random.key(1))[0])(state.online.params)

    both = jax.jit(jax.vmap(gradient))(states)
    one = jax.jit(gradient)(jax.tree.map(lambda leaf: leaf[0], states))
    for left, right in zip(jax.tree.leaves(both), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(left[0], right, rtol=1e-4, atol=1e-5)  # of rounding alone: biases before a norm
    embedded = jax.jit(jax.vmap(learner.embed, (0, None)))(states, images)
    assert embedded.shape == (2, 4, learner.settings.feature_size)


@pytest.mark.slow
@jax.enable_x64(True)
def test_a_wrapped_learner_does_more_and_trains_alike():
    learner = small(augment_fn=light, dtype=jnp.float64)
    more = with_image_count(learner)
    state, wrapped = initial(learner), initial(more)
    step, wider = jax.jit(learner.step, donate_argnums=0), jax.jit(more.step, donate_argnums=0)
    for number, batch in enumerate(batches(), start=1):
        state, metrics = step(state, batch)
        wrapped, told = wider(wrapped, batch)
        assert told["images"] == number * len(batch)
        assert_alike({name: told[name] for name in metrics}, metrics)
    inner = wrapped.replace(opt_state=wrapped.opt_state["inner"])
    assert_alike(on_host(inner), on_host(state))
    assert_alike(jax.jit(more.embed)(wrapped, batch), jax.jit(learner.embed)(state, batch))


@pytest.mark.slow
@pytest.mark.parametrize(
    "driver", [driver if driver == "shard_map" else pytest.param(driver, marks=pytest.mark.slow) for driver in DRIVERS]
)
def test_a_wrapped_learner_runs_under_every_driver(driver):
    mesh = parallel.make_mesh(jax.devices()[:2])
    more = with_image_count(small(None if driver == "jit" else parallel.AXIS, augment_fn=light))
    state = initial(more)
    if driver == "pmap":
        step, place = parallel.pmap(more, jax.devices()[:2]), lambda batch: parallel.split(batch, 2)
        state = parallel.stack(state, 2)
    else:
        step, place = compiled(driver, more, mesh), lambda batch: parallel.shard(batch, mesh)
        state = parallel.replicate(state, mesh)
    for batch in batches():
        state, metrics = step(state, place(batch))
    assert int(assert_replicated(driver, 2, state).opt_state["images"]) == STEPS * len(batch)
    assert assert_replicated(driver, 2, metrics)["images"] == STEPS * len(batch)


@pytest.mark.slow
def test_pretrain_takes_a_wrapped_learner(tmp_path, monkeypatch):
    """Checkpoints, resume and the rows of metrics.jsonl take what it adds."""
    monkeypatch.setattr(
        train_run, "make_learner", lambda *given, **options: with_image_count(make_learner(*given, **options))
    )
    images = batches(1)[0]
    run = partial(pretrain, nets.small_cnn((4,)), images, out=tmp_path / "run", batch_size=8, augment_fn=light,
                  checkpoint_every=1, log_every=1, progress=False, **SIZES)  # fmt: skip
    assert int(run(steps=2).opt_state["images"]) == 16
    assert int(run(steps=3, resume=True).opt_state["images"]) == 24
    assert '"images": 24.0' in (tmp_path / "run/metrics.jsonl").read_text()


@pytest.mark.slow
def test_what_a_loss_adds_is_trained_by_the_learners_own_step():
    """In float64: two programs round otherwise, and in float32 Adam makes 6e-4 of that in three steps."""
    with jax.enable_x64(True):
        learner = small(augment_fn=light, moving_average_decay=0.5, dtype=jnp.float64)
        probed = with_probe(learner, 3)
        state, wider = initial(learner), initial(probed)
        step, both = jax.jit(learner.step), jax.jit(probed.step)
        labels = np.arange(16) % 3
        for batch in batches():
            state, _ = step(state, batch)
            wider, metrics = both(wider, (batch, labels))
        assert float(metrics["probe_loss"]) < np.log(3)
        assert set(wider.target.params) == {"encoder", "projector"}
        probe = wider.online.params.pop("probe")
        assert np.abs(probe["kernel"]).max() > 0
        for left, right in zip(jax.tree.leaves(wider.online), jax.tree.leaves(state.online), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-10)


def test_functions_given_before_stay():
    learner = small()

    def one(key):
        return learner.init(key)

    def two(state, images):
        return learner.step(state, images)

    both = learner.replace(init=one).replace(step=two)
    assert both.replacements == (one, two, None)
    assert both.settings is learner.settings


@pytest.mark.parametrize("key", [0, None, "0", np.zeros(2)])
def test_init_without_a_key_says_what_a_key_is(key):
    learner = make_learner(nets.small_cnn((4,)), **SIZES)
    with pytest.raises(ConfigurationError, match=r"is no key: give jax.random.key\(seed\)"):
        learner.init(key)
