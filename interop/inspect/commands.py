"""What the command lines call: change a weight file's format, and look into one. Plain functions, no printing.

They need NumPy and safetensors alone; torch only where a PyTorch file is written.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from byol_jax.errors import CheckpointFormatError
from interop.errors import warn_caller
from interop.files import EXTENSIONS, SeveralWeightsWarning, save_with_metadata
from interop.formats.containers import is_extra_state
from interop.formats.safetensors_file import FORMAT
from interop.formats.sharded_file import replaces_input
from interop.inspect.anatomy import architecture, head_layers, layers_in_words
from interop.inspect.contents import Contents, escaped, read_contents, refuse_unprintable
from interop.inspect.recognition import difference, find_origin, learner_arrays, network_arrays
from interop.inspect.refusals import LEFT_OUT, Refusal, refusals
from interop.learners.library import Origin
from interop.weights.architectures import recognise
from interop.weights.values import value_problems

__all__ = ["convert_file", "inspect_file", "inspection_text"]

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
"""Last parts of names that aren't parameters."""

EXTRA_STATE = "what a module keeps by get_extra_state is no tensor"

LISTED = 4
"""Names that are printed where one reason holds for many."""


def convert_file(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    which_weights: str | None = None,
    prefix: str | None = None,
) -> dict[str, Any]:
    """Reads `source`, whatever its format, and writes `target` in the format of its ending; the same bits.

    Args:
        source: see `interop.load_state_dict`; containers and wrapper prefixes are taken off.
        target: ends in .safetensors, .npz, .pt, .pth or .ckpt.
        overwrite: replace a `target` that exists.
        which_weights, prefix: as in `interop.load_state_dict`.

    Returns:
        `source, target, kind` (what the network is), `tensors`, `bytes` (of values) and `left_behind`: names of what
        `source` holds and `target` doesn't (an optimiser's state, other weights, a wrapper's count, modules' extra
        state). Text about the whole file goes from one .safetensors to another; elsewhere it is left behind as
        `__metadata__`.

    Raises:
        CheckpointFormatError: `target` exists or is what is read, its ending isn't known, it can't be written; or
            see `load_state_dict`.
        UnsafeCheckpointError: see `load_state_dict`.
        MissingDependencyError: `target` is PyTorch's and torch is absent.

    Example:
        >>> import interop, tempfile
        >>> folder = tempfile.mkdtemp()
        >>> interop.save_state_dict(f"{folder}/net.npz", {"fc.bias": np.zeros(3, np.float32)})
        >>> convert_file(f"{folder}/net.npz", f"{folder}/net.safetensors")["tensors"]
        1
    """
    target = os.fspath(target)
    if Path(target).suffix.lower() not in EXTENSIONS:
        raise CheckpointFormatError(f"{target}: unknown ending; use {', '.join(EXTENSIONS)}")
    if replaces_input(target, source):
        raise CheckpointFormatError(f"{target}: is the file that is read, and would be lost; give another name")
    if os.path.lexists(target) and not overwrite:
        raise CheckpointFormatError(f"{target}: exists already; give another name or --overwrite")
    contents = read_contents(source, which_weights=which_weights, prefix=prefix)
    state_dict = contents.state_dict
    refuse_unprintable(state_dict, where=os.fspath(source))
    if contents.sentence:
        warn_caller(SeveralWeightsWarning(contents.sentence))
    try:
        save_with_metadata(target, state_dict, contents.metadata)
    except OSError as error:
        raise CheckpointFormatError(f"{target}: cannot be written: {error.strerror or error}") from error
    return {
        "source": os.fspath(source),
        "target": target,
        "kind": _kind(find_origin(state_dict), state_dict),
        "tensors": len(state_dict),
        "bytes": sum(array.nbytes for array in state_dict.values()),
        "left_behind": _left_behind(contents, target),
    }


def _left_behind(contents: Contents, target: str) -> list[str]:
    """Names of what a file holds and the converted one doesn't."""
    left = [*contents.beside, *(name for name in contents.dropped if name not in contents.beside)]
    has_place = Path(target).suffix.lower() == ".safetensors"
    return left if has_place or dict(contents.metadata) in ({}, dict(FORMAT)) else [*left, "__metadata__"]


