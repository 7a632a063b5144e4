"""The names of a set of two shards."""

import os

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def names(folder):
    return sorted(os.listdir(folder))
