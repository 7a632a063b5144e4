"""Every layer class of torch.nn that takes one tensor, made with plain arguments and put into a network to be traced.

Classes are found by introspection, so that a newer torch's are found too: one that neither `TRACED` nor `REFUSED` has
is a failing test. Both are a table in docs/operators.md, which `python -m tests.pages.operators` writes.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

NO_LAYERS = {
    *("Container", "Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList", "RNNBase", "RNNCellBase"),
    *("DataParallel", "Sequential"),
}
"""Modules that compute nothing of their own."""

ARGUMENTS: dict[str, Any] = {
    **dict.fromkeys(("in_channels", "num_features", "num_channels", "in_features", "input_size"), 4),
    **dict.fromkeys(("out_channels", "out_features", "hidden_size", "embedding_dim", "size"), 3),
    **dict.fromkeys(("kernel_size", "output_size", "groups", "num_groups", "padding", "upscale_factor"), 2),
    "downscale_factor": 2,
    "num_embeddings": 10,
    "dim": 1,
    "norm_type": 2.0,
    "threshold": 0.1,
    "value": 0.5,
    "normalized_shape": [6, 6],
    "unflattened_size": (2, 2),
}
"""Of the constructors, by the parameters' names."""

OTHERWISE: dict[str, Callable[[], nn.Module]] = {
    "FractionalMaxPool2d": lambda: nn.FractionalMaxPool2d(2, output_size=3),
    "FractionalMaxPool3d": lambda: nn.FractionalMaxPool3d(2, output_size=2),
    "Fold": lambda: nn.Fold((4, 5), 2),
    "GLU": lambda: nn.GLU(1),
    "GRU": lambda: nn.GRU(4, 3, batch_first=True),
    "LSTM": lambda: nn.LSTM(4, 3, batch_first=True),
    "LogSoftmax": lambda: nn.LogSoftmax(1),
    "RNN": lambda: nn.RNN(4, 3, batch_first=True),
    "Softmax": lambda: nn.Softmax(1),
    "Softmin": lambda: nn.Softmin(1),
    "TransformerEncoder": lambda: nn.TransformerEncoder(OTHERWISE["TransformerEncoderLayer"](), 1),  # type: ignore[arg-type]
    "TransformerEncoderLayer": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    "Upsample": lambda: nn.Upsample(scale_factor=2),
    "UpsamplingBilinear2d": lambda: nn.UpsamplingBilinear2d(scale_factor=2),
    "UpsamplingNearest2d": lambda: nn.UpsamplingNearest2d(scale_factor=2),
}
"""Classes whose plain arguments the names of their parameters don't tell."""

SHAPES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("GRU", "LSTM", "RNN", "TransformerEncoder", "TransformerEncoderLayer"), (5, 4)),
    **dict.fromkeys(("GRUCell", "LSTMCell", "RNNCell", "Linear"), (4,)),
    "Fold": (12, 12),
}
INDICES = ("Embedding", "EmbeddingBag")
"""Those that take whole numbers below 10, [N, 5]."""


def layer_names() -> list[str]:
    """The classes of torch.nn that are layers of one tensor, by their `forward`'s parameters, without the lazy ones,
    which are one of the others once they have run."""
    found = []
    for name, kind in vars(nn).items():
        if isinstance(kind, type) and issubclass(kind, nn.Module) and name not in NO_LAYERS and "Lazy" not in name:
            _, *given = inspect.signature(kind.forward).parameters.values()
            needed = [
                p for p in given if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            ]
            if len(needed) == 1:
                found.append(name)
    return sorted(found)


def make_layer(name: str) -> nn.Module:
    """A layer with plain arguments."""
    if name in OTHERWISE:
        return OTHERWISE[name]()
    kind = getattr(nn, name)
    needed = [p.name for p in inspect.signature(kind).parameters.values() if p.default is p.empty]
    return kind(*(ARGUMENTS[parameter] for parameter in needed if parameter not in ("args", "kwargs")))


