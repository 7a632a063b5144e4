"""Faults of jaxlib that give wrong numbers or end the process, in one table: which releases, where, and what they do.

`byol-jax env` warns by it, and docs/compatibility.md is written from it (`python -m tests.pages.compatibility`), with
what this package does about each. Only what was seen to happen stands here.
"""

import re
from typing import NamedTuple

__all__ = ["FAULTS", "Fault", "find_faults"]


class Fault(NamedTuple):
    """One fault. `first` and `last` are releases that have it; `last` None: the newest that was tried has it too.
    `remedy`: what keeps a program of one's own out of its way."""

    name: str
    first: str
    last: str | None
    platform: str
    what: str
    remedy: str
    source: str


FAULTS = (
    Fault(
        "product with a uniform constant",
        "0.10.2",
        None,
        "cpu",
        "a compiled product of a matrix of 64 rows or more with a constant matrix whose elements are all equal, summed"
        " afterwards, is arbitrary: inf, NaN or any number",
        "pass such a matrix to the compiled function as an argument, or take a mean",
        "tried on 0.10.0 to 0.12.0.1: 0.10.0 and 0.10.1 are right",
    ),
    Fault(
        "product of three channels",
        "0.9.1",
        "0.10.2",
        "cpu",
        "a compiled product of two or three rows of three numbers with N rows of three, [K, N], reduced over the former"
        " (sum, maximum; sum of squares in 0.10.2 alone), is wrong from row 32,768 (float32) on, for some N above that",
        "install jaxlib 0.11 or later, or take at most 32,768 rows at a time",
        "jax-ml/jax issue 39103; seen on 0.9.1, 0.9.2 and 0.10.0 to 0.10.2 for N = 32,769 to 40,001, not for N = 45,000"
        " and more, nor on 0.9.0.1, 0.11.0, 0.11.2 and 0.12.0.1",
    ),
    Fault(
        "sum of a product of seven axes",
        "0.10.2",
        "0.10.2",
        "cpu",
        "a compiled sum over an axis of the product of two float32 arrays of seven axes, one of length 1, can end the"
        " process",
        "install another jaxlib, or join axes by a reshape before the product",
        "jax-ml/jax issues 40412 and 39257, which has eight axes on 0.11.0 too; seen on 0.10.2, and not on the others",
    ),
)
"""Every known fault, those of the newest releases first."""


def find_faults(jaxlib: str, platform: str) -> tuple[Fault, ...]:
    """The faults that a release of jaxlib has on a platform ("cpu", "gpu", "tpu").

    Example:
        >>> [fault.name for fault in find_faults("0.11.2", "cpu")]
        ['product with a uniform constant']
    """
    release = _numbers(jaxlib)
    return tuple(
        fault
        for fault in FAULTS
        if fault.platform == platform
        and _numbers(fault.first) <= release
        and (fault.last is None or release <= _numbers(fault.last))
    )


def _numbers(release: str) -> tuple[int, ...]:
    """(0, 10, 2) for "0.10.2", and for "0.10.2+cuda" too."""
    found = re.match(r"\d+(\.\d+)*", release)
    return tuple(map(int, found[0].split("."))) if found else ()
