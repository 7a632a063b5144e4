"""How `byol-jax train` joins the processes that a launcher started, and that a script of one's own joins the same.

Who they are is in tests/laws/test_launchers.py.
"""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from byol_jax import ConfigurationError, parallel
from byol_jax.cli.commands import train
from byol_jax.cli.join import join
from byol_jax.cli.main import main
from byol_jax.cli.parsing import Parser
from byol_jax.parallel import launchers
from byol_jax.parallel.launchers import Given, Launch, complete
from tests.processes import free_address, free_port, open_mpi, slurm

STEP = slurm(0, 4, 61447)
"""srun -n 4."""

OPEN_MPI_5 = {name: value for name, value in open_mpi(0, 2, 61447).items() if name != "OMPI_MCA_orte_hnp_uri"}

SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}
"""What salloc gives to a shell, and sbatch to a script."""


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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What jax.distributed is asked to do: address, count, number, and which devices; nothing while nobody asks."""
    calls: list[Any] = []
    monkeypatch.setattr(
        jax.distributed,
        "initialize",
        lambda *given, **options: calls.append((*given, options["local_device_ids"])),
    )
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(launchers, "PCI_VENDORS", "no such file")
    return calls


def by_command(given: Given) -> None:
    """What `byol-jax train` does with its options before it opens the data."""
    words = ["fashion-mnist", "--out", "new", "--steps", "1", "--batch-size", "12", "--network", "small_cnn"]
    for option, value in zip(("--num-processes", "--process-id", "--coordinator-address"), given, strict=True):
        words += [] if value is None else [option, str(value)]
    parser = Parser("byol-jax train", train.USAGE, "")
    train.add_arguments(parser)
    options = parser.read(words)
    problems = train.check(options)
    if problems:
        raise ConfigurationError("; ".join(problems))
    join(options.processes, command="byol-jax train")


def by_script(given: Given) -> None:
    """What `parallel.initialize` does with its arguments."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parallel.initialize(num_processes=given.count, process_id=given.number, coordinator_address=given.address)


def outcome(join_by: Callable[[Given], None], given: Given, asked: list[Any]) -> Any:
    """What JAX was asked to do, None where the process is alone, "refused" where an error says what to change."""
    asked.clear()
    try:
        join_by(given)
    except ConfigurationError:
        return "refused"
    return asked[0] if asked else None


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, None),
        (SHELL, None),
        (SHELL | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, None),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (STEP, (None, 4, 0, None)),
        (STEP | {"SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, (None, 4, 0, [])),
        (STEP | {"SLURM_STEP_NUM_TASKS": "2"}, (None, 2, 0, None)),
        (STEP | {"CUDA_VISIBLE_DEVICES": "3"}, (None, 4, 0, [])),
        (STEP | {"SLURM_PROCID": "4"}, "refused"),
        (STEP | {"SLURM_NTASKS": "four"}, "refused"),
        (open_mpi(1, 2, 61447), (None, 2, 1, [1])),
        (open_mpi(1, 2, 61447) | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"}, (None, 2, 1, [])),
        (OPEN_MPI_5, "refused"),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, (None, None, None, [])),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_a_script_joins_what_the_command_joins(
    variables: dict[str, str], wanted: Any, asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same processes and the same devices, whatever is given beside what the launcher says."""
    monkeypatch.chdir(tmp_path)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert outcome(by_script, Given(), asked) == wanted
    for given in map(Given._make, product((None, 1, 2, 4), (None, 0, 1), (None, free_address()))):
        assert outcome(by_script, given, asked) == outcome(by_command, given, asked), given


@pytest.mark.parametrize("told", [False, True])
def test_a_script_may_say_which_devices(told: bool, asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (STEP | {"SLURM_STEP_TASKS_PER_NODE": "2(x2)" if told else "1(x4)"}).items():
        monkeypatch.setenv(name, value)
    parallel.initialize(all_devices=told)
    assert asked == [(None, 4, 0, [] if told else None)]


@pytest.mark.parametrize("all_devices", [False, True])
def test_a_process_takes_all_its_devices_or_leaves_it_to_jax(
    all_devices: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **options: told.update(options, given=given))
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    found = complete(Given(), Launch("SLURM", 2, 1, all_devices=all_devices))
    assert join(found, command="byol-jax train").startswith("process 0 of 1, started by SLURM; process 0 is at")
    assert told["given"] == (None, 2, 1)
    assert told["local_device_ids"] == ([] if all_devices else None)
