"""What every protocol checks before it computes: features that are finite matrices, labels that fit them.

Checks and conversions only.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import DataError

__all__ = ["LabelledParts", "check_features", "check_labels", "labelled_parts"]


class LabelledParts(NamedTuple):
    """Two labelled sets of features, checked.

    Attributes:
        train, test: [N, D] and [M, D] float32 on the device (sharding kept).
        train_classes: [N] int32, positions in `classes`.
        test_labels: [M] int32, as given.
        classes: [K] int32, the labels that the training part has, ascending.
    """

    train: jax.Array
    test: jax.Array
    train_classes: np.ndarray
    test_labels: np.ndarray
    classes: np.ndarray


def labelled_parts(train_features: Any, train_labels: Any, test_features: Any, test_labels: Any) -> LabelledParts:
    """Checks both parts and that they fit each other.

    Raises:
        DataError: not [N, D], not finite, lengths that differ, labels that aren't integers ≥ 0; says which part.
    """
    train = check_features(train_features, name="train_features")
    test = check_features(test_features, name="test_features")
    if train.shape[1] != test.shape[1]:
        raise DataError(
            f"train_features have {train.shape[1]} dimensions and test_features {test.shape[1]}: expected equal numbers"
        )
    labels = check_labels(train_labels, len(train), name="train_labels")
    classes, train_classes = np.unique(labels, return_inverse=True)
    return LabelledParts(
        train, test, train_classes.astype(np.int32), check_labels(test_labels, len(test), name="test_labels"), classes
    )


def check_features(features: Any, *, name: str) -> jax.Array:
    """[N, D] float32, finite, with at least one row and one column.

    Raises:
        DataError: anything else; `name` says which argument.
    """
    shape = np.shape(features)
    if len(shape) != 2 or 0 in shape:
        raise DataError(f"{name} has shape {shape}: expected [N, D] with N and D at least 1")
    x = jnp.asarray(features)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise DataError(f"{name} has dtype {x.dtype}: expected floating point; convert, or use evaluate.raw_pixels")
    x = x.astype(jnp.float32)
    bad_rows = int(jnp.sum(~jnp.all(jnp.isfinite(x), axis=1)))
    if bad_rows:
        raise DataError(f"{name} has NaN or infinity in {bad_rows} of {len(x)} rows: expected finite float32 numbers")
    return x


def exponents_of(x: jax.Array, *, axis: int) -> jax.Array:
    """The exponent of two of the largest number along an axis, which stays: `ldexp(x, -exponents)` is below 1, exactly.

    Example:
        >>> exponents_of(jnp.array([[3.0, -4.0]]), axis=1).tolist()
        [[3]]
    """
    return jnp.frexp(jnp.max(jnp.abs(x), axis=axis, keepdims=True))[1]


def check_labels(labels: Any, count: int, *, name: str, rows: str = "rows of features") -> np.ndarray:
    """[N] int32, each at least 0; `rows` is the word for what they label.

    Raises:
        DataError: anything else; `name` says which argument.
    """
    array = np.asarray(labels)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{name} has shape {array.shape} and dtype {array.dtype}: expected [N] integers")
    if len(array) != count:
        raise DataError(f"{name} has {len(array)} entries for {count} {rows}: expected one label for each")
    if not count:
        raise DataError(f"{name} is empty: expected at least one label")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        raise DataError(
            f"{name} ranges from {array.min()} to {array.max()}: expected 0 to 2147483647; drop unlabelled rows"
        )
    return array.astype(np.int32)
