"""`byol-jax train` in two processes: one run, as one process would make it; and what happens when one of them goes.

All are long: two processes of four devices take some tenths of a second a step and several seconds to start.
"""

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image
from training_processes import alone, finish, said, together, wait_for_step

from byol_jax import checkpoint
from byol_jax.runs.metrics import read_metrics
from tests.processes import open_mpi, slurm

FLOAT32 = 2e-5
"""SGD at 0.005, four or five float32 steps, sums in another order: see docs/long.md. At 0.05, where every step makes a
difference six times larger, 4e-6 after four steps and 2e-4 after six were measured."""

BOUND = 60 + 20
"""Seconds: `parallel.initialize`'s time-out, and what a busy machine may add."""

LENGTH = 100
"""Steps of a run that is to be stopped: about ten seconds."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (40, 20, 24, 3), np.uint8)):
        Image.fromarray(image).save(folder / f"{number:03}.png")
    (folder / "bad.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


def newest(out: Path) -> tuple[int, dict[str, np.ndarray]]:
    """Step and leaves of the newest intact checkpoint."""
    folder = checkpoint.latest(out / "checkpoints")
    assert folder is not None
    (file,) = folder.glob("*.safetensors")
    return int(folder.name), safetensors.numpy.load_file(file)


def difference(left: Path, right: Path) -> float:
    """The largest between the newest checkpoints of two runs; they are of the same step."""
    (step, ours), (other_step, wanted) = newest(left), newest(right)
    assert (step, set(ours)) == (other_step, set(wanted))
    differences = [np.abs(ours[name].astype(np.float64) - wanted[name].astype(np.float64)).max() for name in wanted]
    return float(max(differences))


def rows(out: Path) -> list[dict]:
    found, damaged = read_metrics(out / "metrics.jsonl")
    assert damaged == 0
    return found


@pytest.mark.long
def test_two_processes_make_the_run_of_one(photos: Path, cache: Path, tmp_path: Path, figure) -> None:
    two = tmp_path / "two"
    with together(two, photos, "--steps", 4, cache=cache) as processes:
        codes, outputs = finish(processes)
    assert codes == [0, 0], said(two, 0) + said(two, 1)
    assert outputs == [f"{two}\n", ""], "process 0 names the folder, once"
    assert "step 4/4" in said(two, 0)
    assert "step" not in said(two, 1), "only process 0 reports"
    assert (two / "train.log").read_text().count("step 4/4") == 1
    found = {}
    for devices in (1, 8):
        out = tmp_path / str(devices)
        alone(out, photos, "--steps", 4, devices=devices, cache=cache)
        found[devices] = difference(two, out)
        assert [row["step"] for row in rows(out)] == [row["step"] for row in rows(two)]
        losses = [[row["loss"] for row in rows(run)] for run in (out, two)]
        np.testing.assert_allclose(*losses, rtol=1e-5)
        left, right = (safetensors.numpy.load_file(run / "exported" / "encoder.safetensors") for run in (out, two))
        assert all(np.allclose(left[name], leaf, atol=FLOAT32) for name, leaf in right.items())
    assert max(found.values()) <= FLOAT32
    figure(
        "byol-jax train in two processes of four devices, on one device and on eight; SGD in float32, four steps",
        cases=3,
        result="one folder, written by process 0; largest difference of any number in the checkpoints"
        f" {max(found.values()):.1e}",
    )


@pytest.mark.parametrize(
    ("launcher", "name"),
    [
        pytest.param(slurm, "SLURM", marks=pytest.mark.long),
        pytest.param(open_mpi, "Open MPI", marks=pytest.mark.long(tenth=False)),
    ],
)
def test_processes_find_each_other(launcher, name: str, photos: Path, cache: Path, tmp_path: Path, figure) -> None:
    told, found = tmp_path / "told", tmp_path / "found"
    with together(told, photos, "--steps", 2, cache=cache, devices=1) as processes:
        assert finish(processes, 200)[0] == [0, 0], said(told, 0) + said(told, 1)
    with together(found, photos, "--steps", 2, cache=cache, devices=1, launcher=launcher) as processes:
        codes, outputs = finish(processes, 200)
    assert codes == [0, 0], said(found, 0) + said(found, 1)
    assert outputs == [f"{found}\n", ""]
    assert [row["loss"] for row in rows(found)] == [row["loss"] for row in rows(told)]
    assert difference(found, told) == 0
    for number in (0, 1):
        assert f"byol-jax train: process {number} of 2, started by {name}: waiting for the others" in said(
            found, number
        )
    line = f"process 0 of 2, started by {name}; process 0 is at 127.0.0.1:6"
    assert (found / "train.log").read_text().count(line) == said(found, 0).count(line) == 1
    figure(
        f"two processes with {name}'s variables and no options, against two that are told by options",
        cases=1,
        result="they find each other; checkpoints bit-identical",
    )


@pytest.mark.long
def test_a_run_goes_on_in_another_number_of_processes(photos, cache, tmp_path: Path, share, figure) -> None:
    begun = {1: tmp_path / "by one", 2: tmp_path / "by two"}
    alone(begun[1], photos, "--steps", 3, devices=1, cache=cache)
    with together(begun[2], photos, "--steps", 3, cache=cache) as processes:
        assert finish(processes)[0] == [0, 0], said(begun[2], 0)
    whole = tmp_path / "whole"
    alone(whole, photos, "--steps", 5, devices=1, cache=cache)
    cases, found = share([(2, 2), (2, 1), (1, 2)]), []
    for first, second in cases:
        out = tmp_path / f"{first} then {second}"
        shutil.copytree(begun[first], out)
        if second == 1:
            alone(out, photos, "--steps", 5, "--resume", devices=4, cache=cache)
        else:
            with together(out, photos, "--steps", 5, "--resume", cache=cache) as processes:
                assert finish(processes)[0] == [0, 0], said(out, 0)
        assert [row["step"] for row in rows(out)] == [1, 2, 3, 4, 5]
        found.append(difference(out, whole))
    assert max(found) <= FLOAT32
    figure(
        "begun by two processes, resumed by two or by one; begun by one, resumed by two; against one uninterrupted",
        cases=len(cases),
        result=f"largest difference of any number in the checkpoints {max(found):.1e} after five steps",
    )


@pytest.mark.long
def test_one_process_gone_the_other_ends_and_the_run_goes_on(photos, cache, tmp_path: Path, share, figure) -> None:
    asked, killed = (signal.SIGTERM, signal.SIGINT), signal.SIGKILL
    cases = share([(asked[0], 1), (killed, 0), (asked[0], 0), (asked[1], 1), (killed, 1)])
    seconds = {}
    for number, victim in cases:
        out = tmp_path / f"{number.name} {victim}"
        with together(out, photos, "--steps", LENGTH, cache=cache) as processes:
            wait_for_step(out, processes)
            processes[victim].send_signal(number)
            sent = time.monotonic()
            codes, _ = finish(processes, BOUND)
            seconds[number, victim] = time.monotonic() - sent
        step, _ = newest(out)
        if number == killed:
            assert codes[1 - victim] not in (0, None)
            assert "another task died" in said(out, 1 - victim)
            assert step >= 2
        else:  # all agree to stop after the same step, which is saved
            assert codes == [130, 130], said(out, 0) + said(out, 1)
            assert rows(out)[-1]["step"] == step
            assert "Traceback" not in said(out, 0) + said(out, 1)
        assert step < LENGTH
        alone(out, photos, "--steps", LENGTH, "--resume", devices=8, cache=cache)
        assert newest(out)[0] == LENGTH
    longest = {number: max(s for (n, _), s in seconds.items() if n == number) for number, _ in seconds}
    figure(
        "SIGTERM, SIGINT or kill -9 to one of two training processes",
        cases=len(cases),
        result="both end, the newest checkpoint is intact and the run goes on in one process; the longest time to end: "
        + ", ".join(f"{number.name} {s:.0f} s" for number, s in longest.items()),
    )


@pytest.mark.long
def test_processes_told_different_things_refuse_to_begin(photos: Path, cache: Path, tmp_path: Path, figure) -> None:
    out = tmp_path / "run"
    with together(out, photos, "--steps", 4, own=((), ("--seed", 1, "--log-every", 2)), cache=cache) as processes:
        codes, outputs = finish(processes)
    assert codes == [2, 2]
    assert outputs == ["", ""]
    assert not out.exists()
    for number in (0, 1):
        lines = [line for line in said(out, number).splitlines() if not line.startswith("[Gloo]")]  # at any time
        assert lines[-1] == (
            "byol-jax train: the 2 processes differ in log_every, seed: give all of them the same command"
        )
        assert "Traceback" not in said(out, number)
    figure("two processes with different seeds", cases=1, result="both exit with 2 and one line that names the option")


@pytest.mark.long
def test_the_same_command_twice_gives_the_same_bits(photos: Path, cache: Path, tmp_path: Path, share, figure) -> None:
    steps = share(200)
    options = {"first": ("--workers", 1), "second": ("--workers", 4)}
    for name, own in options.items():  # compiled twice, without the cache
        alone(tmp_path / name, photos, "--steps", steps, *own, devices=2, cache=tmp_path / f"{name} cache")
    runs = [tmp_path / name for name in options]
    assert difference(*runs) == 0
    files = [sorted(path.name for path in out.glob("checkpoints/*/*.safetensors")) for out in runs]
    assert files[0] == files[1], "the hash of all leaves is in the file's name"
    exported = [(out / "exported" / "encoder.safetensors").read_bytes() for out in runs]
    assert exported[0] == exported[1]
    figure(
        f"the same command twice, with 1 and 4 threads that decode, {steps} steps",
        cases=2,
        result="checkpoints and exported weights bit-identical",
    )
