"""Right words, wrong files: data that can't be trained on, runs that can't be opened, weights that are none.

Exit code 2 and one line, before anything is computed (nothing is compiled) and with nothing written.
"""

import logging
import zipfile

import jax
import numpy as np
import pytest
from PIL import Image

from byol_jax import checkpoint, make_learner
from byol_jax.recipe import from_json, learner_arguments
from byol_jax.runs.config import encode_config
from byol_jax.runs.network import encoder_from

TINY = ["--network", "small_cnn", "--image-size", "16", "--batch-size", "8", "--steps", "3", "--projection-size", "8"]
TINY += ["--projection-hidden-size", "16", "--augment", "none", "--out", "new"]

RUN = {
    "network": {"name": "small_cnn", "channels": 3, "num_classes": 10},
    "learner": {
        "hidden_layer": -2,
        "projection_size": 8,
        "projection_hidden_size": 16,
        "moving_average_decay": 0.99,
        "use_momentum": True,
        "num_channels": 3,
        "augment": "none",
        "optimizer": "adam",
        "learning_rate": 0.001,
        "weight_decay": 0.0,
        "schedule": "constant",
        "warmup_steps": 0,
    },
    "image_size": 16,
    "steps": 3,
    "batch_size": 8,
    "seed": 0,
}


def snapshot(folder):
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(folder.rglob("*"))}


def check_refused(call, files, caplog, words, expected):
    """Exit 2, one line with all of `expected`, not a file touched, nothing compiled."""
    before = snapshot(files)
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        answer = call(*words)
    assert (answer.code, answer.out) == (2, "")
    for part in expected:
        assert part in answer.complaint
    assert snapshot(files) == before
    compiled = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]
    assert compiled == []


def images(folder, good, bad=0):
    folder.mkdir(exist_ok=True)
    for number in range(good):
        Image.fromarray(np.full((20, 20, 3), number, np.uint8)).save(folder / f"{number}.png")
    for number in range(bad):
        (folder / f"bad{number}.jpg").write_bytes(b"\xff\xd8\xff" * number)


DATA = {
    "no usable image": (lambda root: images(root / "data", 0, 3), "data", [], ["3 of 3 images can't be used", "bad0"]),
    "over half bad": (lambda root: images(root / "data", 9, 10), "data", [], ["10 of 19 images can't be used"]),
    "an empty folder": (lambda root: (root / "data").mkdir(), "data", [], ["data: no file in it is named as an image"]),
    "a folder of texts": (
        lambda root: ((root / "data").mkdir(), (root / "data" / "table.csv").write_text("1")),
        "data",
        [],
        ["no file in it is named as an image", "'table.csv'"],
    ),
    "a batch larger than the data": (
        lambda root: images(root / "data", 9),
        "data",
        ["--batch-size", "16"],
        ["batch_size=16 is larger than the data, 9 images"],
    ),
    "numbers that are no pixels": (
        lambda root: np.save(root / "x.npy", np.full((9, 16, 16, 3), 300.0, np.float32)),
        "x.npy",
        [],
        ["x.npy: float32 values from 300.0 to 300.0, expected floats in [0, 1]"],
    ),
    "NaN among the pixels": (
        lambda root: np.save(root / "x.npy", np.full((9, 16, 16, 3), np.nan, np.float32)),
        "x.npy",
        [],
        ["x.npy: float32 values from nan to nan"],
    ),
    "channels first": (
        lambda root: np.save(root / "x.npy", np.zeros((9, 3, 16, 16), np.uint8)),
        "x.npy",
        [],
        ["has its channels first", "transpose(0, 2, 3, 1)"],
    ),
    "a matrix": (lambda root: np.save(root / "x.npy", np.zeros((9, 4))), "x.npy", [], ["expected [N, H, W, C]"]),
    "objects": (
        lambda root: np.save(root / "x.npy", np.array([{}, {}]), allow_pickle=True),
        "x.npy",
        [],
        ["can't be read as a NumPy file of plain numbers"],
    ),
    "half a file": (
        lambda root: (root / "x.npy").write_bytes((root / "images.npy").read_bytes()[:-50]),
        "x.npy",
        [],
        ["x.npy: can't be read"],
    ),
    "an archive without images": (
        lambda root: np.savez(root / "x.npz", weights=np.zeros(3)),
        "x.npz",
        [],
        ["x.npz: holds weights; name the images 'images'"],
    ),
    "an archive of something else": (
        lambda root: zipfile.ZipFile(root / "x.npz", "w").close(),
        "x.npz",
        [],
        ["x.npz: holds nothing"],
    ),
    "one channel asked, three there": (
        lambda root: None,
        "images.npy",
        ["--channels", "1"],
        ["images of 3 channels", "num_channels is 1"],
    ),
    "a layer that isn't there": (
        lambda root: images(root / "data", 9),
        "data",
        ["--hidden-layer", "avgpol"],
        ["avgpol", "not found"],
    ),
    "a layer beyond the last": (
        lambda root: images(root / "data", 9),
        "data",
        ["--hidden-layer", "99"],
        ["99"],
    ),
    "weights that are none": (lambda root: None, "images.npy", ["--init-from", "notes.txt"], ["notes.txt"]),
    "weights of no length": (lambda root: None, "images.npy", ["--init-from", "weights.safetensors"], ["weights"]),
    "an image for weights": (
        lambda root: images(root / "data", 9),
        "data",
        ["--init-from", "data/1.png"],
        ["data/1.png: is of an unknown format"],
    ),
}


