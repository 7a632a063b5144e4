"""What the command lines call: change a weight file's format, and look into one. Plain functions, no printing.

They need NumPy and safetensors alone; torch only where a PyTorch file is read or written.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from byol_jax.errors import CheckpointFormatError
from interop.files import EXTENSIONS, load_state_dict, save_state_dict, stored_format
from interop.tables import recognise

__all__ = ["convert_file", "describe", "inspect_file"]

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Last parts of names that aren't parameters."""


def convert_file(
    source: str | os.PathLike[str], target: str | os.PathLike[str], *, overwrite: bool = False
) -> dict[str, Any]:
    """Reads `source`, whatever its format, and writes `target` in the format of its ending; the same bits.

    Args:
        source: see `interop.load_state_dict`; containers and wrapper prefixes are taken off.
        target: ends in .safetensors, .npz, .pt, .pth or .ckpt.
        overwrite: replace a `target` that exists.

    Returns:
        `source, target, kind` (what the network is), `tensors` and `bytes` (of values).

    Raises:
        CheckpointFormatError: `target` exists, its ending isn't known, it can't be written; or see `load_state_dict`.
        UnsafeCheckpointError, MissingDependencyError: see `load_state_dict`.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> save_state_dict(f"{folder}/net.npz", {"fc.bias": np.zeros(3, np.float32)})
        >>> convert_file(f"{folder}/net.npz", f"{folder}/net.safetensors")["tensors"]
        1
    """
    target = os.fspath(target)
    if Path(target).suffix.lower() not in EXTENSIONS:
        raise CheckpointFormatError(f"{target}: unknown ending; use {', '.join(EXTENSIONS)}")
    if os.path.lexists(target) and not overwrite:
        raise CheckpointFormatError(f"{target}: exists already; give another name or --overwrite")
    state_dict = load_state_dict(source)
    try:
        save_state_dict(target, state_dict)
    except OSError as error:
        raise CheckpointFormatError(f"{target}: cannot be written: {error.strerror or error}") from error
    return {
        "source": os.fspath(source),
        "target": target,
        "kind": recognise({name: array.shape for name, array in state_dict.items()}),
        "tensors": len(state_dict),
        "bytes": sum(array.nbytes for array in state_dict.values()),
    }


def inspect_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is in a weight file, as a JSON-able dict.

    Returns:
        `path`; `format`; `kind`, the network as far as its names and shapes tell; `tensors`, `parameters` (values
        that training changes), `values` (all), `bytes`; `leaves`, one dict each of `name, dtype, shape, min, mean,
        max, std` (over finite values, in float64; None where there are none, std that of the population) and `nan`,
        `inf` (counts); `problems`, a list of lines, empty where nothing is wrong.

    Raises:
        CheckpointFormatError, UnsafeCheckpointError, MissingDependencyError: see `load_state_dict`.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/net.npz"
        >>> save_state_dict(path, {"fc.bias": np.array([1.0, np.nan], np.float32)})
        >>> inspect_file(path)["problems"]
        ['fc.bias: 1 NaN of 2 values']
    """
    state_dict = load_state_dict(path)
    leaves = [_leaf(name, array) for name, array in state_dict.items()]
    parameters = [array.size for name, array in state_dict.items() if name.rpartition(".")[2] not in BUFFERS]
    return {
        "path": os.fspath(path),
        "format": stored_format(path),
        "kind": recognise({name: array.shape for name, array in state_dict.items()}),
        "tensors": len(leaves),
        "parameters": sum(parameters),
        "values": sum(array.size for array in state_dict.values()),
        "bytes": sum(array.nbytes for array in state_dict.values()),
        "leaves": leaves,
        "problems": [problem for leaf in leaves for problem in _problems(leaf)],
    }


def _leaf(name: str, array: np.ndarray) -> dict[str, Any]:
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    finite = wide[np.isfinite(wide)]
    numbers = finite if finite.size and array.dtype.kind != "c" else None  # complex numbers have no order
    return {
        "name": name,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        "min": None if numbers is None else float(numbers.min()),
        "mean": None if numbers is None else float(numbers.mean()),
        "max": None if numbers is None else float(numbers.max()),
        "std": None if numbers is None else float(numbers.std()),
        "nan": int(np.isnan(wide).sum()),
        "inf": int(np.isinf(wide).sum()),
    }


def _problems(leaf: Mapping[str, Any]) -> list[str]:
    size = int(np.prod(leaf["shape"]))
    problems = [f"{leaf['name']}: {leaf[key]} {word} of {size} values" for key, word in WORDS if leaf[key]]
    if leaf["name"].rpartition(".")[2] == "running_var" and leaf["min"] is not None and leaf["min"] < 0:
        problems.append(f"{leaf['name']}: a variance below zero ({leaf['min']:.6g})")
    return problems


WORDS = (("nan", "NaN"), ("inf", "infinite"))


def describe(inspection: Mapping[str, Any]) -> str:
    """`inspect_file`'s result for a person: what it is, a table of leaves, totals, problems."""
    head = ("name", "dtype", "shape", "min", "mean", "max", "std")
    rows = [head] + [
        (leaf["name"], leaf["dtype"], str(leaf["shape"]), *(_number(leaf[column]) for column in head[3:]))
        for leaf in inspection["leaves"]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    table = [
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    totals = (
        f"{inspection['tensors']} tensors, {inspection['parameters']:,} parameters, "
        f"{inspection['values']:,} values, {inspection['bytes']:,} bytes"
    )
    problems = [f"problem: {problem}" for problem in inspection["problems"]] or ["no problems"]
    return "\n".join(
        [f"{inspection['path']}: {inspection['kind']} ({inspection['format']})", *table, totals, *problems]
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
