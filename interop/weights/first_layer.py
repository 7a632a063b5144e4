"""A first layer's weights for images of other channels than the 3 that they were trained on, by timm's rule.

    C = 1     w' = w_red + w_green + w_blue
    else      w'_c = 3 / C · w_(c mod 3), c = 0 … C - 1

Grey images give what they gave as colour, and channels that are all equal to their mean as much as three were. Source:
`adapt_input_conv` of timm, 1.0.31. Nothing else of a network depends on the number of channels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from byol_jax.errors import ConfigurationError
from interop.arrays import as_numpy

__all__ = [
    "COLOURS",
    "InflatedInputWarning",
    "check_choice",
    "find_first_layers",
    "inflate",
    "inflate_first_layers",
    "inflation_hint",
    "inflation_in_words",
    "shapes_of",
]

COLOURS = 3
"""Channels that are inflated: red, green and blue."""


class InflatedInputWarning(UserWarning):
    """Weights of a first layer for 3 channels were made to fit a network of another number; the text says how."""


def inflate(weight: np.ndarray, channels: int) -> np.ndarray:
    """A convolution's weight `[O, 3, *kernel]` as `[O, channels, *kernel]`, in its own dtype, by the rule above.

    Computed in float32 at least and rounded once.

    Example:
        >>> inflate(np.array([1.0, 2.0, 4.0]).reshape(1, 3, 1, 1), 4).ravel().tolist()
        [0.75, 1.5, 3.0, 0.75]
    """
    wide = weight.astype(np.result_type(weight.dtype, np.float32) if weight.dtype.kind == "f" else np.float32)
    if channels == 1:
        return wide.sum(axis=1, keepdims=True).astype(weight.dtype)
    turns = wide[:, np.arange(channels) % COLOURS]  # [O, channels, *kernel]
    return (turns * np.asarray(COLOURS / channels, turns.dtype)).astype(weight.dtype)


def check_choice(first_layer: str) -> None:
    """Refuses what isn't "keep" or "inflate".

    Raises:
        ConfigurationError: see above.
    """
    if first_layer not in ("keep", "inflate"):
        raise ConfigurationError(f'first_layer {first_layer!r} isn\'t known: use "keep" or "inflate"')


def find_first_layers(
    given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], *, channels: int | None = None
) -> list[str]:
    """Names of the convolutions that the images go into, where they have 3 inputs and C are wanted, and fit otherwise.

    A network of images of 3 channels has none: where another of its layers has 3 inputs, that is a width.

    Args:
        given, wanted: torch's names to torch's shapes.
        channels: C of the images. None: not known; then C is the number in which the layers differ that do, if it is
            one, and if no layer that is wanted has 3 inputs.

    Example:
        >>> find_first_layers({"conv1.weight": (64, 3, 7, 7)}, {"conv1.weight": (64, 13, 7, 7)})
        ['conv1.weight']
    """
    inputs = {name: shape[1] for name, shape in wanted.items() if len(shape) in (4, 5)}
    found = [
        name
        for name, shape in given.items()
        if name in inputs and len(shape) == len(wanted[name])
        if shape[1] == COLOURS != inputs[name] and shape[:1] + shape[2:] == wanted[name][:1] + wanted[name][2:]
    ]
    if channels is not None:
        return [name for name in found if inputs[name] == channels]
    numbers = {inputs[name] for name in found}
    return found if len(numbers) == 1 and COLOURS not in inputs.values() else []


def inflate_first_layers(
    state_dict: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]], *, channels: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """The state dict with its first layers inflated to the shapes wanted, and a sentence on each of them."""
    found = find_first_layers(shapes_of(state_dict), wanted, channels=channels)
    inflated = {name: inflate(as_numpy(state_dict[name], name), wanted[name][1]) for name in found}
    return {**state_dict, **inflated}, [inflation_in_words(name, wanted[name][1]) for name in found]


def shapes_of(state_dict: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each of its arrays; () of anything else."""
    return {name: tuple(getattr(value, "shape", ())) for name, value in state_dict.items()}


def inflation_hint(names: Sequence[str]) -> str:
    """What makes these first layers fit, for a person; "" where there are none.

    Example:
        >>> inflation_hint(["conv1.weight"])
        'first_layer="inflate" makes conv1.weight fit, as timm does (train and embed --init-from do)'
    """
    return (
        f'first_layer="inflate" makes {", ".join(names)} fit, as timm does (train and embed --init-from do)'
        if names
        else ""
    )


def inflation_in_words(name: str, channels: int, *, trained: int = COLOURS) -> str:
    """What was done to the weights `name`, trained on images of `trained` channels, for a person.

    Example:
        >>> inflation_in_words("conv1.weight", 13)
        'conv1.weight is for 3 channels, and the images have 13: repeated in turns and scaled by 3/13, as timm does'
    """
    how = "summed" if channels == 1 else f"repeated in turns and scaled by {trained}/{channels}"
    return f"{name} is for {trained} channels, and the images have {channels}: {how}, as timm does"
