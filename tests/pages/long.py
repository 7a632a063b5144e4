"""docs/long.md from the figures of `make long`: python -m tests.pages.long [FIGURES]. Run by the Makefile.

Each row is what a long test measured, with the commit it ran on; nothing here judges. Below the table stand the tests
that measure and have no row; without FIGURES that list alone is written anew.
"""

import datetime
import json
import os
import platform
import re
import sys
from pathlib import Path

from tests.source_code import ROOT, functions, parsed

PAGE = ROOT / "docs" / "long.md"
HEAD = """# What `make long` measured

`make long`, {date}, each row at the commit that it names; {processors} processors ({machine}), Python {python}, no
accelerator. Continuous integration runs a fixed tenth of the same cases (`.ci/run`).

| what | cases | result | test | commit |
|---|---:|---|---|---|
"""
LIST = "\n## Without a row yet\n\nTests that measure, and were written or renamed since:\n\n"


def table(rows):
    """Markdown of the rows, each {"what", "cases", "result", "test", "commit"}, in order of test and what."""
    lines = [
        f"| {row['what']} | {row['cases']:,} | {row['result']} | `{row['test']}` | `{row['commit']}` |"
        for row in sorted(rows, key=lambda row: (row["test"], row["what"]))
    ]
    return "\n".join(lines) + "\n"


def measuring():
    """Every test that gives a figure: "tests/laws/test_a.py::test_b"."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for function in functions(parsed(path)):
            if function.name.startswith("test_") and "figure" in [one.arg for one in function.args.args]:
                yield f"{path.relative_to(ROOT).as_posix()}::{function.name}"


def recorded(page):
    """The tests that the page has rows of."""
    return set(re.findall(r"\| `(tests/[^`]+::\w+)` \| `[^`]+` \|$", page, re.MULTILINE))


def with_list(page):
    """The page, with the list of tests that have no row, where there are any."""
    page = page.partition(LIST)[0]
    missing = [test for test in measuring() if test not in recorded(page)]
    return page + (LIST + "".join(f"- `{test}`\n" for test in missing) if missing else "")


def main(figures):
    page = PAGE.read_text(encoding="utf-8")
    if figures is not None:
        rows = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
        page = HEAD.format(
            date=datetime.datetime.now(datetime.UTC).date(),
            processors=os.cpu_count(),
            machine=platform.machine(),
            python=platform.python_version(),
        ) + table(rows)
    PAGE.write_text(with_list(page), encoding="utf-8")
    print(f"{PAGE}: {len(recorded(page))} tests have rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else None)
