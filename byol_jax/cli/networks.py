"""The networks that have names: what `--network` may be, the encoder behind it, and what config.json says of it.

config.json's "network" is {"name": "resnet18", "channels": 3, "num_classes": 1000}, with other arguments of the
network's function where it was given any; of a torch module {"name": "torchvision:resnet18", "weights": null,
"channels": 3}, with "normalize" where its weights want another mean and standard deviation than ImageNet's; of any
network "remat": true where it has less memory that way. A torch module is traced once, and kept in the run's folder for
where there is no torch.

    make = find_network(options.network, options.weights)          # before data is opened: a wrong name costs nothing
    description, encoder = make(image_size=224, channels=3, seed=0, start=None)
    encoder_from(description, run=options.out)                     # and back, of a run that is opened later
"""

import argparse
import contextlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from byol_jax.errors import ConfigurationError, nearest

if TYPE_CHECKING:
    from byol_jax.types import Encoder

__all__ = [
    "ALL_NETWORKS",
    "NETWORKS",
    "SMALL_IMAGES",
    "NamedNetwork",
    "any_network_name",
    "check_network",
    "encoder_from",
    "find_network",
    "needs_network",
    "network_from",
    "network_name",
    "starts_random",
    "warn_of_layer",
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

ALL_NETWORKS = ", ".join((*NETWORKS, *(f"{library}:NAME" for library in LIBRARIES), "package.module:factory"))
"""What `--network` may be, for the help."""

READABLE_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz")


def network_name(word: str) -> str:
    """A converter for argparse: one of `NETWORKS`."""
    problem = _wrong_name(word)
    if problem:
        raise argparse.ArgumentTypeError(problem)
    return word


def any_network_name(word: str) -> str:
    """A converter for argparse: a native network's name, or a torch module's, which its library checks later."""
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


def check_network(options: argparse.Namespace, *, network: str | None) -> list[str]:
    """What is wrong with `--weights` and `--init-from` beside this network, as far as the command line tells."""
    weights = options.weights
    if options.init_from is None:
        choices = {"--which-weights": options.which_weights, "--prefix": options.prefix}
        problems = [f"{option} needs --init-from" for option, value in choices.items() if value is not None]
        if problems:
            return problems
    if network is None or weights is None:
        return []
    if Path(weights).suffix in READABLE_WEIGHTS or Path(weights).is_file():
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


class NamedNetwork(NamedTuple):
    """A network by name: what config.json says of it, and the encoder."""

    description: dict[str, Any]
    encoder: "Encoder"


def find_network(
    name: str, weights: str | None = None, *, options: Mapping[str, Any] | None = None, run: Path | None = None
) -> Callable[..., NamedNetwork]:
    """What makes a network, once it is known that there is one of this name and weights of that.

    Call it with `image_size`, `channels`, `seed` (of a torch module's weights) and `start` (the state dict that the
    encoder will start from, or None).

    Args:
        options: other arguments of a native network's function; `remat` of any network.
        run: the folder of a run that goes on: a torch module that it keeps is used, and torch isn't needed.

    Raises:
        ConfigurationError, MissingDependencyError: there is none, or the library isn't installed.
    """
    if ":" not in name:
        return partial(_make_native, name, options or {})
    if run is not None and _keeps_network(run):
        return partial(_load_kept, run, name, weights, options or {})
    import interop

    with _stdout_aside():
        return partial(_trace, name, weights, options or {}, interop.find_module(name, weights=weights))


def warn_of_layer(network: Mapping[str, Any], hidden_layer: int | str) -> None:
    """Says that the layer before the last isn't the pooled one, where the weights brought no classifier with them."""
    if hidden_layer == -2 and network.get("num_classes", ...) is None:
        warnings.warn(
            "the weights have no classifier, and so neither has the network: --hidden-layer -2 is a layer inside it; "
            "give -1 for its output, the pooled features, which -2 is where there is a classifier",
            stacklevel=2,
        )


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

        return _remat(network, interop.load_network(run_paths(run).network))
    if problem := _wrong_name(name):
        raise ConfigurationError(f"network {problem}")
    options = {key: value for key, value in network.items() if key not in NOT_ARGUMENTS}
    if name in RESNETS or name.endswith(SMALL_IMAGES):
        options["stem"] = "cifar" if name.endswith(SMALL_IMAGES) else "imagenet"
    return _remat(network, _function(name.removesuffix(SMALL_IMAGES))(**{"num_classes": None} | options))


NOT_ARGUMENTS = ("name", "channels", "weights", "normalize", "remat")
"""Of a description: what isn't an argument of a native network's function."""


def _remat(network: Mapping[str, Any], encoder: "Encoder") -> "Encoder":
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


def _make_native(
    name: str,
    options: Mapping[str, Any],
    *,
    image_size: Any,
    channels: int,
    seed: int,
    start: Mapping[str, Any] | None,
) -> NamedNetwork:
    network = network_from(name, channels, start) | dict(options)
    return NamedNetwork(network, encoder_from(network))


def _trace(
    name: str,
    weights: str | None,
    options: Mapping[str, Any],
    make_module: Callable[..., Any],
    *,
    image_size: Any,
    channels: int,
    seed: int,
    start: Mapping[str, Any] | None,
) -> NamedNetwork:
    import interop

    with _stdout_aside():
        module = make_module(channels=channels, image_size=image_size, seed=seed)
        with contextlib.redirect_stderr(io.StringIO()):  # torch.export prints the graph that it gives up at
            encoder = interop.from_torch_module(module, image_size=image_size, channels=channels)
    network = _describe_module(name, weights, channels, options) | _normalization(module, weights, channels)
    return NamedNetwork(network, _remat(network, encoder))


def _keeps_network(run: Path) -> bool:
    """Whether a run's folder has checkpoints and a traced network."""
    from byol_jax.runs.folder import has_checkpoint, run_paths

    paths = run_paths(run)
    return paths.network.is_dir() and has_checkpoint(paths)


def _load_kept(
    run: Path,
    name: str,
    weights: str | None,
    options: Mapping[str, Any],
    *,
    image_size: Any,
    channels: int,
    seed: int,
    start: Mapping[str, Any] | None,
) -> NamedNetwork:
    """The configuration is compared before the network is loaded, since that was traced for one size of images."""
    from byol_jax.runs.config import read_config, refuse_differences

    stored, network = read_config(run), _describe_module(name, weights, channels, options)
    if "normalize" in (own := stored.get("network") or {}):  # only the library knows it, and isn't asked
        network["normalize"] = own["normalize"]
    given = {"network": network, "image_size": image_size}
    refuse_differences(run, {key: stored.get(key) for key in given}, given)
    return NamedNetwork(network, encoder_from(network, run=run))


@contextlib.contextmanager
def _stdout_aside() -> Iterator[None]:
    """While inside, what others' code prints goes to stderr, since it is no result. What torch logs, it also raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(before)


def _describe_module(name: str, weights: str | None, channels: int, options: Mapping[str, Any]) -> dict[str, Any]:
    network = {"name": name, "weights": weights, "channels": channels}
    return network | ({"remat": True} if options.get("remat") else {})


def _normalization(module: Any, weights: str | None, channels: int) -> dict[str, Any]:
    """The mean and standard deviation that named weights were trained with, where they aren't ImageNet's.

    timm notes them in its modules; all that torchvision has are ImageNet's (0.29.1).
    """
    from byol_jax.settings import IMAGENET_MEAN_STD

    facts = getattr(module, "pretrained_cfg", None) or {}
    own = [list(facts[key]) for key in ("mean", "std") if facts.get(key) is not None]
    if weights is None or channels != 3 or len(own) != 2 or own == [list(part) for part in IMAGENET_MEAN_STD]:
        return {}
    return {"normalize": own}


def _wrong_name(name: str, known: str = ", ".join(NETWORKS)) -> str | None:
    """What is wrong with a native network's name, None where nothing is."""
    if name in NETWORKS:
        return None
    return f"{name!r} is not one of {known}; {nearest(name, NETWORKS, at_most=1)[0]} is the nearest"
