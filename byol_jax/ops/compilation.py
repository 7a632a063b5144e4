"""XLA's options for a program that runs once: compiled in the least time."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["quick_options"]

UNOPTIMIZED: dict[str, str | bool | int] = {"xla_backend_optimization_level": 0}
"""Without LLVM's optimisations: torchvision's mobilenet_v3_small, which is verified forward and backward, takes 7 s
where operator after operator took 22 s, timm's test_vit 4 s instead of 11 s, resnet50 3 s instead of 6 s."""

WITHOUT_FUSION_EMITTERS: dict[str, str | bool | int] = {"xla_cpu_use_fusion_emitters": False}
"""Goes with it where XLA has the option (jaxlib 0.10 has, 0.12 hasn't): resnet18 compiles in 0.7 s of CPU instead of
2.5 s, mobilenet_v3_small in 1.2 s instead of 4.1 s, and both take as long to run."""


@cache
def quick_options() -> dict[str, Any]:
    """`jax.jit(..., compiler_options=quick_options())` compiles fast what runs slowly, but once; none but on CPUs.

    Example:
        >>> jax.jit(jnp.negative, compiler_options=quick_options())(1.0).item()
        -1.0
    """
    if jax.default_backend() != "cpu":  # a GPU's compiler calls the level unsupported, others may not know it
        return {}
    options = UNOPTIMIZED | WITHOUT_FUSION_EMITTERS
    try:
        jax.jit(jnp.negative, compiler_options=options)(0.0)
    except jax.errors.JaxRuntimeError:  # no such option
        return UNOPTIMIZED
    return options
