"""A look at each of many files, in threads: for how many there are, and until when, see `file_list` and `survey`."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from byol_jax.data.unusable import UnusableImageError

__all__ = ["scan"]

_WINDOW = 1024
"""Files handed to the threads at a time: bounds memory with millions of files, and the wait after Ctrl-C."""

_PIECE = 16
"""Files that a thread takes at once. One by one, handing them over costs 12 µs each, a sixth of reading a header."""


def scan(
    check: Callable[[int], object], count: int, *, workers: int, progress: Callable[[int, int], None] | None = None
) -> dict[int, str]:
    """Calls `check(0)` … `check(count - 1)` in threads; returns the reason for each index at which it failed.

    Args:
        check: raises `UnusableImageError` where the file behind an index can't be used. Other exceptions end the scan.
        progress: `progress(done, total)`, called from this thread.

    Example:
        >>> def check(index):
        ...     if index == 2:
        ...         raise UnusableImageError("empty file")
        >>> scan(check, 5, workers=2)
        {2: 'empty file'}
    """

    def reasons_in(piece: range) -> dict[int, str]:
        reasons: dict[int, str] = {}
        for index in piece:
            try:
                check(index)
            except UnusableImageError as error:
                reasons[index] = str(error)
        return reasons

    reasons: dict[int, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, count, _WINDOW):
            stop = min(start + _WINDOW, count)
            pieces = [range(first, min(first + _PIECE, stop)) for first in range(start, stop, _PIECE)]
            for piece, found in zip(pieces, pool.map(reasons_in, pieces), strict=True):
                reasons |= found
                if progress is not None:
                    for index in piece:
                        progress(index + 1, count)
    return reasons
