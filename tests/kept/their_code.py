"""What a user's own module may hold: a torch network's factory, a way to make views, a Flax network.

Runs and checkpoints under this folder name it; `make.py` and the tests put this folder in front of Python's path.
"""

from collections import OrderedDict

import jax
import jax.numpy as jnp

from byol_jax import augment

SIDE = 16


def make():
    """A small torch network with a layer called pool, for `--network their_code:make`."""
    from torch import nn

    layers = {
        "conv": nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        "norm": nn.BatchNorm2d(8),
        "relu": nn.ReLU(),
        "conv2": nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
        "norm2": nn.BatchNorm2d(12),
        "relu2": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(12, 5),
    }
    return nn.Sequential(OrderedDict(layers))


def views(key, image):
    """A crop, and a turn in half of all cases."""
    crop_key, flip_key = jax.random.split(key)
    image = augment.random_crop_and_resize(crop_key, image, size=SIDE, scale=(0.4, 1.0))
    return augment.random_flip_left_right(flip_key, image, p=0.5)


def darker_views(key, image):
    """The same, solarised in half of all cases."""
    solarize_key, view_key = jax.random.split(key)
    return augment.random_solarize(solarize_key, views(view_key, image), p=0.5)


def linen_network():
    """A small Flax module, by `byol_jax.from_linen`."""
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(8, (3, 3), strides=2, use_bias=False, name="conv")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
            x = jnp.mean(x, axis=(1, 2))
            return nn.Dense(6, name="features")(x)

    return Net()


def nnx_network():
    """A small NNX module, by `byol_jax.from_nnx`."""
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.features = nnx.Linear(8, 6, rngs=rngs)

        def __call__(self, x):
            return self.features(jnp.mean(nnx.relu(self.norm(self.conv(x))), axis=(1, 2)))

    return Net(nnx.Rngs(0))
