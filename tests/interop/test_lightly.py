"""lightly's learners as training states and back: the same leaves, the same next loss, in all of its layouts."""

import contextlib

import jax
import numpy as np
import pytest
import torch
from plain_learners import (
    CLASSES,
    IMAGES,
    Lightly,
    cut,
    learner,
    lightly_cifar,
    loss_of,
    randomised,
    resnet,
    their_next_loss,
)
from weight_samples import assert_identical

import interop
from byol_jax.errors import CheckpointFormatError, StateDictMismatchError
from byol_jax.tree import flatten
from interop.learners.fitting import AbsentTargetWarning, StemWarning
from tests.parity.trajectory import QUICK, blank

THEIRS = {
    "lightly-examples": lambda: Lightly(cut(resnet())),
    "lightly-cifar": lambda: Lightly(lightly_cifar()),
    "lightly-models": lambda: Lightly(cut(resnet()), "momentum_{}"),
    "lightly-benchmarks": lambda: Lightly(resnet(), "teacher_{}", classifier=True),
}
OPTIONS = {"lightly-cifar": {"stem": "cifar"}, "lightly-benchmarks": {"num_classes": CLASSES}}
FIRST, *OTHERS = THEIRS
LAYOUTS = pytest.mark.parametrize("layout", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])


def ours(layout):
    return learner(**OPTIONS.get(layout, {}))


def what_is_said(layout):
    """lightly's cut network for CIFAR computes otherwise than a native one; test_original_learners.py shows it."""
    return pytest.warns(StemWarning, match="no ReLU") if layout == "lightly-cifar" else contextlib.nullcontext()


@pytest.mark.slow
@LAYOUTS
def test_every_layout_goes_in_and_out_unchanged(layout, tmp_path):
    """The same keys in the same order, and bits; loaded strictly by a module with their names."""
    module = randomised(THEIRS[layout]())
    with what_is_said(layout):
        state = interop.load_byol_checkpoint({"state_dict": module.state_dict()}, like=blank(ours(layout)))
    assert not state.online.params["projector"]["0"]["bias"].any()
    with what_is_said(layout):
        interop.save_byol_checkpoint(tmp_path / "learner.ckpt", state, layout=layout)
    saved = torch.load(tmp_path / "learner.ckpt")
    assert_identical(saved, module.state_dict())
    THEIRS[layout]().load_state_dict(saved, strict=True)
    with what_is_said(layout):
        again = interop.load_byol_checkpoint(tmp_path / "learner.ckpt", like=state, source="lightly")
    assert_identical(leaves(again), leaves(state))


def leaves(state):
    networks = {"online": state.online, "target": state.target}
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(networks)}


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in THEIRS if name != "lightly-cifar"])
def test_training_goes_on_with_the_same_next_loss(layout, tmp_path):
    """lightly's example loss is -½(cos + cos), in [-1, 1]; ours (2 - 2 cos) + (2 - 2 cos), in [0, 8]."""
    one, module = ours(layout), randomised(THEIRS[layout]())
    state, next_loss = interop.load_byol_checkpoint(module.state_dict(), like=blank(one)), loss_of(one)
    assert next_loss(state) == pytest.approx(4 + 4 * their_next_loss(module), rel=1e-5)
    for network in (state.online, state.target):  # as training here leaves them: biases that batch norm takes away
        network.params["projector"]["0"]["bias"] += 0.25
    interop.save_byol_checkpoint(tmp_path / "learner.safetensors", state, layout=layout)
    fresh, saved = THEIRS[layout](), interop.load_state_dict(tmp_path / "learner.safetensors")
    fresh.load_state_dict({key: torch.from_numpy(array) for key, array in saved.items()}, strict=True)
    assert 4 + 4 * their_next_loss(fresh) == pytest.approx(next_loss(state), rel=1e-5)


@pytest.mark.slow
def test_a_bias_is_taken_off_the_mean(tmp_path):
    """In evaluation too the function stays: projections of both agree."""
    one = ours("lightly-examples")
    state = interop.load_byol_checkpoint(randomised(THEIRS["lightly-examples"]()).state_dict(), like=blank(one))
    state.online.params["projector"]["0"]["bias"] += 0.25
    interop.save_byol_checkpoint(tmp_path / "learner.npz", state, layout="lightly")
    again = interop.load_byol_checkpoint(tmp_path / "learner.npz", like=state)
    mean = state.online.stats["projector"]["1"]["mean"]
    np.testing.assert_allclose(again.online.stats["projector"]["1"]["mean"], mean - 0.25, rtol=1e-6)
    project = jax.jit(one.project, compiler_options=QUICK)
    np.testing.assert_allclose(project(again, IMAGES), project(state, IMAGES), atol=1e-5)


