"""Pre-training as a program, from top to bottom: check, open the data, open the run's folder, loop, finish.

`pretrain` is what `byol-jax train` and the demo call. The algorithm is in byol.py; this file moves data in and numbers
out, and makes sure that a run that was stopped goes on as if it hadn't been. What is written where: run.py.
"""

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from byol_jax import checkpoint, parallel, report
from byol_jax.byol import encoder_variables, make_learner
from byol_jax.data.loader import at_least
from byol_jax.errors import DivergedError
from byol_jax.runs import folder as run
from byol_jax.runs.artifacts import ENCODER, START, describe, export_encoder, keep_network, picture_views, start_from
from byol_jax.runs.events import event_writer
from byol_jax.runs.progress import TrainingLog, stop_on_signals
from byol_jax.runs.source import LISTED, Length, Source, open_source
from byol_jax.types import Encoder, Learner, TrainState

__all__ = ["pretrain"]

STEPS_AHEAD = 2
"""How many steps the host may be ahead of the devices: enough to hide its work, few enough to bound memory."""

NONFINITE_LIMIT = 20
"""Steps in a row without a finite loss and gradient (they change nothing) after which a run gives up. Metrics are
looked at this often, whatever `log_every`: by then they are there, and nothing waits for them."""


def pretrain(
    encoder: Encoder,
    data: Any,
    *,
    out: str | Path,
    image_size: Any,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 2,
    checkpoint_every: int = 1000,
    log_every: int = 50,
    init_from: str | Path | None = None,
    network: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    **learner_options: Any,
) -> TrainState:
    """Trains `encoder` on unlabelled images with BYOL and leaves everything about it in the folder `out`.

    Args:
        encoder: the network.
        data: a folder of images; an .npz or .npy file; "fashion-mnist"; an array [N, H, W, C], uint8 or floating in
            [0, 1]; a `Dataset`; or any iterable of image batches (then `steps` is needed and `batch_size` isn't used).
        out: the run's folder. One that isn't empty is refused without `resume` or `overwrite`.
        image_size: as in `make_learner`.
        epochs, steps: how long; exactly one of them. An epoch leaves out the last, incomplete batch.
        batch_size: images in a step, over all devices and processes.
        seed: of the weights, the augmentation and the order of the data.
        resume: go on after the newest checkpoint, bit for bit; from the beginning where there is none.
        workers: threads that decode images. Has no influence on the result.
        checkpoint_every, log_every: steps between checkpoints, and between rows of metrics.jsonl.
        init_from: file of weights (PyTorch's or ours) to start from: an encoder's, or a whole learner's, of which heads
            and target are taken where their sizes are the same.
        network, options: what config.json says about the encoder and the learner, for programs that rebuild them.
        progress: show progress on stderr.
        tensorboard: write the rows of metrics.jsonl as TensorBoard events too, into `out`/tensorboard.
        **learner_options: `make_learner`'s other arguments.

    Returns:
        The last state. Ctrl-C or SIGTERM save a checkpoint first, then raise KeyboardInterrupt.

    Raises:
        ConfigurationError, DataError, HiddenLayerNotFoundError: before anything is written.
        DivergedError: 20 steps in a row whose loss or gradient wasn't finite; a checkpoint was saved.

    Example:
        >>> import numpy as np, tempfile, byol_jax
        >>> images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     state = byol_jax.pretrain(byol_jax.nets.small_cnn(), images, out=folder + "/run", image_size=16,
        ...                               steps=2, batch_size=8, num_channels=1, projection_size=8,
        ...                               projection_hidden_size=16, progress=False)
        >>> int(state.step)
        2
    """
    at_least(1, batch_size=batch_size, checkpoint_every=checkpoint_every, log_every=log_every)
    learner = make_learner(encoder, image_size=image_size, **learner_options)
    source = open_source(
        data,
        Length(steps, epochs, batch_size),
        image_size=image_size,
        num_channels=learner_options.get("num_channels", 3),
        workers=workers,
        known=run.run_paths(out).images if resume else None,
        show=progress,
    )
    state = learner.init(jax.random.key(seed))
    state = state if init_from is None else start_from(init_from, state, encoder)
    writes = jax.process_index() == 0
    events = event_writer(run.run_paths(out).tensorboard) if tensorboard and writes else None
    sizes = {"image_size": image_size, "steps": source.total_steps, "batch_size": batch_size, "seed": seed}
    config = describe(
        network=network,
        learner=learner_options if options is None else options,
        data=source.identity,
        training=sizes,
        unimportant={"out": str(out), "workers": workers, "checkpoint_every": checkpoint_every, "log_every": log_every},
        init_from=init_from,
    )
    parallel.check_same({name: value for name, value in config.items() if name not in ("out", "workers")})
    with run.locked(out):
        paths, resumed = run.prepare(out, config, resume=resume, overwrite=overwrite)
        if writes:
            source.write_list(paths.images)
        if writes and not resumed:
            picture_views(paths.views, source.images, learner_options, image_size, state.key)
            if init_from is not None:
                export_encoder(paths.exported / START, encoder, encoder_variables(state), say=lambda line: None)
        path = paths.log if writes else None
        with TrainingLog(path, total_steps=source.total_steps, show=progress and writes) as log:
            plan = Plan(encoder, learner, source, paths, log, seed, workers, checkpoint_every, log_every, events)
            state = _trained(plan, state, resumed)
    return state


