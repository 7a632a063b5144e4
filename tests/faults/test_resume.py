"""Runs on anybody's iterable of batches: where they go on after a stop, and when they give up.

Runs on folders: test_resume_anywhere.py, test_killed_training.py.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import SMALL, contents

from byol_jax import ConfigurationError, checkpoint, nets, pretrain
from byol_jax.errors import DivergedError


def shaded(key, image):
    """An augmentation that shows which key it got, and compiles in a moment."""
    return image * jax.random.uniform(key, (), image.dtype, 0.5, 1)


OPTIONS = SMALL | {"log_every": 2, "checkpoint_every": 3, "augment_fn": shaded}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_once")]


def assert_identical(left, right) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_an_iterable_goes_on_where_it_was(tmp_path: Path) -> None:
    batches = np.random.default_rng(1).random((6, 8, 16, 16, 1), np.float32)
    options = {name: value for name, value in OPTIONS.items() if name != "batch_size"}
    whole = pretrain(nets.small_cnn(), list(batches), out=tmp_path / "whole", steps=8, **options)
    pretrain(nets.small_cnn(), list(batches), out=tmp_path / "run", steps=3, **options)
    state = pretrain(nets.small_cnn(), list(batches), out=tmp_path / "run", steps=8, resume=True, **options)
    assert_identical(state, whole)


def test_a_run_that_never_is_finite_gives_up_and_keeps_its_state(tmp_path: Path) -> None:
    good = np.random.default_rng(0).random((8, 16, 16, 1), np.float32)
    batches = [good] + [np.full_like(good, np.nan)] * 30
    options = {name: value for name, value in OPTIONS.items() if name != "batch_size"}
    with pytest.raises(DivergedError, match="21 steps in a row"):
        pretrain(nets.small_cnn(), batches, out=tmp_path / "run", steps=200, **options)
    newest = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert newest is not None
    assert int(newest.name) == 22, "20 bad steps after the first, seen when the row of step 22 was written"


def edit(path, change):
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def test_another_optimizer_is_refused_and_what_is_not_compared_is_said(tmp_path: Path) -> None:
    """Fingerprints tell the rate of an optimiser; a run that was written before there were any goes on."""
    run, batches = tmp_path / "run", np.random.default_rng(1).random((6, 8, 16, 16, 1), np.float32)
    options = {name: value for name, value in OPTIONS.items() if name != "batch_size"} | {"out": run}
    pretrain(nets.small_cnn(), list(batches), steps=3, optimizer=optax.adam(1e-3), **options)
    before = contents(run)
    with pytest.raises(ConfigurationError, match=r"another configuration: optimizer: it computes otherwise .*; give"):
        pretrain(nets.small_cnn(), list(batches), steps=4, resume=True, optimizer=optax.adam(2e-3), **options)
    assert contents(run) == before
    pretrain(nets.small_cnn(), list(batches), steps=4, resume=True, optimizer=optax.adam(1e-3), **options)
    assert "optimizer: " not in (run / "train.log").read_text()

    edit(run / "config.json", lambda config: config.pop("fingerprints"))
    edit(run / "environment.json", lambda facts: facts.update(usable_cpu_count=97))
    pretrain(nets.small_cnn(), list(batches), steps=5, resume=True, optimizer=optax.adam(1e-3), **options)
    log = (run / "train.log").read_text()
    assert "optimizer: not compared with the run so far, which began before fingerprints were kept" in log
    assert "from here on not bit for bit what it would have been, rounding differs: usable_cpu_count 97 then" in log
    assert json.loads((run / "config.json").read_text())["fingerprints"]["optimizer"]
