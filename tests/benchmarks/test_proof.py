"""The proof that BYOL learns: what is run is fixed, what is done is skipped, and the page says what is missing.

Accuracies here are of a handful of made-up images and judged by nobody.
"""

import csv
import doctest
import gzip
import importlib
import json
import struct
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks.proof import __main__ as command
from benchmarks.proof import ablations, race, rows, transfer, worker
from benchmarks.proof.data import Images, fashion_mnist, fingerprint, photos
from benchmarks.proof.items import ABLATIONS, EXPERIMENTS, ITEMS, LIMIT, SEEDS, chosen, facts, of_scale
from benchmarks.proof.page import direction, page, plots
from byol_jax import ConfigurationError, DataError, augment, make_learner, nets
from byol_jax.loss import normalized_mse

COUNT = 80


def grey(count, size, *, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size), np.uint8)


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """A folder with the names of Fashion-MNIST's files and few images in them."""
    folder = tmp_path_factory.mktemp("fashion")
    for seed, part in enumerate(("train", "t10k")):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", grey(COUNT, 28, seed=seed))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(COUNT) % 10)
    return folder


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A folder as elpv-dataset has it."""
    folder = tmp_path_factory.mktemp("elpv")
    (folder / "images").mkdir()
    with open(folder / "labels.csv", "w", newline="") as file:
        for number, pixels in enumerate(grey(COUNT, 32)):
            Image.fromarray(pixels).save(folder / "images" / f"cell{number:04}.png")
            defect = ("0.0", "1.0", "0.3333333333333333", "0.6666666666666666")[number // 4 % 4]
            csv.writer(file, delimiter=" ").writerow([f"images/cell{number:04}.png", defect, "mono"])
    return folder


def result_of(item):
    """A made-up outcome; the seed makes it another."""
    value = 0.5 + item.seed / 10
    if item.experiment == "race":
        points = [{"seconds": s, "step": s, "knn": value, "linear": value + s / 1000} for s in (10.0, 60.0, 120.0)]
        return {"points": points, "steps": 120, "train_seconds": 120.0, "phases": {"trace": 5.0, "compile": 5.0}}
    if item.experiment == "transfer":
        starts = {"random": {"accuracy": 0.25}, "byol": {"accuracy": value}}
        return starts | {"gain": value - 0.25, "labels": 600}
    more = {"steps": 7, "train_seconds": 60.0, "loss": 1.0, "spread": 0.8, "collapsed": False}
    lower = -0.3 if item.variant in ("no_predictor", "no_crop") else 0.0
    return {"knn": value, "linear": value + lower} | more


def outcome_of(item):
    return {
        "result": result_of(item),
        "seconds": 1.0,
        "data": {"count": [1, 1], "most_frequent": 0.5, "sha256": "00" * 16},
    }


MACHINE = {"processor": "x", "cores": 2, "memory_gib": 1, "system": "s", "libc": "l", "python": "3", "packages": {}}


def row_of(item, **changes):
    made = {"git": {"commit": "c" * 40, "changed": False}, "machine": MACHINE | {"variables": {}}}
    return {
        "item": facts(item),
        "date": "2026-01-01",
        "load_average": [0.0, 2.0],
        **made,
        **outcome_of(item),
        **changes,
    }


class TestItems:
    def test_they_are_unique_and_fit_into_eight_hours(self):
        assert len({item.name for item in ITEMS}) == len(ITEMS)
        assert sum(item.budget for item in ITEMS) <= LIMIT == 8 * 3600

    def test_every_group_has_three_seeds_but_raw_pixels_which_have_none(self):
        counts = Counter(item.group for item in ITEMS)
        assert counts.pop("long-raw_pixels") == 1
        assert set(counts.values()) == {3} == {len(SEEDS)}

    def test_nothing_but_the_seed_differs_within_a_group(self):
        without_seed = {(item.group, json.dumps(facts(replace(item, seed=0)))) for item in ITEMS}
        assert len(without_seed) == len({item.group for item in ITEMS})

    def test_both_sides_of_a_race_have_the_same_options(self):
        by_side = {item.options["side"]: dict(item.options) for item in ITEMS if item.group.startswith("race-photos")}
        ours, theirs = (by_side[side] | {"side": None} for side in race.SIDES)
        assert ours == theirs

    def test_races_and_ablations_take_ten_minutes_at_most(self):
        assert all(item.options["train_seconds"] <= 600 for item in ITEMS if item.experiment == "race")
        assert all(item.budget <= 600 for item in ITEMS if item.experiment == "ablations")

    def test_every_ablation_has_its_variant(self):
        assert list(ABLATIONS) == list(ablations.VARIANTS)

    def test_every_experiment_is_a_module(self):
        assert {item.experiment for item in ITEMS} == set(EXPERIMENTS)
        assert all(callable(importlib.import_module(f"benchmarks.proof.{name}").run) for name in EXPERIMENTS)

    def test_facts_survive_json(self):
        assert all(json.loads(json.dumps(facts(item))) == facts(item) for item in (*ITEMS, *of_scale("smoke")))

    def test_names_of_all_kinds(self):
        assert [item.name for item in chosen(ITEMS, ["long-byol_2"])] == ["long-byol_2"]
        assert len(chosen(ITEMS, ["long-byol", "transfer"])) == 6
        assert chosen(ITEMS, []) == list(ITEMS)
        with pytest.raises(ConfigurationError, match="transfr: there is no such item, transfer is the nearest"):
            chosen(ITEMS, ["transfr"])


@pytest.mark.parametrize("name", ["chart", "page"])
def test_examples_in_the_docstrings_of(name):
    results = doctest.testmod(importlib.import_module(f"benchmarks.proof.{name}"))
    assert results.attempted > 0
    assert results.failed == 0, "see the captured output"


class TestCommand:
    @pytest.fixture
    def ran(self, monkeypatch):
        """Names of the runs that were run, none of them really; those in `broken` fail."""
        names, broken = [], set()

        def run_alone(item, places, work):
            names.append(item.name)
            if item.name in broken:
                raise RuntimeError("out of\nmemory")
            return outcome_of(item)

        monkeypatch.setattr(command, "run_alone", run_alone)
        return names, broken

    @pytest.fixture
    def call(self, tmp_path, fashion, cells):
        out = tmp_path / "out"
        places = ["--fashion-mnist", str(fashion), "--photos", str(cells), "--out", str(out), "--scale", "smoke"]
        return out, lambda *words: command.main([*places, *words])

    def test_what_is_done_is_skipped_and_what_failed_is_run_again(self, ran, call):
        (names, broken), (out, run) = ran, call
        broken.add("long-byol_0")
        assert run() == 1
        items = of_scale("smoke")
        assert names == [item.name for item in items]
        written = {path.stem for path in out.glob("*.json")}
        assert written == {item.name for item in items} - broken
        assert "Missing" in (out / "README.md").read_text()
        names.clear(), broken.clear()
        assert run() == 0
        assert names == ["long-byol_0"]
        names.clear()
        assert run() == 0
        assert names == []
        assert "Missing" not in (out / "README.md").read_text()

    def test_only_some(self, ran, call, capsys):
        assert call[1]("--only", "transfer,ablations-no_crop") == 0
        assert ran[0] == ["ablations-no_crop_0", "transfer-resnet18_0"]
        assert call[1]("--only", "abblations") == 2
        assert "ablations is the nearest" in capsys.readouterr().err

    def test_no_run_is_started_after_its_minutes(self, ran, call, monkeypatch):
        clock = iter([0.0, 0.0, 61.0])
        monkeypatch.setattr(command.time, "monotonic", lambda: next(clock))
        assert call[1]("--minutes", "1", "--only", "ablations") == 0
        assert ran[0] == ["ablations-baseline_0"]

    def test_list_runs_nothing(self, ran, call, capsys):
        assert call[1]("--list", "--only", "long") == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]] == [
            *("long-raw_pixels_0", "long-byol_0"),
        ]
        assert ran[0] == []
        assert not call[0].exists()

    def test_a_row_names_what_made_it(self, ran, call):
        assert call[1]("--only", "long-raw_pixels") == 0
        row = json.loads((call[0] / "long-raw_pixels_0.json").read_text())
        assert row["command"] == "python -m benchmarks.proof --only long-raw_pixels_0 --scale smoke"
        assert {"git", "machine", "date", "load_average", "seconds", "data"} <= set(row)

    @pytest.mark.parametrize("option", ["--fashion-mnist", "--photos"])
    def test_absent_images_are_said_before_anything_is_run(self, ran, call, tmp_path, capsys, option):
        assert call[1](option, str(tmp_path / "nowhere")) == 2
        error = capsys.readouterr().err
        assert "nowhere" in error
        assert "install" in error
        assert error.count("\n") == 1
        assert ran[0] == []
        assert not call[0].exists()

    def test_a_changed_checkout_makes_no_row(self, ran, call, monkeypatch, capsys):
        monkeypatch.setattr(rows, "changes", lambda: ["byol_jax/byol.py"])
        assert call[1]("--scale", "full", "--only", "long-raw_pixels") == 2
        assert "byol_jax/byol.py: not as in the commit" in capsys.readouterr().err
        assert ran[0] == []

    def test_a_checkout_that_changes_during_a_run_is_in_its_row(self, monkeypatch):
        found = iter([[], [], ["byol_jax/byol.py"]])
        monkeypatch.setattr(rows, "changes", lambda: next(found))
        began = rows.begin()
        made = [rows.row_of(ITEMS[0], outcome_of(ITEMS[0]), scale="full", began=began)["git"] for _ in range(2)]
        assert [git["changed"] for git in made] == [False, True]
        assert {git["commit"] for git in made} == {began.git["commit"]}

    def test_a_row_of_other_options_is_due_and_a_damaged_one_is_named(self, tmp_path):
        item = ITEMS[0]
        rows.write(tmp_path, item, row_of(item))
        assert rows.load(tmp_path, item) == row_of(item)
        assert rows.load(tmp_path, replace(item, budget=item.budget + 1)) is None
        rows.row_path(tmp_path, item).write_text('{"item"')
        with pytest.raises(DataError, match=f"{item.name}.json: not a row"):
            rows.load(tmp_path, item)


class TestImages:
    def test_fashion_mnist_is_what_was_written(self, fashion):
        images = fashion_mnist(fashion)
        np.testing.assert_array_equal(images.train[..., 0], grey(COUNT, 28, seed=0))
        np.testing.assert_array_equal(images.test[..., 0], grey(COUNT, 28, seed=1))
        assert images.test_labels.tolist() == [n % 10 for n in range(COUNT)]

    @pytest.mark.parametrize("keep", [0, 3, 10, 100, -1])
    def test_a_cut_file_is_named(self, fashion, tmp_path, keep):
        for path in fashion.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        path = tmp_path / "t10k-images-idx3-ubyte.gz"
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:keep]))
        with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: not an IDX file"):
            fashion_mnist(tmp_path)

    def test_fewer_labels_than_images(self, fashion, tmp_path):
        for path in fashion.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(COUNT - 1))
        with pytest.raises(DataError, match="80 images and 79 labels in train"):
            fashion_mnist(tmp_path)

    def test_every_fourth_photo_is_for_testing(self, cells):
        images = photos(cells, image_size=32)
        whole = grey(COUNT, 32)
        np.testing.assert_array_equal(images.test[..., 0], whole[3::4])
        np.testing.assert_array_equal(images.train[::3, ..., 0], whole[::4])
        likelihood_ranks = [(0, 3, 1, 2)[number // 4 % 4] for number in range(COUNT)]
        assert images.test_labels.tolist() == likelihood_ranks[3::4]

    def test_a_photo_is_resized_by_averaging(self, cells):
        small = photos(cells, image_size=16).train[0, ..., 0]
        means = grey(COUNT, 32)[0].reshape(16, 2, 16, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(small, means, atol=1)  # Pillow rounds after each of its two passes

    def test_a_missing_photo_is_named(self, cells, tmp_path):
        (tmp_path / "labels.csv").write_text("images/cell0001.png 1.0 mono\n")
        with pytest.raises(DataError, match=r"cell0001.png.*elpv-dataset"):
            photos(tmp_path, image_size=8)

    def test_a_fingerprint_is_that_of_the_pixels(self, fashion):
        images = fashion_mnist(fashion)
        changed = images.test.copy()
        changed[0, 0, 0, 0] ^= 1
        assert fingerprint(images) == fingerprint(fashion_mnist(fashion))
        assert fingerprint(images) != fingerprint(images._replace(test=changed))


class TestPage:
    def test_nothing_is_there(self):
        text = page(ITEMS, [])
        assert f"0 of {len(ITEMS)} runs are done" in text
        assert all(item.name in text for item in ITEMS)
        assert plots(ITEMS, []) == {}

    def test_all_is_there(self):
        text = page(ITEMS, [row_of(item) for item in ITEMS])
        assert f"{len(ITEMS)} of {len(ITEMS)} runs are done." in text
        assert not any(word in text for word in ("Missing", "| missing", "missing.", "seeds)"))
        assert "60.0 (50.0 to 70.0)" in text  # the mean of 0.5, 0.6, 0.7
        assert "+35.0 (+25.0 to +45.0)" in text  # transfer's gain

    def test_nothing_is_averaged_where_a_seed_is_missing(self):
        part = [row_of(item) for item in ITEMS if item.seed != 1]
        text = page(ITEMS, part)
        assert "50.0, 70.0 (2 of 3 seeds)" in text
        assert "(50.0 to 70.0)" not in text
        assert f"{len(part)} of {len(ITEMS)} runs are done. Missing" in text

    def test_directions_are_beside_the_published_ones(self):
        text = page(ITEMS, [row_of(item) for item in ITEMS])
        cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line[:1] == "|"]
        lines = {row[1]: row for row in cells}
        assert lines["no predictor"][6:9] == ["lower", "0.2", "yes"]
        assert lines["decay 1: the target stays as it began"][6:9] == ["not told apart", "18.8", "no"]
        assert lines["the whole"][6] == "-"

    def test_a_pair_of_other_machines_is_not_compared(self):
        raced = [item for item in ITEMS if item.group.startswith("race-fashion")]
        found = [row_of(item) for item in raced]
        assert "kNN +0.0, +0.0, +0.0" in page(raced, found)
        found[0] = found[0] | {"machine": MACHINE | {"variables": {}, "cores": 4}}
        text = page(raced, found)
        assert "kNN +0.0, +0.0; linear" in text
        assert "1 pair(s) of other commits or machines" in text

    def test_an_accuracy_that_overlaps_is_not_told_apart(self):
        assert direction([0.5, 0.7], [0.6, 0.8]) == "not told apart"
        assert direction([0.9, 0.7], [0.6, 0.5]) == "higher"

    def test_a_plot_has_a_curve_or_a_dot_for_each_seed(self):
        drawn = plots(ITEMS, [row_of(item) for item in ITEMS])
        tag = "{http://www.w3.org/2000/svg}"
        curves = ElementTree.fromstring(drawn["race.svg"])
        legends = 4 * 2
        assert len(list(curves.iter(f"{tag}path"))) == 4 * 2 * 3 + legends
        dots = ElementTree.fromstring(drawn["ablations.svg"])
        assert len(list(dots.iter(f"{tag}circle"))) == 3 * len(ABLATIONS)


class TestClock:
    def test_it_stands_still_between_stop_and_start(self):
        now = iter([0.0, 2.0, 10.0, 15.0])
        clock = race.Clock(lambda: next(now))
        clock.start(), clock.stop()
        assert clock.seconds == 2
        clock.start(), clock.stop()
        assert clock.seconds == 7

    @pytest.mark.parametrize(("set_up", "marks"), [(0, [0, 4, 8, 10]), (5, [5, 8, 10]), (12, [12])])
    def test_points_at_the_start_at_every_mark_and_at_the_end(self, set_up, marks):
        """A step takes a second, a measurement a hundred, which don't count."""
        time = [0.0]
        clock = race.Clock(lambda: time[0])

        def take(seconds):
            time[0] += seconds

        clock.start(), take(set_up), clock.stop()
        points = race.against_the_clock(
            lambda: take(1), lambda step: take(100) or {"knn": step}, clock, seconds=10, every=4
        )
        assert [point["seconds"] for point in points] == marks
        assert [point["step"] for point in points] == [mark - set_up for mark in marks]


