"""train --probe: kNN and logistic regression of labelled images on the way, without influence on what is trained."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from byol_jax import make_learner, nets
from byol_jax.runs.metrics import read_metrics
from byol_jax.runs.probe import Probe, make_probe
from tests.source_code import ROOT

NETWORK = ["--network", "small_cnn", "--projection-size", "8", "--projection-hidden-size", "16", "--augment", "none"]
LENGTH = ["--image-size", "16", "--batch-size", "8", "--log-every", "2", "--checkpoint-every", "2"]
PROBED = ["step", "epoch", "probe_knn", "probe_linear", "probe_seconds"]


def write_classes(folder, counts, names=("dark", "light")):
    random = np.random.default_rng(0)
    for number, (name, count) in enumerate(zip(names, counts, strict=True)):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(100 * number, 100 * number + 156, (20, 24, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    write_classes(root / "photos", (8, 8))
    write_classes(root / "labelled", (10, 10))
    return root


def rows_of(run):
    rows, _ = read_metrics(run / "metrics.jsonl")
    return [row for row in rows if "probe_knn" in row], [row for row in rows if "loss" in row]


def documented_keys():
    """Of docs/recipes.md's table of metrics.jsonl. Alignment is measured with --health-every alone."""
    section = (ROOT / "docs" / "recipes.md").read_text().partition("## What a run writes down")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line[:2] == "| "]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def state_file(run, step):
    (found,) = (run / "checkpoints" / f"{step:08d}").glob("state-*")
    return found.name  # it has the hash of all leaves in it


@pytest.mark.slow
def test_a_probed_run_is_the_run_and_its_curve_is_kept(world, call):
    """Bit for bit, also when it is stopped and goes on; the last probe is what evaluate says."""
    plain, probed, two = (world / name for name in ("plain", "probed", "two"))
    probe = ["--probe", world / "labelled", "--probe-every", "3"]
    for out, more in ((plain, []), (probed, probe)):
        assert call("train", world / "photos", "--out", out, *NETWORK, *LENGTH, "--steps", "8", *more).code == 0
    assert call("train", world / "photos", "--out", two, *NETWORK, *LENGTH, "--steps", "6", *probe).code == 0
    assert (
        call("train", world / "photos", "--out", two, *NETWORK, *LENGTH, "--steps", "8", *probe, "--resume").code == 0
    )
    assert state_file(plain, 8) == state_file(probed, 8) == state_file(two, 8)
    rows, usual = rows_of(probed)
    assert [row["step"] for row in rows] == [0, 3, 6, 8]
    assert all(list(row) == PROBED for row in rows)
    assert [row["step"] for row in usual] == [2, 4, 6, 8]
    same = [{name: row[name] for name in PROBED[:-1]} for row in rows]
    assert [{name: row[name] for name in PROBED[:-1]} for row in rows_of(two)[0]] == same
    assert not rows_of(plain)[0]
    assert documented_keys() == set().union(*rows, *usual, ["alignment"]), "what a run writes down, in docs/recipes.md"

    log = (probed / "train.log").read_text()
    start, last = rows[0], rows[-1]
    assert (
        f"probe after step 8: kNN {100 * last['probe_knn']:.1f} %, linear {100 * last['probe_linear']:.1f} % (starting"
        f" weights {100 * start['probe_knn']:.1f} and {100 * start['probe_linear']:.1f})"
    ) in log
    assert "spread" in log.split("step 8/8")[1].splitlines()[0]
    assert " kNN " in log.split("step 4/8")[1].splitlines()[0]
    page = (probed / "report.html").read_text()
    assert "kNN accuracy" in page
    assert f"starting weights: {100 * start['probe_knn']:.1f}" in page
    assert "kNN accuracy" not in (plain / "report.html").read_text()

    answer = call("evaluate", probed, "--data", world / "labelled", "--json")
    scores = json.loads(answer.out)["scores"]["byol"]
    assert (scores["knn"], scores["linear"]) == (last["probe_knn"], last["probe_linear"])


