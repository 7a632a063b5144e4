"""A run that was stopped goes on as if it hadn't been: same parameters, bit for bit, same order of the data."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import checkpoint, nets, pretrain
from byol_jax.errors import ConfigurationError, DivergedError
from byol_jax.run import read_metrics

SMALL = {
    "image_size": 16,
    "batch_size": 8,
    "num_channels": 1,
    "projection_size": 8,
    "projection_hidden_size": 16,
    "log_every": 2,
    "checkpoint_every": 3,
    "progress": False,
}


def images(count: int = 36) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 20, 20, 1), np.uint8)


def assert_identical(left, right) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory):
    return pretrain(nets.small_cnn(), images(), out=tmp_path_factory.mktemp("whole") / "run", steps=10, **SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [1, 4, 9])
def test_a_longer_run_goes_on_bit_for_bit(stop_at: int, uninterrupted, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain(nets.small_cnn(), images(), out=out, steps=stop_at, **SMALL)
    state = pretrain(nets.small_cnn(), images(), out=out, steps=10, resume=True, **SMALL)
    assert_identical(state, uninterrupted)
    rows, damaged = read_metrics(out / "metrics.jsonl")
    steps = [row["step"] for row in rows]
    assert damaged == 0
    assert steps == sorted(set(steps))
    assert steps[-1] == 10


@pytest.mark.slow
def test_an_iterable_goes_on_where_it_was(tmp_path: Path) -> None:
    batches = np.random.default_rng(1).random((6, 8, 16, 16, 1), np.float32)
    options = {name: value for name, value in SMALL.items() if name != "batch_size"}
    whole = pretrain(nets.small_cnn(), list(batches), out=tmp_path / "whole", steps=8, **options)
    pretrain(nets.small_cnn(), list(batches), out=tmp_path / "run", steps=3, **options)
    state = pretrain(nets.small_cnn(), list(batches), out=tmp_path / "run", steps=8, resume=True, **options)
    assert_identical(state, whole)


@pytest.mark.slow
def test_another_seed_or_batch_is_named_and_refused(uninterrupted, tmp_path: Path) -> None:
    out = tmp_path / "run"
    pretrain(nets.small_cnn(), images(), out=out, steps=3, **SMALL)
    with pytest.raises(ConfigurationError, match=r"(?s)batch_size.*seed|seed.*batch_size"):
        pretrain(nets.small_cnn(), images(), out=out, steps=6, resume=True, seed=1, **(SMALL | {"batch_size": 16}))
    with pytest.raises(ConfigurationError, match="steps"):
        pretrain(nets.small_cnn(), images(), out=out, steps=2, resume=True, **SMALL)


@pytest.mark.slow
def test_a_run_that_never_is_finite_gives_up_and_keeps_its_state(tmp_path: Path) -> None:
    good = np.random.default_rng(0).random((8, 16, 16, 1), np.float32)
    batches = [good] + [np.full_like(good, np.nan)] * 30
    options = {name: value for name, value in SMALL.items() if name != "batch_size"}
    with pytest.raises(DivergedError, match="21 steps in a row"):
        pretrain(nets.small_cnn(), batches, out=tmp_path / "run", steps=200, **options)
    newest = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert int(newest.name) == 22, "20 bad steps after the first, seen when the row of step 22 was written"


def train(out: Path, data: Path, *options: str) -> list[str]:
    small = (
        "--network small_cnn --image-size 16 --channels 1 --batch-size 4 --steps 60 --log-every 5 --checkpoint-every 20"
    )
    heads = "--projection-size 8 --projection-hidden-size 16"
    return [
        sys.executable,
        "-m",
        "byol_jax",
        "train",
        str(data),
        "--out",
        str(out),
        *small.split(),
        *heads.split(),
        *options,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_rest_follows(number: signal.Signals, tmp_path: Path) -> None:
    data = tmp_path / "images.npy"
    np.save(data, images())
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(
        train(tmp_path / "run", data), stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=300)
    stopped = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert stopped is not None
    if process.returncode == 0:
        pytest.fail(f"the run was over before the signal came: {stderr}")
    assert "Traceback" not in stderr
    assert int(stopped.name) < 60
    subprocess.run(train(tmp_path / "run", data, "--resume"), check=True, env=environment, capture_output=True)
    subprocess.run(train(tmp_path / "whole", data), check=True, env=environment, capture_output=True)
    ends = [checkpoint.latest(tmp_path / name / "checkpoints") for name in ("run", "whole")]
    files = [sorted(path.name for path in end.iterdir() if path.suffix == ".safetensors") for end in ends if end]
    assert files[0] == files[1], "the hash of all leaves is in the file's name"
    assert all(end is not None and int(end.name) == 60 for end in ends)
