"""ResNets with torchvision's children, names, initialisation and function, as an `Encoder` of pure functions on dicts.

Every layer runs in training, whatever layer is asked for, so that all batch-norm statistics advance as PyTorch's do.
Weights come from elsewhere: this file reads no files.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError
from byol_jax.hidden import OUTPUT, resolve_hidden_layer
from byol_jax.nets.layers import batch_norm, batch_norm_init, check_images, convs_init, linear, linear_init
from byol_jax.ops.conv import conv2d
from byol_jax.ops.pool import flatten_channels_first, global_average_pool, max_pool
from byol_jax.tree import unflatten
from byol_jax.types import Encoder, EncoderFacts, PyTree, Variables

__all__ = [
    "resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet50_2x",
    "resnet101",
    "resnet152",
    "resnet200_2x",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

_CHOICES = {
    "block": ("basic", "bottleneck"),
    "stem": ("imagenet", "cifar"),
    "padding": ("torch", "same"),
    "shortcut": ("torch", "always"),
}


def resnet(
    stages: Sequence[int],
    *,
    block: str = "basic",
    width: int = 64,
    groups: int = 1,
    width_per_group: int = 64,
    num_classes: int | None = 1000,
    stem: str = "imagenet",
    padding: str = "torch",
    shortcut: str = "torch",
    dtype: jax.typing.DTypeLike | None = None,
    remat: bool = False,
) -> Encoder:
    """A residual network for images `[N, H, W, C]`, C as given to `init`.

    Args:
        stages: blocks in each stage; every stage but the first halves the map and doubles the channels.
        block: "basic" (two 3×3) or "bottleneck" (1×1, 3×3 with the stride, 1×1).
        width: channels after the stem; all others go with it (128 is the papers' "2x").
        groups, width_per_group: torchvision's, for bottlenecks. Their 3×3 convolution has so many groups, and its
            channels, the inner ones, are `groups · width_per_group / 64` times as many as without.
        num_classes: of `fc`; None leaves it out, and the output is the flattened `avgpool`.
        stem: "imagenet" (7×7 stride 2, max pool) or "cifar" (3×3 stride 1; `maxpool` passes its input on).
        padding: "torch", or "same", TensorFlow's rule, as DeepMind's networks have it.
        shortcut: "torch" (a projection where shapes change) or "always" (in every stage's first block, DeepMind's).
        dtype: compute dtype, over the images'. Statistics keep their own.
        remat: recompute each block's inside in the backward pass: less memory, a third more computation.

    Returns:
        Encoder; its output is `[N, num_classes]`, rank-4 hidden layers come flattened in C·H·W order. Its functions
        raise ConfigurationError for images that don't fit, and HiddenLayerNotFoundError.

    Raises:
        ConfigurationError: an option outside its choices, sizes below 1.

    Example:
        >>> encoder = resnet((1, 1), width=8, num_classes=10, stem="cifar")
        >>> variables = encoder.init(jax.random.key(0), (16, 16, 3))
        >>> images = jnp.zeros((2, 16, 16, 3))
        >>> features, _ = encoder.apply(variables, images, train=False, hidden_layer="avgpool")
        >>> features.shape
        (2, 16)

    Source: torchvision 0.29's `models/resnet.py` (He et al. 2015, with the bottleneck's stride on its 3×3).
    """
    _check_choices(block=block, stem=stem, padding=padding, shortcut=shortcut)
    kind = {"basic": BASIC, "bottleneck": BOTTLENECK}[block]
    net = _Net(tuple(stages), kind, width, groups, width_per_group, num_classes, stem, padding, shortcut, dtype, remat)
    _check_sizes(net)
    compiled = jax.jit(partial(_init, net), static_argnums=1)  # operation by operation takes four times as long

    def init(key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
        return compiled(key, tuple(image_shape))

    return Encoder(
        init,
        partial(_apply, net),
        lambda variables=None: net.names(),
        EncoderFacts(padding=padding, remat=remat, unflattened=partial(_apply, net, flat=False)),
    )


def resnet18(**options: Any) -> Encoder:
    """torchvision's resnet18: basic blocks 2, 2, 2, 2; avgpool 512. `options` as in `resnet`."""
    return resnet((2, 2, 2, 2), block="basic", **options)


def resnet34(**options: Any) -> Encoder:
    """torchvision's resnet34: basic blocks 3, 4, 6, 3; avgpool 512. `options` as in `resnet`."""
    return resnet((3, 4, 6, 3), block="basic", **options)


def resnet50(**options: Any) -> Encoder:
    """torchvision's resnet50: bottleneck blocks 3, 4, 6, 3; avgpool 2048. `options` as in `resnet`."""
    return resnet((3, 4, 6, 3), block="bottleneck", **options)


