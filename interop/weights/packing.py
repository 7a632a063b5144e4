"""One tensor in torch, three leaves here: attention's query, key and value.

    X.in_proj_weight [3·D, D]  =  the rows of X.in_proj_weight[query], X.in_proj_weight[key], X.in_proj_weight[value]

and `X.in_proj_bias` the same. A leaf's key has the brackets until an array is written or read; no torch module has such
names. Rows are copied, nothing is computed.
"""

from collections.abc import Mapping

import numpy as np

__all__ = ["PARTS", "own_rows", "pack", "part_key", "whole_key"]

PARTS = ("query", "key", "value")
"""In the order of the rows. Source: `torch.nn.MultiheadAttention`; timm's `attn.qkv` has the same."""


def part_key(module: str, leaf: str, part: str) -> str:
    """The key of one part.

    Example:
        >>> part_key("encoder.self_attention", "weight", "key")
        'encoder.self_attention.in_proj_weight[key]'
    """
    return f"{module}.in_proj_{leaf}[{part}]"


def whole_key(key: str) -> str:
    """Torch's name of the tensor that `key` names a part of; of any other key, itself.

    Example:
        >>> whole_key("in_proj_bias[query]"), whole_key("fc.bias")
        ('in_proj_bias', 'fc.bias')
    """
    return key.rpartition("[")[0] if _part(key) else key


def pack(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict with the parts of each tensor put together, in the place of the first of them.

    Example:
        >>> parts = {part_key("x", "bias", part): np.full(2, number) for number, part in enumerate(PARTS)}
        >>> pack(parts)
        {'x.in_proj_bias': array([0, 0, 1, 1, 2, 2])}
    """
    wholes = {whole_key(key): key for key in arrays}
    together = {}
    for whole, key in wholes.items():
        parts = [arrays[f"{whole}[{part}]"] for part in PARTS] if whole != key else None
        together[whole] = arrays[key] if parts is None else np.concatenate(parts)
    return together


def own_rows(array: np.ndarray, key: str) -> np.ndarray:
    """The rows of the whole tensor that `key` names; all of them where it names no part. A view.

    Example:
        >>> own_rows(np.arange(6), "in_proj_bias[value]").tolist()
        [4, 5]
    """
    part = _part(key)
    if part is None:
        return array
    rows, first = len(array) // len(PARTS), PARTS.index(part)
    return array[first * rows : (first + 1) * rows]


def _part(key: str) -> str | None:
    return next((part for part in PARTS if key.endswith(f"[{part}]")), None)
