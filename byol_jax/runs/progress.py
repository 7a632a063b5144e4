"""What a person sees while training runs: one line that moves on a terminal, plain lines elsewhere, and a log file.

Everything goes to stderr; results are printed by others, to stdout. Also here: the wish to stop (Ctrl-C, SIGTERM),
turned into a flag that the loop reads between steps.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Stop", "TrainingLog", "progress_bar", "scanning", "stop_on_signals"]


class TrainingLog:
    """Writes each event to the log file, and shows it: on a terminal above a moving line, elsewhere as it is.

    Args:
        path: the log file, appended to; None for a process that writes nothing.
        total_steps: where the moving line ends.
        show: False keeps stderr silent.
    """

    def __init__(self, path: Path | None, *, total_steps: int, first_step: int = 0, show: bool = True) -> None:
        self._path = path
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._console = console if show else None
        self._bar = None
        if show and console.is_terminal:
            columns = (MofNCompleteColumn(), BarColumn(bar_width=6), TextColumn("{task.fields[row]}"))
            self._bar = Progress(*columns, TimeRemainingColumn(), console=console)  # 80 characters at most
            self._task = self._bar.add_task("training", total=total_steps, completed=first_step, row="compiling …")
        self._total = total_steps

    def __enter__(self) -> "TrainingLog":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, line: str) -> None:
        """One event: file and screen."""
        self._write(line)
        if self._console is not None:
            self._console.print(line, markup=False)

    def advance(self, step: int) -> None:
        """Moves the line on a terminal; nothing elsewhere."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def report(self, row: dict[str, Any]) -> None:
        """One row of metrics: the log file and, without a terminal, stderr; on a terminal the moving line."""
        left = (self._total - row["step"]) * row["seconds_per_step"]
        speed, learning = f"{row['images_per_second']:,.0f}", f"loss {row['loss']:.3f} spread {row['feature_std']:.3f}"
        text = f"epoch {row['epoch']:.1f} {speed} images/s wait {row['data_wait']:.0%} {learning}"
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
def scanning(show: bool) -> Iterator[Callable[[int, int], None] | None]:
    """`progress(done, total)` for looking through a folder: a bar on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if not (show and console.is_terminal):
        yield None
        return
    with Progress(TextColumn("looking through the images"), BarColumn(), MofNCompleteColumn(), console=console) as bar:
        task = bar.add_task("scan", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """While inside, `update(done, total)` moves the bar."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        yield update


class Stop:
    """Whether a stop was asked for, and by which signal (0: by none)."""

    def __init__(self) -> None:
        self.signal = 0

    def __bool__(self) -> bool:
        return self.signal != 0


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """While inside, the first SIGINT or SIGTERM sets the flag, so that the loop can save and leave; a second one
    interrupts at once. Outside the main thread, where Python delivers no signals, the flag is never set."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.signal = number
        print("stopping after this step; once more to stop at once", file=sys.stderr)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
