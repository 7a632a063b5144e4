"""One recipe: how a network learns, as a frozen dataclass, as JSON in config.json, and as arguments of `make_learner`.

The presets are recipes, the options of `byol-jax train` fill one in, the demo uses one, and a run that is opened later
is rebuilt from the JSON of its own. Nothing here starts a run or builds a network. JAX and optax are imported inside
the functions that need them, so that the command line knows every recipe without loading either.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from byol_jax.errors import ConfigurationError

if TYPE_CHECKING:
    import jax
    import optax

__all__ = [
    "AUGMENTATIONS",
    "DEFAULT",
    "DTYPES",
    "LEARNING_RATES",
    "OPTIMIZERS",
    "SCHEDULES",
    "VIEWS",
    "WEIGHT_DECAYS",
    "Recipe",
    "augmentations",
    "check_effect",
    "check_warmup",
    "from_json",
    "learner_arguments",
    "learning_rate",
    "mean_std",
    "optimizer",
    "size_for_run",
    "target_decay",
    "to_json",
    "warmup_steps",
    "without_effect",
]

OPTIMIZERS = ("adam", "adamw", "lars", "sgd")
AUGMENTATIONS = ("simclr", "byol", "small_grey", "multichannel", "none")
SCHEDULES = ("constant", "cosine")
VIEWS = ("concatenated", "separate")
DTYPES = ("float32", "bfloat16")

LEARNING_RATES = {"adam": 3e-4, "adamw": 3e-4, "lars": 0.2, "sgd": 0.03}
"""Adam's is byol-pytorch's example; LARS's the paper's base rate (appendix J, 1000 epochs), for a batch of 256."""

WEIGHT_DECAYS = {"adam": 0.0, "adamw": 1e-4, "lars": 1.5e-6, "sgd": 0.0}
"""AdamW's is optax's own; LARS's the paper's for 1000 epochs."""

ValueRange = tuple[tuple[float, ...], tuple[float, ...]]

MeanStd = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Recipe:
    """How a run learns, from which images, and for how long.

    At most one of `epochs` and `steps` is set, and one of `warmup_epochs`, `warmup_fraction` and `warmup_steps`.

    Attributes:
        name: a preset's is what `byol-jax train --preset` takes.
        optimizer: "adam", "adamw", "lars" or "sgd" with momentum 0.9.
        base_learning_rate: the peak. LARS's is quoted for a batch of 256 and is scaled by batch_size / 256.
        weight_decay: on leaves with two dimensions or more; for "adamw" decoupled, and times the rate.
        base_decay: the target's decay, or with the cosine schedule what it rises to 1 from.
        batch_size: images a step, on all devices together.
        network: the encoder's name in `nets`; hidden_layer: where its representation is taken.
        image_size, num_channels: what the network sees, in pixels and channels.
        normalize: (mean, standard deviation) for each channel, of images in [0, 1]; None; or "auto", which is what the
            network's weights were trained with, ImageNet's where nothing is known of them, and None for grey images.
        value_range: (low, high) of raw images, one number or one a channel each, as in `make_learner`; None, as there,
            but for a folder of grey images of 16 bits "auto"; "auto" or "percentile:P": found from the images when a
            run begins (runs/value_range.py), and until then no range.
        augmentation: the set's name in `augment`, or "none".
        views: how the two views share batch-norm statistics; as in `make_learner`.
        epochs, steps: the run's length.
        warmup_epochs, warmup_fraction, warmup_steps: the warm-up's length, in epochs, as a part of all steps, or in
            steps.
        projection_hidden_size, projection_size: widths of both heads; prediction_hidden_size: of the predictor, where
            it isn't the projector's.
        network_options: the encoder's arguments in `nets`. DeepMind's ResNets have {"padding": "same", "shortcut":
            "always"}.
        use_momentum: False for no target network (SimSiam).
        schedule: "cosine" (after the warm-up the rate falls to 0 by a half cosine, and the target's decay rises to 1 by
            another) or "constant".
        scale_learning_rate: False for LARS's rate as it stands: runs that began before the rate was scaled go on so.
        dtype: what the networks compute in, "float32" or "bfloat16"; weights, statistics and loss are float32.
    """

    name: str
    optimizer: Literal["adam", "adamw", "lars", "sgd"]
    base_learning_rate: float
    weight_decay: float
    base_decay: float
    batch_size: int
    network: str
    hidden_layer: str | int
    image_size: int | tuple[int, int]
    normalize: MeanStd | Literal["auto"] | None
    augmentation: Literal["simclr", "byol", "small_grey", "multichannel", "none"]
    views: Literal["concatenated", "separate"]
    epochs: int | None = None
    steps: int | None = None
    warmup_epochs: float | None = None
    warmup_fraction: float | None = None
    num_channels: int = 3
    projection_hidden_size: int = 4096
    projection_size: int = 256
    network_options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    prediction_hidden_size: int | None = None
    use_momentum: bool = True
    schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int | None = None
    scale_learning_rate: bool = True
    dtype: Literal["float32", "bfloat16"] = "float32"
    value_range: ValueRange | str | None = None


DEFAULT = Recipe(
    name="default",
    optimizer="adam",
    base_learning_rate=LEARNING_RATES["adam"],
    weight_decay=WEIGHT_DECAYS["adam"],
    base_decay=0.99,
    batch_size=256,
    network="resnet18",
    hidden_layer=-2,
    image_size=224,
    normalize="auto",
    augmentation="simclr",
    views="concatenated",
    schedule="constant",
    warmup_steps=0,
)
"""What `byol-jax train` does unless told otherwise: `make_learner`'s defaults, which are byol-pytorch's."""


def size_for_run(recipe: Recipe, *, total_steps: int, steps_per_epoch: float, batch_size: int) -> Recipe:
    """The recipe of a run of this size: its length, and a warm-up stated in epochs, in steps.

    Args:
        recipe: any.
        total_steps: the run's length.
        steps_per_epoch: images / batch_size, unrounded; the warm-up is rounded down to whole steps.
        batch_size: the global batch size that is really used.

    Example:
        >>> import dataclasses
        >>> paper = dataclasses.replace(DEFAULT, warmup_epochs=10)
        >>> size_for_run(paper, total_steps=31_278, steps_per_epoch=1_281_167 / 4096, batch_size=4096).warmup_steps
        3127
    """
    sized = replace(recipe, epochs=None, steps=total_steps, batch_size=batch_size)
    if recipe.warmup_epochs is None:
        return sized
    return replace(sized, warmup_epochs=None, warmup_steps=math.floor(recipe.warmup_epochs * steps_per_epoch))


def warmup_steps(recipe: Recipe) -> int:
    """The warm-up of a recipe that `size_for_run` gave, in steps. A run may be shorter than it.

    Example:
        >>> import dataclasses
        >>> warmup_steps(dataclasses.replace(DEFAULT, steps=1000, warmup_fraction=0.05))
        50
    """
    if recipe.warmup_fraction is not None:
        return math.floor(recipe.warmup_fraction * _length(recipe))
    return recipe.warmup_steps or 0


def check_warmup(recipe: Recipe) -> None:
    """Nothing, where the warm-up of a recipe that `size_for_run` gave isn't longer than the run.

    Raises:
        ConfigurationError: it is.
    """
    warmup, length = warmup_steps(recipe), _length(recipe)
    if not 0 <= warmup <= length:
        raise ConfigurationError(
            f"recipe {recipe.name}: warmup_steps={warmup}: expected 0 to total_steps={length}; shorten the warm-up"
        )


def without_effect(recipe: Recipe) -> list[str]:
    """What a recipe says and no run of it would do: "weight_decay" with Adam, "warmup" with a constant rate.

    Example:
        >>> import dataclasses
        >>> without_effect(dataclasses.replace(DEFAULT, weight_decay=0.1, warmup_steps=5))
        ['weight_decay', 'warmup']
    """
    warmup = recipe.warmup_epochs or recipe.warmup_fraction or recipe.warmup_steps
    found = {
        "weight_decay": recipe.optimizer == "adam" and recipe.weight_decay,
        "warmup": recipe.schedule == "constant" and warmup,
    }
    return [name for name, is_idle in found.items() if is_idle]


def check_effect(recipe: Recipe) -> None:
    """Nothing, where all that the recipe says has an effect. A stored run's isn't asked: it went as it went.

    Raises:
        ConfigurationError: `without_effect` names something.
    """
    words = {
        "weight_decay": f"weight_decay={recipe.weight_decay:g} with optimizer='adam', which has none: take adamw, lars"
        " or sgd, or weight_decay=0",
        "warmup": "a warm-up with schedule='constant', which has none: take 'cosine', or set warmup_epochs,"
        " warmup_fraction and warmup_steps to None",
    }
    for name in without_effect(recipe):
        raise ConfigurationError(f"recipe {recipe.name}: {words[name]}")


def to_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as config.json's "learner" has it; network, image size, batch size and length lie beside it there.

    A key that isn't there means what every run did before there was such a key.

    Example:
        >>> to_json(DEFAULT)["learning_rate"]
        0.0003
    """
    later = {
        "prediction_hidden_size": recipe.prediction_hidden_size,
        "warmup_epochs": recipe.warmup_epochs,
        "warmup_fraction": recipe.warmup_fraction,
        "views": None if recipe.views == "concatenated" else recipe.views,
        "scale_learning_rate": True if recipe.optimizer == "lars" and recipe.scale_learning_rate else None,
        "dtype": None if recipe.dtype == "float32" else recipe.dtype,
        "value_range": _known_range(recipe) and _lists(_known_range(recipe)),
    }
    in_steps = recipe.warmup_epochs is None and recipe.warmup_fraction is None
    return {
        "hidden_layer": recipe.hidden_layer,
        "projection_size": recipe.projection_size,
        "projection_hidden_size": recipe.projection_hidden_size,
        "moving_average_decay": recipe.base_decay,
        "use_momentum": recipe.use_momentum,
        "num_channels": recipe.num_channels,
        "augment": recipe.augmentation,
        **({} if recipe.normalize == "auto" else {"normalize": _lists(recipe.normalize)}),
        "optimizer": recipe.optimizer,
        "learning_rate": recipe.base_learning_rate,
        "weight_decay": recipe.weight_decay,
        "schedule": recipe.schedule,
        **({"warmup_steps": recipe.warmup_steps or 0} if in_steps else {}),
        **{name: value for name, value in later.items() if value is not None},
    }


