"""The command line `byol-jax`: one file a sub-command, `main.py` above them all."""
