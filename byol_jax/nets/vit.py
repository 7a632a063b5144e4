"""Vision transformers with torchvision's names, initialisation and function, as an `Encoder` of pure functions.

Nothing in them has statistics: `stats` is empty. Weights come from elsewhere: this file reads no files.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from byol_jax.errors import ConfigurationError
from byol_jax.hidden import OUTPUT, resolve_hidden_layer
from byol_jax.image_size import image_sides
from byol_jax.nets.layers import check_images, dropout, layer_norm, layer_norm_init, linear
from byol_jax.ops.activation import gelu
from byol_jax.ops.conv import conv2d
from byol_jax.ops.fan_out import fan_out
from byol_jax.ops.pool import flatten_channels_first
from byol_jax.ops.precision import at_least_float32
from byol_jax.tree import unflatten
from byol_jax.types import Encoder, EncoderFacts, Variables

__all__ = ["resize_positions", "vit", "vit_b16", "vit_b32", "vit_l16", "vit_s16"]

POOLED = "pooled"
"""The class token after `encoder.ln`, `[N, D]`: what `heads` gets. No module of torchvision's has it as output; a name
of its own makes the hidden layer -2 the representation, as in every other native network."""


def vit(
    depth: int,
    *,
    width: int,
    num_heads: int,
    patch_size: int = 16,
    mlp_width: int | None = None,
    num_classes: int | None = 1000,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    dtype: jax.typing.DTypeLike | None = None,
    remat: bool = False,
) -> Encoder:
    """A vision transformer for images `[N, H, W, C]` of the one size that `init` was given.

    Patches become tokens by a convolution, a class token comes in front, learned positions are added; `depth` layers
    (`encoder_layer`) and a layer norm follow; the class token is the representation, `heads.head` the classifier on
    it. Names are torchvision's, and one more, `pooled`, the class token before the classifier.

    Args:
        depth: number of layers.
        width: D, of every token; a multiple of `num_heads`.
        num_heads: of attention. No leaf's shape tells it.
        patch_size: P, in pixels; both sides of the image are multiples of it.
        mlp_width: inside each layer's `mlp`; 4 · D where None.
        num_classes: of `heads.head`; None leaves `heads` out, and the output is `pooled`.
        dropout: probability in [0, 1), in training, after the positions, after attention, and twice in the `mlp`.
        attention_dropout: the same, for attention's softmax.
        dtype: compute dtype, over the images'. Layer norm and softmax are computed in float32 or wider.
        remat: recompute each layer's inside in the backward pass: less memory, a third more computation.

    Returns:
        Encoder; its output is `[N, num_classes]`. Hidden layers of rank 3, `[N, 1 + H·W / P², D]`, come flattened in
        that order. Its functions raise ConfigurationError for images that don't fit, or where dropout has no key,
        and HiddenLayerNotFoundError.

    Raises:
        ConfigurationError: sizes below 1, a width that `num_heads` doesn't divide, probabilities outside [0, 1).

    Example:
        >>> encoder = vit(2, width=8, num_heads=2, patch_size=4, num_classes=10)
        >>> variables = encoder.init(jax.random.key(0), (16, 16, 3))
        >>> features, _ = encoder.apply(variables, jnp.zeros((2, 16, 16, 3)), train=False, hidden_layer=-2)
        >>> features.shape
        (2, 8)

    Source: torchvision 0.29's `models/vision_transformer.py` (Dosovitskiy et al. 2020).
    """
    mlp_width = 4 * width if mlp_width is None else mlp_width
    net = _Net(
        depth, width, patch_size, mlp_width, num_classes, Layer(num_heads, dropout, attention_dropout), dtype, remat
    )
    _check_options(net)
    compiled = jax.jit(partial(_init, net), static_argnums=1)

    def init(key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
        return compiled(key, tuple(image_shape))

    facts = EncoderFacts(remat=remat, unflattened=partial(_apply, net, flat=False))
    return Encoder(init, partial(_apply, net), lambda variables=None: net.names(), facts)


def vit_s16(**options: Any) -> Encoder:
    """ViT-S/16, timm's vit_small_patch16_224: 12 layers, width 384, 6 heads. `options` as in `vit`."""
    return vit(12, width=384, num_heads=6, **options)


