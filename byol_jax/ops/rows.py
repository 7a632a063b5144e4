"""A condition whose element-wise work sees kernels as rows. The same numbers as `lax.cond`, faster on narrow arrays.

XLA:CPU turns an element-wise loop into nested ones, an axis each, and makes vectors of the innermost only. Torch's
kernels [O, I, 3, 3] have three elements there: Adam's update of one of 512 × 512 × 3 × 3 took 5.6 ms, of the same
numbers as [512, 4608] 1.2 ms, a fifth of a ResNet-18's step at 32 px (two cores, 2026-11-24). XLA moves a reshape
next to element-wise work to the other side of it, but never across a condition; a training step has one anyway.
Other platforms' compilers lay arrays out as they like: there `cond` is `lax.cond`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

__all__ = ["cond", "cond_in_rows"]

WIDE = 16
"""Elements of the last axis from which vectors are filled: sixteen float32 are AVX-512's."""

ELEMENTWISE = frozenset({
    "add", "sub", "mul", "div", "rem", "neg", "abs", "sign", "max", "min", "sqrt", "rsqrt", "square", "exp", "log",
    "tanh", "pow", "integer_pow", "eq", "ne", "lt", "le", "gt", "ge", "and", "or", "not", "is_finite", "select_n",
    "convert_element_type",
})  # fmt: skip
"""Names of primitives whose every output element comes from the same element of each operand, or from a scalar."""


def cond(predicate: jax.Array, on_true: Callable[[], Any], on_false: Callable[[], Any]) -> Any:
    """`lax.cond(predicate, on_true, on_false)` in the form that is fastest for the platform: in rows on CPUs.

    Example:
        >>> cond(jnp.asarray(False), lambda: jnp.ones(2), lambda: jnp.zeros(2)).tolist()
        [0.0, 0.0]
    """
    return lax.platform_dependent(
        cpu=lambda: cond_in_rows(predicate, on_true, on_false),
        default=lambda: lax.cond(predicate, on_true, on_false),
    )


def cond_in_rows(predicate: jax.Array, on_true: Callable[[], Any], on_false: Callable[[], Any]) -> Any:
    """`lax.cond(predicate, on_true, on_false)`: the same operations on the same numbers.

    Both functions are written down as operations. Arrays of rank 3 and more with fewer than `WIDE` elements along the
    last axis enter, leave and go through element-wise operations as [first axis, all others]; every other operation
    sees them in their own shape.

    Args:
        predicate: a bool, [].
        on_true, on_false: without arguments; they give pytrees of arrays, alike in structure, shapes and types.

    Raises:
        TypeError: they aren't alike.

    Example:
        >>> kernel = jnp.arange(18.0).reshape(2, 1, 3, 3)
        >>> bool((cond_in_rows(jnp.asarray(True), lambda: kernel * 2, lambda: kernel) == kernel * 2).all())
        True
    """
    branches = [jax.make_jaxpr(function, return_shape=True)() for function in (on_true, on_false)]
    captured = [[_to_rows(value) for value in written.consts] for written, _ in branches]

    def branch(number: int) -> Callable[[Any], list[Any]]:
        return lambda values: _evaluate(branches[number][0].jaxpr, values[number], [])

    (shapes, structure), (_, other) = (jax.tree.flatten(shapes) for _, shapes in branches)
    if structure != other:
        raise TypeError(f"both branches must be alike: {structure} and {other}")
    results = lax.cond(predicate, branch(0), branch(1), captured)
    own = [_reshape(value, one.shape) for value, one in zip(results, shapes, strict=True)]
    return jax.tree.unflatten(structure, own)


def _evaluate(jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """The operations of `jaxpr`, one after another; narrow arrays are rows all the while."""
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*constants, *arguments), strict=True))

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        results = _operate(equation, [read(variable) for variable in equation.invars])
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _operate(equation: Any, inputs: list[Any]) -> list[Any]:
    """The results of one operation, as rows where they are narrow."""
    name, options = equation.primitive.name, equation.params
    shapes = [variable.aval.shape for variable in equation.outvars]  # none where something is only said or shown
    if name in ("jit", "pjit"):
        inner = options["jaxpr"]
        return _evaluate(inner.jaxpr, [_to_rows(value) for value in inner.consts], inputs)
    if name in ELEMENTWISE and all(variable.aval.shape in ((), *shapes) for variable in equation.invars):
        return [equation.primitive.bind(*inputs, **options)]
    if name == "broadcast_in_dim" and len(inputs) == 1 and jnp.ndim(inputs[0]) == 0 and _narrow(shapes[0]):
        return [jnp.broadcast_to(inputs[0], _rows(shapes[0]))]
    own = [_reshape(value, variable.aval.shape) for value, variable in zip(inputs, equation.invars, strict=True)]
    results = equation.primitive.bind(*own, **equation.primitive.get_bind_params(options))
    return [_to_rows(value) for value in (results if equation.primitive.multiple_results else [results])]


def _narrow(shape: Sequence[int]) -> bool:
    """Axes of length 1 at the end make no loop (and XLA copies rows that get them back, twice)."""
    rank = max((axis + 1 for axis, size in enumerate(shape) if size != 1), default=0)
    return rank > 2 and 0 < shape[rank - 1] < WIDE and shape[0] > 0


def _rows(shape: Sequence[int]) -> tuple[int, int]:
    return shape[0], math.prod(shape[1:])


def _to_rows(value: Any) -> Any:
    return _reshape(value, _rows(jnp.shape(value))) if _narrow(jnp.shape(value)) else value


def _reshape(value: Any, shape: Sequence[int]) -> Any:
    return value if jnp.shape(value) == tuple(shape) else jnp.reshape(value, shape)
