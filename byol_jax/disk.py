"""Writing so that a crash, a kill or a full disk leaves the old file or the new one, never a mixture.

The rule: write into a temporary folder beside the target, fsync, rename, fsync the folder. What a killed writer leaves
is one such folder: the next writer knows it by its name and by the lock that nobody holds any more, and removes it.
Linux and macOS. Nothing here knows what the bytes mean.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

__all__ = [
    "discard",
    "is_temporary",
    "new_folder",
    "remove_abandoned",
    "replacement",
    "replacements",
    "sync_folder",
    "temporary_folder",
    "write_atomically",
    "write_durably",
]

_TEMPORARY = ".tmp-"
_NEW_TEMPORARY = f"{_TEMPORARY}byol-jax-"
"""New temporary folders are called so; in a folder that others use too, only these are taken for ours."""

_SET_ASIDE = ".replaced-byol-jax-"


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it. FileExistsError if there is one already."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def weights_in(folder: str | os.PathLike[str]) -> Path | None:
    """The file of weights that somebody means who gives a folder: of a run, or of a part of one, the exported encoder;
    of any other folder the only file of weights in it. None where that isn't clear.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / "model.safetensors").touch()
        >>> weights_in(folder).name
        'model.safetensors'
    """
    for run in (Path(folder), *Path(os.path.abspath(folder)).parents[:2]):
        exported = run / "exported" / "encoder.safetensors"
        if (run / "config.json").is_file() and exported.is_file():
            return exported
    inside = [path for path in sorted(Path(folder).iterdir()) if path.is_file()]
    for suffixes in ((".safetensors",), (".pt", ".pth", ".ckpt", ".bin", ".npz")):
        found = [path for path in inside if path.suffix in suffixes]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's list of names; a rename is safe only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file's content: a reader, or a crash at any moment, sees all of the old or all of the new.

    Links and permissions: see `replacement`.

    Raises:
        OSError: disk full, read-only, no such folder; it names `path`. The old content is untouched and nothing is
            left behind.
    """
    try:
        with replacement(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


@contextlib.contextmanager
def replacement(path: str | os.PathLike[str]) -> Iterator[Path]:
    """An empty file to write to, by its name; on success it takes `path`'s place, on any failure it is removed.

    The new file has the permissions of the one that it replaces, or else those of any new file. Where `path` is a
    link, the file that it leads to is replaced.

    Raises:
        OSError: the system refused; the old file is untouched.

    Example:
        >>> path = Path(tempfile.mkdtemp(), "numbers.txt")
        >>> with replacement(path) as temporary:
        ...     _ = temporary.write_text("1 2 3")
        >>> path.read_text()
        '1 2 3'
    """
    target = Path(os.path.realpath(path))
    _remove_unlocked(target.parent.glob(f"{_NEW_TEMPORARY}*"))
    with temporary_folder(target.parent) as folder:
        (temporary,), (mode,) = _empty_files(folder, [target])
        yield temporary
        _complete(temporary, mode)
        os.replace(temporary, target)
    sync_folder(target.parent)


@contextlib.contextmanager
def replacements(targets: Sequence[Path], outdated: Sequence[Path] = ()) -> Iterator[list[Path]]:
    """As `replacement`, for files of one folder that belong together; links are replaced themselves.

    What stood at the targets, and the `outdated` files of the same folder, go first, the last target first. Then the
    new files come, the last target last: it should be the one that names the others. On any failure all old files are
    back in their places. A kill or a power cut within the exchange can leave files missing, but never new ones among
    old ones; the old ones then lie in a folder `.replaced-byol-jax-…` beside, which nobody removes.

    Raises:
        OSError: the system refused.
    """
    parent = targets[-1].parent
    _remove_unlocked(parent.glob(f"{_NEW_TEMPORARY}*"))
    with temporary_folder(parent) as folder:
        temporaries, modes = _empty_files(folder, targets)
        yield temporaries
        for temporary, mode in zip(temporaries, modes, strict=True):
            _complete(temporary, mode)
        aside = Path(tempfile.mkdtemp(prefix=_SET_ASIDE, dir=parent))
        moves = [(old, aside / old.name) for old in reversed([*outdated, *targets]) if os.path.lexists(old)]
        done = []
        try:
            for source, target in [*moves, *zip(temporaries, targets, strict=True)]:
                os.replace(source, target)
                done.append((source, target))
            sync_folder(parent)
        except BaseException:
            for source, target in reversed(done):
                os.replace(target, source)
            os.rmdir(aside)
            raise
    shutil.rmtree(aside, ignore_errors=True)


def _empty_files(folder: Path, targets: Sequence[Path]) -> tuple[list[Path], list[int]]:
    """A new file for each target, and the permissions that it gets when it is complete."""
    files = [folder / target.name for target in targets]
    for file in files:
        file.touch(exist_ok=False)
    modes = [(old if old.exists() else new).stat().st_mode & 0o7777 for old, new in zip(targets, files, strict=True)]
    return files, modes


def _complete(file: Path, mode: int) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.chmod(descriptor, mode)  # whoever wrote the file may have made it anew: safetensors makes private ones
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill with files that are on the disk; on success it becomes `path`, which isn't there yet.

    Raises:
        OSError: the system refused; nothing is left behind.
    """
    with temporary_folder(path.parent) as temporary:
        yield temporary
        sync_folder(temporary)
        os.rename(temporary, path)
    sync_folder(path.parent)


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder beside what will be replaced; removed at the end, unless it was renamed.

    It is locked while in use. The kernel releases the lock when the writer dies, however it dies: that is how
    `remove_abandoned` knows. (A process id would not do: in a container the next writer has the same one.)
    """
    folder, descriptor = _locked_folder(parent)
    try:
        # mkdtemp makes it private; what is renamed into place gets the permissions that the parent has, and its group
        # where the parent hands that on.
        os.chmod(folder, parent.stat().st_mode & 0o2777)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock; another one where it was taken for abandoned meanwhile."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_NEW_TEMPORARY, dir=parent))
        descriptor = None
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            _lock(descriptor)
        except (BlockingIOError, FileNotFoundError):  # somebody is removing it, or has removed it
            if descriptor is not None:
                os.close(descriptor)
            continue
        except OSError:  # a file system without locks: then nothing is ever taken for abandoned
            if descriptor is None:
                raise
        if folder.exists():
            return folder, descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    import fcntl  # not on Windows, where weight files can still be read

    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_temporary(path: Path) -> bool:
    """Whether it is one of the folders that `temporary_folder` makes, now or in earlier versions."""
    return path.name.startswith(_TEMPORARY)


def remove_abandoned(parent: Path) -> None:
    """Remove the temporary folders whose writers are dead; those in use, here or in another process, stay.

    `parent` must be a folder in which nobody else keeps anything: earlier versions' temporary folders, which had a
    shorter name, are removed too.
    """
    _remove_unlocked(parent.glob(f"{_TEMPORARY}*"))


def _remove_unlocked(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                _lock(descriptor)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def discard(folder: Path) -> None:
    """Remove a folder in one instant: a kill in the middle leaves a temporary folder, not half of the old one."""
    with temporary_folder(folder.parent) as temporary:
        os.rename(folder, temporary / folder.name)
