"""A learner's file that doesn't fit: every fault named at once, every other layout with the way out."""

import jax
import numpy as np
import pytest
import torch
from byol_learners import LAYOUTS, shapes, state_of, theirs, torch_learner
from hypothesis import given, settings
from hypothesis import strategies as st

import interop
from byol_jax import ConfigurationError, nets
from byol_jax.errors import CheckpointFormatError, StateDictMismatchError
from interop.weights.state_dict import AbsentCountersWarning
from tests.parity.trajectory import SMALL

WORDS = {"dropped": "missing", "renamed": "unexpected", "reshaped": "wrong shape", "retyped": "wrong dtype"}


def faults(state_dict, draw):
    """One key dropped, renamed, reshaped or of another type; and its name.

    Of a counter that is dropped the loading says that it starts at 0.
    """
    key = draw(st.sampled_from(sorted(state_dict)))
    array, kind = state_dict[key], draw(st.sampled_from(["dropped", "renamed", "reshaped", "retyped"]))
    changed = {name: value for name, value in state_dict.items() if name != key}
    if kind == "renamed":
        changed[key + draw(st.sampled_from(["x", ".weight", "_0"]))] = array
    if kind == "reshaped":
        changed[key] = np.zeros((*array.shape, 2), array.dtype)
    if kind == "retyped":
        changed[key] = array.astype(np.float16)
    return changed, key, kind


@settings(max_examples=25)
@given(st.data())
def test_any_fault_is_named(data):
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
    changed, keys, counters = dict(theirs(layout)), {}, set()
    for _ in range(data.draw(st.integers(1, 3))):
        untouched = {key: changed[key] for key in theirs(layout) if key not in keys}
        partly, key, kind = faults(untouched, data.draw)
        changed = {name: value for name, value in changed.items() if name not in untouched} | partly
        keys[key] = kind
    for key in [key for key in keys if key.endswith("num_batches_tracked") and keys[key] == "dropped"]:
        if key.replace("num_batches_tracked", "running_var") in changed:
            counters.add(key)
            del keys[key]
    counters -= {key for key in counters if second_name(key) in changed}
    if not keys and not counters:
        ours, wanted = (interop.load_byol_checkpoint(file, like=state_of(layout)) for file in (changed, theirs(layout)))
        jax.tree.map(np.testing.assert_array_equal, networks(ours), networks(wanted))
    elif not keys:
        with pytest.warns(AbsentCountersWarning, match=f"{len(counters)} batch norms .*{max(counters)}$"):
            interop.load_byol_checkpoint(changed, like=state_of(layout))
    else:
        with pytest.raises(StateDictMismatchError) as caught:
            interop.load_byol_checkpoint(changed, like=shapes(layout))
        message = str(caught.value)
        assert "\n" not in message
        for key, kind in keys.items():
            assert WORDS[kind] in message
            assert key in message


def networks(state):
    return state.online, state.target


def second_name(key):
    """The key under which the same tensor of the online network stands again."""
    return key.removeprefix("online_encoder.") if key.startswith("online_encoder.net.") else f"online_encoder.{key}"


@pytest.mark.parametrize("dropped", ["net.1.", "online_encoder.net.1."])
def test_a_counter_that_stands_under_one_of_two_names_is_read(dropped):
    whole = theirs("C") | {f"{name}1.num_batches_tracked": np.int64(7) for name in ("net.", "online_encoder.net.")}
    part = {key: value for key, value in whole.items() if key != f"{dropped}num_batches_tracked"}
    ours, wanted = (interop.load_byol_checkpoint(file, like=state_of("C")) for file in (part, whole))
    jax.tree.map(np.testing.assert_array_equal, networks(ours), networks(wanted))
    learner = torch_learner("C")
    tensors = {key: torch.as_tensor(value) for key, value in part.items()}
    learner.load_state_dict(tensors)  # of no version, so that counters may be absent
    assert int(learner.state_dict()["net.1.num_batches_tracked"]) == 7


def without(state_dict, start):
    return {key: value for key, value in state_dict.items() if not key.startswith(start)}


