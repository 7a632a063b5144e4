"""ResNets of other widths by name: torchvision's wide ones and ResNeXts, and the BYOL paper's doubled ones.

Each is `byol_jax.nets.resnet` with one or two numbers changed; nothing is computed here.
"""

from typing import Any

from byol_jax.nets.resnet import resnet, resnet50, resnet101
from byol_jax.types import Encoder

__all__ = [
    "resnet50_2x",
    "resnet200_2x",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]


def wide_resnet50_2(**options: Any) -> Encoder:
    """torchvision's wide_resnet50_2: resnet50 with inner channels doubled; avgpool 2048. `options` as in `resnet`."""
    return resnet50(width_per_group=128, **options)


def wide_resnet101_2(**options: Any) -> Encoder:
    """torchvision's wide_resnet101_2: resnet101 with inner channels doubled; avgpool 2048. `options` as in `resnet`."""
    return resnet101(width_per_group=128, **options)


def resnext50_32x4d(**options: Any) -> Encoder:
    """torchvision's resnext50_32x4d: resnet50 with 32 groups of 4 channels and up; avgpool 2048. `options` as in
    `resnet`."""
    return resnet50(groups=32, width_per_group=4, **options)


def resnext101_32x8d(**options: Any) -> Encoder:
    """torchvision's resnext101_32x8d: resnet101 with 32 groups of 8 channels and up; avgpool 2048. `options` as in
    `resnet`."""
    return resnet101(groups=32, width_per_group=8, **options)


def resnext101_64x4d(**options: Any) -> Encoder:
    """torchvision's resnext101_64x4d: resnet101 with 64 groups of 4 channels and up; avgpool 2048. `options` as in
    `resnet`."""
    return resnet101(groups=64, width_per_group=4, **options)


def resnet50_2x(**options: Any) -> Encoder:
    """The BYOL paper's ResNet-50 (2x): every width of resnet50 doubled; avgpool 4096, 94 million parameters. `options`
    as in `resnet`; `padding="same"` is DeepMind's."""
    return resnet50(width=128, **options)


def resnet200_2x(**options: Any) -> Encoder:
    """The BYOL paper's ResNet-200 (2x), whose weights DeepMind released: bottleneck blocks 3, 24, 36, 3, every width
    doubled; avgpool 4096, 250 million parameters. `options` as in `resnet`; `padding="same"` is DeepMind's."""
    return resnet((3, 24, 36, 3), block="bottleneck", width=128, **options)
