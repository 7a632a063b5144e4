"""A recipe survives the way to JSON and back; its optimiser does what it says, at the rate that its batch asks for."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byol_jax
from benchmarks.harness.flops import step_flops, taps_inside
from benchmarks.harness.workloads import RESNET_18, RESNET_50, WORKLOADS
from byol_jax import optim, presets, recipe, schedules
from byol_jax.recipe import DEFAULT

PRESETS = [one.preset for one in presets.known()]
BESIDE = ("name", "network", "network_options", "image_size", "batch_size", "steps", "epochs")
"""Of a recipe's values, those that config.json has beside "learner"."""
OTHERS = {
    "default": DEFAULT,
    "wide predictor": replace(DEFAULT, prediction_hidden_size=7),
    "own normalisation": replace(DEFAULT, normalize=((0.5,), (0.25,))),
    "no normalisation": replace(DEFAULT, normalize=None),
    "lars": replace(DEFAULT, optimizer="lars"),
    "lars as before": replace(DEFAULT, optimizer="lars", scale_learning_rate=False),
    "simsiam": replace(DEFAULT, use_momentum=False, views="separate", image_size=(8, 16), num_channels=1),
    "warm-up in steps": replace(DEFAULT, schedule="cosine", warmup_steps=3, steps=10),
}


def first_update(given, name="kernel"):
    """What the first step of a constant rate does to a kernel or a bias."""
    params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([2.0])}
    gradient = {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.5])}
    transformation = recipe.optimizer(given)
    with jax.numpy_dtype_promotion("standard"):
        return transformation.update(gradient, transformation.init(params), params)[0][name]


@pytest.mark.parametrize("given", [*PRESETS, *OTHERS.values()], ids=[*(one.name for one in PRESETS), *OTHERS])
def test_json_and_back_is_the_same_recipe(given):
    learner = json.loads(json.dumps(recipe.to_json(given)))
    beside = {name: getattr(given, name) for name in BESIDE}
    assert recipe.from_json(learner, **beside) == replace(
        given, scale_learning_rate=given.scale_learning_rate or given.optimizer != "lars"
    )


def test_every_preset_is_known_with_its_source_and_result():
    names = ["imagenet-40", "imagenet-100", "imagenet-300", "imagenet-1000", "small_batch", "imagenette", "small_grey"]
    assert [one.preset.name for one in presets.known()] == names
    assert all(one.source and one.result and one.machine for one in presets.known())


