"""Each published recipe is one command: what it builds, what is given beside it, and how a run of it goes on.

Affordable networks are trained for two steps; of ResNet-50 it is checked which learner would be trained.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from two_classes import write_two_classes

from byol_jax import make_learner, presets, recipe
from byol_jax.runs.config import encode_config, read_config

KNOWN = presets.known()
TINY = ["--network", "small_cnn", "--projection-size", "8", "--projection-hidden-size", "16", "--augment", "none"]
TINY += ["--image-size", "16", "--checkpoint-every", "1", "--log-every", "1"]


@pytest.fixture
def photos(tmp_path):
    write_two_classes(tmp_path / "photos")
    return tmp_path / "photos"


class Started(Exception):
    """What `train_recipe` was called with."""


@pytest.fixture
def asked(monkeypatch, call):
    """`asked("train", ...)`: encoder, data, recipe and config.json's network of the run that would begin."""
    seen = {}

    def begin(encoder, data, recipe, program, *, network, every_image):
        seen.update(encoder=encoder, data=data, recipe=recipe, network=network, every_image=every_image)

    monkeypatch.setattr("byol_jax.train.train_recipe", begin)

    def run(*words):
        answer = call(*words)
        assert answer.code == 0, answer.err
        return dict(seen)

    return run


@pytest.mark.parametrize("one", KNOWN, ids=lambda one: one.preset.name)
def test_a_preset_is_one_command(photos, asked, one, tmp_path):
    preset = one.preset
    begun = asked("train", photos, "--out", tmp_path / "run", "--preset", preset.name)
    assert begun["recipe"] == preset
    assert begun["every_image"]
    options = {} if preset.network == "small_cnn" else {"padding": "same", "shortcut": "always"}
    classes = 10 if preset.network == "small_cnn" else 1000
    assert begun["network"] == {
        "name": preset.network,
        "channels": preset.num_channels,
        "num_classes": classes,
        **options,
    }
    layers = begun["encoder"].hidden_layers()
    assert ("layer1.0.downsample.0" in layers) == (preset.network != "small_cnn")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet-300", "small_grey"])
