"""One of several processes that train together, through parallel.py. Run by test_processes.py.

    train_in_processes.py NUMBER COUNT ADDRESS OUT DRIVER...

Leaves OUT/NUMBER.npz: the state's leaves after the last batch and the losses, of each driver; and what this process
heard from the others. The number of devices and the precision come from the environment.
"""

import sys
from pathlib import Path

import jax
import numpy as np
from driver_runs import BATCH, batches, compiled, initial, learner, light, numbers

from byol_jax import ConfigurationError, parallel
from byol_jax.tree import leaf_names

number, count, address, out, *drivers = sys.argv[1:]
number, count = int(number), int(count)
parallel.initialize(num_processes=count, process_id=number, coordinator_address=address)
jax.config.update("jax_numpy_dtype_promotion", "strict")
mesh = parallel.make_mesh()
mine = slice(number * BATCH // count, (number + 1) * BATCH // count)
found = {}

for driver in drivers:
    dtype = "float64" if jax.config.read("jax_enable_x64") else "float32"
    many = learner(None if driver == "jit" else parallel.AXIS, augment_fn=light, dtype=dtype)
    state, step, losses = parallel.replicate(initial(many), mesh), compiled(driver, many, mesh), []
    for batch in batches():
        state, metrics = step(state, parallel.shard(batch[mine], mesh))
        losses.append(parallel.gather(metrics)["loss"])
    for name, leaf in zip(leaf_names(state), jax.tree.leaves(state), strict=True):
        copies = [np.asarray(shard.data) for shard in numbers(leaf).addressable_shards]
        assert all(copy.tobytes() == copies[0].tobytes() for copy in copies), name
    gathered = parallel.gather(state)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(gathered.online))
    values = [np.asarray(numbers(leaf)) for leaf in jax.tree.leaves(gathered)]
    found |= {f"{driver} {name}": leaf for name, leaf in zip(leaf_names(state), values, strict=True)}
    found[f"{driver} losses"] = np.stack(losses)

agree = parallel.agreement(mesh, delay=2)
found["agreed"] = np.array([agree(number == count - 1 and call == 3) for call in range(8)])
parallel.check_same({"seed": 0, "rate": 0.1})
try:
    parallel.check_same({"seed": number, "rate": 0.1, "data": {"count": number}})
except ConfigurationError as error:
    found["refused"] = np.array(str(error))
parallel.wait_for_all("done")
np.savez(Path(out) / f"{number}.npz", **found)
