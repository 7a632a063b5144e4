"""Rows of numbers with their names and labels, written as they come: .npy, .npz, .parquet and .csv.

    with open_rows(path, about) as write:
        write(features, numbers)  # [n, …] float32, and which rows of the whole they are, [n]

Memory holds a batch (of .parquet some, one row group), however many rows there are, beside what is known of the whole.
The file has its name when it is complete; a run that ends before leaves nothing.
"""

import contextlib
import csv
import importlib.util
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from byol_jax import disk
from byol_jax.cli.values import paths_beside
from byol_jax.errors import DataError, MissingDependencyError

__all__ = ["About", "Write", "check_format", "open_rows"]

GROUP_BYTES = 32 * 2**20
"""Of embeddings in a row group of Parquet: read as a whole, and held in memory until it is written."""

NAMES_AT_A_TIME = 1_000
"""Of an .npz, which holds each in four bytes a character of the longest."""

Write = Callable[[np.ndarray, np.ndarray], None]
"""`write(rows [n, …], numbers [n])`."""


@dataclass(frozen=True)
class About:
    """What is known of the whole, whose rows may come in part: `names` [N] and `labels` [N], or None."""

    names: Sequence[str] | None
    labels: np.ndarray | None
    class_names: Sequence[str] | None

    def names_of(self, numbers: np.ndarray) -> list[str]:
        """The names of these rows; empty where there are none."""
        return [] if self.names is None else [self.names[int(row)] for row in numbers]

    @property
    def kinds(self) -> list[str]:
        """ "names" and "labels", those that there are."""
        return [kind for kind, known in (("names", self.names), ("labels", self.labels)) if known is not None]

    def words_of(self, kind: str, numbers: np.ndarray) -> list[str]:
        """The names of these rows, or their labels: of each its class's name, its number where classes have none."""
        if kind == "names":
            return self.names_of(numbers)
        columns = self.columns_of(numbers)
        return [str(value) for value in columns.get("class", columns["label"])]

    def columns_of(self, numbers: np.ndarray) -> dict[str, list]:
        """Columns `name`, `label` and `class` of these rows, those that there are."""
        columns: dict[str, list] = {}
        if self.names is not None:  # in Unicode: a file name's other bytes as escape sequences
            columns["name"] = [name.encode("utf-8", "backslashreplace").decode() for name in self.names_of(numbers)]
        if self.labels is not None:
            columns["label"] = labels = self.labels[numbers].tolist()
            if self.class_names is not None:
                columns["class"] = [self.class_names[label] for label in labels]
        return columns


def check_format(path: Path) -> None:
    """Returns where a file of this name can be written, without its library being loaded.

    Raises:
        MissingDependencyError: it isn't installed.
    """
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingDependencyError(
            f'{path}: writing .parquet needs pyarrow: pip install "byol-jax[parquet]" (.npz, .npy and .csv do without)'
        )


@contextlib.contextmanager
def open_rows(path: Path, about: About) -> Iterator[Write]:
    """A function that writes rows; when the context ends without an error, the file is complete and has its name.

    Args:
        path: its suffix decides the format. An old file is replaced in one instant, an .npy with the texts beside
            it.
        about: what is known of the whole.

    Raises:
        DataError: no row was written, or rows of another shape than the first; an .npy that is a link to another
            folder than its names'.
        OSError: the system refused; it names `path`.
    """
    write_as = {".npy": _npy, ".npz": _npz, ".parquet": _parquet, ".csv": _csv}[path.suffix.lower()]
    shapes: set[tuple[int, ...]] = set()

    def checked(write: Write, rows: np.ndarray, numbers: np.ndarray) -> None:
        shapes.add(rows.shape[1:])
        if len(shapes) > 1:
            raise DataError(f"rows of shape {rows.shape[1:]} behind others: expected one shape")
        write(rows, numbers)

    try:
        with _replacement(path, about) as temporary, write_as(temporary, about) as write:
            yield partial(checked, write)
            if not shapes:
                raise DataError("no images to embed: expected at least one")
    except OSError as error:
        inside = error.filename is None or disk.is_temporary(Path(os.fsdecode(error.filename)).parent)
        if not inside:  # somebody else's file, met while the rows were made
            raise
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


@contextlib.contextmanager
def _npy(path: Path, about: About) -> Iterator[Write]:
    """Rows one after another behind a header that is written again with their number; texts beside it."""
    with contextlib.ExitStack() as stack:
        stream = _Stream(stack.enter_context(open(path, "wb")))
        texts = {kind: stack.enter_context(open(path.with_name(kind), "wb")) for kind in about.kinds}

        def write(rows: np.ndarray, numbers: np.ndarray) -> None:
            stream.write(rows)
            for kind, file in texts.items():
                file.writelines(_printable(word).encode() + b"\n" for word in about.words_of(kind, numbers))

        yield write
        stream.finish()


@contextlib.contextmanager
def _npz(path: Path, about: About) -> Iterator[Write]:
    """An .npy of the rows, copied into the archive when it is complete, beside what is known of them."""
    embeddings = path.with_name("embeddings.npy")
    numbers_kept: list[np.ndarray] = []
    with open(embeddings, "w+b") as file:
        stream = _Stream(file)

        def write(rows: np.ndarray, numbers: np.ndarray) -> None:
            stream.write(rows)
            numbers_kept.append(numbers)

        yield write
        stream.finish()
        file.seek(0)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("embeddings.npy", "w", force_zip64=True) as member:
                shutil.copyfileobj(file, member, 2**20)
            numbers = np.concatenate(numbers_kept)
            if about.names is not None:
                with archive.open("names.npy", "w", force_zip64=True) as member:
                    _write_names(member, about, numbers)
            for name, array in _arrays(about, numbers).items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    embeddings.unlink()


