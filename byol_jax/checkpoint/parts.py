"""Leaves that are spread over processes: who writes which part, and the whole again.

A part is a box of its leaf, written as "0:64,0:512": 64 rows, all 512 columns. In a file it lies under the leaf's name
and its box, "target/params/encoder/fc/kernel[0:64,0:512]". No files here.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.checkpoint.manifest import LeafEntry

__all__ = ["assemble", "is_in_parts", "own_parts", "part_name", "writers"]


def is_in_parts(leaf: Any) -> bool:
    """Whether a leaf is spread over several processes.

    Example:
        >>> is_in_parts(jnp.ones(3))
        False
    """
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable and not leaf.is_fully_replicated


def part_name(name: str, box: str) -> str:
    """The name of a part in a file.

    Example:
        >>> part_name("target/params/fc/kernel", "0:64,0:10")
        'target/params/fc/kernel[0:64,0:10]'
    """
    return f"{name}[{box}]"


def writers(leaf: jax.Array) -> dict[str, int]:
    """The process that writes each box of a leaf, in the order of its devices: every process finds the same.

    Of a box that lies on several devices it is the first one's.

    Example:
        >>> writers(jnp.ones((2, 3)))
        {'0:2,0:3': 0}
    """
    return {box: device.process_index for box, device in _devices(leaf).items()}


def own_parts(leaf: jax.Array) -> dict[str, jax.Array]:
    """The boxes that this process writes, as arrays on a device of its own; keys as their uint32 data.

    Example:
        >>> own_parts(jnp.ones((2, 3)))["0:2,0:3"].shape
        (2, 3)
    """
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    here = {shard.device: shard.data for shard in leaf.addressable_shards}
    own = {box: here[device] for box, device in _devices(leaf).items() if device in here}
    return {box: jax.random.key_data(part) if is_key else part for box, part in own.items()}


def assemble(entry: LeafEntry, parts: Mapping[str, bytes]) -> bytes:
    """A leaf's bytes, as they would lie in a file as one, from those of its boxes.

    Raises:
        ValueError: they don't make up the whole leaf.

    Example:
        >>> halves = {"0:1,0:2": np.int32([[1, 2]]).tobytes(), "1:2,0:2": np.int32([[3, 4]]).tobytes()}
        >>> np.frombuffer(assemble(LeafEntry("int32", (2, 2)), halves), np.int32).tolist()
        [1, 2, 3, 4]
    """
    boxes = {box: [tuple(map(int, side.split(":"))) for side in box.split(",")] for box in parts}
    shapes = {box: [stop - start for start, stop in sides] for box, sides in boxes.items()}
    elements, wanted = sum(math.prod(shape) for shape in shapes.values()), math.prod(entry.shape)
    covered = np.zeros(entry.shape, bool)
    for sides in boxes.values():
        covered[tuple(slice(*side) for side in sides)] = True
    different = int(np.count_nonzero(covered))
    if not elements == different == wanted:
        raise ValueError(f"its parts have {elements} elements, {different} different ones, of {wanted}")
    dtype = np.dtype(np.uint32 if entry.impl is not None else jnp.dtype(entry.dtype))
    width = sum(map(len, parts.values())) // dtype.itemsize // max(elements, 1)  # above 1 for keys: numbers of each
    whole = np.empty((*entry.shape, width), dtype)
    for box, data in parts.items():
        place = tuple(slice(start, stop) for start, stop in boxes[box])
        whole[place] = np.frombuffer(data, dtype).reshape(*shapes[box], width)
    return whole.tobytes()


def _devices(leaf: jax.Array) -> dict[str, Any]:
    """The device whose copy of each box is written."""
    found: dict[str, Any] = {}
    for device, index in leaf.sharding.devices_indices_map(leaf.shape).items():
        found.setdefault(_box(index, leaf.shape), device)
    return found


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> str:
    sides = (side.indices(length) for side, length in zip(index, shape, strict=True))
    return ",".join(f"{start}:{stop}" for start, stop, _ in sides)
