"""A traced network in a folder, to be run later without the module's code and without torch.

    network.json           the graphs as plain data
    network.safetensors    weights, buffers and constants

Nothing in either is executed: operators are looked up by name in this version's own table. A network whose graphs don't
hold for every size of the batch is kept with the graphs of all sizes that it has met, and says so to older versions by
its format.
"""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from byol_jax.disk import write_atomically
from byol_jax.errors import CheckpointFormatError, ConfigurationError
from byol_jax.tree import flatten, unflatten
from byol_jax.types import Encoder, Variables
from interop.arrays import DTYPE_NAMES, as_numpy
from interop.files import read_arrays, write_arrays
from interop.trace.batch_sizes import SizedGraphs, Traced
from interop.trace.checks import find_missing
from interop.trace.encoder import TracedNetwork, network_encoder, traced_network
from interop.trace.export import ANY_SIZE
from interop.trace.graph import Dtype, Graph, Node, Placeholder, Ref

__all__ = ["load_network", "save_network"]

FORMAT = 1
SIZED_FORMAT = 2
"""Of a network with graphs for some sizes of the batch alone."""
GRAPH_FILE, TENSOR_FILE = "network.json", "network.safetensors"


def save_network(folder: str | Path, encoder: Encoder) -> None:
    """Writes a traced encoder, with the weights that its `init` gives, into `folder`.

    Of a network that is another graph for other sizes of the batch, the graphs are kept that it has met until now: it
    refuses other sizes when it is loaded.

    Args:
        folder: made if it isn't there.
        encoder: what `from_torch_module` returned.

    Raises:
        ConfigurationError: another encoder.
        OSError: the folder can't be written.

    Example:
        >>> import tempfile, torch
        >>> from interop.trace.encoder import from_torch_module
        >>> folder = tempfile.mkdtemp()
        >>> save_network(folder, from_torch_module(torch.nn.Conv2d(3, 4, 3), image_size=8))
        >>> load_network(folder).init(None, (8, 8, 3)).params["weight"].shape
        (4, 3, 3, 3)
    """
    network = traced_network(encoder)
    with jax.enable_x64(True):  # `init` makes JAX arrays of what the module had, float64 too
        variables = encoder.init(jax.random.key(0), network.input_shape)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, np.ndarray] = {}
    for kind, tree in (("param", variables.params), ("stat", variables.stats)):
        tensors |= {f"{kind}/{name}": as_numpy(leaf, name) for name, leaf in flatten(tree).items()}
    graphs = {"train": network.traced.train, "eval": network.traced.eval}
    graphs |= {_sized_name(*kind): graph for kind, graph in sorted(network.further.known.items())}
    for mode, graph in graphs.items():
        tensors |= {f"constant/{mode}/{name}": as_numpy(array, name) for name, array in graph.constants.items()}
    sizes = network.traced.sizes
    limits = [sizes.start, None if sizes.stop == ANY_SIZE.stop else sizes.stop, sizes.step]
    further = {} if network.takes_any_batch else {"sizes": limits, "further": [*sorted(network.further.known)]}
    description = {
        "format": SIZED_FORMAT if further else FORMAT,
        "input_shape": network.input_shape,
        "frozen": sorted(network.frozen),
        "names": network.traced.names,
        "state_dict": [[key, *kept] for key, kept in network.state_dict.items()],
        **further,
        **{mode: _graph_to_json(graph) for mode, graph in graphs.items()},
    }
    write_arrays(folder / TENSOR_FILE, tensors)
    text = json.dumps(description, allow_nan=False, separators=(",", ":"))
    write_atomically(folder / GRAPH_FILE, text.encode())


