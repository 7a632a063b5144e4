"""Pooling and flattening of feature maps `[N, H, W, C]`.

Max pooling is written as two one-dimensional maxima of shifted slices with a hand-written backward pass: XLA:CPU's own
gradient (`select_and_scatter`) took 89 ms where slices and selects take 14 ms (ResNet-50's stem, batch 16, 128 px).
"""

from functools import partial
from itertools import accumulate

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError
from byol_jax.ops.conv import Padding, resolve_padding
from byol_jax.ops.precision import at_least_float32

__all__ = ["flatten_channels_first", "global_average_pool", "max_pool"]


def max_pool(x: jax.Array, *, window: int, stride: int, padding: Padding = 0) -> jax.Array:
    """The maximum over square windows, as `torch.nn.MaxPool2d` has it.

    The gradient goes to the first of equal maxima in reading order, as in PyTorch. Padding is with -inf.

    Args:
        x: `[N, H, W, C]`, floating.
        window, stride: in pixels, of both axes.
        padding: see `byol_jax.ops.conv.Padding`.

    Returns:
        `[N, H', W', C]`, `H' = (H + top + bottom - window) // stride + 1`.

    Raises:
        ConfigurationError: an image smaller than the window, or padding that could fill one alone.

    Example:
        >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), window=2, stride=2)[0, :, :, 0].tolist()
        [[5.0, 7.0], [13.0, 15.0]]
    """
    pads = resolve_padding(x.shape[1:3], window=(window, window), stride=stride, padding=padding)
    if any(max(pad) >= window for pad in pads):
        raise ConfigurationError(f"max pool: padding {pads} must be less than the window, {window}")
    if any(size + sum(pad) < window for size, pad in zip(x.shape[1:3], pads, strict=True)):
        raise ConfigurationError(
            f"an image of {x.shape[1]}×{x.shape[2]} pixels is too small for a pool of {window}×{window}"
        )
    # Without the barrier XLA:CPU computes an element-wise producer once for every slice that reads it.
    x = jax.lax.optimization_barrier(x)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    # Columns first, then rows: the first maximum of a column of first maxima is the first in reading order.
    return _max_along(_max_along(x, 2, window, stride), 1, window, stride)


def global_average_pool(x: jax.Array) -> jax.Array:
    """The mean over all pixels, in at least float32: `[N, H, W, C]` to `[N, C]`, x's dtype.

    Example:
        >>> global_average_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
        [[1.5]]
    """
    return x.mean((1, 2), dtype=at_least_float32(x.dtype)).astype(x.dtype)


def flatten_channels_first(x: jax.Array) -> jax.Array:
    """One row an image in PyTorch's order: `[N, H, W, C]` to `[N, C·H·W]`; other ranks to `[N, -1]` as they are.

    Example:
        >>> flatten_channels_first(jnp.arange(4).reshape(1, 1, 2, 2)).tolist()
        [[0, 2, 1, 3]]
    """
    if x.ndim == 4:
        x = x.transpose(0, 3, 1, 2)  # [N, C, H, W]
    return x.reshape(x.shape[0], -1)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_along(x, axis, window, stride):
    """The maximum over windows along one axis, without padding."""
    return _maximum(x, axis, window, stride)


def _maximum(x, axis, window, stride):
    slices = _slices(x, axis, window, stride)
    highest = slices[0]
    for candidate in slices[1:]:
        highest = jnp.maximum(highest, candidate)
    return highest


def _max_along_forward(x, axis, window, stride):
    return _maximum(x, axis, window, stride), x  # no custom function in it, so that it may be differentiated again


def _max_along_backward(axis, window, stride, x, cotangent):
    """Each window's gradient to its first maximum; then the windows' shares are woven by position modulo stride.

    The first maximum is the first value that none behind it exceeds. The maximum that the forward pass kept is no help:
    XLA may compute x again here, rounded otherwise, and then nothing equals it (a batch norm before the pool, CPU).
    """
    candidates = _slices(x, axis, window, stride)
    behind = list(accumulate(reversed(candidates[1:]), jnp.maximum))[::-1]  # behind[k]: the maximum of all after k
    undecided = jnp.ones(cotangent.shape, bool)
    shares = []  # shares[k] belongs to the windows' k-th positions
    for candidate, rest in zip(candidates[:-1], behind, strict=True):
        first = undecided & (candidate >= rest)
        shares.append(jnp.where(first, cotangent, 0))
        undecided &= ~first
    shares.append(jnp.where(undecided, cotangent, 0))
    # Position stride·q + r of x is position r + stride·a of window q - a, for every a.
    length = -(-x.shape[axis] // stride)
    columns = []
    for r in range(stride):
        parts = [_shift(shares[k], axis, (k - r) // stride, length) for k in range(r, window, stride)]
        columns.append(sum(parts[1:], parts[0]) if parts else _shift(jnp.zeros_like(cotangent), axis, 0, length))
    woven = jnp.stack(columns, axis + 1)  # [..., length, stride, ...]
    woven = woven.reshape(*x.shape[:axis], length * stride, *x.shape[axis + 1 :])
    return (jax.lax.slice_in_dim(woven, 0, x.shape[axis], axis=axis),)


_max_along.defvjp(_max_along_forward, _max_along_backward)


def _slices(x, axis, window, stride):
    """The k-th member of every window, for each k."""
    last = x.shape[axis] - window
    return [jax.lax.slice_in_dim(x, k, k + last + 1, stride, axis) for k in range(window)]


def _shift(x, axis, by, length):
    """Moves x by `by` along the axis, with zeros around it, to `length` positions."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (by, length - by - x.shape[axis])
    return jnp.pad(x, pads)
