"""byol-pytorch's learners of every release: read, and those of up to 0.5.7 written, by names alone."""

import re

import jax
import numpy as np
import pytest
import torch
from byol_learners import shapes, state_of, theirs, torch_learner
from weight_samples import assert_identical

import interop
from byol_jax.errors import CheckpointFormatError, StateDictMismatchError
from interop.learners.fitting import AbsentHeadsWarning, AbsentTargetWarning, EmbeddingsWarning


def renamed(state_dict, *pairs):
    for old, new in pairs:
        state_dict = {key.replace(old, new): value for key, value in state_dict.items()}
    return state_dict


def without(state_dict, *starts):
    return {key: value for key, value in state_dict.items() if not key.startswith(starts)}


def heads(level):
    return ("encoder.projector.", f"encoder.projector.{level}."), ("online_predictor.", f"online_predictor.{level}.")


OLD = {
    "A": lambda plain: without(renamed(plain, *heads("net")), "net."),
    "B": lambda plain: renamed(plain, *heads("net")),
}
LAYOUTS = pytest.mark.parametrize("layout", OLD)


def leaves(state):
    networks = {"online": state.online, "target": state.target}
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(networks)}


@LAYOUTS
def test_layouts_up_to_0_5_7_go_in_and_out_unchanged(layout, tmp_path):
    """The same leaves as from today's names; written, the keys and bits that the file had."""
    old, like = OLD[layout](torch_learner("C", seed=3).state_dict()), state_of("C")
    state = interop.load_byol_checkpoint(old, like=like)
    assert_identical(
        leaves(state), leaves(interop.load_byol_checkpoint(torch_learner("C", seed=3).state_dict(), like=like))
    )
    interop.save_byol_checkpoint(tmp_path / "learner.npz", state, layout=layout)
    assert_identical(interop.load_state_dict(tmp_path / "learner.npz"), {k: v.numpy() for k, v in old.items()})
    assert_identical(leaves(interop.load_byol_checkpoint(tmp_path / "learner.npz", like=like)), leaves(state))


@pytest.mark.parametrize("front", ["module.", "_orig_mod.", "learner.", "byol.", "byol.module.", "model._orig_mod."])
@LAYOUTS
def test_what_holds_the_learner_may_stand_in_front(layout, front):
    old, like = OLD[layout](theirs("C")), state_of("C")
    state = interop.load_byol_checkpoint({"state_dict": {front + key: value for key, value in old.items()}}, like=like)
    assert_identical(leaves(state), leaves(interop.load_byol_checkpoint(theirs("C"), like=like)))


def test_a_trainers_state_has_the_network_outside_too():
    plain, like = theirs("C"), state_of("C")
    outside = {f"net.{key.removeprefix('net.')}": value for key, value in plain.items() if key.startswith("net.")}
    for front in ("byol.", "byol.module."):
        trainer = {"step": np.zeros(1, np.int64)} | outside | {front + key: value for key, value in plain.items()}
        assert_identical(
            leaves(interop.load_byol_checkpoint(trainer, like=like)),
            leaves(interop.load_byol_checkpoint(plain, like=like)),
        )
    with pytest.raises(CheckpointFormatError, match=r"nor the network of this one .*interop\.open_weights\(FILE\)"):
        interop.load_byol_checkpoint(outside, like=like, source="byol-pytorch")


@pytest.mark.parametrize("like", ["C", "D1", "C-sim"])
def test_a_trainers_checkpoint_is_the_network_alone(like, tmp_path):
    """`BYOLTrainer` saves `net.state_dict()`: both encoders become it, heads stay, and without being asked nothing is
    taken for a learner."""
    path, own = tmp_path / "checkpoint.100.pt", leaves(state_of(like))
    net = torch_learner(like, seed=3).net
    torch.save(net.state_dict(), path)
    with pytest.warns(AbsentHeadsWarning, match="holds a network without heads, as byol-pytorch's trainer") as caught:
        state = interop.load_byol_checkpoint(path, like=state_of(like), source="byol-pytorch")
    assert caught[0].filename == __file__
    whole = leaves(interop.load_byol_checkpoint(torch_learner(like, seed=3).state_dict(), like=state_of(like)))
    encoder = {name: whole[name.replace("target", "online")] for name in whole if "'encoder'" in name}
    assert len(encoder) > 5
    assert_identical(leaves(state), own | encoder)
    with pytest.raises(CheckpointFormatError, match=r"no learner of .*and with source='byol_pytorch'"):
        interop.load_byol_checkpoint(path, like=state_of(like))
    first, *rest = net.state_dict()
    cut = {name: net.state_dict()[name] for name in rest}
    with pytest.raises(StateDictMismatchError, match=f"1 missing: {re.escape(first)}"):
        interop.load_byol_checkpoint(cut, like=state_of(like), source="byol_pytorch")


@pytest.mark.parametrize("kept", ["both", "net.", "online_encoder.net."])
def test_an_absent_target_starts_as_a_copy(kept):
    """SimSiam of 0.4.0 to 0.5.7, or 0.0.1 and 0.0.2 right after an update; safetensors keeps one name only."""
    old = without(OLD["B"](theirs("C")), "target_encoder.")
    old = without(old, {"both": "nothing", "net.": "online_encoder.net.", "online_encoder.net.": "net."}[kept])
    with pytest.warns(AbsentTargetWarning, match="holds no target network; a copy of the online network") as caught:
        state = interop.load_byol_checkpoint(old, like=state_of("C"))
    assert caught[0].filename == __file__
    expected = leaves(interop.load_byol_checkpoint(theirs("C"), like=state_of("C")))
    for name, leaf in leaves(state).items():
        np.testing.assert_array_equal(leaf, expected[name.replace("target", "online")])


@pytest.mark.parametrize(("layout", "like"), [("D0", "C"), ("D0-sim", "C-sim")])
def test_embeddings_behind_the_heads_are_said_to_be_absent(layout, like, tmp_path):
    """0.9.0's weights go in and out unchanged; what it computes from them nothing here does."""
    old, said = renamed(theirs(like), *heads("0")), rf"0\.9\.0 \(layout {layout}\).*projections and losses differ"
    with pytest.warns(EmbeddingsWarning, match=said) as caught:
        state = interop.load_byol_checkpoint(old, like=state_of(like))
    assert_identical(leaves(state), leaves(interop.load_byol_checkpoint(theirs(like), like=state_of(like))))
    with pytest.warns(EmbeddingsWarning, match=said) as caught_again:
        interop.save_byol_checkpoint(tmp_path / "learner.npz", state, layout=layout)
    assert_identical(interop.load_state_dict(tmp_path / "learner.npz"), old)
    assert [caught[0].filename, caught_again[0].filename] == [__file__] * 2


@LAYOUTS
def test_other_heads_are_refused(layout, tmp_path):
    with pytest.raises(
        CheckpointFormatError, match="make the learner with simplicial_embeddings=False and use_momentum"
    ):
        interop.load_byol_checkpoint(OLD[layout](theirs("C")), like=shapes("D1-sim"))
    with pytest.raises(CheckpointFormatError, match=f"the state has layout D1, not {layout}: use layout='D1'"):
        interop.save_byol_checkpoint(tmp_path / "x.npz", state_of("D1"), layout=layout)
    assert not list(tmp_path.iterdir())
