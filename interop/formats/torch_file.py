"""PyTorch's .pt: a pickle beside raw storages, in a zip archive (since torch 1.6) or one behind another (before).

The pickle's program is read, not run, and must name nothing but the few functions that rebuild dense tensors. Only
then torch loads it, with `weights_only=True`; there is no fall-back to a full unpickle. TorchScript and .pt2 archives
hold code and are refused.
"""

import io
import pickletools
import re
import zipfile
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from byol_jax.errors import CheckpointFormatError, UnsafeCheckpointError
from interop.arrays import as_numpy, as_tensor, import_torch
from interop.containers import find_state_dict
from interop.formats.zip_file import checked_members

__all__ = ["LEGACY_MAGIC", "read_torch_legacy", "read_torch_zip", "write_torch"]

LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The first of the five pickles that torch before 1.6 wrote (torch.serialization.MAGIC_NUMBER in protocol 2)."""

LEGACY_PICKLES = 5

LONGEST_PROGRAM = 64 << 20
"""Bytes of pickle; a network of 1,000 tensors needs about 100 kB."""

HARMLESS = re.compile(
    r"collections (OrderedDict|defaultdict|Counter)|(builtins|__builtin__) (set|bytearray|complex|dict|list|int|float)"
    r"|_codecs encode|torch\._utils _rebuild_(tensor|tensor_v[23]|parameter|parameter_with_state)"
    r"|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter Parameter|torch\.serialization _get_layout"
    r"|torch(\.storage)? [A-Za-z0-9]*Storage|torch (Tensor|Size|device)"
    r"|torch (bool|u?int\d+|float\d+|bfloat16|float8_\w+|complex\d+|half|float|double|long|int|short)"
)
"""The names a pickle of dense tensors, numbers, text, lists and dicts may mention; torch allows a few more."""

NOT_DENSE = re.compile(r"torch\._utils _rebuild_(\w*(tensor|subclass)\w*)")

CALLING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
"""Ways to name or make an object that torch.save never uses."""


def read_torch_zip(file: IO[bytes], *, where: str, size: int, limit: int) -> dict[str, np.ndarray]:
    """The state dict in a torch archive; see `read_torch_legacy` for what is raised."""
    with zipfile.ZipFile(file) as archive:
        members = checked_members(archive, where=where, size=size, limit=limit)
        _refuse_programs([member.filename for member in members], where=where)
        for member in members:
            if member.filename.endswith("data.pkl"):
                if member.file_size > LONGEST_PROGRAM:
                    raise UnsafeCheckpointError(f"{where}: a pickle of {member.file_size} bytes is no list of weights")
                check_pickle(io.BytesIO(archive.read(member)), where=where)
            elif member.CRC:  # torch can be told to write 0 instead
                _check_sum(archive, member)
    file.seek(0)
    return _load(file, where=where, limit=limit)


def read_torch_legacy(file: IO[bytes], *, where: str, size: int, limit: int) -> dict[str, np.ndarray]:
    """The state dict in a file that torch before 1.6 wrote.

    Raises:
        UnsafeCheckpointError: the pickle names anything else than tensors' parts, or asks for more bytes than `limit`.
        CheckpointFormatError: damaged, no state dict in it, or tensors that aren't dense.
        MissingDependencyError: torch is absent or too old.
    """
    for _ in range(LEGACY_PICKLES):
        check_pickle(file, where=where)
    if file.tell() > size or file.tell() > LONGEST_PROGRAM:
        raise UnsafeCheckpointError(f"{where}: a pickle of {file.tell()} bytes is no list of weights")
    file.seek(0)
    return _load(file, where=where, limit=limit)


def check_pickle(program: IO[bytes], *, where: str) -> None:
    """Reads one pickle's program without running it, up to its end.

    Raises:
        UnsafeCheckpointError: it names something that isn't part of a dense tensor.
        CheckpointFormatError: it names another kind of tensor, or isn't a pickle.
    """
    try:
        for operation, argument, _ in pickletools.genops(program):
            if operation.name in CALLING:
                raise UnsafeCheckpointError(f"{where}: its pickle builds objects ({operation.name}); nothing was run")
            if operation.name == "GLOBAL" and not HARMLESS.fullmatch(str(argument)):
                kind = NOT_DENSE.fullmatch(str(argument))
                if kind:
                    raise CheckpointFormatError(f"{where}: holds a {kind[1]}; only dense tensors can be read")
                name = str(argument).replace(" ", ".")
                raise UnsafeCheckpointError(
                    f"{where}: its pickle asks for {name}, nothing was run; save module.state_dict() instead of objects"
                )
    except ValueError as error:
        if isinstance(error, UnsafeCheckpointError | CheckpointFormatError):
            raise
        raise CheckpointFormatError(f"{where}: its pickle is damaged: {error}") from error


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


def _load(file: IO[bytes], *, where: str, limit: int) -> dict[str, np.ndarray]:
    torch = import_torch()
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes torch raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointFormatError(f"{where}: torch can't read it: {reason[:200]}") from error

    def is_tensor(value: Any) -> bool:
        return isinstance(value, torch.Tensor)

    tensors: Mapping[str, Any] = find_state_dict(loaded, where=where, is_tensor=is_tensor)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > limit:  # a few bytes seen through a stride of 0
        raise UnsafeCheckpointError(f"{where}: its tensors unfold to {total} bytes, more than {limit}")
    return {name: as_numpy(tensor, f"{where}: {name}") for name, tensor in tensors.items()}


def write_torch(file: IO[bytes], arrays: Mapping[str, np.ndarray], *, where: str) -> None:
    """Writes arrays as torch.save would write the tensors of a state dict; the same arrays give the same bytes.

    Raises:
        OSError: the system refused to write.
    """
    torch = import_torch()
    tensors = {name: as_tensor(array) for name, array in arrays.items()}
    try:
        torch.save(tensors, file)
    except RuntimeError as error:  # torch's writer hides the system's own error behind this
        raise OSError(f"{where}: {str(error).splitlines()[0]}") from error
