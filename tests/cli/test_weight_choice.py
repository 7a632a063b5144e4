"""`--which-weights` and `--prefix` wherever a command reads weights, and what it says where neither is given."""

import argparse
import json

import numpy as np
import pytest
import torch
import torchvision

import interop
from tests.cli.learner_modules import IMPORT, SIZE, arrays, small_cnn
from tests.interop.plain_learners import randomised
from tests.interop.weight_samples import assert_identical

RAW, AVERAGE = (randomised(small_cnn(), seed).state_dict() for seed in (1, 2))
CHOICE = ["--which-weights", "teacher", "--prefix", "backbone"]

pytestmark = pytest.mark.filterwarnings("always::interop.files.SeveralWeightsWarning", "always::UserWarning")


@pytest.fixture
def there(tmp_path, monkeypatch):
    """timm's kind of file, DINO's kind, and the weights by themselves."""
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": RAW, "state_dict_ema": AVERAGE, "args": argparse.Namespace(lr=1)}, "timm.pth")
    student, teacher = ({f"backbone.{name}": tensor for name, tensor in given.items()} for given in (RAW, AVERAGE))
    torch.save({"student": student, "teacher": teacher | {"head.mlp.weight": torch.zeros(2)}}, "dino.pth")
    torch.save(AVERAGE, "plain.pth")
    np.savez("images.npz", images=np.random.default_rng(0).integers(0, 256, (16, SIZE, SIZE, 3), np.uint8))
    return tmp_path


@pytest.mark.parametrize("words", [["import", *IMPORT], ["convert"]])
def test_the_choice_is_what_is_written(words, call, there):
    command, *rest = words
    out = [] if command == "convert" else ["--out"]
    wanted = {name: tensor.numpy() for name, tensor in AVERAGE.items()}
    for number, given in enumerate(
        (["timm.pth"], ["timm.pth", "--which-weights", "state_dict_ema"], ["dino.pth", *CHOICE])
    ):
        answer = call(command, *given, *out, f"{number}.safetensors", *rest)
        assert answer.code == 0, answer.err
        assert ("state_dict_ema is taken, the average, as timm does" in answer.err) == (number == 0)
        assert answer.err.count("\n") == (number == 0)
        assert_identical(interop.load_state_dict(f"{number}.safetensors"), wanted, ordered=False)


@pytest.mark.slow
def test_features_are_those_of_the_choice(call, there):
    embed = ["embed", "--network", "small_cnn", "--data", "images.npz", "--out"]
    for name, given in {"a": ["plain.pth"], "b": ["dino.pth", *CHOICE], "c": ["timm.pth"]}.items():
        assert call(*embed, f"{name}.npy", "--init-from", *given).code == 0
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))
    assert np.array_equal(np.load("a.npy"), np.load("c.npy"))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["convert", "timm.pth", "x.npz", "--which-weights", "ema"], ["no weights called 'ema'", "state_dict_ema"]),
        (["import", "dino.pth", "--out", "x.safetensors", "--prefix", "net"], ["begins with 'net'", "backbone"]),
        (
            ["import", "dino.pth", "--out", "x.safetensors", "--which-weights", "teacher", *IMPORT],
            ["those below backbone are", "--prefix backbone"],
        ),
        (
            ["train", "images.npz", "--steps", "1", "--out", "run", "--which-weights", "ema"],
            ["--which-weights needs --init-from"],
        ),
        (["preview", "images.npz", "--out", "x.png", "--prefix", "ema"], ["--prefix needs --init-from"]),
    ],
)
def test_wrong_choices_are_one_line_and_leave_nothing(words, parts, call, there):
    before = sorted(there.rglob("*"))
    answer = call(*words)
    assert answer.code == 2
    for part in parts:
        assert part in answer.err.splitlines()[-1]
    assert sorted(there.rglob("*")) == before


@pytest.mark.slow
def test_a_network_of_mocos_is_imported_by_its_prefix(call, there):
    """MoCo v2's names; its projection head stands in fc's place, and a queue beside the two networks."""
    net = randomised(torchvision.models.resnet18(num_classes=8), 0)
    net.fc = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.ReLU(), torch.nn.Linear(512, 8))
    state_dict = {f"module.encoder_{part}.{name}": tensor for part in "qk" for name, tensor in net.state_dict().items()}
    state_dict |= {"module.queue": torch.zeros(8, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": state_dict, "optimizer": {}}, "moco.pth.tar")
    answer = call("import", "moco.pth.tar", "--out", "o.safetensors")
    assert (answer.code, "prefix='encoder_q' (--prefix encoder_q)" in answer.complaint) == (2, True)
    answer = call("import", "moco.pth.tar", "--out", "o.safetensors", "--prefix", "encoder_q")
    assert answer.code == 0
    assert "a head in the classifier's place is left out: fc.0.weight, fc.0.bias, fc.2.weight" in answer.complaint
    wanted = {name: array for name, array in arrays(net).items() if not name.startswith("fc.")}
    assert_identical(interop.load_state_dict("o.safetensors"), wanted, ordered=False)


@pytest.mark.slow
def test_a_run_starts_from_the_choice_and_goes_on_with_no_other(call, there):
    words = ["train", "images.npz", "--network", "small_cnn", "--steps", 1, "--batch-size", 8, "--out", "run"]
    words += ["--projection-size", 4, "--projection-hidden-size", 8, "--augment", "none"]
    assert call(*words, "--init-from", "dino.pth", *CHOICE).code == 0
    noted = json.loads((there / "run" / "config.json").read_text())["init_from"]
    assert (noted["entry"], noted["prefix"]) == ("teacher", "backbone")
    start = interop.load_state_dict("run/exported/start.safetensors")
    assert_identical(start, {name: tensor.numpy() for name, tensor in AVERAGE.items()}, ordered=False)
    other = ["--init-from", "dino.pth", "--which-weights", "student", "--prefix", "backbone"]
    answer = call(*words, "--resume", *other)
    assert answer.code == 2
    assert 'init_from/entry: stored "teacher", given "student"' in answer.err
    assert call(*words, "--resume", "--init-from", "dino.pth", *CHOICE).code == 0
