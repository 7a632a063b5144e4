"""Which numbers of a run's raw images become 0 and 1: as given, or found once from the images, and kept in config.json.

A run that goes on takes the numbers of its configuration and never looks again. How they are found: data/ranges.py.
"""

import os
from typing import Any, NamedTuple

import numpy as np

from byol_jax.data import Dataset
from byol_jax.data.ranges import Range, estimate_range, levels_of_eight_bits, parse_rule
from byol_jax.errors import ConfigurationError, DataError
from byol_jax.runs.config import read_config
from byol_jax.runs.folder import has_checkpoint, run_paths

__all__ = ["FEW_LEVELS", "FoundRange", "as_range", "check_dtype", "find_range", "stored_range"]

FEW_LEVELS = 64
"""Of the 256 levels of 8 bits: what 14 bits in a file of 16 have. With fewer, that is said as a warning."""


class FoundRange(NamedTuple):
    """A run's value range.

    Attributes:
        value_range: (low, high), as `make_learner` takes it; None: the dtype's own.
        rule: "auto" or "percentile:P", where the numbers were found by one; None for given ones.
        sentence: for a person; None where there is nothing to say.
        is_narrow: whether 8 bits would have had so few levels that it is worth a warning.
    """

    value_range: Range | None
    rule: str | None = None
    sentence: str | None = None
    is_narrow: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What config.json has beside the learner's `value_range`."""
        return {} if self.rule is None else {"value_range_rule": self.rule}


def find_range(wanted: Any, images: Any, *, seed: int, stored: FoundRange | None = None) -> FoundRange:
    """The value range of a run or of a command.

    Args:
        wanted: numbers (low, high), one or one a channel each; a rule, "auto" or "percentile:P"; None: "auto" for a
            folder of grey images of 16 bits, else no range.
        images: a `Dataset`, or something else, of which nothing can be found.
        seed: of the sample.
        stored: what the run began with: where it was found by the same rule, its numbers are taken.

    Raises:
        ConfigurationError: no such rule, or images that can't be looked at.
        DataError: a channel that has one number alone.
    """
    rule = wanted if isinstance(wanted, str) else None
    if wanted is None and isinstance(images, Dataset) and not images.range_is_known:
        rule = "auto"
    if rule is None:
        given = None if wanted is None else as_range(wanted)
        if stored is not None and given is not None and given == stored.value_range:
            return stored
        return FoundRange(given)
    percentile = parse_rule(rule)
    if not isinstance(images, Dataset):
        raise ConfigurationError(
            f"value_range={rule!r}: only found from a folder or an array; for batches from elsewhere give (low, high)"
        )
    if stored is not None and stored.rule == rule:
        return stored
    found = estimate_range(images, percentile=percentile, seed=seed)
    how = f"percentiles {100 - percentile:g} and {percentile:g}"
    how = f"{how}, or smallest and largest where these are equal," if found.is_whole else how
    how = f"({rule}: {how} of {found.images} images, seed {seed})"
    numbers = _words(found.value_range)
    if found.dtype not in ("uint8", "uint16"):
        return FoundRange(found.value_range, rule, f"value range {numbers} becomes 0 to 1 {how}")
    levels = levels_of_eight_bits(found.value_range, found.dtype)
    left = f"8 bits would have left {levels} levels of it" if found.dtype == "uint16" else f"{levels} levels of 256"
    sentence = f"value range {numbers} of {np.iinfo(found.dtype).max:,} becomes 0 to 1 {how}; {left}"
    return FoundRange(found.value_range, rule, sentence, levels < FEW_LEVELS)


def stored_range(out: str | os.PathLike[str]) -> FoundRange | None:
    """What the run in the folder `out` began with; None where it has no checkpoint to go on from, or no range."""
    if not has_checkpoint(run_paths(out)):
        return None
    config = read_config(out)
    learner = config.get("learner")
    if not isinstance(learner, dict) or learner.get("value_range") is None:
        return None
    try:
        kept, rule = as_range(learner["value_range"]), config.get("value_range_rule")
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigurationError(f"{run_paths(out).config}: its value_range isn't two numbers: restore it") from error
    return FoundRange(
        kept, rule, None if rule is None else f"value range {_words(kept)}, as the run began with ({rule})"
    )


def check_dtype(dtype: str | None, trained: str | None, *, what: str) -> None:
    """Returns where images of `dtype` may go through a network whose value range is of numbers of the dtype `trained`.

    Raises:
        DataError: their numbers mean something else.

    Example:
        >>> check_dtype("uint16", "uint16", what="cells")
    """
    if trained is not None and dtype != trained:
        raise DataError(
            f"{what}: images of {dtype}, and the run's value range is of the numbers of {trained} images: give such"
        )


def as_range(pair: Any) -> Range:
    """(low, high) as tuples of floats, as config.json has them."""
    low, high = (tuple(float(number) for number in np.asarray(part, np.float64).reshape(-1)) for part in pair)
    return low, high


def _words(value_range: Range) -> str:
    """The numbers for a person: "112 to 1987", or one such for each channel that differs."""
    channels = list(zip(*np.broadcast_arrays(*value_range), strict=True))
    return ", ".join(f"{low:g} to {high:g}" for low, high in (channels if len(set(channels)) > 1 else channels[:1]))
