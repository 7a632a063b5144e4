"""Networks that take a file's weights and compute something else: said wherever such weights come in or go out."""

import re
import warnings

import pytest
import torch
import torchvision
from plain_learners import Lightly, SoloLearn, learner, lightly_cifar, resnet
from torch import nn
from weight_samples import assert_identical

import interop
from byol_jax import make_learner, nets
from byol_jax.cli.main import main
from byol_jax.tree import flatten
from interop.__main__ import main as inspecting
from interop.learners.fitting import PaddingWarning, StemWarning
from tests.parity.trajectory import blank

THEIRS = {
    "lightly": (lambda: Lightly(lightly_cifar()), StemWarning, "no ReLU behind the stem", "no ReLU behind its stem"),
    "solo-learn": (
        lambda: SoloLearn(resnet(stem="cifar", padding=2)),
        PaddingWarning,
        "stem padded by 2",
        "pads its 3×3 stem by 2 pixels",
    ),
}
EACH = pytest.mark.parametrize("library", THEIRS)


@pytest.fixture
def file(tmp_path, library):
    torch.save({"state_dict": THEIRS[library][0]().state_dict()}, tmp_path / "learner.ckpt")
    return tmp_path / "learner.ckpt"


def small_resnet():
    return nets.resnet((1, 1, 1, 1), num_classes=None, stem="cifar")


@EACH
def test_inspect_lists_it(library, file, capsys):
    assert inspecting(["inspect", str(file)]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("architecture:")]
    assert THEIRS[library][2] in line


@pytest.mark.slow
@EACH
def test_an_encoder_that_starts_from_it_is_warned_of(library, file):
    """Alone, and where the heads don't fit; once where the whole learner starts from it."""
    category = THEIRS[library][1]
    state = blank(learner(stem="cifar"))
    with pytest.warns(category, match="computes the same") as caught:
        interop.open_weights(file).start_encoder(small_resnet(), state)
    assert (len(caught), caught[0].filename) == (1, __file__)
    with pytest.warns(category) as caught:
        interop.open_weights(file).start(small_resnet(), state)
    assert len(caught) == 1
    narrow = blank(make_learner(small_resnet(), image_size=32, hidden_layer="avgpool", projection_size=4))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        interop.open_weights(file).start(small_resnet(), narrow)
    assert [one.category for one in caught] == [UserWarning, category]


@pytest.mark.slow
@pytest.mark.parametrize("library", ["lightly"])
def test_nothing_is_said_of_a_traced_network(library, file):
    encoder = interop.from_torch_module(lightly_cifar(), image_size=32, verify=False)
    state = blank(learner(encoder=encoder, hidden_layer="6"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        started = interop.open_weights(file).start_encoder(encoder, state)
        loaded = interop.load_byol_checkpoint(file, like=state)
    assert_identical(flatten(started.online.params["encoder"]), flatten(loaded.online.params["encoder"]))


def small_torch_resnet18():
    net = torchvision.models.resnet18(num_classes=1)
    net.conv1, net.maxpool, net.fc = nn.Conv2d(3, 64, 3, padding=2, bias=False), nn.Identity(), nn.Identity()
    return net


WHOLE = {
    "lightly": lambda: Lightly(lightly_cifar("resnet-18")),
    "solo-learn": lambda: SoloLearn(small_torch_resnet18()),
}


@pytest.mark.slow
@EACH
@pytest.mark.filterwarnings("default:.*computes the same")
def test_import_says_it_in_one_line(library, tmp_path, monkeypatch, capsys):
    """The network is told by its names, and comes under torchvision's; or the whole learner goes on."""
    monkeypatch.chdir(tmp_path)
    torch.save(WHOLE[library]().state_dict(), "x.pt")
    for layout in ([], ["--layout", "byol-pytorch"]):
        assert main(["import", "x.pt", "--out", "y.safetensors", "--image-size", "32", "--overwrite", *layout]) == 0
        got = capsys.readouterr()
        assert "resnet18-cifar" in got.out
        (line,) = got.err.splitlines()
        assert re.search(rf"warning: x\.pt: .*{THEIRS[library][3]}", line)