class Plan(NamedTuple):
    """What the loop needs to know; nothing in it changes."""

    encoder: Encoder
    learner: Learner
    source: Source
    paths: run.RunPaths
    log: TrainingLog
    seed: int
    workers: int
    checkpoint_every: int
    log_every: int
    record_events: Callable[[dict[str, Any]], None] | None


def _trained(plan: Plan, state: TrainState, resumed: bool) -> TrainState:
    """Begins or goes on, to the end, and leaves everything as it should be."""
    if jax.process_index() == 0:
        keep_network(plan.paths.network, plan.encoder)
    said = plan.source.say_skipped(plan.log.say)
    state = _loop(plan, _resumed(plan, state) if resumed else state)
    plan.source.say_skipped(plan.log.say, said)  # what turned out to be bad on the way
    _finish(plan, state)
    parallel.wait_for_all("finished")
    return state


def _loop(plan: Plan, state: TrainState) -> TrainState:
    """Steps from `state.step` to the end, or to a wished stop; saves on the way. One program, compiled once."""
    mesh = parallel.make_mesh()
    step = parallel.jit(plan.learner, mesh)
    done = int(state.step)
    state = parallel.replicate(state, mesh)
    recent: deque[dict[str, Any]] = deque()
    rows: list[dict[str, Any]] = []
    nonfinite_in_a_row = 0
    agree = parallel.agreement(mesh, delay=STEPS_AHEAD)
    with stop_on_signals() as stop, _loader(plan, mesh, done) as loader:
        clock = _Clock(time.perf_counter(), 0.0)
        stopping = False
        while done < plan.source.total_steps and not stopping:
            state, metrics = step(state, next(loader))
            done += 1
            recent.append(metrics)
            if len(recent) > STEPS_AHEAD:
                recent[-STEPS_AHEAD - 1]["loss"].block_until_ready()
            plan.log.advance(done)
            stopping = agree(bool(stop))  # asked once a step: a wish that comes later waits for the next, and is saved
            last = stopping or done == plan.source.total_steps
            logged = done % plan.log_every == 0 or last
            if logged or len(recent) >= NONFINITE_LIMIT + STEPS_AHEAD:
                ready = len(recent) if logged else NONFINITE_LIMIT
                fetched = jax.device_get([recent.popleft() for _ in range(ready)])
                nonfinite_in_a_row = _in_a_row(fetched, nonfinite_in_a_row)
                rows += fetched
            diverged = nonfinite_in_a_row >= NONFINITE_LIMIT
            if logged or diverged:
                row, clock = _row(plan, done - len(recent), rows, loader.wait_seconds, clock)
                _record(plan, row)
            if done % plan.checkpoint_every == 0 or last or diverged:
                checkpoint.save(plan.paths.checkpoints, state, position={"step": done})
            if last or diverged:
                parallel.wait_for_all("saved")  # process 0 writes; the others leave when it has
            if diverged:
                raise DivergedError(_divergence(plan, done, done - len(recent), rows, nonfinite_in_a_row))
            rows = [] if logged else rows
    if done < plan.source.total_steps:
        plan.log.say(f"stopped after step {done} of {plan.source.total_steps}; go on with --resume")
        raise KeyboardInterrupt
    return state


