"""Torch modules by name: "torchvision:resnet50", "timm:convnext_tiny", "package.module:factory".

In two steps: `find_module` checks that library, name and weights exist, and runs next to nothing; the function that it
returns makes the module. Nothing is traced here.
"""

import contextlib
import difflib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from byol_jax.errors import ConfigurationError, MissingDependencyError, nearest, one_line
from interop.arrays import import_torch
from interop.trace.export import example_batch
from interop.trace.input_channels import say_what_timm_did, with_input_channels
from interop.trace.side_effects import copy_module, in_mode

__all__ = ["find_module", "torch_module"]

DEFAULT = "DEFAULT"
"""torchvision's word for its best weights of a network; here timm's too."""


def torch_module(
    name: str,
    *,
    weights: str | None = None,
    channels: int = 3,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
) -> Any:
    """The module that `name` stands for, freshly made.

    Args:
        name: "torchvision:" or "timm:" and what the library calls it, or "package.module:factory": a function (or
            class) without arguments that returns a `torch.nn.Module`; its code runs. The current folder is searched
            first, as `python -m` does.
        weights: what the library names: torchvision's "DEFAULT" or "IMAGENET1K_V2", timm's "DEFAULT" or a tag such as
            "a1_in1k"; the library may download them. None: random.
        channels: of the images. timm makes networks for any number; of torchvision's the first convolution is replaced;
            a factory decides by itself. Weights for 3 channels are inflated to others, as timm does, and that is said.
        image_size: of the images, for networks that have it built in: some of timm's, torchvision's vision
            transformers (square, and without weights, which have their own). The module is tried with it.
        seed: of random weights. torch's own random state is as it was afterwards.

    Warns:
        InflatedInputWarning: weights for 3 channels were made to fit others.

    Raises:
        ConfigurationError: no such network, weights, module or factory; it can't be made, gives something else, or
            doesn't take such images.
        MissingDependencyError: the library isn't installed.

    Example:
        >>> type(torch_module("torchvision:resnet18")).__name__
        'ResNet'
    """
    return find_module(name, weights=weights)(channels=channels, image_size=image_size, seed=seed)


def find_module(name: str, *, weights: str | None = None) -> Callable[..., Any]:
    """A function of channels, image_size and seed that makes the module; library, name and weights are known to exist.

    Args:
        name, weights: as in `torch_module`, whose other arguments the function takes by keyword.

    Raises: as `torch_module` does, for what can be known before the module is made.

    Example:
        >>> make = find_module("torchvision:resnet18")
        >>> make(channels=3, image_size=32, seed=0).fc.in_features
        512
    """
    import_torch()
    library, _, rest = name.partition(":")
    find = {"torchvision": _in_torchvision, "timm": _in_timm}.get(library)
    construct = _factory(library, rest, weights) if find is None else find(rest, weights)
    return partial(_make, name, weights, construct)


def _make(
    name: str,
    weights: str | None,
    construct: Callable[..., Any],
    *,
    channels: int,
    image_size: int | tuple[int, int] | None,
    seed: int,
) -> Any:
    torch = import_torch()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed accelerators too
        try:
            module = construct(channels=channels, image_size=image_size)
        except ConfigurationError:
            raise
        except (Exception, SystemExit) as error:  # a library's or a user's code: anything
            what = "failed" if weights is None else f"with weights {weights!r} failed"
            raise ConfigurationError(f"{name} {what}: {_describe(error)}") from error
        if not isinstance(module, torch.nn.Module):
            raise ConfigurationError(f"{name} gave a {type(module).__name__}: expected a torch.nn.Module")
        if image_size is not None:
            _try(torch, name, module, image_size, channels)
    return module


def _try(torch: Any, name: str, module: Any, image_size: int | tuple[int, int], channels: int) -> None:
    """Runs a copy once: its own error about sizes says more than torch.export's would."""
    batch = example_batch(torch, module, image_size, channels, None)
    try:
        with torch.no_grad():
            in_mode(copy_module(module), False)(batch)
    except Exception as error:
        height, width = batch.shape[2:]
        raise ConfigurationError(
            f"{name} can't take images of {height} x {width} x {channels} ({_describe(error)}):"
            " give another image size or number of channels"
        ) from error


