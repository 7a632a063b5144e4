"""Runs the contenders of one job side by side: each alone in its process, one at a time at work.

All processes are prepared first, one after the other. Then they take turns of a few steps, so that a machine that is
slower for a while is slower for all.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from typing import IO, Any, Protocol, cast

from benchmarks.harness.machine import ROOT
from benchmarks.harness.summary import order
from byol_jax.errors import ConfigurationError

__all__ = ["Job", "measure"]


class Job(Protocol):
    """What all contenders do: a dataclass of plain values."""

    @property
    def name(self) -> str: ...


SETTLE = 0.05
"""Seconds between two processes' turns: OpenMP's threads spin for some milliseconds after their work."""

LEAVE = 30
"""Seconds that a process may take to end."""


def measure(
    job: Job,
    names: Sequence[str],
    *,
    builder: str = "benchmarks.harness.contenders",
    rounds: int,
    chunk: int,
    threads: int,
    keep_memory: bool,
    tell: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """By contender `device, memory_kept, build_seconds, first_step_seconds, seconds` (a list for each round),
    `peak_memory_bytes`, and the contender's own facts.

    Args:
        job: what a step is.
        names: the contenders, as the builder takes them.
        builder: the module whose `build(name, fields)` makes a `Contender`; `fields` are the job's, as JSON has them.
        rounds: turns that each contender has.
        chunk: steps a turn.
        threads: cores that each contender may use.
        keep_memory: whether freed memory stays in the process, see `byol_jax.cli.allocator`.
        tell: called with each line of progress.

    Raises:
        ConfigurationError: the contenders would run on devices of different kinds.
        RuntimeError: a process ended too early; its last words are on stderr.
    """
    results: dict[str, dict[str, Any]] = {}
    request = {"builder": builder, "job": asdict(cast(Any, job)), "threads": threads, "keep_memory": keep_memory}
    with ExitStack() as stack:
        processes = {}
        for name in names:
            tell(f"{job.name}: {name}: building, first step, warming up")
            process = stack.enter_context(_worker(request | {"contender": name}, threads))
            results[name] = _answer(name, process) | {"seconds": []}
            processes[name] = process
        _check_devices({name: result["device"] for name, result in results.items()})
        for turn in range(rounds):
            for name in order(names, turn):
                time.sleep(SETTLE)
                results[name]["seconds"].append(_ask(name, processes[name], chunk)["seconds"])
            latest = ", ".join(f"{name} {min(results[name]['seconds'][-1]):.4f}" for name in names)
            tell(f"{job.name}: round {turn + 1} of {rounds}: {latest} s")
        for name, process in processes.items():
            _pipe(process.stdin).close()
            results[name] |= _answer(name, process)
    return results


@contextmanager
def _worker(request: dict[str, Any], threads: int) -> Iterator[subprocess.Popen]:
    """A worker's process, ended on leaving."""
    command = [sys.executable, "-m", "benchmarks.harness.worker", json.dumps(request)]
    surroundings = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share one GPU
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a first step is a first step
    }
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=surroundings, **pipes)
    try:
        yield process
    except BaseException:
        process.kill()
        raise
    finally:
        with suppress(OSError):
            _pipe(process.stdin).close()
        try:
            process.wait(LEAVE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _pipe(process.stdout).close()


def _ask(name: str, process: subprocess.Popen, steps: int) -> dict[str, Any]:
    with suppress(BrokenPipeError):  # the answer that is missing says more
        print(steps, file=_pipe(process.stdin), flush=True)
    return _answer(name, process)


def _answer(name: str, process: subprocess.Popen) -> dict[str, Any]:
    line = _pipe(process.stdout).readline()
    if not line:
        code = process.wait()
        raise RuntimeError(f"the process of {name} ended with {code}; its last words stand above")
    return json.loads(line)


def _pipe(pipe: IO | None) -> IO:
    return cast(IO, pipe)


def _check_devices(devices: dict[str, str]) -> None:
    kinds = {device.split(" ")[0] for device in devices.values()}
    if len(kinds) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ConfigurationError(
            f"unequal devices: {listed}; install JAX for the GPU, or hide it from both by CUDA_VISIBLE_DEVICES= "
        )
