"""A small convolutional network for small images: exactly the `torch.nn.Sequential` that `torch_expression` gives."""

from functools import partial

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError
from byol_jax.hidden import OUTPUT, resolve_hidden_layer
from byol_jax.image_size import image_sides
from byol_jax.nets.layers import batch_norm, batch_norm_init, check_images, convs_init, linear, linear_init
from byol_jax.ops.conv import conv2d
from byol_jax.ops.pool import flatten_channels_first
from byol_jax.types import Encoder, EncoderFacts, Variables

__all__ = ["small_cnn", "torch_expression"]

_FIRST_KERNEL, _KERNEL = 4, 3  # both with stride 2 and padding 1: the map is halved, then halved rounding up


def small_cnn(
    widths: tuple[int, ...] = (32, 64, 128),
    *,
    num_classes: int | None = 10,
    momentum: float = 0.05,
    dtype: jax.typing.DTypeLike | None = None,
) -> Encoder:
    """Strided convolutions with batch norm and ReLU, then Flatten and Linear; children are named "0", "1", ...

    Args:
        widths: channels after each convolution: the first 4×4, the others 3×3, all stride 2 and padding 1.
        num_classes: of the last Linear; None leaves it out, and the output is the flattened map, C·H·W.
        momentum: of the running statistics, in torch's sense.
        dtype: compute dtype, over the images'. Statistics keep their own.

    Returns:
        Encoder for images of the one size that `init` was given. Its functions raise ConfigurationError for images that
        don't fit, and HiddenLayerNotFoundError.

    Raises:
        ConfigurationError: sizes below 1.

    Example:
        >>> encoder = small_cnn(num_classes=None)
        >>> variables = encoder.init(jax.random.key(0), (28, 28, 1))
        >>> encoder.apply(variables, jnp.zeros((2, 28, 28, 1)), train=False, hidden_layer=-1)[0].shape
        (2, 2048)
    """
    sizes = [*widths, 1 if num_classes is None else num_classes]
    if not widths or any(type(size) is not int or size < 1 for size in sizes):
        raise ConfigurationError(f"{widths=}, {num_classes=}: all must be whole numbers above 0")
    flatten = 3 * len(widths)  # index of Flatten
    names = tuple(str(index) for index in range(flatten + (1 if num_classes is None else 2)))

    def init(key, image_shape):
        return _init(widths, num_classes, key, image_shape)

    def apply(variables, images, *, train, hidden_layer, key=None, axis_name=None, flat=True):
        wanted = resolve_hidden_layer(names, hidden_layer)
        check_images(images, variables.params["0"]["kernel"])
        compute = images.dtype if dtype is None else dtype
        variables = variables._replace(params=jax.tree.map(lambda leaf: leaf.astype(compute), variables.params))
        norm_options = {"train": train, "momentum": momentum, "axis_name": axis_name}
        x, seen, new_stats = _features(variables, images.astype(compute), len(widths), wanted, norm_options)
        x = seen[str(flatten)] = flatten_channels_first(x)  # [N, C·H·W]
        if num_classes is not None:
            x = seen[str(flatten + 1)] = linear(variables.params[str(flatten + 1)], x)  # [N, num_classes]
        features = x if wanted == OUTPUT else seen[wanted]
        features = flatten_channels_first(features) if flat else features
        return features, new_stats if train else variables.stats

    return Encoder(init, apply, lambda variables=None: names, EncoderFacts(unflattened=partial(apply, flat=False)))


def torch_expression(
    widths: tuple[int, ...] = (32, 64, 128),
    channels: int = 1,
    num_classes: int | None = 10,
    image_size: int | tuple[int, int] = 28,
    *,
    momentum: float = 0.05,
) -> str:
    """The same network as a PyTorch expression that needs nothing but `from torch import nn`.

    Example:
        >>> torch_expression((4,), 1, 10, 28)[-60:]
        'momentum=0.05), nn.ReLU(), nn.Flatten(), nn.Linear(784, 10))'
    """
    layers, size = [], channels
    for index, width in enumerate(widths):
        kernel_size = _KERNEL if index else _FIRST_KERNEL
        layers += [
            f"nn.Conv2d({size}, {width}, {kernel_size}, stride=2, padding=1, bias=False)",
            f"nn.BatchNorm2d({width}, momentum={momentum})",
            "nn.ReLU()",
        ]
        size = width
    layers.append("nn.Flatten()")
    if num_classes is not None:
        height, width = image_sides(image_size)
        layers.append(
            f"nn.Linear({size * _map_size(height, len(widths)) * _map_size(width, len(widths))}, {num_classes})"
        )
    return f"nn.Sequential({', '.join(layers)})"


def _init(widths, num_classes, key, image_shape):
    """Convolutions He-normal by fan-in, batch norm 1 and 0, the linear layer as torch.nn.Linear. float32."""
    if len(image_shape) != 3:
        raise ConfigurationError(f"image shape {image_shape}: small_cnn takes (height, width, channels)")
    height, width, size = image_shape
    conv_key, linear_key = jax.random.split(key)
    convs, stats = {}, {}
    for index, features in enumerate(widths):
        convs[str(3 * index)] = (_KERNEL if index else _FIRST_KERNEL, size, features)
        size = features
    params = convs_init(conv_key, convs, fan="in")
    for index, features in enumerate(widths):
        params[str(3 * index + 1)], stats[str(3 * index + 1)] = batch_norm_init(features, jnp.float32)
    if num_classes is not None:
        inputs = size * _map_size(height, len(widths)) * _map_size(width, len(widths))
        params[str(3 * len(widths) + 1)] = linear_init(linear_key, inputs, num_classes, jnp.float32)
    return Variables(params, stats)


def _features(variables, x, layers, wanted, norm_options):
    """(map, outputs by name, new statistics) after all convolutions.

    The ReLU is out of place, so a hook on a batch norm sees negative values: that one isn't fused with its ReLU.
    """
    params, stats = variables
    seen, new_stats = {}, {}
    for index in range(0, 3 * layers, 3):
        conv, norm, relu = str(index), str(index + 1), str(index + 2)
        seen[conv] = conv2d(x, params[conv]["kernel"], stride=2, padding=1)
        own, fused = Variables(params[norm], stats[norm]), wanted != norm
        seen[norm], new_stats[norm] = batch_norm(own, seen[conv], relu=fused, **norm_options)
        x = seen[relu] = seen[norm] if fused else jax.nn.relu(seen[norm])
    return x, seen, new_stats


def _map_size(size: int, layers: int) -> int:
    """Pixels along one axis after `layers` convolutions."""
    left = size
    for index in range(layers):
        left = (left + 2 - (_KERNEL if index else _FIRST_KERNEL)) // 2 + 1
    if left < 1:
        raise ConfigurationError(f"an image of {size} pixels a side is too small for small_cnn: use 2 or more")
    return left
