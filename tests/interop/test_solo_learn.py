"""solo-learn's learners as training states and back: the same leaves, the same next loss, CIFAR's stem said plainly."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from plain_learners import CLASSES, IMAGES, SoloLearn, learner, loss_of, randomised, resnet, their_next_loss
from weight_samples import assert_identical

import interop
from byol_jax import nets
from byol_jax.errors import CheckpointFormatError, StateDictMismatchError
from interop.learners.fitting import PaddingWarning
from tests.parity.trajectory import QUICK, blank

NAMES = pytest.mark.parametrize("name", ["backbone", "encoder"])


def leaves(state):
    networks = {"online": state.online, "target": state.target}
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(networks)}


@pytest.mark.slow
@NAMES
def test_both_spellings_go_in_and_out_unchanged(name, tmp_path):
    """The same keys and bits; loaded strictly by a module with their names, which were changed in 1.0.3."""
    module = randomised(SoloLearn(resnet(), name))
    state_dict = module.state_dict()
    checkpoint = {"state_dict": state_dict, "epoch": 3, "pytorch-lightning_version": "2.0.0", "hyper_parameters": {}}
    state = interop.load_byol_checkpoint(checkpoint, like=blank(learner(num_classes=CLASSES)))
    fc = state.online.params["encoder"]["fc"]
    np.testing.assert_array_equal(fc["kernel"].T, state_dict["classifier.weight"])
    interop.save_byol_checkpoint(tmp_path / "learner.ckpt", state, layout=f"solo-learn-{name}")
    saved = torch.load(tmp_path / "learner.ckpt")
    assert_identical(saved, state_dict, ordered=False)
    SoloLearn(resnet(), name).load_state_dict(saved, strict=True)
    again = interop.load_byol_checkpoint(tmp_path / "learner.ckpt", like=state, source="solo-learn")
    assert_identical(leaves(again), leaves(state))


@pytest.mark.long(tenth=False)
def test_training_goes_on_with_the_same_next_loss(tmp_path):
    one, module = learner(num_classes=CLASSES), randomised(SoloLearn(resnet()))
    state, next_loss = interop.load_byol_checkpoint(module.state_dict(), like=blank(one)), loss_of(one)
    assert next_loss(state) == pytest.approx(their_next_loss(module), rel=1e-5)
    state = jax.jit(one.step, compiler_options=QUICK)(state, IMAGES)[0]
    interop.save_byol_checkpoint(tmp_path / "learner.pt", state, layout="solo_learn")
    fresh = SoloLearn(resnet())
    fresh.load_state_dict(torch.load(tmp_path / "learner.pt"), strict=True)
    assert their_next_loss(fresh) == pytest.approx(next_loss(state), rel=1e-5)


def cifar_learner(padding):
    """`padding` 2: the images get one more zero on every side, and then the native stem's own."""
    encoder = nets.resnet((1, 1, 1, 1), num_classes=CLASSES, stem="cifar")

    def apply(variables, images, **options):
        wider = jnp.pad(images, ((0, 0), (padding - 1,) * 2, (padding - 1,) * 2, (0, 0)))
        return encoder.apply(variables, wider, **options)

    return learner(encoder=encoder._replace(apply=apply))


@pytest.mark.slow
def test_cifars_stem_pads_by_two_which_is_said(tmp_path):
    """With the padding that the warning asks for the embeddings are solo-learn's; without it they are far off."""
    module = randomised(SoloLearn(resnet(stem="cifar", padding=2))).eval()
    with torch.no_grad():
        expected = module.backbone(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())).numpy()
    for padding in (2, 1):
        one = cifar_learner(padding)
        with pytest.warns(PaddingWarning, match=r"pads its 3×3 stem by 2 pixels, nets\.resnet by 1") as caught:
            state = interop.load_byol_checkpoint(module.state_dict(), like=blank(one))
        assert caught[0].filename == __file__
        got = jax.jit(one.embed, compiler_options=QUICK)(state, IMAGES)
        off = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert off < 1e-5 if padding == 2 else 1e-3 < off < 1
    with pytest.warns(PaddingWarning, match="by 2 pixels"):
        interop.save_byol_checkpoint(tmp_path / "learner.npz", state, layout="solo-learn")
    assert_identical(interop.load_state_dict(tmp_path / "learner.npz"), module.state_dict(), ordered=False)


@pytest.mark.slow
def test_the_momentum_classifier_is_the_targets_fc():
    state_dict = randomised(SoloLearn(resnet())).state_dict()
    like = blank(learner(num_classes=CLASSES))
    like.target.params["encoder"]["fc"]["bias"] += 2
    state = interop.load_byol_checkpoint(state_dict, like=like)
    assert (state.target.params["encoder"]["fc"]["bias"] == 2).all()
    state_dict |= {f"momentum_{key}": 3 * value for key, value in state_dict.items() if key.startswith("classifier.")}
    state = interop.load_byol_checkpoint(state_dict, like=like)
    np.testing.assert_array_equal(state.target.params["encoder"]["fc"]["bias"], state_dict["momentum_classifier.bias"])


@pytest.mark.long
def test_a_traced_network_takes_them_with_its_own_padding(tmp_path):
    """torch's names and layouts stay, and nothing is warned of: a traced stem pads as its code says. And back."""
    net = resnet(stem="cifar", padding=2)
    module = randomised(SoloLearn(net))
    one = learner(encoder=interop.from_torch_module(resnet(stem="cifar", padding=2), image_size=32, verify=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = interop.load_byol_checkpoint(module.state_dict(), like=blank(one))
    interop.save_byol_checkpoint(tmp_path / "learner.npz", state, layout="solo-learn")
    saved = interop.load_state_dict(tmp_path / "learner.npz")
    assert_identical(saved, {k: v for k, v in module.state_dict().items() if "classifier" not in k}, ordered=False)
    assert loss_of(one)(state) == pytest.approx(their_next_loss(module), rel=1e-5)


def test_faults_are_named():
    state_dict = randomised(SoloLearn(resnet())).state_dict()
    like = blank(learner(num_classes=CLASSES))
    del state_dict["projector.3.bias"]
    with pytest.raises(StateDictMismatchError, match=r"1 missing: online\.projector\.3\.bias; 1 unexpected: queue"):
        interop.load_byol_checkpoint(state_dict | {"queue": torch.zeros(3)}, like=like)
    with pytest.raises(CheckpointFormatError, match="no solo-learn learner: expected backbone"):
        interop.load_byol_checkpoint({"fc.bias": np.zeros(2)}, like=like, source="solo_learn")
    other = randomised(SoloLearn(resnet(), "encoder")).state_dict()
    other["predictor.0.weight"] = torch.zeros(48, 16)
    with pytest.raises(
        StateDictMismatchError, match=r"predictor\.0\.weight \(given \[48, 16\].*prediction_hidden_size=48"
    ):
        interop.load_byol_checkpoint(other, like=like)
