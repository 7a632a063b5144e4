"""The files of a checkpoint's folder, all of the new ones or none: what a writer, or several, fill it through."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from byol_jax import disk
from byol_jax.checkpoint.manifest import MANIFEST

__all__ = ["new_contents"]


@contextlib.contextmanager
def new_contents(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill with a checkpoint's files that are on the disk; at the end they are those of `folder`.

    A new folder appears by one rename; one that is there changes by one replacement of its manifest. Beside that
    manifest files may stay that it doesn't name: new ones, where the system refused to replace it, and older ones,
    where it refused to remove them. Nobody reads them, and the next save of the same step removes them.

    Raises:
        OSError: the system refused. What `folder` held is untouched, and of a new folder nothing is left behind.
    """
    directory = folder.parent
    directory.mkdir(parents=True, exist_ok=True)
    disk.remove_abandoned(directory)
    if not folder.exists():
        with disk.new_folder(folder) as temporary:
            yield temporary
        return
    with disk.temporary_folder(directory) as temporary:
        yield temporary
        names = sorted((path.name for path in temporary.iterdir()), key=lambda name: (name == MANIFEST, name))
        for name in names:  # the manifest last
            os.replace(temporary / name, folder / name)
            disk.sync_folder(folder)
    with contextlib.suppress(OSError):  # the new contents are there
        for leftover in folder.glob("state-*.safetensors"):
            if leftover.name not in names:
                leftover.unlink()
