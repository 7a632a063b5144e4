#!/usr/bin/env bash
# A vision transformer of transformers has one set of names in state_dict() and another in the file that its
# save_pretrained writes: of 24 arrays 16 are renamed on saving (layers.0.attention.q_proj.weight is
# encoder.layer.0.attention.attention.query.weight in the file) and back by from_pretrained, which takes files of either
# kind. load_state_dict(strict=False) of the model's own file takes a third of it, and its blocks stay random.
#
# transformers 5.24.0, torch 2.14.1, safetensors 0.8.0. The names in files are those of transformers 4; whoever writes
# files for it or reads them with something else can't learn them from the class. ResNetModel's are the same in both.
#
# Seen:  ViTModel: 24 arrays, 8 names in both; strict=False leaves 16   ResNetModel: 48, 48; 0   from_pretrained: equal
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 torch==2.14.1 safetensors==0.8.0 transformers==5.24.0
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" - <<'PYTHON'
import tempfile

import torch
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, ResNetModel, ViTConfig, ViTModel

VIT = ViTConfig(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
)
RESNET = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1])


def equal(model, other):
    return all(torch.equal(array, other.state_dict()[name]) for name, array in model.state_dict().items())


def compare(kind, config):
    """How many arrays, names that class and file share, arrays that load_state_dict leaves; whether both kinds load."""
    model = kind(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        file = load_file(f"{folder}/model.safetensors")
        own = equal(model, kind.from_pretrained(folder))
        save_file(model.state_dict(), f"{folder}/model.safetensors", metadata={"format": "pt"})
        by_class = equal(model, kind.from_pretrained(folder))
    left = kind(config).load_state_dict(file, strict=False).missing_keys
    return len(file), len(set(file) & set(model.state_dict())), len(left), own, by_class


vit, resnet = compare(ViTModel, VIT), compare(ResNetModel, RESNET)
print("arrays, shared names, left, from_pretrained of either file: ViTModel", vit, "  ResNetModel", resnet)
assert resnet == (48, 48, 0, True, True)
assert vit == (24, 8, 16, True, True), "this has changed"
PYTHON
