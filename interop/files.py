"""Weight files: .safetensors, .pt, .pth, .ckpt and .npz to and from flat dicts of NumPy arrays.

Reading trusts nothing: the format is told by content, not by name; every size is checked before memory is taken;
nothing in a file is ever executed or extracted. Writing is atomic. Names inside stay torch's;
`interop.weights.state_dict` says what they mean for a JAX network.
"""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import numpy as np

from byol_jax.disk import replacement
from byol_jax.errors import CheckpointFormatError, ConfigurationError, UnsafeCheckpointError
from interop.arrays import as_contiguous, as_numpy, import_torch
from interop.errors import warn_caller
from interop.formats import npz_file, safetensors_file, torch_file
from interop.formats.containers import Choice, below_prefix, without_wrappers
from interop.formats.pickle_machine import begins_as_pickle
from interop.formats.regular_file import open_regular, refuse_damage, refuse_folders
from interop.formats.sharded_file import index_for, looks_like_index, read_sharded, write_sharded

__all__ = [
    "EXTENSIONS",
    "SeveralWeightsWarning",
    "WeightSet",
    "file_kind",
    "load_state_dict",
    "read_arrays",
    "read_weight_set",
    "save_state_dict",
    "save_with_metadata",
    "stored_format",
    "torch_container",
    "write_arrays",
]

EXTENSIONS = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".ckpt": "torch", ".npz": "npz"}
"""What a name's ending means when writing."""

ROOM = 256 << 20
GROWTH = 32
"""Without `max_bytes` a file may unpack to 32 times its size, or to 256 MiB: weights hardly compress at all (ratio
1.1), while a zip bomb reaches 1000."""

EMPTY = "an archive without a single tensor; expected the weights of a network or a learner"

BEGINNING = 64
"""Bytes that tell the format."""

TORCH_READERS = {"torch": torch_file.read_torch_zip, "torch-legacy": torch_file.read_torch_legacy}


class SeveralWeightsWarning(UserWarning):
    """A file holds several sets of weights of one network, and nobody said which to take."""


class WeightSet(NamedTuple):
    """Weights out of a file.

    Attributes:
        arrays: torch's names to values, wrappers' prefixes taken off.
        entry: where they lay in the file, "state_dict_ema" say; "" where the file holds nothing but them.
        beside: whether other weights lie beside them, of whatever network.
        stored: the same values under the names that are stored; what `arrays` lacks (a count of wrappers') too.
    """

    arrays: dict[str, np.ndarray]
    entry: str = ""
    beside: bool = False
    stored: Mapping[str, Any] = MappingProxyType({})


def load_state_dict(
    path: str | os.PathLike[str],
    *,
    which_weights: str | None = None,
    prefix: str | None = None,
    max_bytes: int | None = None,
) -> dict[str, np.ndarray]:
    """The state dict in a weight file, bit for bit, as NumPy arrays.

    Args:
        path: a .safetensors, .pt, .pth, .ckpt or .npz file; its content decides, not its name. For sharded safetensors
            the index (model.safetensors.index.json), the folder that holds one, or the name that the whole file would
            have. Containers (`{"state_dict": …}`, `{"model": …}` and others) are unwrapped, and the prefixes of
            wrappers ("module.", "_orig_mod.") are taken off. Of what lies beside the weights (hyper-parameters, paths,
            enums, any object) nothing is made, imported or called; so of what modules keep among them by
            `get_extra_state`, unless that is a tensor.
        which_weights: of a PyTorch file that holds several sets of weights, the entry to take: "state_dict_ema",
            "model_ema", "teacher" and so on, `python -m interop inspect` lists them. None: the first that is there of
            `interop.formats.containers.CONTAINERS`, but timm's average where timm's own scripts wrote the file, and a
            warning says which.
        prefix: take only what stands below it, and take it off the names: "encoder_q" of a file of MoCo's. Wrappers'
            prefixes may be left out.
        max_bytes: the most that the file may unpack to, all shards together; None is 32 times its size, at least
            256 MiB.

    Returns:
        Torch's names to C-contiguous arrays that own their memory, in the file's order, shapes and types; bfloat16
        and float8 are `ml_dtypes`' types. Each array is read straight into its memory, so reading needs no more memory
        than the arrays, and of a PyTorch checkpoint only the weights are read.

    Warns:
        SeveralWeightsWarning: several sets of weights of one network, and `which_weights` isn't given.

    Raises:
        CheckpointFormatError: absent, unreadable, truncated, damaged, of a format that isn't known, or without a
            single tensor; no weights of that name or below that prefix.
        UnsafeCheckpointError: objects in the weights' place, pickled code, a bomb, offsets or names that lead out of
            the file.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/net.safetensors"
        >>> save_state_dict(path, {"fc.bias": np.zeros(3, np.float32)})
        >>> load_state_dict(path)
        {'fc.bias': array([0., 0., 0.], dtype=float32)}
    """
    return read_weight_set(path, which_weights=which_weights, prefix=prefix, max_bytes=max_bytes).arrays


