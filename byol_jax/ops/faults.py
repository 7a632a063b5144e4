"""How a network is kept out of the way of a fault of XLA; `known_faults` lists the releases that have one.

A product with a uniform operand. XLA:CPU makes one kernel of a dot or a convolution, the element-wise work behind it,
and a reduction. Where one operand is a single number everywhere, as `jnp.full((64, 64), 1 / 64)` is, that kernel reads
memory that nobody wrote: the result is NaN or any number, in float32 and float64, at every level of LLVM's
optimisation. It needn't be a constant: one number that is broadcast is enough.

    jaxlib 0.10.0, 0.10.1       right
    jaxlib 0.10.2               wrong, behind an optimization_barrier too
    jaxlib 0.11.2, 0.12.0.1     wrong, but not behind an optimization_barrier

Measured on 2026-11-29 by `jit(lambda t: jnp.square(t - t @ jnp.full((64, 64), 1 / 64)).mean(1))` on [2, 36, 64].
"""

import jax
import jax.numpy as jnp

__all__ = ["conceal"]


def conceal(array: jax.Array, witness: jax.Array) -> jax.Array:
    """The same numbers, in a form that XLA doesn't know to be uniform: `array + (number > infinity)`, which is `+ 0`.

    Args:
        array: any shape with two elements or more, floating.
        witness: floating and not known when the program is compiled; of one element.

    Example:
        >>> conceal(jnp.full((2, 2), 0.5), jnp.asarray(jnp.nan)).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
    """
    longest = max(range(array.ndim), key=lambda axis: array.shape[axis])
    shape = [array.shape[axis] if axis == longest else 1 for axis in range(array.ndim)]
    numbers = witness.reshape(()) + jnp.arange(array.shape[longest], dtype=witness.dtype)
    return array + (numbers > jnp.inf).astype(array.dtype).reshape(shape)
