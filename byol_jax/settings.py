"""From the arguments of `make_learner` to everything that `byol.py` needs, checked. No device work is done here.

Shapes are found by abstract evaluation (`jax.eval_shape`), so a wrong layer, size or number of channels is reported
before anything is allocated or compiled. Layer, dtypes and axis are settled here too: the networks that `byol.py` gets
are plain functions of variables and images. What it does with them is written there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byol_jax import augment, optim
from byol_jax.errors import ConfigurationError, InteropError, one_line
from byol_jax.hidden import OUTPUT, FeatureLayout, feature_layout, resolve_hidden_layer
from byol_jax.nets import heads
from byol_jax.ops.pool import flatten_channels_first
from byol_jax.ops.precision import at_least_float32, compute_in, standard_promotion
from byol_jax.optimizer_checks import check_evaluation_params, check_optimizer, warn_of_training_point
from byol_jax.tree import cast, copy_leaves, leaf_names
from byol_jax.types import Encoder, Images, PyTree, Variables

__all__ = ["IMAGENET_MEAN_STD", "Network", "Options", "Settings", "check_sizes"]

IMAGENET_MEAN_STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Per-channel mean and standard deviation of ImageNet's training images in [0, 1]; byol-pytorch's and the paper's."""

ENCODER_FUNCTIONS = ("init", "apply", "hidden_layers")


class NetworkApply(Protocol):
    def __call__(
        self, variables: Variables, x: Images, *, train: bool, key: jax.Array | None = None
    ) -> tuple[jax.Array, PyTree]: ...


class Network(NamedTuple):
    """One of a learner's three networks, with layer, dtypes and axis settled.

    Attributes:
        init: `init(key) -> Variables`, fresh buffers in the storage dtype.
        apply: `apply(variables, x, *, train, key=None) -> (y [N, width], new_stats)`; x and y in the storage dtype,
            computed in the compute dtype. In evaluation no axis is used.
    """

    init: Callable[[jax.Array], Variables]
    apply: NetworkApply


@dataclass(frozen=True, eq=False)
class Settings:
    """What a learner is made of; everything static.

    Attributes:
        encoder: from network inputs [N, *image_shape] to features [N, feature_size].
        projector: from features to projections [N, projection_size].
        predictor: from projections to predictions [N, projection_size].
        hidden_layer: the encoder's layer that gives the features: a dotted name, or -1.
        image_shape: one network input's, (H, W, C).
        find_layout: gives what the numbers of a row of features are, as the hidden layer has them; not all ask for it.
        augment1, augment2: `(key, image) -> image`, for view 1 and view 2.
        value_range: (low, high) of raw images, which become 0 and 1, each [1] or [C]; None: by their dtype.
        mean_std: what network inputs are normalised with, after the augmentation; None: not at all.
        decay: from the step (int32) to the target's decay; 0 without momentum.
        optimizer: the optax transformation.
        evaluation_params: `(opt_state, params) -> params`, what of the optimiser is evaluated; None: the parameters.
        trained: the encoder's parameters that the features depend on; a pytree of bools.
        use_momentum: whether there is a target network.
        separate_views: whether the networks see view 1, then view 2, or both together.
        axis_name: the mapped axis that the batch is spread over.
        storage_dtype: of parameters, statistics, loss and metrics.
    """

    encoder: Network
    projector: Network
    predictor: Network
    hidden_layer: str | int
    image_shape: tuple[int, ...]
    feature_size: int
    find_layout: Callable[[], FeatureLayout]
    projection_size: int
    augment1: Callable[[jax.Array, jax.Array], jax.Array]
    augment2: Callable[[jax.Array, jax.Array], jax.Array]
    value_range: tuple[np.ndarray, np.ndarray] | None
    mean_std: tuple[np.ndarray, np.ndarray] | None
    decay: Callable[[jax.Array], Any]
    optimizer: optax.GradientTransformation
    evaluation_params: Callable[[PyTree, PyTree], PyTree] | None
    trained: PyTree
    use_momentum: bool
    separate_views: bool
    axis_name: str | None
    storage_dtype: Any

    def select_trained(self, params: dict[str, Any]) -> dict[str, Any]:
        """Those of `online.params` that the loss depends on; None in the others' place, as PyTorch's `grad is None`."""
        return params | {"encoder": optim.drop(params["encoder"], self.trained)}

    def select_evaluated(self, opt_state: PyTree, params: dict[str, Any]) -> dict[str, Any]:
        """`online.params` as they are evaluated and exported: where the optimiser says, or as they are."""
        if self.evaluation_params is None:
            return params
        with standard_promotion():
            evaluated = self.evaluation_params(opt_state, self.select_trained(params))
        return optim.fill(evaluated, params)


