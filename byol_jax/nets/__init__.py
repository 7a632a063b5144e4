"""Networks as `Encoder`s of pure functions on dicts, and the heads that the learner puts on them.

Read `resnet.py` first.

    resnet, vit, cnn        native networks, with torchvision's names; `layers` is what they are made of
    heads                   projector and predictor
    linen, nnx              Flax modules as encoders (`byol_jax.from_linen`, `byol_jax.from_nnx`)
    pretrained              an encoder that starts from given weights
    remat                   an encoder that needs less memory in training
"""

from byol_jax.nets import heads
from byol_jax.nets.cnn import small_cnn
from byol_jax.nets.pretrained import with_variables
from byol_jax.nets.remat import with_remat
from byol_jax.nets.resnet import (
    resnet,
    resnet18,
    resnet34,
    resnet50,
    resnet50_2x,
    resnet101,
    resnet152,
    resnet200_2x,
    resnext50_32x4d,
    resnext101_32x8d,
    resnext101_64x4d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from byol_jax.nets.vit import resize_positions, vit, vit_b16, vit_b32, vit_l16, vit_s16

__all__ = [
    "heads",
    "resize_positions",
    "resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet50_2x",
    "resnet101",
    "resnet152",
    "resnet200_2x",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "small_cnn",
    "vit",
    "vit_b16",
    "vit_b32",
    "vit_l16",
    "vit_s16",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "with_remat",
    "with_variables",
]
