"""Parquet files with a column of encoded images, as Hugging Face datasets writes them: read by row groups.

The column holds bytes, or structs {bytes, path}. Which one it is, and which holds the labels, datasets' own description
in the files says, or else their types. A row's name is its file's and its number, "train-00000.parquet#000000017".

To read one row its whole row group is read and decompressed. So an epoch's order keeps row groups together
(`block_order`), in pools of about 256 MiB of encoded images, of which two stay in memory. Data that is no larger than a
pool is shuffled as a whole.

What stands at a file's end is looked at in a process of its own first, since pyarrow ends the one in which it meets
some kinds of damage there; of a file at a URL here.
"""

import contextlib
import io
import itertools
import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from byol_jax.data.files.encoded import EncodedImages
from byol_jax.data.files.file_list import Listing, files_of
from byol_jax.data.files.kept_list import KeptList
from byol_jax.data.order import Blocks
from byol_jax.data.readers import guarded
from byol_jax.data.readers.parquet_footer import column_sizes
from byol_jax.data.shards.find import Shard, Shards, check_lost, row_name
from byol_jax.data.unusable import UnusableImageError
from byol_jax.errors import DataError, MissingDependencyError, one_line

__all__ = ["parquet_images"]

POOL_BYTES = 2**28
"""Encoded images that are shuffled together: 2,600 photographs of 100 kB."""

LARGEST_GROUP = 2**30
"""Bytes of images in a row group: two of them may be in memory, and of 2 GiB on pyarrow can't read one."""

_LABELS = ("label", "labels")


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            'Parquet files are read by pyarrow, which is absent: pip install "byol-jax[parquet]"'
        ) from error
    return pyarrow


class _Columns(NamedTuple):
    """The column of images, that of the labels where there is one, and the classes' names where they are known."""

    image: str
    label: str | None
    class_names: tuple[str, ...] | None


class _Group(NamedTuple):
    """A row group: its file, its number in it, its first row, how many rows, and the bytes of their images."""

    file: int
    number: int
    first: int
    rows: int
    size: int


class _Table(NamedTuple):
    """A file that was opened: what pyarrow knows of it, and `column_sizes`."""

    shard: Shard
    metadata: Any
    schema: Any
    sizes: Sequence[Sequence[tuple[str, int]]]


def parquet_images(shards: Shards) -> EncodedImages:
    """The images in Parquet files.

    Raises:
        DataError: no file that can be read, no column of images or several, other columns in other files, or a row
            group that is too large.
        MissingDependencyError: pyarrow is absent.
    """
    tables, skipped = _open_tables(shards)
    columns = {table.shard.name: _find_columns(table) for table in tables}
    first = next(iter(columns.values()))
    for name, found in columns.items():
        if found != first:
            raise DataError(f"{shards.place}: {name} has other columns, {found}, than {tables[0].shard.name}, {first}")
    rows = _Rows(shards.place, tables, first)
    listing = Listing(files_of(rows.listed()), tuple(skipped), ())
    if not listing.files:
        raise DataError(f"{shards.place}: no rows in {len(tables)} Parquet files: give others")
    return EncodedImages(rows, listing, rows.read_labels, "parquet", blocks=rows.blocks)


def _open_tables(shards: Shards) -> tuple[list[_Table], list[tuple[str, str]]]:
    """The files that can be opened, and what is wrong with the others."""
    parquet, tables, skipped, lost = _pyarrow().parquet, [], [], {}
    for shard in shards.files:
        try:
            sizes = None if shard.system is not None else guarded.column_sizes(Path(shard.path))
            with parquet.ParquetFile(shard.path, filesystem=shard.system) as file:
                sizes = column_sizes(file.metadata) if sizes is None else sizes
                tables.append(_Table(shard, file.metadata, file.schema_arrow, sizes))
        except Exception as error:  # pyarrow's and the disk's
            lost[shard.name] = (shard.size, f"no Parquet file that can be read ({one_line(error, at_most=200)})")
            skipped.append((f"{shard.name}#0", lost[shard.name][1]))
    if not tables:
        raise DataError(f"{shards.place}: {skipped[0][0]}: {skipped[0][1]}")
    check_lost(shards, lost)
    return tables, skipped


