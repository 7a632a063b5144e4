"""`byol-jax presets`: the recipes of `train --preset`, where they come from, what they gave and what they cost."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from byol_jax import presets

__all__ = ["USAGE", "add_arguments", "check", "run"]

USAGE = "[--json]"

PEAKS = {"TPU v5e chip": 197e12, "A100": 312e12, "H100": 989e12}
"""Operations a second in bfloat16 at most, without sparsity: Google's documentation of the v5e, NVIDIA's data sheets of
the A100 and the H100 SXM."""

SHARES = (0.1, 0.4)
"""Of that, what a training may reach: a guess, for the order of magnitude. BYOL's own run, 80 EFLOP in 8 hours on 256
chips of 123 TFLOP/s (TPU v3), had 9 %."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--json", action="store_true", help="as JSON, every value of each recipe")


def check(options: argparse.Namespace) -> list[str]:
    """Nothing can be wrong."""
    return []


def run(options: argparse.Namespace) -> int:
    """Prints every preset with its source and its published result."""
    if options.json:
        print(json.dumps([_facts(one) for one in presets.known()], indent=2))
        return 0
    for one in presets.known():
        print("\n".join([one.preset.name, *(f"  {line}" for line in _lines(one))]))
    return 0


def _facts(one: presets.Known) -> dict[str, Any]:
    names = ("source", "result", "machine", "images", "operations", "total_operations")
    told = {name: getattr(one, name) for name in names}
    return {"name": one.preset.name, **told, "recipe": asdict(one.preset)}


def _lines(one: presets.Known) -> list[str]:
    preset = one.preset
    length = f"{preset.steps:,} steps" if preset.epochs is None else f"{preset.epochs:,} epochs"
    size = preset.image_size if isinstance(preset.image_size, int) else "x".join(map(str, preset.image_size))
    scaled = " · batch / 256" if preset.optimizer == "lars" else ""
    return [
        f"{preset.network}, {size} px, {length}, batch {preset.batch_size:,}",
        f"{preset.optimizer}, rate {preset.base_learning_rate:g}{scaled}, weight decay {preset.weight_decay:g},"
        f" target decay {preset.base_decay:g}",
        f"result: {one.result}",
        f"took: {one.machine}",
        f"costs: {_cost(one)}",
        f"source: {one.source}",
    ]


def _cost(one: presets.Known) -> str:
    """Operations, and the hours that they would take on one device where that is an hour or more."""
    text = f"{one.operations / 1e9:,.3g} GFLOP an image in a step, {one.total_operations / 1e18:.3g} EFLOP in all"
    low, high = (one.total_operations / (share * 3600) for share in reversed(SHARES))
    if low < max(PEAKS.values()):
        return text
    said = ", ".join(f"one {name} {low / peak:,.0f} to {high / peak:,.0f} h" for name, peak in PEAKS.items())
    return f"{text}; at {SHARES[0]:.0%} to {SHARES[1]:.0%} of the peak, a guess: {said}"
