"""Pre-training as a program, from top to bottom: check, open the data, open the run's folder, loop, finish.

`pretrain` takes the arguments of `make_learner`, `train_recipe` a recipe (`byol-jax train` and the demo have one); both
then do the same. The algorithm is in byol.py; this file moves data in and numbers
out, and a run that was stopped goes on as if it had never stopped. What is written where: runs/folder.py.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax.sharding import Mesh

from byol_jax import accumulation, batchnorm_groups, checkpoint, parallel, report
from byol_jax.byol import Learner, encoder_variables, make_learner
from byol_jax.data import Dataset
from byol_jax.data.loader import check_at_least
from byol_jax.data.ranges import parse_rule
from byol_jax.errors import CollapsedError, ConfigurationError, DataError, DivergedError
from byol_jax.nets.remat import KEEP_BARRIERS
from byol_jax.recipe import Recipe, check_warmup, learner_arguments, size_for_run, to_json, warmup_steps
from byol_jax.runs import placement
from byol_jax.runs.artifacts import ENCODER, START, export_encoder, keep_network, picture_views, run_config
from byol_jax.runs.config import read_config, uncompared, update_config
from byol_jax.runs.environment import rounding_changes
from byol_jax.runs.events import event_writer
from byol_jax.runs.fingerprint import function_fingerprints
from byol_jax.runs.folder import RunPaths, check_shared, lock, prepare, run_paths
from byol_jax.runs.health import (
    HEALTH_EVERY,
    compile_health,
    fixed_images,
    is_due,
    local_state,
    raw_images,
    warning,
)
from byol_jax.runs.metrics import append_metrics, read_metrics, truncate_metrics
from byol_jax.runs.precision import dtype_notes
from byol_jax.runs.probe import BATCH, Probe, Prober, make_probe
from byol_jax.runs.progress import TrainingLog
from byol_jax.runs.source import LISTED, Length, Source, open_source
from byol_jax.runs.stop import stop_on_signals
from byol_jax.runs.tally import STEPS_AHEAD, Divergence, Tally
from byol_jax.runs.value_range import FoundRange, check_dtype, find_range, stored_range
from byol_jax.runs.verdict import CollapseWatch, likely_causes
from byol_jax.types import Encoder, TrainState

if TYPE_CHECKING:
    from interop import WeightFile

__all__ = ["Program", "pretrain", "train_recipe"]


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
    init_from: "str | Path | WeightFile | None" = None,
    progress: bool = True,
    tensorboard: bool = False,
    fit: str = "cover",
    layout: str | None = None,
    accumulate: int = 1,
    health_every: int | None = None,
    stop_on_collapse: bool = False,
    batchnorm_group: int | None = None,
    value_range: Any = None,
    bands: Sequence[int] | None = None,
    tiff_axes: str | None = None,
    dicom_rescale: bool = False,
    shard_state: bool = False,
    **learner_options: Any,
) -> TrainState:
    """Trains `encoder` on unlabelled images with BYOL and leaves everything about it in the folder `out`.

    Args:
        encoder: the network.
        data: a folder of images; shards; an .npz or .npy file; "fashion-mnist"; an array [N, H, W, C], uint8, uint16
            or floating in [0, 1]; a map-style data set, torch's for instance; a `Dataset`; or any iterable of image
            batches, a DataLoader for instance, which then needs `steps`. With a whole input shape as `image_size`, an
            array of such inputs, volumes [N, D, H, W, C] for instance.
        out: the run's folder. One that isn't empty is refused without `resume` or `overwrite`.
        image_size: as in `make_learner`.
        epochs, steps: how long; exactly one of them. An epoch leaves out the last, incomplete batch.
        batch_size: images in a step, over all devices and processes; not used for an iterable, which decides it itself.
        seed: of the weights, the augmentation and the order of the data.
        resume: go on after the newest checkpoint, bit for bit; from the beginning where there is none.
        overwrite: delete what an earlier run left in `out`, then start.
        workers: threads that decode images. Has no influence on the result.
        checkpoint_every, log_every: steps between checkpoints, and between rows of metrics.jsonl.
        init_from: file of weights (PyTorch's or ours) to start from, or what `interop.open_weights` made of it: an
            encoder's, or a whole learner's, of which heads and target are taken where their sizes are the same.
        progress: show progress on stderr.
        tensorboard: write the rows of metrics.jsonl as TensorBoard events too, into `out`/tensorboard.
        fit: how a folder's images get one shape, "cover", "contain" or "none", as in `data.open_dataset`.
        layout: of an array, of items or of batches, "NHWC" or "NCHW", where the axes leave doubt.
        accumulate: in how many parts each batch is gone through, as by `byol_jax.accumulate`: less memory.
        health_every: steps between measures in evaluation mode of the projections of up to 256 training images: spread,
            effective rank and uniformity, at the cost of about 32 images in a step; with a number also the alignment of
            two views, thrice that and a program more to compile. None: 1,000 steps, without alignment.
        stop_on_collapse: end the run once its projections have collapsed for 200 steps; it is said in any case.
        batchnorm_group: over how many devices batch norm takes its statistics, a divisor of their number; None: over
            all. As by `byol_jax.with_batchnorm_groups`.
        value_range: (low, high) of raw images, as in `make_learner`, with which floats may have any finite values; or
            "auto" or "percentile:P": the percentiles 100 - P and P of each channel (auto: P = 99.9) in 256 images drawn
            by `seed`, found once and kept. None: "auto" for a folder of grey images of 16 bits, of floats or of
            channels as they are stored, else as in `make_learner`.
        bands, tiff_axes, dicom_rescale: how a folder's files are read, as in `data.open_dataset`; with bands there are
            as many channels, and num_channels may be left out.
        shard_state: spread target and optimiser state over the devices instead of keeping them whole on each, as
            `parallel.spread_state`: less memory, the same result to rounding. A run may go on with or without.
        **learner_options: `make_learner`'s other arguments.

    Returns:
        The last state, on the devices: `parallel.gather` brings together what is in parts. Ctrl-C or SIGTERM save a
        checkpoint first, then raise KeyboardInterrupt.

    Raises:
        ConfigurationError, DataError, HiddenLayerNotFoundError: before anything is written.
        DivergedError: 20 steps in a row whose loss or gradient wasn't finite; a checkpoint was saved.
        CollapsedError: with `stop_on_collapse`; a checkpoint was saved.

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
    program = Program(
        out=out,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
        workers=workers,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        init_from=init_from,
        progress=progress,
        tensorboard=tensorboard,
        fit=fit,
        layout=layout,
        accumulate=accumulate,
        health_every=health_every,
        stop_on_collapse=stop_on_collapse,
        batchnorm_group=batchnorm_group,
        bands=None if bands is None else tuple(bands),
        tiff_axes=tiff_axes,
        dicom_rescale=dicom_rescale,
        shard_state=shard_state,
    )
    if bands is not None:
        learner_options.setdefault("num_channels", len(program.bands or ()))
    if isinstance(value_range, str):
        parse_rule(value_range)  # a wrong one is said before a folder is looked through
    elif value_range is not None:
        learner_options["value_range"] = value_range
    learner = _make_learner(encoder, program, image_size=image_size, **learner_options)
    num_channels = learner_options.get("num_channels", 3)
    length = Length(steps, epochs, batch_size, parts=accumulate)
    any_range = value_range is not None
    source = _open(data, length, program, image_size=image_size, num_channels=num_channels, any_range=any_range)
    found = _find_range(value_range, source, program)
    if found.value_range is not None:
        learner_options["value_range"] = found.value_range
    if found.rule is not None:
        learner = _make_learner(encoder, program, image_size=image_size, **learner_options)
    options = learner_options | {"image_size": image_size}
    image_shape = source.images.image_shape if isinstance(source.images, Dataset) else learner.settings.image_shape
    fingerprints = function_fingerprints(learner, learner_options, image_shape)
    record = {"network": None, "learner": learner_options, "fingerprints": fingerprints}
    notes = dtype_notes(learner, learner_options.get("dtype", "float32"))
    if learner_options.get("augment_fn") is None:
        notes += _said_of_channels(learner, "simclr")
    return _run(encoder, learner, source, program, options, record=record, found=found, notes=notes)


@dataclass(frozen=True)
class Program:
    """What a run is told beside what it learns, and its data; each value as in `pretrain`.

    `advice_when_stopped` ends the line about a run that was stopped: how its program is told to go on. `probe` is a
    labelled set on which the representation is measured on the way. `remarks` are the log's first lines.
    """

    out: str | Path
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    workers: int = 2
    checkpoint_every: int = 1000
    log_every: int = 50
    init_from: "str | Path | WeightFile | None" = None
    progress: bool = True
    tensorboard: bool = False
    advice_when_stopped: str = "go on with --resume"
    fit: str = "cover"
    layout: str | None = None
    accumulate: int = 1
    health_every: int | None = None
    stop_on_collapse: bool = False
    probe: Probe | None = None
    remarks: Sequence[str] = ()
    batchnorm_group: int | None = None
    bands: tuple[int, ...] | None = None
    tiff_axes: str | None = None
    dicom_rescale: bool = False
    shard_state: bool = False

    @property
    def reading(self) -> dict[str, Any]:
        """What was said of how a folder's files are read: `open_dataset`'s arguments, and keys of config.json."""
        said = {"bands": self.bands, "tiff_axes": self.tiff_axes, "dicom_rescale": self.dicom_rescale or None}
        return {name: value for name, value in said.items() if value is not None}


def train_recipe(
    encoder: Encoder, data: Any, recipe: Recipe, program: Program, *, network: dict[str, Any], every_image: bool = False
) -> TrainState:
    """`pretrain` by a recipe, whose schedules last as long as the run turns out to be once its data is open.

    Args:
        encoder: the network; network: what config.json says about it.
        data: as in `pretrain`, but for an iterable.
        recipe: with `steps` or `epochs`.
        program: where and how.
        every_image: an epoch counts every image, so that a run has ⌊epochs · images / batch_size⌋ steps, as presets
            state their length; else it leaves out the last, incomplete batch.

    Raises:
        ConfigurationError: also for a warm-up stated in steps that is longer than the run; one in epochs may be.
    """
    normalize = network.get("normalize")
    sized = size_for_run(recipe, total_steps=recipe.steps or 1, steps_per_epoch=1, batch_size=recipe.batch_size)
    options = learner_arguments(sized, normalize=normalize)
    learner = _make_learner(encoder, program, **options)  # a wrong layer is said before a folder is looked through
    length = Length(recipe.steps, recipe.epochs, recipe.batch_size, every_image, program.accumulate)
    any_range = recipe.value_range is not None
    sizes = {"image_size": recipe.image_size, "num_channels": recipe.num_channels}
    source = _open(data, length, program, **sizes, any_range=any_range)
    found = _find_range(recipe.value_range, source, program)
    steps_per_epoch = len(source.images) / recipe.batch_size
    whole = size_for_run(
        recipe, total_steps=source.total_steps, steps_per_epoch=steps_per_epoch, batch_size=recipe.batch_size
    )
    whole = replace(whole, value_range=found.value_range)
    if recipe.warmup_steps is not None:
        check_warmup(whole)
    if whole != sized:
        options = learner_arguments(whole, normalize=normalize)
        learner = _make_learner(encoder, program, **options)
    notes = dtype_notes(learner, recipe.dtype)
    notes += _said_of_channels(learner, recipe.augmentation)
    if recipe.schedule == "cosine" and warmup_steps(whole) > source.total_steps:
        notes.append(f"the warm-up of {warmup_steps(whole)} steps is longer than the run, which ends within it")
    if recipe.optimizer == "lars" and not recipe.scale_learning_rate:
        notes.append("the learning rate isn't scaled by batch / 256: this run began before it was, and keeps its rate")
    record = {"network": network, "learner": to_json(whole)}
    return _run(encoder, learner, source, program, options, record=record, found=found, notes=notes)


def _make_learner(encoder: Encoder, program: Program, **options: Any) -> Learner:
    learner = batchnorm_groups.with_batchnorm_groups(make_learner(encoder, **options), _groups(program))
    return accumulation.accumulate(learner, program.accumulate)


def _groups(program: Program) -> int:
    """In how many groups batch norm sees a batch."""
    size, devices = program.batchnorm_group, jax.device_count()
    if size is None:
        return 1
    if size < 1 or devices % size:
        raise ConfigurationError(f"batchnorm_group={size}: expected a divisor of the number of devices, {devices}")
    return devices // size


def _find_range(wanted: Any, source: Source, program: Program) -> FoundRange:
    """The run's value range: as it began where it goes on.

    Raises:
        ConfigurationError: also where the probe's images have another dtype, and so other numbers.
    """
    stored = stored_range(program.out) if program.resume else None
    found = find_range(wanted, source.images, seed=program.seed, stored=stored)
    if found.value_range is not None and program.probe is not None:
        for part in (program.probe.train, program.probe.test):
            check_dtype(part.dataset.dtype, source.dtype, what="--probe")
    return found


def _open(
    data: Any, length: Length, program: Program, *, image_size: Any, num_channels: Any, any_range: bool
) -> Source:
    check_at_least(
        1,
        batch_size=length.batch_size,
        checkpoint_every=program.checkpoint_every,
        log_every=program.log_every,
        **({} if program.health_every is None else {"health_every": program.health_every}),
    )
    source = open_source(
        data,
        length,
        image_size=image_size,
        num_channels=num_channels,
        fit=program.fit,
        layout=program.layout,
        workers=program.workers,
        known=run_paths(program.out).images if program.resume else None,
        show=program.progress,
        any_range=any_range,
        reading=program.reading,
    )
    if _groups(program) > 1:
        batchnorm_groups.check_groups(_part_size(source, program), _groups(program))
    return source


def _part_size(source: Source, program: Program) -> int:
    """Images that a network sees at once, over all devices and processes."""
    size = source.images.batch_size * jax.process_count() if source.batch_size is None else source.batch_size
    return size // program.accumulate


def _run(
    encoder: Encoder,
    learner: Learner,
    source: Source,
    program: Program,
    options: dict[str, Any],
    *,
    record: dict[str, Any],
    found: FoundRange,
    notes: Sequence[str] = (),
) -> TrainState:
    """Opens the run's folder and trains. `options` are `make_learner`'s; `record` is what config.json says of them."""
    import interop

    out = program.out
    state = learner.init(jax.random.key(program.seed))
    weights = None if program.init_from is None else interop.open_weights(program.init_from)
    state = state if weights is None else weights.start(encoder, state)
    writes = parallel.is_writer()
    mesh = parallel.make_mesh()
    remarks = [*program.remarks, *_said_of_groups(source, program)]
    remarks += [placement.sentence(state, mesh)] if program.shard_state else []
    events = event_writer(run_paths(out).tensorboard) if program.tensorboard and writes else None
    config = run_config(
        **record,
        data=source.identity | ({} if found.value_range is None else {"dtype": source.dtype}),
        training={
            "image_size": options["image_size"],
            "steps": source.total_steps,
            "batch_size": source.batch_size,
            "seed": program.seed,
            **({} if program.fit == "cover" else {"fit": program.fit}),  # earlier runs have no such key, nor
            **({} if program.accumulate == 1 else {"accumulate": program.accumulate}),
            **({} if _groups(program) == 1 else {"batchnorm_groups": _groups(program)}),
            **({} if program.probe is None else {"probe": program.probe.identity}),
            **found.facts,
            **program.reading,
        },
        unimportant={
            "out": str(out),
            "workers": program.workers,
            "checkpoint_every": program.checkpoint_every,
            "log_every": program.log_every,
            "health_every": program.health_every,
            "stop_on_collapse": program.stop_on_collapse,
            "shard_state": program.shard_state,
        },
        init_from=weights,
    )
    parallel.check_same({name: value for name, value in config.items() if name not in ("out", "workers")})
    with lock(out):
        if program.shard_state:
            check_shared(out)
        doubts = _doubts(out, config) if program.resume and writes else []  # prepare replaces what was stored
        paths, resumed = prepare(out, config, resume=program.resume, overwrite=program.overwrite)
        if writes:
            source.write_list(paths.images)
        if writes and not resumed:
            picture_views(paths.views, source.images, options, options["image_size"], state.key)
            if weights is not None:
                export_encoder(paths.exported / START, encoder, encoder_variables(state), say=lambda line: None)
        path = paths.log if writes else None
        with TrainingLog(path, total_steps=source.total_steps, show=program.progress and writes) as log:
            for note in [*remarks, *notes, *doubts] if resumed else [*remarks, *notes]:
                log.say(note)
            if found.sentence is not None:
                (log.warn if found.is_narrow else log.say)(found.sentence)
            plan = Plan(encoder, learner, source, program, mesh, paths, log, events, config)
            put = placement.to_restore if resumed else placement.place
            state = put(state, mesh, shard_state=program.shard_state)  # the one before takes no memory any more
            state = _train(plan, state, resumed)
    return state


def _said_of_groups(source: Source, program: Program) -> list[str]:
    groups = _groups(program)
    if groups == 1:
        return []
    return [f"batch norm sees {groups} groups of {_part_size(source, program) // groups} images, each by itself"]


def _said_of_channels(learner: Learner, augmentation: str) -> list[str]:
    channels = learner.settings.image_shape[-1]
    if channels in (1, 3) or augmentation not in ("simclr", "byol"):
        return []
    return [
        f"{channels} channels: {augmentation} leaves out hue, saturation and grey; the set for such is multichannel"
    ]


def _doubts(out: str | Path, config: dict[str, Any]) -> list[str]:
    """Lines about what may make a run that goes on another one than it would have been, and isn't refused."""
    try:
        stored = read_config(out)
    except ConfigurationError:  # no run's folder: `prepare` says so
        return []
    lines, changes = uncompared(stored, config), rounding_changes(run_paths(out).environment)
    before, now = (bool(each.get("shard_state")) for each in (stored, config))
    changes += [f"shard_state {before} then, {now} now"] if before != now else []
    if changes:
        lines.append(f"from here on not bit for bit what it would have been, rounding differs: {', '.join(changes)}")
    return lines


class Plan(NamedTuple):
    """What the loop needs to know; nothing in it changes."""

    encoder: Encoder
    learner: Learner
    source: Source
    program: Program
    mesh: Mesh
    paths: RunPaths
    log: TrainingLog
    record_events: Callable[[dict[str, Any]], None] | None
    config: dict[str, Any]


def _train(plan: Plan, state: TrainState, resumed: bool) -> TrainState:
    """From the first step, or the newest checkpoint, to weights and a report."""
    said = plan.source.say_skipped(plan.log.say)
    plan.source.say_doubts(plan.log.say, has_range=plan.learner.settings.value_range is not None)
    if resumed:
        state = _restore(plan, like=state)
    state = _loop(plan, state)
    plan.source.say_skipped(plan.log.say, said)  # images that turned out to be bad on the way
    here = local_state(plan.learner, state)
    if parallel.is_writer():
        _finish(plan, here)
    parallel.wait_for_all("finished")
    return state


def _restore(plan: Plan, *, like: TrainState) -> TrainState:
    """The newest intact checkpoint's state; rows of metrics.jsonl after it are dropped."""
    state, _ = checkpoint.restore(plan.paths.checkpoints, like=like)
    parallel.check_same({"the newest intact checkpoint's step": int(state.step)})
    if parallel.is_writer():
        truncate_metrics(plan.paths.metrics, int(state.step))
    plan.log.say(f"going on after step {int(state.step)}")
    return state


def _loop(plan: Plan, state: TrainState) -> TrainState:
    """Steps from `state.step` to the end, or until somebody asks to stop; saves on the way."""
    agree = parallel.agreement(plan.mesh, delay=STEPS_AHEAD)
    done, total = int(state.step), plan.source.total_steps
    watch, collapse, probe = _begin_watch(plan), None, plan.program.probe
    step, health, prober = None, None, None
    tally = Tally(done, log_every=plan.program.log_every, epoch_steps=plan.source.epoch_steps)
    with stop_on_signals() as stop, _open_loader(plan, done) as loader:
        stopping = False
        while done < total and not stopping:
            images = next(loader)  # [N, H, W, C], over all devices and processes
            if step is None:
                plan = _record_batch_size(plan, len(images))
                health, prober = _begin_measures(plan, state, images, tally)
                step = _compile(plan, state, images, tally)
                if parallel.is_writer():
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
                    row |= _measured(plan, health, state, tally)
                has_begun = _record(plan, row, watch, prober)
                collapse = watch.verdict if has_begun and plan.program.stop_on_collapse else collapse
            if done % plan.program.checkpoint_every == 0 or last or tally.divergence:
                checkpoint.save(plan.paths.checkpoints, state, position={"step": done})
            if probe is not None and not stopping and (done % probe.every == 0 or done == total):
                _probe(plan, prober, state, done, tally)
            if last or tally.divergence:
                parallel.wait_for_all("saved")  # process 0 writes; the others leave when it has
            if tally.divergence:
                raise DivergedError(_explain(plan, tally.divergence, saved=done))
    has_collapsed, is_asked = (
        parallel.agreement(plan.mesh, delay=0)(wish) for wish in (collapse is not None, bool(stop))
    )
    if has_collapsed and not is_asked:
        found = "the run has collapsed, as process 0 says" if collapse is None else collapse
        raise CollapsedError(
            f"stopped after step {done} of {total}: {found}; the state is saved in"
            f" {plan.paths.checkpoints / f'{done:08d}'}; {_advise(plan)}"
        )
    if done < total:
        plan.log.say(f"stopped after step {done} of {total}; {plan.program.advice_when_stopped}")
        raise KeyboardInterrupt
    return state


def _begin_watch(plan: Plan) -> CollapseWatch:
    """The verdict on the rows so far, in the process that writes them; says so where the run had collapsed."""
    watch = CollapseWatch(plan.learner.settings.projection_size)
    rows = read_metrics(plan.paths.metrics)[0] if parallel.is_writer() else []
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
        place=lambda batch: parallel.shard_in_place(batch, plan.mesh),
    )