def input_shape(name: str) -> tuple[int, ...]:
    """One input's shape: [C, *spatial], by the number of dimensions in the name, two where it has none."""
    if name in INDICES:
        return (5,)
    rank = next((rank for rank in (1, 2, 3) if name.endswith(f"{rank}d")), 2)
    return SHAPES.get(name, (4, *(6,) * rank) if rank < 3 else (4, 4, 4, 4))


class Layers(nn.Module):
    """Layers beside each other, each on its own part of the input, [N, LENGTH]; their outputs one after another.

    What a layer is given is shifted by a parameter, whose gradient so is the gradient by the layer's input.
    """

    LENGTH = 300

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: make_layer(name) for name in names})
        shifted = [name for name in names if name not in INDICES]
        self.shifts = nn.ParameterDict({name: nn.Parameter(0.1 * torch.randn(input_shape(name))) for name in shifted})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.output(name, x) for name in self.layers], 1)

    def output(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Of one layer, [N, D]; of several outputs the first."""
        shape = input_shape(name)
        given = x[:, : math.prod(shape)].reshape(-1, *shape)
        given = (given * 100).long() % 10 if name in INDICES else given + self.shifts[name]
        y = self.layers[name](given)
        return (y if isinstance(y, torch.Tensor) else y[0]).flatten(1)


REFUSED = {
    "CrossMapLRN2d": "legacy code with a backward pass of its own; use LocalResponseNorm",
    "EmbeddingBag": "aten.embedding_bag",
    "FractionalMaxPool2d": "aten.fractional_max_pool2d",
    "FractionalMaxPool3d": "aten.fractional_max_pool3d",
    "RReLU": "aten.rrelu",
}
"""Layers that are refused, with the operator that is missing or another reason."""

TRACED = (
    *("AdaptiveAvgPool1d", "AdaptiveAvgPool2d", "AdaptiveAvgPool3d", "AdaptiveMaxPool1d", "AdaptiveMaxPool2d"),
    *("AdaptiveMaxPool3d", "AlphaDropout", "AvgPool1d", "AvgPool2d", "AvgPool3d", "BatchNorm1d", "BatchNorm2d"),
    *("BatchNorm3d", "CELU", "ChannelShuffle", "CircularPad1d", "CircularPad2d", "CircularPad3d", "ConstantPad1d"),
    *("ConstantPad2d", "ConstantPad3d", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d"),
    *("ConvTranspose3d", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "ELU", "Embedding"),
    *("FeatureAlphaDropout", "Flatten", "Fold", "GELU", "GLU", "GRU", "GRUCell", "GroupNorm", "Hardshrink"),
    *("Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
    *("LPPool1d", "LPPool2d", "LPPool3d", "LSTM", "LSTMCell", "LayerNorm", "LeakyReLU", "Linear"),
    *("LocalResponseNorm", "LogSigmoid", "LogSoftmax", "MaxPool1d", "MaxPool2d", "MaxPool3d", "Mish", "PReLU"),
    *("PixelShuffle", "PixelUnshuffle", "RMSNorm", "RNN", "RNNCell", "ReLU", "ReLU6", "ReflectionPad1d"),
    *("ReflectionPad2d", "ReflectionPad3d", "ReplicationPad1d", "ReplicationPad2d", "ReplicationPad3d", "SELU"),
    *("SiLU", "Sigmoid", "Softmax", "Softmax2d", "Softmin", "Softplus", "Softshrink", "Softsign", "SyncBatchNorm"),
    *("Tanh", "Tanhshrink", "Threshold", "TransformerEncoder", "TransformerEncoderLayer", "Unflatten", "Unfold"),
    *("Upsample", "UpsamplingBilinear2d", "UpsamplingNearest2d", "ZeroPad1d", "ZeroPad2d", "ZeroPad3d"),
)
"""Layers whose operators are all known: `interop.check` finds nothing in the way."""
