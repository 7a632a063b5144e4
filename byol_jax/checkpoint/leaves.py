"""A state's leaves as bytes and back: what a checkpoint writes of each, whether it fits, where it is put.

Nothing is cast. No files here.
"""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.checkpoint.manifest import LeafEntry
from byol_jax.errors import ConfigurationError
from byol_jax.memory import fresh_array
from byol_jax.tree import leaf_names
from byol_jax.types import PyTree

__all__ = ["as_storable", "describe", "differences", "from_bytes", "leaves_by_name", "local_data"]

_STORABLE = {"bool", "bfloat16", "float16", "float32", "float64", "complex64"} | {
    f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}


def leaves_by_name(tree: PyTree) -> dict[str, Any]:
    """A pytree's leaves by name, in its own order.

    Raises:
        ConfigurationError: two leaves have one name, or a leaf isn't an array (or a `jax.ShapeDtypeStruct`).

    Example:
        >>> leaves_by_name({"layer1": [{"scale": np.float32(2)}]})
        {'layer1/0/scale': np.float32(2.0)}
    """
    names, leaves = leaf_names(tree), jax.tree.leaves(tree)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigurationError(f"several leaves under one name: {', '.join(twice)}; use keys without '/'")
    other = [name for name, leaf in zip(names, leaves, strict=True) if not hasattr(leaf, "dtype")]
    if other:
        raise ConfigurationError(f"not arrays: {', '.join(other)}; a state holds arrays only")
    return dict(zip(names, leaves, strict=True))


def describe(leaf: Any) -> LeafEntry:
    """The manifest's entry for an array or an array of typed keys.

    Example:
        >>> describe(jnp.ones((2, 3)))
        LeafEntry(dtype='float32', shape=(2, 3), impl=None)
    """
    if _is_key(leaf):
        return LeafEntry("key", leaf.shape, str(jax.random.key_impl(leaf)))
    return LeafEntry(np.dtype(leaf.dtype).name, leaf.shape)


def local_data(leaf: Any) -> Any:
    """The whole leaf as an array that this process holds; a key as its uint32 data.

    Args:
        leaf: replicated, or on this process alone; see parts.py for those that are spread over several.
    """
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = leaf.addressable_data(0)
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def as_storable(array: np.ndarray) -> np.ndarray:
    """The array itself where safetensors has its dtype, else its bytes (int4, float8, complex128).

    The manifest has the dtype.

    Example:
        >>> as_storable(np.ones(2, np.complex128)).shape
        (32,)
    """
    if array.dtype.name in _STORABLE:
        return np.ascontiguousarray(array).reshape(array.shape)  # numpy makes a scalar contiguous by making it [1]
    return np.frombuffer(array.tobytes(), np.uint8)


def from_bytes(data: bytes, entry: LeafEntry, like: Any) -> jax.Array:
    """One leaf from its bytes, on `like`'s sharding where `like` is a committed array or a struct that names one."""
    key = entry.impl is not None
    array = np.frombuffer(data, np.uint32 if key else jnp.dtype(entry.dtype))
    array = array.reshape(*entry.shape, -1) if key else array.reshape(entry.shape)
    committed = not isinstance(like, jax.Array) or like.committed
    sharding = getattr(like, "sharding", None) if committed else None
    if sharding is None:
        value = jnp.array(array)
    elif key and sharding.is_fully_addressable:
        return jax.device_put(jax.random.wrap_key_data(jnp.array(array), impl=entry.impl), sharding)
    else:  # a mesh's sharding of keys fits their data too, which has one more dimension at the end
        value = fresh_array(array, sharding)
    return jax.random.wrap_key_data(value, impl=entry.impl) if key else value


def differences(stored: dict[str, LeafEntry], wanted: dict[str, Any]) -> list[str]:
    """Everything in which stored leaves and wanted ones differ, one text each; empty where all fit.

    Args:
        stored: a manifest's leaves.
        wanted: arrays or `jax.ShapeDtypeStruct`s by name.

    Example:
        >>> differences({"scale": LeafEntry("float32", (3,))}, {"scale": jnp.ones(4), "bias": jnp.ones(4)})
        ['bias: not in the checkpoint', 'scale: float32[3] in the checkpoint, float32[4] wanted']
    """
    found = [f"{name}: not in the checkpoint" for name in wanted if name not in stored]
    found += [f"{name}: only in the checkpoint" for name in stored if name not in wanted]
    for name in (name for name in wanted if name in stored):
        here, there = _text(*_stored_kind(stored[name])), _text(wanted[name].dtype, wanted[name].shape)
        if here != there:
            found.append(f"{name}: {here} in the checkpoint, {there} wanted")
        elif not _is_representable(stored[name]):
            found.append(f"{name}: {here} in the checkpoint, and jax_enable_x64 is off")
    return found


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _stored_kind(entry: LeafEntry) -> tuple[Any, tuple[int, ...]]:
    if entry.impl is None:
        return entry.dtype, entry.shape
    try:
        return jax.eval_shape(lambda: jax.random.key(0, impl=entry.impl)).dtype, entry.shape
    except ValueError:  # an implementation that this process doesn't know
        return f"key of {entry.impl}", entry.shape


def _is_representable(entry: LeafEntry) -> bool:
    return entry.impl is not None or jnp.array(np.zeros((), jnp.dtype(entry.dtype))).dtype.name == entry.dtype


def _text(dtype: Any, shape: tuple[int, ...]) -> str:
    return f"{dtype}[{','.join(map(str, shape))}]"
