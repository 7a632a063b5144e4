"""`metrics.jsonl`: one JSON object a line, written while training, readable at any moment.

Only the file: what a row says is decided by tally.py. A crash can tear nothing but the last line; readers count such
lines and go on.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from byol_jax import disk

__all__ = ["append_metrics", "read_metrics", "truncate_metrics"]


def append_metrics(path: str | os.PathLike[str], row: dict[str, Any]) -> None:
    """Appends one row, whole or not at all. NaN and infinities become null, since JSON has none.

    Args:
        path: the file, made if it isn't there.
        row: names to numbers (JAX's and NumPy's scalars too), texts or None; "step" is among them.

    Raises:
        OSError: the disk is full or read-only; the file is as it was.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> append_metrics(path, {"step": 1, "loss": float("nan")})
        >>> read_metrics(path)
        ([{'step': 1, 'loss': None}], 0)
    """
    line = (json.dumps({name: _json_value(value) for name, value in row.items()}, allow_nan=False) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    before = os.fstat(descriptor).st_size
    try:
        written = 0
        while written < len(line):  # a disk that fills up takes a part and refuses the rest
            written += os.write(descriptor, line[written:])
    except OSError as error:
        os.ftruncate(descriptor, before)
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        os.close(descriptor)


def read_metrics(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], int]:
    """All rows, and the number of lines that can't be read; an absent file counts as empty."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except FileNotFoundError:
        return [], 0
    rows = [row for row in map(_parse, lines) if row is not None]
    return rows, len(lines) - len(rows)


def truncate_metrics(path: str | os.PathLike[str], step: int) -> None:
    """Drops rows of steps after `step`, which a resumed run writes again, and lines that can't be read."""
    if Path(path).exists():
        rows, _ = read_metrics(path)
        kept = [row for row in rows if isinstance(row.get("step"), int | float) and row["step"] <= step]
        disk.write_atomically(Path(path), "".join(json.dumps(row) + "\n" for row in kept).encode())


def _json_value(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