def read_weight_set(
    path: str | os.PathLike[str],
    *,
    which_weights: str | None = None,
    prefix: str | None = None,
    max_bytes: int | None = None,
) -> WeightSet:
    """`load_state_dict`, and which of the file's weights these are."""
    where = os.fspath(path)
    stored, choice = _read_file(where, which=which_weights, max_bytes=max_bytes)
    with refuse_damage(where):
        arrays = without_wrappers(stored, where=where)
    if not arrays:
        raise CheckpointFormatError(f"{where}: {EMPTY}")
    if choice is not None and choice.sentence(where):
        warn_caller(SeveralWeightsWarning(choice.sentence(where)))
    if prefix is not None:
        with refuse_damage(where):
            stored = below_prefix(stored, prefix, where=where)
            arrays = without_wrappers(stored, where=where)
    entry, beside = ("", False) if choice is None else (choice.name, choice.beside)
    return WeightSet(arrays, entry, beside, stored)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """What `write_arrays` wrote, under the very names, which may be none: a wrapper's segment in one is its own."""
    return _read_file(os.fspath(path), which=None, max_bytes=None)[0]


def _read_file(where: str, *, which: str | None, max_bytes: int | None) -> tuple[dict[str, np.ndarray], Choice | None]:
    """The arrays as they are stored, and of a file with entries how they were chosen."""
    with refuse_damage(where):
        where = index_for(where)
        with open_regular(where) as (file, size):
            if max_bytes is not None and size > max_bytes:
                raise UnsafeCheckpointError(f"{where}: {size} bytes, more than max_bytes={max_bytes}")
            return _read(file, where=where, size=size, max_bytes=max_bytes, which=which)


def _read(
    file: IO[bytes], *, where: str, size: int, max_bytes: int | None, which: str | None
) -> tuple[dict[str, np.ndarray], Choice | None]:
    limit = max(ROOM, GROWTH * size) if max_bytes is None else max_bytes
    kind = file_kind(file, where=where)
    file.seek(0)
    if kind in TORCH_READERS:
        return TORCH_READERS[kind](file, where=where, size=size, limit=limit, which=which)
    if which is not None:
        raise CheckpointFormatError(
            f"{where}: has no entries to take {which!r} of, as PyTorch's files have; "
            "prefix (--prefix) takes names that begin alike"
        )
    if kind == "safetensors":
        return safetensors_file.read_safetensors(file, where=where, size=size), None
    if kind == "safetensors-index":
        return read_sharded(file, where=where, size=size, limit=max_bytes), None
    return npz_file.read_npz(file, where=where, size=size, limit=limit), None


def file_kind(file: IO[bytes], *, where: str) -> str:
    """A file's format by its first bytes, or of a zip archive by its directory.

    "safetensors", "safetensors-index", "npz", "torch" or "torch-legacy".

    Raises:
        UnsafeCheckpointError: a plain pickle.
        CheckpointFormatError: none of these.
    """
    beginning = file.read(BEGINNING)
    if torch_file.begins_as_legacy(beginning):
        return "torch-legacy"
    if beginning.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        with zipfile.ZipFile(file) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
        return "npz" if all(name.endswith(".npy") for name in names) else "torch"
    if looks_like_index(beginning):
        return "safetensors-index"
    if safetensors_file.looks_like_safetensors(beginning):
        return "safetensors"
    if begins_as_pickle(beginning):
        raise UnsafeCheckpointError(f"{where}: a plain Python pickle can run code; nothing was run")
    guesses = {b"version https://git-lfs": "a Git LFS pointer: run git lfs pull", b"\x93NUMPY": "a single .npy array"}
    guesses |= {b"\x89HDF": "an HDF5 file", b"\x1f\x8b": "gzip: unpack it first", b"<": "a web page"}
    guess = next((text for start, text in guesses.items() if beginning.startswith(start)), "of an unknown format")
    raise CheckpointFormatError(f"{where}: is {guess}; expected {', '.join(EXTENSIONS)}")


def stored_format(path: str | os.PathLike[str]) -> str:
    """The format of a weight file, by content; see `file_kind`."""
    where = os.fspath(path)
    with refuse_damage(where):
        where = index_for(where)
        with open_regular(where) as (file, _):
            return file_kind(file, where=where)


