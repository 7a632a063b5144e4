"""Runs a traced graph in JAX, node after node. Pure; under `jit` only the operators remain.

`program` prepares the nodes once: it leaves out what `wanted` doesn't need, and where a ReLU is the only reader of a
batch norm it joins the two, as native networks do; a Function's call gets the nodes of its backward pass
(`gradients.py`). `interpret` runs them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError, InteropError, UnsupportedOpError, one_line
from byol_jax.ops.axis import equally_varying
from byol_jax.ops.fan_out import fan_out
from interop.trace.graph import COTANGENT, FUNCTION, Dtype, Graph, Node, Ref, nodes_for, refs
from interop.trace.ops.operator import Context, Operator
from interop.trace.ops.table import find, is_registered
from interop.trace.uniform import is_uniform, with_concealed_operands
from interop.trace.values import Value, arrange

__all__ = ["NO_STAND_INS", "Program", "interpret", "program"]

Program = tuple[Node, ...]

NO_STAND_INS: Mapping[str, Operator] = {}

NORMS_OF_ONE = frozenset({
    "aten.layer_norm.default", "aten.native_layer_norm.default", "aten.rms_norm.default",
    "aten._fused_rms_norm.default", "aten.group_norm.default", "aten.native_group_norm.default",
})  # fmt: skip
"""Norms that no batch norm's statistics are for, as they stand at the head of a transformer's blocks."""

MOVES = frozenset({
    "aten.permute.default", "aten.transpose.int", "aten.view.default", "aten.reshape.default", "aten.clone.default",
    "aten.flatten.using_ints", "aten._unsafe_view.default",
})  # fmt: skip
"""Operators that only move numbers."""

UNFORESEEN = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, NotImplementedError)
"""What an operator raises that is called as nobody thought of: an overload, a rank, a number beyond 32 bits."""

BATCH_NORMS = (
    "aten._native_batch_norm_legit_functional.default",
    "aten._native_batch_norm_legit_no_training.default",
)


def program(graph: Graph, wanted: Sequence[Ref]) -> Program:
    """The nodes to run for `wanted`, batch norm and ReLU joined where nothing else reads what is between them."""
    nodes = _with_backward_passes(graph, nodes_for(graph, wanted))
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


def _with_backward_passes(graph: Graph, nodes: Program) -> Program:
    """Every Function's call with the nodes from its cotangents to its gradients, which go from where they stand."""
    behind: dict[str, Node] = {}
    for node in nodes:
        inputs = {*refs(node.args), *refs(node.options)}
        if node.op == COTANGENT or (node.op != FUNCTION and not inputs.isdisjoint(behind)):
            behind[node.name] = node
    graph = graph._replace(nodes=tuple(behind.values()))

    def with_backward_pass(call: Node) -> Node:
        wanted = [ref for ref in call.args[3] if ref is not None]
        backward = tuple(node for node in nodes_for(graph, wanted) if node.op != COTANGENT)
        return call._replace(options={"backward": backward})

    kept = (node for node in nodes if node.name not in behind)
    return tuple(with_backward_pass(node) if node.op == FUNCTION else node for node in kept)


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
    uniform: frozenset[str] = frozenset(),
) -> list[Any]:
    """The values of `wanted`.

    Args:
        nodes: what `program` made of a graph.
        sources: the `Value` of every source.
        floating: the dtype that floats have.
        key: for the operators that draw; each gets its own, folded with its place in `nodes`.
        axis_name: mapped axis to average batch statistics over.
        stand_ins: operators, by name without overload, that go before the table's.
        uniform: sources that are one number everywhere.

    Raises:
        UnsupportedOpError: an operator without a JAX counterpart, at all or for what it is called with.
    """
    values = _evaluate(nodes, sources, uniform, _Run(floating, key, axis_name, stand_ins))
    return [values[ref.name] for ref in wanted]


class _Run(NamedTuple):
    """What all operators of a run share: see `interpret`."""

    floating: Any
    key: jax.Array | None
    axis_name: str | None
    stand_ins: Mapping[str, Operator]


def _evaluate(
    nodes: Sequence[Node], given: Mapping[str, Any], given_uniform: frozenset[str], run: _Run
) -> dict[str, Any]:
    """All values by name: those given and the nodes'."""
    values, uniform, streams = dict(given), set(given_uniform), _residual_streams(nodes)
    for place, node in enumerate(nodes):
        own_key = None if run.key is None else jax.random.fold_in(run.key, place)
        if node.op == FUNCTION:
            values[node.name] = _call_function(node, values, frozenset(uniform), run._replace(key=own_key))
            continue
        operator = run.stand_ins.get(node.op.rpartition(".")[0]) or find(node.op)
        if operator is None:
            raise UnsupportedOpError(f"{node.op} (in {node.module or 'the network itself'}) has no JAX counterpart")
        context = Context(run.floating, own_key, run.axis_name, node.module)
        shown = with_concealed_operands(node, values, uniform)
        args = [_resolve(arg, shown) for arg in node.args]
        options = {name: _resolve(option, shown) for name, option in node.options.items()}
        try:
            values[node.name] = operator(context, *args, **options)
        except UNFORESEEN as error:
            if isinstance(error, InteropError | ConfigurationError | FloatingPointError):  # the last by jax.debug_nans
                raise
            raise _refusal(node, error) from error
        if node.name in streams:
            values[node.name] = _with_one_gradient(values[node.name])
        if is_uniform(node, values, uniform):
            uniform.add(node.name)
    return values


