"""The options that fill in a recipe: `--preset`, and beside it everything that decides how a run learns.

A preset supplies what isn't given; without one, `recipe.DEFAULT` does. Hence no option has a default of its own here:
None means that it wasn't given.
"""

import argparse
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from byol_jax import presets
from byol_jax.cli import values
from byol_jax.recipe import (
    AUGMENTATIONS,
    DEFAULT,
    DTYPES,
    LEARNING_RATES,
    OPTIMIZERS,
    SCHEDULES,
    VIEWS,
    WEIGHT_DECAYS,
    Recipe,
    warmup_steps,
    without_effect,
)

__all__ = ["add_augment", "add_hidden_layer", "add_preset", "add_recipe", "check_recipe", "recipe_from"]

PRESETS = {one.preset.name: one.preset for one in presets.known()}

FIELDS = {field.name: field.name for field in fields(Recipe)} | {
    "channels": "num_channels",
    "augment": "augmentation",
    "moving_average_decay": "base_decay",
    "learning_rate": "base_learning_rate",
}
"""An option's name to the recipe's for the same; most are equal."""


def add_preset(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds `--preset`."""
    parser.add_argument(
        "--preset",
        type=values.one_of(PRESETS),
        metavar="NAME",
        help=f"a recipe, one of {', '.join(PRESETS)} (byol-jax presets says more); it supplies the network and its"
        " padding, sizes, length and all below; an option that is given wins",
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds the options that decide how a run learns."""
    group = parser.add_argument_group("what is learned (without --preset as in brackets)")
    add_hidden_layer(group)
    group.add_argument("--projection-size", type=values.positive_int, metavar="N", help="width of the projection (256)")
    group.add_argument(
        "--projection-hidden-size", type=values.positive_int, metavar="N", help="hidden width of the projector (4096)"
    )
    group.add_argument(
        "--prediction-hidden-size",
        type=values.positive_int,
        metavar="N",
        help="hidden width of the predictor (the projector's)",
    )
    add_augment(group, "random changes that make the views")
    group.add_argument(
        "--views",
        type=values.one_of(VIEWS),
        metavar="HOW",
        help="concatenated: batch norm sees both views together; separate: one after the other, as in the paper"
        " (concatenated)",
    )
    group.add_argument(
        "--moving-average-decay",
        type=values.probability,
        metavar="X",
        help="how much of the target network stays at each step (0.99)",
    )
    group.add_argument(
        "--no-momentum", action="store_true", help="no target network: the online network stands for it (SimSiam)"
    )
    group.add_argument(
        "--dtype",
        type=values.one_of(DTYPES),
        metavar="NAME",
        help=f"what the networks compute in, {' or '.join(DTYPES)}; weights, statistics and loss are float32"
        f" ({DEFAULT.dtype})",
    )
    _add_optimizer(parser.add_argument_group("how it is optimised (without --preset as in brackets)"))


def add_augment(parser: argparse.ArgumentParser | argparse._ArgumentGroup, text: str) -> None:
    """Adds `--augment`."""
    parser.add_argument(
        "--augment",
        type=values.one_of(AUGMENTATIONS),
        metavar="SET",
        help=f"{text}, one of {', '.join(AUGMENTATIONS)}; multichannel is for channels that aren't colours"
        f" ({DEFAULT.augmentation})",
    )


def add_hidden_layer(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Adds `--hidden-layer`."""
    parser.add_argument(
        "--hidden-layer",
        type=values.hidden_layer,
        metavar="L",
        help="where the representation is taken: a name such as avgpool, or an index into the network's children"
        f" ({DEFAULT.hidden_layer})",
    )


def recipe_from(options: argparse.Namespace) -> Recipe:
    """The recipe of `--preset` (or the default), what was given in place of its own.

    What a preset says about something that was replaced goes with it: of another network its layer and its padding, of
    another optimiser its rate and its weight decay, of a constant schedule its warm-up, of other weights or channels
    its normalisation.
    """
    base = DEFAULT if options.preset is None else PRESETS[options.preset]
    given = {FIELDS[name]: value for name, value in vars(options).items() if name in FIELDS and value is not None}
    if getattr(options, "bands", None) is not None:
        given.setdefault("num_channels", len(options.bands))
    if options.no_momentum:
        given["use_momentum"] = False
    return replace(base, **(_changes(base, given, has_weights=options.weights is not None) | given))


def _changes(base: Recipe, given: Mapping[str, Any], *, has_weights: bool) -> dict[str, Any]:
    """What changes in `base` because of what was given, unless it was given too."""
    changes: dict[str, Any] = {}
    if "steps" in given or "epochs" in given:
        changes |= {"steps": None, "epochs": None}
    if given.get("network", base.network) != base.network:
        changes |= {"hidden_layer": DEFAULT.hidden_layer, "network_options": {}}
    if (optimizer := given.get("optimizer", base.optimizer)) != base.optimizer:
        changes |= {"base_learning_rate": LEARNING_RATES[optimizer], "weight_decay": WEIGHT_DECAYS[optimizer]}
    if "warmup_steps" in given or given.get("schedule") == "constant":
        changes |= {"warmup_epochs": None, "warmup_fraction": None, "warmup_steps": 0}
    channels = given.get("num_channels", base.num_channels)
    if has_weights or not _fits(base.normalize, channels):
        changes["normalize"] = "auto"
    return changes


def _fits(normalize: Any, channels: int) -> bool:
    """Whether a mean and a standard deviation are of one channel or of all."""
    return normalize in ("auto", None) or len(normalize[0]) in (1, channels)


IDLE_OPTIONS = {
    "weight_decay": "--weight-decay with --optimizer adam: take adamw, lars or sgd",
    "warmup": "--warmup-steps needs --schedule cosine",
}
"""What `recipe.without_effect` names, as the command line has it."""


def check_recipe(options: argparse.Namespace, recipe: Recipe) -> list[str]:
    """What is wrong with these options together."""
    problems = [IDLE_OPTIONS[name] for name in without_effect(recipe)]
    if options.no_momentum and options.moving_average_decay is not None:
        problems.append("--moving-average-decay has no effect with --no-momentum: give one of them")
    if options.warmup_steps and recipe.steps is not None and warmup_steps(recipe) >= recipe.steps:
        problems.append(f"--warmup-steps {options.warmup_steps} must be fewer than --steps {recipe.steps}")
    return problems


def _add_optimizer(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--optimizer",
        type=values.one_of(OPTIMIZERS),
        metavar="NAME",
        help=f"one of {', '.join(OPTIMIZERS)} ({DEFAULT.optimizer})",
    )
    rates = ", ".join(f"{name} {rate:g}" for name, rate in LEARNING_RATES.items())
    group.add_argument(
        "--learning-rate",
        type=values.positive_number,
        metavar="X",
        help=f"the peak rate ({rates}); that of lars is for a batch of 256 and scaled by batch / 256",
    )
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
        metavar="NAME",
        help="constant, or cosine: the rate falls to 0 and the target's decay rises to 1 (constant)",
    )
    group.add_argument(
        "--warmup-steps",
        type=values.whole_number,
        metavar="N",
        help="steps in which the rate rises to its peak, with cosine (0)",
    )
