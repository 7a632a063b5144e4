"""What a run measures of itself on the way, beside its loss: projections in evaluation mode, and a labelled probe."""

import time
from collections.abc import Callable
from typing import Any

import jax

from byol_jax.errors import DataError
from byol_jax.runs.health import compile_health, fixed_images, local_state, raw_images
from byol_jax.runs.metrics import append_metrics, read_metrics
from byol_jax.runs.probe import BATCH, Prober, make_probe
from byol_jax.runs.tally import Tally
from byol_jax.train.program import Plan
from byol_jax.types import TrainState

__all__ = ["Measures"]


class Measures:
    """Every process has one and calls it alike, since a state may be in parts; the process that writes measures.

    Made before the first step: at step 0 the starting weights have been probed. No time that is spent here is a step's.

    Args:
        images: the first batch.
    """

    def __init__(self, plan: Plan, state: TrainState, images: jax.Array, tally: Tally) -> None:
        self._plan, self._tally = plan, tally
        here = local_state(plan.learner, state)
        self._health = _compile_health(plan, here, images, tally)
        self._prober = _open_prober(plan, images)
        if int(state.step) == 0:
            self._write_probe(here, 0)

    @property
    def remark(self) -> str:
        """The newest probe in a few words, for the progress line; empty without one."""
        return "" if self._prober is None else self._prober.remark

    def health(self, state: TrainState) -> dict[str, float]:
        """What evaluation mode says of the projections. The row before has waited for the state."""
        began = time.perf_counter()
        here = local_state(self._plan.learner, state)
        found = {} if self._health is None else self._health(here)
        self._tally.leave_out(time.perf_counter() - began)
        return found

    def probe(self, state: TrainState, done: int) -> None:
        """Measures the representation after `done` steps, as a row of its own."""
        self._write_probe(local_state(self._plan.learner, state), done)

    def _write_probe(self, here: TrainState, done: int) -> None:
        plan, prober = self._plan, self._prober
        if prober is None:
            return
        jax.block_until_ready(here)
        began = time.perf_counter()
        epoch = done / plan.source.epoch_steps if plan.source.epoch_steps else 0.0
        try:
            row = prober.row(here, step=done, epoch=epoch)
        except DataError as error:  # features that aren't finite
            plan.log.warn(f"no probe after step {done}: {error}")
        else:
            append_metrics(plan.paths.metrics, row)
            if plan.record_events is not None:
                plan.record_events(row)
            plan.log.say(prober.sentence)
        self._tally.leave_out(time.perf_counter() - began)


def _compile_health(
    plan: Plan, state: TrainState, images: jax.Array, tally: Tally
) -> Callable[[TrainState], dict[str, float]] | None:
    """Compiled before the step; None in processes that write nothing."""
    if not plan.writes:
        return None
    image_shape: tuple[Any, ...] = plan.learner.settings.image_shape
    if not plan.takes_any_batch:
        plan.log.say("projections in evaluation mode aren't measured: the network takes batches of certain sizes alone")
        return None
    fixed = fixed_images(plan.source.images, images, image_shape)
    if fixed is None:
        plan.log.say(f"projections in evaluation mode aren't measured: the data has no images of shape {image_shape}")
        return None
    began = time.perf_counter()
    raw = None if plan.program.health_every is None else raw_images(plan.source.images, images)
    health = compile_health(plan.learner, state, fixed, raw)
    tally.add_compilation(time.perf_counter() - began)
    return health


def _open_prober(plan: Plan, images: jax.Array) -> Prober | None:
    """What probes the representation; None without a probe, and in processes that write nothing."""
    probe = plan.program.probe
    if probe is None or not plan.writes:
        return None
    batch_size = min(len(images), BATCH) if plan.takes_any_batch else len(images)
    measure = make_probe(plan.learner, probe, batch_size=batch_size)
    return Prober(measure, read_metrics(plan.paths.metrics)[0], every=probe.every)
