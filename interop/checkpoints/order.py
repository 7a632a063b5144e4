"""The order in which torch lists a module's tensors: by definition, where JAX sorts names as text.

A rule, not a table: it gives the order of torchvision's ResNets, of `torch.nn.Sequential` and of byol-pytorch's heads.
Networks that define their children otherwise get some other order; nothing but the eye depends on it.
"""

import re

__all__ = ["defined_order"]

LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""A layer's tensors: parameters first, then buffers."""

LAST = ("fc", "head", "heads")
"""Classifiers, defined last."""


def defined_order(key: str) -> tuple[tuple[int, int, int, str], ...]:
    """A sorting key for names joined by ".": numbers by value, `conv1, bn1, conv2, bn2, …`, the others, a classifier.

    Example:
        >>> sorted(["fc.weight", "layer1.0.bn1.bias", "layer1.0.conv1.weight", "bn1.weight"], key=defined_order)
        ['bn1.weight', 'layer1.0.conv1.weight', 'layer1.0.bn1.bias', 'fc.weight']
    """
    *branches, leaf = key.split(".")
    rank = LEAVES.index(leaf) if leaf in LEAVES else len(LEAVES)
    return (*(_branch(branch) for branch in branches), (0, rank, 0, leaf))


def _branch(name: str) -> tuple[int, int, int, str]:
    if name.isdecimal():
        return 0, int(name), 0, ""
    if pair := re.fullmatch(r"(conv|bn)(\d+)", name):
        return 1, int(pair[2]), int(pair[1] == "bn"), ""
    number = re.search(r"\d+$", name)
    return 3 if name in LAST else 2, 0, int(number[0]) if number else 0, name
