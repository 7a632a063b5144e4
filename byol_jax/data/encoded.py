"""Encoded images by name, wherever they lie: what a folder, tar shards and Parquet files have in common.

All that is done with a folder's files (looked through, decoded, left out, labelled, remembered) is done with these.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from byol_jax.data.file_list import Listing, Verdict
from byol_jax.data.member import Root
from byol_jax.data.order import Order, epoch_order

__all__ = ["EncodedImages"]


def _any_order(names: Sequence[str]) -> Order:
    del names
    return epoch_order


class EncodedImages(NamedTuple):
    """Images that are still to be decoded.

    Attributes:
        root: `root / name` is an image's file, or a `Member`.
        listing: the names, sorted, with sizes, and what can't be used.
        read_labels: of the names that a verdict uses, labels [count] int32 and the classes' names, where they have any.
            Raises DataError where there are no labels.
        kind: the word for it in a dataset's identity.
        order: of the names that are used, how an epoch is ordered: any order but where some are slow to read.
        remarks: lines for a person.
    """

    root: Root
    listing: Listing
    read_labels: Callable[[Verdict], tuple[np.ndarray, tuple[str, ...] | None]]
    kind: str
    order: Callable[[Sequence[str]], Order] = _any_order
    remarks: tuple[str, ...] = ()
