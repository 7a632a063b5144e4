"""What a result depends on besides the code: processor, cores, versions, settings. No host names, no paths."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "available_cores", "describe"]

PACKAGES = ("byol-jax", "jax", "jaxlib", "optax", "numpy", "torch", "torchvision", "byol-pytorch")
PACKAGES += ("pillow", "lightly")
VARIABLES = ("XLA_FLAGS", "LD_PRELOAD", "GLIBC_TUNABLES", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "KMP_BLOCKTIME")
ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""


def describe() -> dict[str, Any]:
    """The machine as JSON: `processor, cores, memory_gib, system, libc, python, packages, variables, git`.

    `variables` are the environment variables that change speed, where they are set, without folders. `git` is the
    checkout's commit and whether files differ from it, or None without a checkout.

    Example:
        >>> sorted(describe())
        ['cores', 'git', 'libc', 'memory_gib', 'packages', 'processor', 'python', 'system', 'variables']
    """
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "libc": " ".join(platform.libc_ver()).strip(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "variables": {name: _without_folders(os.environ[name]) for name in VARIABLES if name in os.environ},
        "git": _git(),
    }


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
        return next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _without_folders(text: str) -> str:
    return re.sub(r"[^\s=:]*/", "", text)


def _git() -> dict[str, Any] | None:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
