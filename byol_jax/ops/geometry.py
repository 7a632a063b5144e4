"""Where a convolution's kernel stands on its images: sizes, stride, padding, dilation, and what follows from them."""

from typing import NamedTuple

import jax

__all__ = ["Geometry"]


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
        (rows, columns), (down, right), (high, wide) = self.outputs, self.stride, self.dilation
        top, left = a * high, b * wide
        return padded[:, top : top + (rows - 1) * down + 1 : down, left : left + (columns - 1) * right + 1 : right]


def _seeing(size: int, taps: int, stride: int, before: int, dilation: int, outputs: int) -> range:
    meet = [a for a in range(taps) if any(0 <= q * stride + a * dilation - before < size for q in range(outputs))]
    return range(meet[0], meet[-1] + 1) if meet else range(1)
