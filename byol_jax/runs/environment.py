"""`environment.json`: what a result may depend on besides its configuration: versions, devices, the command.

For people who compare two runs: the program writes it and shows it in the report. It never refuses another one; a run
that goes on where rounding may differ says so. It holds no secrets and no host names.
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["environment", "hide_credentials", "rounding_changes"]

_PACKAGES = ("byol-jax", "jax", "jaxlib", "flax", "optax", "numpy", "pillow", "safetensors", "torch", "torchvision")
_HIDDEN = re.compile(r"--?[\w-]*(token|secret|password|passwd|credential|key|address|host)[\w-]*", re.IGNORECASE)

_CREDENTIALS = re.compile(r"(\w://)((?:[^/?#\s]*@)?)((?:[^?#\s]|\?(?![\w.%-]*=))*)((?:\?\S*)?)")


def environment() -> dict[str, Any]:
    """Package versions, Python, operating system, devices, processors, git commit and command line, as JSON.

    A package that isn't installed is None; `git` is None unless this file is tracked by a git checkout. The home
    folder is written as "~"; the values of options that sound like secrets or addresses, and user, password and query
    of URLs, as "…".

    Example:
        >>> sorted(environment())
        ['command', 'cpu_count', 'devices', 'git', 'packages', 'platform', 'processes', 'python', 'usable_cpu_count']
    """
    import jax

    devices = jax.devices()
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "usable_cpu_count": _usable_cpu_count(),
        "devices": {"platform": devices[0].platform, "kind": devices[0].device_kind, "count": len(devices)},
        "processes": jax.process_count(),
        "git": _git(Path(__file__).parent),
        "command": _without_secrets(sys.argv),
    }


def rounding_changes(before: str | os.PathLike[str]) -> list[str]:
    """What of this environment computes with other last bits than that in the file `before`, an environment.json.

    Versions of jax and jaxlib, kind and number of devices, and on CPU the number of cores that the process may use: XLA
    shares a reduction among them, and sums that are shared otherwise round otherwise. What the file doesn't say, or a
    file that can't be read, changes nothing.

    Returns:
        A text for each, "usable_cpu_count 2 then, 1 now".
    """
    try:
        then = json.loads(Path(before).read_bytes())
        facts = [_rounding_facts(one) for one in (then, environment())]
    except (OSError, ValueError, AttributeError, TypeError, KeyError):
        return []
    then, now = facts
    return [f"{name} {then[name]} then, {now[name]} now" for name in now if then.get(name) not in (None, now[name])]


def _rounding_facts(facts: dict[str, Any]) -> dict[str, Any]:
    devices = facts["devices"]
    cores = {"usable_cpu_count": facts.get("usable_cpu_count")} if devices["platform"] == "cpu" else {}
    versions = {name: facts["packages"][name] for name in ("jax", "jaxlib")}
    return versions | {f"devices/{name}": devices[name] for name in ("kind", "count")} | cores


def _usable_cpu_count() -> int | None:
    """Cores that XLA computes with: what PJRT_NPROC or NPROC say, else those that this process may run on."""
    for name in ("PJRT_NPROC", "NPROC"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


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
    """The command line without the home folder's name, and without what only its user should know."""
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
        argument = hide_credentials(argument)
        shown.append(argument.replace(home, "~") if len(home) > 1 else argument)
    return shown


def hide_credentials(text: str) -> str:
    """Every URL in `text` without user, password and query, which may be a signature.

    Example:
        >>> hide_credentials("https://me:word@host/a.tar?signature=1f")
        'https://…@host/a.tar?…'
    """
    return _CREDENTIALS.sub(lambda found: found[1] + (found[2] and "…@") + found[3] + (found[4] and "?…"), text)
