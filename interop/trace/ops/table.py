"""All operators by torch's names, and how to add one.

A name with its overload ("aten.max.dim") goes before the name alone ("aten.max"), which stands for all overloads. Each
file beside this one has the `TABLE` of its kind; `operator.py` and `extrema.py` are what they are made of.
"""

from collections.abc import Callable
from typing import Any

from byol_jax.errors import UnsupportedOpError
from interop.trace.ops import (
    activation,
    conv,
    create,
    grid,
    indexing,
    linear,
    norm,
    pointwise,
    pool,
    random,
    recurrent,
    reduce,
    resize,
    shape,
)
from interop.trace.ops.operator import Operator, in_torch_order

__all__ = ["OPERATORS", "find", "is_registered", "register_op"]

OPERATORS: dict[str, Operator] = {
    **pointwise.TABLE,
    **activation.TABLE,
    **shape.TABLE,
    **indexing.TABLE,
    **create.TABLE,
    **reduce.TABLE,
    **linear.TABLE,
    **recurrent.TABLE,
    **conv.TABLE,
    **pool.TABLE,
    **resize.TABLE,
    **grid.TABLE,
    **norm.TABLE,
    **random.TABLE,
}

_ADDED: dict[str, Operator] = {}


def register_op(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Adds an operator, or replaces one, for all networks traced or run from now on in this process.

    The function gets the arguments that the operator has in torch, JAX arrays for tensors with axes as torch counts
    them ([N, C, H, W]), and returns an array or a tuple of them. It must be pure and differentiable by JAX.

    Args:
        name: as `missing_ops` names it, "aten.i0.default" or, for all overloads, "aten.i0".

    Raises:
        UnsupportedOpError: a name without a namespace.

    Example:
        >>> import jax
        >>> @register_op("aten.i0")
        ... def i0(x):
        ...     return jax.scipy.special.i0(x)
    """
    if "." not in name:
        raise UnsupportedOpError(f"operator {name!r}: expected namespace.name, such as aten.{name}")

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        _ADDED[name] = in_torch_order(function)
        return function

    return add


def is_registered(op: str) -> bool:
    """Whether `find` gives what `register_op` added."""
    return op in _ADDED or op.rpartition(".")[0] in _ADDED


def find(op: str) -> Operator | None:
    """The operator for a graph's name; None where there is none.

    Example:
        >>> find("aten.relu.default") is OPERATORS["aten.relu"]
        True
    """
    short = op.rpartition(".")[0]
    for table in (_ADDED, OPERATORS):
        for name in (op, short):
            if name in table:
                return table[name]
    return None
