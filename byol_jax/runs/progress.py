"""What a person sees of work that takes its time: a line or a bar that moves on a terminal, plain lines elsewhere.

A run's lines are kept in train.log too. All of it goes to stderr; results are printed by others, to stdout.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["TrainingLog", "progress_bar"]


class TrainingLog:
    """Writes what happens to the log file and shows it: on a terminal above a moving line, elsewhere as plain lines.

    Args:
        path: the log file, which is appended to; None for a process that writes nothing.
        total_steps: where the moving line ends.
        show: False keeps stderr silent.
    """

    def __init__(self, path: Path | None, *, total_steps: int, show: bool = True) -> None:
        self._path = path
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._console = console if show else None
        self._bar = None
        if show and console.is_terminal:
            columns = (MofNCompleteColumn(), BarColumn(bar_width=6), TextColumn("{task.fields[row]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console)  # 80 characters at most
            self._task = self._bar.add_task("training", total=total_steps, row="compiling …")
        self._total = total_steps

    def __enter__(self) -> "TrainingLog":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """Writes one line to the file and the screen."""
        self._write(line)
        if self._console is not None:
            self._console.print(line, markup=False)

    def warn(self, line: str) -> None:
        """`say`, in red on the screen and marked in the file."""
        self._write(f"WARNING: {line}")
        if self._console is not None:
            self._console.print(line, markup=False, style="bold red")

    def advance(self, step: int) -> None:
        """Moves the line on a terminal."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, row: dict[str, Any], *, remark: str = "") -> None:
        """Writes one row of metrics to the log file and shows it: in the moving line, or as a line of its own.

        Args:
            remark: what else is to be seen there, a few words.
        """
        left = (self._total - row["step"]) * row["seconds_per_step"]
        speed, learning = f"{row['images_per_second']:,.0f}", f"loss {row['loss']:.3f} spread {row['feature_std']:.3f}"
        waiting = f"wait {row['data_wait']:.0%} " if not remark else ""  # a terminal's line has room for one of them
        text = f"epoch {row['epoch']:.1f} {speed} images/s {waiting}{learning}{remark and ' '}{remark}"
        line = f"step {row['step']}/{self._total} {text} {_duration(left)} left"
        self._write(line)
        if self._bar is not None:
            self._bar.update(self._task, completed=row["step"], row=text)
        elif self._console is not None:
            self._console.print(line, markup=False)

    def _write(self, line: str) -> None:
        if self._path is not None:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")


@contextmanager
def progress_bar(label: str, *, show: bool = True) -> Iterator[Callable[[int, int], None]]:
    """While inside, `update(done, total)` moves a bar on the terminal; nothing is shown elsewhere."""
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield lambda done, total: None  # a disabled bar of rich before 14.3 ends with an empty line
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
