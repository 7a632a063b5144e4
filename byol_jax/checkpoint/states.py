"""Whole training states on disk, exactly: a crash costs the steps since the last save; only what is intact is loaded.

A checkpoint is a folder, `DIRECTORY/STEP/` with the step in eight digits (more from step 100,000,000 on), holding
`manifest.json` and one safetensors file with every leaf under its name ("online/params/encoder/conv1/kernel"; typed
keys as their uint32 key data). That file's name has its content's hash in it: when a step is saved again, the new file
comes to lie beside the old one, and then the manifest is replaced, which is one instant.

Where leaves are spread over several processes, each process has a file of its own, with its parts of these leaves;
process 0's has all others too. The manifest says which box of a leaf lies in which file.

Not a general store: whole states, synchronously.
"""

import contextlib
import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from byol_jax import disk, parallel
from byol_jax.checkpoint import leaves, parts
from byol_jax.checkpoint.contents import new_contents
from byol_jax.checkpoint.manifest import MANIFEST, FileEntry, Manifest, encode, file_entry, read_verified
from byol_jax.checkpoint.together import write_together
from byol_jax.errors import ConfigurationError, DamagedCheckpointError
from byol_jax.parallel.exchange import tell_all
from byol_jax.types import TrainState

__all__ = ["DamagedCheckpointWarning", "Restored", "latest", "restore", "save"]

_STEP_FOLDER = re.compile(r"\d{8,}")


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint was passed over because a file in it is absent or altered; its one argument names the file."""

    def __str__(self) -> str:
        return f"damaged checkpoint passed over: {self.args[0]}"


class Restored(NamedTuple):
    """What `restore` gives: the state, and the data's position as it was given to `save`."""

    state: TrainState
    position: Any


def save(directory: str | os.PathLike[str], state: TrainState, *, position: Any = None, keep: int | None = 3) -> Path:
    """Write `state` to `directory/STEP/`, all or nothing; then remove all but the newest `keep` up to that step.

    When this returns the disk has it (files, folder and parent are fsynced), and nothing refers to the state's arrays,
    so they may be donated.

    Of several processes only process 0 writes, and the others return the same path at once; unless leaves are spread
    over them: then every process writes its parts, to a disk that all of them see, and all return, or all raise,
    together.

    Args:
        directory: made if it isn't there.
        state: pytree of arrays of any dtype, with an integer scalar `step`; each array replicated, on this process, or
            spread over the devices of all.
        position: the data's position, anything that JSON gives back equal.
        keep: at least 1, or None to keep all. Checkpoints of later steps (of a run that was set back) stay until the
            run reaches those steps again; the one just written is never removed.

    Raises:
        ConfigurationError: a leaf isn't an array, two have one name, `position` isn't JSON, `keep` < 1.
        OSError: disk full, read-only, quota, in any process that writes. The earlier checkpoints are untouched and
            nothing new is left behind; but where a step is saved again, files may stay that no manifest names.
        RuntimeError: anything else that failed in another process, where leaves are spread over several.

    Example:
        >>> import tempfile
        >>> state = TrainState(jnp.int32(7), jax.random.key(0), {"scale": jnp.ones(3)}, {}, ())
        >>> save(tempfile.mkdtemp(), state, position={"epoch": 1}).name
        '00000007'
    """
    directory, named = Path(directory), leaves.leaves_by_name(state)
    in_parts = any(map(parts.is_in_parts, named.values()))
    if in_parts:  # from here on the others hear of what fails in one
        step = int(tell_all(lambda: str(_checked_step(named, position, keep)))[jax.process_index()])
    else:
        step = _checked_step(named, position, keep)
    folder, writes = directory / _name(step), parallel.is_writer()
    if not (writes or in_parts):
        return folder

    def describe(files: Sequence[str], entries: Sequence[FileEntry]) -> Manifest:
        kinds = {name: leaves.describe(leaf) for name, leaf in named.items()}
        return Manifest(step, position, dict(zip(files, entries, strict=True)), kinds, _boxes(named, files))

    try:
        if in_parts:
            write_together(folder, lambda: _own_file(named), describe)
        else:
            data = _own_file(named)
            entry = file_entry(data)
            _write(folder, data, describe([f"state-{entry.sha256[:16]}.safetensors"], [entry]))
    except OSError as error:
        where = "all processes can write" if in_parts else "can be written"
        raise OSError(
            error.errno,
            f"checkpoint of step {step} not saved in {directory}: {error.strerror or error}; earlier checkpoints"
            f" are untouched; make room, or give a folder that {where}",
        ) from error
    if writes:
        up_to_here = [path for path in reversed(_step_folders(directory)) if int(path.name) <= step]
        for path in up_to_here[keep:] if keep else []:
            with contextlib.suppress(OSError):  # the new one is safe; the next save tries again
                disk.discard(path)
    return folder


def latest(directory: str | os.PathLike[str]) -> Path | None:
    """The newest checkpoint in `directory` that is complete and intact, or None where there is none.

    Every file is read and compared with the sha256 that was taken when it was written.

    Warns:
        DamagedCheckpointWarning: for each newer one that was passed over, naming the file at fault.

    Example:
        >>> import tempfile
        >>> latest(tempfile.mkdtemp()) is None
        True
    """
    found, _ = _newest_intact(Path(directory))
    return None if found is None else found[0]


