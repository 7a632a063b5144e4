"""`--value-range`: a folder of images of 16 bits that fill a corner of them, from the files to the step and back."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import byol_jax
from byol_jax.cli.commands.export import describe_input
from byol_jax.cli.main import main
from byol_jax.data import Loader, open_dataset
from byol_jax.runs.metrics import read_metrics
from byol_jax.runs.reopen import open_run
from byol_jax.views import unit_range

RECIPE = ["--network", "small_cnn", "--channels", "1", "--image-size", "16", "--batch-size", "8", "--augment", "none"]
RECIPE += ["--projection-size", "8", "--projection-hidden-size", "16", "--learning-rate", "0.001"]
RECIPE += ["--checkpoint-every", "1"]


def write_cells(folder, *, count, highest=2000):
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        values = generator.integers(0, highest, (24, 24), np.uint16, endpoint=True)
        Image.fromarray(values).save(folder / f"{number:02}.png")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with two classes of cells that use 0 to 2,000 of 65,535, and arrays."""
    root = tmp_path_factory.mktemp("world")
    write_cells(root / "cells" / "a", count=12)
    write_cells(root / "cells" / "b", count=12)
    photos = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 1), np.uint8)
    np.save(root / "photos.npy", photos)
    np.save(root / "deep.npy", photos.astype(np.uint16) * np.uint16(7))
    np.save(root / "floats.npy", photos.astype(np.float32) * 7 - 100)
    return root


@pytest.fixture(scope="module")
def world(images):
    """The same, and `whole`, a run of three steps on the cells."""
    root = images
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["train", "cells", "--out", "whole", "--steps", "3", *RECIPE]) == 0
    return root


@pytest.fixture
def train(call, images, monkeypatch):
    """`train("run", "--steps", "3", ...)`: the answer of that command, on the cells."""
    monkeypatch.chdir(images)
    return lambda out, *words, data="cells": call("train", data, "--out", out, *RECIPE, *words)


def config(world, run):
    return json.loads((world / run / "config.json").read_text())


def leaves(run, step):
    return sorted(path.name for path in (run / "checkpoints" / f"{step:08}").glob("state-*"))


@pytest.mark.slow
def test_a_folder_of_grey_files_of_sixteen_bits_is_ranged_by_itself(world, monkeypatch):
    """The learner sees over 64 levels of it, where 8 bits would have had nine."""
    monkeypatch.chdir(world)
    facts = config(world, "whole")
    ((low,), (high,)) = facts["learner"]["value_range"]
    assert 0 <= low < 300 < 1600 < high <= 2000  # of resized images, whose noise is smaller
    assert (facts["value_range_rule"], facts["data"]["dtype"]) == ("auto", "uint16")
    (line,) = [line for line in (world / "whole" / "train.log").read_text().splitlines() if "value range" in line]
    assert (
        f"WARNING: value range {low:g} to {high:g} of 65,535 becomes 0 to 1"
        " (auto: percentiles 0.1 and 99.9 of 24 images, seed 0); 8 bits would have left "
    ) in line
    levels = np.unique(np.rint(np.arange(low, high + 1) * (255 / 65535)))
    assert line.endswith(f"left {len(levels)} levels of it")
    run = open_run(world / "whole")
    with Loader(open_dataset("cells", image_size=16, num_channels=1, any_range=True), batch_size=8, seed=0) as batches:
        batch = next(batches)
    assert batch.dtype == np.uint16
    seen = np.asarray(unit_range(run.learner.settings, batch))
    assert len(np.unique(seen)) > 500
    assert 0 <= seen.min() < 0.05 < 0.95 < seen.max() <= 1


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_numbers_bit_for_bit(train, world, monkeypatch):
    """Nothing is estimated a second time."""
    assert train("parts", "--steps", "1").code == 0
    monkeypatch.setattr("byol_jax.runs.value_range.estimate_range", None)
    assert train("parts", "--steps", "3", "--resume").code == 0
    assert leaves(world / "parts", 3) == leaves(world / "whole", 3) != []
    assert config(world, "parts")["learner"] == config(world, "whole")["learner"]
    assert "as the run began with (auto)" in (world / "parts" / "train.log").read_text()
    ((low,), (high,)) = config(world, "parts")["learner"]["value_range"]
    assert train("parts", "--steps", "4", "--resume", "--value-range", f"{low}:{high}").code == 0
    answer = train("parts", "--steps", "5", "--resume", "--value-range", "0:2000")
    assert answer.code == 2
    assert "learner/value_range" in answer.complaint


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on_in_eight_bits(train, world, monkeypatch):
    """Its images.json and config.json say nothing of depth or range."""
    with monkeypatch.context() as patch:
        patch.setattr("byol_jax.data.files.encoded._dtype", lambda is_deep: "uint8")
        assert train("old", "--steps", "3").code == 0
        assert train("old parts", "--steps", "1").code == 0
    facts = config(world, "old parts")
    assert "dtype" not in facts["data"]
    assert "value_range" not in facts["learner"]
    assert train("old parts", "--steps", "3", "--resume").code == 0
    assert leaves(world / "old parts", 3) == leaves(world / "old", 3) != []