def _record_batch_size(plan: Plan, size: int) -> Plan:
    """Of an iterable the size is known by its first batch; config.json, and the plan's, say null before."""
    if plan.source.batch_size is not None:
        return plan
    if parallel.is_writer():
        update_config(plan.paths.root, batch_size=size)
    return plan._replace(config=plan.config | {"batch_size": size})


def _compile(plan: Plan, state: TrainState, images: jax.Array, tally: Tally) -> parallel.Step:
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
    traced = plan.encoder.facts.traced
    if traced is not None and not traced.takes_any_batch:
        jax.eval_shape(plan.learner.embed, state, images)
    keep_network(plan.paths.network, plan.encoder)


def _begin_measures(
    plan: Plan, state: TrainState, images: jax.Array, tally: Tally
) -> tuple[Callable[[TrainState], dict[str, float]] | None, Prober | None]:
    """What measures projections and representation on the way; None in processes that write nothing."""
    here = local_state(plan.learner, state)
    return _measure_health(plan, here, images, tally), _begin_probes(plan, here, images, tally)


def _measure_health(
    plan: Plan, state: TrainState, images: jax.Array, tally: Tally
) -> Callable[[TrainState], dict[str, float]] | None:
    """What evaluation mode says of the projections, compiled before the step; None in processes that write nothing."""
    if not parallel.is_writer():
        return None
    traced, image_shape = plan.encoder.facts.traced, plan.learner.settings.image_shape
    if traced is not None and not traced.takes_any_batch:
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