class _Clock(NamedTuple):
    """When the last row was written, and how long the loop had waited for data by then; seconds."""

    time: float
    waited: float


def _row(plan: Plan, done: int, rows: list[dict[str, Any]], waited: float, clock: _Clock) -> tuple[dict, _Clock]:
    """One line of metrics.jsonl: means over the steps since the last one (`nonfinite`: their number)."""
    now = _Clock(time.perf_counter(), waited)
    elapsed = max(now.time - clock.time, 1e-9)
    finite = [row for row in rows if row["nonfinite"] == 0] or rows
    row = {name: float(np.mean([one[name] for one in finite], dtype=np.float64)) for name in rows[0]}
    row |= {
        "step": done,
        "epoch": done / plan.source.epoch_steps if plan.source.epoch_steps else 0.0,
        "nonfinite": int(sum(one["nonfinite"] for one in rows)),
        "seconds": elapsed,
        "seconds_per_step": elapsed / len(rows),
        "images_per_second": len(rows) * plan.source.batch_size / elapsed,
        "data_wait": (now.waited - clock.waited) / elapsed,
    }
    return row, now


def _record(plan: Plan, row: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        run.append_metrics(plan.paths.metrics, row)
    if plan.record_events is not None:
        plan.record_events(row)
    plan.log.report(row)
    if row["nonfinite"]:
        plan.log.say(f"{row['nonfinite']} steps up to {row['step']} weren't finite and changed nothing")


def _in_a_row(rows: list[dict[str, Any]], before: int) -> int:
    """How many of the latest steps weren't finite, the `before` of earlier rows included; too many stay too many."""
    for row in rows:
        if row["nonfinite"]:
            before += 1
        elif before < NONFINITE_LIMIT:
            before = 0
    return before


def _divergence(plan: Plan, saved: int, step: int, rows: list[dict[str, Any]], count: int) -> str:
    """What to say of a state saved after step `saved`; `rows` are those up to `step`."""
    while not rows[-1]["nonfinite"]:  # finite ones may have come after too many that weren't
        rows, step = rows[:-1], step - 1
    batch = plan.source.batch_indices(step - 1, seed=plan.seed)
    images = f", images {', '.join(map(str, batch[:LISTED]))}{', …' * (len(batch) > LISTED)}" if batch else ""
    return (
        f"{count} steps in a row up to step {step} had no finite loss, gradient and statistics; the state is saved in"
        f" {plan.paths.checkpoints / f'{saved:08d}'}; lower the learning rate, or look at the last batch{images}"
    )


def _loader(plan: Plan, mesh: Any, start_step: int) -> Any:
    return plan.source.loader(
        start_step=start_step, seed=plan.seed, workers=plan.workers, place=lambda batch: parallel.shard(batch, mesh)
    )


def _resumed(plan: Plan, like: TrainState) -> TrainState:
    """The newest intact checkpoint's state; what was logged after it is dropped."""
    state, _ = checkpoint.restore(plan.paths.checkpoints, like=like)
    parallel.check_same({"the newest intact checkpoint's step": int(state.step)})
    if jax.process_index() == 0:
        run.truncate_metrics(plan.paths.metrics, int(state.step))
    plan.log.say(f"going on after step {int(state.step)}")
    return state


def _finish(plan: Plan, state: TrainState) -> None:
    """Weights for others, and the report."""
    if jax.process_index() != 0:
        return
    export_encoder(plan.paths.exported / ENCODER, plan.encoder, encoder_variables(state), say=plan.log.say)
    report.write_report(plan.paths.root)
    plan.log.say(
        f"done: {plan.source.total_steps} steps; weights in {plan.paths.exported}, report in {plan.paths.report}"
    )