@pytest.mark.slow
def test_evaluate_and_embed_read_images_as_the_run_did(call, world, monkeypatch):
    monkeypatch.chdir(world)
    shutil.copytree("whole", "looked at")
    assert call("evaluate", "looked at", "--data", "cells", "--k", "3", "--protocol", "knn").code == 0
    assert call("embed", "looked at", "--data", "cells", "--out", "cells.npy", "--overwrite").code == 0
    run = open_run(world / "whole")
    dataset = open_dataset("cells", image_size=16, num_channels=1, any_range=True)
    centre = dataset.take(range(24))[:, 1:17, 1:17]  # 18 pixels are loaded
    np.testing.assert_allclose(np.load("cells.npy"), run.learner.embed(run.state, centre), rtol=1e-4, atol=1e-5)
    for command in (["embed", "looked at", "--out", "x.npy"], ["evaluate", "looked at", "--protocol", "knn"]):
        data = "photos.npy" if command[0] == "embed" else "fashion-mnist"
        answer = call(*command, "--data", data)
        assert answer.code == 2, answer.err
        assert "images of uint8, and the run's value range is of the numbers of uint16 images" in answer.complaint


@pytest.mark.slow
def test_arrays_and_rules_that_are_asked_for(train, world):
    """The same pictures as bytes, in 16 bits and as floats: one first step, whatever they are kept in."""
    losses = []
    for data, words, expected in (
        ("photos.npy", [], None),
        ("deep.npy", ["--value-range", "0:1785"], [[0.0], [1785.0]]),
        ("floats.npy", ["--value-range", "percentile:100"], [[-100.0], [1685.0]]),
    ):
        assert train("array", "--steps", "1", *words, "--overwrite", data=data).code == 0
        assert config(world, "array")["learner"].get("value_range") == expected
        losses.append(read_metrics(world / "array" / "metrics.jsonl")[0][-1]["loss"])
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4)
    assert config(world, "array")["data"]["dtype"] == "float32"


@pytest.mark.slow
def test_a_network_without_a_run_takes_a_range_too(call, images, monkeypatch):
    monkeypatch.chdir(images)
    words = ["embed", "--network", "small_cnn", "--data", "cells", "--image-size", "16", "--channels", "1"]
    answer = call(*words, "--out", "auto.npy")
    assert answer.code == 0, answer.err
    found = re.search(r"warning: value range (\d+) to (\d+) of 65,535 becomes 0 to 1 \(auto: ", answer.err)
    assert found is not None, answer.err
    assert call(*words, "--out", "same.npy", "--value-range", ":".join(found.groups())).code == 0
    assert call(*words, "--out", "dark.npy", "--value-range", "0:65535").code == 0
    auto, same, dark = (np.load(f"{name}.npy") for name in ("auto", "same", "dark"))
    np.testing.assert_array_equal(auto, same)
    assert np.abs(auto - dark).max() > 0.1 * np.abs(auto).max()


