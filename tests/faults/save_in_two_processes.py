"""One of two processes of one run: prepares a folder, saves, restores. Run by test_checkpoint_processes.py."""

import sys
from pathlib import Path

import jax
from checkpoint_states import assert_identical, small_state
from jax.experimental import multihost_utils

from byol_jax import ConfigurationError, checkpoint, parallel
from byol_jax.runs.folder import check_shared, lock, prepare

number, address, out = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
parallel.initialize(num_processes=2, process_id=number, coordinator_address=address)

with lock(out):
    check_shared(out)
    for elsewhere in (out / "elsewhere", out / ".lock"):  # no folder, as on a disk of its own; a file in its place
        try:
            check_shared(elsewhere if number == 1 else out)
        except ConfigurationError as error:
            print(f"process {number}: {error}")
    paths, resumed = prepare(out, {"seed": 0}, resume=False, overwrite=False)
    assert not resumed
    state = parallel.replicate(small_state(), parallel.make_mesh())
    assert not state.step.is_fully_addressable
    folder = checkpoint.save(paths.checkpoints, state, position={"step": 3})
    multihost_utils.sync_global_devices("saved")
    restored = checkpoint.restore(folder, like=state)
    assert restored.position == {"step": 3}
    for one, other in zip(jax.tree.leaves(restored.state), jax.tree.leaves(state), strict=True):
        assert one.sharding == other.sharding
    local = jax.tree.map(lambda leaf: leaf.addressable_data(0), restored.state)
    assert_identical(local, small_state())
    assert prepare(out, {"seed": 0}, resume=True, overwrite=False)[1]
    try:
        prepare(out, {"seed": 1}, resume=True, overwrite=False)
    except ConfigurationError as error:
        print(f"process {number}: {error}")
