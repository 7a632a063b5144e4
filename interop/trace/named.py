"""Torch modules by name, for command lines: "torchvision:resnet50", "timm:convnext_tiny", "package.module:factory"."""

import importlib
from typing import Any

from byol_jax.errors import ConfigurationError, MissingDependencyError, nearest
from interop.arrays import import_torch

__all__ = ["torch_module"]


def torch_module(name: str, *, weights: str | None = None, channels: int = 3) -> Any:
    """The module that `name` stands for, freshly made.

    Args:
        name: "torchvision:" or "timm:" and what the library calls it, or "package.module:factory": a function (or
            class) without arguments that returns a `torch.nn.Module`; its code runs.
        weights: what the library names: torchvision's "DEFAULT" or "IMAGENET1K_V2", timm's pretrained tag such as
            "a1_in1k", or "DEFAULT"; the library may download them. None: random.
        channels: of the images; only timm makes networks for others than 3.

    Raises:
        ConfigurationError: no such network, weights, module or factory; or it gives something else.
        MissingDependencyError: the library isn't installed.

    Example:
        >>> type(torch_module("torchvision:resnet18")).__name__
        'ResNet'
    """
    import_torch()
    library, _, rest = name.partition(":")
    if library == "torchvision":
        return _from_torchvision(rest, weights)
    if library == "timm":
        return _from_timm(rest, weights, channels)
    return _from_factory(library, rest, weights)


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(f"networks of {name} need it installed: pip install {name}") from error


def _from_torchvision(name: str, weights: str | None) -> Any:
    models = _library("torchvision").models
    names = models.list_models(module=models)
    _check_name("torchvision", name, names)
    try:
        return models.get_model(name, weights=weights)
    except (KeyError, ValueError) as error:
        known = ", ".join(("DEFAULT", *models.get_model_weights(name).__members__))
        raise ConfigurationError(f"torchvision:{name} has no weights {weights!r}: use one of {known}") from error


def _from_timm(name: str, weights: str | None, channels: int) -> Any:
    timm = _library("timm")
    _check_name("timm", name, timm.list_models())
    tag = "" if weights in (None, "DEFAULT") else f".{weights}"
    if tag and f"{name}{tag}" not in timm.list_pretrained():
        known = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
        raise ConfigurationError(f"timm:{name} has no weights {weights!r}: use one of {', '.join(['DEFAULT', *known])}")
    return timm.create_model(f"{name}{tag}", pretrained=weights is not None, in_chans=channels)


def _check_name(library: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise ConfigurationError(
            f"{library} has no network {name!r}: the nearest are {', '.join(nearest(name, names, at_most=3))}"
        )


def _from_factory(path: str, factory: str, weights: str | None) -> Any:
    torch = import_torch()
    if weights is not None:
        raise ConfigurationError("weights by name are torchvision's or timm's: give a file of them instead")
    try:
        made = getattr(importlib.import_module(path), factory)()
    except ImportError as error:
        raise ConfigurationError(f"{path}:{factory}: {path} can't be imported ({error})") from error
    except AttributeError as error:
        raise ConfigurationError(f"{path}:{factory}: {error}") from error
    except TypeError as error:
        raise ConfigurationError(f"{path}:{factory} must be callable without arguments ({error})") from error
    if not isinstance(made, torch.nn.Module):
        raise ConfigurationError(f"{path}:{factory} gave a {type(made).__name__}: expected a torch.nn.Module")
    return made
