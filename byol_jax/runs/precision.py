"""What a run in a narrow dtype is told: that its platform isn't made for it, and what its network computes otherwise.

A network may say its own dtypes, and they win; nothing here changes one.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from byol_jax.byol import Learner

__all__ = ["dtype_notes", "wide_products"]

SLOW_ON_CPU = (
    "computing in {dtype} on a CPU is slower than in float32 (1.2 times for a ResNet-18) and saves no memory by itself:"
    " it is made for TPUs and GPUs"
)
"""Measured by benchmarks/precision.py, 32 px, batch 16, one core of an AMD EPYC."""

OWN_PRODUCTS = ("winograd_convolution", "depthwise_convolution", "grouped_convolution")
"""Primitives of byol_jax.ops, whose inside isn't seen."""
PRODUCTS = ("conv_general_dilated", "dot_general", *OWN_PRODUCTS)


def dtype_notes(learner: Learner, dtype: Any) -> list[str]:
    """Lines for a person about computing in `dtype`; none about float32 and wider."""
    if jnp.finfo(dtype).bits >= 32:
        return []
    name = jnp.dtype(dtype).name
    wide, count = wide_products(learner, dtype)
    notes = [SLOW_ON_CPU.format(dtype=name)] if jax.default_backend() == "cpu" else []
    if wide:
        notes.append(
            f"{wide} of the encoder's {count} products aren't in {name}: the network has them in a wider dtype"
        )
    return notes


def wide_products(learner: Learner, dtype: Any) -> tuple[int, int]:
    """How many of the encoder's convolutions and matrix products are in a wider dtype, and how many there are.

    Args:
        learner: without an `axis_name`.
        dtype: the compute dtype.

    Example:
        >>> import byol_jax
        >>> encoder = byol_jax.nets.small_cnn(dtype=jnp.float32)  # its own dtype wins
        >>> learner = byol_jax.make_learner(encoder, image_size=16, dtype=jnp.bfloat16)
        >>> wide_products(learner, jnp.bfloat16)
        (4, 4)
    """
    s, key = learner.settings, jax.random.key(0)
    variables = jax.eval_shape(s.encoder.init, key)
    images = jax.ShapeDtypeStruct((2, *s.image_shape), s.storage_dtype)
    traced = jax.make_jaxpr(lambda given, x: s.encoder.apply(given, x, train=True, key=key))(variables, images)
    found, bits = list(_dtypes(traced.jaxpr)), jnp.finfo(dtype).bits
    return sum(jnp.finfo(one).bits > bits for one in found), len(found)


def _dtypes(jaxpr: core.Jaxpr) -> Iterator[Any]:
    """Of every product of floats, the dtype of its first side; in functions inside too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in PRODUCTS:
            first: Any = equation.invars[0].aval
            if jnp.issubdtype(first.dtype, jnp.floating):
                yield first.dtype
        for inner in core.jaxprs_in_params(equation.params):
            yield from _dtypes(inner)
