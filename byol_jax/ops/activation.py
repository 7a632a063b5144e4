"""Activations in a form of our own, where JAX's is slower."""

import math

import jax
from jax import lax

from byol_jax.ops.precision import at_least_float32

__all__ = ["gelu"]


def gelu(x: jax.Array) -> jax.Array:
    """`x · (1 + erf(x / √2)) / 2`, the Gaussian error linear unit without approximation, as torch computes it.

    `jax.nn.gelu(approximate=False)` takes erfc of -x / √2, for full relative precision where the result is below 1e-6:
    1.8 ms for 0.7 ms, with the gradient 2.1 for 1.5, of 1.6 million numbers on one core. Both are within 1e-6 of the
    exact value on [-8, 8].

    Args:
        x: floating, any shape; computed in at least float32.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(y, 3) for y in gelu(jnp.array([-1.0, 0.0, 1.0])).tolist()]
        [-0.159, 0.0, 0.841]

    Source: Hendrycks and Gimpel, arXiv:1606.08415, equation 1; `torch.nn.GELU`.
    """
    wide = x.astype(at_least_float32(x.dtype))
    return (wide * 0.5 * (1 + lax.erf(wide * math.sqrt(0.5)))).astype(x.dtype)
