"""What is learned of a folder's files while it is looked through: which can't be used, their shapes, and doubts.

A doubt is about images that are used: of those with 16 bits a channel, 12-bit data for instance, few grey levels may be
left. The list that comes of it, and how it is kept: file_list.py.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from byol_jax.data.decode import UnusableImageError, ValueRange, check_header, upright_size, value_range
from byol_jax.data.file_list import scan

__all__ = ["Survey"]

FEW_LEVELS = 64
"""Grey levels of 256: what 14 bits in a file of 16 leave. 12 bits leave 16."""

LOOKED_AT = 200
"""Images of 16 bits, evenly spaced, of which the range is looked at: each is decoded once more for it."""


class Survey:
    """A look at a folder's files.

    Args:
        root, names: the files.
        workers: threads. progress: `progress(done, total)`, called from this thread.

    Attributes:
        sixteen_bit: bool [files]; which have 16 bits a channel, as far as `failures` has looked.
    """

    def __init__(
        self, root: Path, names: Sequence[str], *, workers: int, progress: Callable[[int, int], None] | None
    ) -> None:
        self.root, self.names, self.workers, self.progress = root, names, workers, progress
        self.sixteen_bit = np.zeros(len(names), bool)

    def failures(self, decode: Callable[[int], object] | None) -> dict[int, str]:
        """The reason by file number where a header, or with `decode` the pixels, can't be used."""

        def check(file: int) -> None:
            self.sixteen_bit[file] = check_header(self.root / self.names[file])
            if decode is not None:
                decode(file)

        return scan(check, len(self.names), workers=self.workers, progress=self.progress)

    def sizes(self) -> dict[int, tuple[int, int]]:
        """(height, width) by file number of each file whose header can be used."""
        sizes: dict[int, tuple[int, int]] = {}

        def look(file: int) -> None:
            sizes[file] = upright_size(self.root / self.names[file])

        scan(look, len(self.names), workers=self.workers, progress=self.progress)
        return dict(sorted(sizes.items()))

    def doubts(self, failed: Collection[int]) -> tuple[str, ...]:
        """A line on images of 16 bits whose numbers fill so little of their range that few grey levels are left."""
        deep: list[int] = [int(file) for file in np.flatnonzero(self.sixteen_bit) if int(file) not in failed]
        rows = np.linspace(0, len(deep) - 1, min(len(deep), LOOKED_AT)).astype(int)
        ranges: dict[str, ValueRange] = {}
        for row in rows:
            name: str = self.names[deep[int(row)]]
            with contextlib.suppress(UnusableImageError):  # only its header was read yet
                ranges[name] = value_range(self.root / name)
        poor = {name: found for name, found in ranges.items() if found.loses(FEW_LEVELS)}
        if not poor:
            return ()
        some = [f"{name!r}: {found.low} to {found.high}, {found.levels} levels" for name, found in poor.items()]
        of_all = f"{len(poor)} of {len(ranges)} images of 16 bits{' looked at' if len(deep) > len(ranges) else ''}"
        return (
            f"{of_all} keep at most {FEW_LEVELS} of 256 grey levels, since their numbers fill little of their range"
            f" ({'; '.join(some[:3])}{'; …' if len(some) > 3 else ''}): scale them to 0 to 65535, or give an array of"
            " floats in [0, 1]",
        )
