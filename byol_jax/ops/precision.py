"""Which dtype a number is computed in, and whose promotion rules hold where somebody else's code runs."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.tree import cast
from byol_jax.types import Variables

__all__ = ["at_least_float32", "compute_in", "standard_promotion"]


def at_least_float32(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """The dtype for sums, statistics and norms: float32 for the 16-bit floats, the wider ones as they are.

    Explicitly, because strict promotion knows no common type.

    Example:
        >>> at_least_float32(jnp.bfloat16), at_least_float32("float64")
        (dtype('float32'), dtype('float64'))
    """
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def compute_in(dtype: Any, apply: Callable, *, storage: Any) -> Callable:
    """`apply(variables, x, **options) -> (y, new_stats)`, computed in `dtype`.

    Parameters and x are cast to `dtype`; statistics enter as they are; y (rounded to `dtype`) and the new statistics
    leave in `storage`. Where both dtypes are those of the arguments nothing is cast.
    """

    def run(variables: Variables, x: jax.Array, **options: Any) -> tuple[jax.Array, Any]:
        variables = Variables(cast(variables.params, dtype), variables.stats)
        y, stats = apply(variables, x.astype(dtype), **options)
        return cast(cast(y, dtype), storage), cast(stats, storage)

    return run


@contextlib.contextmanager
def standard_promotion() -> Iterator[None]:
    """The context in which other people's code runs: their modules and optimisers may mix dtypes, ours may not.

    Example:
        >>> with standard_promotion():
        ...     (jnp.ones((), jnp.float32) * jnp.ones((), jnp.int32)).dtype
        dtype('float32')
    """
    with jax.numpy_dtype_promotion("standard"):
        yield