def _find_columns(table: _Table) -> _Columns:
    described = _description(table.schema)
    types = {column.name: column.type for column in table.schema}
    by_kind = {
        kind: [name for name, one in described.items() if name in types and one.get("_type") == kind]
        for kind in ("Image", "ClassLabel")
    }
    images = by_kind["Image"] or [name for name, kind in types.items() if _may_be_image(kind)]
    if len(images) > 1 and "image" in images:
        images = ["image"]
    if len(images) != 1:
        listed = ", ".join(f"{name} ({kind})" for name, kind in list(types.items())[:8])
        raise DataError(
            f"{table.shard.path}: {len(images) or 'no'} columns may be the images, of {listed}: expected one of bytes,"
            " or of structs with bytes, or one named image"
        )
    labels = by_kind["ClassLabel"] or [name for name in _LABELS if name in types and _is_whole(types[name])]
    label = labels[0] if len(labels) == 1 else None
    names = described.get(label, {}).get("names") if label is not None else None
    return _Columns(images[0], label, None if names is None else tuple(map(str, names)))


def _description(schema: Any) -> dict[str, Mapping[str, Any]]:
    """What Hugging Face datasets says of the columns, by their names; nothing where it says nothing."""
    text = (schema.metadata or {}).get(b"huggingface", b"")
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        features = json.loads(text)["info"]["features"]
        return {name: one for name, one in features.items() if isinstance(one, dict)}
    return {}


def _may_be_image(kind: Any) -> bool:
    types = _pyarrow().types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_whole(kind: Any) -> bool:
    return bool(_pyarrow().types.is_integer(kind))


class _Row(NamedTuple):
    """One row's image, `row` of its row group; None where there is no such row."""

    rows: "_Rows"
    group: _Group | None
    row: int

    def open(self) -> BinaryIO:
        if self.group is None:
            raise FileNotFoundError
        return io.BytesIO(self.rows.read(self.group, self.row))


