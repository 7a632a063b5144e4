"""What of a file would not convert is named beforehand, and is what loading refuses."""

import numpy as np
import pytest
from byol_learners import state_of, theirs
from learner_layouts import arrays_of, lightly

import interop
from byol_jax.errors import InteropError
from interop.inspect.anatomy import architecture
from interop.inspect.recognition import find_origin, learner_arrays, network_arrays
from interop.inspect.refusals import refusals
from interop.weights.architectures import expected_shapes


def renamed(given, old, new):
    return {new if name == old else name: array for name, array in given.items()}


WRONG = {
    "a queue": (lambda: theirs("C") | {"queue": np.zeros(2, np.float32)}, "queue", "a queue"),
    "a stranger": (lambda: theirs("C") | {"online_encoder.extra": np.zeros(2)}, "online_encoder.extra", "no part"),
    "another layer": (
        lambda: theirs("C") | {"online_predictor.4.weight": np.zeros((2, 2), np.float32)},
        "online_predictor.4.weight",
        "no layer of such a head",
    ),
    "a misspelt leaf": (
        lambda: renamed(theirs("C"), "online_predictor.0.weight", "online_predictor.0.wieght"),
        "online.predictor.0.weight",
        "isn't there (nearest: online_predictor.0.wieght)",
    ),
    "half precision": (
        lambda: theirs("D1") | {"online_predictor.0.bias": np.zeros(32, np.float16)},
        "online_predictor.0.bias",
        "float16, where a learner has float32",
    ),
    "a floating counter": (
        lambda: theirs("C") | {"online_predictor.1.num_batches_tracked": np.zeros((), np.float32)},
        "online_predictor.1.num_batches_tracked",
        "float32, where a counter is an integer",
    ),
    "two tensors of one name": (
        lambda: theirs("C") | {"net.1.bias": theirs("C")["net.1.bias"] + 1},
        "net.1.bias",
        "differs from online_encoder.net.1.bias",
    ),
    "no target": (
        lambda: {name: array for name, array in theirs("C").items() if not name.startswith("target")},
        "target_encoder.*",
        "isn't there",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_refused_is_named_and_loading_refuses_it(case):
    make, name, reason = WRONG[case]
    given = make()
    origin = find_origin(given)
    refused = [one for one in refusals(origin, given) if one.verdict == "refused"]
    assert any(one.name == name and reason in one.reason for one in refused), refused
    with pytest.raises(InteropError) as raised:
        interop.load_byol_checkpoint(given, like=state_of(origin.layout))
    word = {"online.predictor.0.weight": "online_predictor.0.weight"}.get(name, name)
    assert word in str(raised.value)


def test_types_of_a_network_by_itself():
    network = {"conv.weight": np.zeros(3, np.int8), "index": np.zeros(3, np.int64), "fc.bias": np.zeros(3, np.float16)}
    refused = refusals(find_origin(network), network)
    assert [(one.name, one.verdict) for one in refused] == [("conv.weight", "refused")]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_shapes_that_make_no_sense_are_no_error(seed):
    """Names of every family with shapes drawn at random: recognised or not, nothing raises."""
    random = np.random.default_rng(seed)
    names = [*theirs("D1"), *arrays_of(lightly()), *expected_shapes("resnet50"), "online_params/classifier/w"]
    names += [f"online_params/projector/linear/{leaf}" for leaf in "wb"]
    for start in range(0, len(names), 50):
        for share in (names[start : start + 50], names[start:], names[: start + 1]):
            shapes = [tuple(random.integers(0, 3, random.integers(0, 5))) for _ in share]
            given = dict(zip(share, (np.zeros(shape, np.float32) for shape in shapes), strict=True))
            origin = find_origin(given)
            sizes = {name: array.shape for name, array in network_arrays(learner_arrays(origin, given)).items()}
            assert isinstance(architecture(sizes).name, str)
            assert all(one.reason for one in refusals(origin, given))
