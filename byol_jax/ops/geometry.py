"""Where a convolution's kernel stands on its images: sizes, stride, padding, dilation, and what follows from them; and
XLA's own convolution, which takes just that."""

from typing import NamedTuple

import jax
from jax import lax

__all__ = ["Geometry", "convolve_by_xla"]


class Geometry(NamedTuple):
    """Everything about a convolution that isn't a number of an array; pairs are (rows, columns).

    Attributes:
        size: H and W of the images.
        taps: the kernel's height and width.
        stride, dilation: in pixels.
        pads: zeros (before, after), of each axis.
    """

    size: tuple[int, int]
    taps: tuple[int, int]
    stride: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]

    @property
    def outputs(self) -> tuple[int, int]:
        """H' and W' of the result."""
        rows, columns = (
            (n + sum(pad) - (k - 1) * d - 1) // s + 1
            for n, k, s, pad, d in zip(*self, strict=True)  # its fields, in their order
        )
        return rows, columns

    @property
    def pixels(self) -> int:
        """H' · W'."""
        return self.outputs[0] * self.outputs[1]

    @property
    def positions(self) -> int:
        """How many numbers the kernel has for one channel."""
        return self.taps[0] * self.taps[1]

    @property
    def seeing(self) -> tuple[range, range]:
        """The kernel's rows and columns that meet at least one pixel: one of each at least, and they are neighbours."""
        rows, columns = (
            _seeing(n, k, s, pad[0], d, outputs)
            for (n, k, s, pad, d), outputs in zip(zip(*self, strict=True), self.outputs, strict=True)
        )
        return rows, columns

    def window(self, padded: jax.Array, a: int, b: int) -> jax.Array:
        """What position (a, b) of the kernel meets of the padded images: [N, H', W', C]."""
        return self.rows(self.columns(padded, b), a)

    def rows(self, padded: jax.Array, a: int) -> jax.Array:
        """The rows that row a of the kernel meets: H' of them."""
        return _every(padded, 1, a * self.dilation[0], self.outputs[0], self.stride[0])

    def columns(self, padded: jax.Array, b: int) -> jax.Array:
        """The columns that column b of the kernel meets: W' of them."""
        return _every(padded, 2, b * self.dilation[1], self.outputs[1], self.stride[1])


def _every(x: jax.Array, axis: int, first: int, count: int, stride: int) -> jax.Array:
    return lax.slice_in_dim(x, first, first + (count - 1) * stride + 1, stride, axis)


def convolve_by_xla(
    x: jax.Array, kernel: jax.Array, geometry: Geometry, layout: str = "HWIO", groups: int = 1
) -> jax.Array:
    """XLA's own convolution: of x [N, H, W, C] to [N, H', W', O], with the kernel's axes in the order of `layout`."""
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.pads,
        rhs_dilation=geometry.dilation,
        dimension_numbers=("NHWC", layout, "NHWC"),
        feature_group_count=groups,
    )


def _seeing(size: int, taps: int, stride: int, before: int, dilation: int, outputs: int) -> range:
    meet = [a for a in range(taps) if any(0 <= q * stride + a * dilation - before < size for q in range(outputs))]
    return range(meet[0], meet[-1] + 1) if meet else range(1)
