"""One contender alone in a process: built, warmed up, then run for as many steps as each line on stdin says.

    python -m benchmarks.harness.worker '{"builder": "benchmarks.harness.contenders", "contender": "eager",
                                          "job": {...}, "threads": 2, "keep_memory": true}'

Each answer is a line of JSON: one when the contender is ready, then for each line on stdin the seconds of its steps,
and at the end of the input the peak memory and the contender's facts. Everything else that prints goes to stderr.
`coordinator.py` is at the other end.
"""

import importlib
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from byol_jax.cli.allocator import keep_freed_memory

__all__ = ["main"]

WARM_UP = 2
"""Steps after the first that aren't reported: in them buffers are allocated and caches of kernels are filled."""


def main(request: dict[str, Any]) -> None:
    """Answers one `request`, as above, until stdin ends."""
    answers = _answers()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from the keyboard; the coordinator ends this process
    _use_cores(request["threads"])
    kept = keep_freed_memory() if request["keep_memory"] else False  # before any framework is loaded
    start = time.perf_counter()
    contender = importlib.import_module(request["builder"]).build(request["contender"], request["job"])
    built = time.perf_counter() - start
    first, *_ = _time_steps(contender.step, 1 + WARM_UP)
    ready = {"device": contender.device, "memory_kept": kept, "phase_seconds": dict(contender.phases)}
    ready |= {"build_seconds": built, "first_step_seconds": first}
    _say(answers, ready)
    for line in sys.stdin:
        _say(answers, {"seconds": _time_steps(contender.step, json.loads(line))})
    peak = peak_memory_bytes()  # before anything else is computed
    _say(answers, {"peak_memory_bytes": peak, **contender.facts()})


def peak_memory_bytes() -> int:
    """The most RAM that this process has used.

    From Linux's VmHWM where there is one: `ru_maxrss` also counts the program that this process ran before exec.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _time_steps(step: Callable[[], None], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return seconds


def _use_cores(count: int) -> None:
    """Uses the first `count` allowed cores: XLA starts as many threads as there are; torch reads OMP_NUM_THREADS."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def _answers() -> TextIO:
    """The original stdout, for answers only; from here on stdout is stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
