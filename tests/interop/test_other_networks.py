"""What isn't read, by its own name: other networks of transformers, PyTorch's shards, folders, complex numbers."""

import json

import jax
import numpy as np
import pytest
import torch
from test_hugging_face import NETWORKS, stored

import interop
from byol_jax import nets
from byol_jax.errors import CheckpointFormatError, StateDictMismatchError
from interop.inspect.commands import inspect_file
from interop.weights.architectures import recognise

ANOTHER = "another network of Hugging Face transformers"
STEM = "embedder.embedder.convolution.weight"
BLOCK = "encoder.stages.0.layers.0"
PATCHES = "embeddings.patch_embeddings.projection.weight"
OTHERS = {
    "RegNetX": {STEM: (32, 3, 3, 3), f"{BLOCK}.layer.0.convolution.weight": (24, 32, 1, 1)},
    "RegNetY": {STEM: (32, 3, 3, 3), f"{BLOCK}.layer.2.attention.0.weight": (8, 24, 1, 1)},
    "DINOv2": {PATCHES: (8, 3, 14, 14), "encoder.layer.0.norm1.weight": (8,), "embeddings.mask_token": (1, 8)},
    "BEiT": {PATCHES: (8, 3, 16, 16), "encoder.layer.0.lambda_1": (8,)},
    "DeiT": {PATCHES: (8, 3, 16, 16), "embeddings.distillation_token": (1, 1, 8)},
}
"""Some names of each and their shapes, of transformers 4.57."""


@pytest.mark.parametrize("name", OTHERS)
def test_another_network_of_transformers_is_no_resnet_and_no_vit(name, tmp_path):
    arrays = {key: np.ones(shape, np.float32) for key, shape in OTHERS[name].items()}
    interop.save_state_dict(tmp_path / "model.safetensors", arrays)
    assert inspect_file(tmp_path / "model.safetensors")["kind"] == ANOTHER
    weights = interop.open_weights(tmp_path / "model.safetensors")
    assert weights.architecture.name == ANOTHER
    assert set(weights.network()) == set(arrays)
    encoder = nets.resnet18()
    like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), (32, 32, 3)))
    with pytest.raises(StateDictMismatchError, match=f"the file's network looks like {ANOTHER}, not resnet18; "):
        weights.variables(encoder, like=like)
    with pytest.raises(StateDictMismatchError, match=f"{len(arrays)} unexpected: em"):
        interop.from_torch_state_dict(arrays, like=like)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("renamed", [False, True])
def test_their_resnet_and_vit_are_still_known(network, renamed):
    shapes = {name: array.shape for name, array in stored(network, renamed=renamed).items()}
    family = "ResNet" if network.startswith("resnet") else "vision transformer"
    assert recognise(shapes) == f"{family}, Hugging Face transformers"


@pytest.mark.parametrize("legacy", [False, True])
def test_shards_in_pytorchs_format_are_named(legacy, tmp_path):
    """Hugging Face's older models."""
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for number, name in enumerate(names):
        torch.save({str(number): torch.ones(2)}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"0": names[0], "1": names[1]}}))
    with pytest.raises(CheckpointFormatError, match=rf"{names[0]} is in PyTorch's format, .* as safetensors"):
        interop.load_state_dict(index)


COMPLEX = {"conv1.weight": np.zeros((64, 3, 7, 7), np.complex64)}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, "like"])
def test_complex_numbers_are_refused_without_a_hint_that_fails(dtype):
    encoder = nets.resnet18(num_classes=None)
    like = encoder.init(jax.random.key(0), (32, 32, 3))
    given = interop.to_torch_state_dict(like) | COMPLEX
    with pytest.raises(StateDictMismatchError, match=r"conv1\.weight \(complex64 can't become float32\)$"):
        interop.from_torch_state_dict(given, like=like, dtype=dtype)
    both = given | {"bn1.weight": np.ones(64, np.float16)}
    words = r"bn1\.weight \(given float16, expected float32\).*--dtype float32" if dtype is None else "complex64 can't"
    with pytest.raises(StateDictMismatchError, match=words):
        interop.from_torch_state_dict(both, like=like, dtype=dtype)


def make_run(root):
    (root / "run/checkpoints/00000001").mkdir(parents=True)
    (root / "run/exported").mkdir()
    (root / "run/config.json").write_text("{}")
    interop.save_state_dict(root / "run/exported/encoder.safetensors", {"a": np.ones(1)})
    interop.save_state_dict(root / "run/checkpoints/00000001/arrays.safetensors", {"a": np.ones(1)})


@pytest.mark.parametrize("given", ["run", "run/checkpoints", "run/checkpoints/00000001", "run/exported"])
def test_a_run_or_a_part_of_it_means_what_it_exported(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path)
    with pytest.raises(CheckpointFormatError, match=r"; give .*run/exported/encoder\.safetensors$"):
        interop.open_weights(given)


def test_the_only_file_of_weights_in_a_folder_is_named(tmp_path):
    with pytest.raises(CheckpointFormatError, match=r"expected a weight file, or one \*\.safetensors\.index\.json$"):
        interop.load_state_dict(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointFormatError, match=r"give .*pytorch_model\.bin$"):
        interop.load_state_dict(tmp_path)
    interop.save_state_dict(tmp_path / "model.safetensors", {"a": np.ones(1)})
    with pytest.raises(CheckpointFormatError, match=r"give .*model\.safetensors$"):
        interop.load_state_dict(tmp_path)
    interop.save_state_dict(tmp_path / "other.safetensors", {"a": np.ones(1)})
    with pytest.raises(CheckpointFormatError, match="expected a weight file"):
        interop.load_state_dict(tmp_path)
