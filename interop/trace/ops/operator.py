"""What an operator is: what it is called with, torch's rules for dtypes, and how most of them are written.

Every operator in the tables is called as `operator(context, *args, **options)`, with `Value`s for tensors. Wrappers
make one of a plain function of arrays:

    pointwise         broadcast operands; torch's dtype rules; the layout doesn't matter
    unary             the same for one array and options
    in_torch_order    arrays with torch's order of axes; for whatever is left, at the cost of a transposition

Dtypes follow the run, not the trace. The network's inputs have the floating dtype; in a traced graph

    float32, float64 by name, torch's default    the floating dtype, but float32 where that has 16 bits
    float16, bfloat16                            the floating dtype
    int64                                        int32, as everywhere in JAX without x64

Where floats of different widths meet in arithmetic, the wider one stays, as in torch; products, which torch refuses
then, take the floating dtype, as its autocast does. Arithmetic with a Python number that 16 bits can't hold is
float32's, as in torch; what is finite there stays finite, where torch has infinity.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError
from byol_jax.ops.precision import at_least_float32, standard_promotion
from interop.trace.graph import Dtype
from interop.trace.values import Value, align, from_torch_order, to_torch_order

__all__ = [
    "Absent",
    "Context",
    "Operator",
    "as_value",
    "in_one_dtype",
    "in_torch_order",
    "number_kind",
    "per_axis",
    "pointwise",
    "product",
    "result_dtype",
    "round_within_range",
    "unary",
    "within_range",
]

Operator = Callable[..., Any]

INTEGERS = {"int64": jnp.int32}
KINDS = (bool, int, float)


class Absent(NamedTuple):
    """A result that no counterpart computes, since hardly a network reads it; one that does is refused.

    Attributes:
        name: what it holds in torch, and of which operator: "the places of the maxima (aten.max_pool2d_with_indices)".
    """

    name: str


class Context(NamedTuple):
    """One operator's surroundings.

    Attributes:
        floating: the dtype that floats have in this run.
        key: the call's own key, or None.
        axis_name: mapped axis to average batch statistics over, or None.
        module: dotted path of the module that makes the call.
    """

    floating: Any
    key: jax.Array | None
    axis_name: str | None
    module: str

    @property
    def default(self) -> Any:
        """torch's default dtype: at least float32."""
        return at_least_float32(self.floating)

    def dtype(self, named: Dtype | None, default: Any = None) -> Any:
        """The JAX dtype for one that the graph names; `default`, or torch's, where it names none."""
        if named is None:
            return self.default if default is None else default
        if named.name in ("float32", "float64"):
            return self.default
        if named.name.startswith(("float", "bfloat")):
            return self.floating
        return jnp.dtype(INTEGERS.get(named.name, named.name))

    def random_key(self) -> jax.Array:
        """The key to draw with.

        Raises:
            ConfigurationError: none was given.
        """
        if self.key is None:
            raise ConfigurationError(
                f"{self.module or 'the network'} draws random numbers in this mode: apply needs a key"
            )
        return self.key


def number_kind(dtype: Any) -> int:
    """0 for bool, 1 for integers, 2 for floats: torch's categories, the higher wins."""
    if jnp.issubdtype(dtype, jnp.floating):
        return 2
    return 0 if dtype == jnp.bool_ else 1


def result_dtype(context: Context, operands: Sequence[Value | bool | int | float]) -> Any:
    """torch's `result_type`: arrays decide, then scalars held in arrays, then Python's numbers, each only by kind.

    A lower class counts only where its kind is higher; a Python float among integers gives torch's default dtype.
    """
    classes: list[list[Any]] = [[], []]
    for operand in operands:
        if isinstance(operand, Value):
            classes[operand.ndim == 0].append(operand.dtype)
    numbers = [KINDS.index(type(operand)) for operand in operands if not isinstance(operand, Value)]
    found: Any = None
    with standard_promotion():
        for dtypes in classes:
            if dtypes:
                own = jnp.dtype(jnp.result_type(*dtypes))
                if found is None or number_kind(own) > number_kind(found):
                    found = own
    highest = max(numbers, default=-1)
    if found is None or highest > number_kind(found):
        return (jnp.dtype(bool), jnp.dtype(jnp.int32), jnp.dtype(context.default))[highest]
    return found


def as_value(x: Any, dtype: Any) -> Value:
    """A tensor or a Python number as a `Value` of `dtype`."""
    if isinstance(x, Value):
        return Value(x.array.astype(dtype), x.order)
    return from_torch_order(jnp.asarray(within_range(x, dtype), dtype))


