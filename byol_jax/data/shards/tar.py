"""Tar shards in WebDataset's layout: indexed once, read where they lie, never unpacked.

A sample is a run of members whose names agree up to the first dot of their last part: photos/0001.jpg and
photos/0001.cls are one. Its image is the member whose extension is an image's; one with more before it, 0001.seg.png,
is an image only where no member of the sample has a plain extension (and so is 2024.05.01.jpg of a tar that nobody made
for WebDataset). Its label is the whole number in .cls, or where there is none the "label" in .json.
"""

import itertools
import json
import tarfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from byol_jax.data.files.encoded import EncodedImages
from byol_jax.data.files.file_list import Files, Listing, size_and_time
from byol_jax.data.files.image_names import is_image_name, is_unread_name
from byol_jax.data.files.kept_list import KeptList, rows_of
from byol_jax.data.shards.find import Shard, Shards, check_lost, open_slice
from byol_jax.data.shards.tar_entries import Entry, read_entries
from byol_jax.data.shards.tar_index import COLUMNS, ShardIndex, Stamp, encode_indices, read_indices
from byol_jax.data.unusable import UnusableImageError
from byol_jax.errors import DataError, one_line

__all__ = ["tar_images"]

SETTLED = 2 * 10**9
"""Nanoseconds after its last change from which on a shard's next change shows in its time: file systems count in up to
2 s."""

_LONGEST_NAME = 100
"""Characters that a header has room for."""

LOOKED_AT = 16
"""Members' headers that are compared with an index before it is believed."""


class _Look(NamedTuple):
    """What lies in a shard, and the shard's stamp; None where it isn't known, or what was found isn't to be kept."""

    index: ShardIndex
    stamp: Stamp | None


def _look(shard: Shard, known: Mapping[str, tuple[Stamp, ShardIndex]]) -> _Look:
    """What lies in a shard: what is known of it, where it hasn't changed since."""
    stamp = _stamp(shard)  # before it is read: what changes meanwhile isn't the file that this is the stamp of
    if stamp is not None and shard.name in known:
        then, index = known[shard.name]
        if then == stamp and _is_of(index, shard):
            return _Look(index, stamp)
    try:
        with shard.open() as file:
            found = list(_entries(read_entries(file)))
    except Exception as error:  # the disk's, or of whatever file system it is; it may read it the next time
        reason = f"can't be read ({one_line(error, at_most=200)})"
        return _Look(ShardIndex((), _rows([]), ((f"{shard.name}#0", reason),), (), (shard.size,)), None)
    return _Look(_index(shard, found), stamp)


def _stamp(shard: Shard) -> Stamp | None:
    """None where it wouldn't show that the shard changes: by its time it was changed just now, or it has no time."""
    if shard.system is not None:
        return None
    try:
        stamp = size_and_time(shard.path)
    except UnusableImageError:
        return None
    return stamp if stamp[1] < time.time_ns() - SETTLED else None


def _is_of(index: ShardIndex, shard: Shard) -> bool:
    """Whether some of the members, the first and the last among them, begin where the index says, with these sizes and
    names: tars often have equal sizes, and those that a build makes equal times."""
    count = len(index.names)
    rows = {round(place) for place in np.linspace(0, count - 1, min(count, LOOKED_AT))}
    names = {row: index.names[row].removeprefix(f"{shard.name}/") for row in rows}
    try:
        with shard.open() as file:
            return all(_begins_at(file, index.places[row], name) for row, name in names.items())
    except (OSError, ValueError, tarfile.TarError):
        return False


def _begins_at(file: BinaryIO, place: np.ndarray, name: str) -> bool:
    """Whether the header before a member's bytes is its own. Longer names, and such as aren't ASCII, stand in another
    one before it, which isn't looked for."""
    start, size = place[:2].tolist()
    file.seek(start - tarfile.BLOCKSIZE)
    header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    return header.size == size and (header.name == name or len(name) >= _LONGEST_NAME or not name.isascii())


def _rows(numbers: Sequence[tuple[int, int, int, int, bool]]) -> np.ndarray:
    return np.array(numbers, np.int64).reshape(-1, COLUMNS)


