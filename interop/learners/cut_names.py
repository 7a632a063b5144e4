"""ResNets that were cut with `torch.nn.Sequential(*list(resnet.children())[:-1])`: indices instead of names.

    conv1, bn1, layer1 … layer4      torchvision's
    0,     1,   4 … 7                cut: ReLU and max pool, 2 and 3, have no tensors
    0,     1,   2 … 5                lightly's own network for CIFAR, without those two; its shortcuts are "shortcut"

A network without `layer1` and so on, and one that was a Sequential from the start, keeps its names.
"""

import re
from collections.abc import Callable, Collection

__all__ = ["FIRST_STAGE", "cut_name", "find_renaming", "whole_name"]

FIRST_STAGE = {"torchvision": 4, "lightly": 2}
"""The index of `layer1`."""

BLOCK = re.compile(r"(\d+)\.\d+\.(?:conv|bn)\d\..*")


def cut_name(key: str, first_stage: int = FIRST_STAGE["torchvision"]) -> str:
    """A torchvision name as a cut network has it.

    Example:
        >>> cut_name("layer1.0.downsample.0.weight"), cut_name("layer1.0.downsample.0.weight", 2)
        ('4.0.downsample.0.weight', '2.0.shortcut.0.weight')
    """
    first, _, rest = key.partition(".")
    if first in ("conv1", "bn1"):
        return f"{int(first == 'bn1')}.{rest}"
    if not re.fullmatch(r"layer\d+", first):
        return key
    if first_stage == FIRST_STAGE["lightly"]:
        rest = re.sub(r"^(\d+)\.downsample\.", r"\1.shortcut.", rest)
    return f"{int(first.removeprefix('layer')) - 1 + first_stage}.{rest}"


def whole_name(key: str, stages: Collection[int]) -> str:
    """The inverse of `cut_name`, for the indices that the stages have.

    Example:
        >>> whole_name("5.0.shortcut.1.bias", (4, 5))
        'layer2.0.downsample.1.bias'
    """
    first, _, rest = key.partition(".")
    if first in ("0", "1"):
        return f"{'conv1' if first == '0' else 'bn1'}.{rest}"
    rest = re.sub(r"^(\d+)\.shortcut\.", r"\1.downsample.", rest)
    if first.isdecimal() and int(first) in stages:
        return f"layer{sorted(stages).index(int(first)) + 1}.{rest}"
    return f"{first}.{rest}"


def find_renaming(given: Collection[str], wanted: Collection[str]) -> Callable[[str], str]:
    """What makes the backbone's keys `given` those that are `wanted`: cutting, its inverse, or nothing.

    Example:
        >>> find_renaming(["0.weight", "4.0.conv1.weight"], ["conv1.weight", "layer1.0.conv1.weight"])("0.weight")
        'conv1.weight'
    """
    stages = {int(found[1]) for key in given if (found := BLOCK.fullmatch(key))}
    if stages and "conv1.weight" in wanted:
        return lambda key: whole_name(key, stages)
    wanted_stages = {int(found[1]) for key in wanted if (found := BLOCK.fullmatch(key))}
    if wanted_stages and "conv1.weight" in given:
        return lambda key: cut_name(key, min(wanted_stages))
    return lambda key: re.sub(r"\.shortcut\.", ".downsample.", key) if "conv1.weight" in wanted else key
