"""From the arguments of `make_learner` to everything that `byol.py` needs, checked. No device work is done here.

Shapes are found by abstract evaluation (`jax.eval_shape`), so a wrong layer, size or number of channels is reported
before anything is allocated or compiled. What the pieces then do is in `byol.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byol_jax import augment, optim
from byol_jax.errors import ConfigurationError, InteropError, one_line
from byol_jax.hidden import OUTPUT, resolve_hidden_layer
from byol_jax.nets import heads
from byol_jax.ops.pool import flatten_channels_first
from byol_jax.tree import cast, leaf_names
from byol_jax.types import Encoder, Variables

__all__ = ["IMAGENET_MEAN_STD", "Settings", "foreign", "resolve", "select_features"]

IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Per-channel mean and standard deviation of ImageNet's training images in [0, 1]; byol-pytorch's and the paper's."""

ENCODER_FUNCTIONS = ("init", "apply", "hidden_layers")


class Settings(NamedTuple):
    """What a learner is made of; everything static."""

    encoder: Encoder
    hidden_layer: str | int
    image_shape: tuple[int, ...]
    feature_size: int
    projection_size: int
    projector: heads.Head
    predictor: heads.Head
    augment1: Callable[[jax.Array, jax.Array], jax.Array]
    augment2: Callable[[jax.Array, jax.Array], jax.Array]
    mean_std: tuple[np.ndarray, np.ndarray] | None
    decay: float | Callable[[jax.Array], Any]
    optimizer: optax.GradientTransformation
    trained: Any
    use_momentum: bool
    separate_views: bool
    axis_name: str | None
    sync_axis: str | None
    compute_dtype: Any
    storage_dtype: Any


def foreign():
    """The context in which other people's code runs: their modules and optimisers may mix dtypes, ours may not."""
    return jax.numpy_dtype_promotion("standard")


def resolve(
    encoder: Encoder,
    *,
    image_size: int | Sequence[int],
    hidden_layer: str | int,
    projection_size: int,
    projection_hidden_size: int,
    prediction_hidden_size: int | None,
    moving_average_decay: float | Callable,
    augment_fn: Callable | None,
    augment_fn2: Callable | None,
    normalize: Any,
    use_momentum: bool,
    simplicial_embeddings: bool,
    sync_batchnorm: bool | None,
    views: str,
    num_channels: int | None,
    optimizer: optax.GradientTransformation,
    axis_name: str | None,
    dtype: Any,
) -> Settings:
    """Checks every argument of `make_learner` and finds what follows from them. Raises as documented there."""
    _check_encoder(encoder)
    predictor_hidden = projection_hidden_size if prediction_hidden_size is None else prediction_hidden_size
    _check_numbers(projection_size, projection_hidden_size, predictor_hidden, moving_average_decay, views)
    if sync_batchnorm and axis_name is None:
        raise ConfigurationError("sync_batchnorm=True needs axis_name, the mapped axis to average over")
    compute_dtype = _floating(dtype)
    with foreign():
        storage_dtype = jnp.promote_types(jnp.float32, compute_dtype)
    seen = _on_one_device(encoder, axis_name)
    shape = _image_shape(seen, image_size, num_channels, has_augmentation=augment_fn is not None)
    if augment_fn is None and augment_fn2 is not None:
        raise ConfigurationError("augment_fn2 without augment_fn: give both, or only augment_fn for both views")
    first = augment_fn or augment.simclr(shape[:2])
    layer, feature_size, variables = _representation(seen, hidden_layer, shape, storage_dtype, compute_dtype)
    make_projector = heads.mlp if use_momentum else heads.simsiam_mlp
    projector = make_projector(projection_hidden_size, projection_size)
    return Settings(
        encoder=encoder,
        hidden_layer=layer,
        image_shape=shape,
        feature_size=feature_size,
        projection_size=projection_size,
        projector=heads.simplicial(projector) if simplicial_embeddings else projector,
        predictor=heads.mlp(predictor_hidden, projection_size),
        augment1=first,
        augment2=augment_fn2 or first,
        mean_std=_mean_std(normalize, shape[-1], is_default=augment_fn is None),
        decay=moving_average_decay,
        optimizer=optimizer,
        trained=_trained(seen, layer, variables, shape, compute_dtype),
        use_momentum=use_momentum,
        separate_views=views == "separate",
        axis_name=axis_name,
        sync_axis=axis_name if sync_batchnorm is not False else None,
        compute_dtype=compute_dtype,
        storage_dtype=storage_dtype,
    )


