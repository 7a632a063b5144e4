"""Pre-training as a program. run.py: from arguments to an open folder; loop.py: from the first step to the report;
measures.py: what it measures on the way; program.py: what these are told. What is written where: runs/folder.py."""

from byol_jax.train.program import Program
from byol_jax.train.run import pretrain, train_recipe

__all__ = ["Program", "pretrain", "train_recipe"]
