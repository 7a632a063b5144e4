"""What a learner is made of, as far as names and shapes tell: its network's architecture, and its heads layer by layer.

Names are those of `recognition`, shapes torch's. Nothing here knows a library; families other than ResNets are told by
`weights.architectures.recognise`.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from interop.learners.fitting import definition_rank
from interop.weights.architectures import HEADS, RESNETS, Residual, Shapes, recognise

__all__ = ["Architecture", "architecture", "head_layers", "layers_in_words"]

KNOWN = RESNETS | {"resnet200": Residual((3, 24, 36, 3), 3)}
"""torchvision's, and DeepMind's large one."""

CLASSIFIERS = tuple(f"{head}.weight" for head in HEADS)

SMALL_CNN_CLASSIFIER = "10.weight"

STEM = 64
"""Channels after a ResNet's stem, times its width."""

NORM = r"(?:weight|bias|running_mean|running_var|num_batches_tracked)"
BLOCK_LEAF = re.compile(
    rf"layer(?P<stage>[1-9]\d*)\.(?P<block>\d+)\."
    rf"(?:conv(?P<index>\d)\.weight|bn\d\.{NORM}|downsample\.0\.weight|downsample\.1\.{NORM})"
)
OTHER_LEAF = re.compile(rf"conv1\.weight|bn1\.{NORM}|fc\.(?:weight|bias)")


SMALL_IMAGES = "-cifar"
"""What the command line puts behind a ResNet's name where its stem is 3x3."""


