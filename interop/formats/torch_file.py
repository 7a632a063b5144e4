"""PyTorch's .pt: a pickle beside raw storages, in a zip archive (since torch 1.6) or one behind another (before).

The pickle is read as data (`torch_pickle`), objects beside the weights among them. Then the tensors of the state dict,
and no others, are read from the file straight into arrays. Reading needs no torch, writing does. TorchScript and .pt2
archives hold code and are refused.
"""

import io
import os
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from byol_jax.errors import CheckpointFormatError, UnsafeCheckpointError
from interop.arrays import dtype_named, fresh_copy, import_torch, tensor_view
from interop.formats.containers import Choice, choose_weights
from interop.formats.pickle_machine import Bounded, run_pickle
from interop.formats.regular_file import read_exactly
from interop.formats.torch_pickle import Storage, Tensor, meaning_for
from interop.formats.zip_file import checked_members, member_at

__all__ = ["begins_as_legacy", "read_container", "read_torch_legacy", "read_torch_zip", "write_torch"]

LEGACY_MAGIC = re.compile(rb"\x80[\x02-\x05](\x95\x0d\0{7})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
"""The first of the five pickles that torch before 1.6 wrote (torch.serialization.MAGIC_NUMBER), in any protocol."""

LONGEST_PROGRAM = 64 << 20
"""Bytes of pickle; a network of 1,000 tensors needs about 100 kB."""

FEWEST_OPERATIONS, BYTES_AN_OPERATION = 1 << 17, 64
"""An empty list costs 64 bytes, so a pickle may have an instruction for every 64 bytes of the file's limit."""

Find = Callable[[Storage], tuple[IO[bytes], int]]
"""Where a storage's bytes begin: a stream at that position, and how many bytes there are."""


class Parts(NamedTuple):
    """A file taken apart: what its pickle holds, where each storage is, in which byte order."""

    loaded: Any
    find: Find
    order: str


def begins_as_legacy(beginning: bytes) -> bool:
    """Whether a file that begins so, with 32 bytes or more, is one that torch before 1.6 wrote."""
    return LEGACY_MAGIC.match(beginning) is not None


def read_torch_zip(
    file: IO[bytes], *, where: str, size: int, limit: int, which: str | None = None
) -> tuple[dict[str, np.ndarray], Choice]:
    """The state dict in a torch archive, and which it is; see `read_torch_legacy`."""
    return _read(_parts_of_zip(file, where=where, size=size, limit=limit), where=where, limit=limit, which=which)


def read_torch_legacy(
    file: IO[bytes], *, where: str, size: int, limit: int, which: str | None = None
) -> tuple[dict[str, np.ndarray], Choice]:
    """The state dict in a file that torch before 1.6 wrote, and which of the file's it is.

    Args:
        which: the entry to take, as in `containers.choose_weights`.

    Raises:
        UnsafeCheckpointError: objects where the weights should be, a name that runs programs, or more bytes than
            `limit`.
        CheckpointFormatError: damaged, no state dict in it, or tensors in it that aren't dense.
    """
    return _read(_parts_of_legacy(file, where=where, size=size, limit=limit), where=where, limit=limit, which=which)


def read_container(file: IO[bytes], *, where: str, size: int, limit: int) -> Any:
    """All that a torch file holds, without the tensors' values: each comes as a `torch_pickle.Tensor`.

    Raises:
        UnsafeCheckpointError, CheckpointFormatError: see `read_torch_legacy`.
    """
    legacy = begins_as_legacy(file.read(32))
    file.seek(0)
    parts = _parts_of_legacy if legacy else _parts_of_zip
    return parts(file, where=where, size=size, limit=limit).loaded


def _parts_of_zip(file: IO[bytes], *, where: str, size: int, limit: int) -> Parts:
    archive = zipfile.ZipFile(file)
    members = {m.filename: m for m in checked_members(archive, where=where, size=size, limit=limit)}
    _refuse_programs(list(members), where=where)
    (program,) = (member for name, member in members.items() if name.rpartition("/")[2] == "data.pkl")
    if program.file_size > LONGEST_PROGRAM:
        raise UnsafeCheckpointError(f"{where}: a pickle of {program.file_size} bytes is no list of weights")
    for member in members.values():
        if member.CRC:  # torch can be told to write 0 instead
            _check_sum(archive, member)
    folder = program.filename.removesuffix("data.pkl")
    text = member_at(archive, program).read(program.file_size)
    loaded = _run(io.BytesIO(text), {}, where=where, limit=limit)
    member = members.get(f"{folder}byteorder")
    order = "little" if member is None else member_at(archive, member).read(min(member.file_size, 9)).decode()
    if order not in ("little", "big"):
        raise CheckpointFormatError(f"{where}: byte order {order!r}; expected little or big")

    def find(storage: Storage) -> tuple[IO[bytes], int]:
        member = members.get(f"{folder}data/{storage.key}")
        if member is None:
            raise CheckpointFormatError(f"{where}: the storage {storage.key} is missing")
        return member_at(archive, member), member.file_size

    return Parts(loaded, find, order)


def _parts_of_legacy(file: IO[bytes], *, where: str, size: int, limit: int) -> Parts:
    program: Any = Bounded(file, min(size, LONGEST_PROGRAM))
    storages: dict[str, Storage] = {}
    _, _, system, loaded, keys = (_run(program, storages, where=where, limit=limit) for _ in range(5))
    begins: dict[str, tuple[int, int]] = {}
    for key in map(str, keys):
        length = int.from_bytes(file.read(8), "little") * dtype_named(storages[key].dtype).itemsize
        begins[key] = file.tell(), length
        file.seek(length, os.SEEK_CUR)

    def find(storage: Storage) -> tuple[IO[bytes], int]:
        if storage.key not in begins:
            raise CheckpointFormatError(f"{where}: the storage {storage.key} is missing")
        begin, length = begins[storage.key]
        file.seek(begin)
        return file, length

    big = isinstance(system, dict) and system.get("little_endian") is False
    return Parts(loaded, find, "big" if big else "little")


def _run(program: Any, storages: dict[str, Storage], *, where: str, limit: int) -> Any:
    most = max(FEWEST_OPERATIONS, limit // BYTES_AN_OPERATION)
    return run_pickle(program, meaning_for(where, storages), where=where, most=most)


def _refuse_programs(names: list[str], *, where: str) -> None:
    inner = [name.partition("/")[2] or name for name in names]
    if any(name == "constants.pkl" or name.startswith("code/") for name in inner):
        raise UnsafeCheckpointError(f"{where}: a TorchScript archive holds code; save module.state_dict() instead")
    if any(name.startswith("models/") or name == "archive_format" for name in [*inner, *names]):
        raise UnsafeCheckpointError(f"{where}: a .pt2 archive holds a program; save module.state_dict() instead")
    if inner.count("data.pkl") != 1:
        raise CheckpointFormatError(f"{where}: a zip archive, but neither torch's nor NumPy's")


def _check_sum(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    with archive.open(member) as stream:  # raises BadZipFile at the end where the check sum differs
        while stream.read(4 << 20):
            pass


def _read(parts: Parts, *, where: str, limit: int, which: str | None) -> tuple[dict[str, np.ndarray], Choice]:
    def is_tensor(value: Any) -> bool:
        return isinstance(value, Tensor)

    choice = choose_weights(parts.loaded, where=where, is_tensor=is_tensor, which=which)
    tensors: Mapping[str, Tensor] = choice.state_dict
    total = sum(max(tensor.size, tensor.reach) * dtype_named(tensor.dtype).itemsize for tensor in tensors.values())
    if total > limit:  # a few bytes seen through a stride of 0
        raise UnsafeCheckpointError(f"{where}: its tensors unfold to {total} bytes, more than {limit}")
    swapped = parts.order != sys.byteorder
    arrays = {
        name: _values(tensor, parts.find, name=f"{where}: {name}", swapped=swapped) for name, tensor in tensors.items()
    }
    return arrays, choice


def _values(tensor: Tensor, find: Find, *, name: str, swapped: bool) -> np.ndarray:
    """The tensor's numbers, read straight into their array, or where they aren't contiguous by way of a second one."""
    dtype = dtype_named(tensor.dtype)
    if tensor.size == 0:
        return np.empty(tensor.shape, dtype)
    stream, length = find(tensor.storage)
    stated = tensor.storage.count * dtype_named(tensor.storage.dtype).itemsize
    start = tensor.storage.begin * dtype_named(tensor.storage.dtype).itemsize + tensor.offset * dtype.itemsize
    if stated != length or start + tensor.reach * dtype.itemsize > stated:
        raise CheckpointFormatError(f"{name}: reaches beyond its storage, or that one isn't of the stated size")
    stream.seek(start, os.SEEK_CUR)
    array = np.empty(tensor.shape if tensor.is_contiguous else tensor.reach, dtype)
    if read_exactly(stream, array) != array.nbytes:
        raise CheckpointFormatError(f"{name}: ends too early: truncated")
    if not tensor.is_contiguous:
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        array = fresh_copy(np.lib.stride_tricks.as_strided(array, tensor.shape, strides))
    if swapped:
        array.byteswap(inplace=True)
    if tensor.conjugate:
        np.conjugate(array, out=array)
    if tensor.negative:
        np.negative(array, out=array)
    return array


def write_torch(file: IO[bytes], arrays: Mapping[str, np.ndarray], *, where: str) -> None:
    """Writes arrays as torch.save writes the tensors of a state dict; the same arrays give the same bytes.

    Raises:
        OSError: the system refused to write.
    """
    torch = import_torch()
    tensors, seen = {}, set()
    for name, array in arrays.items():  # torch refuses one memory under two types
        tensors[name] = tensor_view(fresh_copy(array) if array.ctypes.data in seen else array)
        seen.add(array.ctypes.data)
    try:
        torch.save(tensors, file)
    except RuntimeError as error:  # torch's writer hides the system's own error behind this
        raise OSError(f"{where}: {str(error).splitlines()[0]}") from error
