"""From options to a recipe: what is given wins, what follows from it goes along, and all else is the default's.

What a recipe is and does: tests/laws/test_recipes.py. What the presets give on the command line: test_preset_runs.py.
"""

import argparse
import re
from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import ConfigurationError, make_learner, nets, presets, recipe
from byol_jax.cli.commands.import_ import _size_by_weights
from byol_jax.cli.common import add_channels, add_network
from byol_jax.cli.parsing import Parser
from byol_jax.cli.recipe_options import add_preset, add_recipe, check_recipe, recipe_from
from byol_jax.runs.network import NETWORKS, encoder_from, network_from


def _recipe(*words):
    parser = Parser("byol-jax try", "", "Tries.")
    for name in ("--steps", "--epochs", "--batch-size", "--image-size"):
        parser.add_argument(name, type=int)
    add_network(parser)
    add_channels(parser)
    add_preset(parser)
    add_recipe(parser)
    options = parser.read(words)
    filled = recipe_from(options)
    assert check_recipe(options, filled) == []
    return filled


def _first_update(given):
    optimizer = recipe.optimizer(replace(given, steps=10))
    params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([2.0])}
    gradient = {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.5])}
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.update(gradient, optimizer.init(params), params)[0]


def test_nothing_given_is_the_default():
    assert _recipe() == recipe.DEFAULT


def test_defaults_are_make_learners():
    arguments, defaults = recipe.learner_arguments(replace(_recipe(), steps=10)), make_learner.__kwdefaults__
    for name in ("hidden_layer", "projection_size", "projection_hidden_size", "moving_average_decay", "use_momentum"):
        assert arguments[name] == defaults[name]
    assert arguments["views"] == defaults["views"]
    params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([2.0])}
    gradient = {"kernel": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.5])}
    with jax.numpy_dtype_promotion("standard"):
        theirs = defaults["optimizer"].update(gradient, defaults["optimizer"].init(params), params)[0]
    for leaf in jax.tree.leaves(jax.tree.map(jnp.subtract, _first_update(_recipe()), theirs)):
        assert not leaf.any()


def test_an_optimiser_has_its_own_rate_and_decay():
    filled = _recipe("--optimizer", "lars")
    assert (filled.base_learning_rate, filled.weight_decay) == (0.2, 1.5e-6)
    filled = _recipe("--optimizer", "adamw", "--learning-rate", "1")
    assert (filled.base_learning_rate, filled.weight_decay) == (1.0, 1e-4)


GIVEN = {
    "length": (["--steps", "7"], {"steps": 7, "epochs": None}),
    "epochs": (["--epochs", "3"], {"epochs": 3, "steps": None}),
    "batch": (["--batch-size", "8"], {"batch_size": 8}),
    "size": (["--image-size", "32"], {"image_size": 32}),
    "network": (
        ["--network", "vit_s16"],
        {"network": "vit_s16", "network_options": {}, "hidden_layer": -2},
    ),
    "network and layer": (
        ["--network", "resnet34", "--hidden-layer", "layer4"],
        {"network": "resnet34", "network_options": {}, "hidden_layer": "layer4"},
    ),
    "layer": (["--hidden-layer", "layer3"], {"hidden_layer": "layer3"}),
    "heads": (
        ["--projection-size", "5", "--projection-hidden-size", "6", "--prediction-hidden-size", "7"],
        {"projection_size": 5, "projection_hidden_size": 6, "prediction_hidden_size": 7},
    ),
    "grey images": (["--channels", "1"], {"num_channels": 1, "normalize": "auto"}),
    "augmentation": (["--augment", "none"], {"augmentation": "none"}),
    "views": (["--views", "concatenated"], {"views": "concatenated"}),
    "decay": (["--moving-average-decay", "0.5"], {"base_decay": 0.5}),
    "no momentum": (["--no-momentum"], {"use_momentum": False}),
    "rate": (["--learning-rate", "0.5"], {"base_learning_rate": 0.5}),
    "weight decay": (["--weight-decay", "0"], {"weight_decay": 0.0}),
    "optimiser": (
        ["--optimizer", "sgd"],
        {"optimizer": "sgd", "base_learning_rate": 0.03, "weight_decay": 0.0},
    ),
    "warm-up": (["--warmup-steps", "5"], {"warmup_steps": 5, "warmup_epochs": None}),
    "no warm-up": (["--warmup-steps", "0"], {"warmup_steps": 0, "warmup_epochs": None}),
    "schedule": (
        ["--schedule", "constant"],
        {"schedule": "constant", "warmup_steps": 0, "warmup_epochs": None},
    ),
    "torchvision's weights": (
        ["--network", "torchvision:resnet50", "--weights", "DEFAULT"],
        {"network": "torchvision:resnet50", "network_options": {}, "hidden_layer": -2, "normalize": "auto"},
    ),
}


