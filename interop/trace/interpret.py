"""Runs a traced graph in JAX, node after node. Pure; under `jit` only the operators remain.

`program` prepares the nodes once: it leaves out what `wanted` doesn't need, and where a ReLU is the only reader of a
batch norm it joins the two, as native networks do. `interpret` runs them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from byol_jax.errors import UnsupportedOpError
from interop.trace.graph import Dtype, Graph, Node, Ref, nodes_for, refs
from interop.trace.ops.operator import Context, Operator
from interop.trace.ops.table import find

__all__ = ["NO_STAND_INS", "Program", "interpret", "program"]

Program = tuple[Node, ...]

NO_STAND_INS: Mapping[str, Operator] = {}

BATCH_NORMS = (
    "aten._native_batch_norm_legit_functional.default",
    "aten._native_batch_norm_legit_no_training.default",
)


def program(graph: Graph, wanted: Sequence[Ref]) -> Program:
    """The nodes to run for `wanted`, batch norm and ReLU joined where nothing else reads what is between them."""
    nodes = nodes_for(graph, wanted)
    by_name = {node.name: node for node in nodes}
    readers: dict[str, int] = {ref.name: 2 for ref in wanted}  # a wanted value must stay as it is
    for node in nodes:
        for name in {*refs(node.args), *refs(node.options)}:
            readers[name] = readers.get(name, 0) + 1
    joined: dict[str, Node] = {}
    for node in nodes:
        norm = _norm_before(node, by_name, readers)
        if norm is not None:
            joined[norm.name] = norm._replace(options=norm.options | {"relu": True})
            joined[node.name] = node._replace(op="aten.alias.default")
    return tuple(joined.get(node.name, node) for node in nodes)


def _norm_before(node: Node, by_name: Mapping[str, Node], readers: Mapping[str, int]) -> Node | None:
    """The batch norm before a ReLU that is the only reader of its output."""
    if node.op != "aten.relu.default":
        return None
    item = by_name.get(node.args[0].name)
    if item is None or item.op != "getitem" or item.args[1] != 0 or readers[item.name] != 1:
        return None
    norm = by_name[item.args[0].name]
    return norm if norm.op in BATCH_NORMS else None


def interpret(
    nodes: Program,
    sources: Mapping[str, Any],
    wanted: Sequence[Ref],
    *,
    floating: Any,
    key: jax.Array | None,
    axis_name: str | None,
    stand_ins: Mapping[str, Operator] = NO_STAND_INS,
) -> list[Any]:
    """The values of `wanted`.

    Args:
        nodes: what `program` made of a graph.
        sources: the `Value` of every source.
        floating: the dtype that floats have.
        key: for the operators that draw; each gets its own, folded with its place in `nodes`.
        axis_name: mapped axis to average batch statistics over.
        stand_ins: operators, by name without overload, that go before the table's.

    Raises:
        UnsupportedOpError: an operator without a JAX counterpart.
    """
    values = dict(sources)
    for place, node in enumerate(nodes):
        operator = stand_ins.get(node.op.rpartition(".")[0]) or find(node.op)
        if operator is None:
            raise UnsupportedOpError(f"{node.op} (in {node.module or 'the network itself'}) has no JAX counterpart")
        own_key = None if key is None else jax.random.fold_in(key, place)
        context = Context(floating, own_key, axis_name, node.module)
        args = [_resolve(arg, values) for arg in node.args]
        options = {name: _resolve(option, values) for name, option in node.options.items()}
        values[node.name] = operator(context, *args, **options)
    return [values[ref.name] for ref in wanted]


def _resolve(argument: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, tuple) and not isinstance(argument, Dtype):
        return tuple(_resolve(part, values) for part in argument)
    return argument