def vit_b16(**options: Any) -> Encoder:
    """ViT-B/16, torchvision's vit_b_16: 12 layers, width 768, 12 heads. `options` as in `vit`."""
    return vit(12, width=768, num_heads=12, **options)


def vit_b32(**options: Any) -> Encoder:
    """ViT-B/32, torchvision's vit_b_32: 12 layers, width 768, 12 heads, patches of 32. `options` as in `vit`."""
    return vit(12, width=768, num_heads=12, patch_size=32, **options)


def vit_l16(**options: Any) -> Encoder:
    """ViT-L/16, torchvision's vit_l_16: 24 layers, width 1024, 16 heads. `options` as in `vit`."""
    return vit(24, width=1024, num_heads=16, **options)


CHILDREN = ("ln_1", "self_attention", "dropout", "ln_2", "mlp", "mlp.0", "mlp.1", "mlp.2", "mlp.3", "mlp.4")
"""In torchvision's order of definition. Its `self_attention.out_proj` is used there without being called, and so has no
output."""

Dropout = Callable[[jax.Array], jax.Array]


class Layer(NamedTuple):
    """What a layer does besides its parameters: attention heads, probabilities of dropping, in [0, 1)."""

    num_heads: int
    dropout: float
    attention_dropout: float


def attention(params: dict[str, Any], x: jax.Array, *, num_heads: int, drop: Dropout = lambda weights: weights):
    """Multi-head self-attention: `softmax(q · kᵀ / sqrt(D / heads)) · v` a head, then `out_proj`.

    Query, key and value are three linear layers, where torch packs them into one tensor, `in_proj_weight` (`interop`
    splits it).

    Args:
        params: `query, key, value, out_proj`, each `{kernel: [D, D], bias: [D]}`; head h has the columns from
            h · D / heads on, as `torch.nn.MultiheadAttention` and Flax have it.
        x: `[N, T, D]`.
        num_heads: a divisor of D.
        drop: what dropout makes of the softmax.

    Returns:
        `[N, T, D]`; the softmax is computed in float32 or wider.

    Example:
        >>> eye = {"kernel": jnp.eye(4), "bias": jnp.zeros(4)}
        >>> params = dict.fromkeys(("query", "key", "value", "out_proj"), eye)
        >>> attention(params, jnp.ones((1, 3, 4)), num_heads=2).tolist()[0][0]
        [1.0, 1.0, 1.0, 1.0]
    """
    split = (*x.shape[:2], num_heads, -1)
    query, key, value = (linear(params[name], x).reshape(split) for name in ("query", "key", "value"))  # [N, T, h, d]
    scores = jnp.einsum("nqhd,nkhd->nhqk", query * query.shape[-1] ** -0.5, key)
    weights = drop(jax.nn.softmax(scores.astype(at_least_float32(x.dtype)), axis=-1).astype(x.dtype))
    return linear(params["out_proj"], jnp.einsum("nhqk,nkhd->nqhd", weights, value).reshape(x.shape))


