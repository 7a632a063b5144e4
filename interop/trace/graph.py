"""A traced network as plain data: what is read, which operators run in which order, what comes out.

Neither torch nor JAX is needed to hold one. `export.py` makes it from a module, `interpret.py` runs it.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["COTANGENT", "FUNCTION", "Dtype", "Graph", "Node", "Placeholder", "Ref", "dtype_names", "nodes_for", "refs"]

COTANGENT = "byol_jax.cotangent.default"
"""The operator of (y,): what will be the gradient by y."""

FUNCTION = "byol_jax.function.default"
"""The operator of (inputs, outputs, cotangents, gradients): the outputs; the gradient by each input is what is computed
from the outputs' cotangents, or zero where there is None. How one comes about: `gradients.py`."""


class Ref(NamedTuple):
    """The value of that name, computed before."""

    name: str


class Dtype(NamedTuple):
    """An argument that is a dtype, by torch's name for it: "float32"."""

    name: str


class Placeholder(NamedTuple):
    """Where a value that no node computes comes from.

    Attributes:
        kind: "param", "buffer", "constant" or "input".
        target: the leaf's dotted name in the module; of a constant its key in `Graph.constants`; "" for the input.
    """

    kind: str
    target: str


class Node(NamedTuple):
    """One operator's call.

    Attributes:
        name: what later nodes call its value.
        op: "aten.conv2d.default"; what isn't an operator of torch's has Python's name, "getitem" or "mul".
        args, options: nested tuples of numbers, strings, None, `Ref` and `Dtype`.
        module: dotted path of the module that calls it.
    """

    name: str
    op: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    module: str


class Graph(NamedTuple):
    """One mode (training or evaluation) of a network.

    Attributes:
        sources: value name → where it comes from.
        nodes: in order.
        output: the network's output, or None where that isn't one tensor.
        hidden: sub-module's dotted name → what a hook on it would hold once the network has run, [N, D].
        buffers: buffer's dotted name → its new value.
        constants: arrays that the code made; in torch's layout.
    """

    sources: dict[str, Placeholder]
    nodes: tuple[Node, ...]
    output: Ref | None
    hidden: dict[str, Ref]
    buffers: dict[str, Ref]
    constants: dict[str, Any]


def refs(argument: Any) -> Iterable[str]:
    """Names of all values that an argument mentions, at any depth.

    Example:
        >>> list(refs((Ref("x"), 2, (Ref("y"), None))))
        ['x', 'y']
    """
    return (leaf.name for leaf in _leaves(argument) if isinstance(leaf, Ref))


def dtype_names(argument: Any) -> Iterable[str]:
    """torch's names of all dtypes that an argument mentions, at any depth.

    Example:
        >>> list(dtype_names(({"dtype": Dtype("float16")}, (Ref("x"), 2))))
        ['float16']
    """
    return (leaf.name for leaf in _leaves(argument) if isinstance(leaf, Dtype))


def _leaves(argument: Any) -> Iterable[Any]:
    """What an argument holds that is neither a tuple nor a dict; a `Ref` and a `Dtype` are each one thing."""
    if isinstance(argument, dict):
        for value in argument.values():
            yield from _leaves(value)
    elif isinstance(argument, tuple) and not isinstance(argument, Ref | Dtype):
        for value in argument:
            yield from _leaves(value)
    else:
        yield argument


def nodes_for(graph: Graph, wanted: Iterable[Ref]) -> tuple[Node, ...]:
    """The nodes without which `wanted` can't be computed, in order.

    Example:
        >>> nodes = (Node("a", "relu", (Ref("x"),), {}, ""), Node("b", "relu", (Ref("x"),), {}, ""))
        >>> [node.name for node in nodes_for(Graph({}, nodes, None, {}, {}, {}), [Ref("b")])]
        ['b']
    """
    names = {ref.name for ref in wanted}
    kept = []
    for node in reversed(graph.nodes):
        if node.name in names:
            kept.append(node)
            names.update(refs(node.args))
            names.update(refs(node.options))
    return tuple(reversed(kept))
