"""BYOL's loss: the squared distance of two directions. One function, per sample; the caller averages."""

import jax
import jax.numpy as jnp

from byol_jax.ops.precision import at_least_float32

__all__ = ["normalized_mse", "root", "unit"]

NORM_FLOOR = 1e-12
"""Smallest norm divided by, as in `torch.nn.functional.normalize`, which byol-pytorch calls."""


def normalized_mse(prediction: jax.Array, projection: jax.Array) -> jax.Array:
    """Squared distance between two vectors scaled to length one.

        ‖p/‖p‖ - z/‖z‖‖² = 2 - 2 ⟨p, z⟩ / (‖p‖ ‖z‖)

    Args:
        prediction: [N, P], floating; the online network's.
        projection: [N, P], floating; the target network's. No gradient is stopped here.

    Returns:
        [N], in [0, 4]: 0 for equal directions, 2 for orthogonal ones or where a vector is zero, 4 for opposite ones.
        Computed in at least float32, given in the arguments' dtype.

    Source: BYOL (Grill et al., arXiv:2006.07733), equation 2; norms clamped as in byol-pytorch 0.9.1.

    Example:
        >>> import jax.numpy as jnp
        >>> normalized_mse(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 2.0]])).tolist()
        [2.0]
    """
    dtype = jnp.result_type(prediction, projection)
    p, z = (unit(x.astype(at_least_float32(dtype))) for x in (prediction, projection))
    return (2 - 2 * jnp.sum(p * z, axis=-1)).astype(dtype)  # [N]


def unit(x: jax.Array) -> jax.Array:
    """x / max(‖x‖, floor), of each row."""
    norm = root(jnp.sum(x * x, axis=-1, keepdims=True))  # [N, 1]
    return x / jnp.maximum(norm, NORM_FLOOR)


def root(x: jax.Array) -> jax.Array:
    """√x with the gradient 0 at 0, where the square root's own is infinite, and 0 · ∞ isn't a number.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jax.grad(root)(jnp.zeros(())).item()
        0.0
    """
    is_zero = x == 0
    return jnp.where(is_zero, 0, jnp.sqrt(jnp.where(is_zero, 1, x)))