class _Rows:
    """The rows of several files.

    Args:
        place: for messages.
        tables: the files; columns: which of their columns are meant.
    """

    def __init__(self, place: str, tables: Sequence[_Table], columns: _Columns) -> None:
        self._place, self._tables, self._columns = place, tables, columns
        self._numbers = {table.shard.name: number for number, table in enumerate(tables)}
        self._groups = [list(_groups(number, table, columns.image)) for number, table in enumerate(tables)]
        groups = [group for found in self._groups for group in found]
        largest = max(groups, key=lambda group: group.size, default=None)
        if largest is not None and largest.size > LARGEST_GROUP:
            raise DataError(
                f"{tables[largest.file].shard.path}: row group {largest.number} has {largest.size / 2**30:.1f} GiB of"
                f" images in {largest.rows} rows, and one row can't be read without it: write the file with smaller row"
                " groups, 1 GiB at most (row_group_size=100 in pyarrow)"
            )
        count, size = sum(group.rows for group in groups), sum(group.size for group in groups)
        self._pool = max(1, POOL_BYTES * count // max(size, 1))
        self._cache = _Cache(2 * POOL_BYTES + 2 * (0 if largest is None else largest.size))

    def __str__(self) -> str:
        return self._place

    def __truediv__(self, name: str) -> _Row:
        group, row = self._find(name)
        return _Row(self, group, row)

    def listed(self) -> Iterator[tuple[str, int]]:
        """Names and sizes: of a row none is known but its row group's mean."""
        for group in itertools.chain.from_iterable(self._groups):
            for row in range(group.rows):
                yield self._name(group, row), group.size // group.rows

    def _name(self, group: _Group, row: int) -> str:
        table = self._tables[group.file]
        return row_name(table.shard.name, group.first + row)

    def _find(self, name: str) -> tuple[_Group | None, int]:
        shard, _, number = name.rpartition("#")
        groups = self._groups[self._numbers[shard]] if shard in self._numbers else []
        at = bisect_right(groups, int(number), key=lambda group: group.first) - 1 if number.isdigit() else -1
        if at < 0 or int(number) >= groups[at].first + groups[at].rows:
            return None, 0
        return groups[at], int(number) - groups[at].first

    def read(self, group: _Group, row: int) -> bytes:
        """An image's bytes.

        Raises:
            UnusableImageError: there are none, or the row group can't be read.
        """
        column = self._cache.get(group, self._load)
        if isinstance(column, Exception):
            raise UnusableImageError(f"its row group can't be read ({one_line(column, at_most=200)})")
        data = column[row].as_py()
        if data is None:
            raise UnusableImageError("no image: the bytes of this row are null")
        return data

    def _load(self, group: _Group) -> Any:
        """The images of a row group, or what is wrong with it, known once it was read twice.

        Raises:
            UnusableImageError: it can't be read now; a disk or a network may give it later.
        """
        with contextlib.suppress(Exception):  # pyarrow's and the disk's
            return self._column(group)
        try:
            return self._column(group)
        except Exception as error:
            if _is_damage(error, self._tables[group.file].shard):
                return error
            raise UnusableImageError(f"its row group can't be read ({one_line(error, at_most=200)})") from error

    def _column(self, group: _Group) -> Any:
        table, image = self._tables[group.file], self._columns.image
        is_struct = _pyarrow().types.is_struct(table.schema.field(image).type)
        wanted = f"{image}.bytes" if is_struct else image
        options = {"metadata": table.metadata, "filesystem": table.shard.system, "page_checksum_verification": True}
        with _pyarrow().parquet.ParquetFile(table.shard.path, **options) as file:
            column = file.read_row_group(group.number, columns=[wanted], use_threads=False).flatten().column(wanted)
        if len(column) != group.rows:  # which rows these are can't be known
            raise _pyarrow().ArrowInvalid(f"{len(column)} rows where the file's description says {group.rows}")
        return column

    def blocks(self, names: Sequence[str]) -> Blocks:
        """Row groups that are left of `names`, and how many images a pool has."""
        groups = [self._find(name)[0] for name in names]
        starts = [0, *(row for row in range(1, len(groups)) if groups[row] != groups[row - 1]), len(groups)]
        return Blocks(tuple(np.diff(starts).tolist()), self._pool)

    def read_labels(self, kept: KeptList) -> tuple[np.ndarray, tuple[str, ...] | None]:
        """The column of labels, and the classes' names where datasets wrote them.

        Raises:
            DataError: there is no such column, or a row has no label, or one beyond the classes' names.
        """
        label = self._columns.label
        if label is None:
            raise DataError(
                f"{self._place}: labels come from one column that Hugging Face datasets calls a ClassLabel, or from one"
                f" of whole numbers named {' or '.join(_LABELS)}, and there is none"
            )
        columns = [self._label_column(table, label) for table in self._tables]
        names = self._columns.class_names
        found = []
        for name in kept.files.names:
            group, row = self._find(name)
            number = None if group is None else columns[group.file][group.first + row]
            if number is None or not 0 <= number < 2**31:
                raise DataError(f"{self._place}: the label of {name!r} is {number}: expected a whole number, 0 or more")
            if names is not None and number >= len(names):
                raise DataError(
                    f"{self._place}: the label of {name!r} is {number}: expected one of the column's {len(names)}"
                    " classes"
                )
            found.append(number)
        return np.array(found, np.int32), names

    def _label_column(self, table: _Table, label: str) -> list[int | None]:
        try:
            with _pyarrow().parquet.ParquetFile(table.shard.path, filesystem=table.shard.system) as file:
                labels = file.read(columns=[label], use_threads=False).column(label).to_pylist()
        except Exception as error:  # pyarrow's and the disk's
            raise DataError(
                f"{table.shard.path}: column {label} can't be read ({one_line(error, at_most=200)})"
            ) from error
        if len(labels) != table.metadata.num_rows:
            raise DataError(
                f"{table.shard.path}: column {label} has {len(labels)} of {table.metadata.num_rows} rows: damaged"
            )
        return labels


def _is_damage(error: Exception, shard: Shard) -> bool:
    """Whether it is pyarrow's about a file's content, a plain OSError of it too, and not the disk's or a network's."""
    is_own = type(error) is OSError and error.errno is None and shard.system is None
    return is_own or isinstance(error, _pyarrow().ArrowException)


def _groups(number: int, table: _Table, image: str) -> Iterator[_Group]:
    first = 0
    for index, columns in enumerate(table.sizes):
        rows = table.metadata.row_group(index).num_rows
        size = sum(size for name, size in columns if name in (image, f"{image}.bytes"))
        if rows:
            yield _Group(number, index, first, rows, size)
        first += rows


class _Cache:
    """Row groups that were read last, as many as `capacity` bytes hold, and two in any case; for several threads."""

    def __init__(self, capacity: int) -> None:
        self._capacity, self._lock, self._entries = capacity, threading.Lock(), OrderedDict[_Group, list]()

    def get(self, group: _Group, load: Any) -> Any:
        """What `load(group)` gave; each is loaded by one thread, and others wait for it. What it raised isn't kept."""
        with self._lock:
            entry = self._entries.setdefault(group, [threading.Lock(), None])
            self._entries.move_to_end(group)
            while len(self._entries) > 2 and sum(one.size for one in self._entries) > self._capacity:
                self._entries.popitem(last=False)
        with entry[0]:
            if entry[1] is None:
                entry[1] = load(group)
            return entry[1]