def small_learner(**options):
    sizes = {"image_size": 8, "num_channels": 1, "projection_size": 4, "projection_hidden_size": 6, "hidden_layer": -1}
    same = {"augment_fn": lambda key, image: image}
    return make_learner(nets.small_cnn((4,), num_classes=None), **(sizes | same | options))


IMAGES = grey(8, 8)[..., None]


@pytest.mark.slow
class TestAblations:
    def test_without_a_predictor_the_projections_are_compared(self):
        learner = ablations.without_predictor(small_learner())
        state = learner.init(jax.random.key(0))
        assert sorted(state.online.params) == ["encoder", "predictor", "projector"]
        assert jax.tree.leaves(state.online.params["predictor"]) == []
        value, aux = jax.jit(learner.loss)(state.online.params, state, IMAGES, jax.random.key(1))
        doubled = np.repeat(IMAGES, 2, axis=0) / np.float32(255)
        target, _ = jax.jit(partial(learner.target_apply, train=True))(state.target, doubled)
        expected = 2 * normalized_mse(aux.outputs.projection, target.projection).mean()
        np.testing.assert_allclose(value, expected, atol=1e-5)

    def test_without_batch_norm_a_head_sees_each_image_by_itself(self):
        settings = ablations.without_batch_norm(small_learner()).settings
        for head, width in ((settings.projector, settings.feature_size), (settings.predictor, 4)):
            variables = head.init(jax.random.key(0))
            assert jax.tree.leaves(variables.stats) == []
            x = jax.random.normal(jax.random.key(1), (5, width))
            whole, _ = head.apply(variables, x, train=True)
            alone, _ = head.apply(variables, x[:1], train=True)
            np.testing.assert_allclose(whole[:1], alone, rtol=1e-5)

    @pytest.mark.parametrize("name", ["decay_zero", "decay_one"])
    def test_a_decay_is_what_it_says(self, name):
        learner = small_learner(**ablations.VARIANTS[name].arguments)
        before = learner.init(jax.random.key(0))
        after, _ = jax.jit(learner.step)(before, IMAGES)
        follows = {"decay_zero": after.online, "decay_one": before.target}[name].params
        for part in ("encoder", "projector"):
            pairs = zip(*map(jax.tree.leaves, (after.target.params[part], follows[part])), strict=True)
            assert all(np.array_equal(*pair) for pair in pairs)

    def test_without_anything_random_an_image_stays_as_it_is(self):
        image = jax.random.uniform(jax.random.key(0), (28, 28, 1))
        parts = {"crop", "tone", "flip", "cutout"}
        np.testing.assert_array_equal(ablations.views(*parts)(jax.random.key(1), image), image)
        for part in ("crop", "tone"):
            view = jax.jit(ablations.views(*parts - {part}))(jax.random.key(1), image)
            assert not np.array_equal(view, image)

    def test_the_composed_set_is_about_as_strong_as_the_recipes(self):
        """Mean distance of a view from its image over 400 draws; without crops or tones it is far less."""
        image = jax.random.uniform(jax.random.key(0), (7, 7, 1)).repeat(4, axis=0).repeat(4, axis=1)
        keys = jax.random.split(jax.random.key(1), 400)

        def distance(function):
            return float(jax.jit(jax.vmap(lambda key: abs(function(key, image) - image).mean()))(keys).mean())

        recipes = distance(augment.small_grey(28))
        assert distance(ablations.views()) == pytest.approx(recipes, rel=0.15)
        assert distance(ablations.views("crop", "tone")) < 0.7 * recipes