def _measured(
    plan: Plan, health: Callable[[TrainState], dict[str, float]] | None, state: TrainState, tally: Tally
) -> dict[str, float]:
    """What is measured, its time being no step's. Every process calls it; the row before has waited for the state."""
    began = time.perf_counter()
    here = local_state(plan.learner, state)
    found = {} if health is None else health(here)
    tally.leave_out(time.perf_counter() - began)
    return found


def _begin_probes(plan: Plan, state: TrainState, images: jax.Array, tally: Tally) -> Prober | None:
    """What probes the representation; at step 0 it has probed the starting weights."""
    probe, traced = plan.program.probe, plan.encoder.facts.traced
    if probe is None or not parallel.is_writer():
        return None
    any_batch = traced is None or traced.takes_any_batch
    batch_size = min(len(images), BATCH) if any_batch else len(images)
    measure = make_probe(plan.learner, probe, batch_size=batch_size)
    prober = Prober(measure, read_metrics(plan.paths.metrics)[0], every=probe.every)
    if int(jax.device_get(state.step)) == 0:
        _probe(plan, prober, state, 0, tally)
    return prober


def _probe(plan: Plan, prober: Prober | None, state: TrainState, done: int, tally: Tally) -> None:
    """One probe, as a row of its own; its time is no step's. Every process calls it, and the one that writes probes."""
    here = local_state(plan.learner, state)
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
    tally.leave_out(time.perf_counter() - began)


