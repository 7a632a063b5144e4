"""How operators are written: a function of arrays, wrapped by what it needs to know of torch's axes.

Every operator in the tables is called as `operator(context, *args, **options)` with `Value`s for tensors. The wrappers
here turn plain functions of arrays into such operators:

    pointwise     broadcast operands; torch's dtype rules; the layout doesn't matter
    unary         the same for one array and options
    in_order      arrays as torch counts; whatever is left, at the cost of a transposition
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from interop.trace.ops.context import Context, result_dtype
from interop.trace.values import Value, aligned, logical, plain

__all__ = ["Operator", "as_value", "in_order", "per_axis", "pointwise", "unary"]

Operator = Callable[..., Any]


def as_value(x: Any, dtype: Any) -> Value:
    """A tensor or a Python number as a `Value` of `dtype`."""
    return Value(x.array.astype(dtype), x.order) if isinstance(x, Value) else plain(jnp.asarray(x, dtype))


def per_axis(given: int | Sequence[Any], rank: int) -> tuple[Any, ...]:
    """One entry for each of `rank` axes, from one for all of them (a number or a list of one) or a list.

    Example:
        >>> per_axis(3, 2), per_axis([1, 2], 2)
        ((3, 3), (1, 2))
    """
    entries = (given,) if isinstance(given, int) else tuple(given)
    return entries * rank if len(entries) == 1 else entries


def pointwise(function: Callable[..., jax.Array], *, floating: bool = False) -> Operator:
    """Of any number of operands, tensors or numbers; `floating`: integers become floats first, as in a division."""

    def operator(context: Context, *operands: Any, **options: Any) -> Value:
        dtype = result_dtype(context, operands)
        if floating and not jnp.issubdtype(dtype, jnp.floating):
            dtype = context.floating
        arrays, order = aligned([as_value(operand, dtype) for operand in operands])
        return Value(function(*arrays, **options), order)

    return operator


def unary(function: Callable[..., jax.Array], *, floating: bool = False) -> Operator:
    """Of one tensor, with numbers as options."""

    def operator(context: Context, x: Value, *args: Any, **options: Any) -> Value:
        array = x.array
        if floating and not jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(context.floating)
        return Value(function(array, *args, **options), x.order)

    return operator


def in_order(function: Callable[..., Any]) -> Operator:
    """Of arrays as torch counts their axes; so are its results."""

    def operator(context: Context, *args: Any, **options: Any) -> Any:
        del context
        given = [_unwrapped(arg) for arg in args]
        result = function(*given, **{name: _unwrapped(option) for name, option in options.items()})
        return tuple(map(plain, result)) if isinstance(result, tuple | list) else plain(result)

    return operator


def _unwrapped(arg: Any) -> Any:
    if isinstance(arg, Value):
        return logical(arg)
    if type(arg) is tuple:
        return tuple(_unwrapped(part) for part in arg)
    return arg