def within_range(number: Any, dtype: Any) -> Any:
    """A finite Python number that a floating `dtype` can't hold as the nearest that it can; all others as they are.

    Example:
        >>> within_range(-1e9, jnp.float16), within_range(2.0, jnp.float16)
        (-65504.0, 2.0)
    """
    if _fits(number, dtype):
        return number
    return math.copysign(float(jnp.finfo(dtype).max), number)


def _fits(number: Any, dtype: Any) -> bool:
    if not jnp.issubdtype(dtype, jnp.floating) or not math.isfinite(number):
        return True
    return abs(number) <= float(jnp.finfo(dtype).max)


def per_axis(given: int | Sequence[Any], rank: int) -> tuple[Any, ...]:
    """One entry for each of `rank` axes, from one for all of them (a number or a list of one) or a list.

    Example:
        >>> per_axis(3, 2), per_axis([1, 2], 2)
        ((3, 3), (1, 2))
    """
    entries = (given,) if isinstance(given, int) else tuple(given)
    return entries * rank if len(entries) == 1 else entries


def pointwise(function: Callable[..., jax.Array], *, floating: bool = False) -> Operator:
    """An operator of any number of operands, tensors or numbers.

    Args:
        floating: integers become floats first, as in a division.
    """

    def operator(context: Context, *operands: Any, **options: Any) -> Value:
        dtype = result_dtype(context, operands)
        if floating and not jnp.issubdtype(dtype, jnp.floating):
            dtype = context.default
        numbers = [operand for operand in operands if not isinstance(operand, Value)]
        fits = all(_fits(number, dtype) for number in numbers)
        arrays, order = align([as_value(operand, dtype if fits else at_least_float32(dtype)) for operand in operands])
        result = function(*arrays, **options)
        return Value(result if fits else round_within_range(result, dtype), order)

    return operator


def round_within_range(x: jax.Array, dtype: Any) -> jax.Array:
    """x in a narrower floating dtype, what is finite within its range; truth values as they are."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    largest = jnp.asarray(jnp.finfo(dtype).max, x.dtype)
    return jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x).astype(dtype)


def unary(function: Callable[..., jax.Array], *, floating: bool = False) -> Operator:
    """An operator of one tensor, with numbers as options; `floating` as in `pointwise`."""

    def operator(context: Context, x: Value, *args: Any, **options: Any) -> Value:
        array = x.array
        if floating and not jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(context.default)
        return Value(function(array, *args, **options), x.order)

    return operator


def product(operator: Operator) -> Operator:
    """The operator with operands of one dtype: the floating one, where they have several."""

    def run(context: Context, *args: Any, **options: Any) -> Any:
        given = in_one_dtype([*args, *options.values()], context.floating)
        return operator(context, *given[: len(args)], **dict(zip(options, given[len(args) :], strict=True)))

    return run


def in_torch_order(function: Callable[..., Any]) -> Operator:
    """An operator by a function of arrays, and with results, that have torch's order of axes."""

    def operator(context: Context, *args: Any, **options: Any) -> Any:
        del context
        given = [_unwrap(arg) for arg in in_one_dtype([*args, *options.values()], None)]
        result = function(*given[: len(args)], **dict(zip(options, given[len(args) :], strict=True)))
        return tuple(map(from_torch_order, result)) if isinstance(result, tuple | list) else from_torch_order(result)

    return operator


def in_one_dtype(args: Sequence[Any], dtype: Any) -> list[Any]:
    """The arguments, their floating tensors cast to `dtype`, or None: the widest, where they have several dtypes."""
    dtypes = {value.dtype for value in _floating_values(args)}
    if len(dtypes) < 2:
        return list(args)
    if dtype is None:
        with standard_promotion():
            dtype = jnp.result_type(*dtypes)

    def cast(arg: Any) -> Any:
        if isinstance(arg, Value):
            return as_value(arg, dtype) if jnp.issubdtype(arg.dtype, jnp.floating) else arg
        return tuple(map(cast, arg)) if type(arg) is tuple else arg

    return [cast(arg) for arg in args]


def _floating_values(arg: Any) -> list[Value]:
    """All floating tensors of an argument, at any depth."""
    if isinstance(arg, Value):
        return [arg] if jnp.issubdtype(arg.dtype, jnp.floating) else []
    return [value for part in arg for value in _floating_values(part)] if type(arg) in (tuple, list) else []


def _unwrap(arg: Any) -> Any:
    if isinstance(arg, Value):
        return to_torch_order(arg)
    if type(arg) is tuple:
        return tuple(_unwrap(part) for part in arg)
    return arg