@dataclass(frozen=True, eq=False)
class Options:
    """`make_learner`'s options, which it documents and gives their defaults."""

    image_size: int | Sequence[int]
    hidden_layer: str | int
    projection_size: int
    projection_hidden_size: int
    prediction_hidden_size: int | None
    moving_average_decay: float | Callable
    augment_fn: Callable | None
    augment_fn2: Callable | None
    value_range: Any
    normalize: Any
    use_momentum: bool
    simplicial_embeddings: bool
    sync_batchnorm: bool | None
    views: str
    num_channels: int | None
    optimizer: optax.GradientTransformation
    evaluation_params: Callable[[PyTree, PyTree], PyTree] | None
    axis_name: str | None
    dtype: Any

    def resolve(self, encoder: Encoder) -> Settings:
        """Checks every option and finds what follows from it. Raises as `make_learner` says."""
        _check_encoder(encoder)
        width, hidden_size, prediction_hidden_size = check_sizes(
            projection_size=self.projection_size,
            projection_hidden_size=self.projection_hidden_size,
            prediction_hidden_size=(
                self.projection_hidden_size if self.prediction_hidden_size is None else self.prediction_hidden_size
            ),
        )
        _check_decay(self.moving_average_decay)
        if self.views not in ("concatenated", "separate"):
            raise ConfigurationError(f"views={self.views!r}: expected 'concatenated' or 'separate'")
        if self.sync_batchnorm and self.axis_name is None:
            raise ConfigurationError("sync_batchnorm=True needs axis_name, the mapped axis to average over")
        compute = _compute_dtype(self.dtype)
        storage = at_least_float32(compute)
        seen = _on_one_device(encoder, self.axis_name)
        has_augmentation = self.augment_fn is not None
        shape = _image_shape(seen, self.image_size, self.num_channels, has_augmentation=has_augmentation)
        if self.augment_fn is None and self.augment_fn2 is not None:
            raise ConfigurationError("augment_fn2 without augment_fn: give both, or only augment_fn for both views")
        for name, function in {"augment_fn": self.augment_fn, "augment_fn2": self.augment_fn2}.items():
            if function is not None and not callable(function):
                raise ConfigurationError(f"{name}={function!r}: expected a function (key, image) -> image")
        augment1 = self.augment_fn or augment.simclr(shape[:2])
        layer, features, variables = _representation(seen, self.hidden_layer, shape, storage, compute)
        feature_size = int(np.prod(features))
        axis_name = None if self.sync_batchnorm is False else self.axis_name
        in_dtype = partial(compute_in, compute, storage=storage)

        make_projector = heads.mlp if self.use_momentum else heads.simsiam_mlp
        projector = make_projector(hidden_size, width)
        projector = heads.simplicial(projector) if self.simplicial_embeddings else projector
        predictor = heads.mlp(prediction_hidden_size, width)
        settings = Settings(
            encoder=_encoder(encoder, shape, layer, axis_name, in_dtype, storage),
            projector=_head(projector, feature_size, axis_name, in_dtype, storage),
            predictor=_head(predictor, width, axis_name, in_dtype, storage),
            hidden_layer=layer,
            image_shape=shape,
            feature_size=feature_size,
            find_layout=partial(_layout, encoder, layer, features, variables, shape),
            projection_size=width,
            augment1=augment1,
            augment2=self.augment_fn2 or augment1,
            value_range=_value_range(self.value_range, shape[-1]),
            mean_std=_mean_std(self.normalize, shape[-1], is_default=not has_augmentation),
            decay=_decay(self.moving_average_decay if self.use_momentum else 0.0),
            optimizer=self.optimizer,
            evaluation_params=self.evaluation_params,
            trained=_used_parameters(seen, layer, variables, shape, compute),
            use_momentum=self.use_momentum,
            separate_views=self.views == "separate",
            axis_name=self.axis_name,
            storage_dtype=storage,
        )
        _check_optimizer(settings, variables.params)
        return settings


