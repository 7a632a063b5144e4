"""Collapse that training mode hides: measured in evaluation mode, kept in the rows, said in log and report."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_cases import learner_with, two_layers

from byol_jax import Variables, evaluate, nets, optim, parallel, pretrain, report
from byol_jax.checkpoint import latest
from byol_jax.data import evaluation_images, open_dataset
from byol_jax.data.embedded import fashion_mnist
from byol_jax.errors import CollapsedError
from byol_jax.report import write
from byol_jax.runs import collapse_watch, health
from byol_jax.runs.health import (
    MEASURED_IMAGES,
    SETTLED_STEPS,
    compile_health,
    fixed_images,
    is_due,
    raw_images,
    warning,
)
from byol_jax.runs.metrics import read_metrics

OPTIONS = {
    "image_size": 2,
    "hidden_layer": "first",
    "projection_size": 4,
    "projection_hidden_size": 5,
    "augment_fn": lambda key, image: image + 0.1 * jax.random.uniform(key, image.shape),
    "batch_size": 8,
    "progress": False,
}


def noise(count, side=2, channels=3):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), np.uint8)


def blind():
    """An encoder that tells images apart in training mode alone."""
    encoder = two_layers()

    def apply(variables, images, *, train, **options):
        return encoder.apply(variables, images if train else images * 0, train=train, **options)

    return encoder._replace(apply=apply)


@pytest.fixture
def settled_early(monkeypatch):
    """Running statistics of this file's networks have settled after 200 steps: runs need not be longer."""
    monkeypatch.setitem(collapse_watch.MODES, "evaluation_feature_std", ("evaluation", 200))
    for module in (health, write):
        monkeypatch.setattr(module, "SETTLED_STEPS", 200)


def run_of(out, encoder, steps=200):
    pretrain(encoder, noise(24), out=out, steps=steps, log_every=100, **OPTIONS)
    rows, _ = read_metrics(out / "metrics.jsonl")
    return rows, (out / "train.log").read_text(), (out / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("settled_early")
def test_what_training_mode_hides_is_said(tmp_path):
    rows, log, page = run_of(tmp_path / "run", blind())
    assert ["evaluation_feature_std" in row for row in rows] == [False, True]
    assert all(row["feature_std"] > 0.1 for row in rows)
    assert rows[-1]["evaluation_feature_std"] < 1e-6
    assert "WARNING: collapsed in evaluation mode after step 200" in log
    assert '<p class="bad">Collapsed' in page
    assert '<span class="bad">collapsed: ' in page


@pytest.mark.slow
@pytest.mark.usefixtures("settled_early")
def test_a_collapsed_run_stops_where_it_is_asked_to_and_says_so_when_it_goes_on(tmp_path):
    """Measured after steps 200, 300 and 400: the third is 200 steps after the first, and one step later it ends."""
    options = OPTIONS | {"out": tmp_path / "run", "log_every": 100, "health_every": 100}
    with pytest.raises(CollapsedError) as caught:
        pretrain(blind(), noise(24), steps=600, stop_on_collapse=True, **options)
    line, log = str(caught.value), (tmp_path / "run" / "train.log").read_text()
    assert line.startswith("stopped after step 401 of 600: collapsed since step 200: ")
    assert "in evaluation mode" in line
    assert f"saved in {latest(tmp_path / 'run' / 'checkpoints')}; likely causes: a batch of 8" in line
    assert "\n" not in line
    assert log.count("WARNING: collapsed since step 200") == 1
    assert [" COLLAPSED " in line for line in log.splitlines() if "step 400/600" in line] == [True]
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")[0]] == [100, 200, 300, 400, 401]

    assert '<p class="bad">It has collapsed since step 200' in (tmp_path / "run" / "report.html").read_text()

    pretrain(blind(), noise(24), steps=600, stop_on_collapse=True, resume=True, **options)
    log = (tmp_path / "run" / "train.log").read_text()
    assert "WARNING: this run had collapsed since step 200" in log
    assert "done: 600 steps" in log
    assert '<p class="bad">It has collapsed since step 200' in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("settled_early")
def test_a_run_that_tells_images_apart_has_nothing_red(tmp_path):
    rows, log, page = run_of(tmp_path / "run", two_layers())
    assert rows[-1]["evaluation_feature_std"] > 0.1
    assert "WARNING" not in log
    assert 'class="bad">' not in page


@pytest.mark.slow
def test_the_measure_is_that_of_evaluate():
    """`evaluate.collapse`, float64 on the host, of the same images; replicated over eight devices, measured on one."""
    learner = learner_with(optim.lars(0.1))
    state = learner.init(jax.random.key(0))
    images = noise(12)
    mesh = parallel.make_mesh()
    measure = compile_health(learner, parallel.replicate(state, mesh), images, images)
    found, expected = measure(parallel.replicate(state, mesh)), evaluate.collapse(learner.project(state, images))
    assert found["evaluation_feature_std"] == pytest.approx(expected.feature_std, rel=1e-5)
    assert found["effective_rank"] == pytest.approx(expected.effective_rank, rel=1e-4)
    without = compile_health(learner, parallel.replicate(state, mesh), images)(parallel.replicate(state, mesh))
    assert without == {name: found[name] for name in ("evaluation_feature_std", "effective_rank", "uniformity")}
    other = state.replace(online=Variables(jax.tree.map(jnp.zeros_like, state.online.params), state.online.stats))
    found = measure(parallel.replicate(other, mesh))
    assert found == {
        "evaluation_feature_std": 0,
        "effective_rank": 1,
        "alignment": 0,
        "uniformity": pytest.approx(0, abs=1e-6),
    }


def test_the_images_are_fixed_and_as_an_evaluation_sees_them():
    dataset = open_dataset(noise(400, side=20), image_size=16)
    chosen = np.linspace(0, 399, MEASURED_IMAGES).astype(int)
    batch = jnp.zeros((8, 20, 20, 3), np.uint8)
    found = fixed_images(dataset, batch, (16, 16, 3))
    np.testing.assert_array_equal(found, evaluation_images(dataset, chosen, 16))
    np.testing.assert_array_equal(raw_images(dataset, batch), noise(400, side=20)[chosen])
    assert len(fixed_images(open_dataset(noise(200, side=16), image_size=16), batch, (16, 16, 3))) == 192
    few = open_dataset(noise(5, side=16), image_size=16)
    np.testing.assert_array_equal(fixed_images(few, batch, (16, 16, 3)), noise(5, side=16))
    assert fixed_images(open_dataset(noise(1, side=16), image_size=16), batch, (16, 16, 3)) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, jnp.bfloat16])