def select_features(features: jax.Array) -> jax.Array:
    """[N, D] from what a hidden layer gave; feature maps are flattened in PyTorch's order, C·H·W."""
    return features if features.ndim == 2 else flatten_channels_first(features)


def _check_numbers(projection_size: Any, projector_hidden: Any, predictor_hidden: Any, decay: Any, views: str) -> None:
    sizes = {
        "projection_size": projection_size,
        "projection_hidden_size": projector_hidden,
        "prediction_hidden_size": predictor_hidden,
    }
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigurationError(f"{name}={value!r}: expected a whole number of at least 1")
    if not callable(decay) and not (isinstance(decay, int | float) and 0 <= decay <= 1):
        raise ConfigurationError(f"moving_average_decay={decay!r}: expected a number in [0, 1] or a schedule")
    if views not in ("concatenated", "separate"):
        raise ConfigurationError(f"views={views!r}: expected 'concatenated' or 'separate'")


def _floating(dtype: Any) -> Any:
    given = jnp.dtype(dtype)
    if not jnp.issubdtype(given, jnp.floating):
        raise ConfigurationError(f"dtype={dtype!r}: expected a floating dtype")
    if given == jnp.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ConfigurationError("dtype=float64 needs x64: jax.config.update('jax_enable_x64', True)")
    return given


def _image_shape(encoder: Encoder, size: Any, channels: int | None, *, has_augmentation: bool) -> tuple[int, ...]:
    """One input's shape. A pair is (H, W), unless only the pair itself, taken as a whole shape, suits the encoder."""
    sizes = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, Sequence) else ()
    if not sizes or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in sizes):
        raise ConfigurationError(f"image_size={size!r}: expected an int, (H, W) or a whole input shape, all at least 1")
    if len(sizes) != 2 or channels is None:
        if not has_augmentation:
            raise ConfigurationError(f"a whole input shape, {sizes}, needs augment_fn, a function (key, x) -> x")
        return sizes
    shape = (*sizes, channels)
    if isinstance(size, int) or not has_augmentation or _gives_vectors(encoder, shape):
        return shape
    return sizes if _gives_vectors(encoder, sizes) else shape


def _on_one_device(encoder: Encoder, axis_name: str | None) -> Encoder:
    """For abstract evaluation: a network that itself averages over the mapped axis finds it, one device wide."""
    if axis_name is None:
        return encoder

    def apply(variables: Variables, images: jax.Array, **options: Any) -> Any:
        mapped = jax.vmap(partial(encoder.apply, **options), in_axes=(None, 0), axis_name=axis_name)
        return jax.tree.map(lambda leaf: leaf[0], mapped(variables, images[None]))

    return encoder._replace(apply=apply)


def _gives_vectors(encoder: Encoder, shape: tuple[int, ...]) -> bool:
    try:
        return len(_outputs(encoder, OUTPUT, _variables(encoder, shape, None), shape, jnp.float32).shape) == 2
    except Exception:  # whatever a user's network raises on an input that it wasn't made for
        return False


def _variables(encoder: Encoder, shape: tuple[int, ...], dtype: Any) -> Variables:
    """The encoder's variables, abstractly; floating ones in `dtype`."""
    with foreign():
        variables = jax.eval_shape(lambda: encoder.init(jax.random.key(0), shape))
    if not isinstance(variables, Variables):
        kind = type(variables).__name__
        raise ConfigurationError(f"the encoder's init gives a {kind}: expected byol_jax.Variables(params, stats)")
    return variables if dtype is None else jax.eval_shape(partial(cast, dtype=dtype), variables)


