"""The processes that train together, as the command line has them: their options, what is wrong with these, joining.

Who they are is found in parallel/launchers.py; how they meet is in parallel/processes.py. Here is what a person sees:
what is waited for is said, and for how long.
"""

import argparse
import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from byol_jax.cli import values
from byol_jax.errors import ConfigurationError
from byol_jax.parallel.launchers import Given, Processes, find_processes

__all__ = ["add_processes", "check_processes", "join"]

WAIT_SECONDS = 300
"""For how long the others are waited for at the start; JAX's own default."""


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Adds `--num-processes`, `--process-id` and `--coordinator-address`."""
    group = parser.add_argument_group(
        "several processes (the same command in each, but for --process-id; found without these where srun, mpirun of"
        " Open MPI 4, a TPU pod or an indexed Kubernetes job starts them)"
    )
    group.add_argument(
        "--num-processes",
        type=values.positive_int,
        metavar="N",
        help="how many processes train together; 1: this one, alone",
    )
    group.add_argument("--process-id", type=values.whole_number, metavar="I", help="this process's number, from 0")
    group.add_argument(
        "--coordinator-address", type=_address, metavar="A", help="host:port of process 0, which all can reach"
    )


def check_processes(options: argparse.Namespace, batch_size: int) -> list[str]:
    """What is wrong with them; who trains together becomes `options.processes`, so that it is looked for once."""
    given = Given(options.num_processes, options.process_id, options.coordinator_address)
    try:
        options.processes = find_processes(given, os.environ, spell=_as_option)
    except ConfigurationError as error:
        return [str(error), *_check_share(options.num_processes, batch_size, "--num-processes")]
    count, started_by = options.processes.count, options.processes.found_by
    found = f"the number of processes that {started_by} started," if started_by else "--num-processes"
    return _check_share(count, batch_size, found)


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


def _as_option(name: str, value: object = None) -> str:
    """An argument of `parallel.initialize` as the command line has it."""
    return f"--{name.replace('_', '-')}" + ("" if value is None else f" {value}")


def _check_share(count: int | None, batch_size: int, of: str) -> list[str]:
    if count is None or batch_size % count == 0:
        return []
    return [f"--batch-size {batch_size} must be a multiple of {of} {count}"]


def _address(word: str) -> str:
    host, _, port = word.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{word!r} is not host:port, such as 10.0.0.1:1234")
    return word
