"""A file for each run that is done: what it was, what came out, where and by which commit."""

import datetime
import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness.machine import ROOT, describe
from benchmarks.proof.items import Item, facts
from byol_jax.disk import write_atomically
from byol_jax.errors import ConfigurationError, DataError

__all__ = ["RESULTS", "Begin", "begin", "check_clean", "load", "row_of", "row_path", "stored", "write"]

RESULTS = ROOT / "benchmarks" / "results" / "proof"


def row_path(out: Path, item: Item) -> Path:
    return out / f"{item.name}.json"


def load(out: Path, item: Item) -> dict[str, Any] | None:
    """The item's row; None where there is none, or one that was made with other options.

    Raises:
        DataError: the file is no row.
    """
    path = row_path(out, item)
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
        same = row["item"] == facts(item)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a row of this benchmark; delete it, and it is measured again") from error
    return row if same else None


def stored(out: Path, items: Iterable[Item]) -> list[dict[str, Any]]:
    """The rows that there are, in the order of the items."""
    return [row for item in items if (row := load(out, item)) is not None]


class Begin(NamedTuple):
    """How it was when a run began: the checkout, as `checkout` tells, and the load average."""

    git: dict[str, Any] | None
    load: float


def begin() -> Begin:
    return Begin(checkout(), os.getloadavg()[0])


def row_of(item: Item, outcome: dict[str, Any], *, scale: str, began: Begin) -> dict[str, Any]:
    """The row of a run that has just ended whole; it counts as changed where the checkout changed meanwhile.

    Args:
        outcome: what `worker.run_item` gives.
    """
    machine = describe()
    del machine["git"]
    git = began.git and began.git | {"changed": began.git["changed"] or began.git != checkout()}
    return {
        "item": facts(item),
        "command": f"python -m benchmarks.proof --only {item.name}{'' if scale == 'full' else f' --scale {scale}'}",
        "date": str(datetime.datetime.now(datetime.UTC).date()),
        "git": git,
        "machine": machine,
        "load_average": [began.load, os.getloadavg()[0]],
        **outcome,
    }


def write(out: Path, item: Item, row: dict[str, Any]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(row_path(out, item), (json.dumps(row, indent=1) + "\n").encode())


def check_clean() -> None:
    """Nothing, where the checkout is the commit that a row would name, results of this benchmark apart.

    Raises:
        ConfigurationError: files differ from it, or there is no commit.
    """
    changed = changes()
    if changed is None:
        raise ConfigurationError("the checkout has no git commit, and a row has to name one: clone the repository")
    if changed:
        raise ConfigurationError(
            f"{', '.join(changed[:3])}{', …' * (len(changed) > 3)}: not as in the commit that a row would name;"
            " commit first, or try with --scale smoke"
        )


def checkout() -> dict[str, Any] | None:
    """`commit`, and `changed`: whether files differ from it, rows apart; None without a commit."""
    changed = changes()
    return None if changed is None else {"commit": _git("rev-parse", "HEAD"), "changed": bool(changed)}


def changes() -> list[str] | None:
    """Files that differ from the commit, but for the rows; None without a commit."""
    try:
        found = _git("status", "--porcelain", "--", ".", f":!{RESULTS.relative_to(ROOT)}")
    except (OSError, subprocess.SubprocessError):
        return None
    return [line[3:] for line in found.splitlines()]


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.rstrip()