def encoder_layer(
    params: dict[str, Any], x: jax.Array, key: jax.Array | None, *, layer: Layer, train: bool, keep: str | None
) -> tuple[jax.Array, jax.Array | None]:
    """`h = x + dropout(self_attention(ln_1(x)))`, `y = h + mlp(ln_2(h))`.

    Returns `(y, kept)`; `kept` is the output of the child named `keep`, as a PyTorch forward hook sees it.

    Args:
        params: `ln_1, self_attention, ln_2, mlp`.
        x: `[N, T, D]`.
        key: drives dropout; None where nothing is dropped.
        keep: one of `CHILDREN`, or None.
    """
    keys = (None,) * 4 if key is None else jax.random.split(key, 4)
    drop = [partial(dropout, one, rate=layer.dropout if train else 0.0) for one in keys[:3]]
    drop_weights = partial(dropout, keys[3], rate=layer.attention_dropout if train else 0.0)
    x = fan_out(x)
    seen = {"ln_1": layer_norm(params["ln_1"], x)}
    attended = attention(params["self_attention"], seen["ln_1"], num_heads=layer.num_heads, drop=drop_weights)
    seen |= {"self_attention": attended, "dropout": drop[0](attended)}
    x = fan_out(x + seen["dropout"])
    seen["ln_2"] = layer_norm(params["ln_2"], x)
    seen["mlp.0"] = linear(params["mlp"]["0"], seen["ln_2"])  # [N, T, mlp width]
    seen["mlp.1"] = gelu(seen["mlp.0"])
    seen["mlp.2"] = drop[1](seen["mlp.1"])
    seen["mlp.3"] = linear(params["mlp"]["3"], seen["mlp.2"])  # [N, T, D]
    seen["mlp"] = seen["mlp.4"] = drop[2](seen["mlp.3"])
    return x + seen["mlp"], None if keep is None else seen[keep]


