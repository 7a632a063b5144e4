"""Maxima and minima along axes, with a gradient that doesn't rest on computing the same number twice.

The gradient of `jnp.max` goes to the elements that equal the maximum. XLA may compute the array, a batch norm's output,
say, once for the maximum and again, rounded otherwise, for the comparison: then nothing is equal, and the gradient is
lost. On XLA:CPU without LLVM's optimisations that happened behind a batch norm and a ReLU with each of 60 inputs.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

__all__ = ["first_maximum", "maximum", "minimum"]


def maximum(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The largest value along `axes`, which stay with size 1; equal ones share the gradient, as torch's `amax` has it.

    Example:
        >>> jax.grad(lambda x: maximum(x, (0,))[0])(jnp.array([3.0, 1.0, 3.0])).tolist()
        [0.5, 0.0, 0.5]
    """
    return _extremum(x, tuple(axes), False)


def minimum(x: jax.Array, axes: Sequence[int]) -> jax.Array:
    """The smallest value along `axes`; see `maximum`."""
    return _extremum(x, tuple(axes), True)


def first_maximum(x: jax.Array, axis: int) -> jax.Array:
    """The largest value along `axis`, which stays with size 1; the first of equal ones takes the gradient."""
    return jnp.take_along_axis(x, jnp.argmax(x, axis, keepdims=True), axis)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _extremum(x: jax.Array, axes: tuple[int, ...], smallest: bool) -> jax.Array:
    return (jnp.min if smallest else jnp.max)(x, axes, keepdims=True)


@_extremum.defjvp
def _tangent(axes, smallest, primals, tangents):
    (x,), (change,) = primals, tangents
    flat, moved = (_with_axes_last(array, axes) for array in (x, change))
    place = (jnp.argmin if smallest else jnp.argmax)(flat, -1, keepdims=True)
    equal = flat == jnp.take_along_axis(flat, place, -1)
    chosen = equal | (jax.lax.broadcasted_iota(place.dtype, flat.shape, flat.ndim - 1) == place)  # one at least
    share = jnp.sum(jnp.where(chosen, moved, 0), -1) / jnp.sum(chosen, -1).astype(change.dtype)
    return _extremum(x, axes, smallest), jnp.expand_dims(share, axes)


def _with_axes_last(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The array with `axes` merged into one, the last."""
    last = jnp.moveaxis(array, axes, range(-len(axes), 0))
    return last.reshape(*last.shape[: array.ndim - len(axes)], -1)
