"""The two residual blocks, as pure functions on dicts, with torchvision's children and names.

A block returns `(y, new_stats, kept)`; `kept` is the output of the child named `keep`, as a PyTorch forward hook sees
it once the network has run. torchvision's ReLU and its addition work in place, so a hook on `bn1` ends up holding what
the ReLU made of it, and one on the last batch norm or on `relu` the block's output. So fusing batch norm and ReLU loses
nothing.
"""

from typing import Any, NamedTuple

import jax

from byol_jax.nets.norm import batch_norm
from byol_jax.ops.conv import conv2d
from byol_jax.types import PyTree, Variables

__all__ = ["BASIC", "BOTTLENECK", "Block", "Conv", "kernel_padding"]


class Conv(NamedTuple):
    """A block's convolution: its kernel's size, whether it carries the block's stride, widens to the output, and has
    groups where the network has."""

    name: str
    norm: str
    kernel_size: int
    strided: bool
    widens: bool
    grouped: bool = False


class Block(NamedTuple):
    """A kind of residual block.

    Attributes:
        convs: in order; each is followed by its batch norm, and by a ReLU but for the last.
        children: names in torchvision's order of definition, without the shortcut's.
        expansion: output channels over inner channels.
    """

    convs: tuple[Conv, ...]
    children: tuple[str, ...]
    expansion: int

    def names(self, shortcut: bool) -> tuple[str, ...]:
        """All children, grandchildren included.

        Example:
            >>> BASIC.names(shortcut=True)[-3:]
            ('downsample', 'downsample.0', 'downsample.1')
        """
        return self.children + (("downsample", "downsample.0", "downsample.1") if shortcut else ())

    def apply(
        self,
        variables: Variables,
        x: jax.Array,
        *,
        stride: int,
        padding: str,
        groups: int,
        keep: str | None,
        **norm_options: Any,
    ) -> tuple[jax.Array, PyTree, jax.Array | None]:
        """`relu(convolutions(x) + shortcut(x))`.

        Args:
            variables: this block's; a shortcut with weights iff params hold `downsample`.
            x: `[N, H, W, C]`.
            padding: "torch" or "same".
            groups: of the bottleneck's 3×3 convolution; a kernel there has 1 / groups of the channels.
            keep: child whose output is wanted, or None.
            norm_options: `train`, `axis_name` of every batch norm.

        Returns:
            `(y, new_stats, kept)`; y is `[N, H / stride, W / stride, C']`.
        """
        params, stats = variables
        y, new_stats, seen = x, {}, {}
        for conv in self.convs:
            y = conv2d(
                y,
                params[conv.name]["kernel"],
                stride=stride if conv.strided else 1,
                padding=kernel_padding(conv.kernel_size, padding),
                groups=groups if conv.grouped else 1,
            )
            seen[conv.name] = y
            norm = Variables(params[conv.norm], stats[conv.norm])
            y, new_stats[conv.norm] = batch_norm(norm, y, relu=conv is not self.convs[-1], **norm_options)
            seen[conv.norm] = y
        identity = x
        if "downsample" in params:
            identity, new_stats["downsample"], shortcut = _shortcut(variables, x, stride, norm_options)
            seen |= shortcut
        y = jax.nn.relu(y + identity)
        seen |= {self.convs[-1].norm: y, "relu": y}
        return y, new_stats, None if keep is None else seen[keep]


def kernel_padding(kernel_size: int, padding: str) -> int | str:
    """`conv2d`'s padding for "torch" (half the kernel on every side) and "same" (TensorFlow's).

    Example:
        >>> kernel_padding(7, "torch"), kernel_padding(7, "same")
        (3, 'SAME')
    """
    return kernel_size // 2 if padding == "torch" else "SAME"


def _shortcut(variables, x, stride, norm_options):
    """1×1 convolution and batch norm. Its outputs stay as they are: the addition writes into the other summand."""
    params, stats = variables.params["downsample"], variables.stats["downsample"]
    projected = conv2d(x, params["0"]["kernel"], stride=stride)
    y, norm = batch_norm(Variables(params["1"], stats["1"]), projected, **norm_options)
    return y, {"1": norm}, {"downsample.0": projected, "downsample.1": y, "downsample": y}


BASIC = Block(
    convs=(Conv("conv1", "bn1", 3, strided=True, widens=True), Conv("conv2", "bn2", 3, strided=False, widens=True)),
    children=("conv1", "bn1", "relu", "conv2", "bn2"),
    expansion=1,
)
BOTTLENECK = Block(
    convs=(
        Conv("conv1", "bn1", 1, strided=False, widens=False),
        Conv("conv2", "bn2", 3, strided=True, widens=False, grouped=True),
        Conv("conv3", "bn3", 1, strided=False, widens=True),
    ),
    children=("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "relu"),
    expansion=4,
)
