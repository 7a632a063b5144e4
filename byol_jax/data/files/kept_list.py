"""What is used of a folder's images, or of shards': judged once, before training, and remembered beside the run.

A resumed run uses the list that the first start made, so it sees the same images whatever was added since. The file
that keeps the list is JSON: every usable name with its size in bytes, every other name with the reason; of a folder
also when each file was last changed, so that one that was touched since is looked at again; of images that lie in
blocks also these, since an epoch's order depends on them.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from byol_jax.data.files.file_list import Files, Listing, size_and_time
from byol_jax.data.files.image_names import is_image_name, is_row_name
from byol_jax.data.order import Blocks
from byol_jax.data.readers.open import READERS
from byol_jax.data.unusable import UnusableImageError
from byol_jax.disk import write_atomically
from byol_jax.errors import DataError

__all__ = [
    "KeptList",
    "encode_kept_list",
    "identity_of",
    "judge",
    "load_kept_list",
    "rows_of",
    "save_kept_list",
    "write_kept",
]

_FORMAT = "byol_jax verdict on a folder of images, 1"
_FORMAT_READ_BY = "byol_jax verdict on a folder of images, 2"
"""The second says which files are read by others than Pillow, and how many images each holds."""

_PIECE = 10_000
"""Files whose pairs are in memory at once while they are written: all would take four times what is written."""


class KeptList(NamedTuple):
    """What is used of a folder, and what isn't.

    Attributes:
        files: what is used.
        skipped: (name, reason), sorted by name.
        shape: (height, width) that the pictures have in common, where they get it (`fit.common_shape`).
        dtype: "uint8", "uint16" or "float32", what the images are used in; is_grey: whether all are grey of 16 bits.
        read_by: of each file that isn't Pillow's its reader, a word of `READERS`, and how many images it holds.
        blocks: that the images lie in, where an epoch's order depends on them.
    """

    files: Files
    skipped: tuple[tuple[str, str], ...]
    shape: tuple[int, int] | None = None
    dtype: str = "uint8"
    is_grey: bool = False
    read_by: Mapping[str, tuple[str, int]] = MappingProxyType({})
    blocks: Blocks | None = None

    @property
    def image_names(self) -> tuple[str, ...]:
        """One for each image: the name of its file, and where that holds several the image's number: "stack.tif#3"."""
        if not self.read_by:
            return self.files.names
        counts = [(name, self.read_by.get(name, ("", 1))[1]) for name in self.files.names]
        return tuple(
            name if count == 1 else f"{name}#{number + 1}" for name, count in counts for number in range(count)
        )

    def additions(self, listing: Listing) -> tuple[tuple[str, str], ...]:
        """(name, reason) of each file that was added to the folder after the list was made, and so isn't used."""
        if listing.files.names == self.files.names:
            return ()
        known = {*self.files.names, *(name for name, _ in self.skipped)}
        return tuple((name, "added after the first start") for name in listing.files.names if name not in known)

    def touched(self, listing: Listing) -> np.ndarray:
        """The rows of the files that were changed, or copied, since, and have the size that they had."""
        then, now = self.files.times, listing.files.times
        if then is None or now is None:
            return np.zeros(0, np.int64)
        rows = rows_of(self.files.names, listing.files.names)
        there = np.flatnonzero(rows >= 0)
        return there[now[rows[there]] != then[there]]

    def at_times_of(self, listing: Listing, rows: np.ndarray) -> "KeptList":
        """The same with the times that the files of these rows have now."""
        assert self.files.times is not None
        assert listing.files.times is not None
        times = self.files.times.copy()
        times[rows] = listing.files.times[rows_of(self.files.names, listing.files.names)[rows]]
        return self._replace(files=Files(self.files.names, self.files.sizes, times))