def from_json(
    learner: Mapping[str, Any],
    *,
    name: str = "run",
    network: str = "",
    network_options: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int],
    batch_size: int,
    steps: int | None = None,
    epochs: int | None = None,
) -> Recipe:
    """The recipe that `to_json` wrote, with what lies beside it in config.json.

    Args:
        learner: config.json's "learner".
        name, network, network_options, image_size, batch_size, steps, epochs: as in `Recipe`.

    Raises:
        KeyError, TypeError: it isn't as it was written.

    Example:
        >>> from_json(to_json(DEFAULT), name="default", network="resnet18", image_size=224, batch_size=256) == DEFAULT
        True
    """
    normalize = learner.get("normalize", "auto")
    return Recipe(
        name=name,
        optimizer=learner["optimizer"],
        base_learning_rate=learner["learning_rate"],
        weight_decay=learner["weight_decay"],
        base_decay=learner["moving_average_decay"],
        batch_size=batch_size,
        network=network,
        hidden_layer=learner["hidden_layer"],
        image_size=image_size,
        normalize=normalize if normalize in ("auto", None) else _tuples(normalize),
        augmentation=learner["augment"],
        views=learner.get("views", "concatenated"),
        epochs=epochs,
        steps=steps,
        warmup_epochs=learner.get("warmup_epochs"),
        warmup_fraction=learner.get("warmup_fraction"),
        num_channels=learner["num_channels"],
        projection_hidden_size=learner["projection_hidden_size"],
        projection_size=learner["projection_size"],
        network_options=network_options or {},
        prediction_hidden_size=learner.get("prediction_hidden_size"),
        use_momentum=learner["use_momentum"],
        schedule=learner["schedule"],
        warmup_steps=learner.get("warmup_steps"),
        scale_learning_rate=learner["optimizer"] != "lars" or learner.get("scale_learning_rate", False),
        dtype=learner.get("dtype", "float32"),
        value_range=_tuples(learner["value_range"]) if "value_range" in learner else None,
    )