def torch_container(path: str | os.PathLike[str]) -> Any:
    """All that a PyTorch file holds, the optimiser's state and counters too, without the tensors' values.

    What isn't a number, text, a list or a dict comes as what stands for it in `interop.formats.torch_pickle`: a tensor
    as a `Tensor`, with `dtype` and `shape`, anything else as an `Object`.

    Raises:
        CheckpointFormatError, UnsafeCheckpointError: see `load_state_dict`.
    """
    where = os.fspath(path)
    with refuse_damage(where), open_regular(where) as (file, size):
        return torch_file.read_container(file, where=where, size=size, limit=max(ROOM, GROWTH * size))


def save_with_metadata(
    path: str | os.PathLike[str], state_dict: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """`save_state_dict` of one file, with text about the whole file where the format has a place for it."""
    where = os.fspath(path)
    kind, arrays = _checked(where, state_dict)
    _write(where, kind, arrays, metadata=metadata or safetensors_file.FORMAT)


def save_state_dict(
    path: str | os.PathLike[str], state_dict: Mapping[str, Any], *, max_shard_bytes: int | None = None
) -> None:
    """Writes a state dict, atomically: afterwards there is the whole new file, or whatever was there before.

    Args:
        path: its ending decides: .safetensors (no torch needed, the one to prefer), .npz, or .pt, .pth, .ckpt.
        state_dict: torch's names to NumPy arrays, JAX arrays or torch tensors, of any strides; tensors that share
            memory are written once each. The same values give the same bytes.
        max_shard_bytes: the most bytes of values in one file, .safetensors only. More are split as Hugging Face does:
            model-00001-of-00003.safetensors and so on beside model.safetensors.index.json; what stood there under
            `path` or its index goes. None is one file, whatever its size.

    Raises:
        CheckpointFormatError: an ending that isn't known, no such folder, or no tensor at all, or a name, value or
            type that the format can't hold; nothing was written.
        ConfigurationError: `max_shard_bytes` isn't a positive number, or `path` no .safetensors.
        UnsafeCheckpointError: an array of Python objects, or a name that leads out of an .npz.
        MissingDependencyError: a PyTorch file without torch >= 2.10.
        OSError: the disk is full or read-only; the temporary files are gone.

    Example:
        >>> save_state_dict("net.onnx", {})
        Traceback (most recent call last):
        byol_jax.errors.CheckpointFormatError: net.onnx: unknown ending; use .safetensors, .pt, .pth, .ckpt, .npz
    """
    where = os.fspath(path)
    _kind_of(where)
    if max_shard_bytes is not None:
        if type(max_shard_bytes) is not int or max_shard_bytes < 1:
            raise ConfigurationError(f"max_shard_bytes={max_shard_bytes}: expected a number of bytes, at least 1")
        if not where.endswith(".safetensors"):
            raise ConfigurationError(f"{where}: only .safetensors can be split into shards; leave max_shard_bytes out")
    kind, arrays = _checked(where, state_dict)
    if max_shard_bytes is not None:
        write_sharded(where, arrays, where=where, max_shard_bytes=max_shard_bytes)
        return
    _write(where, kind, arrays)


def _checked(where: str, state_dict: Mapping[str, Any]) -> tuple[str, dict[str, np.ndarray]]:
    """The format to write and the arrays, after all checks of both and of the place."""
    kind, arrays = _kind_of(where), _as_arrays(state_dict, where=where)
    _check_place(where)
    if not arrays:
        raise CheckpointFormatError(f"{where}: {EMPTY}; nothing was written")
    return kind, arrays


def _kind_of(where: str) -> str:
    """The format that a name's ending means, which can be written here."""
    kind = EXTENSIONS.get(Path(where).suffix.lower())
    if kind is None:
        raise CheckpointFormatError(f"{where}: unknown ending; use {', '.join(EXTENSIONS)}")
    if kind == "torch":
        import_torch()
    return kind


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """`save_state_dict`, as .safetensors, of what may be empty: the tensors of a network without weights."""
    where = os.fspath(path)
    _check_place(where)
    _write(where, "safetensors", _as_arrays(arrays, where=where))


def _write(
    where: str, kind: str, arrays: dict[str, np.ndarray], *, metadata: Mapping[str, str] = safetensors_file.FORMAT
) -> None:
    with replacement(where) as temporary:
        if kind == "safetensors":
            safetensors_file.write_safetensors(str(temporary), arrays, where=where, metadata=metadata)
        else:
            with temporary.open("wb") as file:
                if kind == "npz":
                    npz_file.write_npz(file, arrays, where=where)
                else:
                    torch_file.write_torch(file, arrays, where=where)


def _check_place(where: str) -> None:
    folder = os.path.dirname(os.path.realpath(where))
    if not os.path.isdir(folder):
        raise CheckpointFormatError(f"{where}: the folder {folder} doesn't exist")
    refuse_folders([where])


def _as_arrays(state_dict: Any, *, where: str) -> dict[str, np.ndarray]:
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
    return {name: as_contiguous(as_numpy(value, name)) for name, value in state_dict.items()}
