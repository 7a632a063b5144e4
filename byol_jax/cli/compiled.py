"""Keeping compiled programs for the next command: JAX's persistent compilation cache, in the user's cache folder.

For programs only, like `allocator.py`: the command line switches it on and the library never does. It changes no
result: a kept program is the very one that would be compiled.
"""

import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

__all__ = ["keep_compiled_programs"]

LIMIT = 4 * 2**30
"""Bytes of kept programs; what was longest unused goes first. JAX watches it where `filelock` is installed."""

CPU_INFO = Path("/proc/cpuinfo")


def keep_compiled_programs() -> Path | None:
    """Has JAX keep every program that it compiles, and read what it kept; call it before the first computation.

    A folder for each kind of processor: XLA compiles for the instructions of the one that it runs on, and a home may
    be shared by several. JAX's own key has versions, options and the program.

    Returns:
        The folder; None, with nothing changed, where JAX's own variables decide (JAX_COMPILATION_CACHE_DIR,
        JAX_ENABLE_COMPILATION_CACHE), and where the folder can't be written.
    """
    import jax

    config: Any = jax.config  # its attributes are made as it is imported
    if config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return None
    try:
        folder = _cache_folder() / "byol_jax" / "compiled" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: no home
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # a run has many programs, most of them small
    if _can_lock_files():
        _remove_halves(folder)
        jax.config.update("jax_compilation_cache_max_size", LIMIT)
    return folder


def _remove_halves(folder: Path) -> None:
    """Removes programs without a time of last use, as a process leaves them that is killed between writing the two.

    One of them is enough for JAX (0.10.2) to keep nothing more in the folder, with a warning for each program: it asks
    all of them for their times.
    """
    for program in folder.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
            with contextlib.suppress(OSError):
                program.unlink(missing_ok=True)


def _cache_folder() -> Path:
    """Where programs keep what they can make again, by the system's convention."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return chosen if chosen.is_absolute() else Path.home() / ".cache"  # a relative one is to be ignored


def _processor() -> str:
    """A name for all processors with the same instructions."""
    facts = {platform.machine(), platform.processor()}
    try:
        lines = CPU_INFO.read_text().splitlines()
        facts |= {line for line in lines if line.lower().startswith(("model name", "flags", "features", "isa"))}
    except OSError:
        pass  # not Linux
    return hashlib.sha256("\n".join(sorted(facts)).encode()).hexdigest()[:16]


def _can_lock_files() -> bool:
    from importlib.util import find_spec

    return find_spec("filelock") is not None