def inspect_file(
    path: str | os.PathLike[str], *, which_weights: str | None = None, prefix: str | None = None
) -> dict[str, Any]:
    """What is in a weight file, as a JSON-able dict.

    Args:
        which_weights, prefix: as in `interop.load_state_dict`.

    Returns:
        `path`; `format`; `kind`, the network or learner as far as its names and shapes tell; `prefixes`, taken off the
        names by loading, and `owner`, what still stands before all of them.

        `weights`: `taken`, the entry of the container that all this is said of ("state_dict_ema"; "" where there are no
        entries), and `sets`, every entry with weights to the number of its tensors: what `which_weights` may be.

        `source`: whose learner it is, with its layout and releases; "" where it is none. `architecture`: `name`,
        `details` (what differs from torchvision's network of that name), `features` (of the pooled representation)
        and `classes` (of its classifier), None where nothing tells. `heads`: "projector" and "predictor" to layers, in
        order, each with `name`, `kind` and sizes; empty in a network by itself. `target`: whether there is a target
        network. `container`: `beside` (what the file holds besides), `optimiser` (whether an optimiser's state is
        there), `step`, `epoch`, `lightning` (its version).

        `tensors`, `parameters` (values that training changes), `values` (all), `bytes`; `leaves`, one dict each of
        `name, dtype, shape, min, mean, max, std` (over finite values, in float64; None where there are none, or the
        result is beyond float64; std that of the population) and `nan`, `inf` (counts). `would_not_convert`: `name`,
        `verdict` ("refused" or "left out") and `reason` of each leaf that loading wouldn't take. `problems`, a list of
        lines, empty where nothing is wrong.

    Raises:
        CheckpointFormatError, UnsafeCheckpointError: see `load_state_dict`.

    Example:
        >>> import interop, tempfile
        >>> path = f"{tempfile.mkdtemp()}/net.npz"
        >>> interop.save_state_dict(path, {"fc.bias": np.array([1.0, np.nan], np.float32)})
        >>> inspect_file(path)["problems"]
        ['fc.bias: 1 NaN of 2 values']
    """
    contents = read_contents(path, which_weights=which_weights, prefix=prefix)
    state_dict = contents.state_dict
    origin = find_origin(state_dict)
    leaves = [_leaf(name, array) for name, array in state_dict.items()]
    parameters = [array.size for name, array in state_dict.items() if _is_parameter(name)]
    refused = refusals(origin, state_dict)
    refused += [Refusal(name, LEFT_OUT, EXTRA_STATE) for name in contents.dropped if is_extra_state(name)]
    return {
        "path": os.fspath(path),
        "format": contents.format,
        "kind": _kind(origin, state_dict),
        "weights": {"taken": contents.entry, "sets": contents.sets},
        **_parts(origin, contents),
        "tensors": len(leaves),
        "parameters": sum(parameters),
        "values": sum(array.size for array in state_dict.values()),
        "bytes": sum(array.nbytes for array in state_dict.values()),
        "leaves": leaves,
        "would_not_convert": [refusal._asdict() for refusal in refused],
        "problems": [problem for name, array in state_dict.items() for problem in value_problems(name, array)],
    }


def _kind(origin: Origin, state_dict: Mapping[str, np.ndarray]) -> str:
    """In words; "unknown" where nothing tells."""
    if origin.source:
        return f"BYOL learner, {origin.title}"
    return recognise({name.removeprefix(origin.owner): array.shape for name, array in state_dict.items()})


def _parts(origin: Origin, contents: Contents) -> dict[str, Any]:
    arrays = learner_arrays(origin, contents.state_dict)
    encoder = network_arrays(arrays, wanted=("conv1.weight",))
    network = architecture({name: array.shape for name, array in encoder.items()})
    otherwise = difference(origin, contents.state_dict)
    shapes = {name: array.shape for name, array in arrays.items()}
    heads = {head: head_layers(shapes, f"online.{head}.") for head in ("projector", "predictor")}
    return {
        "prefixes": list(contents.prefixes),
        "owner": origin.owner,
        "source": origin.title,
        "architecture": network._asdict() | {"details": [*network.details, *([otherwise.detail] if otherwise else [])]},
        "heads": {head: layers for head, layers in heads.items() if layers},
        "target": any(name.startswith("target.") for name in shapes),
        "container": contents.facts(),
    }


