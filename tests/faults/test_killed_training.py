"""`byol-jax train` killed, asked to stop, or interrupted: the rest of the run is as if nothing had happened."""

import os
import random
import re
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
from tiny_run import RECIPE, plain_rows, save_images, states, temporaries

from byol_jax import checkpoint

HERE = Path(__file__).parent
EVERY = ["--checkpoint-every", "1", "--log-every", "1"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Images, and the environment of every process: what one of them compiles the others load."""
    root = tmp_path_factory.mktemp("world")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(root / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return save_images(root / "images.npy"), environment


def begin(world, out, steps, *words, delay=0.0):
    """A process that trains; its standard error is a file beside the run."""
    images, environment = world
    line = [sys.executable, HERE / "train_slowly.py", delay, "train", images, "--out", out, "--steps", steps]
    with open(f"{out}.err", "w") as errors:
        return subprocess.Popen(
            [str(word) for word in (*line, *RECIPE, *EVERY, *words)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )


def said(out):
    return Path(f"{out}.err").read_text().splitlines()


def wait_until(condition, process, seconds=300):
    """Whether it came true while the process was there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.0005)
    pytest.fail(f"nothing happened in {seconds} seconds")


def is_saving(directory):
    """Whether a checkpoint is being written; one that is put in place while it is looked for isn't any more."""
    try:
        return any(directory.glob(".tmp-*/state-*"))
    except FileNotFoundError:
        return False


def finish(world, out, steps, *words):
    """The run to its end, which has to be reached."""
    process = begin(world, out, steps, *words)
    assert process.wait(600) == 0, said(out)[-3:]


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    """`uninterrupted(steps)`: the last state's file and all rows of a run that nothing happened to."""
    kept = {}

    def ends(steps):
        if steps not in kept:
            out = tmp_path_factory.mktemp("uninterrupted") / "run"
            finish(world, out, steps)
            kept[steps] = states(out)[steps], plain_rows(out)
        return kept[steps]

    return ends


def kill_once(process, out, how, generator):
    """Kills at a random moment: while it starts, while it trains, or, made certain, within a save. True if within."""
    directory, before = out / "checkpoints", max(states(out), default=0)
    if how == "starting":
        time.sleep(generator.uniform(0, 3))
    else:
        assert wait_until(lambda: max(states(out), default=0) > before, process), said(out)[-3:]
        time.sleep(generator.uniform(0, 0.6))
    if how == "saving":
        assert wait_until(lambda: is_saving(directory), process), said(out)[-3:]
    process.kill()
    process.wait()
    return is_saving(directory)


def check_whole(out, process_said):
    """What is there after a kill: an intact newest checkpoint, not more than one step behind what was reported."""
    reported = [int(found[1]) for line in process_said if (found := re.match(r"step (\d+)/", line))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a damaged checkpoint would be passed over with a warning
        newest = checkpoint.latest(out / "checkpoints")
    assert newest is not None or reported in ([], [1])
    if newest is not None:
        assert int(newest.name) >= max(reported, default=0) - 1
        steps = [row["step"] for row in plain_rows(out)]
        assert steps == list(range(1, len(steps) + 1)), "no row twice, none missing, none torn"
        assert len(steps) >= int(newest.name)


def check_kills(world, uninterrupted, out, kills, steps):
    """Kills that many processes one after another, lets the next one end, and compares; how many died in a save."""
    expected, generator, inside = uninterrupted(steps), random.Random(kills), 0
    for number in range(kills):
        process = begin(world, out, steps, "--resume", delay=0.02)
        inside += kill_once(process, out, ("saving", "training", "saving", "starting")[number % 4], generator)
        check_whole(out, said(out))
    finish(world, out, steps, "--resume")
    assert (states(out)[steps], plain_rows(out)) == expected
    assert temporaries(out) == []
    assert len(states(out)) <= 3
    assert not (out / ".lock").exists()
    return inside


@pytest.mark.long
def test_killed_many_times(world, uninterrupted, tmp_path, share, figure):
    kills = share(24)
    inside = check_kills(world, uninterrupted, tmp_path / "run", kills, 20 * kills + 40)
    assert inside >= kills // 2
    figure(
        "`byol-jax train` killed with -9 and resumed, again and again",
        cases=kills,
        result=f"{inside} of them within a save; last state and all rows bit-identical to an uninterrupted run's",
    )


@pytest.mark.slow
def test_asked_to_stop_it_saves_and_says_so(world, uninterrupted, tmp_path):
    check_stop(world, uninterrupted, tmp_path / "run", signal.SIGINT)


def check_stop(world, uninterrupted, out, number):
    process = begin(world, out, 60, "--checkpoint-every", "1000", delay=0.02)
    assert wait_until(lambda: any(line.startswith("step 3/") for line in said(out)), process), said(out)[-3:]
    process.send_signal(number)
    assert process.wait(300) == 130
    stopped = max(states(out))
    assert list(states(out)) == [stopped], "the only checkpoint is the one of the stop"
    assert 3 <= stopped < 60
    assert f"stopped after step {stopped} of 60; go on with --resume" in said(out)
    assert said(out)[-1].startswith("byol-jax train: stopped")
    assert [row["step"] for row in plain_rows(out)] == list(range(1, stopped + 1))
    finish(world, out, 60, "--resume")
    assert (states(out)[60], plain_rows(out)) == uninterrupted(60)


@pytest.mark.long
def test_asked_in_other_ways_the_last_checkpoint_is_whole(world, uninterrupted, tmp_path, share, figure):
    ways = share([ask_twice, ask_to_terminate])
    for check_way in ways:
        check_way(world, uninterrupted, tmp_path / check_way.__name__)
    figure(
        "`byol-jax train` asked to stop twice, in the middle of the save of the first time, and by SIGTERM",
        cases=len(ways),
        result="the last checkpoint is whole; resumed, the run ends bit for bit as it would have",
    )


def ask_to_terminate(world, uninterrupted, out):
    check_stop(world, uninterrupted, out, signal.SIGTERM)


def ask_twice(world, uninterrupted, out):
    """The second one comes in the middle of the save that the first one began, which takes more than a second."""
    process = begin(world, out, 60, delay=0.3)
    assert wait_until(lambda: max(states(out), default=0) >= 1, process), said(out)[-3:]
    process.send_signal(signal.SIGINT)
    assert wait_until(lambda: any("once more" in line for line in said(out)), process)
    assert wait_until(lambda: is_saving(out / "checkpoints"), process)
    before = states(out)
    process.send_signal(signal.SIGINT)
    assert process.wait(300) == 130
    assert states(out).items() >= before.items()
    assert temporaries(out) == []
    check_whole(out, said(out))
    finish(world, out, 60, "--resume")
    assert (states(out)[60], plain_rows(out)) == uninterrupted(60)