def _encoder(
    encoder: Encoder, shape: tuple[int, ...], layer: str | int, axis_name: str | None, in_dtype: Callable, storage: Any
) -> Network:
    """The encoder up to `layer`, its feature maps flattened."""

    def init(key: jax.Array) -> Variables:
        with standard_promotion():
            variables = encoder.init(key, shape)
        return cast(copy_leaves(variables), storage)  # copied first: a number that an encoder gives becomes an array

    def apply(variables: Variables, images: jax.Array, *, train: bool, key: jax.Array | None = None) -> Any:
        axis = axis_name if train else None
        with standard_promotion():
            features, stats = encoder.apply(variables, images, train=train, hidden_layer=layer, key=key, axis_name=axis)
        return _flatten(features, encoder), stats  # [N, D]

    return Network(init, in_dtype(apply))


def _head(head: heads.Head, input_size: int, axis_name: str | None, in_dtype: Callable, storage: Any) -> Network:
    """A projector or a predictor."""

    def init(key: jax.Array) -> Variables:
        return copy_leaves(head.init(key, input_size, storage))

    def apply(variables: Variables, x: jax.Array, *, train: bool, key: jax.Array | None = None) -> Any:
        del key  # nothing in a head is random
        return head.apply(variables, x, train=train, axis_name=axis_name if train else None)

    return Network(init, in_dtype(apply))


def _check_optimizer(s: Settings, encoder_params: PyTree) -> None:
    """The optimiser and what of it is evaluated, on abstract parameters of the online network."""
    params = {"encoder": encoder_params}
    for name, head in {"projector": s.projector, "predictor": s.predictor}.items():
        params[name] = jax.eval_shape(lambda head=head: head.init(jax.random.key(0))).params
    trained = s.select_trained(params)
    opt_state = check_optimizer(s.optimizer, params, trained, axis_name=s.axis_name)
    if s.evaluation_params is None:
        warn_of_training_point(opt_state)
    else:
        check_evaluation_params(s.evaluation_params, opt_state, trained)


def _decay(decay: float | Callable) -> Callable[[jax.Array], Any]:
    """From the step to the decay: a schedule, in which dtypes may mix, or a constant, which stays a Python number."""
    if callable(decay):
        return standard_promotion()(decay)
    constant = float(decay)
    return lambda step: constant


def _flatten(features: jax.Array, encoder: Encoder) -> jax.Array:
    """[N, D] from what a layer gave: feature maps in PyTorch's order, C·H·W, which a traced network's output has."""
    if features.ndim == 2:
        return features
    is_traced = encoder.facts.traced is not None
    return features.reshape(features.shape[0], -1) if is_traced else flatten_channels_first(features)


def check_sizes(*, of: str = "", least: int = 1, **sizes: Any) -> list[int]:
    """Them as ints, where each is a whole number of at least `least`, Python's or NumPy's.

    Args:
        of: whose argument it is, for the message, where that isn't `make_learner`.

    Raises:
        ConfigurationError: one isn't; names it.

    Example:
        >>> check_sizes(of="accumulate", parts=np.int32(2))
        [2]
    """
    for name, value in sizes.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            owner = f"{of}: " if of else ""
            raise ConfigurationError(f"{owner}{name}={value!r}: expected a whole number of at least {least}")
    return [int(value) for value in sizes.values()]


def _check_decay(decay: Any) -> None:
    if callable(decay):
        _check_schedule(decay)
        return
    is_number = isinstance(decay, int | float | np.integer | np.floating) and not isinstance(decay, bool)
    if not (is_number and 0 <= decay <= 1):
        raise ConfigurationError(f"moving_average_decay={decay!r}: expected a number in [0, 1] or a schedule")


