"""Several processes that run the same program over one mesh.

Each calls `initialize` first, which asks launchers.py who they are. What one of them alone knows (a signal to stop, its
options) is settled between them by `agreement`, `check_same` and `wait_for_all`.
"""

import contextlib
import errno
import hashlib
import json
import os
import signal
import socket
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from byol_jax.errors import ConfigurationError, one_line
from byol_jax.parallel.launchers import Given, Processes, find_processes
from byol_jax.parallel.sharding import AXIS

__all__ = ["agreement", "check_same", "connect", "initialize", "is_writer", "wait_for_all"]

TIMEOUT_SECONDS, WAIT_SECONDS = 60, 300

NOBODY = (
    "no other processes found to join, so this one is alone: SLURM, Open MPI, a TPU pod and an indexed Kubernetes job"
    " are looked for; join others by num_processes, process_id and coordinator_address, or say by num_processes=1 that"
    " there are none"
)


def initialize(
    *,
    num_processes: int | None = None,
    process_id: int | None = None,
    coordinator_address: str | None = None,
    all_devices: bool | None = None,
    timeout_seconds: int = TIMEOUT_SECONDS,
    wait_seconds: int = WAIT_SECONDS,
) -> None:
    """Joins this process to the others; to be called before anything touches a device.

    What is None is found where SLURM, Open MPI, a TPU pod or an indexed Kubernetes job started the processes, as
    `byol-jax train` finds it; what is given wins. A process that is alone isn't joined to anything and has all its
    devices: in a shell of `salloc`, in a script of `sbatch` without `srun`, which a warning says, and where nothing
    started others, which a warning says too.

    A process that dies takes the others with it, with a message on stderr and an exit code that isn't 0: at once where
    it was process 0, else when it was silent for `timeout_seconds`. Signals are left to the program: JAX's
    preemption service, which would swallow SIGTERM, stays off; until all have come, Ctrl-C ends the process at once.

    Args:
        num_processes: how many there are, at least 1; with 1 nothing is done.
        process_id: this one's number, 0 ≤ id < num_processes. Process 0 serves the address.
        coordinator_address: "host:port" that all can reach.
        all_devices: whether this process takes all GPUs that it sees. Where it doesn't, and SLURM or Open MPI started
            it, it takes the one with the process's number on its machine. None: all where it has a machine to itself
            or sees one GPU alone.
        timeout_seconds: how long a silent process is believed to live, and how long one that has come to its end waits
            for the others'. JAX's own defaults are 100 and 300.
        wait_seconds: how long the others are waited for at the start; then JAX ends the process with a message on
            stderr. Its own default.

    Raises:
        ConfigurationError: numbers out of range, an address without a port, a part that is given while nothing says the
            rest or that contradicts what started the process, or an address that can't be served.

    Example:
        >>> initialize(num_processes=1)
    """
    count, number = num_processes, process_id
    if (count is not None and count < 1) or (number is not None and not 0 <= number < (count or number + 1)):
        raise ConfigurationError(f"process {number} of {count}: expected 0 <= process_id < num_processes")
    for name, seconds in {"timeout_seconds": timeout_seconds, "wait_seconds": wait_seconds}.items():
        if seconds < 1:
            raise ConfigurationError(f"{name}={seconds}: expected at least 1")
    found = find_processes(Given(count, number, coordinator_address), os.environ)
    if found.count == 1:
        said = found.remark if found.found_by or count == 1 else NOBODY
        if said:
            warnings.warn(said, stacklevel=2)
        return
    if all_devices is not None:
        found = found._replace(all_devices=all_devices)
    connect(found, timeout_seconds=timeout_seconds, wait_seconds=wait_seconds)


