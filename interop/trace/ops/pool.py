"""Pooling and padding of [N, C, *spatial]; pools run with channels last."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.ops.pool import max_pool
from byol_jax.ops.precision import at_least_float32
from interop.trace.ops.extrema import first_maximum
from interop.trace.ops.operator import Absent, Context, Operator, per_axis, within_range
from interop.trace.ops.reduce import reduce_axes
from interop.trace.values import Value, arrange, map_array, multiply_axes

__all__ = ["TABLE"]


def _channels_last(x: Value, rank: int) -> tuple[jax.Array, tuple[int, ...]]:
    """[N, *spatial, C] and its order; [C, *spatial] without a batch axis works the same."""
    order = (*range(x.ndim - rank - 1), *range(x.ndim - rank, x.ndim), x.ndim - rank - 1)
    return arrange(x, order), order


def _window(kernel_size: Any, stride: Any, padding: Any, rank: int) -> tuple[tuple[int, ...], ...]:
    """Kernel, strides and padding of each axis; no stride means the kernel's size."""
    kernel = per_axis(kernel_size, rank)
    return kernel, per_axis(stride, rank) if stride not in ((), []) else kernel, per_axis(padding, rank)


def _windows(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], pads: Sequence[int], ceil_mode: bool
) -> list[int]:
    """How many windows each axis has; with `ceil_mode` a last, partial one, if it starts inside."""
    counts = []
    for n, k, s, p in zip(size, kernel, stride, pads, strict=True):
        room = n + 2 * p - k
        count = (-(-room // s) if ceil_mode else room // s) + 1
        counts.append(count - 1 if ceil_mode and (count - 1) * s >= n + p else count)
    return counts


def _reduce_windows(
    array: jax.Array,
    initial: float,
    function: Callable[..., Any],
    extents: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    counts: Sequence[int],
) -> jax.Array:
    lead = array.ndim - len(extents) - 1
    size = array.shape[lead:-1]
    reach = [(c - 1) * s + k for c, s, k in zip(counts, strides, extents, strict=True)]
    sides = [(p, max(r - n - p, 0)) for p, r, n in zip(pads, reach, size, strict=True)]
    cut = [slice(None)] * lead + [slice(0, r - p) for r, p in zip(reach, pads, strict=True)]

    def window_shape(numbers: Sequence[int]) -> tuple[int, ...]:
        return (*(1,) * lead, *numbers, 1)

    return jax.lax.reduce_window(
        array[tuple(cut)],
        np.asarray(initial, array.dtype),  # under jit a JAX array would be traced, and then lax knows no gradient
        function,
        window_dimensions=window_shape(extents),
        window_strides=window_shape(strides),
        padding=((0, 0),) * lead + tuple(sides) + ((0, 0),),
    )


def _dilated_max(
    array: jax.Array,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    counts: Sequence[int],
    dilations: Sequence[int],
) -> jax.Array:
    """A strided slice for each position of the window; the first of equal maxima wins.

    XLA has no gradient of dilated windows.
    """
    lead = array.ndim - len(kernel) - 1
    ends = [(c - 1) * s + d * (k - 1) + 1 for c, s, d, k in zip(counts, strides, dilations, kernel, strict=True)]
    after = [max(end - n - p, 0) for end, n, p in zip(ends, array.shape[lead:-1], pads, strict=True)]
    array = jnp.pad(array, [(0, 0)] * lead + list(zip(pads, after, strict=True)) + [(0, 0)], constant_values=-jnp.inf)
    highest = None
    for position in itertools.product(*map(range, kernel)):
        starts = [k * d for k, d in zip(position, dilations, strict=True)]
        windows = [slice(a, a + (c - 1) * s + 1, s) for a, c, s in zip(starts, counts, strides, strict=True)]
        candidate = array[(*[slice(None)] * lead, *windows)]
        highest = candidate if highest is None else jnp.where(candidate > highest, candidate, highest)
    assert highest is not None
    return highest


def _max_pool(rank: int) -> Operator:
    def operator(
        context: Context,
        x: Value,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
    ) -> Value:
        kernel, strides, pads = _window(kernel_size, stride, padding, rank)
        dilations = per_axis(dilation, rank)
        array, order = _channels_last(x, rank)
        even = all(len(set(part)) == 1 for part in (kernel, strides, pads))
        if rank == 2 and x.ndim == 4 and even and set(dilations) == {1} and not ceil_mode:
            return Value(max_pool(array, window=kernel[0], stride=strides[0], padding=pads[0]), order)
        extents = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
        counts = _windows(array.shape[-rank - 1 : -1], extents, strides, pads, ceil_mode)
        if set(dilations) == {1}:
            return Value(_reduce_windows(array, -jnp.inf, jax.lax.max, kernel, strides, pads, counts), order)
        return Value(_dilated_max(array, kernel, strides, pads, counts, dilations), order)

    return operator


def _max_pool_and_places(rank: int) -> Operator:
    pool, places = _max_pool(rank), _places(f"max_pool{rank}d_with_indices")
    return lambda *args, **options: (pool(*args, **options), places)


def _places(name: str) -> Absent:
    return Absent(f"the places of the maxima (aten.{name})")


def _avg_pool(rank: int) -> Operator:
    def operator(
        context: Context,
        x: Value,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Value:
        kernel, strides, pads = _window(kernel_size, stride, padding, rank)
        array, order = _channels_last(x, rank)
        size = array.shape[-rank - 1 : -1]
        counts = _windows(size, kernel, strides, pads, ceil_mode)
        sums = _reduce_windows(array.astype(at_least_float32(x.dtype)), 0, jax.lax.add, kernel, strides, pads, counts)
        shares = np.ones((1,) * (rank + 1))
        for axis, (n, k, s, p, count) in enumerate(zip(size, kernel, strides, pads, counts, strict=True)):
            starts = np.arange(count) * s - p
            inside = np.minimum(starts + k, n + p * count_include_pad) - (
                starts if count_include_pad else starts.clip(0)
            )
            shares = shares * inside.reshape([-1 if other == axis else 1 for other in range(rank + 1)])
        divisor = shares if divisor_override is None else np.full((1,) * (rank + 1), divisor_override)
        return Value((sums / jnp.asarray(divisor, sums.dtype)).astype(x.dtype), order)

    return operator


def _adaptive_sizes(x: Value, output_size: Any, rank: int) -> list[int]:
    whole = per_axis(output_size, rank) if output_size is not None else (None,) * rank
    return [n if wanted is None else wanted for wanted, n in zip(whole, x.shape[-rank:], strict=True)]


def _bins(size: int, wanted: int) -> list[tuple[int, int]]:
    """torch's: bin i is [floor(i · size / wanted), ceil((i + 1) · size / wanted))."""
    return [(i * size // wanted, -(-(i + 1) * size // wanted)) for i in range(wanted)]


def _adaptive_avg_pool(rank: int) -> Operator:
    def operator(context: Context, x: Value, output_size: Any) -> Value:
        wanted = _adaptive_sizes(x, output_size, rank)
        if all(n == 1 for n in wanted):
            wide = at_least_float32(x.dtype)
            axes = tuple(range(-rank, 0))
            return reduce_axes(
                x, axes, True, lambda a, places: jnp.mean(a, places, dtype=wide, keepdims=True).astype(x.dtype)
            )
        matrices = []
        for n, m in zip(x.shape[-rank:], wanted, strict=True):
            matrix = np.zeros((m, n))
            for row, (start, stop) in enumerate(_bins(n, m)):
                matrix[row, start:stop] = 1 / (stop - start)
            matrices.append(matrix)
        return multiply_axes(x, matrices)

    return operator


def _adaptive_max_pool(rank: int) -> Operator:
    """The first of equal maxima in the order of the elements takes the gradient: hence the last axis first."""

    def operator(context: Context, x: Value, output_size: Any) -> tuple[Value, Absent]:
        for offset, m in reversed(list(enumerate(_adaptive_sizes(x, output_size, rank)))):
            place = x.order.index(x.ndim - rank + offset)
            parts = [
                first_maximum(jax.lax.slice_in_dim(x.array, start, stop, axis=place), place)
                for start, stop in _bins(x.array.shape[place], m)
            ]
            x = Value(jnp.concatenate(parts, place), x.order)
        return x, _places(f"adaptive_max_pool{rank}d")

    return operator


def _widths(x: Value, pad: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) of each axis as it lies; torch's list begins with the last axis and may leave out the first."""
    widths = [(0, 0)] * x.ndim
    for offset in range(len(pad) // 2):
        widths[x.ndim - 1 - offset] = (pad[2 * offset], pad[2 * offset + 1])
    return [widths[axis] for axis in x.order]


def _constant_pad(context: Context, x: Value, pad: Sequence[int], value: Any = 0) -> Value:
    """Negative numbers crop."""
    filling = jnp.asarray(within_range(0 if value is None else value, x.dtype), x.dtype)
    return Value(jax.lax.pad(x.array, filling, [(*width, 0) for width in _widths(x, pad)]), x.order)


def _pad(context: Context, x: Value, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Value:
    """Negative numbers crop; what is reflected or repeated is there before that, what goes round is not."""
    if mode == "constant":
        return _constant_pad(context, x, pad, value)
    modes = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    more, less = [max(n, 0) for n in pad], [min(n, 0) for n in pad]
    if mode == "circular":
        x = _constant_pad(context, x, less)
    x = map_array(lambda a: jnp.pad(a, _widths(x, more), mode=modes[mode]), x)
    return x if mode == "circular" else _constant_pad(context, x, less)


def _pad_by(mode: str) -> Operator:
    return lambda context, x, pad: _pad(context, x, pad, mode)


TABLE: dict[str, Operator] = {
    **{f"aten.max_pool{rank}d": _max_pool(rank) for rank in (1, 2, 3)},
    **{f"aten.avg_pool{rank}d": _avg_pool(rank) for rank in (1, 2, 3)},
    **{f"aten.adaptive_avg_pool{rank}d": _adaptive_avg_pool(rank) for rank in (1, 2, 3)},
    **{f"aten._adaptive_avg_pool{rank}d": _adaptive_avg_pool(rank) for rank in (2, 3)},
    **{f"aten.adaptive_max_pool{rank}d": _adaptive_max_pool(rank) for rank in (1, 2, 3)},
    **{f"aten.max_pool{rank}d_with_indices": _max_pool_and_places(rank) for rank in (2, 3)},
    "aten.pad": _pad,
    "aten.constant_pad_nd": _constant_pad,
    **{
        f"aten.{mode}_pad{rank}d": _pad_by({"reflection": "reflect", "replication": "replicate"}[mode])
        for mode in ("reflection", "replication")
        for rank in (1, 2, 3)
    },
}
