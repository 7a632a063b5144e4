"""Features in two dimensions, to be looked at: principal components, the straight view that adds nothing of its own."""

from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import ConfigurationError
from byol_jax.evaluate.inputs import check_features

__all__ = ["PrincipalComponents", "principal_components"]


class PrincipalComponents(NamedTuple):
    """`coordinates` [N, count] float64; `explained` [count], each component's part of the variance, in [0, 1]."""

    coordinates: np.ndarray
    explained: np.ndarray


def principal_components(features: Any, *, count: int = 2) -> PrincipalComponents:
    """The coordinates of each row on the directions in which the rows vary most (PCA).

        x - mean = U S Vᵀ,   coordinates = the first columns of U S,   explained = S² / Σ S²

    A direction's sign is chosen so that its largest entry is above 0: the same features give the same picture.
    Distances in it are at most those in the whole space; what `explained` leaves out can't be seen.

    Args:
        features: [N, D], floating.
        count: 1 to min(N, D).

    Raises:
        ConfigurationError: `count` out of range.
        DataError: another shape, or not finite.

    Example:
        >>> import numpy as np
        >>> principal_components(np.array([[0.0, 1.0], [2.0, 1.0]]), count=1).coordinates.ravel().round(6).tolist()
        [-1.0, 1.0]
    """
    check_features(features, name="features")
    x = np.asarray(features, np.float64)  # not from float32, which `check_features` gives
    if not 1 <= count <= min(x.shape):
        raise ConfigurationError(f"count={count}: expected 1 to {min(x.shape)}, the smaller side of {x.shape}")
    left, singular, right = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    largest = np.argmax(np.abs(right), axis=1)
    signs = np.where(right[np.arange(len(right)), largest] < 0, -1.0, 1.0)
    total = np.square(singular).sum()
    explained = np.square(singular[:count]) / (total if total > 0 else 1.0)
    return PrincipalComponents((left * singular * signs)[:, :count], explained)