def test_a_probe_of_other_numbers_is_refused(train, images):
    labels = np.repeat([0, 1], 12)
    np.savez(images / "labelled.npz", images=np.load(images / "photos.npy"), labels=labels)
    answer = train("probed", "--steps", "1", "--probe", "labelled.npz")
    assert answer.code == 2
    assert "--probe: images of uint8, and the run's value range is of the numbers of uint16 images" in answer.complaint
    assert not (images / "probed").exists()


def test_a_preview_says_the_range_and_shows_it(call, images, monkeypatch):
    monkeypatch.chdir(images)
    words = ["preview", "cells", "--out", "views.png", "--image-size", "16", "--channels", "1", "--augment", "none"]
    answer = call(*words)
    assert answer.code == 0
    assert "warning: value range" in answer.complaint
    auto = np.asarray(Image.open("views.png"))
    answer = call(*words, "--overwrite", "--value-range", "0:65535")  # dark, as was asked for
    assert (answer.code, answer.err) == (0, "")
    dark = np.asarray(Image.open("views.png"))
    negative = ("--value-range", "-1000:3000")  # a value, in spite of its dash
    assert call(*words, "--overwrite", "--count", "16", *negative).code == 0
    with Image.open("views.png") as picture:
        assert picture.height > 1.9 * len(dark)  # 16 rows, where 8 were
    assert np.mean(auto[40:150, 10:120] > 60) > 0.5
    assert np.mean(dark[40:150, 10:120] > 60) == 0


@pytest.mark.parametrize(
    "word", ["automatic", "5", "9:1", "1:1", "0:nan", "a:b", "percentile:50", "percentile:", "1:2:3", "0:1,", "0:inf"]
)
def test_what_is_no_range_is_refused_before_anything_is_read(call, images, monkeypatch, word):
    monkeypatch.chdir(images)
    answer = call("train", "cells", "--out", "never", "--steps", "1", "--value-range", word)
    assert answer.code == 2
    assert f"--value-range: {word!r} is not auto, LOW:HIGH" in answer.complaint
    assert not (images / "never").exists()


def test_as_many_ranges_as_channels(call, images, monkeypatch):
    monkeypatch.chdir(images)
    answer = call("train", "cells", "--out", "never", "--steps", "1", "--value-range", "0:1,0:2")
    assert answer.code == 2
    assert "--value-range: 2 ranges for images of 3 channels: give one, or one a channel" in answer.complaint
    (images / "some run").mkdir()
    (images / "some run" / "config.json").write_text("{}")
    answer = call("embed", "some run", "--data", "cells", "--out", "x.npy", "--value-range", "auto")
    assert (answer.code, answer.complaint.count("--value-range needs --network")) == (2, 1)


@pytest.mark.slow
def test_export_says_what_becomes_of_an_image_before_the_network_sees_it(world, call, monkeypatch):
    monkeypatch.chdir(world)
    answer = call("export", "whole", "--out", "said.npz")
    ((low,), (high,)) = config(world, "whole")["learner"]["value_range"]
    assert answer.code == 0
    assert answer.err.strip() == (f"the images that it takes: 16 x 16 pixels, 1 channel, {low:g} to {high:g} as 0 to 1")


def test_what_an_image_becomes_is_said_for_each_channel():
    normalize = ((0.5, 0.25), (1.0, 1.0))
    options = {"image_size": (8, 16), "num_channels": 2, "projection_size": 2, "projection_hidden_size": 2}
    learner = byol_jax.make_learner(byol_jax.nets.small_cnn((4,)), normalize=normalize, **options)
    reading = {"bands": (4, 2), "tiff_axes": "Z", "dicom_rescale": True}
    assert describe_input(learner.settings, reading) == (
        "the images that it takes: 8 x 16 pixels, 2 channels (bands 4, 2 of the files; TIFF axes Z; DICOM's slope and"
        " intercept applied), 0 to 1 (uint8 / 255, uint16 / 65535), then minus the mean"
        " (0.5, 0.25) and divided by the deviation 1"
    )
