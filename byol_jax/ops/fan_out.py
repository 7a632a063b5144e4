"""A value that several operations read: its gradient, which is the sum of what they give back, is computed once.

XLA:CPU computes a sum of gradients anew wherever it is read. Along residual connections, where nothing but sums lies
between two layers, that is all later layers' sum for each layer: the square of the depth. ViT-Tiny's step at 128 px,
batch 16, took 1.09 s and 15.9 s to compile, with this 0.70 s and 7.9 s; Swin-T's 0.91 s, with this 0.85 s (two cores,
jax 0.10.2, 2026-11-30). An activation between the layers ends the chain: a ResNet-50 was 3 % slower with this.
Other platforms' compilers weren't seen to do it: there the gradient is left alone.
"""

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

__all__ = ["fan_out"]


def fan_out(x: jax.Array) -> jax.Array:
    """`x` as it is, for several readers; its gradient is materialised before anything reads it.

    Example:
        >>> x = fan_out(jax.numpy.arange(2.0))
        >>> x.tolist()
        [0.0, 1.0]
    """
    return _fan_out_p.bind(x)


def _gradient(dy: jax.Array) -> jax.Array:
    return lax.platform_dependent(dy, cpu=_copy_in_halves, default=lambda dy: dy)


def _copy_in_halves(x: jax.Array) -> jax.Array:
    """A copy made by a loop: XLA:CPU takes barriers away before it fuses operations, but fuses nothing into a loop.

    Halves of the last even axis, since the first one may be spread over devices. Without an even axis it is x.
    """
    axis = next((axis for axis in reversed(range(x.ndim)) if x.shape[axis] % 2 == 0), None)
    if axis is None:
        return x
    half = x.shape[axis] // 2

    def copy_half(number: jax.Array, copied: jax.Array) -> jax.Array:
        part = lax.dynamic_slice_in_dim(x, number * half, half, axis)
        return lax.dynamic_update_slice_in_dim(copied, part, number * half, axis)

    return lax.fori_loop(0, 2, copy_half, x)


_fan_out_p = Primitive("fan_out")
_fan_out_p.def_impl(lambda x: x)
_fan_out_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(_fan_out_p, lambda context, x: [x])
ad.deflinear2(_fan_out_p, lambda dy, x: [_gradient(dy)])
batching.primitive_batchers[_fan_out_p] = lambda operands, axes: (_fan_out_p.bind(*operands), axes[0])