def learner_arguments(recipe: Recipe, *, normalize: Any = None) -> dict[str, Any]:
    """`make_learner`'s arguments apart from the encoder, of a recipe that `size_for_run` gave.

    Args:
        recipe: with `steps`.
        normalize: what the network's weights were trained with, where that is known, for `recipe.normalize="auto"`.

    Raises:
        ConfigurationError: a name or a size that nothing can be made of.

    Example:
        >>> import dataclasses
        >>> learner_arguments(dataclasses.replace(DEFAULT, steps=100))["projection_size"]
        256
    """
    _check_name("dtype", recipe.dtype, DTYPES)
    view1, view2 = augmentations(recipe.augmentation, recipe.image_size)
    return {
        "image_size": recipe.image_size,
        "num_channels": recipe.num_channels,
        "hidden_layer": recipe.hidden_layer,
        "projection_size": recipe.projection_size,
        "projection_hidden_size": recipe.projection_hidden_size,
        "prediction_hidden_size": recipe.prediction_hidden_size,
        "moving_average_decay": target_decay(recipe),
        "use_momentum": recipe.use_momentum,
        "augment_fn": view1,
        "augment_fn2": view2,
        "value_range": _known_range(recipe),
        "normalize": mean_std(recipe.num_channels, normalize) if recipe.normalize == "auto" else recipe.normalize,
        "views": recipe.views,
        "optimizer": optimizer(recipe),
        "dtype": recipe.dtype,
    }