def _index(shard: Shard, found: list[Entry]) -> ShardIndex:
    """What the entries of a shard come to. Raises DataError for a sample of several images."""
    names: dict[str, None] = {}
    places: list[tuple[int, int, int, int, bool]] = []
    skipped: list[tuple[str, str]] = []
    parts: list[str] = []
    entries = [entry for entry in found if entry.name]
    for key, sample in itertools.groupby(entries, key=lambda entry: _split(entry.name)[0]):
        members = list(sample)
        images = [entry for entry in members if is_image_name(entry.name)]
        plain = [entry for entry in images if "." not in _split(entry.name)[1]]
        if len(plain) > 1:
            raise DataError(
                f"{shard.path}: sample {key!r} has {len(plain)} images, {plain[0].name!r} and {plain[1].name!r}: which"
                " one is meant can't be known: leave one in it, or give the others an extension such as .mask.png"
            )
        label = _label_member(members)
        parts.extend(f"{shard.name}/{entry.name}" for entry in images if plain and entry not in plain)
        for entry in plain or images:
            name = f"{shard.name}/{entry.name}"
            if entry.reason is not None:
                skipped.append((name, entry.reason))
            elif name in names:
                skipped.append((f"{shard.name}#{entry.offset}", f"a second member named {entry.name!r}"))
            else:
                names[name] = None
                places.append((entry.offset, entry.size, *label))
        if not images:
            unread = [entry.name for entry in members if is_unread_name(entry.name)]
            skipped.extend((f"{shard.name}/{name}", "images of this kind aren't read") for name in unread)
    damaged = [entry for entry in found if not entry.name]
    skipped.extend((f"{shard.name}#{entry.offset}", str(entry.reason)) for entry in damaged)
    lost = tuple(entry.size for entry in damaged)
    return ShardIndex(tuple(names), _rows(places), tuple(skipped), tuple(parts), lost)


def _entries(entries: Iterable[Entry]) -> Iterator[Entry]:
    """Without a "./" before the names, as `tar -C folder .` writes them."""
    return (entry._replace(name=entry.name.removeprefix("./").lstrip("/")) for entry in entries)


def _split(name: str) -> tuple[str, str]:
    """Key and extension: all that stands before and behind the first dot of the last part.

    Example:
        >>> _split("photos/0001.seg.png")
        ('photos/0001', 'seg.png')
    """
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension


class _Place(NamedTuple):
    """Some bytes of a shard."""

    shard: Shard
    offset: int
    size: int

    def open(self) -> BinaryIO:
        return open_slice(self.shard, self.offset, self.size)


class _Nowhere:
    def open(self) -> BinaryIO:
        raise FileNotFoundError


class _Members:
    """Where each name's bytes lie in the shards: numbers in arrays, since there may be millions.

    Args:
        place: for messages. files: the shards.
        indices: of each shard.
    """

    def __init__(self, place: str, files: Sequence[Shard], indices: Sequence[ShardIndex]) -> None:
        self._place, self._files = place, files
        names = [name for index in indices for name in index.names]
        order = sorted(range(len(names)), key=names.__getitem__)
        self.names = tuple(names[row] for row in order)
        self._shards = np.repeat(np.arange(len(files)), [len(index.names) for index in indices])[order]
        places = np.concatenate([index.places for index in indices])[order]  # [n, 5]
        self._places, self._labels = places[:, :2], places[:, 2:]

    def __str__(self) -> str:
        return self._place

    def __truediv__(self, name: str) -> _Place | _Nowhere:
        row = self._row(name)
        return _Nowhere() if row is None else self._at(row, self._places)

    def _row(self, name: str) -> int | None:
        row = bisect_left(self.names, name)
        return row if row < len(self.names) and self.names[row] == name else None

    def _at(self, row: int, places: np.ndarray) -> _Place:
        offset, size = places[row, :2]
        return _Place(self._files[self._shards[row]], int(offset), int(size))

    def files(self) -> Files:
        return Files(self.names, self._places[:, 1])

    def _label(self, row: int) -> int | None:
        """What an image's .cls or .json says; None where that is a .json without a label.

        Raises:
            DataError: it can't be read, or says something else than a whole number.
        """
        is_json = bool(self._labels[row, 2])
        member = f"{self._place}: the {'.json' if is_json else '.cls'} beside {self.names[row]!r}"
        try:
            with self._at(row, self._labels).open() as file:
                text = file.read(_LONGEST_JSON if is_json else _LONGEST_CLS)
        except OSError as error:
            raise DataError(f"{member} can't be read ({one_line(error, at_most=200)})") from error
        found = _of_json(text) if is_json else _of_cls(text)
        if found is None or (type(found) is int and 0 <= found < 2**31):
            return found
        wanted = 'a whole number, 0 or more, as its "label"' if is_json else "a whole number, 0 or more, as text"
        raise DataError(f"{member} holds {one_line(repr(found), at_most=80)}: expected {wanted}")

    def _check_labelled(self, names: Sequence[str], without: Sequence[str]) -> None:
        if without:
            raise DataError(
                f'{self._place}: labels come from members named KEY.cls, or from "label" in KEY.json, and'
                f" {len(without)} of {len(names)} images have none beside them (the first: {without[0]!r}): give shards"
                " in which every sample has one"
            )

    def read_labels(self, kept: KeptList) -> tuple[np.ndarray, None]:
        """The whole numbers in the samples' .cls, or .json.

        Raises:
            DataError: some sample has none, or something else is in it.
        """
        names, rows = kept.files.names, rows_of(kept.files.names, self.names)
        has_label = (rows >= 0) & (self._labels[rows, 0] >= 0)
        self._check_labelled(names, [*itertools.compress(names, ~has_label)])  # before any is read
        with ThreadPoolExecutor(_LABELS_AT_ONCE) as pool:
            labels = [*pool.map(self._label, rows.tolist())]
        self._check_labelled(names, [name for name, label in zip(names, labels, strict=True) if label is None])
        return np.array(labels, np.int32), None