class _Net(NamedTuple):
    """What `vit` was called with, and what follows from it without weights."""

    depth: int
    width: int
    patch_size: int
    mlp_width: int
    num_classes: int | None
    layer: Layer
    dtype: Any
    remat: bool

    def layers(self) -> tuple[str, ...]:
        return tuple(f"encoder_layer_{index}" for index in range(self.depth))

    def names(self) -> tuple[str, ...]:
        """In the order of torch's `named_modules`, with `POOLED` where it is computed."""
        names = ["conv_proj", "encoder", "encoder.dropout", "encoder.layers"]
        for layer in self.layers():
            path = f"encoder.layers.{layer}"
            names += [path, *(f"{path}.{child}" for child in CHILDREN)]
        names += ["encoder.ln", POOLED]
        return (*names, "heads", "heads.head") if self.num_classes is not None else tuple(names)

    def tokens(self, height: int, width: int) -> int:
        """Of an image, the class token included."""
        size = self.patch_size
        if height % size or width % size:
            raise ConfigurationError(
                f"an image of {height}×{width} pixels doesn't divide into patches of {size}×{size}: "
                "use an image_size that is a multiple of it, or another patch_size"
            )
        return 1 + (height // size) * (width // size)


def _init(net: _Net, key: jax.Array, image_shape: tuple[int, ...]) -> Variables:
    """torchvision's, float32. Layer norms 1 and 0; the class token and `heads.head` 0.

    Positions N(0, 0.02²), `conv_proj` N(0, 1 / inputs) (torchvision cuts at ±2, far outside), biases of the MLPs
    N(0, 1e-6²); kernels are uniform: Glorot's, with query, key and value taken as one kernel, as
    `torch.nn.MultiheadAttention` has it, and `out_proj` as `torch.nn.Linear`. All other biases 0.
    """
    if len(image_shape) != 3:
        raise ConfigurationError(f"image shape {image_shape}: a vision transformer takes (height, width, channels)")
    height, width, channels = image_shape
    size, inner, depth, patch = net.width, net.mlp_width, net.depth, net.patch_size
    keys = jax.random.split(key, 5)
    patches = jax.random.normal(keys[0], (patch, patch, channels, size)) / math.sqrt(patch * patch * channels)
    params: dict[str, Any] = {
        "class_token": jnp.zeros((1, 1, size)),
        "conv_proj": {"kernel": patches, "bias": jnp.zeros(size)},
        "encoder/pos_embedding": 0.02 * jax.random.normal(keys[1], (1, net.tokens(height, width), size)),
        "encoder/ln": layer_norm_init(size, jnp.float32),
    }
    bounds = {"query": math.sqrt(6 / (size + 3 * size)), "out_proj": 1 / math.sqrt(size)}
    bounds |= dict.fromkeys(("key", "value"), bounds["query"])
    square = jax.random.uniform(keys[2], (depth, len(bounds), size, size), minval=-1, maxval=1)
    bound = math.sqrt(6 / (size + inner))
    oblong = jax.random.uniform(keys[3], (depth, 2, size * inner), minval=-bound, maxval=bound)
    biases = 1e-6 * jax.random.normal(keys[4], (depth, inner + size))
    for index, layer in enumerate(net.layers()):
        path = f"encoder/layers/{layer}"
        params |= {f"{path}/{name}": layer_norm_init(size, jnp.float32) for name in ("ln_1", "ln_2")}
        for number, (name, limit) in enumerate(bounds.items()):
            kernel = limit * square[index, number]
            params[f"{path}/self_attention/{name}"] = {"kernel": kernel, "bias": jnp.zeros(size)}
        kernels = oblong[index, 0].reshape(size, inner), oblong[index, 1].reshape(inner, size)
        params[f"{path}/mlp/0"] = {"kernel": kernels[0], "bias": biases[index, :inner]}
        params[f"{path}/mlp/3"] = {"kernel": kernels[1], "bias": biases[index, inner:]}
    if net.num_classes is not None:
        params["heads/head"] = {"kernel": jnp.zeros((size, net.num_classes)), "bias": jnp.zeros(net.num_classes)}
    return Variables(unflatten(params), {})


def _apply(
    net: _Net,
    variables: Variables,
    images: jax.Array,
    *,
    train: bool,
    hidden_layer: str | int,
    key: jax.Array | None = None,
    axis_name: str | None = None,
    flat: bool = True,
) -> tuple[jax.Array, Any]:
    """`Encoder.apply`; see `byol_jax.types`. There is no batch norm here, so `axis_name` is not used."""
    wanted = resolve_hidden_layer(net.names(), hidden_layer)
    params, stats = variables
    check_images(images, params["conv_proj"]["kernel"])
    dtype = images.dtype if net.dtype is None else net.dtype
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    keys = (None,) * (1 + net.depth) if key is None else jax.random.split(key, 1 + net.depth)
    x, seen = _tokens(net, params, images.astype(dtype))
    x = dropout(keys[0], x, rate=net.layer.dropout if train else 0.0)
    seen["encoder.dropout"] = x
    for layer, own_key in zip(net.layers(), keys[1:], strict=True):
        path = f"encoder.layers.{layer}"
        keep = str(wanted).removeprefix(f"{path}.") if str(wanted).startswith(f"{path}.") else None
        run = partial(encoder_layer, layer=net.layer, train=train, keep=keep)
        run = jax.checkpoint(run) if net.remat else run
        x, kept = run(params["encoder"]["layers"][layer], x, own_key)
        seen |= {path: x, wanted: kept} if keep else {path: x}
    seen["encoder.layers"] = x
    x = seen["encoder.ln"] = seen["encoder"] = layer_norm(params["encoder"]["ln"], x)
    x = seen[POOLED] = x[:, 0]  # [N, D]
    if net.num_classes is not None:
        x = seen["heads"] = seen["heads.head"] = linear(params["heads"]["head"], x)  # [N, num_classes]
    features = x if wanted == OUTPUT else seen[wanted]
    return flatten_channels_first(features) if flat else features, stats


def _tokens(net: _Net, params: dict[str, Any], images: jax.Array) -> tuple[jax.Array, dict]:
    """(tokens with their positions, outputs by name)."""
    positions = params["encoder"]["pos_embedding"]
    tokens = net.tokens(*images.shape[1:3])
    if tokens != positions.shape[1]:
        raise ConfigurationError(
            f"images of {images.shape[1]}×{images.shape[2]} pixels are {tokens} tokens, and the network has "
            f"{positions.shape[1]} positions: use the image_size that it was initialised for"
        )
    patches = conv2d(images, params["conv_proj"]["kernel"], stride=net.patch_size) + params["conv_proj"]["bias"]
    classes = jnp.broadcast_to(params["class_token"], (len(images), 1, net.width))
    x = jnp.concatenate([classes, patches.reshape(len(images), -1, net.width)], axis=1)  # [N, 1 + H·W / P², D]
    return x + positions, {"conv_proj": patches}


def _check_options(net: _Net) -> None:
    sizes = {"depth": net.depth, "width": net.width, "num_heads": net.layer.num_heads, "patch_size": net.patch_size}
    sizes |= {"mlp_width": net.mlp_width} | ({} if net.num_classes is None else {"num_classes": net.num_classes})
    wrong = [f"{name}={size!r}" for name, size in sizes.items() if type(size) is not int or size < 1]
    if wrong:
        raise ConfigurationError(f"{', '.join(wrong)}: must be whole numbers above 0")
    if net.width % net.layer.num_heads:
        raise ConfigurationError(f"width={net.width}: must be a multiple of num_heads={net.layer.num_heads}")
    rates = {"dropout": net.layer.dropout, "attention_dropout": net.layer.attention_dropout}
    wrong = [f"{name}={rate!r}" for name, rate in rates.items() if not 0 <= rate < 1]
    if wrong:
        raise ConfigurationError(f"{', '.join(wrong)}: must be a probability in [0, 1)")


def resize_positions(
    variables: Variables, image_size: int | tuple[int, int], *, from_size: int | tuple[int, int] | None = None
) -> Variables:
    """`variables` of a vision transformer for images of `image_size`, its learned positions interpolated.

    Bicubic and antialiased over the grid of patches; the class token's position stays. Positions of the same grid come
    back with the same bits.

    Args:
        variables: of `byol_jax.nets.vit`, initialised or loaded; params only are changed.
        image_size: pixels, one number or (height, width), multiples of the patch's size.
        from_size: what the positions are for, likewise; None: square images.

    Raises:
        ConfigurationError: no positions, a size that the patches don't divide, positions that aren't those of
            `from_size`, or that may be those of a square and of `image_size` alike.

    Example:
        >>> import byol_jax
        >>> encoder = byol_jax.nets.vit(1, width=8, num_heads=2, patch_size=4)
        >>> variables = resize_positions(encoder.init(jax.random.key(0), (16, 16, 3)), (8, 24))
        >>> variables.params["encoder"]["pos_embedding"].shape
        (1, 13, 8)

    Source: timm's `resample_abs_pos_embed`. torchvision's `interpolate_embeddings` aligns corners instead.
    """
    params = variables.params
    if "pos_embedding" not in params.get("encoder", {}):
        raise ConfigurationError("resize_positions: there is no encoder/pos_embedding, as nets.vit's variables have it")
    positions, patch = params["encoder"]["pos_embedding"], params["conv_proj"]["kernel"].shape[0]
    grid, count = _grid(image_size, patch, name="image_size"), positions.shape[1] - 1
    side = math.isqrt(count)
    before = (side, side) if from_size is None else _grid(from_size, patch, name="from_size")
    if before[0] * before[1] != count:
        expected = "a square grid: give from_size" if from_size is None else f"from_size={from_size}, {before}"
        raise ConfigurationError(f"{count + 1} positions: expected a class token's and those of {expected}")
    if from_size is None and grid != before and grid[0] * grid[1] == count:
        raise ConfigurationError(
            f"image_size={image_size}: {count} positions may be a grid of {before[0]}×{before[1]} or already one of "
            f"{grid[0]}×{grid[1]}: give from_size, the size that they are for"
        )
    if grid == before:
        return variables
    width = positions.shape[2]
    wide = positions[0, 1:].reshape(*before, width).astype(at_least_float32(positions.dtype))  # [h, w, D]
    resized = jax.image.resize(wide, (*grid, width), "bicubic", antialias=True).astype(positions.dtype)
    resized = jnp.concatenate([positions[:, :1], resized.reshape(1, -1, width)], axis=1)  # [1, 1 + h'·w', D]
    return variables._replace(params=params | {"encoder": params["encoder"] | {"pos_embedding": resized}})


def _grid(image_size: int | tuple[int, int], patch: int, *, name: str) -> tuple[int, int]:
    """How many patches lie in a column and in a row of such an image."""
    size = image_sides(image_size, name=f"{name}={image_size}")
    if any(pixels < patch or pixels % patch for pixels in size):
        raise ConfigurationError(f"{name}={image_size}: must be a multiple of the patches' {patch} pixels")
    return size[0] // patch, size[1] // patch
