"""The numbers that say whether training is well: norms, finiteness, and how projections are spread.

Pure functions of arrays; what is done with the numbers is decided on the upper floors.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from byol_jax.errors import ConfigurationError
from byol_jax.loss import root, unit
from byol_jax.ops.axis import mean_over
from byol_jax.ops.precision import at_least_float32

__all__ = ["alignment", "effective_rank", "feature_std", "global_norm", "stays_finite", "uniformity"]


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


def effective_rank(embeddings: jax.Array) -> jax.Array:
    """How many dimensions embeddings really use: RankMe, the exponential of the entropy of their singular values.

        exp( -Σ_i p_i log p_i ),  p_i = σ_i / Σ_j σ_j

    Args:
        embeddings: [N, D], floating, not centred. N well above D tells most: the rank is at most N too.

    Returns:
        Scalar in [1, min(N, D)], at least float32; 1 where all rows point one way, or are 0; NaN where one has NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> round(effective_rank(jnp.eye(4)).item(), 4)
        4.0

    Source: RankMe, Garrido et al., arXiv:2210.02885, section 3, without its 1e-7 added to each p: a p of 0 counts 0.
    """
    x = embeddings.astype(at_least_float32(embeddings.dtype))
    singular = jnp.linalg.svd(x, compute_uv=False)  # [min(N, D)]
    total = jnp.sum(singular)
    p = singular / jnp.where(total > 0, total, 1)
    return jnp.exp(-jnp.sum(jnp.where(p == 0, 0, p * jnp.log(jnp.where(p == 0, 1, p)))))


def alignment(embeddings1: jax.Array, embeddings2: jax.Array) -> jax.Array:
    """How far the embeddings of two views of an image are apart, as directions; the smaller, the more they agree.

        mean_n ‖u_n - v_n‖²,  u = x/‖x‖, v = y/‖y‖

    Args:
        embeddings1, embeddings2: [N, D] each, floating; row n of both is of image n.

    Returns:
        Scalar in [0, 4], at least float32: 0 where they agree, and where all have collapsed; see `uniformity`.

    Example:
        >>> import jax.numpy as jnp
        >>> alignment(jnp.array([[2.0, 0.0]]), jnp.array([[0.0, 1.0]])).item()
        2.0

    Source: Wang and Isola, arXiv:2005.10242, section 4.1, with their α = 2.
    """
    x, y = (z.astype(at_least_float32(z.dtype)) for z in (embeddings1, embeddings2))
    return jnp.mean(jnp.sum(jnp.square(unit(x) - unit(y)), axis=1))


def uniformity(embeddings: jax.Array) -> jax.Array:
    """How evenly the directions of embeddings are spread over the sphere; the smaller, the more evenly.

        log mean_{n≠m} exp(-2 ‖u_n - u_m‖²),  u = x/‖x‖

    Args:
        embeddings: [N, D], floating, N at least 2; of different images. [N, N] distances are held at once.

    Returns:
        Scalar in [-8, 0], at least float32: 0 where all have collapsed, near -4 where D is large and they are spread
        evenly.

    Raises:
        ConfigurationError: one row.

    Example:
        >>> import jax.numpy as jnp
        >>> uniformity(jnp.array([[1.0, 0.0], [0.0, 1.0]])).item()
        -4.0

    Source: Wang and Isola, arXiv:2005.10242, section 4.1, with their t = 2.
    """
    count = embeddings.shape[0]
    if count < 2:
        raise ConfigurationError(f"uniformity: {count} embeddings have no pairs: give at least 2")
    directions = unit(embeddings.astype(at_least_float32(embeddings.dtype)))  # [N, D]
    cosines = jnp.matmul(directions, directions.T, precision=lax.Precision.HIGHEST)  # [N, N]
    lengths = jnp.sum(jnp.square(directions), axis=1)  # [N], 1; 0 of a row of zeros, which is near to its like
    distances = jnp.maximum(lengths[:, None] + lengths - 2 * cosines, 0)
    others = ~jnp.eye(count, dtype=bool)
    return jax.nn.logsumexp(jnp.where(others, -2 * distances, -jnp.inf)) - math.log(count * (count - 1))
