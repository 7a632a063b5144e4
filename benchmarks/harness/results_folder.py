"""A benchmark's results folder: the command, the machine, the raw numbers and the table, in four files."""

import json
from pathlib import Path
from typing import Any

from byol_jax.errors import ConfigurationError

__all__ = ["check_new", "write_results"]


def check_new(out: Path) -> None:
    """Nothing may be there: results are never overwritten.

    Raises:
        ConfigurationError: a file, or a folder that isn't empty.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigurationError(f"--out {out}: something is there already; name a new folder")


def write_results(out: Path, *, command: str, machine: dict[str, Any], raw: Any, table: str) -> None:
    """Writes them into `out`, which is made where it isn't there."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "command.txt").write_text(f"{command}\n")
    (out / "machine.json").write_text(json.dumps(machine, indent=1) + "\n")
    (out / "raw.json").write_text(json.dumps(raw, indent=1) + "\n")
    (out / "table.md").write_text(f"{table.rstrip()}\n")
