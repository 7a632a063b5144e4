"""Shards: files that hold many images each, found by a folder, a name or a pattern. What is in them: the files beside.

shards/                      a folder that holds shards of one kind and no images
shards/train-{000..146}.tar  a number for each file; {a,b} names each
shards/train-*.tar           as a shell finds them
s3://bucket/train-*.tar      the same at any URL that fsspec reads
"""

import glob
import io
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from byol_jax.data.files.image_names import ANY_EXTENSIONS, is_image_name
from byol_jax.data.member import SHARDS, shard_kind
from byol_jax.data.readers.open import READERS
from byol_jax.data.shards.splits import say_splits
from byol_jax.errors import DataError, MissingDependencyError, one_line

__all__ = ["Shard", "Shards", "Slice", "check_lost", "find_shards", "open_slice", "row_name"]

_COMPRESSED = re.compile(
    r"\.(?:tgz|tbz2?|txz|(tar|parquet|tfrecords?|array_?records?)(?:-\d+-of-\d+)?\.(?:gz|bz2|xz|zst|lz4|Z))\Z",
    re.IGNORECASE,
)
_ENDINGS = re.compile("|".join(SHARDS.values()), re.IGNORECASE)
_PATTERN, _WILD = re.compile(r"[*?\[\]{}]"), re.compile(r"[*?\[]")
_RANGE = re.compile(r"(\d+)\.\.(\d+)\Z")

_IMAGES = ANY_EXTENSIONS - READERS["npy"].extensions
"""Of files beside which shards aren't read: an .npy may hold labels."""

_MOST = 1_000_000
"""Names that a pattern may give."""


class Shard(NamedTuple):
    """A file that holds many images.

    Attributes:
        name: within the data: below the folder that was given, or that in which a pattern begins.
        path: where it lies.
        size: in bytes.
        system: what has it: a file system of fsspec's, or None for the machine's own.
    """

    name: str
    path: str
    size: int
    system: Any = None

    def open(self) -> BinaryIO:
        """The whole file."""
        return open(self.path, "rb", buffering=0) if self.system is None else self.system.open(self.path, "rb")


class Shards(NamedTuple):
    """Shards of one kind, at least one, sorted by name.

    Attributes:
        place: what a person gave, for messages.
        notes: lines for a person, on which of them are read.
    """

    kind: str
    place: str
    files: tuple[Shard, ...]
    notes: tuple[str, ...] = ()


def row_name(shard: str, number: int) -> str:
    """What a row of a shard is called; always with nine digits, so that names stay what they are when rows are added.

    Example:
        >>> row_name("train.parquet", 17)
        'train.parquet#000000017'
    """
    return f"{shard}#{number:09}"


def find_shards(source: str | Path) -> Shards | None:
    """The shards that a name or a pattern means; None where it means something else: an image, a folder of images.

    Raises:
        DataError: a pattern that fits no file, shards of several kinds or splits, compressed ones; a URL of none.
        MissingDependencyError: a URL, and fsspec or what it needs for it is absent.

    Example:
        >>> find_shards("photos/cat.jpg") is None
        True
    """
    place = os.fspath(source)
    if "://" in place:
        return _at_url(place)
    if os.path.isdir(place):
        paths = _in_folder(place)
        return _shards(place, paths, place) if paths else None
    if os.path.exists(place):
        return _shards(place, [place], os.path.dirname(place)) if _is_named_as_shard(place) else None
    pattern = _PATTERN.search(place)
    if pattern is None or not (_ENDINGS.search(place) or _COMPRESSED.search(place)):
        return None
    return _shards(place, _matching(place), os.path.dirname(place[: pattern.start()]))


def _in_folder(folder: str) -> list[str]:
    """The shards below a folder in which no image lies, compressed ones too; hidden files and folders aren't looked at.

    Raises:
        DataError: more .npy files lie there, which may be images.
    """
    paths, folders, arrays = [], [folder], 0
    while folders:
        try:
            entries = _entries(folders.pop())
        except OSError:  # one that can't be read: of a folder of images that is said later
            continue
        if entries is None:
            return []
        folders += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
        arrays += sum(is_image_name(entry.name, READERS["npy"].extensions) for entry in entries)
        paths += [entry.path for entry in entries if _is_named_as_shard(entry.name) and entry.is_file()]
    if arrays and not any(shard_kind(path) for path in paths):
        return []
    if paths and arrays > len(paths):
        raise DataError(
            f"{folder}: holds {arrays} .npy files beside {len(paths)} shards ({os.path.basename(min(paths))!r} for"
            " one), and which are the images can't be known: give a pattern for the shards, or a folder of its own to"
            " each"
        )
    return paths


def _entries(folder: str) -> list[os.DirEntry] | None:
    """What lies in a folder, but for what is hidden; None once an image is met, of a million at the first."""
    entries = []
    with os.scandir(folder) as scan:
        for entry in scan:
            if is_image_name(entry.name, _IMAGES):
                return None
            if not entry.name.startswith("."):
                entries.append(entry)
    return entries


def _is_named_as_shard(name: str) -> bool:
    return shard_kind(name) is not None or _COMPRESSED.search(name) is not None


def _matching(pattern: str) -> list[str]:
    paths: list[str] = []
    for name in itertools.islice(_braces(pattern), _MOST):
        found = glob.glob(name) if _WILD.search(name) else [name]
        if not found:
            raise DataError(f"{pattern}: no such file as {name!r}: give a pattern whose files are all there")
        for path in found:
            if not os.path.isfile(path):
                what = f"{path!r} is no file" if os.path.lexists(path) else f"no such file as {path!r}"
                raise DataError(f"{pattern}: {what}: give a pattern whose files are all there")
        paths += found
    return paths


