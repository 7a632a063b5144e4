"""The layers that native networks are made of, and PyTorch's ways of initialising them.

Leaves: `kernel`, `scale`, `bias`; of batch norm also the statistics `mean`, `var` and `num_batches_tracked`.
"""

import math

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError
from byol_jax.ops.norm import batch_norm_eval, batch_norm_train
from byol_jax.ops.precision import at_least_float32
from byol_jax.types import Variables

__all__ = [
    "batch_norm",
    "batch_norm_init",
    "check_images",
    "convs_init",
    "dropout",
    "layer_norm",
    "layer_norm_init",
    "linear",
    "linear_init",
]


def convs_init(
    key: jax.Array, sizes: dict[str, tuple[int, int, int]], *, fan: str, dtype: jax.typing.DTypeLike = jnp.float32
) -> dict[str, dict[str, jax.Array]]:
    """Kernels of many convolutions, He-normal: N(0, 2 / fan).

    All come from one draw: compiling one random generator for each of a ResNet-50's shapes took 9 s.

    Args:
        sizes: path to (kernel size k, channels, features).
        fan: "in" (k² · channels) or "out" (k² · features, torchvision's choice for its ResNets).

    Returns:
        Path to `{"kernel": [k, k, channels, features]}`.

    Example:
        >>> convs_init(jax.random.key(0), {"conv1": (3, 8, 16)}, fan="out")["conv1"]["kernel"].shape
        (3, 3, 8, 16)

    Source: He et al. 2015, equation 10; `torch.nn.init.kaiming_normal_`.
    """
    shapes = {path: (size, size, channels, features) for path, (size, channels, features) in sizes.items()}
    numbers, start, params = jax.random.normal(key, (sum(map(math.prod, shapes.values())),), dtype), 0, {}
    for path, shape in shapes.items():
        count = math.prod(shape)
        gain = math.sqrt(2 * shape[{"in": 3, "out": 2}[fan]] / count)  # count / channels is k² · features
        params[path] = {"kernel": gain * numbers[start : start + count].reshape(shape)}
        start += count
    return params


def linear_init(
    key: jax.Array, input_size: int, output_size: int, dtype: jax.typing.DTypeLike, *, bias: bool = True
) -> dict[str, jax.Array]:
    """A linear layer's `{"kernel": [in, out], "bias": [out]}`, both uniform in ±1 / sqrt(in).

    Example:
        >>> {name: leaf.shape for name, leaf in linear_init(jax.random.key(0), 8, 4, jnp.float32).items()}
        {'kernel': (8, 4), 'bias': (4,)}

    Source: what `torch.nn.Linear.reset_parameters` comes to.
    """
    bound = 1 / math.sqrt(input_size)
    rows = jax.random.uniform(key, (input_size + bias, output_size), dtype, -bound, bound)
    return {"kernel": rows[:input_size], "bias": rows[input_size]} if bias else {"kernel": rows}


