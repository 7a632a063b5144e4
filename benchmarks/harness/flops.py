"""How many floating-point operations a training step needs: the floor under any implementation.

In closed form for ResNets; for other networks as torch counts them.

Convolutions and matrix multiplies only; a multiply-add counts as two. The gradient for the pixels is not counted, nor
is `fc`, which comes after the features: a step needs neither. Element-wise work (batch norm, Adam, moving average) is
left out.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from benchmarks.harness.contenders import build_module
from benchmarks.harness.workloads import Resnet, Workload

__all__ = ["Convolution", "convolutions", "counted_flops", "step_flops", "taps_inside", "taps_with_padding"]

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
        >>> from benchmarks.harness.workloads import WORKLOADS
        >>> step_flops(WORKLOADS["resnet50"], taps_inside) // 10**9
        160
    """
    layers = list(convolutions(workload))
    forward = [2 * taps(c.size, c.kernel, c.stride) ** 2 * c.in_channels * c.out_channels for c in layers]
    encoder = 4 * sum(forward) - forward[0]
    return 2 * workload.batch_size * (encoder + _heads(workload, layers[-1].out_channels))


def counted_flops(workload: Workload) -> int:
    """The same for a network of any kind, as torch counts the operations of a forward pass.

    Multiplications by the padding's zeros are in it, and so is the stem's gradient for its input.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    module = build_module(workload).eval()
    reached: list[Any] = []

    def stop(layer: Any, inputs: Any, output: Any) -> None:
        reached.append(output)
        raise _ReachedError

    if workload.hidden_layer != -1:
        module.get_submodule(str(workload.hidden_layer)).register_forward_hook(stop)
    images = torch.zeros(1, 3, workload.image_size, workload.image_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter, suppress(_ReachedError):
        reached.append(module(images))
    return 2 * workload.batch_size * (4 * counter.get_total_flops() + _heads(workload, reached[0].numel()))


class _ReachedError(Exception):
    """The hidden layer has its output: what comes after it needn't be computed."""


def _heads(workload: Workload, features: int) -> int:
    hidden, projection = workload.projection_hidden_size, workload.projection_size
    projector = 2 * (features * hidden + hidden * projection)
    predictor = 2 * (projection * hidden + hidden * projection)
    return 4 * projector + 3 * predictor


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
    network = workload.network
    assert isinstance(network, Resnet), "the closed form is that of ResNets"
    stem = Convolution(workload.image_size, 3, WIDTH, 7, 2)
    yield stem
    size, channels = _output_size(_output_size(stem.size, 7, 2), 3, 2), WIDTH  # the max pool is 3×3 stride 2
    for number, length in enumerate(network.stages):
        inner = WIDTH * 2**number
        out = inner * EXPANSION[network.block]
        for index in range(length):
            stride = 2 if number > 0 and index == 0 else 1
            if stride != 1 or channels != out:
                yield Convolution(size, channels, out, 1, stride)
            after = _output_size(size, 3, stride)
            if network.block == "bottleneck":
                yield Convolution(size, channels, inner, 1, 1)
                yield Convolution(size, inner, inner, 3, stride)
                yield Convolution(after, inner, out, 1, 1)
            else:
                yield Convolution(size, channels, inner, 3, stride)
                yield Convolution(after, inner, out, 3, 1)
            size, channels = after, out


def _output_size(size: int, kernel: int, stride: int) -> int:
    return (size + 2 * (kernel // 2) - kernel) // stride + 1
