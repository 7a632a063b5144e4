"""All but PyTorch's own files works where PyTorch isn't installed: train, evaluate, export, reload."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import byol_jax
import interop
from byol_jax import checkpoint, evaluate, nets
from byol_jax.cli import demo_run
from byol_jax.cli.main import main

OPTIONS = {"image_size": 16, "batch_size": 8, "num_channels": 1, "projection_size": 8, "projection_hidden_size": 16}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (32, 16, 16, 1), np.uint8)


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """A run of two steps: its folder, the encoder, the state."""
    out = tmp_path_factory.mktemp("runs") / "run"
    encoder = nets.small_cnn(num_classes=None)
    state = byol_jax.pretrain(
        encoder, images, out=out, steps=2, checkpoint_every=1, hidden_layer=-1, progress=False, **OPTIONS
    )
    return out, encoder, state


def learner_of(encoder):
    options = {name: value for name, value in OPTIONS.items() if name != "batch_size"}
    return byol_jax.make_learner(encoder, hidden_layer=-1, **options)


def command_line(*arguments):
    program = Path(sys.executable).with_name("byol-jax")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_torch_is_absent():
    assert importlib.util.find_spec("torch") is None


def test_checkpoint_of_a_run_restores(trained):
    out, encoder, state = trained
    restored = checkpoint.restore(out / "checkpoints", like=jax.eval_shape(learner_of(encoder).init, jax.random.key(0)))
    assert int(restored.state.step) == 2
    for one, other in zip(jax.tree.leaves(restored.state.online), jax.tree.leaves(state.online), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_features_are_evaluated(trained, images):
    _, encoder, state = trained
    features = np.asarray(jax.jit(learner_of(encoder).embed)(state, images))
    labels = np.arange(32, dtype=np.int32) % 4
    result = evaluate.knn(features, labels, features, labels, k=1)
    assert result.accuracy == 1.0


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_weights_go_out_and_come_back(trained, tmp_path, suffix):
    _, _, state = trained
    variables = byol_jax.encoder_variables(state)
    weights = interop.to_torch_state_dict(variables)
    interop.save_state_dict(tmp_path / f"net{suffix}", weights)
    loaded = interop.load_state_dict(tmp_path / f"net{suffix}")
    assert sorted(loaded) == sorted(weights)
    back = interop.from_torch_state_dict(loaded, like=variables)
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(variables), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_what_needs_torch_says_how_to_get_it(tmp_path):
    with pytest.raises(interop.MissingDependencyError, match=r"byol-jax\[torch\]"):
        interop.save_state_dict(tmp_path / "weights.pt", {"weight": np.zeros(3, np.float32)})
    assert list(tmp_path.iterdir()) == []


def test_command_line_from_an_array_to_weights(images, tmp_path):
    data = tmp_path / "images.npz"
    np.savez(data, images=images, labels=np.arange(32) % 4)
    sizes = ("--image-size", 16, "--batch-size", 8, "--projection-size", 8, "--projection-hidden-size", 16)
    trained = command_line("train", data, "--network", "small_cnn", *sizes, "--steps", 2, "--out", tmp_path / "run")
    assert trained.returncode == 0, trained.stderr
    evaluated = command_line("evaluate", tmp_path / "run", "--data", data)
    assert evaluated.returncode == 0, evaluated.stderr
    exported = command_line("export", tmp_path / "run", "--out", tmp_path / "net.safetensors")
    assert exported.returncode == 0, exported.stderr
    assert interop.load_state_dict(tmp_path / "net.safetensors")


def test_the_demo_says_before_it_trains_that_it_leaves_the_hand_over_out(tmp_path, monkeypatch, capsys):
    images, labels = demo_run._embedded_images()
    monkeypatch.setattr(demo_run, "_embedded_images", lambda: (images[:300], labels[:300]))
    monkeypatch.setattr(demo_run, "TRAIN_IMAGES", 200)
    assert main(["demo", "--out", str(tmp_path / "demo"), "--steps", "2"]) == 0
    said = capsys.readouterr().err.splitlines()
    left_out = [number for number, line in enumerate(said) if 'pip install "byol-jax[torch]"' in line]
    compiled = [number for number, line in enumerate(said) if line.startswith("compiled the step")]
    assert left_out[-1] < compiled[0]
    assert "exported/encoder.safetensors" in said[-1]
    assert interop.load_state_dict(tmp_path / "demo" / "exported" / "encoder.safetensors")
    assert set(json.loads((tmp_path / "demo" / "results.json").read_text())) >= {"raw_pixels", "random_init", "byol"}


def test_an_error_is_one_line(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("one.png", "two.png"):
        (tmp_path / "photos" / name).write_bytes(b"no image")
    refused = command_line("train", tmp_path / "photos", "--image-size", 16, "--steps", 1, "--out", tmp_path / "run")
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
