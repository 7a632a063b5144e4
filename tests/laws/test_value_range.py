"""Which numbers of raw images become 0 and 1: the formula against NumPy, in a step, an embedding and a fine-tuning."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import byol_jax
from byol_jax import ConfigurationError, DataError, recipe
from byol_jax.data.ranges import to_unit
from byol_jax.views import network_input, two_views, unit_range

SIZES = {"image_size": 8, "projection_size": 4, "projection_hidden_size": 4}


def same(key, image):
    """A view that compiles in no time."""
    return image


def learner_of(num_channels=1, **options):
    return byol_jax.make_learner(byol_jax.nets.small_cnn((4,)), num_channels=num_channels, **SIZES, **options)


def numbers(dtype, shape=(4, 8, 8, 1)):
    generator = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return generator.normal(300, 900, shape).astype(dtype)
    return generator.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
@pytest.mark.parametrize("value_range", [(10, 2000), (-3.5, 200), ((0, 5, 10), (100, 250, 4000)), (0, (50, 60, 70))])
def test_numbers_become_0_to_1_linearly_and_are_clipped(dtype, value_range):
    images = numbers(dtype, (4, 8, 8, 3))
    learner = learner_of(3, value_range=value_range, normalize=None)
    low, high = (np.asarray(part, np.float64) for part in value_range)
    expected = np.clip((images.astype(np.float64) - low) / (high - low), 0, 1)
    for found in (network_input(learner.settings, images), to_unit(images, value_range)):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7)
    assert np.mean((expected > 0) & (expected < 1)) > 0, "some are inside"


def test_without_a_range_the_dtype_gives_it_and_floats_stay():
    s = learner_of().settings
    for dtype, highest in (("uint8", 255), ("uint16", 65535)):
        images = numbers(dtype)
        np.testing.assert_allclose(unit_range(s, images), images / highest, rtol=2e-7, atol=0)
        np.testing.assert_array_equal(to_unit(images), images.astype(np.float32) / np.float32(highest))
    images = numbers("float32")
    np.testing.assert_array_equal(unit_range(s, images), images)


def test_without_a_range_the_program_is_the_plain_division():
    """Operation for operation, so that a step on 8 bits computes what it did before there were ranges."""
    s, images = learner_of().settings, numbers("uint8")
    plain = jax.make_jaxpr(lambda x: jnp.asarray(x).astype(jnp.float32) / 255)(images)
    assert str(jax.make_jaxpr(lambda x: unit_range(s, x))(images)) == str(plain)
    ranged = learner_of(value_range=(0, 255)).settings
    assert str(jax.make_jaxpr(lambda x: unit_range(ranged, x))(images)) != str(plain)


@pytest.mark.slow
def test_step_embedding_and_projection_take_one_range():
    """Sixteen bits with a range are the floats that the formula makes of them, everywhere."""
    images = numbers("uint16") // 32
    ranged, plain = learner_of(value_range=(100, 1900), augment_fn=same), learner_of(augment_fn=same)
    floats = to_unit(images, (100, 1900))
    state = plain.init(jax.random.key(0))
    for name in ("embed", "project"):
        found, expected = getattr(ranged, name)(state, images), getattr(plain, name)(state, floats)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    keys = jax.random.key(1)
    for found, expected in zip(
        two_views(ranged.settings, images, keys), two_views(plain.settings, floats, keys), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.slow  # two fine-tunings are compiled
def test_fine_tuning_applies_the_range_once():
    """Applied to what is in [0, 1] already, it would leave nothing."""
    labels = np.repeat([0, 1], 8)
    images = np.random.default_rng(0).integers(0, 900, (16, 8, 8, 1)).astype(np.uint16)
    images[8:] += np.uint16(900)
    ranged, plain = learner_of(value_range=(0, 1800)), learner_of()
    state = plain.init(jax.random.key(0))
    options = {"learning_rates": [0.1], "epochs": 2}
    found = byol_jax.evaluate.finetune(ranged, state, images, labels, images, labels, **options)
    floats = to_unit(images, (0, 1800))
    expected = byol_jax.evaluate.finetune(plain, state, floats, labels, floats, labels, **options)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    ["auto", 3, (1,), (5, 5), (9, 1), (0, float("nan")), (0, float("inf")), (1, 1 + 1e-9), ((0, 0), (1, 1)), (None, 1)],
    ids=str,
)
def test_ranges_that_are_none_are_refused_in_one_line(wrong):
    with pytest.raises(ConfigurationError, match="value_range=") as caught:
        learner_of(3, value_range=wrong)
    assert "expected None or finite (low, high) with low < high, each one number or 3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_whole_numbers_are_refused():
    learner = learner_of(value_range=(0, 9))
    for dtype in (jnp.int32, jnp.int16, jnp.uint32, bool):
        with pytest.raises(ConfigurationError, match="expected uint8, uint16, or floating"):
            learner.embed(jax.eval_shape(learner.init, jax.random.key(0)), np.zeros((2, 8, 8, 1), dtype))


def test_a_recipe_keeps_numbers_and_leaves_rules_to_the_run():
    base = {"name": "default", "network": "resnet18", "image_size": 224, "batch_size": 256}
    for numbers_ in (None, ((0.0,), (4095.0,)), ((1.0, 2.0, 3.0), (7.0, 8.0, 9.0))):
        kept = replace(recipe.DEFAULT, value_range=numbers_)
        text = json.loads(json.dumps(recipe.to_json(kept)))
        assert recipe.from_json(text, **base) == kept
        assert ("value_range" in text) == (numbers_ is not None)
        assert recipe.learner_arguments(kept)["value_range"] == numbers_
    rule = replace(recipe.DEFAULT, value_range="auto")
    assert "value_range" not in recipe.to_json(rule)
    assert recipe.learner_arguments(rule)["value_range"] is None


RUN = SIZES | {"num_channels": 1, "progress": False, "augment_fn": same}


def run(out, data, **options):
    encoder = byol_jax.nets.small_cnn((4,))
    return byol_jax.pretrain(encoder, data, out=out, batch_size=8, **(RUN | {"steps": 1} | options))


def stored(out):
    return json.loads((out / "config.json").read_text())


@pytest.mark.slow  # five runs
def test_pretrain_finds_a_range_once_and_keeps_it(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(100, 900, (24, 8, 8, 1)).astype(np.uint16)
    whole = run(tmp_path / "whole", images, value_range="percentile:100", steps=2, checkpoint_every=1)
    facts = stored(tmp_path / "whole")
    assert facts["learner"]["value_range"] == [[float(images.min())], [float(images.max())]]
    assert (facts["value_range_rule"], facts["data"]["dtype"]) == ("percentile:100", "uint16")
    given = (images.min(), np.array([images.max()]))  # NumPy's numbers are kept as numbers, too
    same = run(tmp_path / "given", images, value_range=given, steps=2, checkpoint_every=1)
    jax.tree.map(np.testing.assert_array_equal, same.online, whole.online)
    facts = stored(tmp_path / "given")
    assert facts["learner"]["value_range"] == [[float(images.min())], [float(images.max())]]
    assert "value_range_rule" not in facts

    run(tmp_path / "parts", images, value_range="percentile:100", checkpoint_every=1)
    monkeypatch.setattr("byol_jax.runs.value_range.estimate_range", None)
    options = {"value_range": "percentile:100", "steps": 2, "checkpoint_every": 1, "resume": True}
    parts = run(tmp_path / "parts", images, **options)
    jax.tree.map(np.testing.assert_array_equal, parts.online, whole.online)
    with pytest.raises(ConfigurationError, match=r"learner/value_range: stored \[\[1"):
        run(tmp_path / "parts", images, **(options | {"value_range": (0, 900)}))
    with pytest.raises(ConfigurationError, match="value_range"):
        run(tmp_path / "given", images, **(options | {"value_range": None}))


@pytest.mark.slow  # two runs
def test_batches_of_an_iterable_have_a_range_where_it_is_given(tmp_path):
    floats = [np.random.default_rng(0).normal(500, 300, (8, 8, 8, 1)).astype(np.float32)]
    run(tmp_path / "floats", floats, value_range=(0, 1000))
    assert stored(tmp_path / "floats")["learner"]["value_range"] == [[0.0], [1000.0]]
    run(tmp_path / "deep", [np.full((8, 8, 8, 1), 700, np.uint16)])  # divided by 65,535
    with pytest.raises(DataError, match=r"expected floats in \[0, 1\]"):
        run(tmp_path / "none", floats)
    with pytest.raises(ConfigurationError, match="only found from a folder or an array"):
        run(tmp_path / "none", floats, value_range="auto")
    for wrong, message in (("automatic", "expected auto, percentile:P"), ((5, 1), "low < high")):
        with pytest.raises(ConfigurationError, match=message):
            run(tmp_path / "none", "no such folder", value_range=wrong)
    assert not (tmp_path / "none").exists()
