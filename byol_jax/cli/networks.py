"""The names that `--network` understands, and the encoder behind each. Nothing here trains or loads weights.

A network in a run's `config.json` is `{"name": "resnet18", "channels": 3, "num_classes": 1000}`.
"""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from byol_jax.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from byol_jax.types import Encoder

__all__ = ["NETWORKS", "encoder_from", "network_from", "network_name"]

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
SMALL_IMAGES = "-cifar"
"""Behind a ResNet's name: a 3x3 first convolution with stride 1 and no max-pool, for images of 32 pixels or so."""

NETWORKS = (*RESNETS, *(name + SMALL_IMAGES for name in RESNETS), "small_cnn")
"""Every name, in the order of the help."""


def network_name(word: str) -> str:
    """A converter for argparse: one of `NETWORKS`."""
    problem = _wrong_name(word)
    if problem:
        raise argparse.ArgumentTypeError(problem)
    return word


def network_from(name: str, channels: int, weights: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `config.json` says about a network; its classifier is as wide as that of the `weights` it starts from.

    The classifier isn't trained, it only has to fit: 1000 classes in a ResNet (torchvision's), 10 in small_cnn.
    """
    layer, usual = ("10", 10) if name == "small_cnn" else ("fc", 1000)  # small_cnn numbers its layers; the last is 10
    given = (weights or {}).get(f"{layer}.weight")
    num_classes = None if weights and given is None else usual if given is None else int(given.shape[0])
    return {"name": name, "channels": channels, "num_classes": num_classes}


def encoder_from(network: Mapping[str, Any]) -> "Encoder":
    """The encoder that a configuration's `network` describes.

    Raises:
        ConfigurationError: no such network.

    Example:
        >>> encoder_from({"name": "resnet18", "num_classes": 10}).hidden_layers()[-1]
        'fc'
    """
    from byol_jax import nets

    name, num_classes = str(network.get("name")), network.get("num_classes")
    if problem := _wrong_name(name):
        raise ConfigurationError(f"network {problem}")
    makers = {
        "resnet18": nets.resnet18,
        "resnet34": nets.resnet34,
        "resnet50": nets.resnet50,
        "resnet101": nets.resnet101,
        "resnet152": nets.resnet152,
    }
    if name == "small_cnn":
        return nets.small_cnn(num_classes=num_classes)
    stem = "cifar" if name.endswith(SMALL_IMAGES) else "imagenet"
    return makers[name.removesuffix(SMALL_IMAGES)](num_classes=num_classes, stem=stem)


def _wrong_name(name: str) -> str | None:
    """What is wrong with a network's name, None where nothing is."""
    if name in NETWORKS:
        return None
    if ":" in name:
        return (
            f"{name!r}: networks of torchvision, timm or a package of yours can't be named on the command line yet;"
            f" use one of {', '.join(NETWORKS)}, or byol_jax.pretrain in Python"
        )
    return f"{name!r} is not one of {', '.join(NETWORKS)}; {nearest(name, NETWORKS, at_most=1)[0]} is the nearest"
