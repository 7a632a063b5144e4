"""Torch modules by name: the weights that were asked for, the seed's where none were, and sizes that are built in.

What can go wrong is in tests/cli/test_torch_networks_wrong.py.
"""

import pytest
import safetensors.torch
import timm
import torch

from interop.trace.modules import torch_module
from interop.weights.first_layer import InflatedInputWarning


def test_weights_that_timm_names(monkeypatch, tmp_path):
    """Found where its hub keeps what it downloaded: by tag, by DEFAULT, and made fit for grey images."""
    module = timm.create_model("test_resnet")
    folder = tmp_path / "models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    safetensors.torch.save_file(module.state_dict(), folder / "snapshots" / "abc" / "model.safetensors")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, weights in (
        ("test_resnet", "DEFAULT"),
        ("test_resnet", "r160_in1k"),
        ("test_resnet.r160_in1k", "DEFAULT"),
    ):
        loaded = torch_module(f"timm:{name}", weights=weights, seed=1).state_dict()
        assert all(torch.equal(tensor, loaded[key]) for key, tensor in module.state_dict().items())
    with pytest.warns(InflatedInputWarning, match="summed, as timm does"):
        grey = torch_module("timm:test_resnet", weights="DEFAULT", channels=1).conv1[0].weight
    torch.testing.assert_close(grey, module.conv1[0].weight.sum(1, keepdim=True))
    random = torch_module("timm:test_resnet.r160_in1k").fc.weight  # a tag alone is an architecture
    assert not torch.equal(random, module.fc.weight)


def test_weights_follow_the_seed_and_disturb_nothing():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (torch_module("timm:test_resnet", seed=seed).fc.weight for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_size_is_built_into_networks_that_have_one():
    module = torch_module("timm:test_vit", image_size=(32, 64), channels=1)
    assert module(torch.zeros(1, 1, 32, 64)).shape == (1, 1000)


@pytest.mark.slow
def test_the_size_is_built_into_torchvisions_transformers():
    positions = torch_module("torchvision:vit_b_32", image_size=(64, 64)).encoder.pos_embedding
    assert positions.shape == (1, 1 + 2 * 2, 768)
