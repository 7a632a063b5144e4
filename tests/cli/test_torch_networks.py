"""Networks of torch on the command line, by name: trained, kept in the run's folder, opened again without torch.

One run of a tiny module, written into the working directory as a person's own code would be; libraries' networks are
only embedded with. What can go wrong is in test_torch_networks_wrong.py.
"""

import importlib
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from two_classes import write_two_classes

import interop
from byol_jax import checkpoint
from byol_jax.cli.main import main
from byol_jax.data import evaluation_images, open_dataset
from byol_jax.settings import IMAGENET_MEAN_STD
from interop.trace.modules import torch_module

pytestmark = pytest.mark.slow

FACTORY = """
import torch
from torch import nn

import tiny_parts_of_a_person  # beside it


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.first = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("unsaved", torch.zeros(8), persistent=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        x = self.second(self.first(x).relu())
        if self.training:
            self.calls += 1
            self.unsaved.mul_(0.5)
        return self.head(self.pool(x).flatten(1))


def make():
    return tiny_parts_of_a_person.same(Net())
"""
NAME = "tiny_net_of_a_person:make"
NETWORK = ["--network", NAME, "--image-size", "16"]
SIZES = ["--batch-size", "8", "--projection-size", "8", "--projection-hidden-size", "16", "--checkpoint-every", "2"]
SIZES += ["--augment", "none"]
SEED = ["--seed", "3"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with `photos/dark` and `photos/light`, six images each, a module of ours, and `run`, trained on them."""
    root = tmp_path_factory.mktemp("world")
    write_two_classes(root / "photos")
    (root / "tiny_net_of_a_person.py").write_text(FACTORY)
    (root / "tiny_parts_of_a_person.py").write_text("def same(network):\n    return network\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        path = list(sys.path)
        assert main(["train", "photos", "--out", "run", "--steps", "4", *NETWORK, *SIZES, *SEED]) == 0
        assert sys.path == path
    return root


@pytest.fixture(autouse=True)
def there(world, monkeypatch):
    monkeypatch.chdir(world)


def new_module(seed=3):
    torch.manual_seed(seed)
    return importlib.import_module("tiny_net_of_a_person").Net()


def features_in_torch(module, layer="pool", size=16, normalize=IMAGENET_MEAN_STD):
    """Of the photos, prepared as everywhere; [12, D]."""
    images = evaluation_images(open_dataset("photos", image_size=size), np.arange(12), size)
    mean, std = (np.asarray(part, np.float32) for part in normalize)
    inputs = torch.from_numpy(((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2).copy())
    seen = {}
    module.get_submodule(layer).register_forward_hook(lambda m, i, output: seen.update(y=output.flatten(1)))
    with torch.no_grad():
        module.eval()(inputs)
    return seen["y"].numpy()


def embedded(call, *words, out="features.npy"):
    answer = call("embed", *words, "--data", "photos", "--out", out, "--overwrite")
    assert answer.code == 0, answer.err
    return np.load(out)


def test_the_run_says_and_keeps_what_the_network_is(world):
    config = json.loads(Path("run/config.json").read_text())
    assert config["network"] == {"name": NAME, "weights": None, "channels": 3}
    assert (config["image_size"], config["seed"]) == (16, 3)
    kept = interop.load_network("run/network")
    wanted = new_module().state_dict()
    for name, ours in kept.init(jax.random.key(0), (16, 16, 3)).params["conv"].items():
        np.testing.assert_array_equal(ours, wanted[f"conv.{name}"])


def test_what_was_trained_goes_back_into_the_module(world, call):
    """Strictly, under its own names, tied and integer ones included; then both give the same features."""
    module = new_module(seed=0)
    state_dict = safetensors.torch.load_file("run/exported/encoder.safetensors")
    module.load_state_dict(state_dict, strict=True)
    assert state_dict["calls"].dtype == torch.int64
    assert int(state_dict["calls"]) == int(state_dict["norm.num_batches_tracked"]) > 0
    np.testing.assert_allclose(embedded(call, "run"), features_in_torch(module), atol=1e-5)

    assert call("export", "run", "--out", "target.pt", "--which", "target").code == 0
    module.load_state_dict(torch.load("target.pt", weights_only=True), strict=True)
    np.testing.assert_allclose(embedded(call, "run", "--which", "target"), features_in_torch(module), atol=1e-5)


WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "timm"):
    sys.modules[name] = None
from byol_jax.cli.main import main
run, photos = sys.argv[1:]
for words in (
    ["embed", run, "--data", photos, "--out", "features.npy"],
    ["evaluate", run, "--data", photos, "--k", "3", "--json"],
    ["export", run, "--out", "net.safetensors"],
):
    code = main(words)
    assert code == 0, (words, code)
"""


def test_a_run_opens_without_torch_and_without_the_code(world, tmp_path, call):
    paths = {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu", "PATH": ""}
    words = [sys.executable, "-c", WITHOUT_TORCH, world / "run", world / "photos"]
    done = subprocess.run(words, cwd=tmp_path, env=paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), embedded(call, "run"), atol=1e-6)
    scores = json.loads(done.stdout.splitlines()[1])["scores"]
    assert set(scores) == {"raw_pixels", "starting_weights", "byol"}  # what a factory gives, nobody else knows
    exported = interop.load_state_dict(tmp_path / "net.safetensors")
    assert set(exported) == set(new_module().state_dict())


def without_torch(monkeypatch):
    for name in ("torch", "torchvision", "timm"):
        monkeypatch.setitem(sys.modules, name, None)


def test_a_run_goes_on_without_torch_to_the_same_end(world, call, monkeypatch):
    """To the end of `run`, which is the same command without a stop."""
    words = ["train", "photos", *NETWORK, *SIZES, *SEED]
    assert call(*words, "--out", "halves", "--steps", "2").code == 0
    kept = Path("halves/network/network.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        without_torch(patch)
        assert call(*words, "--out", "halves", "--steps", "4", "--resume").code == 0
        assert Path("halves/network/network.safetensors").stat().st_mtime_ns == kept
        for others, expected in (
            (["--image-size", "32"], "image_size: stored 16, given 32"),
            (["--network", "timm:resnet18"], f'network/name: stored "{NAME}", given "timm:resnet18"'),
            (["--seed", "4"], "seed: stored 3, given 4"),
        ):
            answer = call(*words, "--out", "halves", "--steps", "6", "--resume", *others)
            assert answer.code == 2
            assert expected in answer.complaint
    whole, halves = (checkpoint.latest(Path(run) / "checkpoints") for run in ("run", "halves"))
    assert whole is not None
    assert halves is not None
    assert [file.name for file in whole.glob("*.safetensors")] == [file.name for file in halves.glob("*.safetensors")]


def test_a_fresh_start_keeps_a_new_network(world, call):
    shutil.copytree("run", "anew")
    answer = call("train", "photos", *NETWORK, *SIZES, "--steps", "2", "--out", "anew", "--seed", "2", "--overwrite")
    assert answer.code == 0
    kept = interop.load_state_dict("anew/network/network.safetensors")["param/conv/weight"]
    np.testing.assert_array_equal(kept, new_module(seed=2).conv.weight.detach())


def test_a_file_of_weights_to_start_from(world, call):
    module = new_module(seed=7)
    module.calls += 9
    torch.save(module.state_dict(), "start.pt")
    features = embedded(call, *NETWORK, "--init-from", "start.pt")
    np.testing.assert_allclose(features, features_in_torch(module), atol=1e-5)
    words = ["train", "photos", *NETWORK, *SIZES, "--steps", "2", "--init-from", "start.pt", "--optimizer", "sgd"]
    assert call(*words, "--out", "started", "--learning-rate", "1e-30").code == 0
    trained = interop.load_state_dict("started/exported/encoder.safetensors")
    np.testing.assert_array_equal(trained["conv.weight"], module.conv.weight.detach())
    assert trained["calls"] > 9
    start = interop.load_state_dict("started/exported/start.safetensors")
    assert {name: array.tolist() for name, array in start.items()} == {
        name: tensor.tolist() for name, tensor in module.state_dict().items()
    }
    answer = call("evaluate", "started", "--data", "photos", "--k", "3", "--json")
    assert set(json.loads(answer.out)["scores"]) == {"raw_pixels", "starting_weights", "byol"}


def test_embed_needs_no_run(world, call):
    module = new_module(seed=0)  # embed has no seed: 0
    np.testing.assert_allclose(embedded(call, *NETWORK), features_in_torch(module), atol=1e-5)
    conv = embedded(call, *NETWORK, "--hidden-layer", "conv", "--batch-size", "5")
    np.testing.assert_allclose(conv, features_in_torch(module, layer="conv"), atol=1e-5)


def test_embed_with_a_native_network(world, call):
    from torchvision import models

    module = models.resnet18()
    torch.save(module.state_dict(), "resnet18.pt")
    words = ["--network", "resnet18", "--image-size", "32", "--init-from", "resnet18.pt"]
    features = embedded(call, *words)
    np.testing.assert_allclose(features, features_in_torch(module, "avgpool", 32), atol=1e-4)


@pytest.mark.long
def test_weights_that_torchvision_names(world, call, monkeypatch, tmp_path):
    """Found where torchvision keeps what it downloaded; here it is a file of ours, of another seed."""
    from torchvision import models

    module = models.squeezenet1_1()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    url = models.SqueezeNet1_1_Weights.DEFAULT.url
    torch.save(module.state_dict(), tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    words = ["--network", "torchvision:squeezenet1_1", "--weights", "DEFAULT", "--image-size", "32"]
    features = embedded(call, *words)
    np.testing.assert_allclose(features, features_in_torch(module, "features", 32), atol=1e-4)


@pytest.mark.long
def test_images_are_normalised_as_the_named_weights_want_it(world, call, monkeypatch):
    """timm's test_vit.r160_in1k: (0.5, 0.5). Embedded with; trained from, gone on with, and opened again.

    Cut to one block, so that there is little to compile.
    """
    import timm

    cut = {"img_size": 32, "depth": 1, "embed_dim": 16, "num_heads": 1}
    smaller = partial(timm.create_model, **cut)
    module = smaller("test_vit")
    torch.save(module.state_dict(), "vit.pt")
    of_ours = {"file": "vit.pt", "hf_hub_id": None}
    monkeypatch.setattr(timm, "create_model", partial(smaller, pretrained_cfg_overlay=of_ours))
    normalize = ((0.5,) * 3,) * 2
    words = ["--network", "timm:test_vit", "--image-size", "32"]
    weights = ["--weights", "r160_in1k"]
    features = embedded(call, *words, *weights, "--hidden-layer", "fc_norm")
    expected = features_in_torch(module, "fc_norm", 32, normalize)
    np.testing.assert_allclose(features, expected, atol=1e-4)
    for steps, more in (("1", []), ("2", ["--resume"])):
        run = ["train", "photos", "--out", "vit", "--steps", steps, *SIZES, "--hidden-layer", "fc_norm"]
        answer = call(*run, *words, *weights, *more)
        assert answer.code == 0, answer.err
    network = json.loads(Path("vit/config.json").read_text())["network"]
    assert network == {"name": "timm:test_vit", "weights": "r160_in1k", "channels": 3, "normalize": [[0.5] * 3] * 2}
    assert call("export", "vit", "--out", "trained.pt").code == 0
    module.load_state_dict(torch.load("trained.pt"))
    expected = features_in_torch(module, "fc_norm", 32, normalize)
    np.testing.assert_allclose(embedded(call, "vit"), expected, atol=1e-4)


@pytest.mark.long
def test_preview_says_what_the_network_makes_of_the_views(world, call):
    words = ["preview", "photos", "--out", "views.png", "--image-size", "32", "--channels", "1", "--augment", "none"]
    answer = call(*words, "--network", "timm:test_resnet", "--hidden-layer", "global_pool")
    assert answer.code == 0, answer.err
    picture, heading, *layers = answer.out.splitlines()
    module = torch_module("timm:test_resnet", channels=1)
    count = sum(parameter.numel() for parameter in module.parameters())
    assert picture == "views.png"
    assert heading == f"timm:test_resnet takes 32 x 32 x 1: {count:,} parameters, 96 features at global_pool"
    assert [line.split() for line in layers[-2:]] == [["global_pool", "96"], ["fc", "1,000"]]
    assert [line.split()[0] for line in layers] == [name for name, _ in module.named_children()]


def test_preview_with_a_native_network(world, call):
    words = ["preview", "photos", "--out", "native.png", "--image-size", "32", "--augment", "none"]
    answer = call(*words, "--network", "small_cnn", "--hidden-layer", "-1")
    assert answer.code == 0
    assert "small_cnn takes 32 x 32 x 3: " in answer.out
    assert "10 features at the output\n" in answer.out