def _refusal(node: Node, error: Exception) -> UnsupportedOpError:
    if is_registered(node.op):
        return UnsupportedOpError(
            f"{node.op} (in {node.module or 'the network itself'}): the function registered for it raised "
            f"{type(error).__name__}: {one_line(error, at_most=200)}"
        )
    return UnsupportedOpError(
        f"{node.op} (in {node.module or 'the network itself'}) has no JAX counterpart for what it is called with there "
        f"({type(error).__name__}: {one_line(error, at_most=200)}): do it by other operators, or write this one with "
        f"interop.register_op({node.op!r})"
    )


def _residual_streams(nodes: Sequence[Node]) -> set[str]:
    """Values that a norm reads, moved or not, and something else reads too."""
    readers: dict[str, set[str]] = {}
    before_norms: set[str] = set()
    for node in reversed(nodes):
        if node.op in NORMS_OF_ONE or (node.op in MOVES and node.name in before_norms):
            before_norms.add(node.args[0].name)
        for name in (*refs(node.args), *refs(node.options)):
            readers.setdefault(name, set()).add(node.name)
    return {name for name in before_norms if len(readers[name]) > 1}


def _with_one_gradient(value: Any) -> Any:
    """See `fan_out`."""
    is_floating = isinstance(value, Value) and jnp.issubdtype(value.dtype, jnp.floating)
    return value._replace(array=fan_out(value.array)) if is_floating else value


def _call_function(node: Node, values: Mapping[str, Any], uniform: frozenset[str], run: _Run) -> tuple[Value, ...]:
    """The outputs of a torch.autograd.Function, whose gradient is what its backward pass computes."""
    inputs, outputs, cotangents, gradients = node.args
    nodes: tuple[Node, ...] = node.options["backward"]
    own = {ref.name for ref in cotangents} | {part.name for part in nodes}
    read = {*refs(gradients), *(name for part in nodes for name in (*refs(part.args), *refs(part.options)))} - own
    xs, ys = ([values[ref.name] for ref in part] for part in (inputs, outputs))
    forms, orders = [(x.order, x.dtype) for x in xs], [y.order for y in ys]
    kept, structure = jax.tree.flatten(({name: values[name] for name in read}, run.key))
    fixed = [None if isinstance(leaf, jax.Array) else leaf for leaf in kept]

    @jax.custom_vjp
    def function(xs: list[jax.Array], ys: list[jax.Array], arrays: list[jax.Array]) -> list[jax.Array]:
        return ys

    def forward(xs: list[jax.Array], ys: list[jax.Array], arrays: list[jax.Array]) -> Any:
        return ys, arrays

    def backward(arrays: list[jax.Array], dys: list[jax.Array]) -> Any:
        remaining = iter(arrays)
        leaves = [next(remaining) if leaf is None else leaf for leaf in fixed]
        given, key = jax.tree.unflatten(structure, leaves)
        given |= {ref.name: Value(dy, order) for ref, dy, order in zip(cotangents, dys, orders, strict=True)}
        found = _evaluate(nodes, given, uniform, run._replace(key=key))
        dxs = [
            None if ref is None else arrange(found[ref.name], order).astype(dtype)
            for ref, (order, dtype) in zip(gradients, forms, strict=True)
        ]
        return dxs, None, None

    function.defvjp(forward, backward)
    arrays = [leaf for leaf in kept if isinstance(leaf, jax.Array)]
    results = function(*_equally_varying([x.array for x in xs], [y.array for y in ys], arrays))
    return tuple(map(Value, results, orders))


def _equally_varying(*lists: list[jax.Array]) -> list[list[jax.Array]]:
    """`equally_varying` of all floating arrays in the lists; others stay as they are."""
    leaves, structure = jax.tree.flatten(lists)
    floating = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    varied = iter(equally_varying(*(leaf for leaf, is_float in zip(leaves, floating, strict=True) if is_float)))
    return jax.tree.unflatten(
        structure, [next(varied) if is_float else leaf for leaf, is_float in zip(leaves, floating, strict=True)]
    )


def _resolve(argument: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(argument, Ref):
        return values[argument.name]
    if isinstance(argument, tuple) and not isinstance(argument, Dtype):
        return tuple(_resolve(part, values) for part in argument)
    return argument
