"""A batch-norm layer as dicts: params `{scale, bias}`, stats `{mean, var, num_batches_tracked}`.

The arithmetic is `byol_jax.ops.norm`'s; here are the names, the counter and the choice between training and evaluation.
"""

import jax
import jax.numpy as jnp

from byol_jax.ops.norm import batch_norm_eval, batch_norm_train
from byol_jax.ops.precision import at_least_float32
from byol_jax.types import Variables

__all__ = ["batch_norm", "batch_norm_init"]


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
