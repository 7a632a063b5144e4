"""Encoded images by name, wherever they lie: what a folder, tar shards and Parquet files have in common.

All that is done with a folder's files (looked through, decoded, left out, labelled, remembered) is done with these.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from byol_jax.data.file_list import Listing
from byol_jax.data.member import Root
from byol_jax.data.order import Blocks
from byol_jax.data.verdict import Verdict

__all__ = ["EncodedImages"]


def _no_blocks(names: Sequence[str]) -> None:
    del names


class EncodedImages(NamedTuple):
    """Images that are still to be decoded.

    Attributes:
        root: `root / name` is an image's file, or a `Member`.
        listing: the names, sorted, with sizes, and what can't be used.
        read_labels: of the names that a verdict uses, labels [count] int32 and the classes' names, where they have any.
            Raises DataError where there are no labels.
        kind: the word for it in a dataset's identity.
        blocks: of the names that are used, the blocks without which none of their images can be read; None where each
            is read by itself, so that an epoch may have any order.
        remarks: lines for a person.
        kept: what is kept of where they lie for a next start: by a file name's ending, as a `Dataset` has it.
    """

    root: Root
    listing: Listing
    read_labels: Callable[[Verdict], tuple[np.ndarray, tuple[str, ...] | None]]
    kind: str
    blocks: Callable[[Sequence[str]], Blocks | None] = _no_blocks
    remarks: tuple[str, ...] = ()
    kept: Mapping[str, bytes] = MappingProxyType({})
