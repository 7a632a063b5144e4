"""Networks of torch by name that aren't there, can't be made, don't fit: exit code 2, one line, nothing written.

What only the words can be wrong about is in test_wrong_calls.py.
"""

import sys

import numpy as np
import pytest

import interop

pytest.importorskip("torch")

FACTORIES = """
import torch
from torch import nn

NUMBER = 3
network = nn.Conv2d(3, 4, 3)


class Net(nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, size)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()

    def forward(self, x):
        return self.flatten(self.pool(self.conv(x)))


class Spectrum(Net):
    def forward(self, x):
        return super().forward(torch.linalg.matrix_exp(x))


class Choosy(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def make():
    return Net()


def wide():
    return Net(9)


def with_argument(size):
    return Net(size)


def failing():
    raise RuntimeError("no such file\\n  or folder")


def leaving():
    raise SystemExit("usage: nets")


def several():
    return [Net(), Net()]
"""

# what is found out before the data is looked at, which can't be read: (words, what the line must contain)
NOT_FOUND = {
    "a network of torchvision's": (["torchvision:resnet81"], ["no network 'resnet81'", "nearest are resnet18"]),
    "a network of timm's": (["timm:test_resnt"], ["timm has no network 'test_resnt'", "test_resnet"]),
    "torchvision's weights": (
        ["torchvision:resnet50", "--weights", "IMAGENET1K_V3"],
        ["no weights 'IMAGENET1K_V3'", "IMAGENET1K_V2", "DEFAULT"],
    ),
    "timm's weights": (
        ["timm:resnet18", "--weights", "a1_in1"],
        ["timm:resnet18 has no weights 'a1_in1'", "use one of a1_in1k"],
    ),
    "weights that nobody trained": (
        ["timm:test_mambaout", "--weights", "DEFAULT"],
        ["no weights 'DEFAULT'", "there are none"],
    ),
    "an unknown tag": (["timm:resnet18.a1_in2k"], ["no weights 'a1_in2k'", "a1_in1k"]),
    "two tags": (["timm:resnet18.a1_in1k", "--weights", "a2_in1k"], ["names its weights already", "'a2_in1k'"]),
    "a module": (["nowhere_to_be_found.nets:make"], ["no module nowhere_to_be_found", "current folder"]),
    "a library": (["torchvison:resnet18"], ["no module torchvison", "nearest library is torchvision"]),
    "a factory": (["wrong_nets:mak"], ["wrong_nets has no mak", "nearest are make"]),
    "a number for a factory": (["wrong_nets:NUMBER"], ["is a int", "function without arguments"]),
    "a module for a factory": (["wrong_nets:network"], ["is a Conv2d", "function without arguments"]),
    "a module with a slip": (["broken_nets:make"], ["broken_nets can't be imported", "SyntaxError"]),
    "a module that needs another": (["needy_nets:make"], ["needy_nets can't be imported", "'nowhere_to_be_found'"]),
    "a module that is a program": (["program_nets:make"], ["program_nets can't be imported", "SystemExit: 3"]),
}

# what is found out with the images there: 8 x 8 x 3
DOES_NOT_FIT = {
    "images too small for it": (["wrong_nets:wide"], ["wrong_nets:wide can't take images of 8 x 8 x 3", "image size"]),
    "a factory with an argument": (["wrong_nets:with_argument"], ["failed: TypeError", "'size'"]),
    "a factory that fails": (["wrong_nets:failing"], ["failed: RuntimeError: no such file or folder"]),
    "a factory that leaves": (["wrong_nets:leaving"], ["failed: SystemExit: usage: nets"]),
    "a factory of two": (["wrong_nets:several"], ["gave a list", "expected a torch.nn.Module"]),
    "an operator that nobody has written": (["wrong_nets:Spectrum"], ["no JAX counterpart yet", "register_op"]),
    "code that looks at values": (["wrong_nets:Choosy"], ["decides by the values"]),
    "an unknown layer": (["wrong_nets:make", "--hidden-layer", "pol"], ["hidden layer 'pol' not found", "pool"]),
    "an index of no child": (["wrong_nets:make", "--hidden-layer", "3"], ["hidden layer 3 not found"]),
    "weights of another": (
        ["wrong_nets:make", "--init-from", "other.npz"],
        ["1 missing: conv.bias", "1 unexpected: conv.bais"],
    ),
    "no weights at all": (["wrong_nets:make", "--init-from", "done.npz"], ["done.npz: is empty"]),
}


