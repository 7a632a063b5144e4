"""A run's network: what config.json says of it, and the encoder behind that.

config.json's "network" is {"name": "resnet18", "channels": 3, "num_classes": 1000}, with other arguments of the
network's function where it was given any; of a torch module {"name": "torchvision:resnet18", "weights": null,
"channels": 3}, with "normalize" where its weights want another mean and standard deviation than ImageNet's; of any
network "remat": true where it has less memory that way. A torch module is traced once, and kept in the run's folder for
where there is no torch.

Loads nothing before a network is made: the command line's help has the names from here.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from byol_jax.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from byol_jax.types import Encoder

__all__ = [
    "LIBRARIES",
    "NETWORKS",
    "SMALL_IMAGES",
    "NamedNetwork",
    "as_described",
    "describe_module",
    "encoder_from",
    "keeps_network",
    "load_kept",
    "network_from",
    "normalization",
    "starts_random",
    "wrong_name",
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
"""Libraries that name their networks, and weights of them."""


class NamedNetwork(NamedTuple):
    """A network by name: what config.json says of it, and the encoder."""

    description: dict[str, Any]
    encoder: "Encoder"


def wrong_name(name: str, known: str = ", ".join(NETWORKS)) -> str | None:
    """What is wrong with a native network's name, None where nothing is."""
    if name in NETWORKS:
        return None
    return f"{name!r} is not one of {known}; {nearest(name, NETWORKS, at_most=1)[0]} is the nearest"


def starts_random(network: Mapping[str, Any]) -> bool:
    """Whether a configuration's network has random weights at first; of a factory that can't be told: no."""
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


def encoder_from(network: Mapping[str, Any], *, run: Path | None = None) -> "Encoder":
    """The encoder that a configuration's `network` describes.

    Args:
        run: the folder of the run, which keeps a torch module's.

    Raises:
        ConfigurationError: no such network.
        CheckpointFormatError: the torch module isn't in the folder, or is damaged.

    Example:
        >>> encoder_from({"name": "resnet18", "num_classes": 10, "padding": "same"}).hidden_layers()[-1]
        'fc'
    """
    name = str(network.get("name"))
    if ":" in name and run is not None:
        import interop
        from byol_jax.runs.folder import run_paths

        return as_described(network, interop.load_network(run_paths(run).network))
    if problem := wrong_name(name):
        raise ConfigurationError(f"network {problem}")
    options = {key: value for key, value in network.items() if key not in NOT_ARGUMENTS}
    if name in RESNETS or name.endswith(SMALL_IMAGES):
        options["stem"] = "cifar" if name.endswith(SMALL_IMAGES) else "imagenet"
    return as_described(network, _function(name.removesuffix(SMALL_IMAGES))(**{"num_classes": None} | options))


NOT_ARGUMENTS = ("name", "channels", "weights", "normalize", "remat")
"""Of a description: what isn't an argument of a native network's function."""


def as_described(network: Mapping[str, Any], encoder: "Encoder") -> "Encoder":
    """The encoder, with less memory where the description says so."""
    from byol_jax import nets

    return nets.with_remat(encoder) if network.get("remat") else encoder


def _function(name: str) -> Callable[..., "Encoder"]:
    """The function in `nets` that makes a native network."""
    from byol_jax import nets

    return {
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
    }[name]


def describe_module(name: str, weights: str | None, channels: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `config.json` says about a torch module, but for what only the module itself knows: `normalization`."""
    network = {"name": name, "weights": weights, "channels": channels}
    return network | ({"remat": True} if options.get("remat") else {})


def normalization(module: Any, weights: str | None, channels: int) -> dict[str, Any]:
    """The mean and standard deviation that named weights were trained with, where they aren't ImageNet's.

    timm notes them in its modules; all that torchvision has are ImageNet's (0.29.1).
    """
    from byol_jax.settings import IMAGENET_MEAN_STD

    facts = getattr(module, "pretrained_cfg", None) or {}
    own = [list(facts[key]) for key in ("mean", "std") if facts.get(key) is not None]
    if weights is None or channels != 3 or len(own) != 2 or own == [list(part) for part in IMAGENET_MEAN_STD]:
        return {}
    return {"normalize": own}


def keeps_network(run: Path) -> bool:
    """Whether a run's folder has checkpoints and a traced network."""
    from byol_jax.runs.folder import has_checkpoint, run_paths

    paths = run_paths(run)
    return paths.network.is_dir() and has_checkpoint(paths)


def load_kept(run: Path, network: dict[str, Any], *, image_size: Any) -> NamedNetwork:
    """The torch module that a run's folder keeps, if it is the one that `describe_module` describes.

    The configuration is compared before the network is loaded, since that was traced for one size of images.

    Raises:
        ConfigurationError: another network, or another size of images.
    """
    from byol_jax.runs.config import read_config, refuse_differences

    stored = read_config(run)
    if "normalize" in (own := stored.get("network") or {}):  # only the library knows it, and isn't asked
        network = network | {"normalize": own["normalize"]}
    given = {"network": network, "image_size": image_size}
    refuse_differences(run, {key: stored.get(key) for key in given}, given)
    return NamedNetwork(network, encoder_from(network, run=run))
