"""A run's folder: what lies in it, who may write into it, and whether a run may begin, go on or start over there.

    config.json environment.json images.json images.index metrics.jsonl train.log views.png network/
    checkpoints/STEP/ exported/ tensorboard/ report.html evaluation.json neighbours.png

A folder with a `config.json` of ours is a run's. Only what a run writes is ever removed. Not here: what the files hold
(config.py, environment.py, metrics.py, artifacts.py, checkpoint/), and training itself (train/).

    with lock(out):
        check_shared(out)  # where every process will write checkpoints
        paths, resumed = prepare(out, config, resume=resume, overwrite=overwrite)
"""

import contextlib
import fcntl
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from byol_jax import checkpoint, disk, parallel
from byol_jax.errors import ConfigurationError, DamagedCheckpointError
from byol_jax.parallel.exchange import tell_all
from byol_jax.runs.config import encode_config, read_config, refuse_differences
from byol_jax.runs.environment import environment

__all__ = ["RunPaths", "check_shared", "has_checkpoint", "lock", "prepare", "run_paths"]

_LOCK = ".lock"


class RunPaths(NamedTuple):
    """Where everything in a run's folder lies; `root` is the folder."""

    root: Path
    config: Path
    environment: Path
    images: Path
    places: Path
    metrics: Path
    log: Path
    views: Path
    network: Path
    checkpoints: Path
    exported: Path
    tensorboard: Path
    report: Path
    evaluation: Path
    neighbours: Path


def run_paths(out: str | os.PathLike[str]) -> RunPaths:
    """The paths of the run in the folder `out`, which needn't be there.

    Example:
        >>> run_paths("runs/first").metrics.name
        'metrics.jsonl'
    """
    names = (
        "config.json environment.json images.json images.index metrics.jsonl train.log views.png network checkpoints"
        " exported tensorboard report.html evaluation.json neighbours.png"
    )
    return RunPaths(Path(out), *(Path(out) / name for name in names.split()))


def has_checkpoint(paths: RunPaths) -> bool:
    """Whether a run has saved a checkpoint, intact or not."""
    return any(paths.checkpoints.glob("*/manifest.json"))


def prepare(
    out: str | os.PathLike[str], config: dict[str, Any], *, resume: bool, overwrite: bool
) -> tuple[RunPaths, bool]:
    """Makes `out` ready for the run that `config` describes; True where it goes on after a checkpoint.

    With `resume`, a folder that is absent, empty or without a checkpoint means a fresh start. Only process 0 touches
    the folder; the others hear from it how it went. Call it under `lock(out)`.

    Raises:
        ConfigurationError: `out` isn't empty and neither is given, or both are; it holds files and no run's
            `config.json`; or, with `resume`, the configuration differs: every key is named. Nothing was changed.
        DamagedCheckpointError: with `resume`, there are checkpoints and none is intact. Nothing was changed.
    """
    if jax.process_count() == 1:
        return run_paths(out), _make_ready(run_paths(out), config, resume, overwrite)
    from jax.experimental import multihost_utils

    verdict, refusal = 0, None
    if parallel.is_writer():
        try:
            verdict = int(_make_ready(run_paths(out), config, resume, overwrite))
        except Exception as error:  # whatever it is, the others wait for a verdict
            verdict, refusal = 2, error
    verdict = int(multihost_utils.broadcast_one_to_all(np.int32(verdict)))
    if refusal is not None:
        raise refusal
    if verdict == 2:
        raise ConfigurationError(f"process 0 refused the folder {out}: its message says why")
    return run_paths(out), bool(verdict)


def check_shared(out: str | os.PathLike[str]) -> None:
    """Refuses a folder that some process of a run can't write; nothing is done with one process.

    Each process writes and removes a small file in a temporary folder that process 0 opens there. Every process calls
    it, under `lock(out)`, before the run has written anything.

    Raises:
        ConfigurationError: in every process, with the first one that doesn't see the folder or can't write it.
    """
    if jax.process_count() == 1:
        return

    def write() -> str:
        file = Path(out, temporary, str(jax.process_index()))
        try:
            disk.write_durably(file, b"byol_jax")
            file.unlink()
        except FileNotFoundError:
            return "doesn't see"
        except OSError as error:
            return f"can't write ({error.strerror})"
        return ""

    def begin() -> str:
        return opened.enter_context(disk.temporary_folder(Path(out))).name if parallel.is_writer() else ""

    with contextlib.ExitStack() as opened:
        temporary, *_ = tell_all(begin)
        found = {process: fault for process, fault in enumerate(tell_all(write)) if fault}
    for process, fault in found.items():
        raise ConfigurationError(
            f"process {process} {fault} the folder {out} of process 0: with shard_state give a folder that all"
            " processes share"
        )