def restore(path: str | os.PathLike[str], *, like: TrainState) -> Restored:
    """The state that was saved, bit for bit, as JAX arrays; nothing is cast, filled in or left out.

    Args:
        path: one checkpoint's folder, or the directory that holds several; then the newest intact one.
        like: a state with the structure, shapes and dtypes wanted: arrays or `jax.ShapeDtypeStruct`s, for instance
            `jax.eval_shape(learner.init, key)`. Where a leaf has a sharding (a committed array, or a struct with one),
            the restored leaf is placed on the same.

    Raises:
        DamagedCheckpointError: none there; a file missing or altered (named); or every difference from `like`.

    Warns:
        DamagedCheckpointWarning: `path` holds several and newer ones were passed over.

    Example:
        >>> import tempfile
        >>> state = TrainState(jnp.int32(7), jax.random.key(0), {"scale": jnp.ones(3)}, {}, ())
        >>> folder = save(tempfile.mkdtemp(), state, position={"epoch": 1})
        >>> restore(folder, like=jax.eval_shape(lambda: state)).position
        {'epoch': 1}
    """
    path, manifest, contents = _read(Path(path))
    wanted = leaves.leaves_by_name(like)
    differences = leaves.differences(manifest.leaves, wanted)
    if differences:
        raise DamagedCheckpointError(
            f"{path} doesn't fit the state it is restored into, {len(differences)} difference(s):"
            f" {'; '.join(differences)}; use the network, heads and optimiser that it was saved with"
        )
    stored: dict[str, bytes] = {}
    while contents:  # each file's bytes are freed when its leaves are there, and each leaf's when it is an array
        stored |= {name: view["data"] for name, view in safetensors.deserialize(contents.popitem()[1])}
    values = [
        leaves.from_bytes(_whole(name, manifest, stored), manifest.leaves[name], leaf) for name, leaf in wanted.items()
    ]
    return Restored(jax.tree.unflatten(jax.tree.structure(like), values), manifest.position)


def _whole(name: str, manifest: Manifest, stored: dict[str, bytes]) -> bytes:
    """A leaf's bytes, in one piece whether it was written so or not; they are taken out of `stored`."""
    if name not in manifest.parts:
        return stored.pop(name)
    boxes = [box for boxes in manifest.parts[name].values() for box in boxes]
    return parts.assemble(manifest.leaves[name], {box: stored.pop(parts.part_name(name, box)) for box in boxes})


def _checked_step(named: Mapping[str, Any], position: Any, keep: int | None) -> int:
    """The step as a number, after everything that can be wrong with the arguments."""
    if keep is not None and (type(keep) is not int or keep < 1):
        raise ConfigurationError(f"keep={keep!r}: give a whole number of checkpoints, at least 1, or None to keep all")
    try:
        same = json.loads(json.dumps(position, allow_nan=False)) == position
    except (TypeError, ValueError, RecursionError):
        same = False
    if not same:
        raise ConfigurationError(f"position={position!r}: give what JSON gives back equal (no tuples, NaN or arrays)")
    step = named.get("step")
    if step is None or step.shape or not jnp.issubdtype(step.dtype, jnp.integer):
        found = "none" if step is None else f"{step.dtype} of shape {step.shape}"
        raise ConfigurationError(f"state.step must be one integer, found {found}; save one copy of a replicated state")
    return int(leaves.local_data(step))


def _own_file(named: Mapping[str, Any]) -> bytes:
    """The content of the file that this process writes: its parts, and of process 0 all leaves that are whole."""
    local = {}
    for name, leaf in named.items():
        if parts.is_in_parts(leaf):
            local |= {parts.part_name(name, box): part for box, part in parts.own_parts(leaf).items()}
        elif parallel.is_writer():
            local[name] = leaves.local_data(leaf)
    arrays = {name: leaves.as_storable(np.asarray(array)) for name, array in jax.device_get(local).items()}
    return safetensors.numpy.save(arrays)


def _boxes(named: Mapping[str, Any], files: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Of each leaf in parts, which boxes are in which file; `files` by their processes' numbers."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, leaf in named.items():
        if parts.is_in_parts(leaf):
            boxes = found[name] = {}
            for box, process in parts.writers(leaf).items():
                boxes.setdefault(files[process], []).append(box)
    return found


def _write(folder: Path, data: bytes, manifest: Manifest) -> None:
    with new_contents(folder) as temporary:
        for name, content in zip([*manifest.files, MANIFEST], (data, encode(manifest)), strict=True):
            disk.write_durably(temporary / name, content)


def _name(step: int) -> str:
    return f"{step:08d}"


def _step_folders(directory: Path) -> list[Path]:
    """Folders named as steps, oldest first; anything else that lies there isn't a checkpoint."""
    paths = directory.iterdir() if directory.is_dir() else ()
    return sorted((path for path in paths if _STEP_FOLDER.fullmatch(path.name)), key=lambda path: int(path.name))


def _newest_intact(directory: Path) -> tuple[tuple[Path, Manifest, dict[str, bytes]] | None, list[str]]:
    """The newest intact checkpoint, read, and the faults of those passed over."""
    faults = []
    for path in reversed(_step_folders(directory)):
        try:
            return (path, *read_verified(path)), faults
        except DamagedCheckpointError as error:
            faults.append(str(error))
            warnings.warn(DamagedCheckpointWarning(str(error)), stacklevel=3)
    return None, faults


def _read(path: Path) -> tuple[Path, Manifest, dict[str, bytes]]:
    """One checkpoint, or the newest intact one in a directory of several, compared with its checksums."""
    is_step = _STEP_FOLDER.fullmatch(path.name) and not _step_folders(path)  # a directory of several may be a date
    if (path / MANIFEST).exists() or is_step:
        return (path, *read_verified(path))
    found, faults = _newest_intact(path)
    if found is None:
        damaged = f"; damaged: {'; '.join(faults)}" if faults else ""
        raise DamagedCheckpointError(
            f"no intact checkpoint in {path}: looked for {MANIFEST} in it, and for STEP/{MANIFEST} with STEP in eight"
            f" digits{damaged}"
        )
    return found
