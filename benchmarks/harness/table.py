"""From raw results to a table in Markdown. Pure functions; `summary.py` computes the numbers."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

from benchmarks.harness.contenders import CONTENDERS, PEAKS
from benchmarks.harness.summary import Summary, ratio, summarise

__all__ = ["NAMES", "flat", "heading", "machine_line", "markdown", "throughput_table", "workload_table"]

REFERENCES = ("byol_jax", "eager", "channels_last", "compiled")
"""Contenders that the others are compared to: our own network, which a traced one should equal; byol-pytorch as in its
README, and as tuned for speed."""

NAMES = {
    "byol_jax": "byol_jax",
    "traced": "byol_jax, traced torch module",
    "eager": "byol-pytorch, eager",
    "channels_last": "byol-pytorch, channels_last",
    "compiled": "byol-pytorch, torch.compile",
}

PHASES = {
    "import": "imports",
    "network": "torch module",
    "trace": "trace",
    "verify": "verification",
    "state": "state",
    "compile": "compilation",
}
"""What is done before the first step, in this order."""


def heading(date: str) -> str:
    """The table's first lines: what is compared, and how to read it."""
    return (
        f"# One BYOL training step, {date}\n\n"
        "Each contender alone in its process, one at a time at work, in turns of a few steps. Augmentation off, no "
        "simplicial embedding, Adam, float32 (TF32 on a GPU, for all), moving average included. Ratios: of minima / of "
        "medians, below 1 is faster. Peak memory: the whole process's, verification and compilation included."
    )


def machine_line(machine: dict[str, Any]) -> str:
    """The line that says where and how the numbers were measured."""
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    load = " -> ".join(f"{entry[0]:.1f}" for entry in machine["load_average"])
    return (
        f"Machine: {machine['processor']}, {machine['threads']} of {machine['cores']} cores used, "
        f"{machine['memory_gib']} GiB, {machine['system']}, {machine['libc']}; device: {machine['device']}. "
        f"Allocator, for all contenders alike: {machine['allocator']}. "
        f"Load average before -> after: {load}. Python {machine['python']}, {packages}."
    )


def workload_table(title: str, results: dict[str, dict[str, Any]], flops: dict[str, int]) -> str:
    """One workload's part: a line for each contender, then the floor.

    Args:
        title: the workload in words.
        results: answers by contender and peak, as `coordinator.measure` gives them.
        flops: of a step, `with_padding` and, where there is a closed form, `inside` the maps.
    """
    steps = {name: summarise(flat(results[name])) for name in CONTENDERS if name in results}
    least = flops.get("inside", flops["with_padding"])
    floors = {name: least / peak for name, peak in peaks(results).items()}
    floor = min(floors.values())
    titles = ["contender", "min s/step", "median", "IQR", *(f"to {name}" for name in REFERENCES), "to floor"]
    rows = [[*titles, "peak memory MiB"]]
    on_device = any("device_memory_bytes" in result for result in results.values())
    rows[0] += ["peak device memory MiB"] if on_device else []
    for name, own in steps.items():
        row = [NAMES[name], *(f"{value:.4f}" for value in own), *(_ratio(own, steps.get(one)) for one in REFERENCES)]
        row += [f"{own.minimum / floor:.2f}", _mebibytes(results[name].get("peak_memory_bytes"))]
        row += [_mebibytes(results[name].get("device_memory_bytes"))] if on_device else []
        rows.append(row)
    parts = [f"## {title}", markdown(rows), markdown(_phase_rows(results)), _floor_line(results, flops, floors)]
    return "\n\n".join(parts)


def throughput_table(results: dict[str, dict[str, Any]], *, images: int, reference: str) -> str:
    """A line for each contender: images a second by the fastest step, seconds a step, and its time over `reference`'s.

    Args:
        images: a step's.
    """
    steps = {name: summarise(flat(result)) for name, result in results.items()}
    rows = [["", "images/s", "min s", "median", "IQR", f"time of {reference}'s"]]
    for name, own in steps.items():
        numbers = [f"{images / own.minimum:,.0f}", *(f"{value:.4f}" for value in own)]
        rows.append([name, *numbers, _ratio(own, steps[reference])])
    return markdown(rows)


def _phase_rows(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Seconds until the first step is done, by what was done."""
    rows = [["seconds until the first step is done", *PHASES.values(), "first step", "together"]]
    for name in CONTENDERS:
        if name in results:
            seconds, first = results[name]["phase_seconds"], results[name]["first_step_seconds"]
            spent = [f"{seconds[phase]:.2f}" if phase in seconds else "-" for phase in PHASES]
            rows.append([NAMES[name], *spent, f"{first:.2f}", f"{results[name]['build_seconds'] + first:.2f}"])
    return rows


def peaks(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Operations a second of the fastest matrix multiply, by framework."""
    named = {name: results[f"peak {name}"] for name in PEAKS if f"peak {name}" in results}
    return {name: result["flops"] / min(flat(result)) for name, result in named.items()}


def _floor_line(results: dict[str, dict[str, Any]], flops: dict[str, int], floors: dict[str, float]) -> str:
    reached = peaks(results)
    each = ", ".join(
        f"{floor:.4f} s at the {reached[name] / 1e9:,.0f} GFLOP/s of {name}'s matrix multiply"
        for name, floor in floors.items()
    )
    padded = f"{flops['with_padding'] / 1e9:.2f}"
    if "inside" in flops:
        inside = f"{flops['inside'] / 1e9:.2f}"
        count = f"{inside} GFLOP a step in closed form ({padded} with multiplications by the padding's zeros)"
    else:
        count = f"{padded} GFLOP a step as torch counts them, multiplications by the padding's zeros included"
    return f"Floor: {count}: {each}. The column compares minima to the lower one."


def flat(result: dict[str, Any]) -> list[float]:
    """All of a contender's seconds, in the order of its steps."""
    return list(chain.from_iterable(result["seconds"]))


def _ratio(own: Summary, other: Summary | None) -> str:
    return "-" if other is None else " / ".join(f"{value:.2f}" for value in ratio(own, other))


def _mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:,.0f}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table with padded columns, to be read in a terminal too; the first is aligned left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [[_align(*cell) for cell in zip(range(len(row)), row, widths, strict=True)] for row in rows]
    rule = ["-" * width if number == 0 else "-" * (width - 1) + ":" for number, width in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [aligned[0], rule, *aligned[1:]])


def _align(number: int, text: str, width: int) -> str:
    return text.ljust(width) if number == 0 else text.rjust(width)
