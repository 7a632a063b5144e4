"""The presets are the published numbers, and their optimisers do what those numbers say."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import ConfigurationError, make_learner, nets, optim, presets, schedules

# epochs: (base rate, weight decay, base decay, steps at batch 4096), as in DeepMind's configuration
IMAGENET = {
    40: (0.45, 1e-6, 0.97, 12_511),
    100: (0.45, 1e-6, 0.99, 31_278),
    300: (0.3, 1e-6, 0.99, 93_835),
    1000: (0.2, 1.5e-6, 0.996, 312_784),
}
IMAGES = 1_281_167


def params(seed=0):
    kernel, bias = jax.random.normal(jax.random.key(seed), (3, 4)), jnp.array([0.5, -1.0, 2.0, 0.0])
    return {"fc": {"kernel": kernel, "bias": bias}, "unused": {"kernel": None}}


def run(transformation, steps):
    """Parameters after some steps with gradients that depend on the step."""
    current = params()
    update = jax.jit(transformation.update)
    with jax.numpy_dtype_promotion("standard"):
        state = transformation.init(current)
        for step in range(steps):
            updates, state = update(params(step + 1), state, current)
            current = optax.apply_updates(current, updates)
    return current


@pytest.mark.parametrize("epochs", IMAGENET)
def test_imagenet_has_the_published_numbers(epochs):
    preset = presets.imagenet(epochs)
    steps = presets.total_steps(preset, num_images=IMAGES, batch_size=4096)
    assert (preset.base_learning_rate, preset.weight_decay, preset.base_decay, steps) == IMAGENET[epochs]
    assert (preset.epochs, preset.batch_size, preset.warmup_epochs) == (epochs, 4096, 10)
    assert (preset.projection_hidden_size, preset.projection_size) == (4096, 256)


def test_the_other_presets_have_their_own():
    small, imagenette, grey = presets.small_batch(), presets.imagenette(), presets.small_grey()
    assert dataclasses.astuple(small)[2:6] == (0.4, 1.5e-6, 0.9995, 512)
    assert small.epochs == 1000
    assert dataclasses.astuple(imagenette)[2:6] == (2.0, 1e-6, 0.996, 256)
    assert (imagenette.network, imagenette.image_size) == ("resnet18", 128)
    assert presets.total_steps(imagenette, num_images=9_469, batch_size=256) == 36_988
    assert dataclasses.astuple(grey)[2:6] == (4e-3, 1e-5, 0.98, 64)
    assert presets.total_steps(grey, num_images=60_000, batch_size=64) == 16_700


@pytest.mark.parametrize("epochs", [0, 200, "300", None])
def test_another_number_of_epochs_names_those_that_exist(epochs):
    with pytest.raises(ConfigurationError, match="40, 100, 300, 1000"):
        presets.imagenet(epochs)


def test_imagenet_optimizer_is_lars_on_the_published_schedule():
    preset = presets.imagenet(1000)
    steps_per_epoch = 3 + 1 / 3  # 10 warm-up epochs are 33 whole steps
    given = presets.optimizer(preset, batch_size=512, total_steps=60, steps_per_epoch=steps_per_epoch)
    rate = schedules.learning_rate(0.2, 512, 33, 60)
    expected = run(optim.lars(rate, weight_decay=1.5e-6), 36)
    np.testing.assert_array_equal(run(given, 36)["fc"]["kernel"], expected["fc"]["kernel"])
    assert run(given, 1)["fc"]["bias"].tolist() == params()["fc"]["bias"].tolist()  # the first rate is 0


def test_small_grey_optimizer_is_adam_with_decay_on_kernels_only():
    given = presets.optimizer(presets.small_grey(), batch_size=64, total_steps=100, steps_per_epoch=10)
    rates = [float(schedules.learning_rate(4e-3, 256, 5, 100)(step)) for step in range(8)]
    actual, expected = run(given, 8), params()["fc"]
    for name, decay in (("kernel", 1e-5), ("bias", 0.0)):
        value, first, second = np.array(expected[name], np.float64), 0.0, 0.0
        for step, rate in enumerate(rates, start=1):
            gradient = np.array(params(step)["fc"][name], np.float64)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            adam = first / (1 - 0.9**step) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
            value = value - rate * (adam + decay * value)
        np.testing.assert_allclose(actual["fc"][name], value, rtol=2e-6)
    assert actual["unused"] == {"kernel": None}


def test_the_decay_goes_from_the_base_to_one():
    schedule = presets.decay(presets.small_grey(), 16_700)
    assert callable(schedule)
    np.testing.assert_allclose([schedule(0), schedule(8_350), schedule(16_700)], [0.98, 0.99, 1.0], atol=1e-7)
    assert presets.decay(dataclasses.replace(presets.small_grey(), schedule="constant"), 16_700) == 0.98


def test_a_run_shorter_than_its_warmup_is_refused():
    with pytest.raises(ConfigurationError, match="warmup_steps=3127: expected 0 to total_steps=1000"):
        presets.optimizer(presets.imagenet(40), batch_size=4096, total_steps=1000, steps_per_epoch=IMAGES / 4096)


def test_the_page_has_every_preset_with_what_it_costs_and_gives():
    page = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text()
    for one in presets.known():
        [row] = [line for line in page.splitlines() if line.startswith(f"| {one.preset.name} |")]
        _, _, total, result, machine = (cell.strip() for cell in row.strip("|").split("|"))
        assert (total, result, machine) == (f"{one.total_operations / 1e18:.3g}", one.result, one.machine)


def test_presets_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        presets.small_grey().batch_size = 1


@pytest.mark.parametrize(
    ("preset", "encoder"),
    [
        (presets.small_grey(), lambda: nets.small_cnn()),
        pytest.param(presets.imagenette(), lambda: nets.resnet18(), marks=pytest.mark.slow),
    ],
    ids=["small_grey", "imagenette"],
)
def test_learner_options_make_a_learner_of_the_recipe(preset, encoder):
    options = presets.learner_options(preset, batch_size=4, total_steps=100, steps_per_epoch=2)
    learner = make_learner(encoder(), **options)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((4, preset.image_size, preset.image_size, preset.num_channels), jnp.uint8)
    after, metrics = jax.eval_shape(learner.step, state, images)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert state.online.params["projector"]["0"]["kernel"].shape[1] == preset.projection_hidden_size
    assert metrics["decay"].shape == ()
