"""How do a step's time and memory grow with the batch, the image, the depth and the number of devices?

    python benchmarks/growth.py [--axis NAME] [--rounds N] [--out DIR]

One axis is varied, the others stay at ResNet-18's size, 64 px, 16 images, one device. The points of an axis take turns.
Devices are simulated: they are threads of one CPU and share its cores, so their seconds say what it costs to divide the
same batch, nothing about speed; their memory is each device's own. Memory is what XLA sets aside for the compiled step
beside its arguments, and the arguments: state and images. With --out a plot, growth.svg, lies beside the table.
"""

import argparse
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.harness.command import run_command
from benchmarks.harness.contenders import Contender, jax_device, workload_learner
from benchmarks.harness.summary import summarise
from benchmarks.harness.table import flat, markdown
from benchmarks.harness.turns import add_turns, measure_in_turns, read, report
from benchmarks.harness.workloads import Resnet, Workload
from byol_jax.cli import values
from byol_jax.cli.parsing import Parser
from byol_jax.report.curves import STYLE, line_chart

__all__ = ["AXES", "Axis", "build", "exponents", "main", "plot", "table"]

COMMAND = "python benchmarks/growth.py"
USAGE = "[--axis NAME] [--rounds N] [--chunk N] [--out DIR] [--json]"


@dataclass(frozen=True)
class Axis:
    """What is varied.

    Attributes:
        name: on the command line.
        title: in words, with the unit.
        points: its values, in growing order.
    """

    name: str
    title: str
    points: tuple[int, ...]


AXES = {
    axis.name: axis
    for axis in (
        Axis("batch", "images a step", (4, 8, 16, 32, 64)),
        Axis("image", "side in pixels", (32, 64, 96, 128, 192)),
        Axis("depth", "convolutions in residual blocks", (8, 16, 32, 64)),
        Axis("devices", "simulated devices, 64 images in all", (1, 2, 4, 8)),
    )
}
"""ResNet-18 has 16 convolutions in its blocks: two blocks of two in each of four stages."""

SPARE = 8
"""Simulated devices for each that is used. Their programs share a pool of as many threads as there are devices, or
cores if these are more, and a sum over devices holds its thread until all have come. With no thread to spare the sums
of one device can keep the others from coming, and XLA ends the process after 40 s (docs/reliability.md)."""


def main(words: list[str] | None = None) -> int:
    """Measures, prints the table and draws the plot; returns the exit code."""
    return run_command(COMMAND, lambda words: _run(_options(words)), words)


def _options(words: list[str]) -> argparse.Namespace:
    parser = Parser(COMMAND, USAGE, "Time and memory of a step over batch, image size, depth and devices.")
    choice = values.one_of([*AXES, "all"])
    parser.add_argument("--axis", type=choice, default="all", metavar="NAME", help=f"{', '.join(AXES)} or all (all)")
    add_turns(parser, chunk=3, what="steps")
    return read(parser, words)


def _run(options: argparse.Namespace) -> int:
    axes = AXES if options.axis == "all" else {options.axis: AXES[options.axis]}
    raw, machine = {}, {}
    for name, axis in axes.items():
        points = [str(point) for point in axis.points]
        own, machine = measure_in_turns({name: axis}, points, options, builder="benchmarks.growth")
        raw[name] = {"title": axis.title, "results": own[name]}
    text = table(raw, time.strftime("%Y-%m-%d"))
    report(options, text, command=COMMAND, names=["axis"], raw=raw, machine=machine)
    if options.out is not None:
        (options.out / "growth.svg").write_text(plot(raw))
    return 0


def exponents(points: list[float], amounts: list[float]) -> list[float | None]:
    """p of `amount ~ point^p` between each point and the one before: 1 is linear. None for the first.

    Example:
        >>> exponents([1.0, 2.0, 4.0], [3.0, 6.0, 24.0])
        [None, 1.0, 2.0]
    """
    steps = zip(points, points[1:], amounts, amounts[1:], strict=False)
    return [None, *(math.log(b / a) / math.log(y / x) for x, y, a, b in steps)]