def test_the_learner_is_that_of_the_preset(photos, asked, name, tmp_path):
    """Shapes of state and step, and the network's padding; nothing is computed."""
    begun = asked("train", photos, "--out", tmp_path / "run", "--preset", name)
    preset = begun["recipe"]
    whole = recipe.size_for_run(preset, total_steps=100, steps_per_epoch=4.5, batch_size=8)
    learner = make_learner(begun["encoder"], **recipe.learner_arguments(whole))
    state = jax.eval_shape(learner.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((8, preset.image_size, preset.image_size, preset.num_channels), jnp.uint8)
    after, metrics = jax.eval_shape(learner.step, state, images)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert metrics["decay"].shape == ()
    head = state.online.params["projector"]["0"]["kernel"].shape
    assert head == ((2048, 4096) if name == "imagenet-300" else (2048, 256))


@pytest.mark.long(tenth=False)
def test_imagenette_trains(photos, call, tmp_path):
    """The paper's network and recipe at the size of a postage stamp; the run is opened with its own padding."""
    run = tmp_path / "run"
    sizes = ["--steps", "2", "--batch-size", "8", "--image-size", "32"]
    sizes += ["--projection-size", "8", "--projection-hidden-size", "16"]  # 8 devices hold the state once each
    answer = call("train", photos, "--out", run, "--preset", "imagenette", *sizes)
    assert answer.code == 0, answer.err
    assert "the warm-up of 15 steps is longer than the run" in answer.err
    config = read_config(run)
    assert config["network"] == {
        "name": "resnet18",
        "channels": 3,
        "num_classes": 1000,
        "padding": "same",
        "shortcut": "always",
    }
    assert (config["image_size"], config["steps"], config["batch_size"]) == (32, 2, 8)
    learner = config["learner"]
    assert (learner["optimizer"], learner["learning_rate"], learner["weight_decay"]) == ("lars", 2.0, 1e-6)
    assert (learner["scale_learning_rate"], learner["views"], learner["warmup_steps"]) == (True, "separate", 15)
    assert (learner["augment"], learner["moving_average_decay"]) == ("byol", 0.996)
    assert call("embed", run, "--data", photos, "--out", tmp_path / "features.npy").code == 0
    assert np.load(tmp_path / "features.npy").shape == (12, 512)
    exported = call("export", run, "--out", tmp_path / "improved.pt")
    assert exported.code == 0, exported.err
    assert all("the network pads as TensorFlow does" in said.err for said in (answer, exported))


@pytest.mark.slow
def test_small_grey_trains_and_goes_on(call, tmp_path):
    run = tmp_path / "run"
    words = ["train", "fashion-mnist", "--out", run, "--preset", "small_grey", "--batch-size", "16"]
    assert call(*words, "--steps", "2").code == 0
    config = read_config(run)
    assert (config["image_size"], config["steps"], config["learner"]["warmup_fraction"]) == (28, 2, 0.05)
    assert config["learner"]["normalize"] == [[0.3], [0.35]]
    answer = call(*words, "--steps", "3", "--resume")
    assert answer.code == 0, answer.err
    assert (run / "checkpoints" / "00000003").is_dir()


def _states(run):
    return {int(path.parent.name): path.name for path in (run / "checkpoints").glob("*/state-*")}


@pytest.mark.slow
def test_a_run_with_lars_from_before_goes_on_at_its_own_rate(photos, call, tmp_path):
    """config.json as f664bb0 wrote it says nothing of scaling: at batch 8 the rate was 32 times what it is now."""
    base = ["--optimizer", "lars", "--batch-size", "8", *TINY]
    old, whole = tmp_path / "old", tmp_path / "whole"
    assert call("train", photos, "--out", whole, *base, "--learning-rate", "3.2", "--steps", "3").code == 0
    shutil.copytree(whole, old)
    shutil.rmtree(old / "checkpoints" / "00000003")
    config = read_config(old)
    assert config["learner"].pop("scale_learning_rate") is True
    config["learner"]["learning_rate"] = 0.1
    (old / "config.json").write_bytes(encode_config(config | {"steps": 2}))

    answer = call("train", photos, "--out", old, *base, "--learning-rate", "0.1", "--steps", "3", "--resume")
    assert answer.code == 0, answer.err
    assert "scale_learning_rate" not in read_config(old)["learner"]
    assert _states(old)[3] == _states(whole)[3]
    assert call("embed", old, "--data", photos, "--out", tmp_path / "features.npy").code == 0

    answer = call("train", photos, "--out", old, *base, "--learning-rate", "0.2", "--steps", "4", "--resume")
    assert answer.code == 2
    assert "learner/learning_rate: stored 0.1, given 0.2" in answer.complaint


@pytest.mark.slow
@pytest.mark.parametrize(
    "length",
    [["--epochs", "2", "--schedule", "cosine"], ["--epochs", "2"], ["--steps", "2", "--schedule", "cosine"]],
    ids=" ".join,
)
def test_every_run_on_a_folder_keeps_its_list(photos, call, tmp_path, length):
    """So a photo that is added later is none of its images, and the run goes on."""
    run = tmp_path / "run"
    words = ["train", photos, "--out", run, "--batch-size", "8", *TINY, *length]
    assert call(*words).code == 0
    kept = (run / "images.json").read_bytes()
    Image.fromarray(np.full((20, 24, 3), 99, np.uint8)).save(photos / "dark" / "later.png")
    answer = call(*words, length[0], "3", "--resume")
    assert answer.code == 0, answer.err
    assert (run / "images.json").read_bytes() == kept
    assert 3 in _states(run)


def test_a_presets_epochs_count_every_image(photos, call, tmp_path, monkeypatch):
    """⌊epochs · images / batch⌋ steps, as the paper's code counts; --epochs leaves out incomplete batches."""
    lengths = {}
    monkeypatch.setattr(
        "byol_jax.train.run._run", lambda encoder, learner, source, *_, **__: lengths.update(found=source.total_steps)
    )
    words = ["train", photos, "--out", tmp_path / "run", "--batch-size", "8", "--preset", "imagenette", *TINY]
    assert call(*words).code == 0
    assert lengths["found"] == 1000 * 12 // 8
    assert call(*words, "--epochs", "1000").code == 0
    assert lengths["found"] == 1000 * (12 // 8)


def test_a_warm_up_in_steps_must_fit(photos, call, tmp_path):
    words = ["train", photos, "--out", tmp_path / "run", "--batch-size", "8", "--epochs", "2", *TINY]
    answer = call(*words, "--schedule", "cosine", "--warmup-steps", "3")
    assert answer.code == 2
    assert "warmup_steps=3: expected 0 to total_steps=2" in answer.complaint
    assert not (tmp_path / "run").exists()


def test_presets_are_listed(call):
    answer = call("presets")
    assert (answer.code, answer.err) == (0, "")
    for one in KNOWN:
        assert one.preset.name in answer.out.splitlines()
        assert one.source in answer.out
        assert one.result in answer.out
    listed = json.loads(call("presets", "--json").out)
    assert [one["name"] for one in listed] == [one.preset.name for one in KNOWN]
    assert listed[2]["recipe"]["base_learning_rate"] == 0.3
    assert "72.5" in listed[2]["result"]
    assert "not published" in listed[0]["result"]
    assert "88.3" in listed[-1]["result"]
    assert "89.6" in listed[-1]["result"]


@pytest.mark.slow
def test_separate_views(photos, call, tmp_path):
    """Statistics of each view by itself move the target's, which count one more update a step."""
    counts = {}
    for views in ("concatenated", "separate"):
        run = tmp_path / views
        words = ["train", photos, "--out", run, "--batch-size", "8", "--steps", "1", *TINY, "--views", views]
        assert call(*words).code == 0
        assert read_config(run)["learner"].get("views", "concatenated") == views
        assert call("export", run, "--out", tmp_path / f"{views}.npz").code == 0
        with np.load(tmp_path / f"{views}.npz") as arrays:
            counts[views] = int(arrays["1.num_batches_tracked"])
    assert counts == {"concatenated": 1, "separate": 2}