@contextlib.contextmanager
def _parquet(path: Path, about: About) -> Iterator[Write]:
    """Columns `name`, `label` and `class` where known, and `embedding`: a list of fixed length, or a tensor."""
    import pyarrow as pa
    from pyarrow import parquet

    types = {"name": pa.string(), "label": pa.int32(), "class": pa.string()}
    waiting: list[Any] = []
    with contextlib.ExitStack() as stack:
        writers: list[Any] = []

        def flush() -> None:
            writers[0].write_table(pa.Table.from_batches(waiting))
            waiting.clear()

        def write(rows: np.ndarray, numbers: np.ndarray) -> None:
            columns = {key: pa.array(values, types[key]) for key, values in about.columns_of(numbers).items()}
            batch = pa.record_batch(columns | {"embedding": _arrow(pa, rows)})
            if not writers:
                options: dict[str, Any] = {"use_dictionary": [key for key in columns if key == "class"]}
                writers.append(stack.enter_context(parquet.ParquetWriter(path, batch.schema, **options)))
            waiting.append(batch)
            if sum(one.nbytes for one in waiting) >= GROUP_BYTES:
                flush()

        yield write
        if waiting:
            flush()


def _arrow(pa: Any, rows: np.ndarray) -> Any:
    """Rows [n, …] as an Arrow array of n lists, or of n tensors where they have several axes."""
    flat = pa.array(np.ascontiguousarray(rows).reshape(-1))
    lists = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(rows.shape[1:])))
    if rows.ndim == 2:
        return lists
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), rows.shape[1:]), lists)


@contextlib.contextmanager
def _csv(path: Path, about: About) -> Iterator[Write]:
    """A line a row: `name`, `label` and `class` where known, then the numbers, in the fewest digits that tell them."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        started: list[bool] = []

        def write(rows: np.ndarray, numbers: np.ndarray) -> None:
            columns = about.columns_of(numbers)
            if not started:
                started.append(True)
                lines.writerow([*columns, *range(rows.shape[1])])
            lines.writerows([*known, *row] for *known, row in zip(*columns.values(), rows.astype(str), strict=True))

        yield write


@dataclass
class _Stream:
    """An .npy file of as many float32 rows as come."""

    file: BinaryIO
    count: int = 0
    row_shape: tuple[int, ...] = ()
    header_size: int = 0

    def write(self, rows: np.ndarray) -> None:
        if not self.header_size:
            self.row_shape = rows.shape[1:]
            self.header_size = self._write_header()
        self.file.write(np.ascontiguousarray(rows, np.float32).data)
        self.count += len(rows)

    def finish(self) -> None:
        """The header again, with the number of rows; NumPy leaves room for it."""
        self.file.seek(0)
        if self._write_header() != self.header_size:
            raise AssertionError("NumPy's header has changed its size with the number of rows")
        self.file.flush()

    def _write_header(self) -> int:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.count, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self.file, header)
        return self.file.tell()


def _write_names(file: Any, about: About, numbers: np.ndarray) -> None:
    """An .npy of the names, all as wide as the longest, part by part: as a whole one long name would take gigabytes."""
    parts = [numbers[start : start + NAMES_AT_A_TIME] for start in range(0, len(numbers), NAMES_AT_A_TIME)]
    width = max(1, *(len(name) for part in parts for name in about.names_of(part)))
    dtype = np.dtype((np.str_, width))
    header = {"descr": dtype.str, "fortran_order": False, "shape": (len(numbers),)}
    np.lib.format.write_array_header_1_0(file, header)
    for part in parts:
        file.write(np.asarray(about.names_of(part), dtype).tobytes())


def _arrays(about: About, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """What an .npz holds beside rows and names; nothing in it needs pickle."""
    arrays = {}
    if about.labels is not None:
        arrays["labels"] = about.labels[numbers]
    if about.class_names is not None:
        arrays["class_names"] = np.asarray(about.class_names, dtype=np.str_)
    return arrays


@contextlib.contextmanager
def _replacement(path: Path, about: About) -> Iterator[Path]:
    """As `disk.replacement`; with it come the texts of these rows; those of an earlier run's that have none go."""
    beside, target = paths_beside(path), Path(os.path.realpath(path))
    if not beside:
        with disk.replacement(path) as temporary:
            yield temporary
        return
    if target.parent != Path(os.path.realpath(path.parent)):
        raise DataError(f"{path}: a link to {target}, and the names lie beside it: give that file itself")
    outdated = [beside[kind] for kind in beside if kind not in about.kinds]
    with disk.replacements([*(beside[kind] for kind in about.kinds), target], outdated) as temporaries:
        *texts, rows = temporaries
        yield rows
        for kind, text in zip(about.kinds, texts, strict=True):
            os.replace(rows.with_name(kind), text)


def _printable(name: str) -> str:
    """A name in one line: a character that would break it, or can't be printed, as its escape sequence."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(name))
