"""Which images a step sees: a function of (seed, epoch) and the number of images, or of the blocks that they lie in.

Nothing is remembered between calls, so a resumed run needs only its step number to continue with the same batches. A
permutation is made from a stream that NumPy promises never to change (`SeedSequence` and the raw words of `Philox`;
there is no such promise for `Generator.permutation`): the order is the same on every machine and in every version.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from byol_jax.errors import ConfigurationError, DataError

__all__ = ["Blocks", "Order", "batch_indices", "batches_from", "block_order", "epoch_order", "steps_per_epoch"]

Order = Callable[[int, int, int], np.ndarray]
"""`order(seed, epoch, count)`: a permutation of 0 … count - 1 and a function of the three, as `epoch_order`."""


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch: a permutation of 0 … count - 1.

    `argsort` of `count` 64-bit words of `Philox(SeedSequence([seed, epoch]))`, ties by position.

    Args:
        seed, epoch: integers ≥ 0.
        count: number of images.

    Returns:
        int64 [count].

    Raises:
        ConfigurationError: a negative seed, epoch or count.

    Example:
        >>> sorted(epoch_order(0, 3, 5).tolist())
        [0, 1, 2, 3, 4]
    """
    return np.argsort(_words(seed, epoch, count), kind="stable")  # [count]


def _words(seed: int, epoch: int, count: int) -> np.ndarray:
    if seed < 0 or epoch < 0 or count < 0:
        raise ConfigurationError(f"seed {seed}, epoch {epoch}, count {count}: none of them may be negative")
    return np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)


def block_order(seed: int, epoch: int, count: int, *, blocks: np.ndarray, pool: int) -> np.ndarray:
    """The order of an epoch of images that lie in blocks, where to read one image takes as long as to read its block.

    The blocks are permuted; one after another they fill pools of about `pool` images, and each pool is permuted. So
    while a pool is gone through, its blocks are needed and no others. Up to `pool` images are one pool: `epoch_order`.

    Args:
        seed, epoch, count: as for `epoch_order`.
        blocks: int [B], how many images each block has, in the images' order; `count` in all.
        pool: images, at least 1. A block belongs to the pool in which it begins.

    Returns:
        int64 [count].

    Raises:
        ConfigurationError: a negative seed, epoch or count.

    Example:
        >>> order = block_order(0, 0, 9, blocks=np.array([3, 3, 3]), pool=3)
        >>> sorted(set(order[:3].tolist())) in ([0, 1, 2], [3, 4, 5], [6, 7, 8])
        True
    """
    if count <= pool:
        return epoch_order(seed, epoch, count)
    words = _words(seed, epoch, len(blocks) + count)
    order = np.argsort(words[: len(blocks)], kind="stable")  # [B]
    sizes = blocks[order]
    before = np.cumsum(sizes) - sizes  # images in the blocks that come earlier
    first = (np.cumsum(blocks) - blocks)[order]  # each block's first image
    indices = np.arange(count) + np.repeat(first - before, sizes)  # [count], block after block
    return indices[np.lexsort((words[len(blocks) :], np.repeat(before // pool, sizes)))]


class Blocks(NamedTuple):
    """The blocks that images lie in, as `block_order` takes them.

    Attributes:
        images: how many images each block has, in the images' order.
        pool: images that are shuffled together, at least 1.
    """

    images: tuple[int, ...]
    pool: int

    def order(self) -> Order:
        """How an epoch of these images is ordered."""
        return partial(block_order, blocks=np.array(self.images, np.int64), pool=self.pool)


def steps_per_epoch(count: int, batch_size: int) -> int:
    """`count // batch_size`: the remainder of an epoch is dropped; the next epoch's order is another one.

    Raises:
        ConfigurationError: a batch size below 1.
        DataError: a batch larger than the data.

    Example:
        >>> steps_per_epoch(10_000, 256)
        39
    """
    if batch_size < 1:
        raise ConfigurationError(f"batch size {batch_size}: it must be at least 1")
    if batch_size > count:
        raise DataError(
            f"batch size {batch_size} is larger than the data, {count} images: use at most {count}, or more images"
        )
    return count // batch_size


def batches_from(
    step: int, *, seed: int, count: int, batch_size: int, order: Order = epoch_order
) -> Iterator[np.ndarray]:
    """The indices of step `step`, `step + 1`, … without end. Each epoch's order is computed once.

    Args:
        order: gives an epoch's order.

    Returns:
        iterator of int64 [batch_size].

    Raises:
        ConfigurationError, DataError: as `epoch_order` and `steps_per_epoch`, at the first `next`.

    Example:
        >>> len(next(batches_from(7, seed=0, count=10, batch_size=4)))
        4
    """
    epoch, position = divmod(step, steps_per_epoch(count, batch_size))
    while True:
        indices = order(seed, epoch, count)
        for start in range(position * batch_size, count - batch_size + 1, batch_size):
            yield indices[start : start + batch_size]
        epoch, position = epoch + 1, 0


def batch_indices(step: int, *, seed: int, count: int, batch_size: int, order: Order = epoch_order) -> np.ndarray:
    """The indices of one step's images, int64 [batch_size]: a pure function of its arguments.

    Sorts `count` words each time; `batches_from` serves a whole run. `order` gives an epoch's order.

    Raises:
        ConfigurationError, DataError: as `epoch_order` and `steps_per_epoch`.

    Example:
        >>> batch_indices(2, seed=0, count=10, batch_size=4).tolist() == epoch_order(0, 1, 10)[:4].tolist()
        True
    """
    return next(batches_from(step, seed=seed, count=count, batch_size=batch_size, order=order))
