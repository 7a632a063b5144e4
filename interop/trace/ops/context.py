"""What an operator may know besides its arguments, and torch's rules for dtypes.

float32, float64, … in a traced graph    the dtype that the network's inputs have now
int64                                    int32, as everywhere in JAX without x64
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError
from interop.trace.graph import Dtype
from interop.trace.values import Value

__all__ = ["Context", "number_kind", "result_dtype"]

INTEGERS = {"int64": jnp.int32}
KINDS = (bool, int, float)


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

    def dtype(self, named: Dtype | None, default: Any = None) -> Any:
        """The JAX dtype for one that the graph names; `default`, or the floating one, where it names none."""
        if named is None:
            return self.floating if default is None else default
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
                f"{self.module or 'the network'} draws random numbers in training: apply needs a key"
            )
        return self.key


def number_kind(dtype: Any) -> int:
    """0 for bool, 1 for integers, 2 for floats: torch's categories, the higher wins."""
    if jnp.issubdtype(dtype, jnp.floating):
        return 2
    return 0 if dtype == jnp.bool_ else 1


def result_dtype(context: Context, operands: Sequence[Value | bool | int | float]) -> Any:
    """torch's `result_type`: arrays decide, then scalars held in arrays, then Python's numbers, each only by kind.

    A lower class counts only where its kind is higher; a Python float among integers gives the floating dtype.
    """
    classes: list[list[Any]] = [[], []]
    for operand in operands:
        if isinstance(operand, Value):
            classes[operand.ndim == 0].append(operand.dtype)
    numbers = [KINDS.index(type(operand)) for operand in operands if not isinstance(operand, Value)]
    found: Any = None
    with jax.numpy_dtype_promotion("standard"):
        for dtypes in classes:
            if dtypes:
                own = jnp.dtype(jnp.result_type(*dtypes))
                if found is None or number_kind(own) > number_kind(found):
                    found = own
    highest = max(numbers, default=-1)
    if found is None or highest > number_kind(found):
        return (jnp.dtype(bool), jnp.dtype(jnp.int32), jnp.dtype(context.floating))[highest]
    return found
