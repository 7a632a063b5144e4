"""The safetensors format: 8 bytes of header length, a JSON header, the tensors' bytes one after another.

The header is checked here entry by entry before the safetensors library sees the file: lengths, offsets, overlaps,
duplicate names, all that an attacker needs. The library then has to accept it too.
"""

import json
import math
import struct
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import numpy as np

from byol_jax.errors import CheckpointFormatError, UnsafeCheckpointError
from interop.arrays import dtype_named
from interop.formats.regular_file import read_exactly

__all__ = ["FORMAT", "looks_like_safetensors", "read_header", "read_safetensors", "strict_json", "write_safetensors"]

LONGEST_HEADER = 8 << 20
"""8 MiB is some 70,000 tensors, and at most 256 MiB of parsed JSON (31 bytes for one, measured); the format's own limit
(100 MB) would let a file cost gigabytes."""

DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "C64": "complex64",
}


FORMAT = MappingProxyType({"format": "pt"})
"""The metadata of a file of torch's names, as other writers have it."""


class Entry(NamedTuple):
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class Header(NamedTuple):
    """What a header says: `end` is where the tensors' bytes begin, `metadata` text about the whole file."""

    entries: list[Entry]
    end: int
    metadata: dict[str, str]


def looks_like_safetensors(beginning: bytes) -> bool:
    """Whether a file that begins so can be one: its header is a JSON object."""
    return beginning[8:9] == b"{"


def read_safetensors(file: IO[bytes], *, where: str, size: int) -> dict[str, np.ndarray]:
    """All tensors of a file, as they are stored, each read straight into memory of its own.

    Raises:
        UnsafeCheckpointError: absurd header length, offsets outside the file or overlapping, a name given twice.
        CheckpointFormatError: truncated, not the format, or a type that NumPy can't hold.
    """
    header = read_header(file, where=where, size=size)
    arrays = {}
    for entry in header.entries:
        array = np.empty(entry.shape, entry.dtype)
        file.seek(header.end + entry.start)
        if read_exactly(file, array) != array.nbytes:
            raise CheckpointFormatError(f"{where}: {entry.name} ends too early: truncated")
        arrays[entry.name] = array if sys.byteorder == "little" else array.byteswap(inplace=True)
    return arrays


def read_header(file: IO[bytes], *, where: str, size: int) -> Header:
    """What a file's header says that it holds, after all checks; no tensor is read.

    Raises:
        UnsafeCheckpointError, CheckpointFormatError: see `read_safetensors`.
    """
    (length,) = struct.unpack("<Q", file.read(8))
    if length > LONGEST_HEADER:
        raise UnsafeCheckpointError(f"{where}: states a header of {length} bytes; at most {LONGEST_HEADER} are read")
    if length > size - 8:
        raise CheckpointFormatError(f"{where}: ends in the middle of its header: truncated")
    fields = strict_json(file.read(length), where=where)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointFormatError(f"{where}: __metadata__ must hold text only")
    entries = [_entry(name, entry, where=where) for name, entry in fields.items()]
    _check_offsets(entries, where=where, available=size - 8 - length)
    _check_with_library(file.name, where=where)
    return Header(entries, 8 + length, metadata)


def strict_json(text: bytes, *, where: str) -> dict[str, Any]:
    """A JSON object in which no name occurs twice.

    Raises:
        UnsafeCheckpointError: a name given twice; readers differ in which of the two they believe.
        CheckpointFormatError: no JSON, or no object.
    """
    try:
        content = json.loads(text.decode(), object_pairs_hook=lambda pairs: _unique(pairs, where=where))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointFormatError(f"{where}: the header is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointFormatError(f"{where}: the header is no JSON object")
    return content


def _unique(pairs: list[tuple[str, Any]], *, where: str) -> dict[str, Any]:
    unique: dict[str, Any] = {}
    for name, value in pairs:
        if name in unique:
            raise UnsafeCheckpointError(f"{where}: the header gives {name!r} twice; expected every name once")
        unique[name] = value
    return unique


def _entry(name: str, fields: Any, *, where: str) -> Entry:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointFormatError(f"{where}: {name}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointFormatError(f"{where}: {name}: type {dtype!r} isn't supported; use one of {', '.join(DTYPES)}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise UnsafeCheckpointError(f"{where}: {name}: shape {shape} or offsets {offsets} are no sizes")
    numpy_dtype = dtype_named(DTYPES[dtype])
    start, stop = offsets
    expected = math.prod(shape) * numpy_dtype.itemsize
    if stop - start != expected:
        raise UnsafeCheckpointError(f"{where}: {name}: {stop - start} bytes where {shape} {dtype} needs {expected}")
    return Entry(name, numpy_dtype, tuple(shape), start, stop)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _check_offsets(entries: list[Entry], *, where: str, available: int) -> None:
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.start < end:
            raise UnsafeCheckpointError(f"{where}: {entry.name} overlaps another tensor")
        if entry.start > end:
            raise UnsafeCheckpointError(f"{where}: {entry.start - end} bytes before {entry.name} belong to no tensor")
        end = entry.stop
    if end > available:
        raise CheckpointFormatError(f"{where}: holds {available} bytes of the {end} that its header states: truncated")
    if end < available:
        raise UnsafeCheckpointError(f"{where}: {available - end} bytes at the end belong to no tensor")


def _check_with_library(path: str, *, where: str) -> None:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="np"):
            pass
    except safetensors.SafetensorError as error:
        raise CheckpointFormatError(f"{where}: refused by the safetensors library: {error}") from error


def write_safetensors(
    path: str, arrays: Mapping[str, np.ndarray], *, where: str, metadata: Mapping[str, str] = FORMAT
) -> None:
    """Writes contiguous arrays to `path`; the same arrays give the same bytes, but for the order of several `metadata`.

    Raises:
        CheckpointFormatError: a name or a type that the format can't hold.
        OSError: the system refused to write.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    for name, array in arrays.items():
        if name == "__metadata__":
            raise CheckpointFormatError(f"{where}: safetensors reserves the name __metadata__")
        if array.dtype.name not in DTYPES.values():
            raise CheckpointFormatError(f"{where}: {name}: safetensors can't hold {array.dtype}; use .pt or .npz")
    try:
        save_file(dict(arrays), path, metadata=dict(metadata))
    except SafetensorError as error:  # all else was checked: the disk is full, or the like
        raise OSError(f"{where}: {error}") from error
