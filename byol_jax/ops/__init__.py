"""Array functions under the networks and the step: the only place that chooses a form by shape or platform."""

from byol_jax.ops import conv, norm, pool

__all__ = ["conv", "norm", "pool"]
