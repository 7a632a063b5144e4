"""A loop over heavy work, in the form that a platform runs fast."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["scan_parts"]


def scan_parts(add: Callable[[Any, jax.Array], tuple[Any, Any]], start: Any, parts: int) -> tuple[Any, Any]:
    """`lax.scan(add, start, arange(parts))`; on CPUs written out, for XLA:CPU has no fast convolutions in loops.

    The gradient of a 3×3 kernel took 1.4 s in a loop and 0.05 s outside, for 16 images of 64 channels at 16 px (two
    busy cores, jax 0.10.2; issue 12868 of jax-ml/jax). Written out, all parts would lie in memory at once, if each
    didn't wait for the numbers that the one before carries on.

    Args:
        add: of what is carried on and a part's number, an int32; gives what is carried on and the part's result.
        start: a pytree of arrays.

    Example:
        >>> total, squares = scan_parts(lambda carry, number: (carry + number, number**2), jnp.int32(0), 3)
        >>> total.item(), squares.tolist()
        (3, [0, 1, 4])
    """

    def wait_and_add(carry: Any, number: jax.Array) -> tuple[Any, Any]:
        return add(carry, number + _zero_after(carry))

    return lax.platform_dependent(
        cpu=lambda: lax.scan(wait_and_add, start, jnp.arange(parts, dtype=jnp.int32), unroll=True),
        default=lambda: lax.scan(add, start, jnp.arange(parts, dtype=jnp.int32)),
    )


def _zero_after(tree: Any) -> jax.Array:
    """0 as an int32, which no compiler knows before the floats of `tree` are computed: 0 · x might be a NaN."""
    total = jnp.zeros((), jnp.float32)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            total += leaf.reshape(-1)[:1].sum().astype(jnp.float32)
    return (0 * total).astype(jnp.int32)
