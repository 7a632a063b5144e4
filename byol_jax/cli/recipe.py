"""How a run learns: as options, as plain values in `config.json`, and as arguments of `make_learner`.

`byol-jax train` writes the values; a run that is opened later is rebuilt from them by the same functions.
"""

import argparse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from byol_jax.cli import values

if TYPE_CHECKING:
    import optax

__all__ = [
    "AUGMENTATIONS",
    "HIDDEN_LAYER",
    "add_hidden_layer",
    "add_recipe",
    "augmentations",
    "check_recipe",
    "learner_arguments",
    "optimizer_from",
    "recipe_from",
]

AUGMENTATIONS = ("simclr", "byol", "small_grey", "none")
HIDDEN_LAYER = -2
"""The layer before the classifier, in most networks; byol-pytorch's default."""
SCHEDULES = ("constant", "cosine")
LEARNING_RATES = {"adam": 3e-4, "adamw": 3e-4, "lars": 0.2, "sgd": 0.03}
"""Adam's is byol-pytorch's example; LARS's the paper's base rate (appendix J, 1000 epochs) at a batch of 256."""
WEIGHT_DECAYS = {"adam": 0.0, "adamw": 1e-4, "lars": 1.5e-6, "sgd": 0.0}
"""AdamW's is optax's own; LARS's the paper's for 1000 epochs."""


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds the options that decide how a run learns."""
    group = parser.add_argument_group("what is learned")
    add_hidden_layer(group, default=HIDDEN_LAYER)
    group.add_argument(
        "--projection-size", type=values.positive_int, default=256, metavar="N", help="width of the projection (256)"
    )
    group.add_argument(
        "--projection-hidden-size",
        type=values.positive_int,
        default=4096,
        metavar="N",
        help="hidden width of the projector (4096)",
    )
    group.add_argument(
        "--prediction-hidden-size",
        type=values.positive_int,
        metavar="N",
        help="hidden width of the predictor (the projector's)",
    )
    group.add_argument(
        "--augment",
        type=values.one_of(AUGMENTATIONS),
        default="simclr",
        metavar="SET",
        help=f"random changes that make the views, one of {', '.join(AUGMENTATIONS)} (simclr)",
    )
    group.add_argument(
        "--moving-average-decay",
        type=values.probability,
        default=0.99,
        metavar="X",
        help="how much of the target network stays at each step (0.99)",
    )
    group.add_argument(
        "--no-momentum", action="store_true", help="no target network: the online network stands for it (SimSiam)"
    )
    _add_optimizer(parser.add_argument_group("how it is optimised"))


def add_hidden_layer(parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, default: int | None) -> None:
    """Adds `--hidden-layer`; a default of None tells whether it was given."""
    parser.add_argument(
        "--hidden-layer",
        type=values.hidden_layer,
        default=default,
        metavar="L",
        help="where the representation is taken: a name such as avgpool, or an index into the network's children"
        f" ({HIDDEN_LAYER})",
    )


def check_recipe(options: argparse.Namespace) -> list[str]:
    """What is wrong with these options together."""
    problems = []
    if options.weight_decay and options.optimizer == "adam":
        problems.append("--weight-decay with --optimizer adam: take adamw, lars or sgd")
    if options.warmup_steps and options.schedule != "cosine":
        problems.append("--warmup-steps needs --schedule cosine")
    if options.steps is not None and options.warmup_steps >= options.steps:
        problems.append(f"--warmup-steps {options.warmup_steps} must be fewer than --steps {options.steps}")
    return problems


def recipe_from(options: argparse.Namespace, num_channels: int) -> dict[str, Any]:
    """The options as `config.json` has them: every default filled in, but for a predictor as wide as the projector."""
    size = options.prediction_hidden_size
    return ({} if size is None else {"prediction_hidden_size": size}) | {
        "hidden_layer": options.hidden_layer,
        "projection_size": options.projection_size,
        "projection_hidden_size": options.projection_hidden_size,
        "moving_average_decay": options.moving_average_decay,
        "use_momentum": not options.no_momentum,
        "num_channels": num_channels,
        "augment": options.augment,
        "optimizer": options.optimizer,
        "learning_rate": options.learning_rate or LEARNING_RATES[options.optimizer],
        "weight_decay": WEIGHT_DECAYS[options.optimizer] if options.weight_decay is None else options.weight_decay,
        "schedule": options.schedule,
        "warmup_steps": options.warmup_steps,
    }


def learner_arguments(
    recipe: Mapping[str, Any],
    *,
    image_size: int | tuple[int, int],
    total_steps: int,
    network: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """`make_learner`'s arguments, apart from the encoder and the image size.

    `network` is `config.json`'s: colours are normalised as its weights want it, where neither they nor the recipe say
    anything with ImageNet's mean and standard deviation.
    With the cosine schedule the target's decay rises to 1 as the learning rate falls to 0, as in the paper.
    """
    from byol_jax import schedules

    view1, view2, normalize = augmentations(recipe["augment"], image_size, recipe["num_channels"])
    normalize = recipe.get("normalize", network.get("normalize", normalize))
    decay = recipe["moving_average_decay"]
    same = ("hidden_layer", "projection_size", "projection_hidden_size", "use_momentum", "num_channels")
    return {name: recipe[name] for name in same} | {
        "prediction_hidden_size": recipe.get("prediction_hidden_size"),
        "moving_average_decay": schedules.target_decay(decay, total_steps) if recipe["schedule"] == "cosine" else decay,
        "augment_fn": view1,
        "augment_fn2": view2,
        "normalize": normalize,
        "optimizer": optimizer_from(recipe, total_steps),
    }


def optimizer_from(recipe: Mapping[str, Any], total_steps: int) -> "optax.GradientTransformation":
    """The optimiser that a recipe names, its learning rate following the recipe's schedule over `total_steps`.

    Example:
        >>> recipe = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "schedule": "constant"}
        >>> type(optimizer_from(recipe, total_steps=100)).__name__
        'GradientTransformationExtraArgs'
    """
    import optax

    from byol_jax import optim, schedules

    rate, weight_decay = recipe["learning_rate"], recipe["weight_decay"]
    if recipe["schedule"] == "cosine":  # the scaling by batch_size / 256 is left to the person who gives the rate
        rate = schedules.learning_rate(rate, 256, recipe["warmup_steps"], total_steps)
    if recipe["optimizer"] == "adam":
        return optax.adam(rate)
    if recipe["optimizer"] == "adamw":
        return optax.adamw(rate, weight_decay=weight_decay, mask=optim.matrices)
    if recipe["optimizer"] == "lars":
        return optim.lars(rate, weight_decay=weight_decay)
    return optax.chain(optax.add_decayed_weights(weight_decay, optim.matrices), optax.sgd(rate, momentum=0.9))


def augmentations(name: str, image_size: int | tuple[int, int], num_channels: int) -> tuple[Callable, Callable, Any]:
    """A set's functions for view 1 and view 2, and the normalisation after them: ImageNet's where there is colour."""
    from byol_jax import augment
    from byol_jax.settings import IMAGENET_MEAN_STD

    normalize = IMAGENET_MEAN_STD if num_channels == 3 else None
    if name == "byol":
        return augment.byol(image_size, view=1), augment.byol(image_size, view=2), normalize
    if name == "none":
        return (plain := _whole_image(image_size)), plain, normalize
    one = augment.simclr(image_size) if name == "simclr" else augment.small_grey(image_size)
    return one, one, normalize


def _whole_image(image_size: int | tuple[int, int]) -> Callable:
    """No augmentation: the whole image, resized."""
    from byol_jax import augment

    def view(key: Any, image: Any) -> Any:
        height, width = image.shape[:2]
        return augment.crop_and_resize(image, (0, 0, height, width), size=image_size)

    return view


def _add_optimizer(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--optimizer",
        type=values.one_of(LEARNING_RATES),
        default="adam",
        metavar="NAME",
        help=f"one of {', '.join(LEARNING_RATES)} (adam)",
    )
    rates = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())
    group.add_argument("--learning-rate", type=values.positive_number, metavar="X", help=f"the peak rate ({rates})")
    decays = ", ".join(f"{name} {decay:g}" for name, decay in WEIGHT_DECAYS.items())
    group.add_argument(
        "--weight-decay",
        type=values.non_negative_number,
        metavar="X",
        help=f"of kernels, not of biases and scales ({decays})",
    )
    group.add_argument(
        "--schedule",
        type=values.one_of(SCHEDULES),
        default="constant",
        metavar="NAME",
        help="constant, or cosine: the rate falls to 0 and the target's decay rises to 1 (constant)",
    )
    group.add_argument(
        "--warmup-steps",
        type=values.whole_number,
        default=0,
        metavar="N",
        help="steps in which the rate rises to its peak, with cosine (0)",
    )
