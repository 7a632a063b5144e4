"""The numbers that say whether training is well: norms, finiteness and the spread of the projections.

Pure functions of arrays; what is done with the numbers is decided on the upper floors.
"""

from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.loss import root, unit
from byol_jax.ops.axis import mean_over
from byol_jax.ops.precision import at_least_float32

__all__ = ["feature_std", "global_norm", "stays_finite"]


def global_norm(tree: Any) -> jax.Array:
    """Euclidean norm of all leaves taken as one vector; scalar, at least float32, with the gradient 0 at 0.

    `optax.tree.norm` sums 16-bit floats in 16 bits (70,000 ones overflow float16), and its gradient at 0 is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> global_norm({"a": jnp.array([3.0]), "b": jnp.array([4.0])}).item()
        5.0
    """
    squares = [jnp.sum(jnp.square(leaf.astype(at_least_float32(leaf.dtype)))) for leaf in jax.tree.leaves(tree)]
    return root(sum(squares[1:], squares[0])) if squares else jnp.zeros((), jnp.float32)


def stays_finite(before: Any, after: Any) -> jax.Array:
    """Whether every number of `after` is finite that was so in `before`, a pytree of the same shapes; a bool scalar.

    An infinity that was there already, in a buffer that masks with it, is let be.

    Example:
        >>> import jax.numpy as jnp
        >>> stays_finite({"var": jnp.array([1.0, jnp.inf])}, {"var": jnp.array([jnp.inf, jnp.inf])}).item()
        False
    """
    both = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    stays = [jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old)) for old, new in both]
    return jnp.all(jnp.stack(stays)) if stays else jnp.ones((), bool)


def feature_std(embeddings: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Spread of directions: the standard deviation of each dimension of x/‖x‖ over the batch, averaged.

        mean_d  sqrt( mean_n (u_nd - mean_n u_nd)² ),  u = x/‖x‖

    Args:
        embeddings: [N, D], floating.
        axis_name: mapped axis over which the batch is spread; the result is the whole batch's.

    Returns:
        Scalar in [0, 1/sqrt(D)]: about 1/sqrt(D) where directions are spread evenly, 0 where they have collapsed.

    Source: the collapse measure of SimSiam (Chen and He, arXiv:2011.10566, section 4.1).
    """
    directions = unit(embeddings.astype(at_least_float32(embeddings.dtype)))  # [N, D]
    mean = mean_over(jnp.mean(directions, axis=0), axis_name)  # [D]
    variance = mean_over(jnp.mean(jnp.square(directions - mean), axis=0), axis_name)  # [D]
    return jnp.mean(root(variance))
