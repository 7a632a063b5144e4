"""Saves checkpoints as fast as it can until it is killed; one line a checkpoint. Run by test_checkpoint_crash.py.

Every second save is of a step that is there already, so that replacing is interrupted as well as adding.
"""

import itertools
import sys
from pathlib import Path

from checkpoint_states import small_state

from byol_jax import checkpoint

directory = Path(sys.argv[1])
first = int(sys.argv[2])
for step in itertools.count(first):
    for position in ("new", "again"):
        checkpoint.save(directory, small_state(step=step), position=[step, position], keep=2)
        print(step, flush=True)
