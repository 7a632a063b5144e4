"""Networks by name, ResNets here and vision transformers from `transformers.py`: which keys, of which shapes.

Made by rule, from a few numbers each. They check a state dict against a named architecture, and recognise what a file
holds. Other families (whole BYOL learners among them) are recognised by a few tell-tale names only.
"""

import math
import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import NamedTuple

from byol_jax.errors import ConfigurationError, nearest
from interop.weights.hugging_face import HUGGING_FACE, is_another, is_hugging_face
from interop.weights.names import absent_counters
from interop.weights.transformers import TRANSFORMERS, Transformer, transformer_shapes

__all__ = [
    "ARCHITECTURES",
    "HEADS",
    "LEARNERS",
    "Residual",
    "expected_shapes",
    "find_architecture",
    "is_head",
    "recognise",
]

HEADS = ("fc", "heads.head", "head", "head.fc", "classifier")
"""What torchvision and timm call a linear layer that is a whole classifier."""


class Residual(NamedTuple):
    """A torchvision ResNet: blocks per stage; convolutions per block, 2 (basic) or 3 (bottleneck); the inner
    convolutions' width relative to the stage's; the middle one's groups."""

    blocks: tuple[int, int, int, int]
    convolutions: int
    inner_width: int = 1
    groups: int = 1


RESNETS = {
    "resnet18": Residual((2, 2, 2, 2), 2),
    "resnet34": Residual((3, 4, 6, 3), 2),
    "resnet50": Residual((3, 4, 6, 3), 3),
    "resnet101": Residual((3, 4, 23, 3), 3),
    "resnet152": Residual((3, 8, 36, 3), 3),
    "wide_resnet50_2": Residual((3, 4, 6, 3), 3, 2),
    "wide_resnet101_2": Residual((3, 4, 23, 3), 3, 2),
    "resnext50_32x4d": Residual((3, 4, 6, 3), 3, 2, 32),
    "resnext101_32x8d": Residual((3, 4, 23, 3), 3, 4, 32),
    "resnext101_64x4d": Residual((3, 4, 23, 3), 3, 4, 64),
}
"""Source: torchvision.models.resnet; timm's networks of these names have the same keys."""

ARCHITECTURES = RESNETS | TRANSFORMERS
"""Every network that has a name here."""

Shapes = dict[str, tuple[int, ...]]


def is_head(key: str) -> bool:
    """Whether `key` is of a classifier, as far as its name says.

    Example:
        >>> is_head("fc.bias"), is_head("layer1.0.fc.bias")
        (True, False)
    """
    module, _, leaf = key.rpartition(".")
    return module in HEADS and leaf in ("weight", "bias")


def find_architecture(name: str) -> Residual | Transformer:
    """The table's entry.

    Raises:
        ConfigurationError: the name isn't in the table.
    """
    if name not in ARCHITECTURES:
        raise ConfigurationError(f"arch {name!r} isn't known: use one of {', '.join(nearest(name, ARCHITECTURES))}")
    return ARCHITECTURES[name]


def expected_shapes(name: str, *, channels: int = 3, num_classes: int | None = 1000) -> Shapes:
    """Key to shape of a network's state dict, in its order; `num_classes=None` leaves the classifier out.

    Raises:
        ConfigurationError: the name isn't in the table.

    Example:
        >>> len(expected_shapes("resnet50"))
        320
    """
    network = find_architecture(name)
    if isinstance(network, Transformer):
        return transformer_shapes(network, channels=channels, num_classes=num_classes)
    shapes: Shapes = {"conv1.weight": (64, channels, 7, 7)} | _batch_norm("bn1", 64)
    entering = 64
    for stage, blocks in enumerate(network.blocks):
        for block in range(blocks):
            prefix, width = f"layer{stage + 1}.{block}", 64 << stage
            leaving = width if network.convolutions == 2 else 4 * width
            shapes |= _block(prefix, entering, width * network.inner_width, leaving, network)
            if block == 0 and entering != leaving:
                shapes |= {f"{prefix}.downsample.0.weight": (leaving, entering, 1, 1)}
                shapes |= _batch_norm(f"{prefix}.downsample.1", leaving)
            entering = leaving
    if num_classes is not None:
        shapes |= {"fc.weight": (num_classes, entering), "fc.bias": (num_classes,)}
    return shapes


