"""Holds a run's folder until it is killed or its input ends. Run by test_run_folder.py."""

import sys

from byol_jax.runs.folder import lock

with lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
