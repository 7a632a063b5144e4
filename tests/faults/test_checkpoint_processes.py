"""A run of two processes: one writes, both read, both hear the same verdict about the run's folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_states import assert_identical, small_state

from byol_jax import checkpoint
from byol_jax.runs.config import read_config
from tests.processes import free_address

HERE = Path(__file__).parent


@pytest.mark.slow
def test_two_processes_one_folder(tmp_path):
    address = free_address()
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "save_in_two_processes.py"), str(number), address, str(tmp_path / "run")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    for number, folders in enumerate(((".", "."), ("elsewhere", ".lock"))):
        for fault, folder in zip(("doesn't see", "can't write (Not a directory)"), folders, strict=True):
            said = f"process {number}: process 1 {fault} the folder {tmp_path / 'run' / folder} of process 0: with"
            assert f"{said} shard_state give a folder that all processes share" in outputs[number][0]
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".tmp-")]
    assert "seed: stored 0, given 1" in outputs[0][0]
    assert "process 0 refused the folder" in outputs[1][0]
    assert read_config(tmp_path / "run") == {"seed": 0}
    (folder,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert_identical(checkpoint.restore(folder, like=small_state()).state, small_state())
