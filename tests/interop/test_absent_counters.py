"""Files without `num_batches_tracked`: taken where torch's strict loading takes them, from 0, and said in one line."""

import jax
import numpy as np
import pytest
import torch
from plain_learners import SoloLearn, learner, randomised, resnet
from test_hugging_face import stored
from weight_samples import assert_identical

import interop
from byol_jax import nets
from byol_jax.errors import StateDictMismatchError
from interop.inspect.commands import inspect_file
from interop.inspect.recognition import find_origin
from interop.inspect.refusals import refusals
from interop.learners.fitting import own_arrays
from interop.weights.architectures import RESNETS, expected_shapes, recognise
from interop.weights.state_dict import AbsentCountersWarning, from_torch_state_dict

COUNTER = "num_batches_tracked"
SAID = "{} batch norms come without num_batches_tracked"


def without_counters(state_dict):
    return {name: value for name, value in state_dict.items() if not name.endswith(COUNTER)}


def from_zero(state_dict):
    return {name: np.zeros((), np.int64) if name.endswith(COUNTER) else value for name, value in state_dict.items()}


def as_arrays(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("traced", [False, True])
def test_a_network_is_read_as_torch_reads_it(traced, tmp_path):
    module = randomised(resnet())
    old = without_counters(as_arrays(module))
    fresh = resnet()
    fresh.load_state_dict({name: torch.from_numpy(array) for name, array in old.items()}, strict=True)
    wanted = from_zero(as_arrays(fresh))
    if traced:
        encoder = interop.from_torch_module(resnet(), image_size=32, verify=False)
    else:
        encoder = nets.resnet((1, 1, 1, 1), num_classes=None)
    like = encoder.init(jax.random.key(0), (32, 32, 3))
    interop.save_state_dict(tmp_path / "old.safetensors", old)
    weights = interop.open_weights(tmp_path / "old.safetensors")
    with pytest.warns(AbsentCountersWarning, match=SAID.format(12)) as said:
        got = weights.variables(encoder, like=like)
    assert len(said) == 1
    assert_identical(interop.encoder_state_dict(encoder, got), wanted, ordered=False)


def test_some_may_be_there_and_a_loose_reading_keeps_its_own():
    module = randomised(resnet())
    given = as_arrays(module)
    del given[f"bn1.{COUNTER}"]
    encoder = nets.resnet((1, 1, 1, 1), num_classes=None)
    like = interop.open_weights(as_arrays(module)).variables(encoder, like=encoder.init(jax.random.key(0), (32, 32, 3)))
    with pytest.warns(AbsentCountersWarning, match=SAID.format(1)):
        got = from_torch_state_dict(given, like=like)
    assert (int(got.stats["bn1"][COUNTER]), int(got.stats["layer1"]["0"]["bn1"][COUNTER])) == (0, 7)
    assert int(from_torch_state_dict(given, like=like, strict=False).stats["bn1"][COUNTER]) == 7
    shapes = jax.eval_shape(lambda: like)
    with pytest.warns(AbsentCountersWarning, match=SAID.format(1)):
        assert int(from_torch_state_dict(given, like=shapes, strict=False).stats["bn1"][COUNTER]) == 0


def test_a_batch_norm_without_statistics_is_still_refused():
    """Only the counter of a batch norm that is there may be absent; and nothing is said of a file that is refused."""
    given = as_arrays(randomised(resnet()))
    encoder = nets.resnet((1, 1, 1, 1), num_classes=None)
    like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), (32, 32, 3)))
    for gone, missing in (("bn1.running_var", 2), ("bn1.weight", 1)):
        held = {name: array for name, array in given.items() if name not in (gone, f"bn1.{COUNTER}")}
        with pytest.raises(StateDictMismatchError, match=rf"; {missing} missing: .*{gone}"):
            from_torch_state_dict(held, like=like)


@pytest.mark.parametrize("name", RESNETS)
def test_every_resnet_is_recognised_without_them(name):
    shapes = without_counters(expected_shapes(name))
    assert recognise(shapes) == f"torchvision {name}"
    assert recognise(shapes | {"layer9.bn1.num_batches_tracked": ()}) == "ResNet of unknown depth or width"


def test_a_named_architecture_may_lack_them_in_reading_alone():
    old = {name: np.zeros(shape, np.float32) for name, shape in without_counters(expected_shapes("resnet18")).items()}
    encoder = nets.resnet18(num_classes=1000)
    like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), (32, 32, 3)))
    with pytest.warns(AbsentCountersWarning, match=SAID.format(20)):
        got = from_torch_state_dict(old, like=like, arch="resnet18")
    lacking = got._replace(
        stats={**got.stats, "bn1": {"mean": got.stats["bn1"]["mean"], "var": got.stats["bn1"]["var"]}}
    )
    with pytest.raises(StateDictMismatchError, match=r"1 missing: bn1\.num_batches_tracked"):
        interop.to_torch_state_dict(lacking, arch="resnet18")


def test_hugging_faces_networks_too():
    encoder = nets.resnet((1, 1), block="basic", num_classes=3)
    like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), (16, 16, 3)))
    given = {name: np.asarray(array, np.float32) for name, array in without_counters(stored("resnet-basic")).items()}
    with pytest.warns(AbsentCountersWarning):
        got = from_torch_state_dict(given, like=like, dtype="like")
    assert int(got.stats["bn1"][COUNTER]) == 0


@pytest.mark.slow
def test_a_learner_without_them():
    """`inspect` says that it would convert, and it does."""
    module = randomised(SoloLearn(resnet()))
    old = without_counters(as_arrays(module))
    assert not [one for one in refusals(find_origin(old), old) if COUNTER in one.name]
    state = learner().init(jax.random.key(0))
    with pytest.warns(AbsentCountersWarning):
        got = own_arrays(interop.load_byol_checkpoint(old, like=state))
    whole = own_arrays(interop.load_byol_checkpoint(as_arrays(module), like=state))
    assert_identical(got, from_zero(whole), ordered=False)


def test_inspect_names_the_network(tmp_path):
    old = {name: np.ones(shape, np.float32) for name, shape in without_counters(expected_shapes("resnet18")).items()}
    interop.save_state_dict(tmp_path / "old.npz", old)
    inspection = inspect_file(tmp_path / "old.npz")
    assert inspection["kind"] == "torchvision resnet18"
    assert inspection["would_not_convert"] == []
