"""The rows of metrics.jsonl as TensorBoard events, for people who look there. Optional; JSONL is always written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from byol_jax.errors import MissingDependencyError

__all__ = ["event_writer"]


def event_writer(folder: Path) -> Callable[[dict[str, Any]], None]:
    """`record(row)`: every number of the row as a scalar of its name at `row["step"]`; flushed at once.

    Raises:
        MissingDependencyError: the package tensorboard isn't installed. Nothing is written before the first row.
    """
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise MissingDependencyError(
            'TensorBoard events need the package tensorboard: pip install "byol-jax[logs]"'
        ) from error
    opened: list[Writer] = []

    def record(row: dict[str, Any]) -> None:
        if not opened:
            opened.append(Writer(str(folder)))
        for name, number in row.items():
            if name != "step":
                opened[0].add_scalar(name, float(number), row["step"])
        opened[0].flush()

    return record
