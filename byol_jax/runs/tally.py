"""The tally of a run's steps: which rows of metrics.jsonl they make, and when the run counts as diverged.

Every step enters with its metrics, which are still on the devices, and its number of images. Rows come out as plain
numbers. No file is written here and no step is run: metrics.py is the file, train/loop.py is the loop.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = ["NONFINITE_LIMIT", "STEPS_AHEAD", "Divergence", "Tally"]

STEPS_AHEAD = 2
"""How many steps the host may be ahead of the devices: enough to hide its work, few enough to bound memory."""

NONFINITE_LIMIT = 20
"""Steps in a row that aren't finite (`Learner.step`) after which a run has diverged. Metrics are
fetched this often, whatever `log_every`: by then they are ready, and nothing waits for them."""


class Divergence(NamedTuple):
    """So many steps in a row, up to this one, weren't finite."""

    count: int
    step: int


class _Entry(NamedTuple):
    """One step's metrics and its number of images, over all devices and processes."""

    metrics: dict[str, Any]
    images: int


class Tally:
    """Takes one entry a step and gives a row every `log_every` steps.

    Args:
        first_step: how many steps were done before; not 0 after a resume.
        log_every: steps between rows.
        epoch_steps: steps in an epoch; None where it isn't known.
        clock: seconds.

    Attributes:
        step: the last step whose metrics were fetched.
        divergence: None until NONFINITE_LIMIT steps in a row weren't finite, also where finite ones came after them.
        lost_at: the step whose optimiser made parameters without a finite norm of a finite gradient; None for none.

    Example:
        >>> tally = Tally(0, log_every=2, epoch_steps=None, clock=iter([0.0, 4.0]).__next__)
        >>> tally.add({"loss": 3.0, "nonfinite": 0.0}, images=8)
        >>> tally.row(waited=0.0) is None
        True
        >>> tally.add({"loss": 1.0, "nonfinite": 0.0}, images=8)
        >>> row = tally.row(waited=1.0)
        >>> row["step"], row["loss"], row["images_per_second"], row["data_wait"]
        (2, 2.0, 4.0, 0.25)
    """

    def __init__(
        self,
        first_step: int,
        *,
        log_every: int,
        epoch_steps: int | None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.step = first_step
        self.divergence: Divergence | None = None
        self.lost_at: int | None = None
        self._added = first_step
        self._log_every = log_every
        self._epoch_steps = epoch_steps
        self._clock = clock
        self._on_devices: deque[_Entry] = deque()
        self._fetched: list[_Entry] = []
        self._nonfinite_in_a_row = 0
        self._compile_seconds: float | None = None
        self._seconds_apart = 0.0
        self._row_time, self._row_waited = clock(), 0.0

    def add(self, metrics: dict[str, Any], *, images: int) -> None:
        """Enters a step; returns when the step `STEPS_AHEAD` before it is done."""
        self._added += 1
        self._on_devices.append(_Entry(metrics, images))
        if len(self._on_devices) > STEPS_AHEAD:
            jax.block_until_ready(self._on_devices[-STEPS_AHEAD - 1].metrics["loss"])

    def add_compilation(self, seconds: float) -> None:
        """Time that belongs to no step: the next row shows it as `compile_seconds` and leaves it out of the speed."""
        self._compile_seconds = (self._compile_seconds or 0.0) + seconds

    def leave_out(self, seconds: float) -> None:
        """Time that belongs to no step and is told elsewhere: the next row leaves it out of the speed."""
        self._seconds_apart += seconds

    def row(self, *, waited: float, last: bool = False) -> dict[str, Any] | None:
        """The row that is due after the step entered last, or None: every `log_every` steps and at a divergence.

        Numbers are means over the finite steps since the row before, or over all of them where none was finite.
        `nonfinite` is a number of steps. `seconds` is all the time since the row before; `seconds_per_step`,
        `images_per_second` and `data_wait`, the part of the time spent waiting for images, leave out the compilation,
        and what `leave_out` was told.

        Args:
            waited: seconds that the loop has waited for images since it began.
            last: the run ends with this step, so a row is due.
        """
        due = last or self._added % self._log_every == 0
        if due:
            self._fetch(len(self._on_devices))
        elif len(self._on_devices) >= NONFINITE_LIMIT + STEPS_AHEAD:
            self._fetch(NONFINITE_LIMIT)
        return self._make_row(waited) if due or self.divergence else None

    def _fetch(self, count: int) -> None:
        """Moves the oldest `count` entries to the host and looks for a divergence among them."""
        for entry in jax.device_get([self._on_devices.popleft() for _ in range(count)]):
            self.step += 1
            self._nonfinite_in_a_row = self._nonfinite_in_a_row + 1 if entry.metrics["nonfinite"] else 0
            if self._nonfinite_in_a_row >= NONFINITE_LIMIT:
                self.divergence = Divergence(self._nonfinite_in_a_row, self.step)
            if self.lost_at is None and _is_lost(entry.metrics):
                self.lost_at = self.step
            self._fetched.append(entry)

    def _make_row(self, waited: float) -> dict[str, Any]:
        entries, self._fetched = self._fetched, []
        now = self._clock()
        seconds = now - self._row_time
        running = max(seconds - (self._compile_seconds or 0.0) - self._seconds_apart, 1e-9)
        steps = [entry.metrics for entry in entries]
        finite = [step for step in steps if step["nonfinite"] == 0] or steps
        row = {name: float(np.mean([step[name] for step in finite], dtype=np.float64)) for name in steps[0]}
        row |= {
            "step": self.step,
            "epoch": self.step / self._epoch_steps if self._epoch_steps else 0.0,
            "nonfinite": int(sum(step["nonfinite"] for step in steps)),
            "seconds": seconds,
            "seconds_per_step": running / len(entries),
            "images_per_second": sum(entry.images for entry in entries) / running,
            "data_wait": (waited - self._row_waited) / running,
        }
        if self._compile_seconds is not None:
            row["compile_seconds"] = self._compile_seconds
        self._row_time, self._row_waited, self._compile_seconds, self._seconds_apart = now, waited, None, 0.0
        return row


def _is_lost(metrics: dict[str, Any]) -> bool:
    """Whether a step's loss and gradient were finite, and the norm of the parameters after it isn't."""
    before = all(np.isfinite(metrics.get(name, 0.0)) for name in ("loss", "grad_norm"))
    return before and not np.isfinite(metrics.get("param_norm", 0.0))
