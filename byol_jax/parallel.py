"""Many devices: three drivers of the one step, and the moves of arrays that they need.

    jit        one program over a sharded batch; the compiler inserts the communication. What `pretrain` uses.
    shard_map  the same devices, communication written out: the learner needs `axis_name=parallel.AXIS`.
    pmap       a stacked state, one row a device; for scripts that are built around it.

All three give the same losses, views and parameters to reduction noise (tests/laws/test_drivers.py). The step itself is
in byol.py; nothing here computes.

Several processes run the same program over one mesh: each calls `initialize` first, and what one of them alone knows
(a signal to stop, its options) is settled between them by `agreement`, `check_same` and `wait_for_all`.
"""

import contextlib
import errno
import hashlib
import json
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from byol_jax.byol import Learner
from byol_jax.errors import ConfigurationError, one_line
from byol_jax.memory import fresh_array, own_batch
from byol_jax.types import TrainState

__all__ = [
    "AXIS",
    "agreement",
    "check_same",
    "gather",
    "initialize",
    "is_writer",
    "jit",
    "make_mesh",
    "pmap",
    "replicate",
    "shard",
    "shard_map",
    "split",
    "stack",
    "unstack",
    "wait_for_all",
]

AXIS = "devices"
"""Name of the one mesh axis; what to pass as `make_learner(axis_name=...)` for `pmap` and `shard_map`."""

