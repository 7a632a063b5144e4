"""Writing so that a crash, a kill or a full disk leaves the old file or the new one, never a mixture.

The rule: write beside the target, fsync, rename, fsync the folder. Linux and macOS (a folder can be opened, fsynced and
locked). Nothing here knows what the bytes mean.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = [
    "discard",
    "is_temporary",
    "remove_abandoned",
    "sync_folder",
    "temporary_folder",
    "write_atomically",
    "write_durably",
]

_TEMPORARY = ".tmp-"


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it. FileExistsError if there is one already."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's list of names; a rename is safe only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file's content: a reader, or a crash at any moment, sees all of the old or all of the new.

    Raises:
        OSError: disk full, read-only, no such folder; it names `path`. The old content is untouched and nothing is
            left behind.
    """
    try:
        with temporary_folder(path.parent) as temporary:
            write_durably(temporary / path.name, data)
            os.replace(temporary / path.name, path)
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), os.fspath(path)) from error


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """A new folder beside what will be replaced; removed at the end, unless it was renamed.

    It is locked while in use: the kernel lets go of the lock when the writer dies, however it dies, and that is how
    `remove_abandoned` knows (a process id would not do: in a container the next writer has the same one).
    """
    folder, descriptor = _locked_folder(parent)
    try:
        # mkdtemp makes it private; what is renamed into place gets the permissions that the parent has.
        os.chmod(folder, parent.stat().st_mode & 0o777)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _locked_folder(parent: Path) -> tuple[Path, int]:
    """A new folder and the descriptor that holds its lock; another one where it was taken for abandoned meanwhile."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=parent))
        descriptor = None
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, FileNotFoundError):  # somebody is removing it, or has
            if descriptor is not None:
                os.close(descriptor)
            continue
        except OSError:  # a file system without locks: then nothing is ever taken for abandoned
            if descriptor is None:
                raise
        if folder.exists():
            return folder, descriptor
        os.close(descriptor)


def is_temporary(path: Path) -> bool:
    """Whether it is one of the folders that `temporary_folder` makes."""
    return path.name.startswith(_TEMPORARY)


def remove_abandoned(parent: Path) -> None:
    """Remove the temporary folders whose writers are dead; those in use, here or in another process, stay."""
    for folder in parent.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def discard(folder: Path) -> None:
    """Remove a folder in one instant: a kill in the middle leaves a temporary folder, not half of the old one."""
    with temporary_folder(folder.parent) as temporary:
        os.rename(folder, temporary / folder.name)
