"""Networks that are torch modules: made by name where torch is, and kept in a run's folder for where it isn't."""

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from byol_jax.runs.config import read_config, refuse_differences
from byol_jax.runs.folder import run_paths
from byol_jax.settings import IMAGENET_MEAN_STD
from byol_jax.types import Encoder

__all__ = ["find_kept", "find_traced", "load_kept"]


def find_traced(name: str, weights: str | None) -> Callable[..., tuple[dict[str, Any], Encoder]]:
    """`find_network` for a torch module."""
    import interop

    with _aside():
        return partial(_traced, name, weights, interop.find_module(name, weights=weights))


def find_kept(run: Path, name: str, weights: str | None) -> Callable[..., tuple[dict[str, Any], Encoder]] | None:
    """The same from the folder of a run that has checkpoints and keeps its network: torch isn't needed to go on.

    None where there is no such run. The configuration is compared before the network is loaded, since that was traced
    for one size of images.
    """
    paths = run_paths(run)
    if not paths.network.is_dir() or not any(paths.checkpoints.glob("*/manifest.json")):
        return None
    return partial(_kept, run, name, weights)


def load_kept(run: Path) -> Encoder:
    """The network that a run's folder keeps.

    Raises:
        CheckpointFormatError: there is none, or it is damaged.
    """
    import interop

    return interop.load_network(run_paths(run).network)


def _traced(
    name: str,
    weights: str | None,
    make_module: Callable[..., Any],
    *,
    image_size: Any,
    channels: int,
    seed: int,
    start: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], Encoder]:
    import interop

    with _aside():
        module = make_module(channels=channels, image_size=image_size, seed=seed)
        with contextlib.redirect_stderr(io.StringIO()):  # torch.export prints the graph that it gives up at
            encoder = interop.from_torch_module(module, image_size=image_size, channels=channels)
    return _description(name, weights, channels) | _normalization(module, weights, channels), encoder


def _kept(
    run: Path,
    name: str,
    weights: str | None,
    *,
    image_size: Any,
    channels: int,
    seed: int,
    start: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], Encoder]:
    stored, network = read_config(run), _description(name, weights, channels)
    if "normalize" in (own := stored.get("network") or {}):  # only the library knows it, which isn't asked
        network["normalize"] = own["normalize"]
    given = {"network": network, "image_size": image_size}
    refuse_differences(run, {key: stored.get(key) for key in given}, given)
    return network, load_kept(run)


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """Meanwhile what others' code prints goes to stderr: it is no result. What torch logs, it also raises."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(before)


def _description(name: str, weights: str | None, channels: int) -> dict[str, Any]:
    return {"name": name, "weights": weights, "channels": channels}


def _normalization(module: Any, weights: str | None, channels: int) -> dict[str, Any]:
    """The mean and standard deviation that named weights were trained with, where they aren't ImageNet's.

    timm notes them in its modules; all that torchvision has are ImageNet's (0.29.1).
    """
    facts = getattr(module, "pretrained_cfg", None) or {}
    own = [list(facts[key]) for key in ("mean", "std") if facts.get(key) is not None]
    if weights is None or channels != 3 or len(own) != 2 or own == [list(part) for part in IMAGENET_MEAN_STD]:
        return {}
    return {"normalize": own}