def _outputs(encoder: Encoder, layer: Any, variables: Variables, shape: tuple[int, ...], dtype: Any) -> Any:
    """What the encoder gives for two images, abstractly; its statistics must come back as they went in."""

    def apply(params: Any, stats: Any, images: jax.Array) -> Any:
        return encoder.apply(
            Variables(params, stats), images, train=True, hidden_layer=layer, key=jax.random.key(0), axis_name=None
        )

    with foreign():
        given = jax.eval_shape(apply, *variables, jax.ShapeDtypeStruct((2, *shape), dtype))
    if not isinstance(given, tuple) or len(given) != 2:
        raise ConfigurationError(
            f"the encoder's apply gives a {type(given).__name__}: expected a pair, (features, new_stats)"
        )
    features, stats = given
    before, after = (_shapes(tree) for tree in (variables.stats, stats))
    if before != after:
        wrong = ", ".join(sorted(name or "stats" for name, _ in before.items() ^ after.items()))
        raise ConfigurationError(
            f"the encoder's apply gives statistics of other names or shapes than it gets ({wrong}): expected the same"
        )
    return features


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Names of a pytree's leaves and their shapes."""
    return dict(zip(leaf_names(tree), (leaf.shape for leaf in jax.tree.leaves(tree)), strict=True))


def _representation(encoder: Encoder, hidden_layer: Any, shape: Any, storage: Any, compute: Any):
    """The hidden layer's name, its width and the encoder's abstract variables."""
    try:
        variables = _variables(encoder, shape, storage)
        layer = resolve_hidden_layer(tuple(encoder.hidden_layers(variables)), hidden_layer)
        features = _outputs(encoder, layer, _cast(variables, compute), shape, compute)
    except (ConfigurationError, InteropError):
        raise
    except Exception as error:
        reason = one_line(error, at_most=200)
        raise ConfigurationError(
            f"the encoder can't take inputs of shape {shape}: give its own image_size and num_channels ({reason})"
        ) from error
    _check_features(features, hidden_layer, is_output=layer == OUTPUT)
    return layer, int(np.prod(features.shape[1:])), variables


def _check_features(features: Any, hidden_layer: Any, *, is_output: bool) -> None:
    """Whether two images have given one floating array with a row for each; hidden feature maps may have more axes."""
    if not isinstance(features, jax.ShapeDtypeStruct):
        given = f"a {type(features).__name__}"
    elif not jnp.issubdtype(features.dtype, jnp.floating):
        given = f"dtype {features.dtype}"
    elif len(features.shape) < 2 or features.shape[0] != 2 or (is_output and len(features.shape) != 2):
        given = f"shape {features.shape} for 2 images"
    else:
        return
    raise ConfigurationError(
        f"hidden layer {hidden_layer!r} gives {given}: expected floating [N, D]; choose another hidden_layer"
    )


def _check_encoder(encoder: Any) -> None:
    lacking = [name for name in ENCODER_FUNCTIONS if not callable(getattr(encoder, name, None))]
    if lacking:
        raise ConfigurationError(
            f"encoder: a {type(encoder).__name__} has no function {', '.join(lacking)}: expected a byol_jax.Encoder;"
            " a module becomes one by from_linen, from_nnx or interop.from_torch_module"
        )


def _cast(variables: Variables, dtype: Any) -> Variables:
    return Variables(jax.eval_shape(partial(cast, dtype=dtype), variables.params), variables.stats)


def _trained(encoder: Encoder, layer: Any, variables: Variables, shape: Any, dtype: Any) -> Any:
    """Which of the encoder's parameters the representation depends on; a pytree of bools."""

    def features(params: Any, stats: Any, images: jax.Array) -> jax.Array:
        with foreign():
            given, _ = encoder.apply(
                Variables(params, stats), images, train=True, hidden_layer=layer, key=jax.random.key(0), axis_name=None
            )
        return given

    images = jax.ShapeDtypeStruct((2, *shape), dtype)
    return optim.depended_on(features, _cast(variables, dtype).params, variables.stats, images)


def _mean_std(normalize: Any, channels: int, *, is_default: bool) -> tuple[np.ndarray, np.ndarray] | None:
    if normalize is None or (isinstance(normalize, str) and normalize == "auto" and not (is_default and channels == 3)):
        return None
    given = IMAGENET_MEAN_STD if isinstance(normalize, str) and normalize == "auto" else normalize
    try:
        mean, std = (np.asarray(part, np.float64).reshape(-1) for part in given)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"normalize={normalize!r}: expected (mean, std), None or 'auto'") from error
    if any(part.size not in (1, channels) for part in (mean, std)) or not (std > 0).all():
        raise ConfigurationError(
            f"normalize={normalize!r}: expected a mean and a positive std, each one number or {channels}, one a channel"
        )
    return mean, std
