"""The names of Hugging Face's transformers for a ResNet and a vision transformer, as torchvision's.

    resnet.encoder.stages.1.layers.0.layer.2.convolution.weight   ->   layer2.0.conv3.weight
    vit.encoder.layer.3.attention.attention.query.bias            ->   a third of ….self_attention.in_proj_bias

The first segment is absent in the networks without a classifier. A vision transformer's layers have other names in
files than in transformers 5's `state_dict()` (`vit.layers.3.attention.q_proj.bias`); both are read. The pooler and the
token of masked patches have no place in torchvision's network. Its layer norms add 1e-6 to the variance, transformers'
1e-12, as its configuration has it. Source: transformers 4.57.3 and 5.24.0, `models/resnet` and `models/vit`.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from byol_jax.errors import StateDictMismatchError
from interop.arrays import as_numpy
from interop.weights.packing import PARTS, pack, part_key, whole_key

__all__ = ["HUGGING_FACE", "is_another", "is_hugging_face", "left_out", "torchvision_arrays", "torchvision_name"]

HUGGING_FACE = {
    "ResNet, Hugging Face transformers": re.compile(r"(resnet\.)?embedder\.embedder\.convolution\.weight"),
    "vision transformer, Hugging Face transformers": re.compile(
        r"(vit\.)?embeddings\.patch_embeddings\.projection\.weight"
    ),
}
"""What the networks are called, by a name that no other library has."""

_STEM = re.compile(r"(?:resnet\.)?embedder\.embedder\.(convolution|normalization)\.(\w+)")
_BLOCK = re.compile(
    r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|(shortcut))\.(convolution|normalization)\.(\w+)"
)
_LAYER = re.compile(r"(?:vit\.)?(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)")
_INNER = {
    "attention.output.dense": "self_attention.out_proj",
    "attention.o_proj": "self_attention.out_proj",
    "intermediate.dense": "mlp.0",
    "mlp.fc1": "mlp.0",
    "output.dense": "mlp.3",
    "mlp.fc2": "mlp.3",
    "layernorm_before": "ln_1",
    "layernorm_after": "ln_2",
}
_PARTS = {f"attention.attention.{part}": part for part in ("query", "key", "value")}
_PARTS |= {f"attention.{part[0]}_proj": part for part in ("query", "key", "value")}
_OUTER = {
    "embeddings.cls_token": "class_token",
    "embeddings.position_embeddings": "encoder.pos_embedding",
    **{f"embeddings.patch_embeddings.projection.{leaf}": f"conv_proj.{leaf}" for leaf in ("weight", "bias")},
    **{f"layernorm.{leaf}": f"encoder.ln.{leaf}" for leaf in ("weight", "bias")},
    **{f"classifier.{leaf}": f"heads.head.{leaf}" for leaf in ("weight", "bias")},
    **{f"classifier.1.{leaf}": f"fc.{leaf}" for leaf in ("weight", "bias")},
}
_BODY = re.compile(r"(?:resnet\.|vit\.)?(?:encoder|embedder|embeddings|layers)\.")
_STEM_KERNEL = re.compile(r"(?:resnet\.)?embedder\.embedder\.convolution\.weight")
_LEFT_OUT = re.compile(r"(vit\.)?(pooler\.dense\.(weight|bias)|embeddings\.mask_token)")


def is_hugging_face(names: Collection[str]) -> bool:
    """Whether these are the names of one of `HUGGING_FACE`.

    Example:
        >>> is_hugging_face(["embedder.embedder.convolution.weight"])
        True
    """
    return any(pattern.fullmatch(name) for name in names for pattern in HUGGING_FACE.values())


def is_another(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a network with these names is another one of transformers', whose first layers are called alike.

    RegNet begins as a ResNet does, DINOv2 and BEiT as a ViT; what follows has no place in torchvision's networks.

    Example:
        >>> is_another({"embeddings.patch_embeddings.projection.weight": (8, 3, 4, 4),
        ...             "encoder.layer.0.norm1.weight": (8,)})
        True
    """
    stem = next((shape for name, shape in shapes.items() if _STEM_KERNEL.fullmatch(name)), None)
    if stem is not None and stem[2:] not in ((), (7, 7)):
        return True
    return any(
        _BODY.match(name) and torchvision_name(name) == name and not _LEFT_OUT.fullmatch(name) for name in shapes
    )


def left_out(names: Collection[str]) -> list[str]:
    """Those that torchvision's networks have no place for."""
    return [name for name in names if _LEFT_OUT.fullmatch(name)]


def torchvision_name(name: str) -> str:
    """Torchvision's name; of a query, key or value that of the part (`packing.py`); where none is known, the same name.

    Example:
        >>> torchvision_name("resnet.encoder.stages.1.layers.0.shortcut.normalization.bias")
        'layer2.0.downsample.1.bias'
        >>> torchvision_name("vit.encoder.layer.3.attention.attention.key.bias")
        'encoder.layers.encoder_layer_3.self_attention.in_proj_bias[key]'
    """
    if found := _STEM.fullmatch(name):
        return f"{'conv1' if found[1] == 'convolution' else 'bn1'}.{found[2]}"
    if found := _BLOCK.fullmatch(name):
        stage, block, index, shortcut, kind, leaf = found.groups()
        if shortcut:
            return f"layer{int(stage) + 1}.{block}.downsample.{int(kind == 'normalization')}.{leaf}"
        return f"layer{int(stage) + 1}.{block}.{'conv' if kind == 'convolution' else 'bn'}{int(index) + 1}.{leaf}"
    if found := _LAYER.fullmatch(name):
        number, inner, leaf = found.groups()
        front = f"encoder.layers.encoder_layer_{number}"
        if inner in _PARTS:
            return part_key(f"{front}.self_attention", leaf, _PARTS[inner])
        return f"{front}.{_INNER[inner]}.{leaf}" if inner in _INNER else name
    return _OUTER.get(name.removeprefix("vit."), name)


def torchvision_arrays(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """A network's arrays under torchvision's names, query, key and value put together, without what has no place there.

    Raises:
        StateDictMismatchError: two names mean one tensor.
    """
    omitted = left_out(state_dict)
    named: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, array in state_dict.items():
        if name in omitted:
            continue
        ours = torchvision_name(name)
        if ours in origin:
            raise StateDictMismatchError(f"{origin[ours]} and {name} are both {ours} of the network: remove one")
        named[ours], origin[ours] = array, name
    parts = Counter(whole_key(name) for name in named if whole_key(name) != name)
    complete = {whole for whole, count in parts.items() if count == len(PARTS)}
    packed = {name: as_numpy(array, name) for name, array in named.items() if whole_key(name) in complete}
    together = pack(packed)
    return {
        whole_key(name) if whole_key(name) in complete else name: together.get(whole_key(name), array)
        for name, array in named.items()
    }