_LABELS_AT_ONCE = 8
"""Requests, where shards lie at a URL."""

_LONGEST_CLS, _LONGEST_JSON = 64, 2**20
"""Bytes that are read of each."""


def _label_member(sample: Sequence[Entry]) -> tuple[int, int, bool]:
    """Where a sample's label lies, and whether in a .json; its .cls comes first. Offset -1 where there is neither."""
    found = {_split(entry.name)[1].lower(): entry for entry in reversed(sample)}
    extension = next((one for one in ("cls", "json") if one in found), None)
    return (-1, 0, False) if extension is None else (*found[extension][1:3], extension == "json")


def _of_cls(text: bytes) -> int | bytes:
    """The number that a .cls holds, or what it holds instead."""
    stripped = text.strip()
    return int(stripped) if stripped.isdigit() else text


def _of_json(text: bytes) -> Any:
    """What a .json has as "label", None where it has nothing so named; or what it is, where that is no object."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):  # cut short or damaged
        return text
    return content.get("label") if isinstance(content, dict) else content


def tar_images(
    shards: Shards,
    *,
    workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
    known: Path | None = None,
) -> EncodedImages:
    """The images in tar shards, by "shard.tar/member".

    Args:
        shards: of the kind "tar".
        workers: threads. progress: `progress(shards done, shards)`.
        known: what an earlier start kept of them, if the file is there and whole.

    Raises:
        DataError: no image in them, a sample that has several, or more than half of them can't be read.
    """
    content, by_name = read_indices(known)
    looks: list[_Look] = []
    with ThreadPoolExecutor(workers) as pool:
        for look in pool.map(lambda shard: _look(shard, by_name), shards.files):
            looks.append(look)
            if progress is not None:
                progress(len(looks), len(shards.files))
    indices = [look.index for look in looks]
    stamps = {shard.name: look.stamp for shard, look in zip(shards.files, looks, strict=True) if look.stamp}
    if stamps != {name: stamp for name, (stamp, _) in by_name.items()}:
        kept = zip(shards.files, looks, strict=True)
        content = encode_indices((shard.name, look.stamp, look.index) for shard, look in kept if look.stamp)
    members = _Members(shards.place, shards.files, indices)
    skipped = tuple(sorted(pair for index in indices for pair in index.skipped))
    if not members.names:
        some = "; ".join(f"{name!r}: {reason}" for name, reason in skipped[:3])
        raise DataError(
            f"{shards.place}: no image can be had of {len(shards.files)} tar file{'s' * (len(shards.files) > 1)} ("
            + (some or "no member is named as one: .jpg .png .webp .bmp .tif .gif")
            + "): give other shards"
        )
    lost = {shard.name: sum(index.lost) for shard, index in zip(shards.files, indices, strict=True)}
    check_lost(shards, {name: (size, "damaged, or can't be read") for name, size in lost.items() if size})
    parts = [name for index in indices for name in index.parts]
    remarks: tuple[str, ...] = ()
    if parts:
        remarks = (
            f"{len(parts)} members named as images aren't used, parts of samples that have another image; the first:"
            f" {parts[0]!r}",
        )
    listing = Listing(members.files(), skipped, ())
    return EncodedImages(
        members, listing, members.read_labels, "tar", remarks=remarks, kept={".index": content} if stamps else {}
    )
