"""`byol-jax presets`: the recipes that `train --preset` takes, where they come from and what they gave there."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from byol_jax import presets

__all__ = ["USAGE", "add_arguments", "check", "run"]

USAGE = "[--json]"


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
    return {"name": one.preset.name, "source": one.source, "result": one.result, "recipe": asdict(one.preset)}


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
        f"source: {one.source}",
    ]
