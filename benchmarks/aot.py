"""The training step compiled for TPUs on a machine that has none: python -m benchmarks.aot [--depth 50] [--out FOLDER].

What the compiler says of one step around a native ResNet, data-parallel over the topology's devices: operations beside
the closed form, bytes that are moved, memory, and what the devices send each other. Nothing runs, so there is no speed
here. It needs libtpu: pip install libtpu. `--preset imagenet-100 --topology v5e:4x8` compiles that recipe's own step,
augmentation and LARS included, at its own batch; where a device hasn't the memory, the compiler's line says so.
"""

import argparse
import dataclasses
import importlib.metadata
import math
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness.command import command_line, run_command
from benchmarks.harness.contenders import workload_learner
from benchmarks.harness.flops import step_flops, taps_inside
from benchmarks.harness.machine import describe
from benchmarks.harness.results_folder import check_new, write_results
from benchmarks.harness.workloads import RESNET_18, RESNET_50, Resnet, Workload
from byol_jax import presets
from byol_jax.cli import values
from byol_jax.cli.parsing import Parser
from byol_jax.errors import ConfigurationError
from byol_jax.presets import Preset

__all__ = ["collectives", "compile_step", "main", "table"]

COMMAND = "python -m benchmarks.aot"
USAGE = "[--preset NAME | --depth N] [--image-size N] [--batch-size N] [--dtype NAME] [--driver NAME] ..."

