"""Which images a step sees: a function of (seed, epoch) and the number of images alone.

Nothing is remembered between calls, so a resumed run needs only its step number to continue with the same batches. A
permutation is made from a stream that NumPy promises never to change (`SeedSequence` and the raw words of `Philox`;
there is no such promise for `Generator.permutation`): the order is the same on every machine and in every version.
"""

from collections.abc import Iterator

import numpy as np

from byol_jax.errors import ConfigurationError, DataError

__all__ = ["batch_indices", "batches_from", "epoch_order", "steps_per_epoch"]


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
    if seed < 0 or epoch < 0 or count < 0:
        raise ConfigurationError(f"seed {seed}, epoch {epoch}, count {count}: none of them may be negative")
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(count)
    return np.argsort(words, kind="stable")  # [count]


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


def batches_from(step: int, *, seed: int, count: int, batch_size: int) -> Iterator[np.ndarray]:
    """The indices of step `step`, `step + 1`, … without end. Each epoch's order is computed once.

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
        order = epoch_order(seed, epoch, count)
        for start in range(position * batch_size, count - batch_size + 1, batch_size):
            yield order[start : start + batch_size]
        epoch, position = epoch + 1, 0


def batch_indices(step: int, *, seed: int, count: int, batch_size: int) -> np.ndarray:
    """The indices of one step's images, int64 [batch_size]: a pure function of its arguments.

    Sorts `count` words each time; `batches_from` serves a whole run.

    Raises:
        ConfigurationError, DataError: as `epoch_order` and `steps_per_epoch`.

    Example:
        >>> batch_indices(2, seed=0, count=10, batch_size=4).tolist() == epoch_order(0, 1, 10)[:4].tolist()
        True
    """
    return next(batches_from(step, seed=seed, count=count, batch_size=batch_size))