@pytest.mark.parametrize("one", presets.known(), ids=lambda one: one.preset.name)
def test_what_a_preset_costs_is_computed_from_its_shapes(one):
    """ResNets in closed form, to what padding of another kind changes; the small network as XLA counts."""
    resnets = {"resnet18": RESNET_18, "resnet50": RESNET_50}
    if one.preset.network in resnets:
        network, side = resnets[one.preset.network], one.preset.image_size
        workload = replace(WORKLOADS["resnet50"], network=network, image_size=side, batch_size=1)
        counted = step_flops(workload, taps_inside)
        if one.preset.network == "resnet18":  # shortcut="always": the first block of the first stage has one too
            counted += 2 * 4 * 2 * (side // 4) ** 2 * 64 * 64  # views, passes, multiply and add
    else:
        options = presets.learner_options(one.preset, batch_size=64, total_steps=100, steps_per_epoch=125)
        options |= {"augment_fn": lambda key, image: image, "augment_fn2": None}
        learner = byol_jax.make_learner(byol_jax.nets.small_cnn(), **options)
        state = jax.eval_shape(learner.init, jax.random.key(0))
        images = jax.ShapeDtypeStruct((64, 28, 28, 1), jnp.float32)
        counted = jax.jit(learner.step).lower(state, images).cost_analysis()["flops"] / 64
    assert one.operations == pytest.approx(counted, rel=0.001)
    steps = presets.total_steps(one.preset, num_images=one.images, batch_size=one.preset.batch_size)
    assert one.total_operations == pytest.approx(steps * one.preset.batch_size * counted, rel=0.001)


@pytest.mark.parametrize("given", PRESETS, ids=lambda one: one.name)
def test_a_preset_states_one_length_and_one_warm_up(given):
    assert (given.epochs is None) != (given.steps is None)
    assert [given.warmup_epochs, given.warmup_fraction, given.warmup_steps].count(None) == 2


@pytest.mark.parametrize("name", recipe.OPTIMIZERS)
def test_only_lars_takes_its_rate_from_the_batch(name):
    given = replace(DEFAULT, optimizer=name, base_learning_rate=0.25, weight_decay=0.0)
    at = {size: first_update(replace(given, batch_size=size), "bias") for size in (64, 256, 4096)}
    times = 16 if name == "lars" else 1
    np.testing.assert_array_equal(at[4096], times * at[256])
    np.testing.assert_array_equal(at[256], (4 if name == "lars" else 1) * at[64])


def test_the_rate_of_a_run_from_before_stays():
    """Its config.json doesn't speak of scaling."""
    learner = recipe.to_json(replace(DEFAULT, optimizer="lars"))
    assert learner.pop("scale_learning_rate") is True
    old = recipe.from_json(learner, image_size=8, batch_size=4096)
    np.testing.assert_array_equal(first_update(old), first_update(replace(DEFAULT, optimizer="lars")))


def test_the_papers_rate_is_sixteen_times_its_base_at_4096():
    given = recipe.size_for_run(
        presets.imagenet(100), total_steps=31_278, steps_per_epoch=1_281_167 / 4096, batch_size=4096
    )
    assert recipe.warmup_steps(given) == 3_127
    assert float(schedules.learning_rate(0.45, 4096, 3_127, 31_278)(3_127)) == np.float32(7.2)
    params = {"fc": {"bias": jnp.zeros(1)}}
    chain = recipe.optimizer(given)
    with jax.numpy_dtype_promotion("standard"):
        state = chain.init(params)
        at_peak = (*state[:-1], state[-1]._replace(count=jnp.asarray(3_127, jnp.int32)))
        update, _ = chain.update({"fc": {"bias": jnp.ones(1)}}, at_peak, params)
    np.testing.assert_allclose(update["fc"]["bias"], [-7.2], rtol=1e-6)


def test_a_run_shorter_than_its_warm_up_ends_within_it():
    short = replace(DEFAULT, optimizer="sgd", schedule="cosine", warmup_steps=16, steps=2, base_learning_rate=1.0)
    transformation, params = recipe.optimizer(short), {"bias": jnp.zeros(1)}
    with jax.numpy_dtype_promotion("standard"):
        state, seen = transformation.init(params), []
        for _ in range(2):
            update, state = transformation.update({"bias": jnp.ones(1)}, state, params)
            seen.append(float(update["bias"][0]))
    np.testing.assert_allclose(seen, [0.0, -1.9 / 16], rtol=1e-6)  # momentum 0.9
    with pytest.raises(recipe.ConfigurationError, match="warmup_steps=16: expected 0 to total_steps=2"):
        recipe.check_warmup(short)


def test_lars_is_optims():
    given = replace(DEFAULT, optimizer="lars", base_learning_rate=2.0, weight_decay=0.01)
    params, gradient = {"kernel": jnp.array([[3.0, 4.0]])}, {"kernel": jnp.array([[1.0, -1.0]])}
    ours, theirs = recipe.optimizer(given), optim.lars(2.0, weight_decay=0.01)
    got, want = (one.update(gradient, one.init(params), params)[0] for one in (ours, theirs))
    np.testing.assert_array_equal(got["kernel"], want["kernel"])


@pytest.mark.parametrize("wrong", [{"optimizer": "adm"}, {"schedule": "linear"}])
def test_a_name_that_isnt_known(wrong):
    with pytest.raises(recipe.ConfigurationError, match="is not one of"):
        recipe.optimizer(replace(DEFAULT, **wrong))


@pytest.mark.parametrize("warmup", [{"warmup_epochs": 10}, {"warmup_fraction": 0.1}, {"warmup_steps": 5}])
def test_a_warm_up_that_a_constant_schedule_would_not_have_is_refused(warmup):
    given = replace(DEFAULT, **({"warmup_steps": None} | warmup))
    with pytest.raises(recipe.ConfigurationError, match="a warm-up with schedule='constant'"):
        recipe.check_effect(given)


def test_a_weight_decay_that_adam_would_not_have_is_refused():
    with pytest.raises(recipe.ConfigurationError, match=r"weight_decay=0.1 with optimizer='adam'"):
        recipe.check_effect(replace(DEFAULT, weight_decay=0.1))
