"""The loop: from the first step, or the newest checkpoint, to weights and a report. The algorithm is in byol.py; this
file moves data in and numbers out, and a run that was stopped goes on as if it had never stopped."""

import time
from typing import Any

import jax

from byol_jax import checkpoint, parallel, report
from byol_jax.byol import encoder_variables
from byol_jax.errors import CollapsedError, DivergedError, one_line
from byol_jax.nets.remat import KEEP_BARRIERS
from byol_jax.parallel.drivers import Step
from byol_jax.parallel.placement import shard_in_place
from byol_jax.runs import placement
from byol_jax.runs.artifacts import ENCODER, export_encoder, keep_network, torch_difference
from byol_jax.runs.collapse_watch import CollapseWatch, likely_causes
from byol_jax.runs.config import update_config
from byol_jax.runs.health import HEALTH_EVERY, is_due, local_state, warning
from byol_jax.runs.metrics import append_metrics, read_metrics, truncate_metrics
from byol_jax.runs.source import LISTED
from byol_jax.runs.stop import stop_on_signals
from byol_jax.runs.tally import STEPS_AHEAD, Divergence, Tally
from byol_jax.train.measures import Measures
from byol_jax.train.program import Plan
from byol_jax.types import TrainState

__all__ = ["train"]


def train(plan: Plan, state: TrainState, *, is_resumed: bool) -> TrainState:
    """Trains by the plan; returns the last state. With `is_resumed` `state` is what the newest checkpoint fills."""
    said = plan.source.say_skipped(plan.log.say)
    plan.source.say_doubts(plan.log.say, has_range=plan.learner.settings.value_range is not None)
    if is_resumed:
        state = _restore(plan, like=state)
    state = _loop(plan, state)
    plan.source.say_skipped(plan.log.say, said)  # images that turned out to be bad on the way
    _finish(plan, state)
    parallel.wait_for_all("finished")
    return state


def _restore(plan: Plan, *, like: TrainState) -> TrainState:
    """The newest intact checkpoint's state; rows of metrics.jsonl after it are dropped."""
    state, _ = checkpoint.restore(plan.paths.checkpoints, like=like)
    parallel.check_same({"the newest intact checkpoint's step": int(state.step)})
    if plan.writes:
        truncate_metrics(plan.paths.metrics, int(state.step))
    plan.log.say(f"going on after step {int(state.step)}")
    return state


def _loop(plan: Plan, state: TrainState) -> TrainState:
    """Steps from `state.step` to the end, or until somebody asks to stop; saves on the way."""
    agree = parallel.agreement(plan.mesh, delay=STEPS_AHEAD)
    done, total = int(state.step), plan.source.total_steps
    watch, collapse, probe = _begin_watch(plan), None, plan.program.probe
    step, measures = None, None
    tally = Tally(done, log_every=plan.program.log_every, epoch_steps=plan.source.epoch_steps)
    with stop_on_signals() as stop, _open_loader(plan, done) as loader:
        stopping = False
        while done < total and not stopping:
            images = next(loader)  # [N, H, W, C], over all devices and processes
            if step is None or measures is None:
                plan = _record_batch_size(plan, len(images))
                measures = Measures(plan, state, images, tally)
                step = _compile(plan, state, images, tally)
                if plan.writes:
                    _keep_network(plan, state, images)
            state, metrics = step(state, images)
            done += 1
            tally.add(metrics, images=len(images))
            plan.log.advance(done)
            wish = bool(stop) or collapse is not None
            stopping = agree(wish)  # asked once a step: a wish that comes later waits for the next, and is saved
            last = stopping or done == total
            row = tally.row(waited=loader.wait_seconds, last=last)
            if row is not None:
                every = plan.program.health_every or HEALTH_EVERY
                if is_due(done, log_every=plan.program.log_every, last=done == total, every=every):
                    row |= measures.health(state)
                row |= _learning_rate(plan, done)
                has_begun = _record(plan, row, watch, remark=measures.remark, lost_at=tally.lost_at)
                collapse = watch.verdict if has_begun and plan.program.stop_on_collapse else collapse
            if done % plan.program.checkpoint_every == 0 or last or tally.divergence:
                checkpoint.save(plan.paths.checkpoints, state, position={"step": done})
            if probe is not None and not stopping and (done % probe.every == 0 or done == total):
                measures.probe(state, done)
            if last or tally.divergence:
                parallel.wait_for_all("saved")  # process 0 writes; the others leave when it has
            if tally.divergence:
                _report_in_spite(plan, state, is_finished=False)
                raise DivergedError(_explain(plan, tally.divergence, saved=done, lost_at=tally.lost_at))
    has_collapsed, is_asked = (
        parallel.agreement(plan.mesh, delay=0)(wish) for wish in (collapse is not None, bool(stop))
    )
    if has_collapsed and not is_asked:
        _report_in_spite(plan, state, is_finished=done == total)
        found = "the run has collapsed, as process 0 says" if collapse is None else collapse
        raise CollapsedError(
            f"stopped after step {done} of {total}: {found}; the state is saved in"
            f" {plan.paths.checkpoints / f'{done:08d}'}; {_advise(plan)}"
        )
    if done < total:
        plan.log.say(f"stopped after step {done} of {total}; {plan.program.advice_when_stopped}")
        raise KeyboardInterrupt
    return state