def _is_parameter(name: str) -> bool:
    """DeepMind's statistics have trees of their own, "online_state/…"."""
    return name.rpartition(".")[2] not in BUFFERS and not name.partition("/")[0].endswith("_state")


def _leaf(name: str, array: np.ndarray) -> dict[str, Any]:
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    finite = wide[np.isfinite(wide)]
    numbers = finite if array.dtype.kind != "c" else finite[:0]  # complex numbers have no order
    return {
        "name": name,
        "dtype": array.dtype.name,
        "shape": list(array.shape),
        **{word: _statistic(numbers, function) for word, function in STATISTICS.items()},
        "nan": int(np.isnan(wide).sum()),
        "inf": int(np.isinf(wide).sum()),
    }


STATISTICS = {"min": np.min, "mean": np.mean, "max": np.max, "std": np.std}


def _statistic(numbers: np.ndarray, function: Callable[[np.ndarray], Any]) -> float | None:
    """None where there are no numbers, or the squares of such numbers are beyond float64."""
    if not numbers.size:
        return None
    with np.errstate(all="ignore"):
        value = float(function(numbers))
    return value if math.isfinite(value) else None


def inspection_text(inspection: Mapping[str, Any]) -> str:
    """`inspect_file`'s result for a person: what it is, a table of leaves, totals, problems."""
    head = ("name", "dtype", "shape", "min", "mean", "max", "std")
    rows = [head] + [
        (escaped(leaf["name"]), leaf["dtype"], str(leaf["shape"]), *(_number(leaf[column]) for column in head[3:]))
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
    refused = [
        f"would not convert: {verdict}, {reason}: {_first_of(names)}"
        for (verdict, reason), names in _names_by_reason(inspection["would_not_convert"]).items()
    ]
    problems = [f"problem: {problem}" for problem in inspection["problems"]] or ["no problems"]
    head_line = f"{inspection['path']}: {inspection['kind']} ({inspection['format']})"
    return "\n".join(map(escaped, [head_line, *_facts(inspection), *table, totals, *refused, *problems]))


def _facts(inspection: Mapping[str, Any]) -> list[str]:
    """One line for each thing that is known."""
    network, container = inspection["architecture"], inspection["container"]
    known = [network["name"], *network["details"]]
    known += [] if network["features"] is None else [f"{network['features']} features"]
    known += [] if network["classes"] is None else [f"classifier of {network['classes']} classes"]
    told = network["name"] != "unknown"
    beside = [*container["beside"]]
    beside += [f"{name} {container[name]}" for name in ("step", "epoch") if container[name] is not None]
    taken, sets = inspection["weights"]["taken"], inspection["weights"]["sets"]
    counted = [f"{name} ({count} tensors{', taken' if name == taken else ''})" for name, count in sets.items()]
    facts = {
        "weights, by --which-weights": ", ".join(counted) if len(sets) > 1 else "",
        "taken off the names": ", ".join(inspection["prefixes"]),
        "before all names": inspection["owner"],
        "architecture": ", ".join(known) if told else "",
        **{head: layers_in_words(layers) for head, layers in inspection["heads"].items()},
        "target network": ("present" if inspection["target"] else "absent") if inspection["source"] else "",
        "beside the weights": ", ".join(beside),
        "optimiser's state": "present" if container["optimiser"] else "",
    }
    return [f"{name}: {text}" for name, text in facts.items() if text]


def _names_by_reason(refused: Sequence[Mapping[str, str]]) -> dict[tuple[str, str], list[str]]:
    """Verdict and reason to the names that share them."""
    names: dict[tuple[str, str], list[str]] = {}
    for one in refused:
        names.setdefault((one["verdict"], one["reason"]), []).append(one["name"])
    return names


def _first_of(names: Sequence[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
