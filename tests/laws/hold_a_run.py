"""Holds a run's folder until it is killed or its input ends. Run by test_run_folder.py."""

import sys

from byol_jax.runs import folder as run

with run.locked(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