@pytest.fixture
def nets_here(files):
    (files / "wrong_nets.py").write_text(FACTORIES)
    (files / "broken_nets.py").write_text("def make(:\n")
    (files / "needy_nets.py").write_text("import nowhere_to_be_found\n")
    (files / "program_nets.py").write_text("import sys\nsys.exit(3)\n")
    np.savez(files / "other.npz", **{"conv.weight": np.zeros((4, 3, 3, 3), "f"), "conv.bais": np.zeros(4, "f")})
    yield files
    sys.modules.pop("wrong_nets", None)


def snapshot(folder):
    return {path: path.lstat().st_mtime_ns for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts}


def check_refused(call, folder, words, expected):
    before, path = snapshot(folder), list(sys.path)
    answer = call(*words)
    assert (answer.code, answer.out) == (2, "")
    for part in expected:
        assert part in answer.complaint
    assert snapshot(folder) == before
    assert sys.path == path


COMMANDS = {
    "train": ["train", "photos", "--out", "new", "--steps", "3", "--schedule", "cosine", "--epochs", "1"],
    "embed": ["embed", "--data", "photos", "--out", "new.npz"],
    "preview": ["preview", "photos", "--out", "new.png"],
}


@pytest.mark.parametrize("name", NOT_FOUND)
def test_what_is_not_there(call, nets_here, name):
    words, expected = NOT_FOUND[name]
    check_refused(call, nets_here, [*COMMANDS["embed"], "--network", *words], expected)


@pytest.mark.parametrize("command", ["train", "preview"])
def test_every_command_looks_for_the_network_first(call, nets_here, command):
    words = [word for word in COMMANDS[command] if word not in ("--epochs", "1")]
    check_refused(call, nets_here, [*words, "--network", "timm:test_resnt"], ["timm has no network"])


@pytest.mark.slow
@pytest.mark.parametrize("name", DOES_NOT_FIT)
def test_what_does_not_fit(call, nets_here, name):
    words, expected = DOES_NOT_FIT[name]
    command = ["embed", "--data", "images.npy", "--out", "new.npz", "--network"]
    check_refused(call, nets_here, [*command, *words], expected)


@pytest.mark.slow
def test_training_and_preview_find_it_out_too(call, nets_here):
    train = ["train", "images.npy", "--out", "new", "--steps", "3", "--batch-size", "4", "--network"]
    check_refused(call, nets_here, [*train, "wrong_nets:wide"], ["can't take images of 8 x 8 x 3"])
    layer = ["wrong_nets:make", "--hidden-layer", "pol"]
    check_refused(call, nets_here, [*train, *layer], ["hidden layer 'pol' not found"])
    preview = ["preview", "images.npy", "--out", "new.png", "--network"]
    check_refused(call, nets_here, [*preview, *layer], ["hidden layer 'pol' not found"])


@pytest.mark.parametrize("library", ["torch", "torchvision", "timm"])
def test_a_library_that_is_not_installed(call, nets_here, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    name = "timm:test_resnet" if library == "timm" else "torchvision:resnet18"
    check_refused(call, nets_here, [*COMMANDS["embed"], "--network", name], ["pip install", library])


def test_weights_that_cannot_be_fetched(call, nets_here, monkeypatch, tmp_path_factory):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.mktemp("empty")))
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    words = ["embed", "--data", "images.npy", "--out", "new.npz", "--network", "torchvision:squeezenet1_1"]
    before = snapshot(nets_here)
    answer = call(*words, "--weights", "DEFAULT")
    assert (answer.code, answer.out) == (2, "")
    downloading, complaint = answer.err.splitlines()  # torchvision says where from
    assert "squeezenet1_1" in downloading
    assert "with weights 'DEFAULT' failed: OSError: no network" in complaint
    assert snapshot(nets_here) == before


def test_a_run_whose_network_is_gone_or_damaged(call, nets_here):
    import json

    from test_wrong_files import RUN

    from byol_jax.runs.config import encode_config

    network = {"name": "wrong_nets:make", "weights": None, "channels": 3}
    (nets_here / "run" / "config.json").write_bytes(encode_config(RUN | {"network": network}))
    words = ["embed", "run", "--data", "images.npy", "--out", "new.npz"]
    check_refused(call, nets_here, words, ["network.json", "no traced network that can be read"])
    (nets_here / "run" / "network").mkdir()
    (nets_here / "run" / "network" / "network.json").write_text(json.dumps({"format": 1}))
    interop.save_state_dict("run/network/network.safetensors", {"param/x": np.zeros(1, np.float32)})
    check_refused(call, nets_here, words, ["network.json", "isn't as it was written"])
