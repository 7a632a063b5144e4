"""`byol-jax train` after something happened to its folder between two starts: damage, moves, other options.

One tiny run is trained once; each test copies it, does something to the copy and goes on with it.
"""

import random
import shutil

import numpy as np
import pytest
from tiny_run import RECIPE, contents, plain_rows, states

from byol_jax.runs.config import read_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("compiled_once"),
    pytest.mark.filterwarnings("always::byol_jax.checkpoint.DamagedCheckpointWarning"),
]

STEPS = 6
EVERY = ["--checkpoint-every", "2", "--log-every", "1"]


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory, compiled_once):
    """A finished run with the checkpoints of steps 2, 4 and 6."""
    from byol_jax.cli.main import main

    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(["train", str(images), "--out", str(out), *RECIPE, *EVERY, "--steps", str(STEPS)]) == 0
    return out


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def resume(command, images):
    def go(out, *words, steps=STEPS):
        return command("train", images, "--out", out, *RECIPE, *EVERY, "--steps", steps, "--resume", *words)

    return go


def step_folder(out, step):
    return out / "checkpoints" / f"{step:08d}"


def flip_a_bit(folder, seed=0):
    (path,) = folder.glob("state-*")
    content = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    return path


def cut_short(folder):
    (path,) = folder.glob("state-*")
    path.write_bytes(path.read_bytes()[:-1000])
    return path


def lose_the_leaves(folder):
    (path,) = folder.glob("state-*")
    path.unlink()
    return path


def lose_the_manifest(folder):
    (folder / "manifest.json").unlink()
    return folder / "manifest.json"


def exchange_the_leaves(folder):
    """The file of the checkpoint before, under the name that this manifest expects."""
    (path,), (other,) = folder.glob("state-*"), step_folder(folder.parents[1], int(folder.name) - 2).glob("state-*")
    path.write_bytes(other.read_bytes())
    return path


def exchange_the_manifest(folder):
    other = step_folder(folder.parents[1], int(folder.name) - 2)
    shutil.copyfile(other / "manifest.json", folder / "manifest.json")
    return folder


DAMAGE = [flip_a_bit, cut_short, lose_the_leaves, lose_the_manifest, exchange_the_leaves, exchange_the_manifest]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_and_the_one_before_is_used(trained, run, resume, damage):
    named = damage(step_folder(run, 6))
    code, out, errors = resume(run)
    assert (code, out.split()) == (0, [str(run)])
    warned = [line for line in errors if "warning" in line]
    assert len(warned) == 1
    assert f"damaged checkpoint passed over: {named}" in warned[0]
    assert "going on after step 4" in errors
    assert states(run) == states(trained), "the damaged one was made again, bit for bit"
    assert [row["step"] for row in plain_rows(run)] == list(range(1, STEPS + 1))


def test_two_damaged_ones_are_both_named(trained, run, resume):
    damaged = [flip_a_bit(step_folder(run, 6)), cut_short(step_folder(run, 4))]
    code, _, errors = resume(run)
    assert code == 0
    assert [str(path) in line for path, line in zip(damaged, errors, strict=False)] == [True, True]
    assert "going on after step 2" in errors
    assert states(run) == states(trained)


def test_all_damaged_is_an_end_that_says_what_to_do(run, resume):
    damaged = [flip_a_bit(step_folder(run, step)) for step in (2, 4, 6)]
    before = contents(run)
    code, out, errors = resume(run)
    assert (code, out, len(errors)) == (2, "", 1)
    assert all(str(path) in errors[0] for path in damaged)
    assert "no checkpoint is intact" in errors[0]
    assert "--overwrite" in errors[0]
    assert contents(run) == before, "damaged or not, nothing of it was deleted"


@pytest.mark.parametrize("name", ["evaluate", "embed", "export"])
def test_all_damaged_for_those_who_read_a_run(run, images, command, tmp_path, name):
    damaged = [cut_short(step_folder(run, step)) for step in (2, 4, 6)]
    np.save(tmp_path / "labels.npy", np.arange(4))
    words = {
        "evaluate": ["--data", images, "--labels", tmp_path / "labels.npy"],
        "embed": ["--data", images, "--out", tmp_path / "new" / "features.npz"],
        "export": ["--out", tmp_path / "new" / "net.npz"],
    }
    code, out, errors = command(name, run, *words[name])
    assert (code, out) == (2, "")
    assert "no intact checkpoint" in errors[-1]
    assert all(str(path) in errors[-1] for path in damaged)
    assert not (tmp_path / "new").exists()


def test_moved_copied_and_other_options_that_decide_nothing(trained, run, resume, tmp_path):
    run.rename(tmp_path / "moved")
    shutil.rmtree(step_folder(tmp_path / "moved", 6))
    words = ["--workers", "1", "--log-every", "3", "--checkpoint-every", "1"]
    assert resume(tmp_path / "moved", *words)[0] == 0
    assert states(tmp_path / "moved")[6] == states(trained)[6]


def test_a_finished_run_has_nothing_left_to_do(run, resume):
    before = contents(run / "checkpoints")
    code, _, errors = resume(run)
    assert (code, errors[0]) == (0, "going on after step 6")
    assert contents(run / "checkpoints") == before
    assert [row["step"] for row in plain_rows(run)] == list(range(1, STEPS + 1))


def test_larger_steps_equal_a_straight_run(run, resume, command, images, tmp_path):
    assert resume(run, steps=10)[0] == 0
    straight = ["train", images, "--out", tmp_path / "straight", *RECIPE, *EVERY, "--steps", 10]
    assert command(*straight)[0] == 0
    assert states(run) == states(tmp_path / "straight")
    assert read_config(run)["steps"] == 10


def test_smaller_steps_are_refused(run, resume):
    before = contents(run)
    code, out, errors = resume(run, steps=5)
    assert (code, out, len(errors)) == (2, "", 1)
    assert "steps: stored 6, given 5 (may only grow)" in errors[0]
    assert contents(run) == before


def test_every_option_that_decides_is_named_at_once(run, command, images, tmp_path):
    before = contents(run)
    other = {
        "network/channels": "--channels 3",
        "image_size": "--image-size 20",
        "batch_size": "--batch-size 16",
        "seed": "--seed 1",
        "learner/projection_size": "--projection-size 9",
        "learner/projection_hidden_size": "--projection-hidden-size 17",
        "learner/moving_average_decay": "--moving-average-decay 0.9",
        "learner/learning_rate": "--learning-rate 0.5",
        "learner/optimizer": "--optimizer sgd",
        "learner/weight_decay": "--weight-decay 0.1",
        "learner/schedule": "--schedule cosine",
        "learner/warmup_steps": "--warmup-steps 2",
        "learner/augment": "--augment byol",
        "learner/hidden_layer": "--hidden-layer -1",
        "steps": "--steps 5",
    }
    np.save(tmp_path / "more.npy", np.zeros((30, 20, 20, 3), np.uint8))
    words = [word for option in other.values() for word in option.split()]
    code, out, errors = command(
        "train", tmp_path / "more.npy", "--out", run, "--resume", "--network", "small_cnn", *words
    )
    assert (code, out, len(errors)) == (2, "", 1)
    assert [name for name in (*other, "data/count", "data/sha256") if f"{name}: stored " not in errors[0]] == []
    assert contents(run) == before


def test_a_target_network_that_goes_is_named(run, resume):
    before = contents(run)
    code, out, errors = resume(run, "--no-momentum")
    assert (code, out, len(errors)) == (2, "", 1)
    assert "learner/use_momentum: stored true, given false" in errors[0]
    assert contents(run) == before
