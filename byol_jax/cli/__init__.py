"""The command line `byol-jax`: sub-commands in commands/, `main.py` above them, beside it what they share."""