def linear(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """`x @ kernel + bias`, the bias where there is one. `[N, in]` to `[N, out]`, `[N, T, in]` to `[N, T, out]`.

    Raises:
        ConfigurationError: x is neither.

    Example:
        >>> linear({"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)}, jnp.ones((1, 3))).tolist()
        [[4.0, 4.0]]
    """
    if x.ndim not in (2, 3) or x.shape[-1] != params["kernel"].shape[0]:
        raise ConfigurationError(
            f"a linear layer for [N, {params['kernel'].shape[0]}] got {list(x.shape)}: images of another size than the "
            "one it was initialised for?"
        )
    y = x @ params["kernel"]
    return y + params["bias"] if "bias" in params else y


def layer_norm_init(size: int, dtype: jax.typing.DTypeLike) -> dict[str, jax.Array]:
    """Scale 1, bias 0."""
    return {"scale": jnp.ones(size, dtype), "bias": jnp.zeros(size, dtype)}


def layer_norm(params: dict[str, jax.Array], x: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
    """`(x - mean) / sqrt(var + epsilon) · scale + bias` over the last axis, with the variance divided by its length.

    Args:
        params: `{"scale": [D], "bias": [D]}`.
        x: `[..., D]`; the sums are in float32 or wider, the result in x's dtype.
        epsilon: 1e-6 is what torchvision's and timm's vision transformers have; `torch.nn.LayerNorm` has 1e-5.

    Example:
        >>> layer_norm(layer_norm_init(2, jnp.float32), jnp.array([[1.0, 3.0]])).round(3).tolist()
        [[-1.0, 1.0]]
    """
    wide = x.astype(at_least_float32(x.dtype))
    centred = wide - wide.mean(-1, keepdims=True)
    normalised = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    scale, bias = (params[name].astype(wide.dtype) for name in ("scale", "bias"))
    return (normalised * scale + bias).astype(x.dtype)


def batch_norm_init(channels: int, dtype: jax.typing.DTypeLike, *, affine: bool = True) -> Variables:
    """Scale 1, bias 0 (no params without `affine`), mean 0, variance 1, counter 0. Statistics are at least float32.

    Example:
        >>> params, stats = batch_norm_init(4, jnp.float32)
        >>> sorted(params), sorted(stats)
        (['bias', 'scale'], ['mean', 'num_batches_tracked', 'var'])

    Source: `torch.nn.BatchNorm2d`, whose counter is int64; int32 here, as JAX's default.
    """
    wide = at_least_float32(dtype)
    stats = {
        "mean": jnp.zeros(channels, wide),
        "var": jnp.ones(channels, wide),
        "num_batches_tracked": jnp.zeros((), jnp.int32),
    }
    return Variables({"scale": jnp.ones(channels, dtype), "bias": jnp.zeros(channels, dtype)} if affine else {}, stats)


def batch_norm(
    variables: Variables,
    x: jax.Array,
    *,
    train: bool,
    momentum: float = 0.1,
    epsilon: float = 1e-5,
    axis_name: str | None = None,
    relu: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`(y, new_stats)`. In evaluation the running statistics normalise, and `new_stats` are the old ones.

    Args:
        variables: as `batch_norm_init` makes them; params without `scale` and `bias` mean no affine part.
        x: `[..., C]`.
        momentum, epsilon, axis_name, relu: see `byol_jax.ops.norm.batch_norm_train`.

    Example:
        >>> y, new_stats = batch_norm(batch_norm_init(3, jnp.float32), jnp.ones((2, 3)), train=True)
        >>> y.tolist(), int(new_stats["num_batches_tracked"])
        ([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], 1)
    """
    params, stats = variables
    arrays = (x, params.get("scale"), params.get("bias"), stats["mean"], stats["var"])
    if not train:
        return batch_norm_eval(*arrays, epsilon=epsilon, relu=relu), stats
    y, mean, var = batch_norm_train(*arrays, momentum=momentum, epsilon=epsilon, axis_name=axis_name, relu=relu)
    return y, {"mean": mean, "var": var, "num_batches_tracked": stats["num_batches_tracked"] + 1}


def dropout(key: jax.Array | None, x: jax.Array, *, rate: float) -> jax.Array:
    """Each number 0 with probability `rate`, in [0, 1), else divided by `1 - rate`. Rate 0 draws nothing.

    Raises:
        ConfigurationError: a rate above 0 and no key.

    Example:
        >>> sorted(set(dropout(jax.random.key(0), jnp.ones(99), rate=0.5).tolist()))
        [0.0, 2.0]
    """
    if rate == 0:
        return x
    if key is None:
        raise ConfigurationError(f"dropout with rate {rate} in training needs a key: give apply(..., key=key)")
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), jnp.zeros_like(x))


def check_images(images: jax.Array, kernel: jax.Array) -> None:
    """Raises ConfigurationError unless `images` is `[N, H, W, C]`, floating, with the channels that `kernel` takes.

    Example:
        >>> check_images(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 16)))
    """
    channels = kernel.shape[2]
    if images.ndim != 4 or images.shape[3] != channels:
        raise ConfigurationError(
            f"images of shape {list(images.shape)} for a network that takes [N, H, W, {channels}]: "
            "check num_channels and the axes' order, or initialise the network for these images"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ConfigurationError(f"images of type {images.dtype}: a network takes floats; divide uint8 by 255 first")
