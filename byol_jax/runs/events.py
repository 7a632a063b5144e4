"""`tensorboard/`: the rows of metrics.jsonl once more, as TensorBoard events. Optional; nothing here reads them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from byol_jax.errors import MissingDependencyError

__all__ = ["event_writer"]


def event_writer(folder: Path) -> Callable[[dict[str, Any]], None]:
    """Returns `record(row)`, which writes each number of a row as the scalar of that name at `row["step"]`.

    The folder is made with the first row, and every row is on disk when `record` returns.

    Raises:
        MissingDependencyError: the package tensorboard isn't installed.
    """
    try:
        from tensorboard.summary import Writer
    except ImportError as error:
        raise MissingDependencyError(
            'TensorBoard events need the package tensorboard: pip install "byol-jax[logs]"'
        ) from error
    writers: list[Writer] = []

    def record(row: dict[str, Any]) -> None:
        if not writers:
            writers.append(Writer(str(folder)))
        for name, number in row.items():
            if name != "step":
                writers[0].add_scalar(name, float(number), row["step"])
        writers[0].flush()

    return record