def _check_schedule(decay: Callable) -> None:
    try:
        found = jax.eval_shape(_decay(decay), jax.ShapeDtypeStruct((), jnp.int32))
    except Exception as error:  # whatever a user's function raises
        raise ConfigurationError(
            f"moving_average_decay: the schedule fails for an abstract step ({one_line(error, at_most=200)}): "
            "write it with jnp.where and the like, without if"
        ) from error
    if getattr(found, "shape", None) != () or not jnp.issubdtype(found.dtype, jnp.floating):
        raise ConfigurationError(f"moving_average_decay: the schedule gives {found}, expected one floating number")


def _compute_dtype(dtype: Any) -> Any:
    try:
        given = jnp.dtype(dtype)
    except TypeError:
        raise ConfigurationError(f"dtype={dtype!r}: expected a floating dtype, jnp.bfloat16 for instance") from None
    if not jnp.issubdtype(given, jnp.floating):
        raise ConfigurationError(f"dtype={dtype!r}: expected a floating dtype")
    if given == jnp.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ConfigurationError("dtype=float64 needs x64: jax.config.update('jax_enable_x64', True)")
    return given


def _image_shape(encoder: Encoder, size: Any, channels: int | None, *, has_augmentation: bool) -> tuple[int, ...]:
    """One input's shape. A pair is (H, W), unless only the pair itself, taken as a whole shape, suits the encoder."""
    is_one = isinstance(size, int | np.integer)
    sizes = (size, size) if is_one else tuple(size) if isinstance(size, Sequence) else ()
    if not sizes or any(not isinstance(n, int | np.integer) or isinstance(n, bool) or n < 1 for n in sizes):
        raise ConfigurationError(f"image_size={size!r}: expected an int, (H, W) or a whole input shape, all at least 1")
    sizes = tuple(int(n) for n in sizes)
    if len(sizes) != 2 or channels is None:
        if not has_augmentation:
            raise ConfigurationError(f"a whole input shape, {sizes}, needs augment_fn, a function (key, x) -> x")
        return sizes
    shape = (*sizes, channels)
    if is_one or not has_augmentation:
        return shape
    return max((shape, sizes), key=lambda one: _suits(encoder, one))  # the first where both suit alike


def _on_one_device(encoder: Encoder, axis_name: str | None) -> Encoder:
    """For abstract evaluation: a network that itself averages over the mapped axis finds it, one device wide."""
    if axis_name is None:
        return encoder

    def apply(variables: Variables, images: jax.Array, **options: Any) -> Any:
        mapped = jax.vmap(partial(encoder.apply, **options), in_axes=(None, 0), axis_name=axis_name)
        return jax.tree.map(lambda leaf: leaf[0], mapped(variables, images[None]))

    return encoder._replace(apply=apply)


def _suits(encoder: Encoder, shape: tuple[int, ...]) -> int:
    """How well an input shape suits the encoder: 0 where it raises, 1 where it gives maps, 2 one vector an input."""
    try:
        _, *axes = _outputs(encoder, OUTPUT, _variables(encoder, shape, None), shape, jnp.float32).shape
    except Exception:  # whatever a user's network raises on an input that it wasn't made for
        return 0
    return 2 if axes and max(axes) == np.prod(axes) else 1  # [C, 1, 1] is one vector


def _variables(encoder: Encoder, shape: tuple[int, ...], dtype: Any) -> Variables:
    """The encoder's variables, abstractly; floating ones in `dtype`."""
    with standard_promotion():
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

    with standard_promotion():
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
    """The hidden layer's name, the shape that it gives for an image, and the encoder's abstract variables."""
    try:
        variables = _variables(encoder, shape, storage)
        layer = resolve_hidden_layer(tuple(encoder.hidden_layers(variables)), hidden_layer)
        features = _outputs(encoder, layer, _cast(variables, compute), shape, compute)
    except (ConfigurationError, InteropError):
        raise
    except Exception as error:
        reason = one_line(error, at_most=200)
        if compute != storage and _takes(encoder, hidden_layer, shape, storage):
            raise ConfigurationError(
                f"the encoder can't be computed in {compute}, in float32 it can: leave out dtype={compute} ({reason})"
            ) from error
        raise ConfigurationError(
            f"the encoder can't take inputs of shape {shape}: give its own image_size and num_channels ({reason})"
        ) from error
    _check_features(features, hidden_layer)
    return layer, tuple(features.shape[1:]), variables