def rows_of(wanted: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Where each name stands among others, int64; -1 where it doesn't.

    Example:
        >>> rows_of(["b", "x"], ["a", "b"]).tolist()
        [1, -1]
    """
    if wanted == names:  # nothing was added, nothing has gone
        return np.arange(len(names))
    row = dict(zip(names, range(len(names)), strict=True))
    return np.fromiter((row.get(name, -1) for name in wanted), np.int64, len(wanted))


def judge(folder: object, listing: Listing, reasons: Mapping[int, str]) -> KeptList:
    """A listing without the files that failed.

    Raises:
        DataError: none is usable, or more than half of the names with an image's extension are not.
    """
    files = listing.files.without(reasons)
    failed = tuple((listing.files.names[index], reason) for index, reason in reasons.items())
    skipped = tuple(sorted(listing.skipped + failed))
    bad = [(name, reason) for name, reason in skipped if is_image_name(name, listing.extensions) or is_row_name(name)]
    if not files or len(bad) > len(files):
        some = "; ".join(f"{name!r}: {reason}" for name, reason in (bad or skipped)[:3])
        raise DataError(
            f"{folder}: {len(bad)} of {len(files) + len(bad)} images can't be used ({some}"
            f"{'; …' if len(bad) > 3 else ''}): remove, repair or convert them, or give another folder"
        )
    return KeptList(files, skipped)


def identity_of(kept: KeptList, *, kind: str = "folder") -> dict[str, object]:
    """What distinguishes one folder of images from another, or shards: the used names and their sizes, not their place.

    Example:
        >>> identity_of(KeptList(Files(("a.png",), np.array([80])), ()))["count"]
        1
    """
    digest, count = hashlib.sha256(), 0
    for name, size in zip(kept.files.names, kept.files.sizes.tolist(), strict=True):
        images = kept.read_by.get(name, ("", 1))[1]
        digest.update(os.fsencode(name) + b"\0%d\0" % size + (b"%d images\0" % images if images > 1 else b""))
        count += images
    deep = {"dtype": kept.dtype} if kept.dtype != "uint8" else {}  # earlier folders have no such key
    return {"kind": kind, "count": count, "sha256": digest.hexdigest(), **deep}


def encode_kept_list(kept: KeptList) -> bytes:
    """A list as a file keeps it, which `load_kept_list` reads: about 55 bytes for a file of a folder.

    Example:
        >>> json.loads(encode_kept_list(KeptList(Files(("a.png",), np.array([80])), ())))["files"]
        [['a.png', 80]]
    """
    return b"".join(text.encode("ascii") for text in _texts(kept))


def _texts(kept: KeptList) -> Iterator[str]:
    """The parts of a list's JSON."""
    files = kept.files
    shape = {} if kept.shape is None else {"shape": kept.shape}
    deep = {} if kept.dtype == "uint8" else {"dtype": kept.dtype, "is_grey": kept.is_grey}
    others = {"read_by": dict(kept.read_by)} if kept.read_by else {}  # of pictures alone the file is what it was
    others |= {} if kept.blocks is None else {"blocks": kept.blocks._asdict()}
    kind = _FORMAT_READ_BY if kept.read_by else _FORMAT
    yield f'{{"format": {json.dumps(kind)}, "files": ['
    rows = [slice(start, start + _PIECE) for start in range(0, len(files), _PIECE)]
    yield from _joined([*zip(files.names[some], files.sizes[some].tolist(), strict=True)] for some in rows)
    yield "], " + json.dumps({"skipped": kept.skipped, **shape, **deep, **others})[1:-1]
    if files.times is not None:
        yield ', "times": ['
        yield from _joined(files.times[some].tolist() for some in rows)
        yield "]"
    yield "}"


def _joined(lists: Iterable[list]) -> Iterator[str]:
    """What stands between the brackets of a list, of which these are pieces."""
    for number, piece in enumerate(lists):
        yield (", " if number else "") + json.dumps(piece)[1:-1]


def save_kept_list(path: Path, kept: KeptList, *, beside: Mapping[str, bytes]) -> None:
    """Writes a list, and by their endings what else is kept beside it; each file appears whole or not at all.

    Raises:
        DataError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_kept(path, {**beside, ".json": encode_kept_list(kept)})
    except OSError as error:
        raise DataError(f"{path}: the list of usable images can't be written ({error.strerror})") from error


def write_kept(path: Path, kept: Mapping[str, bytes]) -> None:
    """Writes a list to `path`, and what is kept beside it under its own ending, as a `Dataset` has them in `kept`.

    What is the same already isn't written again. What lies beside the list and is none of these files, by its first
    bytes, stays.
    """
    for ending, content in kept.items():
        is_list = ending == ".json"
        file = path if is_list else path.with_suffix(ending)
        old = file.read_bytes() if file.exists() else b""
        if old != content and (is_list or old[:8] in (b"", content[:8])):
            write_atomically(file, content)


def _files(content: Mapping[str, object]) -> Files:
    pairs = _checked_pairs(content["files"], (str, int))
    names, sizes = tuple(name for name, _ in pairs), np.array([size for _, size in pairs], np.int64)
    times = content.get("times")
    if times is None:
        return Files(names, sizes)
    if not isinstance(times, list) or len(times) != len(names) or not all(type(time) is int for time in times):
        raise ValueError("not a time for each file")
    return Files(names, sizes, np.array(times, np.int64))


def _pairs(value: object, kinds: tuple[type, type]) -> tuple:
    return tuple(map(tuple, _checked_pairs(value, kinds)))


def _checked_pairs(value: object, kinds: tuple[type, type]) -> list:
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], kinds[0]) and isinstance(pair[1], kinds[1])
        for pair in value
    ):
        raise ValueError("not a list of pairs")
    return value


def _read_by(value: object) -> dict[str, tuple[str, int]]:
    if not isinstance(value, dict) or not all(
        isinstance(pair, list) and len(pair) == 2 and pair[0] in READERS and type(pair[1]) is int and pair[1] > 0
        for pair in value.values()
    ):
        raise ValueError("not readers and numbers of images")
    return {name: (reader, count) for name, (reader, count) in value.items()}


def _blocks(value: object, count: int) -> Blocks:
    """Raises ValueError where they aren't those of so many images, KeyError or TypeError where they are none."""
    blocks = Blocks(tuple(value["images"]), value["pool"])  # pyright: ignore[reportIndexIssue]
    if not all(type(one) is int and one > 0 for one in (*blocks.images, blocks.pool)) or sum(blocks.images) != count:
        raise ValueError("no blocks of these images")
    return blocks


def _unlisted(folder: object, name: str) -> int:
    """The size of what isn't listed today, -1 where it can't be had: in shards what isn't listed isn't there."""
    if not isinstance(folder, Path):
        return -1
    try:
        return size_and_time(folder / name)[0]
    except UnusableImageError:
        return -1


def load_kept_list(path: Path, listing: Listing, *, folder: object) -> KeptList:
    """The list of an earlier start, for the folder that it was made of.

    It is used as it is, in the dtype and in the blocks that it says; one without a dtype is of a version that had
    8 bits alone, one without times of a version that kept none. Files that are gone by now are replaced when they are
    met, new ones are left out. Files that `list_images` passes over today, and didn't in an earlier version, are used.

    Raises:
        DataError: the file is damaged, more than half of its images aren't in the folder, or some have another size in
            bytes: they are other images.
    """
    try:
        content = json.loads(path.read_text("ascii"))
        if content["format"] not in (_FORMAT, _FORMAT_READ_BY):
            raise ValueError("another format")
        shape = _pairs([content["shape"]], (int, int))[0] if "shape" in content else None
        dtype, is_grey = content.get("dtype", "uint8"), content.get("is_grey", False)
        if dtype not in ("uint8", "uint16", "float32") or not isinstance(is_grey, bool):
            raise ValueError("another dtype")
        files, skipped = _files(content), _pairs(content["skipped"], (str, str))
        blocks = _blocks(content["blocks"], len(files)) if "blocks" in content else None
        kept = KeptList(files, skipped, shape, dtype, is_grey, _read_by(content.get("read_by", {})), blocks)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{path}: this list of usable images can't be read: delete it, and it is made again") from error
    if files.names == listing.files.names:
        kept = kept._replace(files=Files(listing.files.names, files.sizes, files.times))  # names once in memory
    rows = rows_of(files.names, listing.files.names)
    now = np.where(rows >= 0, listing.files.sizes[rows], -1) if len(listing.files) else np.full(len(files), -1)
    for row in np.flatnonzero(rows < 0):
        now[row] = _unlisted(folder, files.names[row])
    count, there = len(files), int((now >= 0).sum())
    if 2 * there < count or not there:
        raise DataError(
            f"{folder}: holds only {there} of the {count} images that {path} lists: "
            f"give the folder that the run was started with, or delete that file"
        )
    changed = np.flatnonzero((now >= 0) & (now != files.sizes))
    if len(changed):
        first = int(changed[0])
        raise DataError(
            f"{folder}: {len(changed)} of the {count} images that {path} lists have another size than at"
            f" the first start (the first: {files.names[first]!r}, {files.sizes[first]} bytes then, {now[first]} now):"
            " put back the images that the run was started with, or start a new run"
        )
    return kept