def _block(prefix: str, entering: int, inner: int, leaving: int, network: Residual) -> Shapes:
    if network.convolutions == 2:
        kernels = [(inner, entering, 3, 3), (leaving, inner, 3, 3)]
    else:
        middle = (inner, inner // network.groups, 3, 3)
        kernels = [(inner, entering, 1, 1), middle, (leaving, inner, 1, 1)]
    shapes: Shapes = {}
    for index, kernel in enumerate(kernels, start=1):
        shapes |= {f"{prefix}.conv{index}.weight": kernel} | _batch_norm(f"{prefix}.bn{index}", kernel[0])
    return shapes


def _batch_norm(prefix: str, channels: int) -> Shapes:
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{leaf}": (channels,) for leaf in leaves} | {f"{prefix}.num_batches_tracked": ()}


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What a state dict with these keys and shapes belongs to, in words; "unknown" where nothing fits.

    Example:
        >>> recognise(expected_shapes("resnet18"))
        'torchvision resnet18'
    """
    if _is_small_cnn(shapes):
        return "small_cnn"
    named = _resnet_name(shapes) if _is_residual(shapes) else _transformer_name(shapes)
    return named or next((family for family, test in FAMILIES if test(shapes)), "unknown")


SMALL_WIDTHS = (32, 64, 128)
"""Channels of `byol_jax.nets.small_cnn`, as its name alone makes it."""


def _is_small_cnn(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether these are `byol_jax.nets.small_cnn`'s: convolution, batch norm and ReLU three times, Flatten, Linear."""
    expected: Shapes = {}
    entering = (*shapes.get("0.weight", ()), 0, 0)[1]
    for index, width in enumerate(SMALL_WIDTHS):
        side = 3 if index else 4
        expected |= {f"{3 * index}.weight": (width, entering, side, side)} | _batch_norm(f"{3 * index + 1}", width)
        entering = width
    last = f"{3 * len(SMALL_WIDTHS) + 1}"
    body = {name: tuple(shape) for name, shape in shapes.items() if name not in (f"{last}.weight", f"{last}.bias")}
    whole = body | dict.fromkeys(absent_counters(body, expected), ())
    return whole == expected and len(shapes) - len(body) in (0, 2)


def _resnet_name(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    channels = (*shapes["conv1.weight"], 0, 0)[1]
    classes = _classes(shapes, "fc")
    for name in RESNETS:
        expected = expected_shapes(name, channels=channels, num_classes=classes)
        if expected == dict(shapes) | dict.fromkeys(absent_counters(shapes, expected), ()):
            return f"torchvision {name}" + ("" if classes is not None else " without fc")
    return None


def _transformer_name(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """timm's names say the image's size; torchvision's mean 224, and another size is added."""
    for name, network in TRANSFORMERS.items():
        is_timm = network.library == "timm"
        patches, head = ("patch_embed.proj.weight", "head") if is_timm else ("conv_proj.weight", "heads.head")
        positions = shapes.get("pos_embed" if is_timm else "encoder.pos_embedding", ())
        if len(positions) != 3 or positions[2] != network.width:
            continue
        classes, channels = _classes(shapes, head), (*shapes.get(patches, ()), 0, 0)[1]
        usual = transformer_shapes(network, channels=channels, num_classes=classes)
        own = (
            usual
            if is_timm
            else transformer_shapes(network, channels=channels, num_classes=classes, tokens=positions[1])
        )
        if own == dict(shapes):
            other_size = "" if own == usual else f" at {network.patch_size * math.isqrt(positions[1] - 1)} px"
            return f"{network.library} {name}{other_size}" + ("" if classes is not None else f" without {head}")
    return None


def _classes(shapes: Mapping[str, tuple[int, ...]], head: str) -> int | None:
    """None where there is no head."""
    shape = shapes.get(f"{head}.weight", ())
    return shape[0] if len(shape) == 2 else None


def _has_any(keys: Collection[str], *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in keys)


def _has_each(*prefixes: str):
    """A test whether some key begins with each of `prefixes`."""
    return lambda keys: all(_has_any(keys, prefix) for prefix in prefixes)


def _is_theirs(pattern: re.Pattern[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return any(pattern.fullmatch(key) for key in shapes) and not is_another(shapes)


def _is_residual(keys: Collection[str]) -> bool:
    return "conv1.weight" in keys and "layer1.0.conv1.weight" in keys


def _is_byol_lightly(keys: Collection[str]) -> bool:
    momentum = ("backbone_momentum.", "momentum_backbone.", "teacher_backbone.")
    return _has_any(keys, "prediction_head.") and _has_any(keys, *momentum)


def _is_byol_solo_learn(keys: Collection[str]) -> bool:
    heads = "projector.0.weight" in keys and "predictor.0.weight" in keys
    return heads and _has_any(keys, "momentum_backbone.", "momentum_encoder.")


def _is_cut_residual(keys: Collection[str]) -> bool:
    return "0.weight" in keys and any(re.fullmatch(r"[45]\.0\.conv1\.weight", key) for key in keys)


FAMILIES = (
    ("BYOL learner, byol-pytorch", _has_each("online_encoder.")),
    ("BYOL learner, mmselfsup or mmpretrain", _has_each("target_net.module.", "head.predictor.")),
    ("BYOL learner, mmselfsup 0.x", _has_each("online_net.0.", "target_net.0.")),
    ("BYOL learner, lightning-bolts", _has_each("online_network.encoder.")),
    ("BYOL network, sthalles/PyTorch-BYOL", _has_each("encoder.0.weight", "projetion.net.0.weight")),
    ("BYOL learner, lightly", _is_byol_lightly),
    ("BYOL learner, solo-learn", _is_byol_solo_learn),
    ("ResNet, VISSL", lambda keys: any("_feature_blocks.conv1.weight" in key for key in keys)),
    ("ResNet of unknown depth or width", _is_residual),
    ("ResNet cut with Sequential", _is_cut_residual),
    ("vision transformer, torchvision", _has_each("conv_proj.weight", "encoder.pos_embedding")),
    ("vision transformer, timm", _has_each("patch_embed.proj.weight", "blocks.0.attn.")),
    *((kind, partial(_is_theirs, pattern)) for kind, pattern in HUGGING_FACE.items()),
    ("another network of Hugging Face transformers", is_hugging_face),
)
"""Tell-tale names, tested in this order."""

LEARNERS = tuple(kind for kind, _ in FAMILIES if kind.startswith("BYOL") or kind.endswith("VISSL"))
"""Those in which a network is a part, or has names of its own."""
