"""`byol-jax env`: versions and devices, for a report of a fault."""

import argparse
import json

__all__ = ["USAGE", "add_arguments", "check", "run"]

USAGE = "[--json]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def check(options: argparse.Namespace) -> list[str]:
    """Nothing can be wrong."""
    return []


def run(options: argparse.Namespace) -> int:
    """Prints what a run's `environment.json` holds."""
    from byol_jax.runs.environment import environment

    facts = environment()
    if options.json:
        print(json.dumps(facts, indent=2, default=str))
        return 0
    for name, value in facts.items():
        print(f"{name}: {json.dumps(value, default=str) if isinstance(value, dict | list) else value}")
    return 0
