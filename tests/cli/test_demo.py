"""`byol-jax demo` on a few of its images: what it writes and says, to its end and stopped before it."""

import contextlib
import json
import signal

import pytest
import torch
from torch import nn

from byol_jax.cli import demo_run
from byol_jax.runs.stop import Stop
from byol_jax.train import loop


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    images, labels = demo_run._embedded_images()
    monkeypatch.setattr(demo_run, "_embedded_images", lambda: (images[:300], labels[:300]))
    monkeypatch.setattr(demo_run, "TRAIN_IMAGES", 200)


@pytest.mark.long
def test_a_demo_hands_its_weights_to_torch(call, tmp_path):
    answer = call("demo", "--out", tmp_path / "demo", "--steps", 2)
    assert answer.code == 0, answer.err
    assert "features agree to" in answer.err
    expression = json.loads((tmp_path / "demo" / "results.json").read_text())["pytorch"]
    network = eval(expression, {"nn": nn})
    network.load_state_dict(torch.load(tmp_path / "demo" / "improved-net.pt", weights_only=True), strict=True)


@pytest.mark.slow
def test_a_demo_that_is_stopped_says_what_the_demo_can_do(call, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def stopped_at_once():
        stop = Stop()
        stop.signal = signal.SIGINT
        yield stop

    monkeypatch.setattr(loop, "stop_on_signals", stopped_at_once)
    answer = call("demo", "--out", tmp_path / "demo", "--steps", 9)
    assert answer.code == 130
    assert "--overwrite starts the demo anew" in answer.err
    for said in (answer.err, (tmp_path / "demo" / "train.log").read_text()):
        assert "stopped after step" in said
        assert "--resume" not in said