@pytest.mark.parametrize("release", ["1.1.8", "1.1.19"])
def test_older_releases_have_biases_and_other_names(release):
    """Up to 1.1.18 heads are plain Sequentials; up to 1.2.12 their first layer has a bias."""
    state_dict = randomised(THEIRS["lightly-models"]()).state_dict()
    for head in ("projection_head", "prediction_head", "momentum_projection_head"):
        state_dict[f"{head}.layers.0.bias"] = torch.full((24,), 0.5)
    if release == "1.1.8":
        state_dict = {key.replace("head.layers.", "head."): value for key, value in state_dict.items()}
    state = interop.load_byol_checkpoint(state_dict, like=blank(ours("lightly-models")))
    assert (state.online.params["predictor"]["0"]["bias"] == 0.5).all()
    np.testing.assert_array_equal(
        state.online.params["encoder"]["layer2"]["0"]["conv1"]["kernel"].transpose(3, 2, 0, 1),
        state_dict["backbone.5.0.conv1.weight"],
    )


def test_what_holds_the_learner_may_stand_in_front():
    state_dict = randomised(THEIRS["lightly-examples"]()).state_dict()
    like = blank(ours("lightly-examples"))
    plain = interop.load_byol_checkpoint(state_dict, like=like)
    for front in ("module.", "model.", "_orig_mod.module.", "learner.model."):
        wrapped = {front + key: value for key, value in state_dict.items()}
        assert_identical(leaves(interop.load_byol_checkpoint(wrapped, like=like)), leaves(plain))


@pytest.mark.slow
def test_a_classifier_is_kept_as_fc_and_fc_stays_where_there_is_none():
    benchmark = randomised(THEIRS["lightly-benchmarks"]()).state_dict()
    like = blank(ours("lightly-benchmarks"))
    like.online.params["encoder"]["fc"]["bias"] += 2
    state = interop.load_byol_checkpoint(benchmark, like=like)
    expected = benchmark["online_classifier.classification_head.bias"]
    np.testing.assert_array_equal(state.online.params["encoder"]["fc"]["bias"], expected)
    example = randomised(THEIRS["lightly-examples"]()).state_dict()
    state = interop.load_byol_checkpoint(example, like=like)
    assert (state.online.params["encoder"]["fc"]["bias"] == 2).all()
    state = interop.load_byol_checkpoint(benchmark, like=blank(ours("lightly-examples")))
    assert "fc" not in state.online.params["encoder"]


def test_faults_are_named(tmp_path):
    state_dict = randomised(THEIRS["lightly-examples"]()).state_dict()
    like = blank(ours("lightly-examples"))
    strange = state_dict | {"queue": torch.zeros(3)}
    del strange["backbone.4.0.conv1.weight"]
    with pytest.raises(
        StateDictMismatchError, match=r"missing: online\.encoder\.layer1\.0\.conv1\.w.*unexpected: queue"
    ):
        interop.load_byol_checkpoint(strange, like=like)
    simsiam = like.replace(target=like.target._replace(params={}, stats={}))
    with pytest.raises(CheckpointFormatError, match=r"lightly's learners have a target network.*use_momentum=True"):
        interop.load_byol_checkpoint(state_dict, like=simsiam)
    with pytest.raises(CheckpointFormatError, match="lightly's learners have a target network"):
        interop.save_byol_checkpoint(tmp_path / "x.npz", simsiam, layout="lightly")
    with pytest.raises(CheckpointFormatError, match="no lightly learner: expected backbone"):
        interop.load_byol_checkpoint({"fc.bias": np.zeros(2)}, like=like, source="lightly")
    online = {key: value for key, value in state_dict.items() if "momentum" not in key}
    with pytest.warns(AbsentTargetWarning, match="no target network"):
        state = interop.load_byol_checkpoint(online, like=like)
    np.testing.assert_array_equal(
        state.target.stats["projector"]["1"]["var"], state.online.stats["projector"]["1"]["var"]
    )


def test_a_representation_behind_fc_is_refused(tmp_path):
    from byol_jax import make_learner, nets

    one = make_learner(nets.resnet((1, 1), width=4, num_classes=5), image_size=16, hidden_layer=-1, projection_size=4)
    for layout in ("lightly", "solo_learn"):
        with pytest.raises(CheckpointFormatError, match=r'takes 5 features, fc 8: .*hidden_layer="avgpool"'):
            interop.save_byol_checkpoint(tmp_path / "x.npz", blank(one), layout=layout)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["cut", pytest.param("whole", marks=pytest.mark.long)])
def test_traced_networks_take_either_kind_of_names(backbone, tmp_path):
    """A file of a cut ResNet into a traced one that is cut as well, or that has torchvision's names; and back."""
    module = randomised(THEIRS["lightly-examples"]())
    net = cut(resnet()) if backbone == "cut" else resnet()
    encoder = interop.from_torch_module(net, image_size=32, verify=False)
    one = learner(encoder=encoder, hidden_layer="8" if backbone == "cut" else "avgpool")
    state = interop.load_byol_checkpoint(module.state_dict(), like=blank(one))
    own = flatten(state.target.params["encoder"])["5/0/conv1/weight" if backbone == "cut" else "layer2/0/conv1/weight"]
    np.testing.assert_array_equal(own, module.state_dict()["backbone_momentum.5.0.conv1.weight"])
    interop.save_byol_checkpoint(tmp_path / "learner.npz", state, layout="lightly")
    assert_identical(interop.load_state_dict(tmp_path / "learner.npz"), module.state_dict(), ordered=False)