def table(raw: dict[str, Any], date: str) -> str:
    """Markdown: for each axis a line for each point."""
    parts = [
        f"# How a step grows, {date}\n\nResNet-18, 64 px, 16 images, float32, heads of 4096 and 256, Adam, no "
        "augmentation; one of these varied. Exponent: p of seconds or bytes ~ point^p, from the line above. "
        "Temporaries: what XLA sets aside for the step, on one device. Simulated devices share this machine's cores."
    ]
    for one in raw.values():
        points = [float(point) for point in one["results"]]
        times = [summarise(flat(result)) for result in one["results"].values()]
        memory = [result["temporary_bytes"] for result in one["results"].values()]
        powers = [exponents(points, amounts) for amounts in ([own.minimum for own in times], memory)]
        rows = [
            [one["title"], "min s/step", "median", "IQR", "exponent", "temporaries MiB", "exponent", "arguments MiB"]
        ]
        for (point, result), own, of_time, of_memory in zip(one["results"].items(), times, *powers, strict=True):
            row = [point, *(f"{number:.4f}" for number in own), _power(of_time)]
            row += [f"{result['temporary_bytes'] / 2**20:,.1f}", _power(of_memory)]
            rows.append([*row, f"{result['argument_bytes'] / 2**20:,.1f}"])
        parts += [f"## Over {one['title']}", markdown(rows)]
    return "\n\n".join(parts)


def _power(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def plot(raw: dict[str, Any]) -> str:
    """An SVG page: a row of charts for each axis, seconds on the left and temporaries on the right."""
    width, height, top = 480, 250, 26
    charts = []
    for row, one in enumerate(raw.values()):
        points = [float(point) for point in one["results"]]
        seconds = [summarise(flat(result)).minimum for result in one["results"].values()]
        memory = [result["temporary_bytes"] / 2**20 for result in one["results"].values()]
        for column, (name, amounts) in enumerate({"seconds a step": seconds, "temporaries, MiB": memory}.items()):
            chart = line_chart(zip(points, amounts, strict=True), name=name, x_label=one["title"])
            x, y = 10 + column * width, row * (height + top)
            charts.append(f'<text x="{x}" y="{y + 18}">{name} over {one["title"]}</text>')
            charts.append(f'<svg x="{x}" y="{y + top}" width="{width - 20}" height="{height - 20}">{chart}</svg>')
    style = f"<style>{STYLE} text {{ font: 12px system-ui, sans-serif; fill: var(--ink); }}</style>"
    size = f'width="{2 * width}" height="{len(raw) * (height + top)}"'
    background = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{background}{"".join(charts)}</svg>\n'


def build(name: str, fields: dict[str, Any]) -> Contender:
    """The step at one point, whose number is the contender's `name`."""
    point = int(name)
    sizes = {"batch": 16, "image": 64, "depth": 16, "devices": 1} | {fields["name"]: point}
    batch = 64 if fields["name"] == "devices" else sizes["batch"]
    flags = f"--xla_force_host_platform_device_count={SPARE * sizes['devices']}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"  # read when JAX looks for devices
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    from byol_jax import nets, parallel

    stages = (sizes["depth"] // 8,) * 4
    work = Workload(fields["name"], name, Resnet(stages, "basic"), "avgpool", sizes["image"], batch)
    learner = workload_learner(nets.resnet(stages, block="basic"), work)
    mesh = parallel.make_mesh(jax.devices()[: sizes["devices"]])
    state = parallel.replicate(learner.init(jax.random.key(0)), mesh)
    images = jax.random.uniform(jax.random.key(1), (batch, sizes["image"], sizes["image"], 3))
    images = parallel.shard(images, mesh)
    compiled = parallel.jit(learner, mesh).lower(state, images).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    now = {"state": state}

    def step() -> None:
        now["state"], _ = jax.block_until_ready(compiled(now["state"], images))

    def facts() -> dict[str, Any]:
        return {
            "temporary_bytes": memory.temp_size_in_bytes,
            "argument_bytes": memory.argument_size_in_bytes,
            "devices": mesh.size,
        }

    return Contender(step, jax_device(), facts)


if __name__ == "__main__":
    sys.exit(main())