@pytest.mark.slow
class TestRuns:
    @pytest.fixture
    def run(self, fashion, cells, tmp_path):
        places = {"fashion-mnist": fashion, "photos": cells}
        items = {item.group: item for item in of_scale("smoke")}
        return lambda group, **options: worker.run_item(
            replace(items[group], options=items[group].options | options), places, tmp_path
        )["result"]

    def test_both_sides_of_a_race_start_from_the_same_features(self, run):
        batch = np.repeat(grey(8, 28)[..., None], 3, axis=3)
        options = next(item.options for item in of_scale("smoke") if item.experiment == "race")
        ours, theirs = (build(options, 0)() for build in race.SIDES.values())
        np.testing.assert_allclose(ours.embed(batch), theirs.embed(batch), atol=1e-5)
        for contestant in (ours, theirs):
            before = np.array(contestant.embed(batch))
            contestant.step(batch)
            assert np.abs(np.asarray(contestant.embed(batch)) - before).max() > 1e-4

    def test_a_race(self, run):
        result = run("race-photos-byol_pytorch", train_seconds=0.3)
        assert [set(point) for point in result["points"]] == [{"seconds", "step", "knn", "linear"}] * len(
            result["points"]
        )
        assert result["train_seconds"] >= 0.3
        assert result["points"][-1]["step"] == result["steps"]

    def test_a_long_run_goes_on_where_it_was_stopped(self, run):
        whole = run("long-byol")
        again = run("long-byol")  # its folder is there, and all of its steps are made
        assert whole["steps"] == again["steps"] == 4
        assert {name: whole[name] for name in ("knn", "linear", "loss")} == {
            name: again[name] for name in ("knn", "linear", "loss")
        }
        assert again["train_seconds"] == whole["train_seconds"]

    def test_a_run_has_a_process_of_its_own(self, fashion, tmp_path):
        (item,) = (item for item in of_scale("smoke") if item.variant == "raw_pixels")
        outcome = worker.run_alone(item, {"fashion-mnist": fashion}, tmp_path)
        assert outcome["result"].keys() == {"knn", "linear"}
        images = fashion_mnist(fashion)
        assert outcome["data"] == {"count": [COUNT, COUNT], "most_frequent": 0.1, "sha256": fingerprint(images)}

    def test_an_ablation(self, run):
        result = run("ablations-no_batch_norm", steps=2)
        assert (result["steps"], result["nonfinite"]) == (2, 0)
        assert {"knn", "linear", "spread", "collapsed", "loss", "train_seconds"} <= result.keys()

    def test_a_transfer(self, run):
        result = run("transfer-resnet18")
        assert result["gain"] == result["byol"]["accuracy"] - result["random"]["accuracy"]
        assert result["labels"] == 40


@pytest.mark.slow
def test_fine_tuning_in_torch_learns_what_can_be_learned():
    import torch

    labels = np.arange(64) % 2
    images = np.broadcast_to(labels[:, None, None, None] * 255, (64, 4, 4, 3)).astype(np.uint8)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
    data = Images(images[:48], labels[:48], images[48:], labels[48:])
    assert transfer.finetune(module, data, rate=0.01, epochs=5, seed=0) == 1.0
