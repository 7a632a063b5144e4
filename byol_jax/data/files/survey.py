"""What is learned of a folder's files while it is looked through: which can't be used, their shapes, and doubts.

Pictures are Pillow's. TIFFs that Pillow doesn't take whole, DICOM and .npy files have readers of their own; they are
looked at first, since one file of theirs may hold several images, and numbers that only float32 holds.

A doubt is about images that are used: of those with 16 bits a channel, 12-bit data for instance, few grey levels are
left in 8 bits, and in 16 they are dark. The list that comes of it, and how it is kept: kept_list.py.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from byol_jax.data.files.scan import scan
from byol_jax.data.member import Root
from byol_jax.data.readers import guarded
from byol_jax.data.readers.open import check_installed, install_hint, is_installed, reader_of
from byol_jax.data.readers.picture import WHOLE, check_picture, read_picture
from byol_jax.data.readers.pillow import ValueRange, value_range
from byol_jax.data.readers.pillow_header import Depth, upright_size
from byol_jax.data.readers.reading import ROUNDED, Contents, Reading, output_dtype
from byol_jax.data.unusable import UnreadLayoutError, UnusableImageError

__all__ = ["Survey"]

FEW_LEVELS = 64
"""Grey levels of 256: what 14 bits in a file of 16 leave. 12 bits leave 16."""

LOOKED_AT = 200
"""Images of 16 bits, evenly spaced, of which the range is looked at: each is decoded once more for it."""

_NAMED = 3
"""At most so many ways in which axes were taken are said."""


class Survey:
    """A look at a folder's files.

    Args:
        root, names: the files. reading: how they are read.
        read_by: what an earlier look found, as the list keeps it: readers and numbers of images by name.
        workers: threads. progress: `progress(done, total)`, called from this thread.

    Attributes:
        depths: [files], a `Depth` each, as far as has been looked.
        readers: by file number, of files that aren't Pillow's: a word of `READERS`.
        counts: [files], how many images each holds.
    """

    def __init__(
        self,
        root: Root,
        names: Sequence[str],
        reading: Reading,
        *,
        read_by: Mapping[str, tuple[str, int]],
        workers: int,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.root, self.names, self.reading = root, names, reading
        self.workers, self.progress = workers, progress
        self.depths = np.zeros(len(names), np.int8)
        self.counts = np.ones(len(names), np.int64)
        self.readers: dict[int, str] = {}
        self._contents: dict[int, Contents] = {}
        self._known: set[int] = set()
        for file, name in enumerate(names if read_by else ()):
            if name in read_by:
                self.readers[file], self.counts[file] = read_by[name]

    def read_by(self, failed: Collection[int]) -> dict[str, tuple[str, int]]:
        """What the list keeps of it: of each file that isn't Pillow's its reader, and how many images it holds."""
        used = {file: reader for file, reader in sorted(self.readers.items()) if file not in failed}
        return {self.names[file]: (reader, int(self.counts[file])) for file, reader in used.items()}

    def look_ahead(self) -> dict[int, str]:
        """Looks at the headers of files that may have another reader than Pillow; the reason for each that has none."""
        if not isinstance(self.root, Path):  # of what lies within shards only pictures are read
            return {}
        files = [file for file, name in enumerate(self.names) if reader_of(name) is not None]
        report, total = self.progress, len(files) + len(self.names)
        progress = None if report is None else lambda done, _: report(done, total)
        reasons = scan(lambda row: self._choose(files[row]), len(files), workers=self.workers, progress=progress)
        self.progress = None if report is None else _later(report, len(files))
        return {files[row]: reason for row, reason in sorted(reasons.items())}

    def _choose(self, file: int) -> None:
        """Finds a file's reader and what it holds."""
        path, reader = self.root / self.names[file], reader_of(self.names[file])
        if reader is None:
            return
        if reader == "tiff" and not self.reading.is_as_stored:
            try:
                self.depths[file] = check_picture(path, self.reading)
                self._known.add(file)
                return
            except UnreadLayoutError as error:
                if not is_installed(reader):
                    raise UnusableImageError(f"{error}; or {install_hint(reader)}, which reads it") from error
        check_installed(reader)
        contents = guarded.look(reader, path, self.reading)
        self._contents[file], self.counts[file], self.readers[file] = contents, len(contents.sizes), reader
        self.depths[file] = _depth(contents)
        self._known.add(file)

    def failures(self, decode: Callable[[int], object] | None, known: Mapping[int, str]) -> dict[int, str]:
        """The reason by file number where a header, or with `decode(file)` the pixels, can't be used.

        Args:
            known: the reasons so far.
        """

        def check(file: int) -> None:
            if file in known:
                raise UnusableImageError(known[file])
            if file not in self._known:
                self.depths[file] = check_picture(self.root / self.names[file], self.reading)
            if decode is not None:
                decode(file)

        return scan(check, len(self.names), workers=self.workers, progress=self.progress)

    def look_again(self, files: np.ndarray, dtype: str) -> dict[int, str]:
        """The reason by number for each of these files, used at an earlier start in this dtype, that can't be used now.

        Only headers are read.
        """

        def check(row: int) -> None:
            file = int(files[row])
            if file not in self.readers:
                check_picture(self.root / self.names[file], self.reading)
                return
            contents, then = self.contents(file), int(self.counts[file])
            if len(contents.sizes) != then:
                raise UnusableImageError(f"holds {len(contents.sizes)} images, at the first start it held {then}")
            if output_dtype(contents.dtype) == "float32" != dtype:
                raise UnusableImageError(f"{contents.dtype} numbers, and the images are used in {dtype}")

        reasons = scan(check, len(files), workers=self.workers, progress=self.progress)
        return {int(files[row]): reason for row, reason in reasons.items()}

    def contents(self, file: int) -> Contents:
        """Of a file that isn't Pillow's."""
        if file not in self._contents:
            self._contents[file] = guarded.look(self.readers[file], self.root / self.names[file], self.reading)
        return self._contents[file]

    def sizes(self) -> dict[int, Sequence[tuple[int, int]]]:
        """(height, width) of its images, by file number, of each file whose header can be used."""
        sizes: dict[int, Sequence[tuple[int, int]]] = {}

        def look(file: int) -> None:
            others = file in self.readers
            sizes[file] = self.contents(file).sizes if others else (upright_size(self.root / self.names[file]),)

        scan(look, len(self.names), workers=self.workers, progress=self.progress)
        return dict(sorted(sizes.items()))

    def first_size(self, failed: Collection[int]) -> tuple[int, int]:
        """(height, width) of the first image that can be used; (1, 1) where none can: the scan says so by file."""
        for file, name in enumerate(self.names):
            if file in failed:
                continue
            with contextlib.suppress(UnusableImageError):
                if file in self.readers:
                    return self.contents(file).sizes[0]
                check_picture(self.root / name, self.reading)
                options = {"size": None, "fit": "cover", "dtype": "uint8"}
                height, width, _ = read_picture(self.root / name, self.reading, **options).shape
                return height, width
        return 1, 1

    def first_depth(self, failed: Collection[int]) -> Depth:
        """Of the first file whose header can be used."""
        for file, name in enumerate(self.names):
            if file in failed:
                continue
            with contextlib.suppress(UnusableImageError):
                is_known = file in self._known
                return Depth(self.depths[file]) if is_known else check_picture(self.root / name, self.reading)
        return Depth.EIGHT

    def is_measured(self, failed: Collection[int]) -> bool:
        """Whether at least half of the files that can be used, as far as is known, have numbers for float32."""
        measured = int((self.depths == Depth.MEASURED).sum())
        return 2 * measured >= len(self.names) - len(failed) > 0

    def is_deep(self, failed: Collection[int]) -> bool:
        """Whether at least half of the files that can be used have 16 bits a channel that can be had."""
        used = self._used_depths(failed)
        return 2 * int(np.isin(used, WHOLE).sum()) >= len(used) > 0

    def is_grey(self, failed: Collection[int]) -> bool:
        """Whether every file that can be used is grey of 16 bits."""
        return bool((self._used_depths(failed) == Depth.GREY).all())

    def _used_depths(self, failed: Collection[int]) -> np.ndarray:
        return np.delete(self.depths, list(failed))

    def strangers(self, dtype: str) -> dict[int, str]:
        """The reason by file number of those whose numbers no image of this dtype can have."""
        if dtype == "float32":
            return {}
        return {
            int(file): f"{self.contents(int(file)).dtype} numbers in a folder whose images are used in {dtype}:"
            " give them their own"
            for file in np.flatnonzero(self.depths == Depth.MEASURED)
        }

    def mixture(self, failed: Collection[int], dtype: str) -> tuple[str, ...]:
        """Lines on images whose files have other numbers than they: of 8 bits in 16, too exact ones in float32."""
        used = [file for file in range(len(self.names)) if file not in failed]

        def with_depth(*depths: Depth) -> list[int]:
            return [file for file in used if self.depths[file] in depths]

        if dtype == "uint16":
            found = {
                "have 8 bits a channel: their numbers are multiplied by 257": with_depth(Depth.EIGHT),
                "have 16 bits a channel, of which the upper 8 are used (CMYK, LAB, grey with alpha)": with_depth(
                    Depth.LOST
                ),
            }
        elif dtype == "float32":
            rounded = [file for file in used if file in self._contents and self._contents[file].dtype in ROUNDED]
            found = {
                "hold whole numbers of 8 or 16 bits: used as they are, in float32": with_depth(
                    Depth.EIGHT, Depth.LOST, *WHOLE
                ),
                "hold numbers that float32 rounds: whole ones above 16,777,216, floats of 64 bits": rounded,
            }
        else:
            found = {}
        images = self.counts[used].sum()
        return tuple(
            f"{self.counts[some].sum()} of {images} images {what}; the first: {self.names[some[0]]!r}"
            for what, some in found.items()
            if some
        )

    def unused(self) -> tuple[str, ...]:
        """Lines on what was said of how files are read, and concerns none of them."""
        readers = {reader_of(name) for name in self.names}
        asked = {
            "tiff_axes (--tiff-axes) without a TIFF: it says which of their axes are channels": (
                self.reading.tiff_axes is not None and "tiff" not in readers
            ),
            "dicom_rescale (--dicom-rescale) without a DICOM file: it applies their slope and intercept": (
                self.reading.dicom_rescale and "dicom" not in readers
            ),
        }
        return tuple(line for line, is_unused in asked.items() if is_unused)

    def notes(self, failed: Collection[int]) -> tuple[str, ...]:
        """Lines that say how the axes of files were taken, each way once."""
        ways: dict[str, list[int]] = {}
        for file in sorted(self._contents):
            said = self._contents[file].said
            if said is not None and file not in failed:
                ways.setdefault(said, []).append(file)
        lines = [
            f"{len(files)} file{'s' * (len(files) != 1)} read so: {said}; the first: {self.names[files[0]]!r}"
            for said, files in ways.items()
        ]
        more = len(lines) - _NAMED
        return (*lines[:_NAMED], *([f"and {more} other way{'s' * (more != 1)} of axes"] if more > 0 else []))

    def doubts(self, failed: Collection[int], *, dtype: str = "uint8") -> tuple[str, ...]:
        """A line on images of 16 bits whose numbers fill so little of their range that 8 bits leave few grey levels.

        Args:
            dtype: of the images as they are used, which decides what becomes of them.
        """
        if dtype == "float32":
            return ()
        deep: list[int] = [int(file) for file in np.flatnonzero(self.depths) if int(file) not in failed]
        rows = np.linspace(0, len(deep) - 1, min(len(deep), LOOKED_AT)).astype(int)
        ranges: dict[str, ValueRange] = {}
        for row in rows:
            with contextlib.suppress(UnusableImageError):  # only its header was read yet
                ranges[self.names[deep[int(row)]]] = self._range(deep[int(row)])
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

    def _range(self, file: int) -> ValueRange:
        """Of an image of 16 bits, the first in its file."""
        path = self.root / self.names[file]
        if file not in self.readers:
            return value_range(path)
        options = {"size": None, "fit": "cover", "dtype": "uint16"}
        numbers, _ = guarded.read(self.readers[file], path, 0, self.reading, **options)
        return ValueRange(int(numbers.min()), int(numbers.max()), 65535)


def _depth(contents: Contents) -> Depth:
    if output_dtype(contents.dtype) == "float32":
        return Depth.MEASURED
    if contents.dtype == "uint8":
        return Depth.EIGHT
    return Depth.GREY if contents.channels == 1 else Depth.COLOUR


def _later(progress: Callable[[int, int], None], done_before: int) -> Callable[[int, int], None]:
    """`progress` after this much was done."""
    return lambda done, total: progress(done_before + done, done_before + total)
