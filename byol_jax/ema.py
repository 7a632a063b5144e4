"""The target network's update: an exponential moving average of the online parameters. Statistics are not averaged."""

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["ema_update"]


def ema_update(target: Any, online: Any, decay: Any) -> Any:
    """Moves every leaf of `target` a little towards the same leaf of `online`.

        target ← decay · target + (1 - decay) · online

    Args:
        target, online: pytrees of the same structure, shapes and dtypes. Leaves that aren't floating are taken from
            `online`.
        decay: number or floating scalar in [0, 1]; 0.99 in byol-pytorch, 0.996 → 1 by cosine in the paper. A Python
            number keeps its full precision beside leaves of float32 and wider; in bfloat16 0.999 is 1: nothing moves.

    Returns:
        The new target, each leaf in its own dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> ema_update({"w": jnp.array([1.0])}, {"w": jnp.array([0.0])}, 0.75)["w"].tolist()
        [0.75]
    """

    def update(old: jax.Array, new: jax.Array) -> jax.Array:
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return new
        weight = decay if isinstance(decay, float | int) else jnp.asarray(decay).astype(old.dtype)
        return weight * old + (1 - weight) * new

    return jax.tree.map(update, target, online)
