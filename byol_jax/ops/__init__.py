"""Array functions under the networks, each in the form that is fastest for its shape and platform."""

from byol_jax.ops import conv, norm, pool

__all__ = ["conv", "norm", "pool"]