@contextlib.contextmanager
def lock(out: str | os.PathLike[str]) -> Iterator[None]:
    """Holds the folder `out`, made if need be, so that no other process trains into it.

    The kernel frees the lock when the process ends, however it ends; the lock file of a dead process is taken over.
    Two runs within one process are not kept apart. Where several processes make one run, process 0 holds the lock.

    Raises:
        ConfigurationError: another process holds it (named), or the folder can't be written.
    """
    if not parallel.is_writer():
        yield
        return
    root = Path(out)
    new = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(root / _LOCK)
    except OSError as error:
        _remove_if_new(root, new)
        raise ConfigurationError(f"{root} can't be written ({error.strerror}): give another folder") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # the disk may be read-only by now: the next run takes the file over
            (root / _LOCK).unlink()
        os.close(descriptor)
        _remove_if_new(root, new)


def _remove_if_new(root: Path, new: bool) -> None:
    if new:
        with contextlib.suppress(OSError):  # not empty: the run began
            root.rmdir()


def _acquire(path: Path) -> int:
    """An open descriptor that holds the lock, a POSIX one: processes forked by a run don't inherit it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.read(descriptor, 32).decode(errors="replace").strip() or "?"
            os.close(descriptor)
            raise ConfigurationError(
                f"{path.parent} is in use by process {owner}: wait until it ends, or give another folder"
            ) from None
        except OSError:
            pass  # a file system without locks: better to train unprotected than not at all
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            try:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
            except OSError:  # a full disk
                path.unlink(missing_ok=True)
                os.close(descriptor)
                raise
            return descriptor
        os.close(descriptor)  # its owner removed the file after we opened it: try again with the one that is there now


def _make_ready(paths: RunPaths, config: dict[str, Any], resume: bool, overwrite: bool) -> bool:
    """`prepare` in the process that writes: refuses, or removes what an earlier run left, then writes the two files."""
    if resume and overwrite:
        raise ConfigurationError("resume and overwrite contradict each other: give one of them")
    content = encode_config(config)
    found = _entries(paths.root)
    if found and not (resume or overwrite):
        raise ConfigurationError(
            f"{paths.root} is not empty: --resume (resume=True) goes on with the run in it, --overwrite"
            " (overwrite=True) starts over; or give another folder"
        )
    if found:
        _check_is_run(paths.root, found)
    resumed = resume and bool(found) and _has_intact_checkpoint(paths.checkpoints)
    if resumed:
        refuse_differences(paths.root, read_config(paths.root), config)
    else:
        for path in paths[2:]:  # config.json stays until it is replaced: it marks the folder as a run's
            _remove(path)
    paths.root.mkdir(parents=True, exist_ok=True)
    disk.remove_abandoned(paths.root)
    disk.write_atomically(paths.config, content)
    facts = json.dumps(environment(), indent=2)
    disk.write_atomically(paths.environment, (facts + "\n").encode())
    return resumed


def _has_intact_checkpoint(directory: Path) -> bool:
    """Whether there is an intact checkpoint. Where there is none, or empty folders alone, the run starts afresh.

    Raises:
        DamagedCheckpointError: all are damaged; starting afresh would delete somebody's work.
    """
    with warnings.catch_warnings(record=True) as passed_over:
        warnings.simplefilter("always", checkpoint.DamagedCheckpointWarning)
        newest = checkpoint.latest(directory)
    if newest is not None:
        return True  # `restore` will say which were passed over
    faults = [str(warning.message.args[0]) for warning in passed_over]  # pyright: ignore[reportAttributeAccessIssue]
    if faults and not all(disk.is_temporary(path) or _is_empty_folder(path) for path in directory.iterdir()):
        raise DamagedCheckpointError(
            f"{directory}: no checkpoint is intact: {'; '.join(faults)}; put an intact one there, or start over with"
            " --overwrite (overwrite=True), which deletes them"
        )
    for fault in faults:
        warnings.warn(checkpoint.DamagedCheckpointWarning(fault), stacklevel=2)
    return False


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _entries(root: Path) -> list[Path]:
    """What lies in the folder, without the lock and what a killed writer left."""
    if not root.exists():
        return []
    if not root.is_dir():
        raise ConfigurationError(f"{root} is a file: give a folder")
    return [path for path in root.iterdir() if path.name != _LOCK and not disk.is_temporary(path)]


def _check_is_run(root: Path, found: list[Path]) -> None:
    """Refuses a folder without a run's config.json, which a run writes first: `checkpoints` is many programs'."""
    try:
        read_config(root)
    except ConfigurationError as error:
        names = ", ".join(sorted(path.name for path in found)[:5])
        raise ConfigurationError(f"{root} holds {names} and is no run's folder ({error}): give another one") from None


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
