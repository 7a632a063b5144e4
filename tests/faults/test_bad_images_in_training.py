"""`byol-jax train` on a folder with bad images in it: said at once by name and number, and without any influence."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_run import RECIPE, plain_rows, states

from byol_jax import checkpoint
from byol_jax.cli.main import main
from byol_jax.data import open_dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_once")]

EVERY = ["--steps", "6", "--log-every", "1", "--checkpoint-every", "2"]


def folder_of_images(root, count=30):
    generator = np.random.default_rng(0)
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 24), np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return folder_of_images(tmp_path_factory.mktemp("good") / "images")


@pytest.fixture(scope="module")
def expected(good, compiled_once):
    out = good.parent / "run"
    assert main([str(word) for word in ("train", good, "--out", out, *RECIPE, *EVERY)]) == 0
    return states(out), plain_rows(out)


def make_bad(folder):
    (folder / "a" / "00+.jpg").touch()
    (folder / "b" / "two\nlines.png").write_text("text")
    (folder / "b" / "loop.png").symlink_to("loop.png")
    os.mkfifo(folder / "z.gif")
    return ["'a/00+.jpg': empty file", r"'b/two\nlines.png': not an image", "'b/loop.png': Too many", "'z.gif': not a"]


def test_they_are_named_and_counted_and_change_nothing(good, expected, command, tmp_path):
    shutil.copytree(good, tmp_path / "images")
    bad = make_bad(tmp_path / "images")
    for workers in (1, 3):
        out = tmp_path / f"run{workers}"
        code, _, errors = command("train", tmp_path / "images", "--out", out, *RECIPE, *EVERY, "--workers", workers)
        assert code == 0
        assert errors[0] == "4 images can't be used and were skipped:"
        assert sorted(bad) == sorted(text for text in bad if any(f"skipped {text}" in line for line in errors[1:5]))
        assert "\n".join(line.split("  ", 1)[1] for line in (out / "train.log").read_text().splitlines()[:5]) == (
            "\n".join(errors[:5])
        )
        assert (states(out), plain_rows(out)) == expected


def test_more_of_them_before_a_resume_change_nothing_either(good, expected, command, tmp_path):
    shutil.copytree(good, tmp_path / "images")
    out = tmp_path / "run"
    words = ["train", tmp_path / "images", "--out", out, *RECIPE, *EVERY]
    assert command(*words)[0] == 0
    shutil.rmtree(out / "checkpoints" / "00000006")
    make_bad(tmp_path / "images")
    shutil.copyfile(good / "a" / "00.png", tmp_path / "images" / "a" / "new.png")
    code, _, errors = command(*words, "--resume")
    assert code == 0
    assert "skipped 'a/new.png': added after the first start" in errors
    assert (states(out), plain_rows(out)) == expected


def test_very_many_of_them_are_counted_and_some_named(good, command, tmp_path):
    shutil.copytree(good, tmp_path / "images")
    for number in range(25):
        (tmp_path / "images" / f"{number:02}.jpg").touch()
    code, _, errors = command("train", tmp_path / "images", "--out", tmp_path / "run", *RECIPE, *EVERY)
    assert code == 0
    assert errors[0] == "25 images can't be used and were skipped:"
    assert [line.startswith("skipped ") for line in errors[:22]] == [False, *[True] * 20, False]
    assert errors[21] == "and 5 more"


@pytest.fixture
def at_step_two(monkeypatch):
    """`at_step_two(function)`: called when the checkpoint of step 2 is saved; nothing decoded is kept in memory."""
    monkeypatch.setitem(open_dataset.__kwdefaults__, "cache_bytes", 0)
    save = checkpoint.save

    def arrange(function):
        def save_and_call(*words, **options):
            folder = save(*words, **options)
            if int(folder.name) == 2:
                function()
            return folder

        monkeypatch.setattr(checkpoint, "save", save_and_call)

    return arrange


def test_what_vanishes_or_becomes_a_pipe_while_training_is_replaced_and_named(good, command, tmp_path, at_step_two):
    shutil.copytree(good, tmp_path / "images")
    lost = sorted((tmp_path / "images" / "a").iterdir())[:8]

    def happen():
        for path in lost:
            path.unlink()
        for path in lost[4:]:
            os.mkfifo(path)

    at_step_two(happen)
    code, _, errors = command("train", tmp_path / "images", "--out", tmp_path / "run", *RECIPE, *EVERY)
    assert code == 0
    named = [line for line in errors if line.startswith("skipped ")]
    assert f"{len(named)} images can't be used and were skipped:" in errors
    assert any(line.endswith("no longer there") for line in named)
    assert any(line.endswith("not a regular file") for line in named)
    assert {line.split("'")[1] for line in named} <= {f"a/{path.name}" for path in lost}


def test_a_folder_that_vanishes_while_training_is_an_end_and_the_checkpoint_stays(good, command, tmp_path, at_step_two):
    shutil.copytree(good, tmp_path / "images")
    at_step_two(lambda: (tmp_path / "images").rename(tmp_path / "gone"))
    words = ["train", tmp_path / "images", "--out", tmp_path / "run", *RECIPE, *EVERY]
    code, out, errors = command(*words)
    assert (code, out) == (2, "")
    assert "images could be used at first and can't be now" in errors[-1]
    assert checkpoint.latest(tmp_path / "run" / "checkpoints") is not None
    code, _, errors = command(*words, "--resume")
    assert (code, len(errors)) == (2, 1)
    assert "doesn't exist" in errors[0]
    (tmp_path / "gone").rename(tmp_path / "images")
    assert command(*words, "--resume")[0] == 0
