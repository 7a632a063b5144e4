"""One of two processes whose state is spread over both: saves, restores, fails, dies. Run by test_checkpoint_parts.py.

    save_in_parts.py NUMBER ADDRESS OUT ACTION

ACTION is "live", or "die 0" or "die 1", by the process that dies.
"""

import contextlib
import errno
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from checkpoint_states import assert_identical, spread_state, whole_state

from byol_jax import ConfigurationError, checkpoint, disk, parallel
from byol_jax.checkpoint import states

number, address, out, action = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
timeout_seconds = 60 if action == "live" else 5  # how long the other is believed to live
parallel.initialize(num_processes=2, process_id=number, coordinator_address=address, timeout_seconds=timeout_seconds)
mesh = parallel.make_mesh()


@contextlib.contextmanager
def failing(module, name, process, failure):
    """In one process `module.name` does something else."""
    real = getattr(module, name)
    if number == process:
        setattr(module, name, failure)
    try:
        yield
    finally:
        setattr(module, name, real)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def raising(failure):
    def work(*_, **__):
        raise failure

    return work


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def same_here(found, wanted) -> None:
    """Bit for bit what lies on this process's devices, and in the same places."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert one.sharding.is_equivalent_to(other.sharding, one.ndim)
        for part, expected in zip(one.addressable_shards, other.addressable_shards, strict=True):
            assert part.index == expected.index
            assert_identical(part.data, expected.data)


def save_and_restore(out: Path) -> None:
    for step, position in ((3, "new"), (4, "another"), (3, "again")):  # to be replaced by files of other names
        state = spread_state(mesh, step=step, seed=len(position))
        assert any(not leaf.is_fully_addressable and not leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
        folder = checkpoint.save(out, state, position=position)
        assert folder == out / f"{step:08d}"
        restored = checkpoint.restore(folder, like=state)
        assert restored.position == position
        same_here(restored.state, state)
    gathered, wanted = parallel.gather(state), whole_state(step=3, seed=5)
    for one, other in zip(jax.tree.leaves(gathered), jax.tree.leaves(wanted), strict=True):
        if not jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
            assert one.tobytes() == np.asarray(other).tobytes()
    replicated = parallel.replicate(whole_state(step=3), mesh)
    found = checkpoint.restore(out / "00000003", like=replicated).state
    same_here(found, parallel.replicate(whole_state(step=3, seed=5), mesh))
    checkpoint.save(out, found.replace(step=found.step + 2))  # replicated now: one file, by process 0
    parallel.wait_for_all("saved")


def fail(out: Path) -> None:
    cases = [(disk, "write_durably", 1), (disk, "write_durably", 0), (os, "rename", 0), (os, "mkdir", 0)]
    for module, name, process in cases:
        try:
            with failing(module, name, process, full):
                checkpoint.save(out, spread_state(mesh, step=9), position="never")
        except OSError as error:
            print(f"{name} {process}: {error.errno} {error}", flush=True)
        parallel.wait_for_all("failed")
    others = [  # whatever fails, and wherever: no process waits for another
        (disk, "write_durably", 1, OSError(524, os.strerror(524))),  # as NFS says that a lock isn't supported
        (disk, "write_durably", 0, ValueError("two\nlines")),
        (states, "_own_file", 1, MemoryError("no room")),
        (states, "_checked_step", 1, ConfigurationError("position=nan: give JSON")),
    ]
    for module, name, process, failure in others:
        try:
            with failing(module, name, process, raising(failure)):
                checkpoint.save(out, spread_state(mesh, step=9), position="never")
        except Exception as error:
            print(f"{name} {process}: {type(error).__name__} {str(error).splitlines()}", flush=True)
        parallel.wait_for_all("failed")
    checkpoint.save(out, spread_state(mesh, step=5), position="after all")


if action == "live":
    save_and_restore(out / "saved")
    fail(out / "failed")
else:
    with failing(disk, "write_durably", int(action[-1]), die):
        checkpoint.save(out, spread_state(mesh, step=9), position="never")
