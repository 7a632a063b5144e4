"""How `byol-jax train` joins the processes that a launcher started; who they are is in tests/laws/test_launchers.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from byol_jax.cli.join import join
from byol_jax.cli.main import main
from byol_jax.parallel.launchers import Given, Launch, find_processes
from tests.processes import free_port, open_mpi, slurm

STEP = slurm(0, 4, 61447)
"""srun -n 4."""

OPEN_MPI_5 = {name: value for name, value in open_mpi(0, 2, 61447).items() if name != "OMPI_MCA_orte_hnp_uri"}


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (STEP | {"SLURM_PROCID": "4"}, "SLURM says that this is process 4 of 4"),
        (STEP | {"SLURM_NTASKS": "four"}, "SLURM_NTASKS='four' in the environment: expected a whole number"),
        (open_mpi(0, 3, 61447), "--batch-size 256 must be a multiple of the number of processes that Open MPI started"),
        (OPEN_MPI_5, "--coordinator-address HOST:PORT"),
    ],
)
def test_a_broken_environment_is_one_line(
    variables: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / "run"
    assert main(["train", "fashion-mnist", "--out", str(out), "--steps", "1"]) == 2
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_processes_that_do_not_come_are_one_line(number: int, tmp_path: Path) -> None:
    """SLURM's variables of two tasks, one of which was started."""
    code = (
        "import sys; from byol_jax.cli import join; from byol_jax.cli.main import main;"
        " join.WAIT_SECONDS = 1; sys.exit(main(sys.argv[1:]))"
    )
    out, variables = tmp_path / "run", slurm(number, 2, free_port(61440 + os.getpid() % 4000))
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "fashion-mnist", "--out", str(out), "--steps", "1"],
        env=os.environ | variables | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [
        f"byol-jax train: process {number} of 2, started by SLURM: waiting for the others (--num-processes 1 trains"
        " alone)",
        f"byol-jax train: process {number} of 2 has waited 1 s for the others: start all of them, where they can reach"
        " process 0; or give --num-processes 1 to train alone",
    ]
    assert not done.stdout
    assert not out.exists()


@pytest.mark.long
def test_a_run_in_an_interactive_step_is_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And batch norm in groups, from the command line."""
    for name, value in (STEP | {"SLURM_STEP_NUM_TASKS": "1"}).items():
        monkeypatch.setenv(name, value)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), np.uint8))
    out, sizes = tmp_path / "run", ["--batch-size", "32", "--projection-size", "8", "--projection-hidden-size", "16"]
    words = ["train", str(tmp_path / "images.npy"), "--out", str(out), "--network", "small_cnn", *sizes]
    assert main([*words, "--steps", "1", "--augment", "none", "--batchnorm-group", "3"]) == 2
    assert "batchnorm_group=3: expected a divisor of the number of devices, 8" in capsys.readouterr().err
    assert not out.exists()
    assert main([*words, "--steps", "1", "--augment", "none", "--batchnorm-group", "4"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    log = (out / "train.log").read_text()
    assert "SLURM gave the job 4 tasks, and this process was started by itself: it trains alone" in log
    assert "batch norm sees 2 groups of 16 images" in log
    config = json.loads((out / "config.json").read_text())
    assert config["batchnorm_groups"] == 2
    assert not {"remarks", "batchnorm_group", "num_processes"} & set(config)


@pytest.mark.parametrize("all_devices", [False, True])
def test_a_process_takes_all_its_devices_or_leaves_it_to_jax(
    all_devices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **options: told.update(options, given=given))
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    found = find_processes(Given(), Launch("SLURM", 2, 1, all_devices=all_devices))
    assert join(found, command="byol-jax train").startswith("process 0 of 1, started by SLURM; process 0 is at")
    assert told["given"] == (None, 2, 1)
    assert told["local_device_ids"] == ([] if all_devices else None)