@pytest.mark.parametrize("case", GIVEN)
def test_what_is_given_beside_a_preset_wins(case):
    words, changes = GIVEN[case]
    assert _recipe("--preset", "imagenette", *words) == replace(presets.imagenette(), **changes)


@pytest.mark.parametrize("one", presets.known(), ids=lambda one: one.preset.name)
def test_a_preset_alone_is_that_preset(one):
    assert _recipe("--preset", one.preset.name) == one.preset


def test_the_same_word_given_again_changes_nothing():
    words = ["--network", "resnet18", "--optimizer", "lars", "--channels", "3", "--schedule", "cosine"]
    assert _recipe("--preset", "imagenette", *words) == presets.imagenette()


def test_sgd_by_hand():
    update = _first_update(_recipe("--optimizer", "sgd", "--learning-rate", "0.1", "--weight-decay", "0.5"))
    np.testing.assert_allclose(update["kernel"], [[-0.1 * (1 + 1.5), -0.1 * (-1 + 2)]], rtol=1e-6)
    np.testing.assert_allclose(update["bias"], [-0.05], rtol=1e-6)  # no decay


@pytest.mark.parametrize(("batch", "times"), [("256", 1), ("4096", 16), ("64", 0.25)])
def test_lars_by_hand(batch, times):
    words = ["--optimizer", "lars", "--learning-rate", "2", "--weight-decay", "0", "--batch-size", batch]
    update = _first_update(_recipe(*words))
    factor = times * 2 * 1e-3 * 5 / np.sqrt(2)
    np.testing.assert_allclose(update["kernel"], [[-factor, factor]], rtol=1e-5)
    np.testing.assert_allclose(update["bias"], [-times * 1.0], rtol=1e-6)


def test_the_first_step_of_a_warm_up_moves_nothing():
    update = _first_update(_recipe("--schedule", "cosine", "--warmup-steps", "2"))
    assert not any(leaf.any() for leaf in jax.tree.leaves(update))


def test_cosine_moves_the_decay_to_one():
    given = replace(_recipe("--schedule", "cosine", "--moving-average-decay", "0.9"), steps=10)
    decay = recipe.learner_arguments(given)["moving_average_decay"]
    np.testing.assert_allclose([decay(0), decay(5), decay(10)], [0.9, 0.95, 1.0], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("name", ["adam", "adamw", "lars", "sgd"])
def test_the_optimisers_state_does_not_depend_on_the_length(name, schedule):
    """A longer run must fit a shorter one's checkpoint."""
    given = _recipe("--optimizer", name, "--schedule", schedule)
    params = {"kernel": jnp.ones((2, 2)), "unused": None}
    states = [recipe.optimizer(replace(given, steps=steps)).init(params) for steps in (10, 1000)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("augment", "channels"), [*product(("simclr", "byol", "none"), (1, 3)), ("small_grey", 1), ("multichannel", 5)]
)
def test_every_recipe_makes_a_learner(augment, channels):
    words = ["--augment", augment, "--projection-size", "8", "--projection-hidden-size", "8", "--channels", channels]
    given = replace(_recipe(*map(str, words)), image_size=(16, 12), steps=10)
    learner = make_learner(nets.small_cnn(), **recipe.learner_arguments(given))
    state = jax.eval_shape(learner.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((4, 20, 20, channels), jnp.uint8)
    _, metrics = jax.eval_shape(learner.step, state, images)
    assert metrics["loss"].shape == ()


def test_without_augmentation_a_view_is_the_image():
    view, _ = recipe.augmentations("none", 8)
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


@pytest.mark.parametrize(
    "names", [("encoder.pos_embedding", "conv_proj.weight"), ("pos_embed", "patch_embed.proj.weight")]
)
def test_the_images_are_as_large_as_those_that_the_weights_are_for(names):
    positions, patches = names
    for tokens, size in ((197, 224), (577, 384), (198, None)):
        network = {positions: np.zeros((1, tokens, 384)), patches: np.zeros((384, 3, 16, 16))}
        assert _size_by_weights("vit_s16", network) == size


def test_a_network_that_isnt_known():
    with pytest.raises(ConfigurationError, match="resnet18 is the nearest"):
        encoder_from({"name": "resnet81"})


def test_a_network_has_the_arguments_that_its_description_has():
    description = network_from("resnet18", 3) | {"padding": "same", "shortcut": "always"}
    layers = encoder_from(description).hidden_layers()
    assert "layer1.0.downsample.0" in layers
    assert "layer1.0.downsample.0" not in encoder_from(network_from("resnet18", 3)).hidden_layers()


def test_learning_rates_are_in_the_help():
    parser = argparse.ArgumentParser()
    add_recipe(parser)
    assert "adam 0.0003" in " ".join(parser.format_help().split())
    assert isinstance(recipe.optimizer(_recipe()), optax.GradientTransformation)
