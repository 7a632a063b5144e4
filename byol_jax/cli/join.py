"""Joining the processes that train together, as the command line does it: what is waited for is said, and for how long.

Who they are is in parallel/launchers.py, how they meet in parallel/processes.py.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from byol_jax.parallel.launchers import Processes

__all__ = ["join"]

WAIT_SECONDS = 300
"""For how long the others are waited for at the start; JAX's own default."""


def join(processes: Processes, *, command: str) -> str:
    """Joins this process to the others; says on stderr what it waits for. Returns a line about them, for the log.

    If they don't come in time, that is said and the process ends, with exit code 2.

    Raises:
        ConfigurationError: as `connect`.
    """
    if processes.count == 1:
        return processes.remark
    from byol_jax.parallel.processes import connect

    if processes.found_by:
        where = f"{who}, " if (who := _who(processes)) else ""
        print(
            f"{command}: {where}started by {processes.found_by}: waiting for the others"
            " (--num-processes 1 trains alone)",
            file=sys.stderr,
            flush=True,
        )
    with _patience(WAIT_SECONDS, f"{command}: {_nobody_came(processes)}"):
        connect(processes, wait_seconds=WAIT_SECONDS + 60)
    if not processes.found_by:
        return ""
    import jax

    return (
        f"process {jax.process_index()} of {jax.process_count()}, started by {processes.found_by}; process 0 is at"
        f" {_coordinator_address()}"
    )


def _who(processes: Processes) -> str:
    """Empty where only jax.distributed finds out."""
    return "" if None in (processes.number, processes.count) else f"process {processes.number} of {processes.count}"


def _nobody_came(processes: Processes) -> str:
    who = _who(processes) or "this process"
    where = f" at {processes.address}" if processes.address else ""
    return (
        f"{who} has waited {WAIT_SECONDS} s for the others{where}: start all of them, where they can reach process"
        " 0; or give --num-processes 1 to train alone"
    )


@contextlib.contextmanager
def _patience(seconds: float, line: str) -> Iterator[None]:
    """Ends the process with `line` and exit code 2 if what is inside takes longer: JAX would end it with a stack trace.

    Nothing is written yet that would have to be put in order.
    """

    def end() -> None:
        print(line, file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _coordinator_address() -> str:
    """Where jax.distributed has found process 0; it has no public name for it."""
    try:
        from jax._src.distributed import global_state

        return global_state.coordinator_address or "an unknown address"
    except (ImportError, AttributeError):
        return "an unknown address"
