"""docs/torch_modules.md: the zoo, measured row by row: python -m benchmarks.torch_modules [--only NAME ...].

Rows run one at a time, a few in a process; each is stored as a JSON file, and the page is rewritten after each. A row
is skipped where the same code made its file: that is `interop/trace`, `byol_jax/ops` and the measurement, without
comments and docstrings. Where other code made it, the network is traced, and its figures are kept if the program that
JAX makes of it is the same as before. So the table can grow over several sittings.

Each network is verified as `from_torch_module` does it, in float64 alone unless --float32 is given: the programs in
float32, which XLA optimises, are three quarters of that time.
"""

import argparse
import ast
import datetime
import gc
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax

from benchmarks.harness.machine import ROOT, available_cores, describe
from benchmarks.zoo.measure import BATCH, LIMIT, SMALLEST_SHARE, measure, verified_types
from benchmarks.zoo.page import page
from benchmarks.zoo.rows import ROWS, Row, build, row_named
from byol_jax.disk import write_atomically
from interop.trace.verification.verify import IN_FLOAT64_ALONE

__all__ = ["RESULTS", "code_hash", "main", "stored_figures", "stored_rows", "table"]

RESULTS = ROOT / "benchmarks" / "results" / "torch_modules"
CODE = ("interop/trace/**/*.py", "byol_jax/ops/*.py", "benchmarks/zoo/measure.py")
NOT_RUN = ("modules.py", "saved.py", "known_faults.py", "loops.py")
"""Files among those that the measurement doesn't run."""
PACKAGES = ("jax", "timm", "torch", "torchvision")
PATIENCE = 1800
"""Seconds after which a row counts as failed."""

ROWS_A_PROCESS = 6
"""Fewer would pay for imports and torch.export's first run too often: they cost as much as a small row. After more,
memory isn't all given back."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 where every row that ran is exact or refused by name."""
    options = _parser().parse_args(arguments)
    os.environ[IN_FLOAT64_ALONE] = "" if options.float32 else "1"  # the workers take it over
    bad = 0
    for row, result in _results(_due_rows(options), again=bool(options.only)):
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_atomically(_file(row), (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
        write_atomically(options.table, table(code_hash()).encode())
        bad += result["outcome"] not in ("exact", "refused")
        print(f"{row.name}: {result['outcome']} in {result['seconds']:.0f} s, {_summary(result)}", flush=True)
    write_atomically(options.table, table(code_hash()).encode())
    return 1 if bad else 0


def _due_rows(options: argparse.Namespace) -> Iterator[Row]:
    """The rows to measure; whether one is current is decided when its turn comes."""
    start = time.monotonic()
    rows = [row_named(name) for name in options.only] if options.only else list(ROWS)[:: options.part]
    rows.sort(key=lambda row: _file(row).exists())  # those without any figures first
    for number, row in enumerate(rows):
        if options.minutes is not None and time.monotonic() - start > 60 * options.minutes:
            print(f"{options.minutes} minutes are over: {len(rows) - number} of {len(rows)} rows were not looked at")
            return
        if options.only or not _is_current(row, code_hash()):
            yield row


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_modules", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows, measured or not")
    parser.add_argument("--part", type=int, default=1, metavar="N", help="one row in N, always the same")
    parser.add_argument("--minutes", type=float, metavar="M", help="start no further row after M minutes")
    parser.add_argument("--float32", action="store_true", help="verify in float32 too")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "torch_modules.md", help="the page to write")
    return parser


def code_hash() -> str:
    """A hash of the code that the rows depend on, without comments and docstrings."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in CODE for path in ROOT.glob(pattern) if path.name not in NOT_RUN):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):  # a docstring is an expression that is a string
                node.body = [part for part in body if not _is_text(part)] or [ast.Pass()]  # type: ignore[attr-defined]
        digest.update(f"{path.relative_to(ROOT)}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def stored_rows() -> list[dict[str, Any]]:
    """All rows of the zoo that were measured."""
    files = [_file(row) for row in ROWS]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def table(code: str) -> str:
    """The page of the stored rows; `code` is the hash of the code as it is."""
    return page(stored_rows(), code=code, batch=BATCH, limit=LIMIT, share=SMALLEST_SHARE)


def _file(row: Row) -> Path:
    return RESULTS / f"{row.name.replace(':', '-')}.json"


def _is_current(row: Row, code: str) -> bool:
    """Whether the row was measured by this code, with these options and versions, and didn't fail."""
    return stored_figures(row, code).get("code") == code


def _row_facts(row: Row) -> dict[str, Any]:
    return {"name": row.name, "size": row.size, "options": dict(row.options), "layer": row.layer}


def _facts(row: Row, code: str) -> dict[str, Any]:
    return _row_facts(row) | {
        "code": code,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": describe()["git"],
        "cores": available_cores(),
        "date": str(datetime.datetime.now(datetime.UTC).date()),
    }


def _results(rows: Iterable[Row], *, again: bool) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Each row with its figures, or with the reason why there are none."""
    worker, started_with = None, ""
    for row in rows:
        code = code_hash()  # as it is when the row begins; it may change while others run
        known = {} if again else stored_figures(row, code)
        if worker is None or code != started_with:
            worker, started_with = _new_worker(worker), code
        began = time.monotonic()
        try:
            result = worker.submit(_measure_in_time, row, known.get("program", "")).result()
        except Exception as error:  # whatever a network raises is its row's outcome and doesn't end the command
            result = {"outcome": "failed", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
            worker = _end(worker)
        if "outcome" in result:
            yield row, result | _facts(row, code) | {"seconds": time.monotonic() - began}
        else:
            yield row, known | {"code": code}
    _end(worker)


def _new_worker(worker: ProcessPoolExecutor | None) -> ProcessPoolExecutor:
    _end(worker)
    spawned = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawned, warnings.simplefilter, ("ignore",), max_tasks_per_child=ROWS_A_PROCESS)


def _end(worker: ProcessPoolExecutor | None) -> None:
    if worker is not None:
        worker.shutdown()


def stored_figures(row: Row, code: str) -> dict[str, Any]:
    """The stored figures that hold again if the network's program is the same; none where other versions made them.

    `code`: a hash as `code_hash` gives it.
    """
    if not _file(row).exists():
        return {}
    result, facts = json.loads(_file(row).read_text(encoding="utf-8")), _facts(row, code)
    if result["outcome"] == "failed" or any(result[k] != facts[k] for k in ("versions", *_row_facts(row))):
        return {}
    unverified = result["outcome"] == "exact" and not set(verified_types()) <= set(result.get("verified", ()))
    return {} if unverified else result


def _measure_in_time(row: Row, known: str) -> dict[str, Any]:
    """`measure`, in the worker; an alarm ends the process after PATIENCE seconds."""
    signal.alarm(PATIENCE)
    result = measure(build(row), image_size=row.size, layer=row.layer, verify=True, known=known)
    signal.alarm(0)
    jax.clear_caches()
    gc.collect()
    return result


def _summary(result: dict[str, Any]) -> str:
    if "reason" in result:
        return result["reason"]
    kinds = ("forward", "gradients", "buffers", "evaluation")
    return ", ".join(f"{kind} {result[kind]:.0e}" for kind in kinds)


if __name__ == "__main__":
    sys.exit(main())
