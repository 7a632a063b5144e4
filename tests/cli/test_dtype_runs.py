"""`train --dtype bfloat16 --remat`: what a run keeps of it, how it goes on, and in what it is evaluated."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from byol_jax.cli.main import main
from byol_jax.nets.remat import KEEP_BARRIERS
from byol_jax.runs.reopen import open_run
from interop import load_state_dict

NETWORK = ["--network", "small_cnn", "--channels", "1"]
RECIPE = ["--image-size", "16", "--batch-size", "8", "--augment", "none", "--projection-size", "8"]
RECIPE += ["--projection-hidden-size", "16", "--learning-rate", "0.001", "--checkpoint-every", "1"]
BOTH = ["--dtype", "bfloat16", "--remat"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with images and `whole`, a run of four steps with both options."""
    root = tmp_path_factory.mktemp("world")
    np.save(root / "grey.npy", np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), np.uint8))
    np.save(root / "colour.npy", np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        given, compile_ = [], jax.stages.Lowered.compile
        patch.setattr(
            jax.stages.Lowered,
            "compile",
            lambda self, *a, **options: given.append(options) or compile_(self, *a, **options),
        )
        assert main(["train", "grey.npy", "--out", "whole", "--steps", "4", *NETWORK, *RECIPE, *BOTH]) == 0
    assert {"compiler_options": KEEP_BARRIERS} in given, "else XLA:CPU undoes remat"
    return root


@pytest.fixture
def train(call, world, monkeypatch):
    """`train("run", "--steps", "4", ...)`: the answer of that command."""
    monkeypatch.chdir(world)
    return lambda out, *words: call("train", "grey.npy", "--out", out, *NETWORK, *RECIPE, *words)


def leaves(run: Path) -> list[str]:
    """Names of the files of leaves, which have their hashes in them."""
    return sorted(path.name for path in (run / "checkpoints" / "00000004").glob("state-*"))


@pytest.mark.slow
def test_a_run_with_both_goes_on_bit_for_bit(train, world: Path) -> None:
    assert train("parts", "--steps", "2", *BOTH).code == 0
    assert train("parts", "--steps", "4", *BOTH, "--resume").code == 0
    assert leaves(world / "parts") == leaves(world / "whole") != []
    config = json.loads((world / "whole" / "config.json").read_text())
    assert (config["learner"]["dtype"], config["network"]["remat"]) == ("bfloat16", True)
    log = (world / "whole" / "train.log").read_text()
    assert log.count("bfloat16 on a CPU is slower") == 1


@pytest.mark.long
def test_another_dtype_or_remat_is_refused_when_a_run_goes_on(train, world: Path) -> None:
    assert train("usual", "--steps", "1").code == 0
    usual = json.loads((world / "usual" / "config.json").read_text())
    assert "dtype" not in usual["learner"]
    assert "remat" not in usual["network"]
    differ = {
        ("whole", "--remat"): 'learner/dtype: stored "bfloat16", given nothing',
        ("whole", "--dtype", "bfloat16"): "network/remat: stored true, given nothing",
        ("usual", "--dtype", "bfloat16"): 'learner/dtype: stored nothing, given "bfloat16"',
        ("usual", "--remat"): "network/remat: stored nothing, given true",
    }
    for (run, *words), reason in differ.items():
        answer = train(run, "--steps", "5", "--resume", *words)
        assert answer.code == 2
        assert reason in answer.complaint
    assert train("usual", "--steps", "2", "--resume", "--dtype", "float32").code == 0
    assert "bfloat16" not in (world / "usual" / "train.log").read_text()


@pytest.mark.slow
def test_a_run_is_evaluated_and_exported_in_float32(call, world: Path, monkeypatch) -> None:
    monkeypatch.chdir(world)
    assert call("embed", "whole", "--data", "grey.npy", "--out", "features.npz").code == 0
    assert call("export", "whole", "--out", "weights.safetensors").code == 0
    opened = open_run(world / "whole")
    images = np.load(world / "grey.npy")
    features = np.load(world / "features.npz")["embeddings"]
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, opened.embedding()(opened.state, images), rtol=1e-5, atol=1e-6)
    assert "bf16" not in str(jax.make_jaxpr(opened.learner.embed)(opened.state, images))
    weights = load_state_dict(world / "weights.safetensors")
    assert {array.dtype.name for array in weights.values() if array.dtype.kind == "f"} == {"float32"}
    short = [name for name, array in weights.items() if array.dtype.kind == "f" and array.size > 8 and is_short(array)]
    assert short == [], "no weight was rounded to 16 bits on the way"


def is_short(array: np.ndarray) -> bool:
    return bool(np.any(array)) and np.array_equal(array.view(np.uint32) & 0xFFFF, np.zeros(array.shape, np.uint32))


FACTORY = """
from torch import nn


def make():
    block = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    return nn.Sequential(nn.Conv2d(3, 4, 2, 2), *block * 3, nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.mark.long
def test_a_torch_module_with_both_goes_on_bit_for_bit(call, world: Path, monkeypatch) -> None:
    monkeypatch.chdir(world)
    monkeypatch.syspath_prepend(world)
    (world / "tiny_net_for_dtypes.py").write_text(FACTORY)
    importlib.invalidate_caches()

    def run(out: str, *words: str) -> int:
        network = ["--network", "tiny_net_for_dtypes:make", "--hidden-layer", "-1"]
        return call("train", "colour.npy", "--out", out, *network, *RECIPE, *BOTH, *words).code

    assert run("module", "--steps", "4") == 0
    assert run("stopped", "--steps", "2") == 0
    assert run("stopped", "--steps", "4", "--resume") == 0
    assert leaves(world / "stopped") == leaves(world / "module") != []
    opened = open_run(world / "stopped")
    assert opened.config["network"]["remat"] is True
    assert opened.encoder.facts.remat
