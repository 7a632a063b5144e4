"""How many floating-point operations a training step needs, in closed form: the floor under any implementation.

Convolutions and matrix multiplies only; a multiply-add counts as two. The gradient for the pixels is not counted, nor
is `fc`, which comes after the features: a step needs neither. Element-wise work (batch norm, Adam, moving average) is
left out.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from benchmarks.workloads import Workload

__all__ = ["Convolution", "convolutions", "step_flops", "taps_inside", "taps_with_padding"]

WIDTH = 64
EXPANSION = {"basic": 1, "bottleneck": 4}


class Convolution(NamedTuple):
    """One convolution on a square map of `size`, padded by kernel // 2 like all of a ResNet's."""

    size: int
    in_channels: int
    out_channels: int
    kernel: int
    stride: int


Taps = Callable[[int, int, int], int]
"""`(size, kernel, stride) ->` how many pairs of output and input pixels meet along one axis."""


def step_flops(workload: Workload, taps: Taps) -> int:
    """Operations of one BYOL step: for each of the 2 · batch_size views

        encoder 3 (forward, two gradients) + 1 (target), less the stem's gradient for its input
        projector 3 + 1,  predictor 3

    times what one forward pass needs. `taps` is one of the two below.

    Example:
        >>> from benchmarks.workloads import WORKLOADS
        >>> step_flops(WORKLOADS["resnet50"], taps_inside) // 10**9
        160
    """
    layers = list(convolutions(workload))
    forward = [2 * taps(c.size, c.kernel, c.stride) ** 2 * c.in_channels * c.out_channels for c in layers]
    features, hidden, projection = layers[-1].out_channels, workload.projection_hidden_size, workload.projection_size
    projector = 2 * (features * hidden + hidden * projection)
    predictor = 2 * (projection * hidden + hidden * projection)
    return 2 * workload.batch_size * (4 * sum(forward) - forward[0] + 4 * projector + 3 * predictor)


def taps_inside(size: int, kernel: int, stride: int) -> int:
    """Pairs with the input pixel inside the map: the work that has to be done, as jax's cost analysis counts it.

    Example:
        >>> taps_inside(2, 3, 1)
        4
    """
    padding = kernel // 2
    starts = range(-padding, size + padding - kernel + 1, stride)
    return sum(min(start + kernel, size) - max(start, 0) for start in starts)


def taps_with_padding(size: int, kernel: int, stride: int) -> int:
    """All pairs, multiplications by the padding's zeros included: the number that is usually quoted.

    Example:
        >>> taps_with_padding(2, 3, 1)
        6
    """
    return kernel * _output_size(size, kernel, stride)


def convolutions(workload: Workload) -> Iterator[Convolution]:
    """Every convolution of torchvision's ResNet, a block's shortcut before its others; the last one gives the features.

    Source: torchvision 0.29's `models/resnet.py`.
    """
    stem = Convolution(workload.image_size, 3, WIDTH, 7, 2)
    yield stem
    size, channels = _output_size(_output_size(stem.size, 7, 2), 3, 2), WIDTH  # the max pool is 3×3 stride 2
    for number, length in enumerate(workload.stages):
        inner = WIDTH * 2**number
        out = inner * EXPANSION[workload.block]
        for index in range(length):
            stride = 2 if number > 0 and index == 0 else 1
            if stride != 1 or channels != out:
                yield Convolution(size, channels, out, 1, stride)
            after = _output_size(size, 3, stride)
            if workload.block == "bottleneck":
                yield Convolution(size, channels, inner, 1, 1)
                yield Convolution(size, inner, inner, 3, stride)
                yield Convolution(after, inner, out, 1, 1)
            else:
                yield Convolution(size, channels, inner, 3, stride)
                yield Convolution(after, inner, out, 3, 1)
            size, channels = after, out


def _output_size(size: int, kernel: int, stride: int) -> int:
    return (size + 2 * (kernel // 2) - kernel) // stride + 1