def resnet101(**options: Any) -> Encoder:
    """torchvision's resnet101: bottleneck blocks 3, 4, 23, 3; avgpool 2048. `options` as in `resnet`."""
    return resnet((3, 4, 23, 3), block="bottleneck", **options)


def resnet152(**options: Any) -> Encoder:
    """torchvision's resnet152: bottleneck blocks 3, 8, 36, 3; avgpool 2048. `options` as in `resnet`."""
    return resnet((3, 8, 36, 3), block="bottleneck", **options)


def wide_resnet50_2(**options: Any) -> Encoder:
    """torchvision's wide_resnet50_2: resnet50 with inner channels doubled; avgpool 2048. `options` as in `resnet`."""
    return resnet50(width_per_group=128, **options)


def wide_resnet101_2(**options: Any) -> Encoder:
    """torchvision's wide_resnet101_2: resnet101 with inner channels doubled; avgpool 2048. `options` as in `resnet`."""
    return resnet101(width_per_group=128, **options)


def resnext50_32x4d(**options: Any) -> Encoder:
    """torchvision's resnext50_32x4d: resnet50 with 32 groups of 4 channels and up; avgpool 2048. `options` as in
    `resnet`."""
    return resnet50(groups=32, width_per_group=4, **options)


def resnext101_32x8d(**options: Any) -> Encoder:
    """torchvision's resnext101_32x8d: resnet101 with 32 groups of 8 channels and up; avgpool 2048. `options` as in
    `resnet`."""
    return resnet101(groups=32, width_per_group=8, **options)


def resnext101_64x4d(**options: Any) -> Encoder:
    """torchvision's resnext101_64x4d: resnet101 with 64 groups of 4 channels and up; avgpool 2048. `options` as in
    `resnet`."""
    return resnet101(groups=64, width_per_group=4, **options)


def resnet50_2x(**options: Any) -> Encoder:
    """The BYOL paper's ResNet-50 (2x): every width of resnet50 doubled; avgpool 4096, 94 million parameters. `options`
    as in `resnet`; `padding="same"` is DeepMind's."""
    return resnet50(width=128, **options)


def resnet200_2x(**options: Any) -> Encoder:
    """The BYOL paper's ResNet-200 (2x), whose weights DeepMind released: bottleneck blocks 3, 24, 36, 3, every width
    doubled; avgpool 4096, 250 million parameters. `options` as in `resnet`; `padding="same"` is DeepMind's."""
    return resnet((3, 24, 36, 3), block="bottleneck", width=128, **options)


class Conv(NamedTuple):
    """One of a block's convolutions: its name and its batch norm's, its kernel's size, whether it has the block's
    stride, whether it widens to the block's output, and whether the network's groups apply to it."""

    name: str
    norm: str
    kernel_size: int
    strided: bool
    widens: bool
    grouped: bool = False


class Block(NamedTuple):
    """A kind of residual block.

    Attributes:
        convs: in order; each is followed by its batch norm, and by a ReLU but for the last.
        children: names in torchvision's order of definition, without the shortcut's.
        expansion: output channels over inner channels.
    """

    convs: tuple[Conv, ...]
    children: tuple[str, ...]
    expansion: int

    def names(self, shortcut: bool) -> tuple[str, ...]:
        """All children, grandchildren included.

        Example:
            >>> BASIC.names(shortcut=True)[-3:]
            ('downsample', 'downsample.0', 'downsample.1')
        """
        return self.children + (("downsample", "downsample.0", "downsample.1") if shortcut else ())

    def apply(
        self,
        variables: Variables,
        x: jax.Array,
        *,
        stride: int,
        padding: str,
        groups: int,
        keep: str | None,
        **norm_options: Any,
    ) -> tuple[jax.Array, PyTree, jax.Array | None]:
        """`relu(convolutions(x) + shortcut(x))`.

        `kept` is the output of the child named `keep`, as a PyTorch forward hook holds it once the network has run.
        torchvision's ReLU and its addition work in place, so a hook on `bn1` ends up with what the ReLU made of it, and
        one on the last batch norm or on `relu` with the block's output. So fusing batch norm and ReLU loses nothing.

        Args:
            variables: this block's; a shortcut with weights iff params hold `downsample`.
            x: `[N, H, W, C]`.
            padding: "torch" or "same".
            groups: of the bottleneck's 3×3 convolution; a kernel there has 1 / groups of the channels.
            keep: child whose output is wanted, or None.
            norm_options: `train`, `axis_name` of every batch norm.

        Returns:
            `(y, new_stats, kept)`; y is `[N, H / stride, W / stride, C']`.
        """
        params, stats = variables
        y, new_stats, seen = x, {}, {}
        for conv in self.convs:
            y = conv2d(
                y,
                params[conv.name]["kernel"],
                stride=stride if conv.strided else 1,
                padding=kernel_padding(conv.kernel_size, padding),
                groups=groups if conv.grouped else 1,
            )
            seen[conv.name] = y
            norm = Variables(params[conv.norm], stats[conv.norm])
            y, new_stats[conv.norm] = batch_norm(norm, y, relu=conv is not self.convs[-1], **norm_options)
            seen[conv.norm] = y
        identity = x
        if "downsample" in params:
            identity, new_stats["downsample"], shortcut = _shortcut(variables, x, stride, norm_options)
            seen |= shortcut
        y = jax.nn.relu(y + identity)
        seen |= {self.convs[-1].norm: y, "relu": y}
        return y, new_stats, None if keep is None else seen[keep]


