"""A torchvision ResNet-50 goes in, BYOL trains it on unlabelled images, an improved file for PyTorch comes out.

    python examples/01_torchvision_resnet.py

The weights are random here, so that nothing is downloaded; use weights="DEFAULT" for the real ones. The environment
variables lower size and length for a quick look.
"""

import os

import jax
import optax
import torch
from torchvision import models

import byol_jax
import interop
from byol_jax.settings import IMAGENET_MEAN_STD

IMAGE_SIZE = int(os.environ.get("BYOL_JAX_EXAMPLE_SIZE", "256"))
STEPS = int(os.environ.get("BYOL_JAX_EXAMPLE_STEPS", "100"))
BATCH_SIZE = int(os.environ.get("BYOL_JAX_EXAMPLE_BATCH", "20"))


def sample_unlabelled_images(step: int) -> jax.Array:
    """[N, H, W, C] in [0, 1]; noise here, your images there."""
    return jax.random.uniform(jax.random.key(step), (BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3))


def main() -> None:
    resnet = models.resnet50(weights=None)
    encoder = interop.from_torch_module(resnet, image_size=IMAGE_SIZE)

    learner = byol_jax.make_learner(encoder, image_size=IMAGE_SIZE, hidden_layer="avgpool", optimizer=optax.adam(3e-4))
    state = learner.init(jax.random.key(0))
    step = jax.jit(learner.step, donate_argnums=0)
    for number in range(STEPS):
        state, metrics = step(state, sample_unlabelled_images(number))
        print(f"step {number + 1}: loss {metrics['loss']:.4f}, spread {metrics['feature_std']:.4f}")

    written = interop.update_torch_module(resnet, byol_jax.encoder_variables(state))
    torch.save(resnet.state_dict(), "improved-net.pt")

    images = sample_unlabelled_images(0)
    resnet.eval()
    until_pool = torch.nn.Sequential(*list(resnet.children())[:-1], torch.nn.Flatten())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET_MEAN_STD)
    with torch.no_grad():
        features = until_pool((torch.tensor(jax.device_get(images)).permute(0, 3, 1, 2) - mean) / std)
    difference = abs(jax.device_get(learner.embed(state, images)) - features.numpy()).max()
    print(f"{len(written)} tensors written to improved-net.pt; features differ by at most {difference:.1e}")


if __name__ == "__main__":
    main()
