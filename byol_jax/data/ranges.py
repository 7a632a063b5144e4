"""Which numbers of raw images become 0 and 1: found from a sample of them, and applied on the host.

The step does the same on the device (`views.unit_range`); here it is for pictures and for the control of raw pixels.
How a run keeps what was found: runs/value_range.py.
"""

from typing import Any, NamedTuple

import numpy as np

from byol_jax.data.arrays import is_whole
from byol_jax.data.dataset import Dataset
from byol_jax.errors import ConfigurationError, DataError

__all__ = ["AUTO_PERCENTILE", "SAMPLE", "Range", "estimate_range", "levels_of_eight_bits", "parse_rule", "to_unit"]

Range = tuple[tuple[float, ...], tuple[float, ...]]
"""(low, high), each one number or one a channel."""

SAMPLE = 256
"""Images of a sample: at 224 pixels 17 million numbers a channel, and 17,000 beyond each percentile of `auto`."""

AUTO_PERCENTILE = 99.9
"""Of "auto": one number in 1,000 may lie above it, and one below 0.1 %. The smallest and the largest number would be
those of a hot or a dead pixel, of which a camera of 4 million has dozens in every image."""

_MOST_PIXELS = 2**16
"""Of an image whose numbers are floats, evenly spaced; of whole numbers all are counted."""


class Estimate(NamedTuple):
    """A range, and how it was found.

    Attributes:
        value_range: (low, high), one number a channel each.
        images: how many were looked at.
        dtype: of the images that were looked at.
        is_whole: whether percentiles were equal in some channel, so that its smallest and largest number were taken.
    """

    value_range: Range
    images: int
    dtype: str
    is_whole: bool


def parse_rule(rule: str) -> float:
    """The percentile that a rule stands for, "auto" or "percentile:P", 50 < P ≤ 100.

    Raises:
        ConfigurationError: it is none of these.

    Example:
        >>> parse_rule("auto"), parse_rule("percentile:99.5")
        (99.9, 99.5)
    """
    if rule == "auto":
        return AUTO_PERCENTILE
    word, _, number = rule.partition(":")
    try:
        percentile = float(number)
    except ValueError:
        percentile = 0.0
    if word != "percentile" or not 50 < percentile <= 100:
        raise ConfigurationError(
            f"value_range={rule!r}: expected auto, percentile:P with 50 < P <= 100, or two numbers, low and high"
        )
    return percentile


def estimate_range(dataset: Dataset, *, percentile: float, seed: int, sample: int = SAMPLE) -> Estimate:
    """For each channel the percentiles 100 - P and P of the numbers of some images, drawn by `seed`.

    A number that images have, never one between two of them. Where both are equal (nine in ten pixels are black, say),
    that channel's smallest and largest number.

    Args:
        dataset: images as a step gets them, before augmentation: a folder's resized and cropped.
        percentile: P, above 50, at most 100, which is the largest number.
        sample: how many images, or all of fewer.

    Raises:
        DataError: a channel has the same number everywhere.

    Example:
        >>> from byol_jax.data import open_dataset
        >>> ramp = np.arange(1001, dtype=np.uint16).reshape(1, 7, 143, 1)
        >>> estimate_range(open_dataset(ramp, num_channels=1, any_range=True), percentile=99.9, seed=0).value_range
        ((1.0,), (999.0,))
    """
    count = min(sample, len(dataset))
    rows = np.sort(np.random.default_rng(seed).choice(len(dataset), count, replace=False))
    dtype = dataset.take(rows[:1]).dtype  # a dataset of one's own may not say it
    numbers, counts = _count_floats(dataset, rows) if dtype.kind == "f" else _count_whole(dataset, rows, dtype)
    low, high, is_whole = [], [], False
    for channel, (values, times) in enumerate(zip(numbers, counts, strict=True)):
        total = np.cumsum(times)
        below, above = (_at(values, total, part) for part in (1 - percentile / 100, percentile / 100))
        if below == above:
            below, above, is_whole = float(values[0]), float(values[-1]), True
        if below == above:
            where = f" in channel {channel}" if len(numbers) > 1 else ""
            raise DataError(
                f"value range: all pixels of {count} images are {below:g}{where}: give its two numbers, low and high"
            )
        low.append(below)
        high.append(above)
    return Estimate((tuple(low), tuple(high)), count, dtype.name, is_whole)


def _at(values: np.ndarray, total: np.ndarray, part: float) -> float:
    """The smallest value that at least this part of all numbers doesn't exceed; `total` counts those up to each."""
    wanted = round(part * int(total[-1]), 6)  # 1 - 0.999 isn't 0.001
    return float(values[min(int(np.searchsorted(total, wanted)), len(values) - 1)])


def _count_whole(dataset: Dataset, rows: np.ndarray, dtype: np.dtype) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each channel the numbers that occur, ascending, and how often; image by image."""
    channels = dataset.image_shape[-1]
    counts = np.zeros((channels, np.iinfo(dtype).max + 1), np.int64)
    for start in range(0, len(rows), 32):
        images = dataset.take(rows[start : start + 32])  # [n, h, w, C]
        for channel in range(channels):
            counts[channel] += np.bincount(images[..., channel].ravel(), minlength=counts.shape[1])
    present = [np.flatnonzero(times) for times in counts]
    return present, [times[values] for values, times in zip(present, counts, strict=True)]


def _count_floats(dataset: Dataset, rows: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The same of floats, of up to 65,536 pixels of each image."""
    found = []
    for row in rows:
        pixels = dataset.take([row]).reshape(-1, dataset.image_shape[-1])  # [h w, C]
        found.append(pixels[:: max(1, -(-len(pixels) // _MOST_PIXELS))])
    pairs = [np.unique(values, return_counts=True) for values in np.concatenate(found).T]
    return [values for values, _ in pairs], [times for _, times in pairs]


def levels_of_eight_bits(value_range: Range, dtype: str) -> int:
    """How many of 256 levels lie in a range of 0 to 65,535, or of 0 to 255: the fewest of any channel.

    Example:
        >>> levels_of_eight_bits(((0.0,), (2000.0,)), "uint16")
        9
    """
    highest = np.iinfo(dtype).max
    low, high = (np.clip(np.asarray(part), 0, highest) * (255 / highest) for part in value_range)
    return int(np.min(np.rint(high) - np.rint(low)) + 1)


def to_unit(images: Any, value_range: Any = None) -> np.ndarray:
    """Raw images as float32 in [0, 1], as a learner with this `value_range` makes them.

    Args:
        images: [..., C], uint8, uint16 or floating.
        value_range: (low, high), one number or one a channel each; None: uint8 / 255, uint16 / 65535, floats as they
            are.

    Example:
        >>> to_unit(np.array([[0], [500], [4000]], np.uint16), (0, 2000)).ravel().tolist()
        [0.0, 0.25, 1.0]
    """
    array = np.asarray(images)
    floats = array.astype(np.float32)
    if value_range is not None:
        low, high = (np.asarray(part, np.float32).reshape(-1) for part in value_range)
        return np.clip((floats - low) / (high - low), 0, 1)
    return floats / np.float32(np.iinfo(array.dtype).max) if is_whole(array.dtype) else floats
