"""NumPy's .npz: a zip of .npy arrays, read without pickle and never extracted.

bfloat16 is stored as two opaque bytes (`|V2`), which is what `np.savez` makes of it, and read back as bfloat16. float8
would be one opaque byte whichever of its kinds it is, so it is refused.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np

from byol_jax.errors import CheckpointFormatError, UnsafeCheckpointError
from interop.arrays import DTYPE_NAMES, dtype_named
from interop.formats.regular_file import read_exactly
from interop.formats.zip_file import check_member_name, checked_members

__all__ = ["read_npz", "write_npz"]

SUFFIX = ".npy"
CHUNK = 4 << 20
"""Bytes that are turned into C order at a time."""

LONGEST_HEADER = 1 << 16
"""Bytes at a member's beginning within which its header must end; NumPy refuses headers of more than 10,000 characters,
but only after unpacking them."""

LONGEST_NAME = 60_000
"""A zip member's name has 16 bits for its length."""


def read_npz(file: IO[bytes], *, where: str, size: int, limit: int) -> dict[str, np.ndarray]:
    """All arrays of an .npz, as they are stored.

    Raises:
        UnsafeCheckpointError: objects, duplicate names, names that lead out of the archive, more bytes than `limit`.
        CheckpointFormatError: damaged, or something else than arrays of numbers.
    """
    with zipfile.ZipFile(file) as archive:
        members = checked_members(archive, where=where, size=size, limit=limit)
        strange = [member.filename for member in members if not member.filename.endswith(SUFFIX)]
        if strange:
            raise CheckpointFormatError(f"{where}: {strange[0]} is no {SUFFIX} array")
        arrays = {}
        for member in members:
            name = member.filename.removesuffix(SUFFIX)
            with archive.open(member) as stream:
                arrays[name] = _read_array(stream, name=f"{where}: {name}", size=member.file_size)
    return arrays


def _read_array(stream: IO[bytes], *, name: str, size: int) -> np.ndarray:
    beginning = io.BytesIO(stream.read(LONGEST_HEADER))
    version = np.lib.format.read_magic(beginning)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise CheckpointFormatError(f"{name}: .npy version {version}; expected 1.0 or 2.0")
    shape, fortran_order, dtype = readers[version](beginning)
    dtype = _checked_dtype(dtype, name=name)
    if any(type(side) is not int or side < 0 for side in shape):
        raise CheckpointFormatError(f"{name}: impossible shape {shape}")
    expected, available = math.prod(shape) * dtype.itemsize, size - beginning.tell()
    if expected != available:  # before anything is allocated
        raise CheckpointFormatError(f"{name}: {available} bytes of data where {shape} {dtype} needs {expected}")
    array = np.empty(shape, dtype.newbyteorder("="))
    fill = _fill_fortran if fortran_order else _fill
    if fill(array, beginning, stream) != expected:
        raise CheckpointFormatError(f"{name}: fewer than the {expected} bytes that it states")
    return array if dtype.isnative else array.byteswap(inplace=True)


def _fill(array: np.ndarray, *streams: IO[bytes]) -> int:
    """Reads one stream after another into a contiguous array; returns how many bytes came, at most those that fit."""
    room, done = array.reshape(-1).view(np.uint8), 0
    for stream in streams:
        done += read_exactly(stream, room[done:])
    return done


def _fill_fortran(array: np.ndarray, *streams: IO[bytes]) -> int:
    """As `_fill`, from numbers whose first index runs fastest, piece by piece: the array is never held twice."""
    stored, done = array.T.flat, 0
    piece = np.empty(CHUNK // array.itemsize, array.dtype)
    for start in range(0, array.size, len(piece)):
        piece = piece[: array.size - start]
        done += _fill(piece, *streams)
        stored[start : start + len(piece)] = piece
    return done


def _checked_dtype(dtype: np.dtype, *, name: str) -> np.dtype:
    if dtype.hasobject:
        raise UnsafeCheckpointError(f"{name}: an array of Python objects; expected numbers")
    if dtype == np.dtype("V2"):
        return dtype_named("bfloat16")
    if dtype.name not in DTYPE_NAMES:
        raise CheckpointFormatError(f"{name}: {dtype} is no type for weights")
    return dtype


def write_npz(file: IO[bytes], arrays: Mapping[str, np.ndarray], *, where: str) -> None:
    """Writes contiguous arrays; the same arrays give the same bytes (no time of day is stored).

    Raises:
        CheckpointFormatError, UnsafeCheckpointError: a name or a type that the format can't hold.
    """
    for name, array in arrays.items():
        check_member_name(name, where=where)
        if array.dtype.name.startswith("float8"):
            raise CheckpointFormatError(
                f"{where}: {name}: .npz can't tell {array.dtype} apart; use .safetensors or .pt"
            )
        if len(name.encode()) > LONGEST_NAME:
            raise CheckpointFormatError(f"{where}: a name of {len(name)} characters is too long for .npz")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            plain = array.view("V2") if array.dtype.name == "bfloat16" else array
            with archive.open(zipfile.ZipInfo(name + SUFFIX), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, plain, allow_pickle=False)
