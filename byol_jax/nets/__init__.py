"""Native encoders, and the heads as a module of their own."""

from byol_jax.nets import heads
from byol_jax.nets.cnn import small_cnn
from byol_jax.nets.given import with_variables
from byol_jax.nets.resnet import resnet, resnet18, resnet34, resnet50, resnet101, resnet152

__all__ = [
    "heads",
    "resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "small_cnn",
    "with_variables",
]