def connect(processes: Processes, *, timeout_seconds: int = TIMEOUT_SECONDS, wait_seconds: int = WAIT_SECONDS) -> None:
    """Waits for the others and joins them; `processes` are several. All else as `initialize`.

    Raises:
        ConfigurationError: an address without a port or that can't be served, or jax.distributed finds no others.
    """
    count, number, address, *_ = processes
    if address is not None:
        _check_address(address, serves=number == 0)
    devices = [] if processes.all_devices else None if processes.device is None else [processes.device]
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _ctrl_c_at_once():
            jax.distributed.initialize(
                address,
                count,
                number,
                local_device_ids=devices,  # none named: none left out
                initialization_timeout=wait_seconds,
                heartbeat_timeout_seconds=timeout_seconds,
                shutdown_timeout_seconds=timeout_seconds,
            )
    except ValueError as error:
        raise ConfigurationError(
            f"no processes found to join ({one_line(error, at_most=200)}): give num_processes, process_id and"
            " coordinator_address"
        ) from error
    except (RuntimeError, KeyError, OSError, ImportError) as error:  # those that look ask servers, by other packages
        who = "this process" if None in (count, number) else f"process {number} of {count}"
        raise ConfigurationError(
            f"{who} can't join the others ({one_line(error, at_most=200)}): start all of them within {wait_seconds} s,"
            " with a coordinator_address that all can reach"
        ) from error


def _check_address(address: str, *, serves: bool) -> None:
    """The form of an address, and whether its port is free here; with one in use jaxlib 0.10.2 crashes."""
    _, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigurationError(f"coordinator_address={address!r}: expected host:port")
    if not serves:
        return
    try:
        with socket.socket(socket.AF_INET6) as tried:  # an error itself where the kernel runs without IPv6
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a closed connection is none
            tried.bind(("::", int(port)))  # where JAX serves, whatever the host
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise ConfigurationError(
                f"coordinator_address={address!r}: port {port} can't be served here ({error.strerror}): give another"
            ) from error


@contextlib.contextmanager
def _ctrl_c_at_once() -> Iterator[None]:
    """While inside, Ctrl-C isn't left to Python, which would hear of it when the call into C++ has returned."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is None else before)


def agreement(mesh: Mesh, *, delay: int) -> Callable[[bool], bool]:
    """`agree(wish)`, for every process to call once a step: whether one of them wished for it `delay` steps ago.

    The answer is the same in all processes, so that all leave the loop after the same step and none waits for another
    in a collective. Nobody waits for it: a reduction of one bit is sent after each step, and read when `delay` more
    have been sent. With one process nothing is sent and the answer is the wish itself, at once.

    Example:
        >>> from byol_jax.parallel import make_mesh
        >>> agree = agreement(make_mesh(), delay=2)
        >>> agree(False), agree(True)
        (False, True)
    """
    if jax.process_count() == 1:
        return bool
    everywhere, spread = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    vote = {  # placed once: a step only sends a program that is compiled already
        wish: jax.make_array_from_callback((mesh.size,), spread, lambda index, wish=wish: np.full(1, wish))
        for wish in (False, True)
    }
    anybody = jax.jit(jnp.any, out_shardings=everywhere)
    sent: deque[jax.Array] = deque()

    def agree(wish: bool) -> bool:
        sent.append(anybody(vote[wish]))
        return len(sent) > delay and bool(sent.popleft())

    return agree


def is_writer() -> bool:
    """Whether this process writes files and messages for all: process 0.

    Example:
        >>> is_writer()
        True
    """
    return jax.process_index() == 0


def check_same(values: Mapping[str, Any]) -> None:
    """Refuses to go on where processes that should run alike were told different things; nothing with one process.

    Every process calls it, with the same names; the values are anything that JSON can write.

    Raises:
        ConfigurationError: in every process, with the names of the values that differ.

    Example:
        >>> check_same({"seed": 0})
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    names = sorted(values)
    texts = [json.dumps(values[name], sort_keys=True, default=str) for name in names]
    digests = [hashlib.sha256(text.encode()).digest()[:8] for text in texts]
    own = np.frombuffer(b"".join(digests), np.uint32).reshape(len(names), 2)
    everybody = np.asarray(multihost_utils.process_allgather(own))  # [processes, names, 2]
    differing = [
        name for name, column in zip(names, everybody.swapaxes(0, 1), strict=True) if (column != column[0]).any()
    ]
    if differing:
        raise ConfigurationError(
            f"the {jax.process_count()} processes differ in {', '.join(differing)}: give all of them the same command"
        )


def wait_for_all(what: str) -> None:
    """Returns when every process has called it with the same words `what`; at once where there is one process."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(what)
