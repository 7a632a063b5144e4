"""A traced network run by JAX on what torch was run on, in the same dtype unless another is asked for."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.ops.precision import standard_promotion
from byol_jax.tree import cast, flatten, unflatten
from byol_jax.types import Encoder, Variables
from interop.trace.verification.torch_run import TorchRun

__all__ = ["JaxRun", "Program", "forward_and_backward", "run_jax"]

Program = Callable[[Variables, jax.Array, Any], tuple[tuple[jax.Array, ...], Any, Any]]


class JaxRun(NamedTuple):
    """What JAX made of it: the ends, the new buffers and the gradients by dotted names."""

    ends: Mapping[str | int, np.ndarray]
    buffers: Mapping[str, np.ndarray]
    gradients: Mapping[str, np.ndarray]


def run_jax(run: Program, variables: Variables, wanted: TorchRun, *, gradients: bool, dtype: Any = None) -> JaxRun:
    """What torch's run computed; in its dtype, unless another is given."""
    dtype = np.dtype(dtype or wanted.dtype)
    with jax.enable_x64(dtype == np.float64), standard_promotion():
        images = wanted.images.transpose(0, 2, 3, 1) if wanted.images.ndim == 4 else wanted.images
        images, cotangents, variables = cast(
            jax.tree.map(jnp.asarray, (images, wanted.cotangents if gradients else (), variables)), dtype
        )
        features, stats, by_path = run(variables, images, cotangents)
        buffers, by_name = (
            {path.replace("/", "."): np.asarray(leaf) for path, leaf in flatten(tree).items()}
            for tree in (stats, by_path)
        )
        ends = dict(zip(wanted.ends, map(np.asarray, features), strict=True))
        return JaxRun(ends, buffers, by_name)


def forward_and_backward(
    encoder: Encoder,
    train: bool,
    layers: tuple[str | int, ...],
    variables: Variables,
    images: jax.Array,
    cotangents: tuple[jax.Array, ...],
) -> tuple[tuple[jax.Array, ...], Any, Any]:
    """Features, new buffers and, with cotangents of the floating ones, the gradient by every floating parameter."""
    params = flatten(variables.params)
    floating = {name: leaf for name, leaf in params.items() if jnp.issubdtype(leaf.dtype, jnp.floating)}

    def forward(floating: Any) -> tuple[Any, Any]:
        given = variables._replace(params=unflatten(params | floating))
        apply: Any = encoder.apply  # a traced network's, which takes several layers
        features, stats = apply(given, images, train=train, hidden_layer=layers, key=jax.random.key(0))
        return tuple(y for y in features if jnp.issubdtype(y.dtype, jnp.floating)), (features, stats)

    if not cotangents:
        return *forward(floating)[1], {}
    ys, backward, (features, stats) = jax.vjp(forward, floating, has_aux=True)
    if [y.shape for y in ys] != [dy.shape for dy in cotangents]:  # another output altogether, as the caller will see
        return features, stats, {}
    return features, stats, backward(tuple(dy.astype(y.dtype) for dy, y in zip(cotangents, ys, strict=True)))[0]
