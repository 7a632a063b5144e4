"""Has the network stopped telling images apart? Three numbers that need no labels.

Computed in float64 on the host: a collapsed network's differences are small beside float32's rounding. metrics.py holds
the spread that training logs at every step.
"""

from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import DataError
from byol_jax.evaluate.inputs import check_features

__all__ = ["HEALTHY_FRACTION", "CollapseResult", "collapse"]

HEALTHY_FRACTION = 0.1
"""A part of the even spread 1/sqrt(D): below it features count as collapsed.

Measured on Fashion-MNIST, small_cnn, projections in evaluation mode: 0.52 untrained, 0.76 to 0.87 in training that
works; without predictor and with decay 0 it was 0.04 after 20 steps and 0.008 after 400. The tests' short runs, forty
steps on images of half the size: 0.67 to 0.82, and 0.03 to 0.04. Untrained deep networks point one way too:
torchvision's ResNet-18 gave 0.13 on photo crops, its ResNet-50 0.04."""


class CollapseResult(NamedTuple):
    """What `collapse` measures.

    Attributes:
        feature_std: in [0, 1/sqrt(D)]; about 1/sqrt(D) when directions are spread evenly, 0 when they are all the same.
        effective_rank: in [1, min(N, D)]; how many dimensions are really used.
        mean_cosine: in [-1/(N-1), 1]; of two different rows; 1 when all point the same way.
        collapsed: `feature_std` is below a tenth of 1/sqrt(D); see `HEALTHY_FRACTION` for why a tenth.
    """

    feature_std: float
    effective_rank: float
    mean_cosine: float
    collapsed: bool


def collapse(embeddings: Any) -> CollapseResult:
    """Measures how far a set of embeddings has shrunk to a point or to few dimensions.

        feature_std    = mean_d std_n(u_nd),  u = x/‖x‖
        effective_rank = exp(-Σ p_i log p_i),  p = singular values of x over their sum
        mean_cosine    = mean over n ≠ m of u_n · u_m

    Args:
        embeddings: [N, D], floating, N at least 2 and better several D; of different images, in evaluation mode. Give
            projections: features before the heads stay spread for long after the projections have collapsed.

    Raises:
        DataError: another shape, fewer than two rows, or not finite.

    Example:
        >>> import numpy as np
        >>> collapse(np.ones((8, 4))).collapsed
        True

    Source: spread, SimSiam, arXiv:2011.10566, section 4.1; rank, RankMe, arXiv:2210.02885, section 3.
    """
    check_features(embeddings, name="embeddings")
    x = np.asarray(embeddings, np.float64)  # not from float32, which `check_features` gives
    count, dimensions = x.shape
    if count < 2:
        raise DataError("embeddings have one row: expected at least two images to compare")
    norms = np.linalg.norm(x, axis=1, keepdims=True)  # [N, 1]
    directions = x / np.where(norms > 0, norms, 1.0)  # [N, D]; a row of zeros stays 0
    feature_std = float(directions.std(axis=0).mean())
    total = float(np.square(directions.sum(axis=0)).sum())
    mean_cosine = (total - float(np.square(directions).sum())) / (count * (count - 1))
    collapsed = feature_std < HEALTHY_FRACTION / np.sqrt(dimensions)
    return CollapseResult(feature_std, _effective_rank(x), mean_cosine, bool(collapsed))


def _effective_rank(x: np.ndarray) -> float:
    gram = x.T @ x if x.shape[0] > x.shape[1] else x @ x.T  # the smaller one, with the squares of all singular values
    singular = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    if singular.sum() == 0:
        return 1.0
    p = singular / singular.sum()
    p = p[p > 0]
    return float(np.exp(-np.sum(p * np.log(p))))
