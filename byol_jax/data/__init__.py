"""Images in: folders, arrays, the embedded set; their order; and the loaders that keep a device fed."""

from byol_jax.data import embedded
from byol_jax.data.dataset import Dataset, EvaluationImages, evaluation_images
from byol_jax.data.fit import load_size
from byol_jax.data.iterables import IterableLoader
from byol_jax.data.loader import Loader
from byol_jax.data.order import batch_indices, batches_from, block_order, epoch_order, steps_per_epoch
from byol_jax.data.sources import open_dataset

__all__ = [
    "Dataset",
    "EvaluationImages",
    "IterableLoader",
    "Loader",
    "batch_indices",
    "batches_from",
    "block_order",
    "embedded",
    "epoch_order",
    "evaluation_images",
    "load_size",
    "open_dataset",
    "steps_per_epoch",
]
