"""A traced network's variables as the state dict of its module, and back: the module's own names, in its order.

A tied tensor is one leaf and has all its names; integers have torch's types; buffers that the module doesn't save are
left out. `interop.weights.state_dict` does the same for native networks. torch isn't needed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from byol_jax.types import Encoder, Variables
from interop.arrays import as_numpy, dtype_named, fresh_copy
from interop.errors import warn_caller
from interop.formats.containers import is_extra_state
from interop.trace.encoder import traced_network
from interop.weights.first_layer import (
    InflatedInputWarning,
    check_choice,
    find_first_layers,
    inflate_first_layers,
    inflation_hint,
    shapes_of,
)
from interop.weights.names import Leaf, named_leaves
from interop.weights.state_dict import match_leaves, wanted_shapes

__all__ = ["from_module_state_dict", "to_module_state_dict"]


def to_module_state_dict(encoder: Encoder, variables: Variables) -> dict[str, np.ndarray]:
    """The state dict of the module that `encoder` was traced from, as arrays: the very names, in their order.

    As tensors, `{name: torch.from_numpy(array) …}`, they are what `module.load_state_dict(…, strict=True)` takes; with
    `strict=False` for a module of `get_extra_state`, whose extra state, no tensor, is left out.

    Args:
        encoder: what `from_torch_module` or `load_network` returned.
        variables: the encoder's, trained or not.

    Returns:
        Fresh arrays; floating dtypes as in `variables`, integer ones as in the module.

    Raises:
        ConfigurationError: another encoder.

    Example:
        >>> import torch
        >>> from interop.trace.encoder import from_torch_module
        >>> encoder = from_torch_module(torch.nn.Sequential(torch.nn.BatchNorm2d(3)), image_size=4)
        >>> to_module_state_dict(encoder, encoder.init(None, (4, 4, 3)))["0.num_batches_tracked"].dtype
        dtype('int64')
    """
    network = traced_network(encoder)
    leaves = named_leaves(variables)
    state_dict = {}
    for key, (leaf, dtype_name) in network.state_dict.items():
        array, dtype = fresh_copy(as_numpy(leaves[_path(leaf)], key)), dtype_named(dtype_name)
        state_dict[key] = array.astype(dtype) if array.dtype.kind == dtype.kind == "i" else array
    return state_dict


def from_module_state_dict(
    encoder: Encoder, state_dict: Mapping[str, Any], *, like: Variables, first_layer: str = "keep"
) -> Variables:
    """The inverse: `like` with the values of a state dict, which must be exactly the module's.

    Args:
        encoder: what `from_torch_module` or `load_network` returned.
        state_dict: the module's names to arrays or tensors; of a tied tensor's names one is enough. A module's extra
            state (`get_extra_state`) is passed over, since it is no part of an encoder.
        like: the encoder's variables, which decide types; buffers that the module doesn't save stay as they are there.
        first_layer: as in `from_torch_state_dict`, "keep" or "inflate".

    Warns:
        AbsentCountersWarning: batch norms come without `num_batches_tracked`, and count from 0.
        InflatedInputWarning: the first layer was inflated.

    Raises:
        ConfigurationError: another encoder, or `first_layer` isn't known.
        StateDictMismatchError: counts missing, unexpected, wrong-shape and wrong-dtype keys and names some.
    """
    import jax

    check_choice(first_layer)
    network = traced_network(encoder)
    leaves = named_leaves(like)
    names = {_path(leaf): Leaf(leaf, "") for leaf, _ in network.state_dict.values()}
    own = {key: leaf for key, (leaf, _) in network.state_dict.items()}
    keys = [key for key in state_dict if key in own or not is_extra_state(key)]
    given = {own.get(key, key): state_dict[key] for key in keys}
    saved = {path: leaf for path, leaf in leaves.items() if path in names}
    shapes, inflated = wanted_shapes(saved, {path: names[path] for path in saved}), []
    if first_layer == "inflate":
        given, inflated = inflate_first_layers(given, shapes, channels=network.channels)
    arrays, mismatch = match_leaves(given, saved, names, strict=True, cast_to_like=True)
    mismatch.values += _contradictions(state_dict, own)
    first = find_first_layers(shapes_of(given), shapes, channels=network.channels) if mismatch.shapes else []
    mismatch.raise_if_any("the state dict doesn't fit the network", hint=inflation_hint(first))
    for sentence in inflated:
        warn_caller(InflatedInputWarning(sentence))
    values = [jax.numpy.array(arrays[path]) if path in arrays else leaf for path, leaf in leaves.items()]
    return jax.tree.unflatten(jax.tree.structure(like), values)


def _contradictions(state_dict: Mapping[str, Any], own: Mapping[str, str]) -> list[str]:
    """The names of tied tensors that a state dict holds several different tensors for."""
    names: dict[str, list[str]] = {}
    for key, leaf in own.items():
        if key in state_dict:
            names.setdefault(leaf, []).append(key)
    tied = [keys for keys in names.values() if len(keys) > 1 and len({_bits(state_dict[key], key) for key in keys}) > 1]
    return [f"{keys[0]} (is one tensor with {', '.join(keys[1:])} in the network, and differs here)" for keys in tied]


def _bits(value: Any, name: str) -> tuple[str, tuple[int, ...], bytes]:
    array = as_numpy(value, name)
    return array.dtype.name, array.shape, array.tobytes()


def _path(leaf: str) -> str:
    return leaf.replace(".", "/")