def _learning_rate(plan: Plan, done: int) -> dict[str, float]:
    """That of the newest step, where it's known; as if every step so far had been finite."""
    rate = plan.learning_rate
    if rate is None:
        return {}
    return {"learning_rate": float(rate(done - 1) if callable(rate) else rate)}


def _begin_watch(plan: Plan) -> CollapseWatch:
    """The verdict on the rows so far, in the process that writes them; says so where the run had collapsed."""
    watch = CollapseWatch(plan.learner.settings.projection_size)
    rows = read_metrics(plan.paths.metrics)[0] if plan.writes else []
    for row in rows:
        watch.add(row)
    if watch.verdict is not None:
        stops = "; stop_on_collapse ends it if it recovers and collapses again" * plan.program.stop_on_collapse
        plan.log.warn(f"this run had {watch.verdict}, and seldom does one recover{stops}")
    return watch


def _advise(plan: Plan) -> str:
    """The likely causes of a collapse, in words."""
    init = plan.learner.settings.encoder.init
    stats = jax.eval_shape(init, jax.random.key(0)).stats
    return likely_causes(plan.config, has_batch_norm=bool(jax.tree.leaves(stats)))


def _open_loader(plan: Plan, start_step: int) -> Any:
    """Batches for the steps after `start_step`, on the devices."""
    return plan.source.loader(
        start_step=start_step,
        seed=plan.program.seed,
        workers=plan.program.workers,
        place=lambda batch: shard_in_place(batch, plan.mesh),
    )


def _record_batch_size(plan: Plan, size: int) -> Plan:
    """Of an iterable the size is known by its first batch; config.json, and the plan's, say null before."""
    if plan.source.batch_size is not None:
        return plan
    if plan.writes:
        update_config(plan.paths.root, batch_size=size)
    return plan._replace(config=plan.config | {"batch_size": size})


def _compile(plan: Plan, state: TrainState, images: jax.Array, tally: Tally) -> Step:
    """The step, compiled for these images before it runs, so that the time for it is no step's."""
    began = time.perf_counter()
    keeps_barriers = plan.encoder.facts.remat and jax.default_backend() == "cpu"
    options = KEEP_BARRIERS if keeps_barriers else None
    places = placement.places(state, plan.mesh, shard_state=plan.program.shard_state)
    jitted = parallel.jit(plan.learner, plan.mesh, state_shardings=places)
    step = jitted.lower(state, images).compile(compiler_options=options)
    seconds = time.perf_counter() - began
    tally.add_compilation(seconds)
    plan.log.say(f"compiled the step in {seconds:.1f} s")
    return step


