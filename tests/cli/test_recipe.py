"""From options to a learner: what is written to config.json is enough to build the same learner again."""

import argparse
import json
import re
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import make_learner, nets
from byol_jax.cli import recipe as recipes
from byol_jax.cli.networks import NETWORKS, encoder_from, network_from
from byol_jax.cli.parsing import Parser
from byol_jax.errors import ConfigurationError


def _recipe(*words, channels=3):
    parser = Parser("byol-jax try", "", "Tries.")
    parser.add_argument("--steps", type=int, default=10)
    recipes.add_recipe(parser)
    options = parser.read(words)
    assert recipes.check_recipe(options) == []
    return recipes.recipe_from(options, channels)


def _first_update(recipe, total_steps=10):
    optimizer = recipes.optimizer_from(recipe, total_steps)
    params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([2.0])}
    gradient = {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.5])}
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.update(gradient, optimizer.init(params), params)[0]


def test_a_recipe_is_json():
    recipe = _recipe("--optimizer", "lars", "--hidden-layer", "avgpool")
    assert json.loads(json.dumps(recipe)) == recipe


def test_defaults_are_make_learners():
    recipe = _recipe()
    defaults = make_learner.__kwdefaults__
    for name in ("hidden_layer", "projection_size", "projection_hidden_size", "moving_average_decay", "use_momentum"):
        assert recipe[name] == defaults[name]
    for leaf in jax.tree.leaves(jax.tree.map(jnp.subtract, _first_update(recipe), _update_of(defaults["optimizer"]))):
        assert not leaf.any()


def _update_of(optimizer):
    params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([2.0])}
    gradient = {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.5])}
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.update(gradient, optimizer.init(params), params)[0]


def test_sgd_by_hand():
    update = _first_update(_recipe("--optimizer", "sgd", "--learning-rate", "0.1", "--weight-decay", "0.5"))
    np.testing.assert_allclose(update["kernel"], [[-0.1 * (1 + 1.5), -0.1 * (-1 + 2)]], rtol=1e-6)
    np.testing.assert_allclose(update["bias"], [-0.05], rtol=1e-6)  # no decay


def test_lars_by_hand():
    update = _first_update(_recipe("--optimizer", "lars", "--learning-rate", "2", "--weight-decay", "0"))
    factor = 2 * 1e-3 * 5 / np.sqrt(2)
    np.testing.assert_allclose(update["kernel"], [[-factor, factor]], rtol=1e-5)
    np.testing.assert_allclose(update["bias"], [-1.0], rtol=1e-6)


def test_the_first_step_of_a_warm_up_moves_nothing():
    update = _first_update(_recipe("--schedule", "cosine", "--warmup-steps", "2"))
    assert not any(leaf.any() for leaf in jax.tree.leaves(update))


def test_cosine_moves_the_decay_to_one():
    recipe = _recipe("--schedule", "cosine", "--moving-average-decay", "0.9")
    decay = recipes.learner_arguments(recipe, image_size=16, total_steps=10)["moving_average_decay"]
    np.testing.assert_allclose([decay(0), decay(5), decay(10)], [0.9, 0.95, 1.0], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("name", ["adam", "adamw", "lars", "sgd"])
def test_the_optimisers_state_does_not_depend_on_the_length(name, schedule):
    """A longer run must fit a shorter one's checkpoint."""
    recipe = _recipe("--optimizer", name, "--schedule", schedule)
    params = {"kernel": jnp.ones((2, 2)), "unused": None}
    states = [recipes.optimizer_from(recipe, steps).init(params) for steps in (10, 1000)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize(("augment", "channels"), [*product(("simclr", "byol", "none"), (1, 3)), ("small_grey", 1)])
def test_every_recipe_makes_a_learner(augment, channels):
    recipe = _recipe("--augment", augment, "--projection-size", "8", "--projection-hidden-size", "8", channels=channels)
    arguments = recipes.learner_arguments(recipe, image_size=(16, 12), total_steps=10)
    learner = make_learner(nets.small_cnn(), image_size=(16, 12), **arguments)
    state = jax.eval_shape(learner.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((4, 20, 20, channels), jnp.uint8)
    _, metrics = jax.eval_shape(learner.step, state, images)
    assert metrics["loss"].shape == ()


def test_without_augmentation_a_view_is_the_image():
    view, _, _ = recipes.augmentations("none", 8, 3)
    image = jax.random.uniform(jax.random.key(0), (8, 8, 3))
    np.testing.assert_allclose(view(jax.random.key(1), image), image, atol=1e-6)


@pytest.mark.parametrize("name", ["resnet18", "resnet50-cifar", "small_cnn"])
def test_a_network_is_what_its_name_says(name):
    encoder = encoder_from(network_from(name, 3))
    variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), (32, 32, 3)))
    first, last = ("0", "10") if name == "small_cnn" else ("conv1", "fc")
    kernels = {"resnet18": (7, 7, 3, 64), "resnet50-cifar": (3, 3, 3, 64), "small_cnn": (4, 4, 3, 32)}
    assert variables.params[first]["kernel"].shape == kernels[name]
    assert variables.params[last]["bias"].shape == ((10,) if name == "small_cnn" else (1000,))


def test_every_name_makes_its_network():
    blocks = {"18": 2, "34": 6, "50": 6, "101": 23, "152": 36, "200": 36}
    for name in NETWORKS[:-1]:
        layers = encoder_from(network_from(name, 3)).hidden_layers()
        third = {layer.split(".")[1] for layer in layers if layer.startswith("layer3.")}
        depth = re.search(r"resne(?:t|xt)(\d+)", name)
        assert len(third) == (blocks[depth[1]] if depth else 0)
        assert ("encoder.layers.encoder_layer_11" in layers) == name.startswith("vit_")


def test_the_classifier_is_as_wide_as_that_of_the_weights():
    assert network_from("resnet18", 3, {"fc.weight": np.zeros((7, 512))})["num_classes"] == 7
    assert network_from("vit_s16", 3, {"head.weight": np.zeros((7, 384))})["num_classes"] == 7
    assert network_from("resnet18", 3, {"conv1.weight": np.zeros((64, 3, 7, 7))})["num_classes"] is None


def test_a_network_that_isnt_known():
    with pytest.raises(ConfigurationError, match="resnet18 is the nearest"):
        encoder_from({"name": "resnet81"})


def test_learning_rates_are_in_the_help():
    parser = argparse.ArgumentParser()
    recipes.add_recipe(parser)
    assert "adam 0.0003" in " ".join(parser.format_help().split())
    assert isinstance(recipes.optimizer_from(_recipe(), 10), optax.GradientTransformation)
