"""Two results folders of `step.py` beside each other: python benchmarks/compare.py A B, or byol-jax bench compare A B.

Ratios of B to A, of minima and of medians, for every workload and contender that both have. The contenders alternated
within each folder and not between them: a change of byol-pytorch's own ratio says how much the machine itself changed.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # else `benchmarks` isn't found when this file is run

from benchmarks.harness.command import run_command
from benchmarks.harness.contenders import CONTENDERS
from benchmarks.harness.summary import ratio, summarise
from benchmarks.harness.table import NAMES, flat, markdown
from byol_jax.cli.parsing import Parser
from byol_jax.errors import ConfigurationError

__all__ = ["comparison", "main"]

COMMAND = "python benchmarks/compare.py"


def main(words: list[str] | None = None) -> int:
    """Prints the table of the two folders that `words` name; returns the exit code."""
    return run_command(COMMAND, _run, words)


def _run(words: list[str]) -> int:
    parser = Parser(COMMAND, "A B", "Two results folders of a benchmark's step: B's times over A's.")
    parser.add_argument("before", type=Path, metavar="A", help="a folder with a raw.json")
    parser.add_argument("after", type=Path, metavar="B", help="another one")
    options = parser.read(words)
    print(comparison(_read(options.before), _read(options.after)))
    return 0


def _read(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "raw.json").read_text())
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{folder}: expected a folder with a benchmark's raw.json ({error})") from error


def comparison(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The table in Markdown.

    Raises:
        ConfigurationError: the two have no workload and contender in common.
    """
    rows = [["workload", "contender", "min s/step", "then", "median", "then", "ratio min / median", "peak MiB", "then"]]
    for workload in before:
        pair = [part.get(workload, {}).get("results", {}) for part in (before, after)]
        for name in CONTENDERS:
            if all(name in results for results in pair):
                old, new = (summarise(flat(results[name])) for results in pair)
                change = ratio(new, old)
                memory = [f"{results[name]['peak_memory_bytes'] / 2**20:,.0f}" for results in pair]
                seconds = [f"{value:.4f}" for value in (old.minimum, new.minimum, old.median, new.median)]
                rows.append([workload, NAMES[name], *seconds, f"{change.minimum:.2f} / {change.median:.2f}", *memory])
    if len(rows) == 1:
        raise ConfigurationError("the two folders have no workload with the same contender: measure one of them again")
    return markdown(rows)


if __name__ == "__main__":
    sys.exit(main())
