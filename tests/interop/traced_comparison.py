"""A torch module beside what it was traced to: output, gradients and buffers, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from byol_jax.tree import flatten
from interop.trace.side_effects import copy_module

TOLERANCE = 1e-9  # of the largest value, in float64; measured: 2e-14 at most


def numbers(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_jax(x):
    array = jnp.asarray(x.numpy())
    return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


def assert_close(ours, wanted, name=""):
    scale = max(float(np.abs(wanted).max(initial=0)), 1e-3)
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def check_the_same(module, x, *, train, encoder, layer=-1):
    """Output, gradient of a random sum of it by every parameter, and buffers afterwards."""
    theirs = copy_module(module).train(train)
    kept = {}
    if layer != -1:
        hook = theirs.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.update(y=o.reshape(len(x), -1)))
        theirs(x)
        hook.remove()
        theirs = copy_module(module).train(train)
        theirs.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.update(y=o.reshape(len(x), -1)))
    output = theirs(x)
    wanted = kept["y"] if layer != -1 else output
    weights = numbers(*wanted.shape, seed=2)
    (wanted * weights).sum().backward()
    variables = encoder.init(None, as_jax(x).shape[1:])

    def total(params):
        features, stats = encoder.apply(
            variables._replace(params=params), as_jax(x), train=train, hidden_layer=layer, key=jax.random.key(0)
        )
        return (features * jnp.asarray(weights.numpy())).sum(), (features, stats)

    (_, (features, stats)), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(variables.params)
    assert_close(features, wanted.detach().numpy(), "output")
    by_name = flatten(gradients)
    for name, parameter in theirs.named_parameters():
        given = by_name[name.replace(".", "/")]
        assert_close(given, np.zeros(given.shape) if parameter.grad is None else parameter.grad.numpy(), name)
    for name, leaf in flatten(stats).items():
        assert_close(
            np.asarray(leaf, np.float64), dict(theirs.named_buffers())[name.replace("/", ".")].double().numpy(), name
        )
