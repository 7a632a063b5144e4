"""How one leaf changes between the native layout and torch's: its own name, the order of its axes, its integer type.

    kernel [*spatial, in, out]  ↔  weight [out, in, *spatial]        scale ↔ weight        bias ↔ bias
    mean ↔ running_mean         var ↔ running_var                    num_batches_tracked int32 ↔ int64

Transposes only, never arithmetic: a round trip is bit-identical. `names.py` tells which leaves are native.
"""

import numpy as np

__all__ = ["NATIVE_TO_TORCH", "TORCH_ONLY", "native_order", "torch_dtype", "torch_leaf", "torch_order", "torch_shape"]

NATIVE_TO_TORCH = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
"""Leaf names that differ; all others (bias, num_batches_tracked, class_token, …) are the same on both sides."""

TORCH_ONLY = frozenset({"weight", "running_mean", "running_var"})
"""Leaf names that a native network never has and nearly every torch network does."""

COUNTER = "num_batches_tracked"


def torch_leaf(leaf: str) -> str:
    """Torch's name of a native leaf.

    Example:
        >>> torch_leaf("mean")
        'running_mean'
    """
    return NATIVE_TO_TORCH.get(leaf, leaf)


def torch_order(leaf: str, rank: int) -> tuple[int, ...]:
    """The axes of a native leaf in torch's order, as `np.transpose` takes them.

    A kernel of rank 2 is a linear layer's [in, out]; of rank 3, 4 or 5 a convolution's [*spatial, in / groups, out],
    which becomes [out, in / groups, *spatial]. Everything else stays as it is.

    Example:
        >>> torch_order("kernel", 4)
        (3, 2, 0, 1)
    """
    if leaf != "kernel" or rank < 2:
        return tuple(range(rank))
    return (rank - 1, rank - 2, *range(rank - 2))


def native_order(leaf: str, rank: int) -> tuple[int, ...]:
    """The inverse of `torch_order`.

    Example:
        >>> native_order("kernel", 4)
        (2, 3, 1, 0)
    """
    return tuple(int(axis) for axis in np.argsort(torch_order(leaf, rank)))


def torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a native leaf of `shape` has in torch.

    Example:
        >>> torch_shape("kernel", (7, 7, 3, 64))
        (64, 3, 7, 7)
    """
    return tuple(shape[axis] for axis in torch_order(leaf, len(shape)))


def torch_dtype(leaf: str, dtype: np.dtype) -> np.dtype:
    """The type that a leaf has in files: its own, but batch norm's counters are int64 there."""
    return np.dtype(np.int64) if leaf == COUNTER and dtype == np.int32 else dtype