def load_network(folder: str | Path) -> Encoder:
    """The encoder that `save_network` wrote; torch isn't needed.

    Args:
        folder: the same; a path.

    Raises:
        CheckpointFormatError: no such network, or its files are damaged or of a later version.
        UnsupportedOpError: it uses operators that `register_op` had added.
    """
    path = Path(folder) / GRAPH_FILE
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointFormatError(f"{path}: no traced network that can be read ({error})") from error
    tensors = read_arrays(Path(folder) / TENSOR_FILE)
    try:
        if description["format"] not in (FORMAT, SIZED_FORMAT):
            raise CheckpointFormatError(
                f"{path}: format {description['format']}, this version reads up to {SIZED_FORMAT}: update byol-jax"
            )
        train, evaluation = (_graph_from_json(description[mode], tensors, mode) for mode in ("train", "eval"))
        start, stop, step = description.get("sizes", (0, None, 1))
        sizes = range(start, ANY_SIZE.stop if stop is None else stop, step)
        if not sizes:
            raise ValueError("it holds for no size of the batch")
        traced = Traced(train, evaluation, tuple(description["names"]), sizes)
        named = {(bool(kind), int(size)): _sized_name(kind, size) for kind, size in description.get("further", ())}
        known = {kind: _graph_from_json(description[name], tensors, name) for kind, name in named.items()}
        state_dict = {key: (leaf, dtype) for key, leaf, dtype in description["state_dict"]}
        shape, frozen = tuple(description["input_shape"]), frozenset(description["frozen"])
        network = TracedNetwork(traced, shape, frozen, state_dict, SizedGraphs(known, None, sizes))
        parts = [_tensors_under(tensors, kind) for kind in ("param/", "stat/")]
        there = {name.replace("/", ".") for part in parts for name in part}
        if any(leaf not in there or dtype not in DTYPE_NAMES for leaf, dtype in state_dict.values()):
            raise ValueError("state_dict speaks of tensors that aren't there")
        for graph in (train, evaluation, *known.values()):
            _check_sources(graph, there)
        variables = Variables(*map(unflatten, parts))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        if isinstance(error, CheckpointFormatError):
            raise
        raise CheckpointFormatError(f"{path} isn't as it was written ({type(error).__name__}: {error})") from error
    find_missing(train, evaluation, *known.values()).raise_if_any(str(folder))
    return network_encoder(network, variables)


def _sized_name(train: bool, size: int) -> str:
    """What the graph of a mode and a size of the batch is called."""
    return f"{'train' if train else 'eval'}@{size}"


def _tensors_under(tensors: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: array for name, array in tensors.items() if name.startswith(prefix)}


def _check_sources(graph: Graph, leaves: Collection[str]) -> None:
    """Refuses a graph that reads what the file of tensors lacks.

    Raises:
        ValueError: names the first such tensor.
    """
    for kind, target in graph.sources.values():
        if kind != "input" and target not in (graph.constants if kind == "constant" else leaves):
            raise ValueError(f"its graph reads the {kind} {target}, which {TENSOR_FILE} lacks")


def _graph_to_json(graph: Graph) -> dict[str, Any]:
    return {
        "sources": {name: list(source) for name, source in graph.sources.items()},
        "nodes": [
            [node.name, node.op, _encode(node.args), {k: _encode(v) for k, v in node.options.items()}, node.module]
            for node in graph.nodes
        ],
        "output": graph.output and graph.output.name,
        "hidden": {name: ref.name for name, ref in graph.hidden.items()},
        "buffers": {name: ref.name for name, ref in graph.buffers.items()},
    }


def _graph_from_json(given: Mapping[str, Any], tensors: Mapping[str, np.ndarray], mode: str) -> Graph:
    nodes = tuple(
        Node(name, op, _decode(args), {key: _decode(value) for key, value in options.items()}, module)
        for name, op, args, options, module in given["nodes"]
    )
    return Graph(
        {name: Placeholder(kind, target) for name, (kind, target) in given["sources"].items()},
        nodes,
        None if given["output"] is None else Ref(given["output"]),
        {name: Ref(value) for name, value in given["hidden"].items()},
        {name: Ref(value) for name, value in given["buffers"].items()},
        _tensors_under(tensors, f"constant/{mode}/"),
    )


def _encode(argument: Any) -> Any:
    """JSON for an argument: {"ref": …}, {"dtype": …} and {"float": "inf"} beside lists and plain values."""
    if isinstance(argument, Ref):
        return {"ref": argument.name}
    if isinstance(argument, Dtype):
        return {"dtype": argument.name}
    if isinstance(argument, tuple):
        return [_encode(part) for part in argument]
    if isinstance(argument, float) and not math.isfinite(argument):
        return {"float": str(argument)}
    if argument is None or isinstance(argument, bool | int | float | str):
        return argument
    raise ConfigurationError(f"an operator's argument of type {type(argument).__name__} can't be saved")


def _decode(argument: Any) -> Any:
    if isinstance(argument, list):
        return tuple(_decode(part) for part in argument)
    if isinstance(argument, dict):
        ((kind, text),) = argument.items()
        return {"ref": Ref, "dtype": Dtype, "float": float}[kind](text)
    return argument
