"""docs/torch_modules.md: the zoo, measured row by row: python -m benchmarks.torch_modules [--only NAME ...].

Rows run one at a time, a few a process, and each is stored as one JSON file; the page is rewritten after each.
A row is skipped where its file was made by the same code: the files under `interop/trace`, `byol_jax/ops` and the
measurement, comments and docstrings left out. So the table grows over several sittings.
"""

import argparse
import ast
import datetime
import gc
import hashlib
import importlib.metadata
import json
import multiprocessing
import signal
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax

from benchmarks.machine import ROOT, available_cores, describe
from benchmarks.zoo import BATCH, LIMIT, SMALLEST_SHARE, measure
from benchmarks.zoo_rows import ROWS, Row, build, row_named
from benchmarks.zoo_table import page
from byol_jax.disk import write_atomically

__all__ = ["RESULTS", "code_hash", "main", "stored", "table"]

RESULTS = ROOT / "benchmarks" / "results" / "torch_modules"
CODE = ("interop/trace/**/*.py", "byol_jax/ops/*.py", "benchmarks/zoo.py")
NOT_RUN = ("named.py", "saved.py", "rows.py", "verify.py")
"""Files among those that the measurement has nothing to do with; `verify` only names a layer in a row that differs."""
PACKAGES = ("jax", "timm", "torch", "torchvision")
PATIENCE = 1800
"""Seconds after which a row counts as failed."""

ROWS_A_PROCESS = 6
"""Imports, and torch.export's first run, cost as much as a small row; after more rows memory isn't all given back."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 where every row that ran is exact or refused by name."""
    options = _parser().parse_args(arguments)
    bad = 0
    for row, result in _measured(_due(options)):
        RESULTS.mkdir(parents=True, exist_ok=True)
        write_atomically(_file(row), (json.dumps(result, indent=1, sort_keys=True) + "\n").encode())
        write_atomically(options.table, table(code_hash()).encode())
        bad += result["outcome"] not in ("exact", "refused")
        print(f"{row.name}: {result['outcome']} in {result['seconds']:.0f} s, {_says(result)}", flush=True)
    write_atomically(options.table, table(code_hash()).encode())
    return 1 if bad else 0


def _due(options: argparse.Namespace) -> Iterator[Row]:
    """The rows to measure, each looked at only when its turn has come."""
    start = time.monotonic()
    rows = [row_named(name) for name in options.only] if options.only else list(ROWS)[:: options.part]
    rows.sort(key=lambda row: _file(row).exists())  # those without any figures first
    for number, row in enumerate(rows):
        if options.minutes is not None and time.monotonic() - start > 60 * options.minutes:
            print(f"{options.minutes} minutes are over: {len(rows) - number} of {len(rows)} rows not looked at")
            return
        if options.only or not _is_current(row, code_hash()):
            yield row


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torch_modules", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows, measured or not")
    parser.add_argument("--part", type=int, default=1, metavar="N", help="one row in N, always the same")
    parser.add_argument("--minutes", type=float, metavar="M", help="start no further row after M minutes")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "torch_modules.md", help="the page to write")
    return parser


def code_hash() -> str:
    """Of what the rows depend on, comments and docstrings left out."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in CODE for path in ROOT.glob(pattern) if path.name not in NOT_RUN):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):  # a docstring, or a constant's, is an expression that is a string
                node.body = [part for part in body if not _is_text(part)] or [ast.Pass()]  # type: ignore[attr-defined]
        digest.update(f"{path.relative_to(ROOT)}\n{ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def stored() -> list[dict[str, Any]]:
    """All rows that were measured and are still in the zoo."""
    files = [_file(row) for row in ROWS]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]


def table(code: str) -> str:
    """The page of what is stored; `code` is the hash of the code as it is."""
    return page(stored(), code=code, batch=BATCH, limit=LIMIT, share=SMALLEST_SHARE)


def _file(row: Row) -> Path:
    return RESULTS / f"{row.name.replace(':', '-')}.json"


def _is_current(row: Row, code: str) -> bool:
    """Made by this code, of this row, with these versions; what failed is tried again."""
    if not _file(row).exists():
        return False
    result, facts = json.loads(_file(row).read_text(encoding="utf-8")), _facts(row, code)
    return result["outcome"] != "failed" and all(result[k] == facts[k] for k in ("code", "versions", *_row(row)))


def _row(row: Row) -> dict[str, Any]:
    return {"name": row.name, "size": row.size, "options": dict(row.options), "layer": row.layer}


def _facts(row: Row, code: str) -> dict[str, Any]:
    return _row(row) | {
        "code": code,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": describe()["git"],
        "cores": available_cores(),
        "date": str(datetime.datetime.now(datetime.UTC).date()),
    }


def _measured(rows: Iterable[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Each row with its figures; where it has none, with what went wrong."""
    worker, started_with = None, ""
    for row in rows:
        code = code_hash()  # as it is when the row begins: somebody may be at work on it
        if worker is None or code != started_with:
            worker, started_with = _restarted(worker), code
        began = time.monotonic()
        try:
            result = worker.submit(_measure_in_time, row).result()
        except Exception as error:  # whatever a network may raise is the row's outcome, not the command's end
            result = {"outcome": "failed", "reason": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
            worker = _ended(worker)
        yield row, result | _facts(row, code) | {"seconds": time.monotonic() - began}
    _ended(worker)


def _restarted(worker: ProcessPoolExecutor | None) -> ProcessPoolExecutor:
    _ended(worker)
    spawned = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawned, warnings.simplefilter, ("ignore",), max_tasks_per_child=ROWS_A_PROCESS)


def _ended(worker: ProcessPoolExecutor | None) -> None:
    if worker is not None:
        worker.shutdown()


def _measure_in_time(row: Row) -> dict[str, Any]:
    """In the worker: `measure`; the alarm ends the process."""
    signal.alarm(PATIENCE)
    result = measure(build(row), image_size=row.size, layer=row.layer)
    signal.alarm(0)
    jax.clear_caches()
    gc.collect()
    return result


def _says(result: dict[str, Any]) -> str:
    if "reason" in result:
        return result["reason"]
    kinds = ("forward", "gradients", "buffers", "evaluation")
    return ", ".join(f"{kind} {result[kind]:.0e}" for kind in kinds)


if __name__ == "__main__":
    sys.exit(main())
