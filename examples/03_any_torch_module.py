"""Any torch.nn.Module goes in, here one with a layer of its own; the same module comes out, better.

    python examples/03_any_torch_module.py

Sizes and steps are lowered by the environment, for a quick look.
"""

import os

import jax
import optax
import torch
from torch import nn

import byol_jax
import interop

IMAGE_SIZE = int(os.environ.get("BYOL_JAX_EXAMPLE_SIZE", "64"))
STEPS = int(os.environ.get("BYOL_JAX_EXAMPLE_STEPS", "100"))
BATCH_SIZE = int(os.environ.get("BYOL_JAX_EXAMPLE_BATCH", "20"))


class Gated(nn.Module):
    """Convolution, group norm, and a gate by the mean over all pixels."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, outputs, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, outputs)
        self.gate = nn.Linear(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.gelu(self.norm(self.conv(x)))
        return x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]


def main() -> None:
    module = nn.Sequential(Gated(3, 16), Gated(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    print(interop.check(module, image_size=IMAGE_SIZE))

    encoder = interop.from_torch_module(module, image_size=IMAGE_SIZE)  # compared with torch before it is returned
    learner = byol_jax.make_learner(encoder, image_size=IMAGE_SIZE, hidden_layer=-2, optimizer=optax.adam(3e-4))
    state = learner.init(jax.random.key(0))
    step = jax.jit(learner.step, donate_argnums=0)
    for number in range(STEPS):
        images = jax.random.uniform(jax.random.key(number), (BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3))  # yours
        state, metrics = step(state, images)
        print(f"step {number + 1}: loss {metrics['loss']:.4f}, spread {metrics['feature_std']:.4f}")

    written = interop.update_torch_module(module, byol_jax.encoder_variables(state))
    torch.save(module.state_dict(), "improved-module.pt")
    print(f"{len(written)} tensors written to improved-module.pt")


if __name__ == "__main__":
    main()
