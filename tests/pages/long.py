"""docs/long.md from the figures of `make long`: python -m tests.pages.long FIGURES OUT. Run by the Makefile.

Each row is what a long test measured, with the commit it ran on; nothing here judges.
"""

import datetime
import json
import os
import platform
import sys
from pathlib import Path

HEAD = """# What `make long` measured

`make long`, {date}, each row at the commit that it names; {processors} processors ({machine}), Python {python}, no
accelerator. Continuous integration runs a fixed tenth of the same cases (`.ci/run`).

| what | cases | result | test | commit |
|---|---:|---|---|---|
"""


def table(rows):
    """Markdown of the rows, each {"what", "cases", "result", "test", "commit"}, in order of test and what."""
    lines = [
        f"| {row['what']} | {row['cases']:,} | {row['result']} | `{row['test']}` | `{row['commit']}` |"
        for row in sorted(rows, key=lambda row: (row["test"], row["what"]))
    ]
    return "\n".join(lines) + "\n"


def main():
    figures, out = map(Path, sys.argv[1:])
    rows = [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]
    head = HEAD.format(
        date=datetime.datetime.now(datetime.UTC).date(),
        processors=os.cpu_count(),
        machine=platform.machine(),
        python=platform.python_version(),
    )
    out.write_text(head + table(rows), encoding="utf-8")
    print(f"{out}: {len(rows)} rows")


if __name__ == "__main__":
    main()
