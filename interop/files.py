"""Weight files: .safetensors, .pt, .pth, .ckpt and .npz to and from flat dicts of NumPy arrays.

Reading trusts nothing: the format is told by content, not by name; every size is checked before memory is taken;
nothing in a file is ever executed or extracted. Writing is atomic. Names inside stay torch's; what they mean for a
JAX network is `interop.convert`'s business.
"""

import contextlib
import os
import secrets
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from byol_jax.errors import CheckpointFormatError, InteropError, UnsafeCheckpointError
from interop.arrays import as_numpy, fresh, import_torch
from interop.containers import without_wrappers
from interop.formats import npz_file, safetensors_file, torch_file

__all__ = ["EXTENSIONS", "atomic_path", "file_kind", "load_state_dict", "save_state_dict", "stored_format"]

EXTENSIONS = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".ckpt": "torch", ".npz": "npz"}
"""What a name's ending means when writing."""

ROOM = 256 << 20
GROWTH = 32
"""Without `max_bytes` a file may unpack to 32 times its size, or to 256 MiB: weights hardly compress at all (ratio
1.1), while a zip bomb reaches 1000."""

BEGINNING = 64
"""Bytes that tell the format."""

READERS = {
    "torch": torch_file.read_torch_zip,
    "torch-legacy": torch_file.read_torch_legacy,
    "npz": npz_file.read_npz,
}


