"""From arguments to a run: check, open the data, find its numbers, open the folder, hand over to the loop.

`pretrain` takes the arguments of `make_learner`, `train_recipe` a recipe (`byol-jax train` and the demo have one); both
then do the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from byol_jax import accumulation, batchnorm_groups, parallel
from byol_jax.byol import Learner, encoder_variables, make_learner
from byol_jax.data import Dataset
from byol_jax.data.loader import check_at_least
from byol_jax.data.ranges import parse_rule
from byol_jax.errors import ConfigurationError
from byol_jax.recipe import (
    Recipe,
    check_effect,
    check_warmup,
    learner_arguments,
    learning_rate,
    size_for_run,
    to_json,
    warmup_steps,
)
from byol_jax.runs import placement
from byol_jax.runs.artifacts import START, export_encoder, picture_views, run_config
from byol_jax.runs.config import read_config, uncompared
from byol_jax.runs.environment import rounding_changes
from byol_jax.runs.events import event_writer
from byol_jax.runs.fingerprint import function_fingerprints
from byol_jax.runs.folder import check_shared, lock, prepare, run_paths
from byol_jax.runs.precision import dtype_notes
from byol_jax.runs.progress import TrainingLog
from byol_jax.runs.source import Length, Source, open_source
from byol_jax.runs.value_range import FoundRange, check_dtype, find_range, stored_range
from byol_jax.train.loop import train
from byol_jax.train.program import Plan, Program
from byol_jax.types import Encoder, TrainState
from byol_jax.views import two_views

if TYPE_CHECKING:
    from interop import WeightFile

__all__ = ["pretrain", "train_recipe"]


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
    if seed < 0:
        raise ConfigurationError(f"seed={seed}: expected a whole number of at least 0")
    if learner_options.get("axis_name") is not None:
        raise ConfigurationError(
            f"axis_name={learner_options['axis_name']!r}: pretrain uses all devices without a mapped axis; leave it out"
        )
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
    return _run(encoder, learner, source, program, options, record=record, found=found, notes=notes, rate=None)


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
    if not program.resume:
        check_effect(recipe)
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
    rate = learning_rate(whole)
    return _run(encoder, learner, source, program, options, record=record, found=found, notes=notes, rate=rate)


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
    notes: Sequence[str],
    rate: float | Callable[[Any], Any] | None,
) -> TrainState:
    """Opens the run's folder and trains. `options` are `make_learner`'s; `record` is what config.json says of them."""
    import interop

    out = program.out
    if isinstance(source.images, Dataset):
        _check_views(learner, source.images)
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
            source.write_kept(paths.images)
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
            plan = Plan(encoder, learner, source, program, mesh, paths, log, events, config, rate)
            put = placement.to_restore if resumed else placement.place
            state = put(state, mesh, shard_state=program.shard_state)  # the one before takes no memory any more
            state = train(plan, state, is_resumed=resumed)
    return state


def _check_views(learner: Learner, images: Dataset) -> None:
    """Both views of two abstract images: what an augmentation makes of them is known before a folder is touched."""
    pair = jax.ShapeDtypeStruct((2, *images.image_shape), images.dtype)
    jax.eval_shape(partial(two_views, learner.settings), pair, jax.random.key(0))


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
