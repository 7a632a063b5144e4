"""Twenty bad steps in a row end a run: with the step, the images it saw, a saved state; as a program, with exit code 1.

How one bad step leaves everything alone is in test_guards.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import data, make_learner, nets, pretrain
from byol_jax.checkpoint import latest, restore
from byol_jax.cli.main import main
from byol_jax.errors import DivergedError
from byol_jax.runs.metrics import read_metrics

HEADS = {"image_size": 16, "num_channels": 1, "projection_size": 8, "projection_hidden_size": 16}
IMAGES = np.random.default_rng(0).integers(1, 256, (24, 16, 16, 1), np.uint8)

SPOILS_AT_FIVE = optax.chain(optax.sgd(0.1), optax.scale_by_schedule(lambda count: jnp.where(count < 4, 1.0, jnp.inf)))

pytestmark = pytest.mark.slow


def spoilt(key, image):
    return image * jnp.nan


def newest(out):
    folder = latest(out / "checkpoints")
    assert folder is not None
    return folder


def test_a_run_of_bad_steps_ends_with_step_images_and_state(tmp_path):
    """Seen two steps after the twentieth, before anything would be logged."""
    options = HEADS | {"augment_fn": spoilt}
    sizes = {"steps": 90, "batch_size": 8, "log_every": 1000, "progress": False}
    with pytest.raises(DivergedError) as caught:
        pretrain(nets.small_cnn((4,)), IMAGES, out=tmp_path, **sizes, **options)
    message = str(caught.value)
    batch = data.batch_indices(19, seed=0, count=24, batch_size=8)
    assert message.startswith("20 steps in a row up to step 20 had no finite loss")
    assert message.endswith(f"images {', '.join(map(str, batch))}")
    assert str(newest(tmp_path)) in message
    assert newest(tmp_path).name == "00000022"
    start = make_learner(nets.small_cnn((4,)), **options).init(jax.random.key(0))
    saved = restore(tmp_path / "checkpoints", like=start).state
    for part in ("online", "target", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(saved, part), getattr(start, part))
    rows, _ = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["nonfinite"] for row in rows] == [20]


def test_bad_steps_that_came_before_good_ones_are_not_overlooked(tmp_path):
    """Steps 3 to 24; nothing is logged before step 60."""
    good = np.random.default_rng(0).random((8, 16, 16, 1), np.float32)
    batches = [np.full_like(good, np.nan) if 3 <= step <= 24 else good for step in range(1, 61)]
    options = HEADS | {"augment_fn": lambda key, image: image, "progress": False}
    with pytest.raises(DivergedError, match="22 steps in a row up to step 24 had no finite loss"):
        pretrain(nets.small_cnn((4,)), batches, out=tmp_path / "run", steps=60, log_every=60, **options)
    few = [np.full_like(good, np.nan) if 3 <= step <= 21 else good for step in range(1, 61)]
    state = pretrain(nets.small_cnn((4,)), few, out=tmp_path / "few", steps=60, log_every=60, **options)
    assert state.step == 60
    assert [row["nonfinite"] for row in read_metrics(tmp_path / "few" / "metrics.jsonl")[0]] == [19]


def test_as_a_program_it_is_one_line_and_exit_code_1(tmp_path, capsys):
    np.save(tmp_path / "images.npy", IMAGES)
    words = (
        "--network small_cnn --projection-size 8 --projection-hidden-size 16 --augment none --batch-size 8 --steps 90"
    )
    where = [str(tmp_path / "images.npy"), "--out", str(tmp_path / "run")]
    assert main(["train", *where, *words.split(), "--log-every", "5", "--learning-rate", "1e30"]) == 1
    said = capsys.readouterr()
    last = said.err.splitlines()[-1]
    assert last.startswith("byol-jax train: failed: ")
    assert "steps in a row up to step" in last
    assert str(newest(tmp_path / "run")) in last
    assert "Traceback" not in said.err
    assert said.out == ""


def test_parameters_that_the_optimiser_spoilt_are_told_from_bad_steps(tmp_path):
    batches = [np.random.default_rng(0).random((8, 16, 16, 1), np.float32)] * 60
    options = HEADS | {"augment_fn": lambda key, image: image, "progress": False, "optimizer": SPOILS_AT_FIVE}
    with pytest.raises(DivergedError, match="made parameters without a finite norm in step 5; the state is saved in"):
        pretrain(nets.small_cnn((4,)), batches, out=tmp_path / "run", steps=60, log_every=50, **options)
    assert "since step 5 the parameters have no finite norm" in (tmp_path / "run" / "train.log").read_text()
