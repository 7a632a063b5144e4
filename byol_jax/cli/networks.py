"""The names that `--network` understands, and the encoder behind each. Nothing here trains or loads weights.

A network in a run's `config.json` is `{"name": "resnet18", "channels": 3, "num_classes": 1000}`, or
`{"name": "torchvision:resnet18", "weights": null, "channels": 3}`.
"""

import argparse
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byol_jax.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from byol_jax.types import Encoder

__all__ = [
    "ALL_NETWORKS",
    "NETWORKS",
    "any_network_name",
    "check_network",
    "encoder_from",
    "find_network",
    "needs_network",
    "network_from",
    "network_name",
    "starts_random",
]

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
SMALL_IMAGES = "-cifar"
"""Behind a ResNet's name: a 3x3 first convolution with stride 1 and no max-pool, for images of 32 pixels or so."""

VARIANTS = (
    *("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("resnet50_2x", "resnet200_2x"),
)
"""ResNets of other widths."""

TRANSFORMERS = ("vit_s16", "vit_b16", "vit_b32", "vit_l16")

NETWORKS = (*RESNETS, *(name + SMALL_IMAGES for name in RESNETS), *VARIANTS, *TRANSFORMERS, "small_cnn")
"""Every native network's name, in the order of the help."""

LIBRARIES = ("torchvision", "timm")
"""Those whose networks, and weights of them, have names."""

ALL_NETWORKS = ", ".join((*NETWORKS, *(f"{library}:NAME" for library in LIBRARIES), "package.module:factory"))
"""What `--network` may be, for the help."""

WEIGHT_FILES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz")


def network_name(word: str) -> str:
    """A converter for argparse: one of `NETWORKS`."""
    problem = _wrong_name(word)
    if problem:
        raise argparse.ArgumentTypeError(problem)
    return word


def any_network_name(word: str) -> str:
    """A converter for argparse: a native network's name, or one that only torch can say whether it exists."""
    library, colon, name = word.partition(":")
    if not colon:
        problem = _wrong_name(word, ALL_NETWORKS)
    elif library in LIBRARIES:
        problem = None if re.fullmatch(r"[\w.-]+", name) else f"{word!r} doesn't say which: {library}:NAME"
    else:
        is_factory = all(part.isidentifier() for part in (*library.split("."), name))
        problem = None if is_factory else f"{word!r} is neither {' nor '.join(ALL_NETWORKS.split(', ')[-3:])}"
    if problem:
        raise argparse.ArgumentTypeError(problem)
    return word


def check_network(options: argparse.Namespace) -> list[str]:
    """What is wrong with `--network`, `--weights` and `--init-from` together, as far as the words say."""
    network, weights = options.network, options.weights
    if network is None or weights is None:
        return []
    if Path(weights).suffix in WEIGHT_FILES or Path(weights).is_file():
        return [f"--weights {weights}: a name of the library's is wanted; give a file with --init-from"]
    if ":" not in network or network.partition(":")[0] not in LIBRARIES:
        libraries = " and ".join(LIBRARIES)
        return [f"--weights with --network {network}: only {libraries} name weights; give a file with --init-from"]
    if options.init_from is not None:
        return ["--weights and --init-from are both what the network starts from, give one of them"]
    return []


def needs_network(options: argparse.Namespace, *names: str) -> list[str]:
    """The complaint about each of these options that was given without `--network`."""
    given = () if options.network else names
    return [f"--{name.replace('_', '-')} needs --network" for name in given if getattr(options, name) is not None]


def find_network(name: str, weights: str | None = None) -> Callable[..., tuple[dict[str, Any], "Encoder"]]:
    """What makes a network, once it is known that there is one of this name and weights of that.

    Call it with `image_size`, `channels`, `seed` (of a torch module's weights) and `start` (the state dict that the
    encoder will start from, or None); it gives what `config.json` says, and the encoder.

    Raises:
        ConfigurationError, MissingDependencyError: there is none, or the library isn't installed.
    """
    if ":" not in name:
        return partial(_native, name)
    from byol_jax.cli.torch_networks import find_traced

    return find_traced(name, weights)


def _native(
    name: str, *, image_size: Any, channels: int, seed: int, start: Mapping[str, Any] | None
) -> tuple[dict[str, Any], "Encoder"]:
    network = network_from(name, channels, start)
    return network, encoder_from(network)


def starts_random(network: Mapping[str, Any]) -> bool:
    """Whether a configuration's network has random weights at first; what a factory does, nobody knows."""
    library, colon, _ = str(network.get("name")).partition(":")
    return not colon or (library in LIBRARIES and network.get("weights") is None)


def network_from(name: str, channels: int, weights: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `config.json` says about a native network; its classifier is as wide as in the `weights` it starts from.

    The classifier isn't trained, it only has to fit: 1000 classes (torchvision's), 10 in small_cnn.
    """
    layers, usual = (("heads.head", "head") if name in TRANSFORMERS else ("fc",)), 1000
    if name == "small_cnn":
        layers, usual = ("10",), 10  # it numbers its layers; the last is 10
    weights = weights or {}
    given = next((weights[f"{layer}.weight"] for layer in layers if f"{layer}.weight" in weights), None)
    num_classes = None if weights and given is None else usual if given is None else int(given.shape[0])
    return {"name": name, "channels": channels, "num_classes": num_classes}


def encoder_from(network: Mapping[str, Any]) -> "Encoder":
    """The encoder that a configuration's native `network` describes.

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
        "wide_resnet50_2": nets.wide_resnet50_2,
        "wide_resnet101_2": nets.wide_resnet101_2,
        "resnext50_32x4d": nets.resnext50_32x4d,
        "resnext101_32x8d": nets.resnext101_32x8d,
        "resnext101_64x4d": nets.resnext101_64x4d,
        "resnet50_2x": nets.resnet50_2x,
        "resnet200_2x": nets.resnet200_2x,
        "vit_s16": nets.vit_s16,
        "vit_b16": nets.vit_b16,
        "vit_b32": nets.vit_b32,
        "vit_l16": nets.vit_l16,
        "small_cnn": nets.small_cnn,
    }
    if name not in RESNETS and not name.endswith(SMALL_IMAGES):
        return makers[name](num_classes=num_classes)
    stem = "cifar" if name.endswith(SMALL_IMAGES) else "imagenet"
    return makers[name.removesuffix(SMALL_IMAGES)](num_classes=num_classes, stem=stem)


def _wrong_name(name: str, known: str = ", ".join(NETWORKS)) -> str | None:
    """What is wrong with a native network's name, None where nothing is."""
    if name in NETWORKS:
        return None
    return f"{name!r} is not one of {known}; {nearest(name, NETWORKS, at_most=1)[0]} is the nearest"
