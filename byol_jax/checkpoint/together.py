"""One checkpoint that several processes write: each a file of its own, process 0 the manifest when all are there.

Every process calls `write_together`. Process 0 opens a temporary folder and says where; all write there, and say how it
went; process 0 seals the checkpoint, and says that. What fails in one process is raised in all of them after the same
exchange (`tell_all`), so that none waits for another. A process that dies instead takes the others with it, as
anywhere in a run (`parallel.initialize`); its temporary folder is removed by the next save, and the earlier checkpoints
are as they were.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from byol_jax import disk, parallel
from byol_jax.checkpoint.contents import new_contents
from byol_jax.checkpoint.manifest import MANIFEST, FileEntry, Manifest, encode, file_entry
from byol_jax.parallel.exchange import tell_all

__all__ = ["part_file", "write_together"]


def part_file(process: int, entry: FileEntry) -> str:
    """The name of the file that a process writes.

    Example:
        >>> part_file(1, file_entry(b"abc"))
        'state-1-ba7816bf8f01cfea.safetensors'
    """
    return f"state-{process}-{entry.sha256[:16]}.safetensors"


def write_together(
    folder: Path, content: Callable[[], bytes], describe: Callable[[Sequence[str], Sequence[FileEntry]], Manifest]
) -> None:
    """Writes the checkpoint `folder`, all or nothing; returns, or raises, when every process does.

    Args:
        folder: on a disk that all processes see.
        content: gives this process's file.
        describe: the manifest, from the names of all processes' files and what they hold.

    Raises:
        OSError: the system refused in this process, or in another, which is named. `new_contents` says what may stay.
        Exception: what `content` or `describe` raised in this process; in the others see `tell_all`.
    """
    data = b""

    def begin() -> str:
        nonlocal data
        data = content()
        return opened.enter_context(new_contents(folder)).name if parallel.is_writer() else ""

    def write() -> str:
        own = file_entry(data)
        disk.write_durably(folder.parent / temporary / part_file(jax.process_index(), own), data)
        return f"{own.sha256} {own.size}"

    def seal() -> str:
        if parallel.is_writer():
            manifest = describe([part_file(*numbered) for numbered in enumerate(entries)], entries)
            disk.write_durably(folder.parent / temporary / MANIFEST, encode(manifest))
            opened.close()
        return ""

    with contextlib.ExitStack() as opened:
        temporary, *_ = tell_all(begin)
        entries = [FileEntry(text.split()[0], int(text.split()[1])) for text in tell_all(write)]
        tell_all(seal)
