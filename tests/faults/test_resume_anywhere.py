"""Stopped after any step, a run goes on bit for bit: every step of a run tried, with one compilation."""

import logging
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_run import SMALL, plain_rows, states

from byol_jax import checkpoint, nets, parallel, pretrain

EVERY_ROW = SMALL | {"log_every": 1}


def random_crop(key, image):
    """An augmentation that shows which key it got, and compiles in a moment: [18, 18, 1] to [16, 16, 1]."""
    top, left = jax.random.randint(key, (2,), 0, 3)
    return jax.lax.dynamic_slice(image, (top, left, 0), (16, 16, 1))


def folder_of_images(root, count=28, bad=3):
    """Images in sub-folders, a few of them bad: with 25 good ones an epoch is three batches and a remainder."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = root / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 24), np.uint8)).save(path)
        if number < bad:
            path.write_bytes(path.read_bytes()[:60])
    return root


def cut_back(whole, out, step):
    """A copy of the run `whole` as if it had been killed after the checkpoint of `step`, with rows of later steps."""
    shutil.copytree(whole, out)
    for folder in (out / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    (out / "report.html").unlink()
    shutil.rmtree(out / "exported")


@pytest.mark.long
def test_a_resumed_run_compiles_its_step_once_over_fifty_steps(tmp_path, caplog, compiled_once, monkeypatch):
    """Epochs of three batches and a remainder of one image, which is left out; nothing is compiled after the step."""
    data = folder_of_images(tmp_path / "images")
    options = SMALL | {"augment_fn": random_crop, "checkpoint_every": 7, "log_every": 5}
    pretrain(nets.small_cnn(), data, out=tmp_path / "run", steps=3, **options)
    monkeypatch.setattr(parallel, "jit", compiled_once)  # the real one: here compiling is the point
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        pretrain(nets.small_cnn(), data, out=tmp_path / "run", steps=53, resume=True, **options)
    compiled = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]
    steps = [position for position, message in enumerate(compiled) if message.startswith("Compiling jit(step)")]
    assert len(steps) == 1, compiled
    assert compiled[steps[0] + 1 :] == []
    assert [row["step"] for row in plain_rows(tmp_path / "run")] == [3, *range(5, 54, 5), 53]


def check_every_stop(tmp_path, steps, total):
    data = folder_of_images(tmp_path / "images")
    every = EVERY_ROW | {"steps": total, "augment_fn": random_crop}
    pretrain(nets.small_cnn(), data, out=tmp_path / "whole", checkpoint_every=1, **every)
    expected = states(tmp_path / "whole")
    assert list(expected) == list(range(1, total + 1))
    for step in steps:
        out = tmp_path / f"from{step}"
        cut_back(tmp_path / "whole", out, step)
        pretrain(nets.small_cnn(), data, out=out, resume=True, checkpoint_every=total, workers=1 + step % 3, **every)
        assert states(out)[total] == expected[total], f"stopped after step {step}"
        assert plain_rows(out) == plain_rows(tmp_path / "whole")
        shutil.rmtree(out)


@pytest.fixture
def keep_all(monkeypatch):
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *words, **options: save(*words, **options, keep=None))


@pytest.mark.long
def test_after_any_step_of_a_longer_run(tmp_path, compiled_once, keep_all, share, figure):
    steps = share(list(range(1, 60)))
    check_every_stop(tmp_path, steps, 60)
    figure(
        "a run stopped after a step, every step of 60, and resumed",
        cases=len(steps),
        result="last state and all rows of metrics.jsonl bit-identical to the uninterrupted run's",
    )