@pytest.mark.parametrize("case", DATA)
def test_training(call, files, caplog, case):
    make, data, words, expected = DATA[case]
    make(files)
    check_refused(call, files, caplog, ["train", data, *TINY, *words], expected)


def changed(**changes):
    return encode_config(RUN | changes)


def without(*names):
    return encode_config({name: value for name, value in RUN.items() if name not in names})


CONFIGURATIONS = {
    "of another program": (b'{"model": "vit"}', ["config.json is not of a run"]),
    "no JSON": (b"{", ["config.json can't be read"]),
    "not even text": (b"\xff\xfe\0", ["config.json can't be read"]),
    "a list": (b"[]", ["config.json can't be read"]),
    "of a run from Python": (changed(network=None), ["started from Python"]),
    "without a recipe": (without("learner"), ["started from Python"]),
    "without a seed": (without("seed"), ["config.json isn't as it was written", "seed"]),
    "without steps": (without("steps"), ["config.json isn't as it was written", "steps"]),
    "without an image size": (without("image_size"), ["config.json isn't as it was written", "image_size"]),
    "an image size in words": (changed(image_size="large"), ["config.json isn't as it was written"]),
    "no image size at all": (changed(image_size=None), ["config.json isn't as it was written"]),
    "an unknown network": (changed(network={"name": "resnet19"}), ["'resnet19'", "resnet18 is the nearest"]),
    "a network without a name": (changed(network={}), ["network", "'None'"]),
    "half a recipe": (changed(learner={"augment": "none"}), ["config.json isn't as it was written"]),
    "a recipe of other words": (changed(learner=RUN["learner"] | {"projection_size": "wide"}), ["config.json"]),
    "no checkpoint": (changed(), ["no intact checkpoint in run/checkpoints"]),
}


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_opening_a_run(call, files, caplog, case):
    content, expected = CONFIGURATIONS[case]
    (files / "run" / "config.json").write_bytes(content)
    check_refused(call, files, caplog, ["export", "run", "--out", "deep/new/net.npz"], expected)


def test_every_command_that_opens_a_run_says_the_same(call, files, caplog):
    (files / "run" / "config.json").write_bytes(without("seed"))
    for words in (["evaluate", "run", "--data", "photos"], ["embed", "run", "--data", "photos", "--out", "new.npz"]):
        check_refused(call, files, caplog, words, ["config.json isn't as it was written", "seed"])


@pytest.mark.slow
def test_a_checkpoint_of_other_heads_another_network_and_optimiser(call, files):
    """config.json was changed after training: every leaf that doesn't fit is named, and what the two sides have."""
    recipe = from_json(RUN["learner"], image_size=16, batch_size=8, steps=3)
    learner = make_learner(encoder_from(RUN["network"]), **learner_arguments(recipe))
    checkpoint.save(files / "run" / "checkpoints", learner.init(jax.random.key(0)))
    other = {"projection_size": 9, "optimizer": "sgd"}
    content = changed(learner=RUN["learner"] | other, network=RUN["network"] | {"num_classes": 11})
    (files / "run" / "config.json").write_bytes(content)
    before = snapshot(files)
    answer = call("export", "run", "--out", "net.npz")
    assert (answer.code, answer.out) == (2, "")
    for part in (
        "00000000 doesn't fit the state it is restored into, 75 difference(s): ",
        "online/params/encoder/10/kernel: float32[512,10] in the checkpoint, float32[512,11] wanted",
        "online/params/predictor/3/kernel: float32[16,8] in the checkpoint, float32[16,9] wanted",
        "opt_state/0/mu/encoder/0/kernel: only in the checkpoint",
        "opt_state/1/0/trace/encoder/0/kernel: not in the checkpoint",
        "use the network, heads and optimiser that it was saved with",
    ):
        assert part in answer.complaint
    assert answer.complaint.count(" in the checkpoint") == 75
    assert snapshot(files) == before


CONVERTED = {
    "a text": "notes.txt",
    "nothing": "weights.safetensors",
    "images": "images.npy",
    "a picture": "photos/one.png",
    "an empty archive": "done.npz",
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_converting_and_importing_what_holds_no_weights(call, files, caplog, kind):
    name = CONVERTED[kind]
    check_refused(call, files, caplog, ["convert", name, "deep/er/new.npz"], [name])
    check_refused(call, files, caplog, ["import", name, "--out", "deep/er/new.safetensors"], [name])


def test_previewing_what_holds_no_images(call, files, caplog):
    expected = ["1 of 1 images can't be used", "'one.png': empty file"]
    check_refused(call, files, caplog, ["preview", "photos", "--out", "deep/new.png"], expected)
    np.save(files / "x.npy", np.zeros((3, 4), np.uint8))
    check_refused(call, files, caplog, ["preview", "x.npy", "--out", "deep/new.png"], ["expected [N, H, W, C]"])