def _layout(encoder: Encoder, layer: Any, features: tuple[int, ...], variables: Variables, shape: Any) -> FeatureLayout:
    """The layout of features of this shape; of a network that flattens them itself, that of what it flattens."""
    if encoder.facts.unflattened is not None and len(features) == 1:
        own = encoder._replace(apply=encoder.facts.unflattened)
        whole = tuple(_outputs(own, layer, variables, shape, jnp.float32).shape[1:])
        features = whole if np.prod(whole) == features[0] else features  # an `apply` of somebody's own gives others
    return feature_layout(features, of_torch=encoder.facts.traced is not None, image_shape=shape)


def _takes(encoder: Encoder, hidden_layer: Any, shape: Any, dtype: Any) -> bool:
    """Whether the encoder can be computed in this dtype."""
    try:
        _representation(encoder, hidden_layer, shape, dtype, dtype)
    except Exception:  # whatever a user's network raises
        return False
    return True


def _check_features(features: Any, hidden_layer: Any) -> None:
    """Whether two images have given one floating array with a row for each; feature maps have more axes."""
    if not isinstance(features, jax.ShapeDtypeStruct):
        given = f"a {type(features).__name__}"
    elif not jnp.issubdtype(features.dtype, jnp.floating):
        given = f"dtype {features.dtype}"
    elif len(features.shape) < 2 or features.shape[0] != 2:
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


def _used_parameters(encoder: Encoder, layer: Any, variables: Variables, shape: Any, dtype: Any) -> Any:
    """Which of the encoder's parameters the representation depends on; a pytree of bools."""

    def features(params: Any, stats: Any, images: jax.Array) -> jax.Array:
        with standard_promotion():
            given, _ = encoder.apply(
                Variables(params, stats), images, train=True, hidden_layer=layer, key=jax.random.key(0), axis_name=None
            )
        return given

    images = jax.ShapeDtypeStruct((2, *shape), dtype)
    return optim.find_dependence(features, _cast(variables, dtype).params, variables.stats, images)


def _value_range(given: Any, channels: int) -> tuple[np.ndarray, np.ndarray] | None:
    """(low, high) of the raw images, each [1] or [C], checked as float32 sees them."""
    if given is None:
        return None
    try:
        low, high = (np.asarray(part, np.float64).reshape(-1) for part in given)
    except (TypeError, ValueError):
        low = high = np.zeros(0)
    fits = all(part.size in (1, channels) and np.isfinite(part).all() for part in (low, high))
    if not fits or not (low.astype(np.float32) < high.astype(np.float32)).all():
        raise ConfigurationError(
            f"value_range={given!r}: expected None or finite (low, high) with low < high, each one number or"
            f" {channels}, one a channel"
        )
    return low, high


def _mean_std(normalize: Any, channels: int, *, is_default: bool) -> tuple[np.ndarray, np.ndarray] | None:
    if normalize is None or (isinstance(normalize, str) and normalize == "auto" and not (is_default and channels == 3)):
        return None
    given = IMAGENET_MEAN_STD if isinstance(normalize, str) and normalize == "auto" else normalize
    try:
        mean, std = (np.asarray(part, np.float64).reshape(-1) for part in given)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"normalize={normalize!r}: expected (mean, std), None or 'auto'") from error
    fits = all(part.size in (1, channels) and np.isfinite(part).all() for part in (mean, std))
    if not fits or not (std > 0).all():
        raise ConfigurationError(
            f"normalize={normalize!r}: expected a finite mean and a positive std, each one number or {channels}, one a"
            " channel"
        )
    return mean, std
