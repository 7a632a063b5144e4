"""From the seconds of many steps to the few numbers of a table. Pure functions."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Ratio", "Summary", "order", "ratio", "summarise"]


class Summary(NamedTuple):
    """Seconds a step: the fastest, the median, and the distance between the quartiles."""

    minimum: float
    median: float
    spread: float


class Ratio(NamedTuple):
    """One contender's time over another's, by minimum and by median; below 1 is faster."""

    minimum: float
    median: float


def summarise(seconds: Sequence[float]) -> Summary:
    """Minimum, median and interquartile range; quartiles by linear interpolation, like numpy.percentile's.

    Raises:
        ValueError: `seconds` is empty.

    Example:
        >>> summarise([1.0, 2.0, 3.0, 4.0, 9.0])
        Summary(minimum=1.0, median=3.0, spread=2.0)
    """
    if not seconds:
        raise ValueError("no steps were measured")
    if len(seconds) == 1:
        return Summary(seconds[0], seconds[0], 0.0)
    first, median, third = statistics.quantiles(seconds, n=4, method="inclusive")
    return Summary(min(seconds), median, third - first)


def ratio(own: Summary, other: Summary) -> Ratio:
    """`own` over `other`.

    Example:
        >>> ratio(Summary(1.0, 3.0, 0.1), Summary(2.0, 4.0, 0.1))
        Ratio(minimum=0.5, median=0.75)
    """
    return Ratio(own.minimum / other.minimum, own.median / other.median)


def order(names: Sequence[str], turn: int) -> list[str]:
    """The names in the order of round `turn`: each round begins with the next one, so that all begin equally often.

    Example:
        >>> order(["a", "b", "c"], 1)
        ['b', 'c', 'a']
    """
    start = turn % len(names)
    return [*names[start:], *names[:start]]
