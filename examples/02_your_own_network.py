"""BYOL around a Flax module of your own, with your own augmentation, on the images of a NumPy array.

python examples/02_your_own_network.py
"""

import os

import flax.linen as nn
import jax
import numpy as np
import optax

import byol_jax
from byol_jax import augment

IMAGE_SIZE = int(os.environ.get("BYOL_JAX_EXAMPLE_SIZE", "64"))
STEPS = int(os.environ.get("BYOL_JAX_EXAMPLE_STEPS", "100"))


class Network(nn.Module):
    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = nn.Conv(32, (3, 3), strides=2, use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.relu(nn.Conv(64, (3, 3), strides=2)(x))
        return x.mean(axis=(1, 2))


def main() -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    learner = byol_jax.make_learner(
        byol_jax.from_linen(Network()),
        image_size=IMAGE_SIZE,
        hidden_layer=-1,
        augment_fn=augment.compose(
            lambda key, image: augment.random_crop_and_resize(key, image, size=IMAGE_SIZE, scale=(0.4, 1.0)),
            lambda key, image: augment.random_flip_left_right(key, image, p=0.5),
        ),
        optimizer=optax.adam(1e-3),
    )
    state = learner.init(jax.random.key(0))
    step = jax.jit(learner.step, donate_argnums=0)
    for number in range(STEPS):
        state, metrics = step(state, images[(number % 2) * 32 :][:32])
    print(f"loss {metrics['loss']:.4f}; embeddings {learner.embed(state, images).shape}")


if __name__ == "__main__":
    main()
