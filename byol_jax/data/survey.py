"""What is learned of a folder's files while it is looked through: which can't be used, their shapes, and doubts.

A doubt is about images that are used: of those with 16 bits a channel, 12-bit data for instance, few grey levels are
left in 8 bits, and in 16 they are dark. The list that comes of it, and how it is kept: file_list.py.
"""

import contextlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from byol_jax.data.decode import Depth, UnusableImageError, ValueRange, check_header, upright_size, value_range
from byol_jax.data.file_list import scan

__all__ = ["WHOLE", "Survey"]

FEW_LEVELS = 64
"""Grey levels of 256: what 14 bits in a file of 16 leave. 12 bits leave 16."""

WHOLE = (Depth.GREY, Depth.COLOUR)
"""Of 16 bits a channel all are had."""

LOOKED_AT = 200
"""Images of 16 bits, evenly spaced, of which the range is looked at: each is decoded once more for it."""


class Survey:
    """A look at a folder's files.

    Args:
        root, names: the files.
        workers: threads. progress: `progress(done, total)`, called from this thread.

    Attributes:
        depths: [files], a `Depth` each, as far as `failures` has looked.
    """

    def __init__(
        self, root: Path, names: Sequence[str], *, workers: int, progress: Callable[[int, int], None] | None
    ) -> None:
        self.root, self.names, self.workers, self.progress = root, names, workers, progress
        self.depths = np.zeros(len(names), np.int8)

    def failures(self, decode: Callable[[int], object] | None) -> dict[int, str]:
        """The reason by file number where a header, or with `decode` the pixels, can't be used."""

        def check(file: int) -> None:
            self.depths[file] = check_header(self.root / self.names[file])
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

    def first_depth(self) -> Depth:
        """Of the first file whose header can be used."""
        for name in self.names:
            with contextlib.suppress(UnusableImageError):
                return check_header(self.root / name)
        return Depth.EIGHT

    def is_deep(self, failed: Collection[int]) -> bool:
        """Whether at least half of the files that can be used have 16 bits a channel that can be had."""
        used = [depth in WHOLE for file, depth in enumerate(self.depths) if file not in failed]
        return 2 * sum(used) >= len(used) > 0

    def is_grey(self, failed: Collection[int]) -> bool:
        """Whether every file that can be used is grey of 16 bits."""
        return all(depth == Depth.GREY for file, depth in enumerate(self.depths) if file not in failed)

    def mixture(self, failed: Collection[int]) -> tuple[str, ...]:
        """Lines on the files that are used in 16 bits and don't have so many, or lose them."""
        used = [file for file in range(len(self.names)) if file not in failed]
        lines = []
        for depth, what in (
            (Depth.EIGHT, "have 8 bits a channel: their numbers are multiplied by 257"),
            (Depth.LOST, "have 16 bits a channel, of which the upper 8 are used (CMYK, LAB, grey with alpha)"),
        ):
            some = [self.names[file] for file in used if self.depths[file] == depth]
            if some:
                lines.append(f"{len(some)} of {len(used)} images {what}; the first: {some[0]!r}")
        return tuple(lines)

    def doubts(self, failed: Collection[int], *, dtype: str = "uint8") -> tuple[str, ...]:
        """A line on images of 16 bits whose numbers fill so little of their range that 8 bits leave few grey levels.

        Args:
            dtype: of the images as they are used, which decides what becomes of them.
        """
        deep: list[int] = [int(file) for file in np.flatnonzero(self.depths) if int(file) not in failed]
        rows = np.linspace(0, len(deep) - 1, min(len(deep), LOOKED_AT)).astype(int)
        ranges: dict[str, ValueRange] = {}
        for row in rows:
            name: str = self.names[deep[int(row)]]
            with contextlib.suppress(UnusableImageError):  # only its header was read yet
                ranges[name] = value_range(self.root / name)
        poor = {name: found for name, found in ranges.items() if found.loses(FEW_LEVELS)}
        if not poor:
            return ()
        is_deep = dtype == "uint16"
        some = [
            f"{name!r}: {found.low} to {found.high}" + ("" if is_deep else f", {found.levels} levels")
            for name, found in poor.items()
        ]
        named = f"({'; '.join(some[:3])}{'; …' if len(some) > 3 else ''})"
        of_all = f"{len(poor)} of {len(ranges)} images of 16 bits{' looked at' if len(deep) > len(ranges) else ''}"
        if is_deep:
            return (
                f"{of_all} fill at most a quarter of 0 to 65535 {named}, which becomes [0, 1]: give the range that"
                " does, value_range=(low, high) or --value-range auto",
            )
        return (
            f"{of_all} keep at most {FEW_LEVELS} of 256 grey levels, since their numbers fill little of their range"
            f" {named}: use them in 16 bits, or scale them to 0 to 65535",
        )