def load_state_dict(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> dict[str, np.ndarray]:
    """The state dict in a weight file, bit for bit, as NumPy arrays.

    Args:
        path: a .safetensors, .pt, .pth, .ckpt or .npz file; its content decides, not its name. Containers
            (`{"state_dict": …}`, `{"model": …}` and others) are unwrapped, and the prefixes of wrappers ("module.",
            "_orig_mod.") are taken off where all names share them.
        max_bytes: the most that the file may unpack to; None is 32 times its size, at least 256 MiB.

    Returns:
        Torch's names to C-contiguous arrays that own their memory, in the file's order, shapes and types; bfloat16
        and float8 are `ml_dtypes`' types. int64 stays int64.

    Raises:
        CheckpointFormatError: absent, unreadable, truncated, damaged, or of a format that isn't known.
        UnsafeCheckpointError: pickled code or objects, a bomb, offsets or names that lead out of the file.
        MissingDependencyError: a PyTorch file without torch >= 2.10.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/net.safetensors"
        >>> save_state_dict(path, {"fc.bias": np.zeros(3, np.float32)})
        >>> load_state_dict(path)
        {'fc.bias': array([0., 0., 0.], dtype=float32)}
    """
    where = os.fspath(path)
    try:
        with _opened(where) as (file, size):
            if max_bytes is not None and size > max_bytes:
                raise UnsafeCheckpointError(f"{where}: {size} bytes, more than max_bytes={max_bytes}")
            limit = max(ROOM, GROWTH * size) if max_bytes is None else max_bytes
            kind = file_kind(file, where=where)
            file.seek(0)
            if kind == "safetensors":
                arrays = safetensors_file.read_safetensors(file, where=where, size=size)
            else:
                arrays = READERS[kind](file, where=where, size=size, limit=limit)
        return {name: fresh(array) for name, array in without_wrappers(arrays, where=where).items()}
    except InteropError:
        raise
    except OSError as error:
        raise CheckpointFormatError(f"{where}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file makes zipfile, zlib, json, struct and NumPy raise a dozen kinds
        raise CheckpointFormatError(f"{where}: damaged: {type(error).__name__}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@contextlib.contextmanager
def _opened(where: str) -> Iterator[tuple[IO[bytes], int]]:
    status = os.stat(where)
    if stat.S_ISDIR(status.st_mode):
        raise CheckpointFormatError(f"{where}: is a folder; expected a weight file")
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
        raise CheckpointFormatError(f"{where}: is no regular file")
    if status.st_size == 0:
        raise CheckpointFormatError(f"{where}: is empty")
    with open(where, "rb") as file:
        yield file, status.st_size


def file_kind(file: IO[bytes], *, where: str) -> str:
    """ "safetensors", "npz", "torch" or "torch-legacy", by the file's first bytes (and a zip's directory).

    Raises:
        UnsafeCheckpointError: a plain pickle.
        CheckpointFormatError: none of these.
    """
    beginning = file.read(BEGINNING)
    if beginning.startswith(torch_file.LEGACY_MAGIC):
        return "torch-legacy"
    if beginning.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
        return "npz" if all(name.endswith(".npy") for name in names) else "torch"
    if safetensors_file.looks_like_safetensors(beginning):
        return "safetensors"
    if beginning[:1] == b"\x80" and beginning[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise UnsafeCheckpointError(f"{where}: a plain Python pickle can run code; nothing was run")
    guesses = {b"version https://git-lfs": "a Git LFS pointer: run git lfs pull", b"\x93NUMPY": "a single .npy array"}
    guesses |= {b"\x89HDF": "an HDF5 file", b"\x1f\x8b": "gzip: unpack it first", b"<": "a web page"}
    guess = next((text for start, text in guesses.items() if beginning.startswith(start)), "of an unknown format")
    raise CheckpointFormatError(f"{where}: is {guess}; expected {', '.join(EXTENSIONS)}")


def stored_format(path: str | os.PathLike[str]) -> str:
    """The format of a weight file, by content; see `file_kind`."""
    where = os.fspath(path)
    with _opened(where) as (file, _):
        return file_kind(file, where=where)


def save_state_dict(path: str | os.PathLike[str], state_dict: Mapping[str, Any]) -> None:
    """Writes a state dict, atomically: afterwards there is the whole new file, or whatever was there before.

    Args:
        path: its ending decides: .safetensors (no torch needed, the one to prefer), .npz, or .pt, .pth, .ckpt.
        state_dict: torch's names to NumPy arrays, JAX arrays or torch tensors, of any strides; tensors that share
            memory are written once each. The same values give the same bytes.

    Raises:
        CheckpointFormatError: an ending that isn't known, no such folder, or a name, value or type that the format
            can't hold; nothing was written.
        UnsafeCheckpointError: an array of Python objects, or a name that leads out of an .npz.
        MissingDependencyError: a PyTorch file without torch >= 2.10.
        OSError: the disk is full or read-only; the temporary file is gone.

    Example:
        >>> save_state_dict("net.onnx", {})
        Traceback (most recent call last):
        byol_jax.errors.CheckpointFormatError: net.onnx: unknown ending; use .safetensors, .pt, .pth, .ckpt, .npz
    """
    where = os.fspath(path)
    kind = EXTENSIONS.get(Path(where).suffix.lower())
    if kind is None:
        raise CheckpointFormatError(f"{where}: unknown ending; use {', '.join(EXTENSIONS)}")
    if kind == "torch":
        import_torch()
    arrays = _checked(state_dict, where=where)
    with atomic_path(where) as temporary:
        if kind == "safetensors":
            safetensors_file.write_safetensors(temporary, arrays, where=where)
        else:
            with open(temporary, "wb") as file:
                if kind == "npz":
                    npz_file.write_npz(file, arrays, where=where)
                else:
                    torch_file.write_torch(file, arrays, where=where)


def _checked(state_dict: Any, *, where: str) -> dict[str, np.ndarray]:
    if not isinstance(state_dict, Mapping):
        raise CheckpointFormatError(f"{where}: expected a dict of arrays, got {type(state_dict).__name__}")
    for name in state_dict:
        if not isinstance(name, str):
            raise CheckpointFormatError(f"{where}: names must be text, got {name!r}")
        if not name.isascii():
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise CheckpointFormatError(f"{where}: the name {name!r} isn't valid text") from error
    return {name: fresh(as_numpy(value, name)) for name, value in state_dict.items()}


@contextlib.contextmanager
def atomic_path(path: str) -> Iterator[str]:
    """A temporary name beside `path` to write to; on success it takes `path`'s place, on any failure it is removed.

    Permissions are the replaced file's, or those of any new file. The file and its folder are flushed to the disk
    (fsync), so that a power cut leaves the old or the new file.

    Raises:
        CheckpointFormatError: the folder doesn't exist, or `path` is a folder.
        OSError: the system refused to write.
    """
    target = os.path.realpath(path)  # a link keeps pointing where it pointed
    folder = os.path.dirname(target)
    if not os.path.isdir(folder):
        raise CheckpointFormatError(f"{path}: the folder {folder} doesn't exist")
    if os.path.isdir(target):
        raise CheckpointFormatError(f"{path}: is a folder; expected a file's name")
    temporary = os.path.join(folder, f".{secrets.token_hex(8)}.tmp")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(os.stat(target if os.path.exists(target) else temporary).st_mode)
        yield temporary
        os.chmod(temporary, mode)  # safetensors makes its files private to the user
        _flush(temporary, os.O_RDWR)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _flush(folder, os.O_RDONLY)


def _flush(path: str, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
