"""What features are worth: the same function for every network in every experiment, whoever trained it."""

from collections.abc import Callable

import numpy as np

from benchmarks.proof.data import Images
from byol_jax import evaluate

__all__ = ["PROTOCOL", "accuracies"]

PROTOCOL = (
    "kNN: k = 20, cosine, temperature 0.07, training mean subtracted. Linear: logistic regression, its penalty chosen"
    " on 20 % of the labelled images. `byol_jax.evaluate.compare` for every network, on features in evaluation mode."
)
BATCH = 500


def accuracies(embed: Callable[[np.ndarray], np.ndarray], images: Images, *, labelled: int) -> dict[str, float]:
    """`knn` and `linear` in [0, 1] on all test images, from the first `labelled` training images and their labels.

    Args:
        embed: uint8 [n, H, W, C] -> features [n, D].
    """
    size = min(BATCH, labelled, len(images.test))
    train = evaluate.extract(embed, images.train[:labelled], batch_size=size)
    test = evaluate.extract(embed, images.test, batch_size=size)
    return evaluate.compare({"features": (train, test)}, images.train_labels[:labelled], images.test_labels)["features"]