def _keep_network(plan: Plan, state: TrainState, images: jax.Array) -> None:
    """A traced network, once the step has asked it for what it needs: it may be another graph for each size of a batch,
    and then that for embedding such a batch is kept too."""
    if not plan.takes_any_batch:
        jax.eval_shape(plan.learner.embed, state, images)
    keep_network(plan.paths.network, plan.encoder)


def _record(plan: Plan, row: dict[str, Any], watch: CollapseWatch, *, remark: str, lost_at: int | None) -> bool:
    """One row to all who show or keep it, and what it says of the run's health; True where a collapse has begun."""
    before = watch.verdict
    if plan.writes:
        append_metrics(plan.paths.metrics, row)
        watch.add(row)
    if plan.record_events is not None:
        plan.record_events(row)
    plan.log.report(row, remark="COLLAPSED" if watch.verdict is not None else remark)
    if row["nonfinite"] and lost_at is None:
        plan.log.say(f"{row['nonfinite']} steps up to {row['step']} weren't finite and changed nothing")
    elif row["nonfinite"]:
        plan.log.warn(f"since step {lost_at} the parameters have no finite norm; that step's gradient had")
    if watch.verdict is not None and before is None:
        plan.log.warn(f"{watch.verdict}; {_advise(plan)}")
    elif watch.verdict is None and before is not None:
        plan.log.say(f"no longer collapsed after step {row['step']}")
    elif watch.verdict is None and (low := warning(row, plan.learner.settings.projection_size)) is not None:
        plan.log.warn(low)
    return watch.verdict is not None and before is None


def _explain(plan: Plan, divergence: Divergence, *, saved: int, lost_at: int | None) -> str:
    """What to say of a run that has diverged and whose state was saved after step `saved`.

    `lost_at`: the step whose optimiser made parameters without a finite norm.
    """
    if lost_at is not None:
        return (
            f"{divergence.count} steps in a row up to step {divergence.step} weren't finite: of a finite gradient the"
            f" optimiser made parameters without a finite norm in step {lost_at}; the state is saved in"
            f" {plan.paths.checkpoints / f'{saved:08d}'}:"
            " begin again, or from a checkpoint before, with a lower learning rate or a larger constant in the"
            " optimiser's denominator"
        )
    batch = plan.source.batch_indices(divergence.step - 1, seed=plan.program.seed)
    images = f", images {', '.join(map(str, batch[:LISTED]))}{', …' * (len(batch) > LISTED)}" if batch else ""
    return (
        f"{divergence.count} steps in a row up to step {divergence.step} had no finite loss, gradient and statistics;"
        f" the state is saved in {plan.paths.checkpoints / f'{saved:08d}'};"
        f" lower the learning rate, or look at the last batch{images}"
    )


def _report_in_spite(plan: Plan, state: TrainState, *, is_finished: bool) -> None:
    """The report, and of a finished run its weights, before an error of the run's own, which another one, a full disk,
    mustn't hide."""
    try:
        if is_finished:
            _finish(plan, state)
        elif plan.writes:
            report.write_report(plan.paths.root)
            plan.log.say(f"report in {plan.paths.report}")
    except Exception as error:
        plan.log.warn(f"the report can't be written ({one_line(error)})")
    parallel.wait_for_all("reported")


def _finish(plan: Plan, state: TrainState) -> None:
    """Weights for others, and the report. Every process calls it, since a state may be in parts."""
    here = local_state(plan.learner, state)
    if plan.writes:
        evaluated = plan.learner.evaluation_state(parallel.gather(here))
        export_encoder(plan.paths.exported / ENCODER, plan.encoder, encoder_variables(evaluated), say=plan.log.say)
        report.write_report(plan.paths.root)
        if (difference := torch_difference(plan.encoder)) is not None:
            plan.log.warn(f"of the weights in {plan.paths.exported}: {difference}")
        plan.log.say(
            f"done: {plan.source.total_steps} steps; weights in {plan.paths.exported}, report in {plan.paths.report}"
        )