def _at_url(place: str) -> Shards:
    """The same at a URL, by fsspec."""
    try:
        import fsspec.core

        system, paths, folder = None, [], ""
        for name in itertools.islice(_braces(place), _MOST):
            system, path = fsspec.core.url_to_fs(name)
            found = system.glob(path) if _WILD.search(path) else system.find(path)
            if not found:
                raise DataError(f"{place}: no such file as {name!r}: give a pattern whose files are all there")
            folder = _folder_at(place, path) if _PATTERN.search(place) or found == [path] else path
            paths += [one for one in found if _is_named_as_shard(one)]
        if not paths:
            raise DataError(f"{place}: no shard is there, and of a URL only shards are read: .tar, .parquet, .tfrecord")
        return _shards(place, paths, folder, system)
    except DataError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f'{place}: URLs are read by fsspec, pip install "byol-jax[fsspec]", and its packages ({one_line(error)})'
        ) from error
    except Exception as error:  # of whatever file system it is
        raise DataError(f"{place}: can't be listed ({one_line(error, at_most=200)})") from error


def _folder_at(url: str, path: str) -> str:
    """Of a path that fsspec made of a URL, the folder in which the URL's pattern begins, or that of its file."""
    pattern = _PATTERN.search(url)
    behind = "" if pattern is None else url[pattern.start() :].split("::")[0]  # the rest of a chain isn't its path
    return "/".join(path.split("/")[: -behind.count("/") - 1]) or path[: path.startswith("/")]


def _braces(pattern: str) -> Iterator[str]:
    """A shell's brace expansion: {000..146} and {a,b}; other braces are left as they are.

    Example:
        >>> list(_braces("a-{08..10}.{x,y}"))[:3]
        ['a-08.x', 'a-08.y', 'a-09.x']
    """
    for found in re.finditer(r"\{([^{}]*)\}", pattern):
        numbers = _RANGE.match(found[1])
        if numbers:
            first, last = int(numbers[1]), int(numbers[2])
            step = 1 if last >= first else -1
            parts: Any = (f"{number:0{len(numbers[1])}}" for number in range(first, last + step, step))
        elif "," in found[1]:
            parts = found[1].split(",")
        else:
            continue
        before, after = pattern[: found.start()], pattern[found.end() :]
        yield from (before + part + rest for part in parts for rest in _braces(after))
        return
    yield pattern


def _shards(place: str, paths: list[str], folder: str, system: Any = None) -> Shards:
    """Those of a folder. Raises DataError where they don't belong together, or can't be read in place."""
    paths = sorted(set(paths))
    for path in paths:
        if found := _COMPRESSED.search(path):
            kind = found[1] or "tar"
            raise DataError(f"{path}: a compressed shard can't be read in place: decompress it to a .{kind}")
        if shard_kind(path) is None:
            raise DataError(f"{place}: {path!r} isn't named as a shard: give a pattern that leaves it out")
    kinds = sorted({str(shard_kind(path)) for path in paths})
    if len(kinds) > 1:
        raise DataError(f"{place}: holds shards of {len(kinds)} kinds, {', '.join(kinds)}: give a pattern for one kind")
    names = [os.path.relpath(path, folder or os.curdir).replace(os.sep, "/") for path in paths]
    notes = say_splits(place, folder if system is None else "…", names)
    size = _size if system is None else system.size
    files = (Shard(name, path, size(path), system) for name, path in zip(names, paths, strict=True))
    return Shards(kinds[0], place, tuple(files), notes)


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise DataError(f"{path}: can't be looked at ({one_line(error, at_most=200)})") from error


def check_lost(shards: Shards, lost: Mapping[str, tuple[int, str]]) -> None:
    """Returns where enough of the shards can be read, whatever becomes of the images in them.

    Args:
        lost: by shard's name the bytes that can't be read, and why.

    Raises:
        DataError: more than half of the shards can't be read at all, or more than half of their bytes.

    Example:
        >>> shards = Shards("tar", "photos", tuple(Shard(f"{part}.tar", "", 10) for part in range(3)))
        >>> check_lost(shards, {"0.tar": (10, "damaged"), "1.tar": (5, "damaged")})
    """
    count, size = len(shards.files), sum(shard.size for shard in shards.files)
    whole = sum(shard.name in lost and lost[shard.name][0] >= shard.size for shard in shards.files)
    bytes_lost = sum(some for some, _ in lost.values())
    if 2 * whole <= count and 2 * bytes_lost <= size:
        return
    what = f"{whole} of {count} shards" if 2 * whole > count else f"{bytes_lost:,} of {size:,} bytes of {count} shards"
    some = "; ".join(f"{name!r}: {reason}" for name, (_, reason) in list(lost.items())[:3])
    more = "; …" if len(lost) > 3 else ""
    raise DataError(f"{shards.place}: {what} can't be read ({some}{more}): repair them, or give others")


class Slice(io.RawIOBase):
    """A part of a file as a file of its own, `size` bytes from `offset` on; closing it closes the file.

    Example:
        >>> Slice(io.BytesIO(b"0123456789"), 3, 4).readall()
        b'3456'
    """

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file, self._offset, self._size, self._position = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError("a place before the start")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        length = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._offset + self._position)
        found = self._file.read(length)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_slice(shard: Shard, offset: int, size: int) -> BinaryIO:
    """A part of a shard; of one on a disk no more is read than is asked for.

    Raises:
        OSError: it can't be read.
    """
    if shard.system is not None:
        try:
            return io.BytesIO(shard.system.cat_file(shard.path, start=offset, end=offset + size))
        except Exception as error:  # of whatever file system it is
            raise OSError(one_line(error, at_most=200)) from error
    return io.BufferedReader(Slice(shard.open(), offset, size))  # pyright: ignore[reportReturnType]
