"""Values that are one number everywhere, and what becomes of them in products: see `byol_jax.ops.faults`."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.ops.faults import conceal
from interop.trace.graph import Graph, Node, refs
from interop.trace.ops import activation, conv, linear, pointwise
from interop.trace.values import Value

__all__ = ["is_uniform", "uniform_constants", "with_concealed_operands"]

PRODUCTS = frozenset([*linear.TABLE, *conv.TABLE])

MADE = frozenset(
    """
    aten.empty aten.empty_like aten.empty_permuted aten.fill aten.full aten.full_like aten.new_empty aten.new_full
    aten.new_ones aten.new_zeros aten.ones aten.ones_like aten.zero aten.zeros aten.zeros_like
    """.split()  # noqa: SIM905
)
"""Operators that give one number, whatever tensors they are given."""

MOVED = frozenset(
    """
    aten._reshape_copy aten._unsafe_view aten.broadcast_to aten.expand aten.expand_as aten.flatten aten.flip
    aten.movedim aten.narrow aten.numpy_T aten.permute aten.permute_copy aten.repeat aten.repeat_interleave
    aten.reshape aten.roll aten.select aten.slice aten.squeeze aten.swapaxes aten.swapdims aten.t aten.tile
    aten.transpose aten.unflatten aten.unsqueeze aten.view aten.view_copy
    """.split()  # noqa: SIM905
)
"""Operators that give no numbers but those of their first argument."""

ELEMENTWISE = frozenset([*pointwise.TABLE, *activation.TABLE])


def uniform_constants(graph: Graph) -> frozenset[str]:
    """The names of a graph's constants that are one number everywhere."""
    one_number = {name for name, array in graph.constants.items() if np.size(array) and np.all(array == array.flat[0])}
    return frozenset(
        name for name, source in graph.sources.items() if source.kind == "constant" and source.target in one_number
    )


def is_uniform(node: Node, values: Mapping[str, Any], uniform: frozenset[str] | set[str]) -> bool:
    """Whether the node gives one number everywhere, as far as its operator says; `uniform`: the values known to be."""
    op = node.op.rpartition(".")[0]
    if op in MADE:
        return True
    if op not in MOVED and ELEMENTWISE.isdisjoint((op, node.op)):
        return False
    read = refs(node.args[:1] if op in MOVED else node.args)
    return all(name in uniform or _elements(values[name]) == 1 for name in read)


def with_concealed_operands(
    node: Node, values: Mapping[str, Any], uniform: frozenset[str] | set[str]
) -> Mapping[str, Any]:
    """The values as a product is to read them: uniform operands in a form that XLA doesn't know to be so."""
    if node.op.rpartition(".")[0] not in PRODUCTS:
        return values
    read = {name: values[name] for name in refs(node.args) if isinstance(values[name], Value)}
    witnesses = [value for name, value in read.items() if name not in uniform and _is_floating(value)]
    hidden = {name: value for name, value in read.items() if name in uniform and _is_floating(value)}
    if not witnesses or not hidden:
        return values
    witness = jax.lax.stop_gradient(witnesses[0].array.reshape(-1)[:1])
    return {**values, **{name: Value(conceal(value.array, witness), value.order) for name, value in hidden.items()}}


def _elements(value: Any) -> int:
    """A size, which is no tensor, counts as one."""
    return value.array.size if isinstance(value, Value) else 1


def _is_floating(value: Value) -> bool:
    return value.array.size > 1 and jnp.issubdtype(value.dtype, jnp.floating)
