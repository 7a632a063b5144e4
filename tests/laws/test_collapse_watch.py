"""A collapse is called so when it lasts, in training mode or in evaluation mode; a run that learns never is."""

import itertools
import json

import numpy as np
import pytest

from byol_jax import evaluate, report
from byol_jax.evaluate.collapse import HEALTHY_FRACTION
from byol_jax.presets import known
from byol_jax.runs.collapse_watch import PERSISTENT_STEPS, CollapseWatch, likely_causes

EVEN = 1 / 16
LOW, HIGH = 0.9 * HEALTHY_FRACTION * EVEN, 1.1 * HEALTHY_FRACTION * EVEN
EVALUATION = "evaluation_feature_std"


def watched(rows):
    watch = CollapseWatch(256)
    for row in rows:
        watch.add(row)
    return watch


def every(steps, spread, *, start=0, stop=2000, key="feature_std"):
    return [{"step": step, key: spread} for step in range(start + steps, stop + 1, steps)]


@pytest.mark.parametrize("key", ["feature_std", EVALUATION])
@pytest.mark.parametrize("steps", [1, 7, 50, 100, 200, 1000])
def test_it_is_said_after_200_steps_however_often_rows_are_written(key, steps):
    """The first row that counts is at or after step 200, or 1,000; the verdict comes with the first 200 steps later."""
    rows, watch, found = every(steps, LOW, key=key, stop=4000), CollapseWatch(256), []
    for row in rows:
        watch.add(row)
        found += [row["step"]] if watch.verdict is not None else []
    since = steps * -(-(200 if key == "feature_std" else 1000) // steps)
    assert found[0] == next(row["step"] for row in rows if row["step"] - since >= PERSISTENT_STEPS)
    assert found == [row["step"] for row in rows if row["step"] >= found[0]]
    verdict = watched(rows).verdict
    assert (verdict.since, verdict.step, verdict.even) == (since, rows[-1]["step"], EVEN)
    assert verdict.mode == ("training" if key == "feature_std" else "evaluation")


def test_the_line_is_that_of_evaluate_collapse():
    """Of projections whose spread is just below and just above a tenth of the even one."""
    directions = np.random.default_rng(0).normal(size=(4000, 256))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for part in (0.08, 0.12):
        embeddings = part * directions + np.eye(256)[0]
        found = evaluate.collapse(embeddings)
        watch = watched(every(100, found.feature_std))
        assert found.collapsed == (watch.verdict is not None) == (part < 0.1)


def test_one_healthy_row_begins_anew():
    rows = every(50, LOW, stop=350) + every(50, HIGH, start=350, stop=400)
    assert watched([*rows, *every(50, LOW, start=400, stop=600)]).verdict is None
    assert watched([*rows, *every(50, LOW, start=400, stop=650)]).verdict.since == 450


def test_rows_without_a_number_decide_nothing():
    """The spread of steps that weren't finite, rows of a probe, what a damaged file holds."""
    rows = every(50, LOW, stop=700)
    for other in (None, float("nan"), float("inf"), 10**400, "low", True):
        mixed = itertools.chain(*((row, {"step": row["step"] + 1, "feature_std": other}) for row in rows))
        assert watched(mixed).verdict == watched(rows).verdict
    assert watched(every(50, None)).verdict is None
    assert watched([{"step": 1000, "probe_knn": 0.1}]).verdict is None


def test_what_has_recovered_is_kept():
    watch = watched(every(50, LOW, stop=600) + every(50, HIGH, start=600, stop=1000))
    assert watch.verdict is None
    assert [(one.since, one.step) for one in watch.ended] == [(200, 600)]


def test_training_mode_may_hide_it():
    rows = [{"step": 1000 * n, "feature_std": 0.05, EVALUATION: LOW} for n in (1, 2)]
    assert watched(rows[:1]).verdict is None
    assert watched(rows).verdict.mode == "evaluation"


def test_a_spread_that_falls_and_rises_within_200_steps_is_no_collapse():
    """Random walks around the line, low for at most 150 steps at a time."""
    random = np.random.default_rng(0)
    for _ in range(200):
        step, rows = 0, []
        while step < 3000:
            for spread, steps in ((HIGH, random.integers(1, 4)), (LOW, random.integers(1, 5))):
                for _ in range(steps):
                    step += 50
                    rows.append({"step": step, "feature_std": spread})
        watch = watched(rows)
        assert watch.verdict is None
        assert not watch.ended


RECORDED = (
    [0.66, 0.61, 0.57, 0.6, 0.62, 0.6, 0.66, 0.67, 0.66, 0.7, 0.7, 0.7],
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.001, 0.003, 0.01, 0.092, 0.361, 0.569],
)
"""torchvision's mobilenet_v3_small, traced, Adam at 3e-4, on Fashion-MNIST at 32 px, batches of 32: spread every 50
steps, as a part of the even one, in training mode and in evaluation mode."""