def test_of_an_iterable_its_first_batch_is_measured(dtype):
    mesh = parallel.make_mesh()
    images = noise(80, side=16)
    given = images if dtype == np.uint8 else (images / 255).astype(dtype)
    found = fixed_images([given], parallel.shard(given, mesh), (16, 16, 3))
    assert found.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(found, given[:64].astype(found.dtype))
    np.testing.assert_array_equal(raw_images([given], parallel.shard(given, mesh)), found)
    smaller = fixed_images([given], parallel.shard(given, mesh), (8, 8, 3))
    assert smaller.shape == (64, 8, 8, 3)


@pytest.mark.parametrize(("shape", "network"), [((8, 16, 16, 3), (16, 16, 1)), ((8, 30, 3), (40, 3)), ((8, 30), (16,))])
def test_images_of_no_use_to_the_network_are_not_measured(shape, network):
    assert fixed_images([], jnp.zeros(shape), network) is None
    assert fixed_images([], jnp.zeros((8, *network)), network).shape == (8, *network)


@pytest.mark.parametrize("log_every", [1, 7, 50, 300, 1000, 1500, 5000])
def test_one_row_in_a_thousand_steps_is_due_however_often_a_run_was_stopped(log_every):
    due = [step for step in range(log_every, 20_000, log_every) if is_due(step, log_every=log_every, last=False)]
    thousands = [step // 1000 for step in due]
    assert thousands == sorted(set(thousands))
    assert all(step % 1000 < log_every for step in due)
    assert len(due) == (19 if log_every < 1000 else len(range(log_every, 20_000, log_every)))
    assert is_due(3, log_every=log_every, last=True)


@pytest.mark.parametrize(
    ("spread", "step", "words"),
    [
        (0.011, 1000, "all alike, spread 0.0110, where evenly spread ones have 0.1250"),
        (float("nan"), 1000, "not finite"),
        (0.013, 1000, None),
        (0.0, SETTLED_STEPS - 1, None),
        (0.0, SETTLED_STEPS, "spread 0.0000"),
        (None, 1000, None),
    ],
)
def test_a_tenth_of_the_even_spread_is_the_line(spread, step, words, tmp_path):
    """In the log and in the report; before running statistics have settled nothing is red."""
    row = {"step": step, "feature_std": 0.1} | ({} if spread is None else {"evaluation_feature_std": spread})
    line = warning(row, 64)
    assert (line is None) == (words is None)
    assert words is None or words in line
    numbers = {name: None if number != number else number for name, number in row.items()}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(numbers) + "\n")
    (tmp_path / "config.json").write_text(json.dumps({"learner": {"projection_size": 64}}))
    assert ('class="bad">' in report.write_report(tmp_path).read_text()) == (words is not None)


@pytest.mark.long
def test_runs_that_learn_are_never_called_collapsed(tmp_path, share, figure):
    images, spreads = fashion_mnist()[0][:2000], []
    small_vit = partial(nets.vit, 2, width=16, num_heads=2, patch_size=7)
    makers = [nets.small_cnn, partial(nets.resnet, (1, 1), width=8), small_vit]
    cases = share([(seed, make) for seed in range(5) for make in makers])
    for number, (seed, make) in enumerate(cases):
        out = tmp_path / str(number)
        options = {"image_size": 28, "num_channels": 1, "projection_size": 64, "projection_hidden_size": 128}
        pretrain(make(), images, out=out, steps=1000, batch_size=32, seed=seed, log_every=50, progress=False, **options)
        rows, _ = read_metrics(out / "metrics.jsonl")
        spreads.append(rows[-1]["evaluation_feature_std"] * 8)
        assert "WARNING" not in (out / "train.log").read_text()
        assert 'class="bad">' not in (out / "report.html").read_text()
    figure(
        "runs of 1,000 steps that learn, measured in evaluation mode: none is called collapsed",
        cases=len(cases),
        result=f"{min(spreads):.2f} to {max(spreads):.2f} of the even spread, line at 0.1",
    )
