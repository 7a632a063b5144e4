"""A script in several processes at once, on this machine. No tests here."""

import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["free_address", "run_together"]


def free_address() -> str:
    """host:port of this machine that nobody serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def run_together(script: Path, words: Sequence[Sequence[str]], environment: Mapping[str, str], *, timeout: int) -> None:
    """A process of the script for each of `words`, its own; each must end well, and none is left, however it ends."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, str(script), *own], env=environment, **pipes) for own in words]
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, text in zip(processes, errors, strict=True):
        assert process.returncode == 0, text[-3000:]