def test_a_recorded_run_of_a_traced_network_is_never_called_collapsed():
    """In evaluation mode projections are all alike for 450 steps, until running statistics have settled."""
    watch = CollapseWatch(256)
    for number, (one, other) in enumerate(zip(*RECORDED, strict=True), 1):
        watch.add({"step": 50 * number, "feature_std": EVEN * one, EVALUATION: EVEN * other})
        assert watch.verdict is None
    assert not watch.ended


def test_a_published_rate_is_not_accused():
    """Of presets: small_grey's is thirteen times AdamW's usual one, Imagenette's ten times LARS's."""
    for one in known():
        learner = {"optimizer": one.preset.optimizer, "learning_rate": one.preset.base_learning_rate}
        assert "learning rate of" not in likely_causes({"learner": learner, "batch_size": 16})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"learner": {"optimizer": "adam", "learning_rate": 5e-3}},
            "a learning rate of 0.005, adam's usual one is 0.0003",
        ),
        ({"batch_size": 16}, "a batch of 16, take 64 images or more"),
        ({"batch_size": 256, "accumulate": 8}, "a batch of 256 in 8 parts, take 64 images or more a part"),
        ({"learner": {"augment": "none"}}, "views without augmentation"),
        ({"learner": {"moving_average_decay": 0.5}}, "a target decay of 0.5, take 0.99"),
        ({"learner": {"use_momentum": False, "moving_average_decay": 0.5}}, "no target network"),
        ({"learner": {"weight_decay": 0.1}}, "a weight decay of 0.1"),
    ],
)
def test_what_stands_out_is_named_with_a_remedy(config, words):
    line = likely_causes(config)
    assert line.startswith(f"likely causes: {words}")
    assert "a tenth" in line


def test_what_is_usual_is_not_accused():
    usual = {"optimizer": "adam", "learning_rate": 3e-4, "moving_average_decay": 0.99, "augment": "simclr"}
    for config in (
        {},
        {"batch_size": 256, "learner": usual},
        {"learner": None},
        {"learner": {"optimizer": "optax.adam"}},
    ):
        assert likely_causes(config).startswith("no option stands out; try a tenth of the learning rate")
    assert likely_causes({}, has_batch_norm=True) == likely_causes({})
    assert "without batch norm" in likely_causes({}, has_batch_norm=False)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (every(50, LOW), "It has collapsed since step 200"),
        (every(50, LOW, stop=600) + every(50, HIGH, start=600), "It was collapsed since step 200"),
        (every(50, HIGH), None),
    ],
)
def test_the_report_says_it_in_red(rows, words, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"batch_size": 8, "learner": {"projection_size": 256}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    page = report.write_report(tmp_path).read_text()
    assert ('<p class="bad">' in page) == (words is not None)
    assert words is None or words in page
    assert ("a batch of 8, take 64" in page) == (words is not None and "has" in words)
