"""`byol-jax env`: versions and devices, for a report of a fault; and a warning of each known fault of this jaxlib."""

import argparse
import json
import sys

__all__ = ["USAGE", "add_arguments", "check", "run"]

USAGE = "[--json]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--json", action="store_true", help="as JSON")


def check(options: argparse.Namespace) -> list[str]:
    """Nothing can be wrong."""
    return []


def run(options: argparse.Namespace) -> int:
    """Prints what a run's `environment.json` holds; warns on standard error."""
    from byol_jax.ops.known_faults import find_faults
    from byol_jax.runs.environment import environment

    facts = environment()
    jaxlib = facts["packages"]["jaxlib"]
    for fault in find_faults(jaxlib or "", facts["devices"]["platform"]):
        print(f"byol-jax env: warning: jaxlib {jaxlib}, {fault.name}: {fault.what}; {fault.remedy}", file=sys.stderr)
    if options.json:
        print(json.dumps(facts, indent=2, default=str))
        return 0
    for name, value in facts.items():
        print(f"{name}: {json.dumps(value, default=str) if isinstance(value, dict | list) else value}")
    return 0
