"""What a network's features have to beat, and the table of several features under one protocol.

An accuracy alone says nothing about training. Raw pixels and the untrained network get the same evaluation, with the
options that suit these controls best.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from byol_jax.data.ranges import to_unit
from byol_jax.errors import ConfigurationError, DataError
from byol_jax.evaluate.knn import knn
from byol_jax.evaluate.linear import L2_CANDIDATES, linear_probe

__all__ = ["compare", "raw_pixels"]


def raw_pixels(images: Any, value_range: Any = None) -> np.ndarray:
    """`images` [N, H, W, C] or [N, H, W] as features [N, H·W·C] float32, in [0, 1] as a learner makes them.

    Args:
        value_range: (low, high), as in `make_learner`; None: uint8 / 255, uint16 / 65,535, floats as they are.

    Raises:
        DataError: another rank, or neither uint8, uint16 nor floating.

    Example:
        >>> import numpy as np
        >>> raw_pixels(np.full((1, 1, 2, 1), 255, np.uint8))
        array([[1., 1.]], dtype=float32)
    """
    array = np.asarray(images)
    if array.ndim not in (3, 4) or len(array) == 0:
        raise DataError(f"images have shape {array.shape}: expected [N, H, W, C] or [N, H, W] with N at least 1")
    if array.dtype in (np.uint8, np.uint16) or np.issubdtype(array.dtype, np.floating):
        return to_unit(array, value_range).reshape(len(array), -1)
    raise DataError(f"images have dtype {array.dtype}: expected uint8, uint16, or floating point in [0, 1]")


def compare(
    feature_sets: Mapping[str, tuple[Any, Any]],
    train_labels: Any,
    test_labels: Any,
    *,
    k: int = 20,
    temperature: float = 0.07,
    l2: Sequence[float] = L2_CANDIDATES,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """kNN and linear accuracy of several features of the same images, under the same protocol.

    kNN subtracts the training mean (`center=True`): it changes a trained network's number little and raises the raw
    pixels' most, so that the control isn't beaten by a handicap.

    Args:
        feature_sets: name to (train [N, D], test [M, D]); D may differ from set to set.
        train_labels, test_labels: [N] and [M] integers ≥ 0.
        k, temperature: of `knn`.
        l2, validation_fraction, seed: of `linear_probe`.

    Returns:
        name to {"knn": accuracy, "linear": accuracy}, in the given order; accuracies in [0, 1], plain floats.

    Raises:
        ConfigurationError: no feature sets, or an option out of range.
        DataError: a set that doesn't fit; the message begins with its name.

    Example:
        >>> import numpy as np
        >>> points = np.array([[1.0, 0.0], [0.0, 1.0]] * 8)
        >>> compare({"mine": (points, points)}, np.arange(16) % 2, np.arange(16) % 2, k=3)
        {'mine': {'knn': 1.0, 'linear': 1.0}}
    """
    if not feature_sets:
        raise ConfigurationError("feature_sets is empty: expected at least one name with (train, test) features")
    table = {}
    for name, (train, test) in feature_sets.items():
        data = (train, train_labels, test, test_labels)
        try:
            neighbours = knn(*data, k=k, temperature=temperature, center=True)
            probe = linear_probe(*data, l2=l2, validation_fraction=validation_fraction, seed=seed)
        except DataError as error:
            raise DataError(f"{name}: {error}") from None
        table[name] = {"knn": neighbours.accuracy, "linear": probe.accuracy}
    return table
