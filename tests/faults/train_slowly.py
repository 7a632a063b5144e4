"""`byol-jax` on a slow disk: whatever is fsynced takes DELAY seconds more. Run by test_killed_training.py."""

import os
import sys
import time

from byol_jax.cli.main import main

delay, fsync = float(sys.argv[1]), os.fsync


def slow(descriptor):
    fsync(descriptor)
    time.sleep(delay)


os.fsync = slow
sys.exit(main(sys.argv[2:]))
