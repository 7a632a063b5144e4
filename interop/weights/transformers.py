"""Torchvision's and timm's vision transformers by name: their keys and shapes, and one library's names for the other's.

Both compute the same function from the same tensors, so that only names change:

    encoder.layers.encoder_layer_3.ln_1.weight  ↔  blocks.3.norm1.weight        class_token  ↔  cls_token

Torchvision's older files have `mlp.linear_1` and `mlp.linear_2`. timm's other transformers (mean pooling, register
tokens, layer scale, norms of queries and keys) have keys that aren't here.
"""

import re
from collections.abc import Collection
from typing import NamedTuple

__all__ = ["TRANSFORMERS", "Transformer", "own_key", "timm_key", "torchvision_key", "transformer_shapes"]


class Transformer(NamedTuple):
    """A vision transformer's library, and the numbers that decide its shapes."""

    library: str
    patch_size: int
    depth: int
    width: int
    image_size: int = 224


_TORCHVISION = {
    "vit_b_16": (16, 12, 768),
    "vit_b_32": (32, 12, 768),
    "vit_l_16": (16, 24, 1024),
    "vit_l_32": (32, 24, 1024),
    "vit_h_14": (14, 32, 1280),
}
_TIMM = {
    "vit_tiny_patch16": (16, 12, 192),
    "vit_small_patch16": (16, 12, 384),
    "vit_small_patch32": (32, 12, 384),
    "vit_base_patch16": (16, 12, 768),
    "vit_base_patch32": (32, 12, 768),
    "vit_large_patch16": (16, 24, 1024),
    "vit_large_patch32": (32, 24, 1024),
}

TRANSFORMERS = {
    **{name: Transformer("torchvision", *numbers) for name, numbers in _TORCHVISION.items()},
    **{f"{name}_{size}": Transformer("timm", *numbers, size) for name, numbers in _TIMM.items() for size in (224, 384)},
    "vit_huge_patch14_224": Transformer("timm", 14, 32, 1280),
}
"""Source: torchvision.models.vision_transformer, timm.models.vision_transformer."""

_LEAVES = ("weight", "bias")
_MODULES = {"conv_proj": "patch_embed.proj", "encoder.ln": "norm", "heads.head": "head"}
_INNER = {
    "ln_1": "norm1",
    "self_attention.out_proj": "attn.proj",
    "ln_2": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.3": "mlp.fc2",
}
_TO_TIMM = {"class_token": "cls_token", "encoder.pos_embedding": "pos_embed"}
_TO_TIMM |= {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in _MODULES.items() for leaf in _LEAVES}
_LAYER_TO_TIMM = {f"{ours}.{leaf}": f"{theirs}.{leaf}" for ours, theirs in _INNER.items() for leaf in _LEAVES}
_LAYER_TO_TIMM |= {f"self_attention.in_proj_{leaf}": f"attn.qkv.{leaf}" for leaf in _LEAVES}
_FROM_TIMM = {theirs: ours for ours, theirs in _TO_TIMM.items()}
_LAYER_FROM_TIMM = {theirs: ours for ours, theirs in _LAYER_TO_TIMM.items()}
_OLD = {f"mlp.linear_{number}.{leaf}": f"mlp.{place}.{leaf}" for number, place in ((1, 0), (2, 3)) for leaf in _LEAVES}
"""Source: torchvision.models.vision_transformer.MLPBlock, which still reads them."""

_LAYER = re.compile(r"encoder\.layers\.encoder_layer_(\d+)\.(.+)")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def timm_key(key: str) -> str:
    """timm's name for what torchvision calls `key`; `key` where timm has no other.

    Example:
        >>> timm_key("encoder.layers.encoder_layer_3.self_attention.in_proj_bias")
        'blocks.3.attn.qkv.bias'
    """
    found = _LAYER.fullmatch(key)
    if found and found[2] in _LAYER_TO_TIMM:
        return f"blocks.{found[1]}.{_LAYER_TO_TIMM[found[2]]}"
    return _TO_TIMM.get(key, key)


def torchvision_key(key: str) -> str:
    """Torchvision's name for what timm, or an older torchvision, calls `key`; `key` where it has no other.

    Example:
        >>> torchvision_key("blocks.3.mlp.fc2.bias")
        'encoder.layers.encoder_layer_3.mlp.3.bias'
        >>> torchvision_key("encoder.layers.encoder_layer_3.mlp.linear_2.bias")
        'encoder.layers.encoder_layer_3.mlp.3.bias'
    """
    found = _BLOCK.fullmatch(key)
    if found and found[2] in _LAYER_FROM_TIMM:
        return f"encoder.layers.encoder_layer_{found[1]}.{_LAYER_FROM_TIMM[found[2]]}"
    found = _LAYER.fullmatch(key)
    if found and found[2] in _OLD:
        return f"encoder.layers.encoder_layer_{found[1]}.{_OLD[found[2]]}"
    return _FROM_TIMM.get(key, key)


def own_key(key: str, wanted: Collection[str]) -> str:
    """`key`, or torchvision's name for it where that one is wanted, and `key` isn't.

    Example:
        >>> own_key("cls_token", ["class_token"]), own_key("cls_token", ["cls_token"])
        ('class_token', 'cls_token')
    """
    ours = torchvision_key(key)
    return ours if ours in wanted and key not in wanted else key


def transformer_shapes(
    network: Transformer, *, channels: int = 3, num_classes: int | None = 1000, tokens: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Key to shape of a state dict, in its order; `num_classes=None` leaves the classifier out.

    Args:
        tokens: positions, the class token's included; those of the network's own image size where None.

    Example:
        >>> len(transformer_shapes(TRANSFORMERS["vit_base_patch16_224"]))
        152
    """
    size, width = network.patch_size, network.width
    tokens = (network.image_size // size) ** 2 + 1 if tokens is None else tokens
    shapes: dict[str, tuple[int, ...]] = {"class_token": (1, 1, width)}
    projection = _linear("conv_proj", (width, channels, size, size))
    positions = {"encoder.pos_embedding": (1, tokens, width)}
    shapes |= projection | positions if network.library == "torchvision" else positions | projection
    for index in range(network.depth):
        path = f"encoder.layers.encoder_layer_{index}"
        shapes |= _linear(f"{path}.ln_1", (width,))
        packed = _linear("", (3 * width, width))
        shapes |= {f"{path}.self_attention.in_proj_{leaf[1:]}": shape for leaf, shape in packed.items()}
        shapes |= _linear(f"{path}.self_attention.out_proj", (width, width)) | _linear(f"{path}.ln_2", (width,))
        shapes |= _linear(f"{path}.mlp.0", (4 * width, width)) | _linear(f"{path}.mlp.3", (width, 4 * width))
    shapes |= _linear("encoder.ln", (width,))
    if num_classes is not None:
        shapes |= _linear("heads.head", (num_classes, width))
    return shapes if network.library == "torchvision" else {timm_key(key): shape for key, shape in shapes.items()}


def _linear(path: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{path}.weight": shape, f"{path}.bias": shape[:1]}
