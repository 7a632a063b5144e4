"""The images of a folder's files by number, and their pixels, each decoded once where all fit in memory."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from byol_jax.data.member import Root
from byol_jax.data.readers import guarded
from byol_jax.data.readers.picture import read_picture
from byol_jax.data.readers.reading import Reading
from byol_jax.errors import DataError

__all__ = ["Decoder", "FileImages"]


class FileImages:
    """Which image lies in which file: those of the first file, then those of the second, and so on.

    Args:
        root, names: the files.
        counts: [files], how many images each holds.
        readers: by file number, of files that aren't Pillow's: a word of `READERS`.
        reading: how they are read.

    Attributes:
        starts: [files + 1], the number of each file's first image.
    """

    def __init__(
        self, root: Root, names: Sequence[str], counts: np.ndarray, readers: Mapping[int, str], reading: Reading
    ) -> None:
        self.root, self.names, self.readers, self.reading = root, names, readers, reading
        self.starts = np.concatenate([[0], np.cumsum(counts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def of_file(self, file: int) -> range:
        """The numbers of a file's images."""
        return range(int(self.starts[file]), int(self.starts[file + 1]))

    def without(self, failed: Collection[int]) -> np.ndarray:
        """The numbers, int64, of the images of all files but these."""
        is_used = np.ones(len(self.names), bool)
        is_used[list(failed)] = False
        return np.flatnonzero(np.repeat(is_used, np.diff(self.starts)))

    def place(self, image: int) -> tuple[int, int]:
        """(file, which of its images)."""
        file = int(np.searchsorted(self.starts, image, side="right")) - 1
        return file, image - int(self.starts[file])


class Decoder:
    """`decoder(i)` gives the pixels of image number i, `shape`; none is decoded twice where all fit `cache_bytes`.

    Args:
        images: where they lie.
        shape: (h, w, C) of every image.
        dtype: "uint8", "uint16" or "float32".
        fit: how an image gets `shape`, one of `FITS`; with None an image of another size is a DataError.

    Attributes:
        gaps: [images], which part of an image's numbers were gaps, as far as it was decoded.
    """

    def __init__(
        self, images: FileImages, shape: tuple[int, int, int], *, dtype: str, fit: str | None, cache_bytes: int
    ) -> None:
        self.images, self.shape, self.dtype, self.fit = images, shape, np.dtype(dtype), fit
        fits = len(images) * int(np.prod(shape)) * self.dtype.itemsize <= cache_bytes
        self.cache = np.empty((len(images), *shape), self.dtype) if fits else None  # untouched pages cost nothing
        self.filled = np.zeros(len(images), bool)
        self.gaps = np.zeros(len(images), np.float32)

    def __call__(self, image: int) -> np.ndarray:
        if self.cache is not None and self.filled[image]:
            return self.cache[image]
        pixels = self._read(image)
        if pixels.shape != self.shape:
            first, name = self.shape, self.images.names[self.images.place(image)[0]]
            raise DataError(
                f"{self.images.root}: images differ in size ({name!r} is {pixels.shape[0]} × {pixels.shape[1]}, the"
                f" first is {first[0]} × {first[1]}): give image_size"
            )
        if self.cache is not None:
            self.cache[image] = pixels
            self.filled[image] = True  # last: another thread may look at any moment
        return pixels

    def file(self, file: int) -> None:
        """Decodes all images of a file."""
        for image in self.images.of_file(file):
            self(image)

    def _read(self, image: int) -> np.ndarray:
        file, index = self.images.place(image)
        path, reader = self.images.root / self.images.names[file], self.images.readers.get(file)
        size, fit = (None, "cover") if self.fit is None else (self.shape[:2], self.fit)
        options = {"size": size, "fit": fit, "dtype": self.dtype.name}
        if reader is None:
            return read_picture(path, self.images.reading, **options)
        pixels, self.gaps[image] = guarded.read(reader, path, index, self.images.reading, **options)
        return pixels

    def say_gaps(self, failed: Collection[int]) -> tuple[str, ...]:
        """A line on gaps in the images of all files but these, as far as they were decoded."""
        used = self.images.without(failed)
        with_gaps = used[self.gaps[used] > 0]
        if not len(with_gaps):
            return ()
        file, _ = self.images.place(int(with_gaps[0]))
        return (
            f"{len(with_gaps)} of {len(used)} images have gaps (NaN, infinity or a GeoTIFF's nodata),"
            f" {100 * float(self.gaps[used].mean()):.2g} % of all numbers, in whose place is the"
            f" least number that the image has in that channel; the first: {self.images.names[file]!r}",
        )