COMMAND_LINE = frozenset(
    (
        *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet50_2x", "resnet200_2x"),
        *(f"resnet{depth}{SMALL_IMAGES}" for depth in (18, 34, 50, 101, 152)),
        *("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
        *("vit_s16", "vit_b16", "vit_b32", "vit_l16", "small_cnn"),
    )
)
"""The native networks that the command line has, by its names."""

TRANSFORMERS = {
    "timm vit_small_patch16": "vit_s16",
    "timm vit_base_patch16": "vit_b16",
    "timm vit_base_patch32": "vit_b32",
    "timm vit_large_patch16": "vit_l16",
    "torchvision vit_b_16": "vit_b16",
    "torchvision vit_b_32": "vit_b32",
    "torchvision vit_l_16": "vit_l16",
}
"""What `recognise` calls a vision transformer, but for its images' size and classifier, to the command line's name."""

TRANSFORMER = re.compile(r"(torchvision \w+|timm \w+(?=_\d+\b))(_\d+)?( at \d+ px)?( without \S+)?")


class Architecture(NamedTuple):
    """An encoder as far as its names tell.

    Attributes:
        name: "resnet50", "resnet200_2x", or words.
        details: what differs from torchvision's network of that name, in words.
        features: width of the pooled representation; None where only the network knows.
        classes: of its linear classifier; None where there is none.
    """

    name: str
    details: tuple[str, ...] = ()
    features: int | None = None
    classes: int | None = None

    @property
    def network_option(self) -> str:
        """What `--network` of the command line calls it; "" where that has no such network."""
        details = {detail for detail in self.details if "input channel" not in detail}
        found = TRANSFORMER.fullmatch(self.name)
        name = self.name if found is None else TRANSFORMERS.get(found[1], "")
        name += SMALL_IMAGES if details == {"3x3 stem"} else ""
        return name if name in COMMAND_LINE and details <= {"3x3 stem"} else ""

    @property
    def in_words(self) -> str:
        """The name, what differs from the usual network of that name, and what `--network` calls it, if anything."""
        words = ", ".join([self.name, *self.details])
        return f"{words} (--network {self.network_option})" if self.network_option else words


def architecture(shapes: Shapes) -> Architecture:
    """What network has these names and shapes; name "unknown" where nothing tells.

    Example:
        >>> from interop.weights.architectures import expected_shapes
        >>> architecture(expected_shapes("resnet50") | {"conv1.weight": (64, 3, 3, 3)})
        Architecture(name='resnet50', details=('3x3 stem',), features=2048, classes=1000)
    """
    classifiers = (*CLASSIFIERS, SMALL_CNN_CLASSIFIER) if recognise(shapes) == "small_cnn" else CLASSIFIERS
    classes = next((shapes[name][0] for name in classifiers if len(shapes.get(name, ())) == 2), None)
    blocks = [found for name in shapes if (found := BLOCK_LEAF.fullmatch(name))]
    rest = [name for name in shapes if not BLOCK_LEAF.fullmatch(name) and not OTHER_LEAF.fullmatch(name)]
    if not blocks or rest or "conv1.weight" not in shapes:
        width = _side(shapes, "class_token", 2) or _side(shapes, "cls_token", 2)
        width = width or (_side(shapes, SMALL_CNN_CLASSIFIER, 1) if len(classifiers) > len(CLASSIFIERS) else 0)
        return Architecture(recognise(shapes), features=width or None, classes=classes)
    counts: dict[int, set[int]] = {}
    for found in blocks:
        counts.setdefault(int(found["stage"]), set()).add(int(found["block"]))
    stages = tuple(len(counts[stage]) for stage in sorted(counts))
    convolutions = max((int(found["index"] or 0) for found in blocks), default=0)
    last = max(counts)
    features = _side(shapes, f"layer{last}.{min(counts[last])}.conv{convolutions}.weight", 0) or None
    return Architecture(_name(shapes, stages, convolutions), _details(shapes, convolutions), features, classes)


def _name(shapes: Shapes, stages: tuple[int, ...], convolutions: int) -> str:
    """A known network's, with its width where that isn't 1; or how many blocks of which kind."""
    inner, leaving = (_side(shapes, f"layer1.0.conv{index}.weight", 0) for index in (1, convolutions))
    stage_width = leaving // 4 if convolutions == 3 else leaving
    width = stage_width // STEM
    if width and (stage_width, _side(shapes, "conv1.weight", 0)) == (width * STEM, width * STEM):
        groups = inner // (_side(shapes, "layer1.0.conv2.weight", 1) or inner or 1)
        for name, known in KNOWN.items():
            if known == (stages, convolutions, inner // stage_width, groups):
                return name if width == 1 else f"{name}_{width}x"
    kind = {2: "basic", 3: "bottleneck"}.get(convolutions, "unknown")
    blocks, channels = " + ".join(map(str, stages)), _side(shapes, "conv1.weight", 0)
    return f"ResNet with {blocks} {kind} blocks, {channels} channels after the stem"


def _details(shapes: Shapes, convolutions: int) -> tuple[str, ...]:
    kernel, channels = _side(shapes, "conv1.weight", 2), _side(shapes, "conv1.weight", 1)
    details = [f"{kernel}x{kernel} stem"] if kernel != 7 else []
    details += [f"{channels} input channel{'s' if channels > 1 else ''}"] if channels != 3 else []
    always = convolutions == 2 and "layer1.0.downsample.0.weight" in shapes
    return tuple(details + (["shortcut with weights in every stage"] if always else []))


def head_layers(shapes: Shapes, root: str) -> list[dict[str, Any]]:
    """The layers with tensors of a head, in order: JSON-able dicts with `name`, `kind` and sizes.

    Args:
        root: "online.projector.", say.

    Returns:
        `kind` is "linear" (`in`, `out`, `bias`), "batch norm" (`features`, `affine`) or "unknown".

    Example:
        >>> shapes = {"online.predictor.0.weight": (8, 4), "online.predictor.0.bias": (8,)}
        >>> head_layers(shapes, "online.predictor.")
        [{'name': '0', 'kind': 'linear', 'in': 4, 'out': 8, 'bias': True}]
    """
    names = sorted((name.removeprefix(root) for name in shapes if name.startswith(root)), key=definition_rank)
    modules = dict.fromkeys(name.rpartition(".")[0] for name in names)
    return [_layer(shapes, root, module) for module in modules]


def _layer(shapes: Shapes, root: str, module: str) -> dict[str, Any]:
    front = f"{root}{module}." if module else root
    weight = shapes.get(f"{front}weight")
    if f"{front}running_mean" in shapes:
        features = _side(shapes, f"{front}running_mean", 0)
        return {"name": module, "kind": "batch norm", "features": features, "affine": weight is not None}
    if weight is not None and len(weight) == 2:
        bias = f"{front}bias" in shapes
        return {"name": module, "kind": "linear", "in": weight[1], "out": weight[0], "bias": bias}
    return {"name": module, "kind": "unknown"}


def layers_in_words(layers: list[dict[str, Any]]) -> str:
    """A head's layers for a person.

    Example:
        >>> layers_in_words([{"name": "0", "kind": "linear", "in": 4, "out": 8, "bias": False}])
        'Linear 4 -> 8 without bias'
    """
    return ", ".join(_in_words(layer) for layer in layers)


def _in_words(layer: Mapping[str, Any]) -> str:
    if layer["kind"] == "linear":
        return f"Linear {layer['in']} -> {layer['out']}" + ("" if layer["bias"] else " without bias")
    if layer["kind"] == "batch norm":
        return f"batch norm {layer['features']}" + ("" if layer["affine"] else " without scale and bias")
    return f"unknown layer {layer['name']}"


def _side(shapes: Shapes, name: str, axis: int) -> int:
    """One side of a tensor's shape; 0 where it has no such side."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else 0