def _record(plan: Plan, row: dict[str, Any], watch: CollapseWatch, prober: Prober | None) -> bool:
    """One row to all who show or keep it, and what it says of the run's health; True where a collapse has begun."""
    before = watch.verdict
    if parallel.is_writer():
        append_metrics(plan.paths.metrics, row)
        watch.add(row)
    if plan.record_events is not None:
        plan.record_events(row)
    remark = "" if prober is None else prober.remark
    plan.log.report(row, remark="COLLAPSED" if watch.verdict is not None else remark)
    if row["nonfinite"]:
        plan.log.say(f"{row['nonfinite']} steps up to {row['step']} weren't finite and changed nothing")
    if watch.verdict is not None and before is None:
        plan.log.warn(f"{watch.verdict}; {_advise(plan)}")
    elif watch.verdict is None and before is not None:
        plan.log.say(f"no longer collapsed after step {row['step']}")
    elif watch.verdict is None and (low := warning(row, plan.learner.settings.projection_size)) is not None:
        plan.log.warn(low)
    return watch.verdict is not None and before is None


def _explain(plan: Plan, divergence: Divergence, *, saved: int) -> str:
    """What to say of a run that has diverged and whose state was saved after step `saved`."""
    batch = plan.source.batch_indices(divergence.step - 1, seed=plan.program.seed)
    images = f", images {', '.join(map(str, batch[:LISTED]))}{', …' * (len(batch) > LISTED)}" if batch else ""
    return (
        f"{divergence.count} steps in a row up to step {divergence.step} had no finite loss, gradient and statistics;"
        f" the state is saved in {plan.paths.checkpoints / f'{saved:08d}'};"
        f" lower the learning rate, or look at the last batch{images}"
    )


def _finish(plan: Plan, state: TrainState) -> None:
    """Weights for others, and the report; of a state that this process can read."""
    evaluated = plan.learner.evaluation_state(parallel.gather(state))
    export_encoder(plan.paths.exported / ENCODER, plan.encoder, encoder_variables(evaluated), say=plan.log.say)
    report.write_report(plan.paths.root)
    plan.log.say(
        f"done: {plan.source.total_steps} steps; weights in {plan.paths.exported}, report in {plan.paths.report}"
    )