NO_TPU = {
    "JAX_PLATFORMS": "cpu",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""What libtpu asks a machine for when it starts, answered: there is none to ask."""

RESNETS = {
    18: RESNET_18,
    34: Resnet((3, 4, 6, 3), "basic"),
    50: RESNET_50,
    101: Resnet((3, 4, 23, 3), "bottleneck"),
}

PRESETS = {one.preset.name: one.preset for one in presets.known() if one.preset.network.startswith("resnet")}

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
"""Of a number, by XLA's names of types."""


def main(words: list[str] | None = None) -> int:
    """Runs the command; returns the exit code: 2, with one line, where libtpu is missing or the step doesn't fit."""
    return run_command(COMMAND, lambda words: _run(_options(words)), words)


def _run(options: argparse.Namespace) -> int:
    os.environ |= NO_TPU  # before JAX starts
    report = compile_step(
        options.preset or _workload(options),
        batch_size=options.batch_size,
        topology=options.topology,
        dtype=options.dtype,
        driver=options.driver,
        batchnorm_group=options.batchnorm_group,
        shard_state=options.shard_state,
    )
    text = table(report)
    if options.out is not None:
        machine = describe() | {"libtpu": importlib.metadata.version("libtpu")}
        write_results(options.out, command=_command(options), machine=machine, raw=report, table=text)
    print(text, end="")
    return 0


def _workload(options: argparse.Namespace) -> Workload:
    depth, side, size = options.depth or 50, options.image_size or 224, options.batch_size or 64
    title = f"ResNet-{depth}, {side} px, {size} images a device"
    return Workload(f"resnet{depth}", title, RESNETS[depth], "avgpool", side, size)


def _command(options: argparse.Namespace) -> str:
    """The command, without --out; an option that isn't given has its default, which the help says."""
    said = vars(options) | {"preset": options.preset and options.preset.name}
    names = ("preset", "depth", "image_size", "batch_size", "dtype", "driver", "topology", "batchnorm_group")
    line = command_line(COMMAND, argparse.Namespace(**said), [name for name in names if said[name] is not None])
    return f"{line} --shard-state" if options.shard_state else line


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(COMMAND, USAGE, "What a training step comes to on TPUs, as the compiler says.")
    positive = {"type": values.positive_int, "metavar": "N"}
    parser.add_argument("--preset", type=_preset, metavar="NAME", help=f"a recipe's own step: {', '.join(PRESETS)}")
    parser.add_argument("--depth", type=_depth, metavar="N", help=f"of the ResNet: {', '.join(map(str, RESNETS))} (50)")
    parser.add_argument("--image-size", **positive, help="pixels (224)")
    parser.add_argument("--batch-size", **positive, help="images a device (64; a preset's: its batch over all devices)")
    for name, choices, what in (
        ("--dtype", ("bfloat16", "float32"), "to compute in"),
        ("--driver", ("jit", "shard_map"), "of byol_jax.parallel"),
    ):
        parser.add_argument(
            name, type=values.one_of(choices), default=choices[0], metavar="NAME", help=f"{what}: {', '.join(choices)}"
        )
    parser.add_argument(
        "--batchnorm-group", **positive, help="devices over which batch norm takes its statistics, with jit (all)"
    )
    parser.add_argument(
        "--shard-state", action="store_true", help="target and optimiser state spread over the devices, with jit"
    )
    parser.add_argument("--topology", default="v5e:2x2", metavar="NAME", help="as JAX calls it (v5e:2x2)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder, for the results")
    options = parser.read(words)
    if options.preset is not None and (options.depth, options.image_size) != (None, None):
        raise ConfigurationError("--preset has its own network and size: leave out --depth and --image-size")
    if options.shard_state and options.driver != "jit":
        raise ConfigurationError(f"--shard-state is for --driver jit: {options.driver} takes whole states")
    if options.out is not None:
        check_new(options.out)  # before minutes of work
    return options


def _preset(word: str) -> Preset:
    return PRESETS[values.one_of(PRESETS)(word)]


def _depth(word: str) -> int:
    return int(values.one_of(map(str, RESNETS))(word))


class Subject(NamedTuple):
    """What is compiled: a learner, the shape and dtype of all devices' images, and what it is called.

    `closed_form` counts a device's operations; 0 where no closed form is at hand.
    """

    title: str
    learner: Any
    images: Any
    closed_form: int


def compile_step(
    what: Workload | Preset,
    *,
    topology: str,
    dtype: str,
    driver: str,
    batch_size: int | None = None,
    batchnorm_group: int | None = None,
    shard_state: bool = False,
) -> dict[str, Any]:
    """What the compiler says of the step, for one device.

    Args:
        what: a workload, whose `batch_size` is a device's, or a preset, whose batch all devices share.
        batch_size: of a preset, a device's images where they are others.
        batchnorm_group: over how many devices batch norm takes its statistics; None: over all.
        shard_state: target and optimiser state are spread over the devices, under `jit`.

    Raises:
        ConfigurationError: there is no such topology or no libtpu, the devices can't share the batch, or the step needs
            more memory than a device has.
    """
    import jax

    import byol_jax
    from byol_jax import parallel

    mesh = parallel.make_mesh(_devices(topology))
    make: Any = _of_workload if isinstance(what, Workload) else _of_preset
    axis_name = parallel.AXIS if driver == "shard_map" else None
    subject = make(what, mesh.size, batch_size, dtype=dtype, axis_name=axis_name)
    how = f"{dtype}, {topology}, {driver}"
    if batchnorm_group is not None:
        learner = byol_jax.with_batchnorm_groups(subject.learner, _groups(mesh.size, batchnorm_group))
        how = f"{how}, batch norm over {batchnorm_group} device{'s' * (batchnorm_group > 1)}"
        subject = subject._replace(learner=learner)
    if shard_state:
        state = jax.eval_shape(subject.learner.init, jax.random.key(0))
        how = f"{how}, target and optimiser state in parts"
        step: Any = parallel.jit(subject.learner, mesh, state_shardings=parallel.state_shardings(state, mesh))
    else:
        step = (
            parallel.shard_map(subject.learner, mesh) if driver == "shard_map" else parallel.jit(subject.learner, mesh)
        )
    return _compile(subject, step, how)


def _groups(devices: int, size: int) -> int:
    if devices % size:
        raise ConfigurationError(f"--batchnorm-group {size}: expected a divisor of the number of devices, {devices}")
    return devices // size


def _of_workload(workload: Workload, devices: int, batch_size: int | None, *, dtype: str, axis_name: Any) -> Subject:
    import jax
    import jax.numpy as jnp

    from byol_jax import nets

    assert isinstance(workload.network, Resnet)
    encoder = nets.resnet(workload.network.stages, block=workload.network.block)
    learner = workload_learner(encoder, workload, dtype=jnp.dtype(dtype), axis_name=axis_name)
    shape = (workload.batch_size * devices, workload.image_size, workload.image_size, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return Subject(workload.title, learner, images, step_flops(workload, taps_inside))


def _of_preset(preset: Preset, devices: int, batch_size: int | None, *, dtype: str, axis_name: Any) -> Subject:
    """The recipe's step for images as a folder gives them: uint8, larger than the views."""
    import jax
    import jax.numpy as jnp

    import byol_jax
    from byol_jax.data.fit import load_size

    size = preset.batch_size if batch_size is None else batch_size * devices
    if size % devices:
        raise ConfigurationError(f"{devices} devices can't share a batch of {size} evenly: give --batch-size")
    options = presets.learner_options(
        dataclasses.replace(preset, dtype=dtype), batch_size=size, total_steps=100_000, steps_per_epoch=1000
    )
    encoder = getattr(byol_jax.nets, preset.network)(**preset.network_options)
    learner = byol_jax.make_learner(encoder, **options, axis_name=axis_name)
    images = jax.ShapeDtypeStruct((size, *load_size(preset.image_size), 3), jnp.uint8)
    return Subject(f"{preset.name}, {size // devices} images a device", learner, images, 0)


def _compile(subject: Subject, step: Any, how: str) -> dict[str, Any]:
    import jax

    state = jax.eval_shape(subject.learner.init, jax.random.key(0))
    lowered, start = step.lower(state, subject.images), time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigurationError(f"{subject.title}, {how}: {first[:300]}; try fewer images a device") from error
    seconds, cost, memory = time.perf_counter() - start, compiled.cost_analysis(), compiled.memory_analysis()
    assert isinstance(cost, dict)
    assert memory is not None
    sent = collectives(compiled.as_text())
    return {
        "title": f"{subject.title}, {how}",
        "compile_seconds": seconds,
        "flops": cost["flops"],
        "closed_form_flops": subject.closed_form,
        "bytes_accessed": cost["bytes accessed"],
        "temporary_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "collectives": {kind: {"count": len(sizes), "bytes": sum(sizes)} for kind, sizes in sent.items()},
    }


def _devices(topology: str) -> Sequence[Any]:
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:  # whatever libtpu, or its absence, raises
        first = " ".join(str(error).split())[:200]
        raise ConfigurationError(f"no topology {topology!r} to compile for ({first}): pip install libtpu") from error


def collectives(program: str) -> dict[str, list[int]]:
    """By kind, the bytes of every collective's results; `program` is the compiled program's text.

    Those that are started and awaited apart count once.

    Example:
        >>> collectives("%a.1 = (f32[64]{0}, bf16[2,8]{1,0}) all-reduce(%x, %y), replica_groups={}")
        {'all-reduce': [288]}
    """
    found: dict[str, list[int]] = defaultdict(list)
    for line in program.splitlines():
        match = re.match(rf"\s*(?:ROOT )?%?[\w.\-]+ = (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(", line)
        if match is not None:
            results, kind, _ = match.groups()
            found[kind].append(sum(_bytes(*part) for part in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", results)))
    return dict(found)


def _bytes(kind: str, shape: str) -> int:
    return BYTES.get(kind, 0) * math.prod(int(n) for n in shape.split(",") if n)


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = [
        ("operations a device", f"{report['flops'] / 1e12:.4g} TFLOP"),
        *([("in closed form", f"{report['closed_form_flops'] / 1e12:.4g} TFLOP")] * (report["closed_form_flops"] > 0)),
        ("bytes accessed", f"{report['bytes_accessed'] / 1e9:.1f} GB"),
        ("temporaries", f"{report['temporary_bytes'] / 1e9:.2f} GB"),
        ("state and images", f"{report['argument_bytes'] / 1e9:.2f} GB"),
    ]
    lines += [
        (kind, f"{sent['count']}, {sent['bytes'] / 1e6:.1f} MB") for kind, sent in sorted(report["collectives"].items())
    ]
    lines.append(("time to compile", f"{report['compile_seconds']:.0f} s"))
    rows = "\n".join(f"| {name} | {value} |" for name, value in lines)
    return f"{report['title']}, one step:\n\n| | |\n|---|---:|\n{rows}\n"


if __name__ == "__main__":
    sys.exit(main())
