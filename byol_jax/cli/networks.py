"""The words of `--network` and of what goes with it: which there may be, and from them what makes the network.

    make = find_network(options.network, options.weights)          # before data is opened: a wrong name costs nothing
    description, encoder = make(image_size=224, channels=3, seed=0, start=None)

What config.json says of a network, and the way back from there, is in runs/network.py.
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
from typing import Any

from byol_jax.runs.network import (
    LIBRARIES,
    NETWORKS,
    NamedNetwork,
    as_described,
    describe_module,
    encoder_from,
    keeps_network,
    load_kept,
    network_from,
    normalization,
    wrong_name,
)

__all__ = [
    "ALL_NETWORKS",
    "any_network_name",
    "check_network",
    "find_network",
    "needs_network",
    "network_name",
    "warn_of_layer",
]

ALL_NETWORKS = ", ".join((*NETWORKS, *(f"{library}:NAME" for library in LIBRARIES), "package.module:factory"))
"""What `--network` may be, for the help."""

READABLE_WEIGHTS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".npz")


def network_name(word: str) -> str:
    """A converter for argparse: one of `NETWORKS`."""
    problem = wrong_name(word)
    if problem:
        raise argparse.ArgumentTypeError(problem)
    return word


def any_network_name(word: str) -> str:
    """A converter for argparse: a native network's name, or a torch module's, which its library checks later."""
    library, colon, name = word.partition(":")
    if not colon:
        problem = wrong_name(word, ALL_NETWORKS)
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
    if run is not None and keeps_network(run):
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
    network = describe_module(name, weights, channels, options) | normalization(module, weights, channels)
    return NamedNetwork(network, as_described(network, encoder))


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
    return load_kept(run, describe_module(name, weights, channels, options), image_size=image_size)


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
