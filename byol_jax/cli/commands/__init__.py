"""The sub-commands of `byol-jax`, one file each; what a file has is said in cli/main.py, which finds it by its name."""
