"""docs/compatibility.md's table of known faults: python -m tests.pages.compatibility. A test holds the page to it."""

import sys
from pathlib import Path

from byol_jax.ops.known_faults import FAULTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
HEAD = "| jaxlib | where | what goes wrong | known from |\n|---|---|---|---|\n"


def table() -> str:
    rows = [
        f"| {fault.first} to {fault.last or 'the newest tried'} | {fault.platform} | {fault.name}: {fault.what} |"
        f" {fault.source} |\n"
        if fault.first != fault.last
        else f"| {fault.first} | {fault.platform} | {fault.name}: {fault.what} | {fault.source} |\n"
        for fault in FAULTS
    ]
    return HEAD + "".join(rows)


def page(old: str) -> str:
    """The page with its table replaced."""
    before, _, rest = old.partition("| jaxlib |")
    return before + table() + "\n" + rest.partition("\n\n")[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"{PAGE}: {len(FAULTS)} faults", file=sys.stderr)