def optimizer(recipe: Recipe) -> "optax.GradientTransformation":
    """The optimiser of a recipe that `size_for_run` gave, with its schedule; biases and scales don't decay.

    A run that is shorter than its warm-up ends within it.

    Args:
        recipe: with `steps`, where its schedule is the cosine.

    Raises:
        ConfigurationError: no such optimiser or schedule, or a size below 1.

    Example:
        >>> import dataclasses
        >>> constant = dataclasses.replace(DEFAULT, optimizer="sgd", base_learning_rate=0.1)
        >>> type(optimizer(constant)).__name__
        'GradientTransformationExtraArgs'
    """
    import optax

    from byol_jax import optim

    _check_name("optimizer", recipe.optimizer, OPTIMIZERS)
    rate: Any = learning_rate(recipe)
    if recipe.optimizer == "adam":
        return optax.adam(rate)
    if recipe.optimizer == "adamw":
        return optax.adamw(rate, weight_decay=recipe.weight_decay, mask=optim.matrices)
    if recipe.optimizer == "lars":
        return optim.lars(rate, weight_decay=recipe.weight_decay)
    return optax.chain(optax.add_decayed_weights(recipe.weight_decay, optim.matrices), optax.sgd(rate, momentum=0.9))


def learning_rate(recipe: Recipe) -> "float | Callable[[Any], jax.Array]":
    """The learning rate of a recipe that `size_for_run` gave: a number, or with a cosine a function of the step.

    LARS's is scaled by batch / 256, where the recipe says so.

    Example:
        >>> learning_rate(DEFAULT)
        0.0003
    """
    from byol_jax import schedules

    _check_name("schedule", recipe.schedule, SCHEDULES)
    scaled = recipe.optimizer == "lars" and recipe.scale_learning_rate
    batch_size = recipe.batch_size if scaled else schedules.REFERENCE_BATCH_SIZE
    if recipe.schedule == "constant":
        return recipe.base_learning_rate * batch_size / schedules.REFERENCE_BATCH_SIZE
    warmup, length = warmup_steps(recipe), _length(recipe)
    return schedules.learning_rate(recipe.base_learning_rate, batch_size, warmup, max(warmup, length))


def target_decay(recipe: Recipe) -> "float | Callable[[Any], jax.Array]":
    """The target's decay of a recipe that `size_for_run` gave: a number, or with a cosine a function of the step.

    Example:
        >>> target_decay(DEFAULT)
        0.99
    """
    from byol_jax import schedules

    if recipe.schedule == "constant":
        return recipe.base_decay
    return schedules.target_decay(recipe.base_decay, _length(recipe))


def augmentations(name: str, image_size: int | tuple[int, int]) -> tuple[Callable, Callable]:
    """A set's functions for view 1 and view 2; of "none", the whole image, resized.

    Args:
        name: one of `AUGMENTATIONS`.
        image_size: a view's, in pixels.

    Raises:
        ConfigurationError: no such set.
    """
    from byol_jax import augment

    _check_name("augment", name, AUGMENTATIONS)
    if name == "byol":
        return augment.byol(image_size, view=1), augment.byol(image_size, view=2)
    if name == "none":
        return (whole := _whole_image(image_size)), whole
    make_view = {"simclr": augment.simclr, "small_grey": augment.small_grey, "multichannel": augment.multichannel}[name]
    return (view := make_view(image_size)), view


def mean_std(num_channels: int, weights: Any = None) -> Any:
    """What `normalize="auto"` stands for: the weights' own, else ImageNet's for colour and None for grey images.

    Args:
        num_channels: the images'.
        weights: the mean and standard deviation that the network's weights were trained with, where they are known.
    """
    from byol_jax.settings import IMAGENET_MEAN_STD

    if weights is not None:
        return weights
    return IMAGENET_MEAN_STD if num_channels == 3 else None


def _whole_image(image_size: int | tuple[int, int]) -> Callable:
    from byol_jax import augment

    def view(key: Any, image: Any) -> Any:
        height, width = image.shape[:2]
        return augment.crop_and_resize(image, (0, 0, height, width), size=image_size)

    return view


def _length(recipe: Recipe) -> int:
    if recipe.steps is None:
        raise ConfigurationError(
            f"recipe {recipe.name}: its length in steps isn't known: give steps, or use size_for_run"
        )
    return recipe.steps


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ConfigurationError(f"recipe: {what} {name!r} is not one of {', '.join(known)}")


def _known_range(recipe: Recipe) -> ValueRange | None:
    """The recipe's value range; None for one that is still to be found from the images."""
    return None if isinstance(recipe.value_range, str) else recipe.value_range


def _lists(pair: MeanStd | ValueRange | None) -> list[list[float]] | None:
    return None if pair is None else [list(part) for part in pair]


def _tuples(pair: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(pair[0]), tuple(pair[1])
