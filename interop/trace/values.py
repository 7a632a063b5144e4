"""Arrays with torch's axes in whatever physical order is fast, and a note of that order.

torch's operators count axes as [N, C, H, W]; XLA is fast on [N, H, W, C]. A `Value` holds the array as it lies and
which of torch's axes each of its own axes is, so that a convolution, a norm or a sum works on pixels as they are, a
permutation costs nothing, and data is only moved where an operator's meaning depends on torch's order.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "Value",
    "align",
    "arrange",
    "from_torch_order",
    "map_array",
    "multiply_axes",
    "normal_axis",
    "permute",
    "physical_axes",
    "reshape",
    "squeeze",
    "to_torch_order",
    "unsqueeze",
]


class Value(NamedTuple):
    """An array and its order: physical axis k is torch's axis `order[k]`."""

    array: jax.Array
    order: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.order)

    @property
    def shape(self) -> tuple[int, ...]:
        """Torch's shape."""
        return tuple(self.array.shape[self.order.index(axis)] for axis in range(self.ndim))

    @property
    def dtype(self) -> Any:
        return self.array.dtype


def from_torch_order(array: Any) -> Value:
    """The `Value` of an array that has torch's order of axes."""
    array = jnp.asarray(array)
    return Value(array, tuple(range(array.ndim)))


def to_torch_order(value: Value) -> jax.Array:
    """The array with axes in torch's order; moves data where they lie otherwise."""
    return arrange(value, tuple(range(value.ndim)))


def arrange(value: Value, order: Sequence[int]) -> jax.Array:
    """The array with torch's axes in `order`; moves data where they lie otherwise."""
    if tuple(order) == value.order:
        return value.array
    return value.array.transpose([value.order.index(axis) for axis in order])


def normal_axis(axis: int, ndim: int) -> int:
    """The axis counted from the front. For torch a scalar has one axis, 0."""
    return axis % max(ndim, 1)


def physical_axes(value: Value, axes: int | Sequence[int] | None) -> tuple[int, ...]:
    """Where torch's axes lie; None or an empty list: all of them."""
    if axes is None or axes == () or axes == []:
        return tuple(range(value.ndim))
    axes = (axes,) if isinstance(axes, int) else axes
    if value.ndim == 0:
        return ()
    return tuple(value.order.index(normal_axis(axis, value.ndim)) for axis in axes)


def align(values: Sequence[Value]) -> tuple[list[jax.Array], tuple[int, ...]]:
    """All arrays with one rank and one order, the largest's, ready to be broadcast; and that order."""
    rank = max(value.ndim for value in values)
    leader = max(values, key=lambda value: (value.ndim, value.array.size))
    return [arrange(_with_rank(value, rank), leader.order) for value in values], leader.order


def _with_rank(value: Value, rank: int) -> Value:
    more = rank - value.ndim
    array = value.array.reshape((1,) * more + value.array.shape)
    return Value(array, (*range(more), *(axis + more for axis in value.order)))


def map_array(function: Callable[..., jax.Array], value: Value) -> Value:
    """The value with its array mapped by an element-wise function."""
    return Value(function(value.array), value.order)


def permute(value: Value, axes: Sequence[int]) -> Value:
    """torch's `permute`; nothing moves."""
    axes = [normal_axis(axis, value.ndim) for axis in axes]
    return Value(value.array, tuple(axes.index(axis) for axis in value.order))


def unsqueeze(value: Value, axis: int) -> Value:
    """torch's `unsqueeze`; the new axis lies first."""
    axis = axis % (value.ndim + 1)
    return Value(value.array[None], (axis, *(old + (old >= axis) for old in value.order)))


def squeeze(value: Value, axes: Sequence[int]) -> Value:
    """torch's `squeeze`: without those of `axes` that have size 1."""
    gone = {normal_axis(axis, value.ndim) for axis in axes} if value.ndim else set()
    gone = {axis for axis in gone if value.shape[axis] == 1}
    array = value.array.reshape([n for n, axis in zip(value.array.shape, value.order, strict=True) if axis not in gone])
    return Value(array, tuple(axis - sum(other < axis for other in gone) for axis in value.order if axis not in gone))


def multiply_axes(value: Value, matrices: Sequence[np.ndarray]) -> Value:
    """Multiplies each of torch's last axes by its matrix, [new size, old size]; an identity costs nothing."""
    for offset, matrix in enumerate(matrices):
        if np.array_equal(matrix, np.eye(matrix.shape[1])):
            continue
        place = value.order.index(value.ndim - len(matrices) + offset)
        weights, contracted = jnp.asarray(matrix, value.dtype), (((place,), (1,)), ((), ()))
        product = jax.lax.dot_general(value.array, weights, contracted, precision=jax.lax.Precision.HIGHEST)
        value = Value(jnp.moveaxis(product, -1, place), value.order)
    return value


def reshape(value: Value, shape: Sequence[int]) -> Value:
    """torch's `reshape`; nothing moves where the axes that are merged lie next to each other and in order.

    `shape` may have one -1.
    """
    shape = _without_minus_one(value.array.size, shape)
    if value.array.size == 0:
        return from_torch_order(to_torch_order(value).reshape(shape))
    groups = _groups(value.shape, shape)
    where = {axis: place for place, axis in enumerate(axis for axis in value.order if value.shape[axis] != 1)}
    placed = [[where[axis] for axis in old] for old, _ in groups]
    if any(places != list(range(places[0], places[0] + len(places))) for places in placed):
        return from_torch_order(to_torch_order(value).reshape(shape))
    ranked = [new for _, (_, new) in sorted(zip(placed, groups, strict=True), key=lambda pair: pair[0])]
    order = [axis for axis, size in enumerate(shape) if size == 1] + [axis for new in ranked for axis in new]
    return Value(value.array.reshape([shape[axis] for axis in order]), tuple(order))


def _without_minus_one(size: int, shape: Sequence[int]) -> tuple[int, ...]:
    known = 1
    for n in shape:
        known *= n if n != -1 else 1
    return tuple(size // known if n == -1 else n for n in shape)


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The finest pairs (old axes, new axes) of equal size, in order; axes of size 1 left out."""
    left = [axis for axis, size in enumerate(old) if size != 1]
    right = [axis for axis, size in enumerate(new) if size != 1]
    groups = []
    while left and right:
        first, second = [left.pop(0)], [right.pop(0)]
        sizes = [old[first[0]], new[second[0]]]
        while sizes[0] != sizes[1]:
            if sizes[0] < sizes[1]:
                first.append(left.pop(0))
                sizes[0] *= old[first[-1]]
            else:
                second.append(right.pop(0))
                sizes[1] *= new[second[-1]]
        groups.append((first, second))
    return groups
