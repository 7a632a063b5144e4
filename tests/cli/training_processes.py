"""`byol-jax train` in several processes: starts them, waits for them, leaves none behind. No tests here."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.processes import free_port

SIZES = "--network small_cnn --image-size 16 --batch-size 16 --projection-size 8 --projection-hidden-size 16"
REST = "--optimizer sgd --learning-rate 0.005 --log-every 1 --checkpoint-every 2"


def command(out: Path, data: Path, *options: object) -> list[str]:
    return [
        sys.executable,
        "-m",
        "byol_jax",
        "train",
        str(data),
        "--out",
        str(out),
        *SIZES.split(),
        *REST.split(),
        *map(str, options),
    ]


def environment(devices: int, cache: Path) -> dict[str, str]:
    """`devices` CPU devices; what one run has compiled the next finds in `cache`."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def alone(out: Path, data: Path, *options: object, devices: int, cache: Path) -> None:
    """One process, to its end."""
    subprocess.run(
        command(out, data, *options), check=True, env=environment(devices, cache), capture_output=True, timeout=600
    )


@contextlib.contextmanager
def together(
    out: Path,
    data: Path,
    *options: object,
    own: tuple = ((), ()),
    devices: int = 4,
    cache: Path,
    launcher: Callable[[int, int, int], dict[str, str]] | None = None,
) -> Iterator[list[subprocess.Popen]]:
    """One process for each of `own`, its own options; whatever happens, none is left.

    With a `launcher` they are told by its variables who they are, else by options.
    """
    port = free_port() if launcher is None else free_port(61440 + os.getpid() % 4000)  # a worker has its own
    logs = [out.with_name(f"{out.name}.{number}.log") for number in range(len(own))]
    with contextlib.ExitStack() as opened:
        processes = []
        for number, (log, extra) in enumerate(zip(logs, own, strict=True)):
            file = opened.enter_context(log.open("w"))
            if launcher is None:
                who, variables = ("--num-processes", len(own), "--process-id", number), {}
                who += ("--coordinator-address", f"127.0.0.1:{port}")
            else:
                who, variables = (), launcher(number, len(own), port)
            process = subprocess.Popen(
                command(out, data, *who, *options, *extra),
                env=environment(devices, cache) | variables,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
            opened.callback(process.wait)
            opened.callback(process.kill)
            processes.append(process)
        yield processes


def said(out: Path, number: int) -> str:
    """What process `number` has written to stderr."""
    return out.with_name(f"{out.name}.{number}.log").read_text(errors="replace")


def finish(processes: list[subprocess.Popen], seconds: float = 600) -> tuple[list[int], list[str]]:
    """Exit codes and standard outputs."""
    outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def wait_for_step(out: Path, processes: list[subprocess.Popen], steps: int = 3) -> None:
    """Until `steps` rows of metrics are there."""
    deadline, metrics = time.monotonic() + 600, out / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= steps):
        ended = [process.poll() for process in processes]
        assert ended == [None] * len(processes), f"ended early: {ended}: {said(out, 0)} {said(out, 1)}"
        assert time.monotonic() < deadline, "no step within ten minutes"
        time.sleep(0.05)
