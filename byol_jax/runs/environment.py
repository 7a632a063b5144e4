"""`environment.json`: what a result may depend on besides its configuration: versions, devices, the command.

For people who compare two runs: the program writes it, shows it in the report and never compares it. It holds no
secrets and no host names.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["environment"]

_PACKAGES = ("byol-jax", "jax", "jaxlib", "flax", "optax", "numpy", "pillow", "safetensors", "torch", "torchvision")
_HIDDEN = re.compile(r"--?[\w-]*(token|secret|password|passwd|credential|key|address|host)[\w-]*", re.IGNORECASE)


def environment() -> dict[str, Any]:
    """Package versions, Python, operating system, devices, processors, git commit and command line, as JSON.

    A package that isn't installed is None; `git` is None unless this file is tracked by a git checkout. The home
    folder is written as "~", and the values of options that sound like secrets or addresses as "…".

    Example:
        >>> sorted(environment())
        ['command', 'cpu_count', 'devices', 'git', 'packages', 'platform', 'processes', 'python']
    """
    import jax

    devices = jax.devices()
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "processes": jax.process_count(),
        "git": _git(Path(__file__).parent),
        "command": _without_secrets(sys.argv),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    """The commit of the checkout that tracks this file, and whether tracked files were changed since."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # not merely inside somebody else's repository
        changes = git("status", "--porcelain", "--untracked-files=no")
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None


def _without_secrets(arguments: list[str]) -> list[str]:
    home = str(Path.home())
    shown, hide = [], False
    for argument in [Path(arguments[0]).name, *arguments[1:]] if arguments else []:
        name, equals, _ = argument.partition("=")
        secret = bool(_HIDDEN.fullmatch(name))
        if hide and not argument.startswith("-"):
            argument = "…"
        elif secret and equals:
            argument = f"{name}=…"
        hide = secret and not equals
        shown.append(argument.replace(home, "~") if len(home) > 1 else argument)
    return shown
