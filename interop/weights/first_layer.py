"""A first layer's weights for images of other channels than the 3 that they were trained on, by timm's rule.

    C = 1     w' = w_red + w_green + w_blue
    else      w'_c = 3 / C · w_(c mod 3), c = 0 … C - 1

Grey images give what they gave as colour, and channels that are all equal to their mean as much as three were. Source:
`adapt_input_conv` of timm, 1.0.31. Nothing else of a network depends on the number of channels.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from interop.arrays import as_numpy

__all__ = [
    "COLOURS",
    "InflatedInputWarning",
    "find_first_layers",
    "inflate",
    "inflate_first_layers",
    "inflation_in_words",
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


def find_first_layers(given: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Names of convolutions that differ in having 3 input channels where another number is wanted, and in nothing else.

    Args:
        given, wanted: torch's names to torch's shapes.

    Example:
        >>> find_first_layers({"conv1.weight": (64, 3, 7, 7)}, {"conv1.weight": (64, 13, 7, 7)})
        ['conv1.weight']
    """
    return [
        name
        for name, shape in given.items()
        if len(shape) in (4, 5) and len(wanted.get(name, ())) == len(shape)
        if shape[1] == COLOURS != wanted[name][1] and shape[:1] + shape[2:] == wanted[name][:1] + wanted[name][2:]
    ]


def inflate_first_layers(
    state_dict: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Any], list[str]]:
    """The state dict with its first layers inflated to the shapes wanted, and a sentence on each of them."""
    found = find_first_layers({name: tuple(getattr(value, "shape", ())) for name, value in state_dict.items()}, wanted)
    inflated = {name: inflate(as_numpy(state_dict[name], name), wanted[name][1]) for name in found}
    return {**state_dict, **inflated}, [inflation_in_words(name, wanted[name][1]) for name in found]


def inflation_in_words(name: str, channels: int, *, trained: int = COLOURS) -> str:
    """What was done to the weights `name`, trained on images of `trained` channels, for a person.

    Example:
        >>> inflation_in_words("conv1.weight", 13)
        'conv1.weight is for 3 channels, and the images have 13: repeated in turns and scaled by 3/13, as timm does'
    """
    how = "summed" if channels == 1 else f"repeated in turns and scaled by {trained}/{channels}"
    return f"{name} is for {trained} channels, and the images have {channels}: {how}, as timm does"
