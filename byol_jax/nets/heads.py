"""Projector and predictor as byol-pytorch builds them, on nested dicts named by its Sequential's indices.

A head is a pair of pure functions. Numbers without leaves (ReLU, the simplicial embedding) are skipped, so that the
names fit PyTorch's state dict: `0/kernel` there is `0.weight`.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError
from byol_jax.nets.layers import batch_norm, batch_norm_init, linear, linear_init
from byol_jax.ops.precision import at_least_float32
from byol_jax.types import PyTree, Variables

__all__ = ["Head", "mlp", "simplicial", "simplicial_embedding", "simsiam_mlp"]


class HeadInit(Protocol):
    def __call__(self, key: jax.Array, input_size: int, dtype: Any = jnp.float32) -> Variables: ...


class HeadApply(Protocol):
    def __call__(
        self, variables: Variables, x: jax.Array, *, train: bool, axis_name: str | None = None
    ) -> tuple[jax.Array, PyTree]: ...


class Head(NamedTuple):
    """A network on vectors, as two pure functions.

    Attributes:
        init: `init(key, input_size, dtype=float32) -> Variables`.
        apply: `apply(variables, x, *, train, axis_name=None) -> (y, new_stats)`; x is `[N, input_size]`, y
            `[N, output_size]`. Parameters have x's dtype. `axis_name` averages batch-norm statistics over that axis.
    """

    init: HeadInit
    apply: HeadApply


def mlp(hidden_size: int, output_size: int) -> Head:
    """Linear → batch norm → ReLU → Linear, both linear layers with bias.

    Leaves: `0/{kernel, bias}`, `1/{scale, bias | mean, var, num_batches_tracked}`, `3/{kernel, bias}`.

    Example:
        >>> head = mlp(16, 4)
        >>> y, _ = head.apply(head.init(jax.random.key(0), 8), jnp.ones((2, 8)), train=False)
        >>> y.shape
        (2, 4)

    Source: `MLP` of byol-pytorch 0.9.1; the paper's heads (section 3.2 and appendix) but for a bias here.
    """

    def init(key, input_size, dtype=jnp.float32):
        first, second = jax.random.split(key)
        norm = batch_norm_init(hidden_size, dtype)
        params = {
            "0": linear_init(first, input_size, hidden_size, dtype),
            "1": norm.params,
            "3": linear_init(second, hidden_size, output_size, dtype),
        }
        return Variables(params, {"1": norm.stats})

    def apply(variables, x, *, train, axis_name=None):
        params, stats = variables
        x = linear(params["0"], x)  # [N, hidden_size]
        x, norm = batch_norm(Variables(params["1"], stats["1"]), x, train=train, axis_name=axis_name, relu=True)
        return linear(params["3"], x), {"1": norm}  # [N, output_size]

    return Head(init, apply)


def simsiam_mlp(hidden_size: int, output_size: int) -> Head:
    """Three times Linear (no bias) → batch norm, ReLU between them; the last batch norm has no affine part.

    Leaves: `0, 3, 6/kernel`, `1, 4/{scale, bias | mean, var, num_batches_tracked}`, `7/` statistics only.

    Example:
        >>> head = simsiam_mlp(16, 4)
        >>> sorted(head.init(jax.random.key(0), 8).params)
        ['0', '1', '3', '4', '6']

    Source: `SimSiamMLP` of byol-pytorch 0.9.1.
    """

    def init(key, input_size, dtype=jnp.float32):
        keys = jax.random.split(key, 3)
        sizes = (input_size, hidden_size, hidden_size, output_size)
        norms = {
            "1": batch_norm_init(hidden_size, dtype),
            "4": batch_norm_init(hidden_size, dtype),
            "7": batch_norm_init(output_size, dtype, affine=False),
        }
        params = {str(3 * i): linear_init(keys[i], sizes[i], sizes[i + 1], dtype, bias=False) for i in range(3)}
        params |= {name: norm.params for name, norm in norms.items() if norm.params}
        return Variables(params, {name: norm.stats for name, norm in norms.items()})

    def apply(variables, x, *, train, axis_name=None):
        params, stats = variables
        new_stats = {}
        for weights, name in (("0", "1"), ("3", "4"), ("6", "7")):
            x = linear(params[weights], x)  # [N, hidden_size], the last time [N, output_size]
            norm = Variables(params.get(name, {}), stats[name])
            x, new_stats[name] = batch_norm(norm, x, train=train, axis_name=axis_name, relu=name != "7")
        return x, new_stats

    return Head(init, apply)


def simplicial(head: Head, *, num_simplices: int = 32, simplex_dim: int = 8, temperature: float = 0.1) -> Head:
    """Linear → batch norm → simplicial embedding in front of `head`.

    Leaves: `0/0/{kernel, bias}`, `0/1/{scale, bias | mean, var, num_batches_tracked}`, `2/` the leaves of `head`.

    Args:
        num_simplices, simplex_dim: the embedding has `num_simplices · simplex_dim` numbers.
        temperature: of the softmax, > 0.

    Raises:
        ConfigurationError: a size below 1 or a temperature that is not positive.

    Example:
        >>> head = simplicial(mlp(16, 4), num_simplices=4, simplex_dim=2)
        >>> head.init(jax.random.key(0), 8).params["2"]["0"]["kernel"].shape
        (8, 16)

    Source: the projector of byol-pytorch 0.9.1 with its defaults; Lavoie et al., arXiv 2204.00616.
    """
    if num_simplices < 1 or simplex_dim < 1 or not temperature > 0:
        raise ConfigurationError(
            f"simplicial embedding: {num_simplices=}, {simplex_dim=}, {temperature=} must all be positive"
        )
    embedding_size = num_simplices * simplex_dim

    def init(key, input_size, dtype=jnp.float32):
        first, second = jax.random.split(key)
        norm = batch_norm_init(embedding_size, dtype)
        rest = head.init(second, embedding_size, dtype)
        embedder = {"0": linear_init(first, input_size, embedding_size, dtype), "1": norm.params}
        return Variables({"0": embedder, "2": rest.params}, {"0": {"1": norm.stats}, "2": rest.stats})

    def apply(variables, x, *, train, axis_name=None):
        params, stats = variables
        x = linear(params["0"]["0"], x)  # [N, num_simplices · simplex_dim]
        norm = Variables(params["0"]["1"], stats["0"]["1"])
        x, new_norm = batch_norm(norm, x, train=train, axis_name=axis_name)
        x = simplicial_embedding(x, simplex_dim=simplex_dim, temperature=temperature)
        y, rest = head.apply(Variables(params["2"], stats["2"]), x, train=train, axis_name=axis_name)
        return y, {"0": {"1": new_norm}, "2": rest}

    return Head(init, apply)


def simplicial_embedding(x: jax.Array, *, simplex_dim: int, temperature: float) -> jax.Array:
    """`softmax(x / temperature)` over each group of `simplex_dim` neighbours; every group of the result sums to 1.

    Args:
        x: `[N, L · simplex_dim]`. The softmax is taken in at least float32.

    Returns:
        x's shape and dtype, in [0, 1].

    Example:
        >>> simplicial_embedding(jnp.zeros((1, 4)), simplex_dim=2, temperature=0.1).tolist()
        [[0.5, 0.5, 0.5, 0.5]]
    """
    groups = x.reshape(x.shape[0], -1, simplex_dim)  # [N, L, simplex_dim]
    groups = groups.astype(at_least_float32(x.dtype))
    return jax.nn.softmax(groups / temperature, axis=-1).astype(x.dtype).reshape(x.shape)
