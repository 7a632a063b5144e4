"""One of two processes of a run whose optimiser's state is spread over both. Run by test_shard_state_runs.py.

    shard_state_in_processes.py NUMBER ADDRESS OUT

The evaluated point is made of parts of that state, and process 0 measures and exports it.
"""

import sys
from pathlib import Path

from test_shard_state_runs import FREE, train

from byol_jax import parallel

number, address, out = sys.argv[1:]
parallel.initialize(num_processes=2, process_id=int(number), coordinator_address=address)
state = train(Path(out), 4, shard_state=True, **FREE)
assert not state.opt_state.z["projector"]["3"]["kernel"].is_fully_addressable