REFUSED = {
    "plain into simplicial": ("C", "D1", r"layout C, the learner has D1: make .* simplicial_embeddings=False$"),
    "simplicial into plain": ("D1", "C", r"make the learner with simplicial_embeddings=True$"),
    "simsiam into momentum": ("C-sim", "C", r"make the learner with use_momentum=False$"),
    "both": ("C", "D1-sim", r"make the learner with simplicial_embeddings=False and use_momentum=True$"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_layout_says_how_to_make_the_learner(case):
    file, learner, words = REFUSED[case]
    with pytest.raises(CheckpointFormatError, match=words):
        interop.load_byol_checkpoint(theirs(file), like=shapes(learner))


def test_what_no_learner_can_hold_is_refused():
    like, good = shapes("C"), theirs("C")
    bare = {key.removeprefix("net."): value for key, value in good.items() if key.startswith("net.")}
    strange = {f"strange.{key}": value for key, value in bare.items()}
    for source, weights in (("auto", bare), ("byol_pytorch", strange)):
        words = r"no .*byol.pytorch.*interop\.open_weights\(FILE\).*import FILE"
        with pytest.raises(CheckpointFormatError, match=words):
            interop.load_byol_checkpoint(weights, like=like, source=source)
    with pytest.raises(CheckpointFormatError, match=r"has no target_encoder\.\*; after reset_moving_average\(\)"):
        interop.load_byol_checkpoint(without(good, "target_encoder."), like=like)
    with pytest.raises(CheckpointFormatError, match=r"no projector of byol-pytorch's below online_encoder\.projector"):
        interop.load_byol_checkpoint(without(good, "online_encoder.projector."), like=like)
    with pytest.raises(
        StateDictMismatchError, match=r"1 wrong value: net\.0\.weight \(differs from online_encoder\.net\.0"
    ):
        interop.load_byol_checkpoint(good | {"net.0.weight": good["net.0.weight"] + 1}, like=like)
    with pytest.raises(CheckpointFormatError, match=r"got BYOL; a torch module's is module\.state_dict\(\)"):
        interop.load_byol_checkpoint(torch_learner("C"), like=like)
    with pytest.raises(CheckpointFormatError, match="absent"):
        interop.load_byol_checkpoint("absent.pt", like=like)
    with pytest.raises(StateDictMismatchError, match="expected a TrainState"):
        interop.load_byol_checkpoint(good, like=like.online)
    with pytest.raises(ConfigurationError, match=r"use learner\.init\(key\)"):
        interop.load_byol_checkpoint(good, like=like)
    for source in ("byol_torch", "ByolPytorchh", 3, None):
        with pytest.raises(ConfigurationError, match=r"source .* isn't known: use one of .*byol_pytorch"):
            interop.load_byol_checkpoint(good, like=like, source=source)


CUT = SMALL._replace(ours=lambda: nets.small_cnn((5,), num_classes=11))
OTHER = SMALL._replace(ours=lambda: nets.resnet((1, 1), width=4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"hidden_layer": -1},
            r"make the learner with a hidden_layer \(or image_size\) that gives 112 features \(not 11\)$",
        ),
        (
            {"projection_size": 8, "projection_hidden_size": 16},
            r"projection_hidden_size=32 \(not 16\), projection_size=16 \(not 8\), prediction_hidden_size=32",
        ),
        (
            {"network": CUT},
            r"18 unexpected: .*net\.7\.weight.* wrong shape: .*net\.4\.bias \(given \[7\], expected \[11\]\)",
        ),
        ({"network": OTHER}, r"missing: .*net\.layer1\.0\.conv1\.weight"),
    ],
)
def test_what_to_change_is_said(options, words):
    with pytest.raises(StateDictMismatchError, match=words):
        interop.load_byol_checkpoint(theirs("C"), like=shapes("C", **options))


def test_a_file_of_another_type_says_to_convert_it():
    wide = {key: value.astype(np.float64) if value.dtype == np.float32 else value for key, value in theirs("C").items()}
    with pytest.raises(StateDictMismatchError, match=r"given float64, expected float32.*convert the file's tensors"):
        interop.load_byol_checkpoint(wide, like=shapes("C"))


def test_saving_checks_the_layout(tmp_path):
    path, state = tmp_path / "learner.pt", state_of("C")
    with pytest.raises(CheckpointFormatError, match=r"the state has layout C, not D1-sim: use layout='C'$"):
        interop.save_byol_checkpoint(path, state, layout="D1_sim")
    with pytest.raises(ConfigurationError, match=r"layout 'lightning' isn't known: use one of .*byol_pytorch"):
        interop.save_byol_checkpoint(path, state, layout="lightning")
    headless = state.online._replace(params=state.online.params | {"projector": {}})
    with pytest.raises(CheckpointFormatError, match="no heads of byol-pytorch's"):
        interop.save_byol_checkpoint(path, state.replace(online=headless), layout="byol_pytorch")
    with pytest.raises(StateDictMismatchError, match="expected a TrainState"):
        interop.save_byol_checkpoint(path, {}, layout="byol_pytorch")
    assert not path.exists()