def _in_torchvision(name: str, weights: str | None) -> Callable[..., Any]:
    models = _library("torchvision").models
    _check_name("torchvision", name, models.list_models(module=models))
    if weights is not None:
        _check_weights(f"torchvision:{name}", weights.rpartition(".")[2], models.get_model_weights(name).__members__)

    def construct(*, channels: int, image_size: Any) -> Any:
        sides = {image_size} if isinstance(image_size, int) else set(image_size or ())
        built_in = len(sides) == 1 and weights is None and name.startswith("vit_")
        size = {"image_size": sides.pop()} if built_in else {}
        module = models.get_model(name, weights=weights, **size)
        if channels == 3:
            return module
        return with_input_channels(f"torchvision:{name}", module, channels, has_weights=weights is not None)

    return construct


def _in_timm(name: str, weights: str | None) -> Callable[..., Any]:
    timm = _library("timm")
    bare, _, tag = name.partition(".")
    _check_name("timm", bare, timm.list_models())
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{bare}.*")]
    if tag and weights not in (None, DEFAULT, tag):
        raise ConfigurationError(f"timm:{name} names its weights already: {weights!r} can't be given as well")
    tag = tag or ("" if weights in (None, DEFAULT) else str(weights))
    if tag or weights is not None:
        _check_weights(f"timm:{bare}", tag or DEFAULT, [DEFAULT, *tags] if tags else [])
    full = f"{bare}.{tag}" if tag and tag != DEFAULT else bare
    settings = timm.get_pretrained_cfg(full, allow_unregistered=True)

    def construct(*, channels: int, image_size: Any) -> Any:
        built_in = image_size is not None and settings is not None and settings.fixed_input_size
        size = {"img_size": image_size} if built_in else {}
        module = timm.create_model(full, pretrained=weights is not None, in_chans=channels, **size)
        if weights is not None:
            say_what_timm_did(f"timm:{name}", module, channels)
        return module

    return construct


def _factory(path: str, factory: str, weights: str | None) -> Callable[..., Any]:
    name = f"{path}:{factory}"
    if weights is not None:
        raise ConfigurationError(f"{name}: only torchvision and timm name weights: give a file of them instead")
    with _current_folder():
        try:
            module = importlib.import_module(path)
        except (Exception, SystemExit) as error:
            raise ConfigurationError(f"{name}: {_import_problem(path, error)}") from error
    function = getattr(module, factory, None)
    if function is None:
        known = nearest(factory, [word for word in vars(module) if not word.startswith("_")], at_most=3)
        raise ConfigurationError(f"{name}: {path} has no {factory}; the nearest are {', '.join(known) or 'none'}")
    if not callable(function) or isinstance(function, import_torch().nn.Module):
        kind = type(function).__name__
        raise ConfigurationError(f"{name} is a {kind}: expected a function without arguments that returns a module")

    def construct(*, channels: int, image_size: Any) -> Any:
        with _current_folder():  # a factory may import, too
            return function()

    return construct


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Inside the context imports look in the current folder first, as under `python -m`, unless -P forbids it."""
    folder = os.getcwd()
    if sys.flags.safe_path or folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _import_problem(path: str, error: BaseException) -> str:
    if not isinstance(error, ModuleNotFoundError) or not f"{path}.".startswith(f"{error.name}."):
        return f"{path} can't be imported ({_describe(error)})"
    alike = difflib.get_close_matches(path, ("torchvision", "timm"), n=1)
    hint = f"; the nearest library is {alike[0]}" if alike else ""
    return f"there is no module {error.name}, neither in the current folder nor among the installed packages{hint}"


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # one that doesn't fit the installed torch raises more than ImportError
        raise MissingDependencyError(f"networks of {name} need it: pip install {name} ({_describe(error)})") from error


def _check_name(library: str, name: str, names: Iterable[str]) -> None:
    names = list(names)
    if name not in names:
        alike = ", ".join(nearest(name, names, at_most=3))
        raise ConfigurationError(f"{library} has no network {name!r}: the nearest are {alike}")


def _check_weights(name: str, weights: str, known: Iterable[str]) -> None:
    known = list(known)
    if weights not in known:
        use = f"use one of {', '.join(nearest(weights, known))}" if known else "there are none for this network"
        raise ConfigurationError(f"{name} has no weights {weights!r}: {use}")


def _describe(error: BaseException) -> str:
    """An error's type and text, in one line."""
    kind = type(error).__name__
    return f"{kind}: {one_line(error, at_most=300)}" if str(error) else kind
