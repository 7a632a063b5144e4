"""Reading a torch module as this package's Variables, written apart from `interop` so that the two check each other."""

from typing import NamedTuple

import numpy as np
import torch

from byol_jax import Variables
from byol_jax.tree import flatten, unflatten


class Training(NamedTuple):
    """What one training pass leaves behind."""

    output: np.ndarray
    gradients: dict
    stats: dict


def leaves(module, read):
    """{"layer1/0/conv1/kernel": read(parameter), ...}, kernels in this package's layout; None is left out."""
    found = {}
    for name, child in module.named_modules():
        for torch_name, parameter in child.named_parameters(recurse=False):
            value = read(parameter)
            if value is None:
                continue
            if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
                leaf = {"weight": "scale", "bias": "bias"}[torch_name]
            else:
                leaf = {"weight": "kernel", "bias": "bias"}[torch_name]
            value = value.detach().numpy()
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
            found[f"{name.replace('.', '/')}/{leaf}"] = value.copy()
    return found


def buffers(module):
    found = {}
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
            path = name.replace(".", "/")
            found[f"{path}/mean"] = child.running_mean.numpy().copy()
            found[f"{path}/var"] = child.running_var.numpy().copy()
            found[f"{path}/num_batches_tracked"] = child.num_batches_tracked.numpy().astype(np.int32)
    return found


def variables_of(module):
    return Variables(unflatten(leaves(module, lambda parameter: parameter)), unflatten(buffers(module)))


def randomise(module, seed=0):
    """Batch norms as after some training, so that no scale is 1, no bias 0 and no running statistic fresh."""
    generator = torch.Generator().manual_seed(seed)
    for child in module.modules():
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm):
            for tensor in (child.weight, child.running_var):
                if tensor is not None:
                    tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            for tensor in (child.bias, child.running_mean):
                if tensor is not None:
                    tensor.data = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) / 4
            child.num_batches_tracked += 7
    return module


def train_once(module, x, weights):
    """Forward and backward of `(output · weights).sum()` in training mode; x is in torch's layout."""
    output = module.train()(torch.from_numpy(x))
    (output * torch.from_numpy(weights)).sum().backward()
    return Training(output.detach().numpy(), leaves(module, lambda parameter: parameter.grad), buffers(module))


def hooked(module, x, names):
    """What byol-pytorch's forward hooks hold after the pass: views of the outputs, the last call of each module."""
    kept = {}
    handles = [
        child.register_forward_hook(lambda _, __, output, name=name: kept.__setitem__(name, output.reshape(len(x), -1)))
        for name, child in module.named_modules()
        if name in names
    ]
    with torch.no_grad():
        module(torch.from_numpy(x))
    for handle in handles:
        handle.remove()
    return {name: value.numpy().copy() for name, value in kept.items()}


def channels_first(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


def assert_leaves_close(got, expected, tolerance):
    """Leaf by leaf, within `tolerance` of the leaf's largest magnitude (at least 1e-3, for leaves near 0)."""
    got = flatten(got) if isinstance(got, dict) else got
    assert sorted(got) == sorted(expected)
    for name, wanted in expected.items():
        bound = tolerance * max(np.abs(wanted).max(), 1e-3)
        np.testing.assert_allclose(got[name], wanted, rtol=0, atol=bound, err_msg=name)