def kernel_padding(kernel_size: int, padding: str) -> int | str:
    """`conv2d`'s padding for "torch" (half the kernel on every side) and "same" (TensorFlow's).

    Example:
        >>> kernel_padding(7, "torch"), kernel_padding(7, "same")
        (3, 'SAME')
    """
    return kernel_size // 2 if padding == "torch" else "SAME"


def _shortcut(variables, x, stride, norm_options):
    """1×1 convolution and batch norm. A hook's outputs stay as they are: the addition writes into the other summand."""
    params, stats = variables.params["downsample"], variables.stats["downsample"]
    projected = conv2d(x, params["0"]["kernel"], stride=stride)
    y, norm = batch_norm(Variables(params["1"], stats["1"]), projected, **norm_options)
    return y, {"1": norm}, {"downsample.0": projected, "downsample.1": y, "downsample": y}


BASIC = Block(
    convs=(Conv("conv1", "bn1", 3, strided=True, widens=True), Conv("conv2", "bn2", 3, strided=False, widens=True)),
    children=("conv1", "bn1", "relu", "conv2", "bn2"),
    expansion=1,
)
BOTTLENECK = Block(
    convs=(
        Conv("conv1", "bn1", 1, strided=False, widens=False),
        Conv("conv2", "bn2", 3, strided=True, widens=False, grouped=True),
        Conv("conv3", "bn3", 1, strided=False, widens=True),
    ),
    children=("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "relu"),
    expansion=4,
)


class _Place(NamedTuple):
    """One block's place in the network."""

    stage: str
    index: str
    in_channels: int
    inner: int
    out_channels: int
    stride: int
    shortcut: bool


class _Net(NamedTuple):
    """What `resnet` was called with, and what follows from it without weights."""

    stages: tuple[int, ...]
    block: Block
    width: int
    groups: int
    width_per_group: int
    num_classes: int | None
    stem: str
    padding: str
    shortcut: str
    dtype: Any
    remat: bool

    def places(self) -> Iterator[_Place]:
        """All blocks in order; `inner` are the channels of all convolutions but one that widens."""
        in_channels = self.width
        for number, length in enumerate(self.stages):
            channels = self.width * 2**number
            inner, out_channels = channels * self.width_per_group // 64 * self.groups, channels * self.block.expansion
            for index in range(length):
                stride = 2 if number > 0 and index == 0 else 1
                changes = stride != 1 or in_channels != out_channels
                shortcut = index == 0 and (changes or self.shortcut == "always")
                yield _Place(f"layer{number + 1}", str(index), in_channels, inner, out_channels, stride, shortcut)
                in_channels = out_channels

    def names(self) -> tuple[str, ...]:
        """All modules' names but the root's, in the order of torch's `named_modules`."""
        names = ["conv1", "bn1", "relu", "maxpool"]
        for place in self.places():
            path = f"{place.stage}.{place.index}"
            names += [place.stage] if place.index == "0" else []
            names += [path, *(f"{path}.{child}" for child in self.block.names(place.shortcut))]
        return (*names, "avgpool") if self.num_classes is None else (*names, "avgpool", "fc")


def _init(net: _Net, key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
    """torchvision's: convolutions He-normal by fan-out, batch norm 1 and 0, `fc` as torch.nn.Linear. float32."""
    if len(image_shape) != 3:
        raise ConfigurationError(f"image shape {image_shape}: a ResNet takes (height, width, channels)")
    convs, norms = {"conv1": (7 if net.stem == "imagenet" else 3, image_shape[-1], net.width)}, {"bn1": net.width}
    features = net.width
    for place in net.places():
        path, features, size = f"{place.stage}/{place.index}", place.out_channels, place.in_channels
        for conv in net.block.convs:
            out = features if conv.widens else place.inner
            convs[f"{path}/{conv.name}"] = (conv.kernel_size, size // net.groups if conv.grouped else size, out)
            norms[f"{path}/{conv.norm}"], size = out, out
        if place.shortcut:
            convs[f"{path}/downsample/0"], norms[f"{path}/downsample/1"] = (1, place.in_channels, features), features
    conv_key, fc_key = jax.random.split(key)
    params, stats = convs_init(conv_key, convs, fan="out"), {}
    for path, channels in norms.items():
        params[path], stats[path] = batch_norm_init(channels, jnp.float32)
    if net.num_classes is not None:
        params["fc"] = linear_init(fc_key, features, net.num_classes, jnp.float32)
    return Variables(unflatten(params), unflatten(stats))


def _apply(
    net: _Net,
    variables: Variables,
    images: jax.Array,
    *,
    train: bool,
    hidden_layer: str | int,
    key: Any = None,
    axis_name: str | None = None,
    flat: bool = True,
) -> tuple[jax.Array, Any]:
    """`Encoder.apply`; see `byol_jax.types`. Nothing is random here, so `key` is not used."""
    wanted = resolve_hidden_layer(net.names(), hidden_layer)
    params, stats = variables
    check_images(images, params["conv1"]["kernel"])
    dtype = images.dtype if net.dtype is None else net.dtype
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    norm_options = {"train": train, "axis_name": axis_name}
    x, bn1, seen = _stem(net, Variables(params, stats), images.astype(dtype), norm_options)
    new_stats: dict[str, Any] = {"bn1": bn1}
    for place in net.places():
        path = f"{place.stage}.{place.index}"
        keep = str(wanted).removeprefix(f"{path}.") if str(wanted).startswith(f"{path}.") else None
        options = {"stride": place.stride, "padding": net.padding, "groups": net.groups, "keep": keep}
        run = partial(net.block.apply, **options, **norm_options)
        run = jax.checkpoint(run) if net.remat else run
        own = Variables(params[place.stage][place.index], stats[place.stage][place.index])
        x, new_stats.setdefault(place.stage, {})[place.index], kept = run(own, x)
        seen |= {path: x, place.stage: x, wanted: kept} if keep else {path: x, place.stage: x}
    x = seen["avgpool"] = global_average_pool(x)  # [N, C]
    if net.num_classes is not None:
        x = seen["fc"] = linear(params["fc"], x)  # [N, num_classes]
    features = x if wanted == OUTPUT else seen[wanted]
    features = flatten_channels_first(features) if flat else features
    return features, stats | new_stats if train else stats  # other nodes, which may have no leaves, stay


def _stem(net: _Net, variables: Variables, x: jax.Array, norm_options: dict) -> tuple[jax.Array, Any, dict]:
    """(map, statistics of bn1, outputs by name). torchvision's ReLU is in place: `bn1` is what it left."""
    params, stats = variables
    size, stride = (7, 2) if net.stem == "imagenet" else (3, 1)
    conv1 = conv2d(x, params["conv1"]["kernel"], stride=stride, padding=kernel_padding(size, net.padding))
    x, bn1 = batch_norm(Variables(params["bn1"], stats["bn1"]), conv1, relu=True, **norm_options)
    seen = {"conv1": conv1, "bn1": x, "relu": x}
    if net.stem == "imagenet":
        x = max_pool(x, window=3, stride=2, padding=kernel_padding(3, net.padding))
    return x, bn1, {**seen, "maxpool": x}


def _check_choices(**chosen: str) -> None:
    for name, choice in chosen.items():
        if choice not in _CHOICES[name]:
            raise ConfigurationError(f"{name}={choice!r}: use one of {', '.join(_CHOICES[name])}")


def _check_sizes(net: _Net) -> None:
    width, groups, width_per_group, num_classes = net.width, net.groups, net.width_per_group, net.num_classes
    sizes = [*net.stages, width, groups, width_per_group, 1 if num_classes is None else num_classes]
    if not net.stages or any(type(size) is not int or size < 1 for size in sizes):
        raise ConfigurationError(
            f"stages={net.stages}, {width=}, {groups=}, {width_per_group=}, {num_classes=}: all must be whole numbers "
            "above 0"
        )
    if net.block is BASIC and (groups, width_per_group) != (1, 64):
        raise ConfigurationError(f'{groups=}, {width_per_group=}: only block="bottleneck" takes others than 1 and 64')
    if width * width_per_group < 64:
        raise ConfigurationError(
            f"{width=}, {width_per_group=}: leave no channel a group; width · width_per_group must be 64 or more"
        )