Step = Callable[[TrainState, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A one-dimensional mesh over `devices`; all of them, those of other processes included, by default."""
    chosen = list(jax.devices() if devices is None else devices)
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def jit(learner: Learner, mesh: Mesh) -> jax.stages.Wrapped:
    """The step under `jax.jit`: state replicated and donated, batch [N, H, W, C] sharded, N a multiple of the devices.

    The learner has no `axis_name`: batch statistics are those of the whole batch by themselves.
    """
    everywhere, spread = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.jit(
        learner.step,
        in_shardings=(everywhere, spread),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def shard_map(learner: Learner, mesh: Mesh, *, check_vma: bool = True) -> Step:
    """The step under `jax.shard_map`: global state (replicated, donated) and batch (sharded) in, the same out.

    The learner was made with `axis_name=AXIS`.
    """
    replicated, spread = PartitionSpec(), PartitionSpec(AXIS)
    mapped = jax.shard_map(
        learner.step,
        mesh=mesh,
        in_specs=(replicated, spread),
        out_specs=(replicated, replicated),
        check_vma=check_vma,
    )

    def step(state: TrainState, images: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        _check_even(images, mesh.size)
        return mapped(state, images)

    return jax.jit(step, donate_argnums=0)


def pmap(learner: Learner, devices: Sequence[Any] | None = None) -> Step:
    """The step under `jax.pmap`: `stack`ed state (donated) and `split` batch in; stacked state and metrics out.

    The learner was made with `axis_name=AXIS`.
    """
    return jax.pmap(learner.step, axis_name=AXIS, devices=devices, donate_argnums=0)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """The same values on every device of the mesh, as global arrays in fresh buffers. Every process calls it."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = place(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return fresh_array(np.asarray(leaf), everywhere)

    return jax.tree.map(place, tree)


def shard(batch: Any, mesh: Mesh) -> Any:
    """This process's part of the batch, [n, ...], as a global array spread over the mesh, [n * processes, ...].

    Of a batch of several arrays, `(images, labels)`, each is spread so. The batch is copied; its memory may be filled
    with the next one when this returns.

    Raises:
        ConfigurationError: the batch can't be shared evenly among the devices.
    """
    return shard_in_place(jax.tree.map(own_batch, batch, is_leaf=_is_list), mesh)


def shard_in_place(batch: Any, mesh: Mesh) -> Any:
    """`shard` without the copy, for a batch that nobody writes to any more: on a CPU its own memory is used."""
    local = len([device for device in mesh.devices.flat if device.process_index == jax.process_index()])
    _check_even(batch, local)
    spread = NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.tree.map(lambda part: jax.make_array_from_process_local_data(spread, np.asarray(part)), batch)


def stack(tree: Any, count: int) -> Any:
    """For `pmap`: every leaf `count` times along a new first axis."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * count), tree)


def unstack(tree: Any) -> Any:
    """The inverse of `stack`: of every leaf in `tree` the first device's row, [count, ...] to [...]."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def split(batch: Any, count: int) -> Any:
    """For `pmap`: [N, ...] to [count, N / count, ...], of each array of the batch.

    Raises:
        ConfigurationError: N isn't a multiple of `count`.
    """
    _check_even(batch, count)
    return jax.tree.map(lambda part: part.reshape(count, -1, *part.shape[1:]), batch)


def gather(tree: Any) -> Any:
    """A `tree` of global arrays, replicated or fully addressable, as NumPy arrays of the same shapes and dtypes.

    Typed keys stay JAX arrays.

    Example:
        >>> gather({"w": jnp.ones((2, 3))})["w"].shape
        (2, 3)
    """

    def fetch(leaf: Any) -> Any:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return np.asarray(leaf.addressable_data(0) if leaf.is_fully_replicated else leaf)

    return jax.tree.map(fetch, tree)


def initialize(
    *,
    num_processes: int | None = None,
    process_id: int | None = None,
    coordinator_address: str | None = None,
    all_devices: bool = False,
    timeout_seconds: int = 60,
    wait_seconds: int = 300,
) -> None:
    """Joins this process to the others; to be called before anything touches a device.

    What is None is found by `jax.distributed`, where SLURM, Open MPI, a TPU pod or a Kubernetes job started the
    processes; what is given wins.

    A process that dies takes the others with it, with a message on stderr and an exit code that isn't 0: at once where
    it was process 0, else when it was silent for `timeout_seconds`. Signals are left to the program: JAX's
    preemption service, which would swallow SIGTERM, stays off; until all have come, Ctrl-C ends the process at once.

    Args:
        num_processes: how many there are, at least 1; with 1 nothing is done.
        process_id: this one's number, 0 ≤ id < num_processes. Process 0 serves the address.
        coordinator_address: "host:port" that all can reach.
        all_devices: this process takes all GPUs that it sees. Otherwise, where SLURM or Open MPI started it, JAX takes
            the one with the process's number on its machine. (`byol-jax train` says so where a process has a machine
            to itself.)
        timeout_seconds: how long a silent process is believed to live, and how long one that has come to its end waits
            for the others'. JAX's own defaults are 100 and 300.
        wait_seconds: how long the others are waited for at the start; then JAX ends the process with a message on
            stderr. Its own default.

    Raises:
        ConfigurationError: numbers out of range, an address without a port, nothing found for what is None, or an
            address that can't be served.

    Example:
        >>> initialize(num_processes=1)
    """
    count, number = num_processes, process_id
    if (count is not None and count < 1) or (number is not None and not 0 <= number < (count or number + 1)):
        raise ConfigurationError(f"process {number} of {count}: expected 0 <= process_id < num_processes")
    for name, seconds in {"timeout_seconds": timeout_seconds, "wait_seconds": wait_seconds}.items():
        if seconds < 1:
            raise ConfigurationError(f"{name}={seconds}: expected at least 1")
    if count == 1:
        return
    if coordinator_address is not None:
        _check_address(coordinator_address, serves=number == 0)
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with _ctrl_c_at_once():
            jax.distributed.initialize(
                coordinator_address,
                count,
                number,
                local_device_ids=[] if all_devices else None,  # none named: none left out
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
        who = "this process" if count is None else f"process {number} of {count}"
        raise ConfigurationError(
            f"{who} can't join the others ({one_line(error, at_most=200)}): start all of them within {wait_seconds} s,"
            " with a coordinator_address that all can reach"
        ) from error


def _check_address(address: str, *, serves: bool) -> None:
    """The form of an address, and whether its port is free here; with one in use jaxlib 0.10.2 crashes."""
    _, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigurationError(f"coordinator_address={address!r}: expected host:port")
    if not serves or not socket.has_ipv6:
        return
    with socket.socket(socket.AF_INET6) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a connection that is gone is none
        try:
            tried.bind(("::", int(port)))  # where JAX serves, whatever the host
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise ConfigurationError(
                    f"coordinator_address={address!r}: port {port} can't be served here ({error.strerror}): give"
                    " another"
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


def _is_list(part: Any) -> bool:
    """A list of images is one array; a tuple, a dict, or a list of arrays that differ in shape is several."""
    return isinstance(part, list) and len({np.shape(item) for item in part}) <= 1


def _check_even(batch: Any, devices: int) -> None:
    for part in jax.tree.leaves(batch):
        if part.shape[0] % devices:
            raise ConfigurationError(
                f"a batch of {part.shape[0]} can't be shared by {devices} devices: use a multiple of {devices}"
            )
