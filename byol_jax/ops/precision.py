"""The dtype for sums, statistics and norms: never below float32, whatever the activations are."""

import jax
import jax.numpy as jnp

__all__ = ["at_least_float32"]


def at_least_float32(dtype: jax.typing.DTypeLike) -> jnp.dtype:
    """float32 for the 16-bit floats, the wider ones as they are (explicitly: strict promotion knows no common type).

    Example:
        >>> at_least_float32(jnp.bfloat16), at_least_float32("float64")
        (dtype('float32'), dtype('float64'))
    """
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)
