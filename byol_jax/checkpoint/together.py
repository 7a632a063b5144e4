"""One checkpoint that several processes write: each a file of its own, process 0 the manifest when all are there.

Every process calls `write_together`. Process 0 opens a temporary folder and says where; all write there, and say how it
went; process 0 seals the checkpoint, and says that. What fails in one process is raised in all of them after the same
exchange, so that none waits for another. A process that dies instead takes the others with it, as anywhere in a run
(`parallel.initialize`); its temporary folder is removed by the next save, and the earlier checkpoints are as they were.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from byol_jax import disk, parallel
from byol_jax.checkpoint.contents import new_contents
from byol_jax.checkpoint.manifest import MANIFEST, FileEntry, Manifest, encode, file_entry

__all__ = ["part_file", "write_together"]

_NOTE = 256
"""Bytes that a process tells the others at once: an error's number, and a folder's name or a hash with a size."""


def part_file(process: int, entry: FileEntry) -> str:
    """The name of the file that a process writes.

    Example:
        >>> part_file(1, file_entry(b"abc"))
        'state-1-ba7816bf8f01cfea.safetensors'
    """
    return f"state-{process}-{entry.sha256[:16]}.safetensors"


def write_together(
    folder: Path, data: bytes, describe: Callable[[Sequence[str], Sequence[FileEntry]], Manifest]
) -> None:
    """Writes the checkpoint `folder`, all or nothing; returns, or raises, when every process does.

    Args:
        folder: on a disk that all processes see.
        data: this process's file.
        describe: the manifest, from the names of all processes' files and what they hold.

    Raises:
        OSError: the system refused in this process, or in another, which is named. Nothing new is left behind.
    """
    own = file_entry(data)

    def write() -> str:
        disk.write_durably(folder.parent / temporary / part_file(jax.process_index(), own), data)
        return f"{own.sha256} {own.size}"

    def seal() -> str:
        if parallel.is_writer():
            manifest = describe([part_file(*numbered) for numbered in enumerate(entries)], entries)
            disk.write_durably(folder.parent / temporary / MANIFEST, encode(manifest))
            opened.close()
        return ""

    with contextlib.ExitStack() as opened:
        temporary, *_ = _all_say(
            lambda: opened.enter_context(new_contents(folder)).name if parallel.is_writer() else ""
        )
        entries = [FileEntry(text.split()[0], int(text.split()[1])) for text in _all_say(write)]
        _all_say(seal)


def _all_say(work: Callable[[], str]) -> list[str]:
    """What `work` gives in each process, by their numbers; a failure in one is raised in all."""
    from jax.experimental import multihost_utils

    text, failure = "", None
    try:
        text = work()
    except OSError as error:
        failure = error
    number = 0 if failure is None else failure.errno or errno.EIO
    note = np.frombuffer(bytes([number]) + text.encode().ljust(_NOTE - 1, b"\0"), np.uint8)
    notes = np.asarray(multihost_utils.process_allgather(note)).reshape(-1, _NOTE)  # [processes, _NOTE]
    if failure is not None:
        raise failure
    for process, (number, *_) in enumerate(notes.tolist()):
        if number:
            raise OSError(number, f"{os.strerror(number)} in process {process}")
    return [row.tobytes()[1:].rstrip(b"\0").decode() for row in notes]
