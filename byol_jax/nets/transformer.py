"""A transformer encoder's layer, as a pure function on dicts, with torchvision's children and names.

    x = x + dropout(self_attention(ln_1(x)))        y = x + mlp(ln_2(x))

Attention's query, key and value are three linear layers, where torch packs them into one tensor, `in_proj_weight`
(`interop` splits it).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byol_jax.nets.layers import dropout, layer_norm, linear
from byol_jax.ops.precision import at_least_float32

__all__ = ["CHILDREN", "Layer", "attention", "encoder_layer"]

CHILDREN = ("ln_1", "self_attention", "dropout", "ln_2", "mlp", "mlp.0", "mlp.1", "mlp.2", "mlp.3", "mlp.4")
"""In torchvision's order of definition. Its `self_attention.out_proj` is used there without being called, and so has no
output."""

Dropout = Callable[[jax.Array], jax.Array]


class Layer(NamedTuple):
    """What a layer does besides its parameters: attention heads, probabilities of dropping, in [0, 1)."""

    num_heads: int
    dropout: float
    attention_dropout: float


def attention(params: dict[str, Any], x: jax.Array, *, num_heads: int, drop: Dropout = lambda weights: weights):
    """Multi-head self-attention: `softmax(q · kᵀ / sqrt(D / heads)) · v` a head, then `out_proj`.

    Args:
        params: `query, key, value, out_proj`, each `{kernel: [D, D], bias: [D]}`; head h has the columns from
            h · D / heads on, as `torch.nn.MultiheadAttention` and Flax have it.
        x: `[N, T, D]`.
        num_heads: a divisor of D.
        drop: what dropout makes of the softmax.

    Returns:
        `[N, T, D]`; the softmax is computed in float32 or wider.

    Example:
        >>> eye = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
        >>> params = dict.fromkeys(("query", "key", "value", "out_proj"), eye)
        >>> attention(params, jnp.ones((1, 3, 4)), num_heads=2).tolist()[0][0]
        [1.0, 1.0, 1.0, 1.0]
    """
    split = (*x.shape[:2], num_heads, -1)
    query, key, value = (linear(params[name], x).reshape(split) for name in ("query", "key", "value"))  # [N, T, h, d]
    scores = jnp.einsum("nqhd,nkhd->nhqk", query * query.shape[-1] ** -0.5, key)
    weights = drop(jax.nn.softmax(scores.astype(at_least_float32(x.dtype)), axis=-1).astype(x.dtype))
    return linear(params["out_proj"], jnp.einsum("nhqk,nkhd->nqhd", weights, value).reshape(x.shape))


def encoder_layer(
    params: dict[str, Any], x: jax.Array, key: jax.Array | None, *, layer: Layer, train: bool, keep: str | None
) -> tuple[jax.Array, jax.Array | None]:
    """`(y, kept)`; `kept` is the output of the child named `keep`, as a PyTorch forward hook sees it.

    Args:
        params: `ln_1, self_attention, ln_2, mlp`.
        x: `[N, T, D]`.
        key: drives dropout; None where nothing is dropped.
        keep: one of `CHILDREN`, or None.
    """
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    drop = [partial(dropout, one, rate=layer.dropout if train else 0.0) for one in keys[:3]]
    drop_weights = partial(dropout, keys[3], rate=layer.attention_dropout if train else 0.0)
    seen = {"ln_1": layer_norm(params["ln_1"], x)}
    attended = attention(params["self_attention"], seen["ln_1"], num_heads=layer.num_heads, drop=drop_weights)
    seen |= {"self_attention": attended, "dropout": drop[0](attended)}
    x = x + seen["dropout"]
    seen["ln_2"] = layer_norm(params["ln_2"], x)
    seen["mlp.0"] = linear(params["mlp"]["0"], seen["ln_2"])  # [N, T, mlp width]
    seen["mlp.1"] = jax.nn.gelu(seen["mlp.0"], approximate=False)
    seen["mlp.2"] = drop[1](seen["mlp.1"])
    seen["mlp.3"] = linear(params["mlp"]["3"], seen["mlp.2"])  # [N, T, D]
    seen["mlp"] = seen["mlp.4"] = drop[2](seen["mlp.3"])
    return x + seen["mlp"], None if keep is None else seen[keep]
