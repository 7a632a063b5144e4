"""A script in several processes at once, on this machine, and the variables of what starts such. No tests here."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["free_address", "free_port", "open_mpi", "run_together", "slurm"]


def free_address() -> str:
    """host:port of this machine that nobody serves."""
    return f"127.0.0.1:{free_port()}"


def free_port(lowest: int = 0) -> int:
    """Any port, or one that is at least `lowest`."""
    for port in range(lowest, 65536) if lowest else (0,):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return free.getsockname()[1]
    raise OSError("no port is free")


def slurm(number: int, count: int, port: int) -> dict[str, str]:
    """What srun sets, of a job on this machine, for which JAX takes this port: 61440 and the job's number mod 4096."""
    step = {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_TASKS": count, "SLURM_STEP_TASKS_PER_NODE": count}
    task = {"SLURM_NTASKS": count, "SLURM_PROCID": number, "SLURM_LOCALID": number}
    return {name: str(value) for name, value in {"SLURM_JOB_ID": port - 61440, **step, **task}.items()}


def open_mpi(number: int, count: int, port: int) -> dict[str, str]:
    """What mpirun of Open MPI 4 sets; JAX's port is 61440 and the job's number, a multiple of 4096, by 4096."""
    task = {"SIZE": count, "RANK": number, "LOCAL_RANK": number, "LOCAL_SIZE": count}
    uri = {"OMPI_MCA_orte_hnp_uri": f"{(port - 61440) * 4096}.0;tcp://127.0.0.1,10.0.0.1:34911"}
    return uri | {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in task.items()}


def run_together(script: Path, words: Sequence[Sequence[str]], environment: Mapping[str, str], *, timeout: int) -> None:
    """A process of the script for each of `words`, its own; each must end well, and none is left, however it ends."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, str(script), *own], env=environment, **pipes) for own in words]
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, text in zip(processes, errors, strict=True):
        assert process.returncode == 0, text[-3000:]
