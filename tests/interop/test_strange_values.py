"""NaN, infinity and variances below zero: `inspect` calls them problems, and whoever reads weights for use is told."""

import warnings

import jax
import ml_dtypes
import numpy as np
import pytest
from plain_learners import SoloLearn, learner, randomised, resnet

import interop
from byol_jax import nets
from interop.inspect.commands import inspect_file
from interop.weights.values import StrangeValuesWarning, value_problems, warn_of_values

FAULTS = {
    "NaN": ("0.weight", lambda a: a * np.nan, "0.weight: {size} NaN of {size} values"),
    "infinity": ("10.bias", lambda a: a + np.inf, "10.bias: {size} infinite of {size} values"),
    "variance": ("1.running_var", lambda a: -2 * a, "1.running_var: a variance below zero (-2)"),
}


@pytest.fixture(scope="module")
def network():
    encoder = nets.small_cnn(num_classes=10)
    return encoder, encoder.init(jax.random.key(0), (16, 16, 3))


@pytest.mark.parametrize("fault", FAULTS)
def test_reading_and_inspecting_find_the_same(fault, network, tmp_path):
    encoder, variables = network
    good = interop.encoder_state_dict(encoder, variables)
    name, spoil, words = FAULTS[fault]
    path = tmp_path / "net.safetensors"
    interop.save_state_dict(path, good | {name: spoil(good[name])})
    words = words.format(size=good[name].size)
    assert inspect_file(path)["problems"] == [words]
    weights = interop.open_weights(path)
    with pytest.warns(StrangeValuesWarning) as said:
        got = weights.variables(encoder, like=variables)
    assert len(said) == 1
    assert (str(path) in str(said[0].message), words in str(said[0].message)) == (True, True)
    own = interop.encoder_state_dict(encoder, got)
    np.testing.assert_array_equal(own[name], spoil(good[name]))  # bit for bit all the same


def test_nothing_is_said_of_good_values(network):
    encoder, variables = network
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = interop.open_weights(interop.encoder_state_dict(encoder, variables)).variables(encoder, like=variables)
    assert jax.tree.structure(got) == jax.tree.structure(variables)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, np.complex64])
def test_every_type_is_looked_at(dtype):
    assert value_problems("a", np.array([1, np.nan, np.nan], dtype)) == ["a: 2 NaN of 3 values"]
    assert value_problems("a", np.array([1, 2], dtype)) == []


def test_whole_numbers_and_nothing_are_fine():
    assert value_problems("running_var", np.array([-1, 2])) == []
    assert value_problems("running_var", np.zeros(0, np.float32)) == []


def test_many_are_one_short_line():
    with pytest.warns(StrangeValuesWarning, match="net.pt: no .* and 97 more") as said:
        warn_of_values({f"a{number}": np.full(1, np.nan) for number in range(100)}, where="net.pt")
    assert len(said) == 1


@pytest.mark.slow
def test_a_learners_heads_count_where_they_are_read():
    """The encoder alone is taken without a word; the whole learner, by whichever way, with one."""
    state_dict = {name: tensor.numpy() for name, tensor in randomised(SoloLearn(resnet())).state_dict().items()}
    state_dict["projector.0.weight"][0, 0] = np.nan
    one = learner()
    state, encoder = one.init(jax.random.key(0)), nets.resnet((1, 1, 1, 1), num_classes=None)
    weights = interop.open_weights(state_dict)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights.start_encoder(encoder, state)
    for read in (
        lambda: weights.learner(encoder, like=state),
        lambda: weights.start(encoder, state),
        lambda: interop.load_byol_checkpoint(state_dict, like=state),
    ):
        with pytest.warns(StrangeValuesWarning, match=r"projector\.0\.weight: 1 NaN") as said:
            read()
        assert len(said) == 1