@pytest.mark.slow
def test_another_probe_cannot_resume(world, call):
    out, probe = world / "run", ["--probe", world / "labelled", "--probe-every", "2"]
    words = ["train", world / "photos", "--out", out, *NETWORK, *LENGTH, "--steps", "2"]
    assert call(*words, *probe).code == 0
    assert json.loads((out / "config.json").read_text())["probe"]["every"] == 2
    shutil.copytree(world / "labelled", world / "fewer")
    (world / "fewer" / "dark" / "0.png").unlink()
    more = ["--steps", "4", "--resume"]
    for other, said in (
        ([*probe[:2], "--probe-every", "3"], "probe/every: stored 2, given 3"),
        (["--probe", world / "fewer", "--probe-every", "2"], "probe/fit/count: stored 20, given 19"),
        ([], "probe/every: stored 2, given nothing"),
    ):
        answer = call(*words, *other, *more)
        assert answer.code == 2
        assert said in answer.complaint
    assert call(*words, *probe, *more).code == 0


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("none", "doesn't exist"),
        ("one_class", "at least 2 classes are needed"),
        ("flat", "10 images lie outside of them"),
        ("few", "class 'light' has"),
        ("broken", "not an image, or damaged at its start"),
        ("empty", "no file in it is named as an image"),
    ],
)
def test_a_folder_that_is_of_no_use_is_refused_before_anything_is_written(folder, said, world, call, tmp_path):
    write_classes(tmp_path / "one_class", (10,), names=("dark",))
    write_classes(tmp_path / "few", (10, 2))
    shutil.copytree(world / "labelled" / "dark", tmp_path / "flat")
    (tmp_path / "empty").mkdir()
    for name in ("dark", "light"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        for number in range(5):
            (tmp_path / "broken" / name / f"{number}.png").write_bytes(b"no picture")
    words = ["--probe", tmp_path / folder, "--steps", "2", "--out", tmp_path / "run"]
    answer = call("train", world / "photos", *NETWORK, *LENGTH, *words)
    assert answer.code == 2
    assert said in answer.complaint
    assert f"--probe{':' * (folder == 'none')} " in answer.complaint
    assert answer.complaint.count(str(tmp_path / folder)) == 1
    assert not (tmp_path / "run").exists()


def test_options_that_say_nothing_are_refused(world, call, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((8, 16, 16, 3), np.uint8))
    words = ["train", world / "photos", "--out", tmp_path / "run", "--steps", "2"]
    for more, said in (
        (["--probe-every", "5"], "--probe-every needs --probe"),
        (["--probe", tmp_path / "images.npy"], "an .npy has no labels"),
        (["--probe", world / "labelled", "--probe-every", "0"], "--probe-every: '0' is not a whole number above 0"),
        (["--health-every", "-1"], "--health-every"),
    ):
        answer = call(*words, *more)
        assert (answer.code, said in answer.complaint) == (2, True)


@pytest.mark.slow
def test_a_network_whose_rows_depend_on_their_batch_is_probed_as_evaluate_does_it():
    """The last batch is smaller, and is embedded by itself."""
    plain = nets.small_cnn((4,), num_classes=None)

    def apply(variables, images, **options):
        features, stats = plain.apply(variables, images, **options)
        return features - features.mean(0), stats

    sizes = {"image_size": 16, "projection_size": 8, "projection_hidden_size": 16, "hidden_layer": -1}
    learner = make_learner(plain._replace(apply=apply), **sizes)
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), np.uint8)
    labels = np.arange(20) % 2
    probe = Probe(images, labels, images[:6], labels[:6], {}, 10, 0)
    with pytest.warns(UserWarning, match="depend on the other images of its batch"):
        found = make_probe(learner, probe, batch_size=8)(learner.init(jax.random.key(0)))
    assert 0 <= found["probe_knn"] <= 1
