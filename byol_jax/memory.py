"""Memory of one's own: copies that nothing else refers to, made before the call returns.

JAX on a CPU (jaxlib 0.10.2) reads NumPy's memory in place where it starts at a multiple of 64 bytes: `jax.device_put`,
`make_array_from_callback` and `make_array_from_process_local_data`, whatever `may_alias` says. Other memory it copies
later, in a thread, and `jnp.array`, which always copies, may read it after it has returned, too. Whoever refills a
buffer in between (pinned memory, a memory map, a generator) changes what JAX computes with. So what isn't ours is
copied here first.
"""

import math
from typing import Any

import numpy as np

__all__ = ["copy_aligned", "copy_on_device", "empty_aligned", "fresh_array", "own_batch"]

ALIGNMENT = 64
"""Bytes. Memory that starts at a multiple of this is used in place by JAX on a CPU: no second copy is made of it."""


def empty_aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array to be filled that starts at a multiple of 64 bytes.

    Example:
        >>> empty_aligned((2, 3), np.float32).ctypes.data % 64
        0
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype).reshape(shape)


def copy_aligned(array: Any) -> np.ndarray:
    """A contiguous copy of an array that starts at a multiple of 64 bytes; shape and dtype stay.

    Example:
        >>> copy_aligned(np.arange(6).reshape(2, 3).T).tolist()
        [[0, 3], [1, 4], [2, 5]]
    """
    array = np.asarray(array)
    copy = empty_aligned(array.shape, array.dtype)
    np.copyto(copy, array)
    return copy


def own_batch(batch: Any) -> Any:
    """A copy of a batch that its giver may refill: of a JAX array on a CPU too, whose memory may be somebody's buffer.

    JAX arrays elsewhere are taken as they are: their memory is JAX's own. One that is spread over several CPU devices
    or processes is copied device by device and stays spread.
    """
    if not hasattr(batch, "sharding"):
        return copy_aligned(batch)
    if any(device.platform != "cpu" for device in batch.sharding.device_set):
        return batch
    import jax

    parts = [jax.device_put(copy_aligned(part.data), part.device) for part in batch.addressable_shards]
    return jax.make_array_from_single_device_arrays(batch.shape, batch.sharding, parts)


def copy_on_device(array: Any, device: Any = None) -> Any:
    """A copy of an array in a buffer that JAX owns, so that it may be donated; a JAX array stays on its devices.

    By the runtime, which compiles nothing: one `jnp.array` for each shape of a mobilenet_v3_small took 1.3 s.

    Args:
        array: of JAX, or of NumPy: then it is read later than this returns, and nobody may write to it.
        device: a device or sharding, for a NumPy array.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones(2)
        >>> copy_on_device(x).unsafe_buffer_pointer() == x.unsafe_buffer_pointer()
        False
    """
    import jax
    from jax.core import Tracer

    placed = array if isinstance(array, jax.Array) else jax.device_put(array, device)
    if isinstance(placed, Tracer):
        return placed
    where = placed.sharding if placed.committed else None  # what is free to move stays so: else a step compiles twice
    return jax.device_put(placed, where, may_alias=False)


def fresh_array(values: np.ndarray, sharding: Any) -> Any:
    """`values` as a JAX array on this process's devices of `sharding`, in buffers that nothing else refers to.

    Not in copied NumPy memory: a buffer that JAX doesn't own can't be donated to the result of a step.

    Args:
        values: the whole array, which every process has.
        sharding: any; the others' parts are theirs to place.
    """
    import jax
    from jax.sharding import SingleDeviceSharding

    parts = [
        copy_on_device(values[index], SingleDeviceSharding(device, memory_kind=sharding.memory_kind))
        for device, index in sharding.addressable_devices_indices_map(values.shape).items()
    ]
    # `values` may be refilled when this returns: on a busy machine 3 of 40 copies were of the next numbers
    return jax.make_array_from_single_device_arrays(values.shape, sharding, jax.block_until_ready(parts))
