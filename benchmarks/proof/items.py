"""What is run, with which seeds, for how long: a fixed list. Plain data; one file an experiment says what it does."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from byol_jax.errors import ConfigurationError, nearest

__all__ = ["EXPERIMENTS", "ITEMS", "LIMIT", "SCALES", "SEEDS", "Item", "chosen", "facts", "of_scale"]

SEEDS = (0, 1, 2)
LIMIT = 8 * 3600
"""Seconds for everything together, on two cores."""

EXPERIMENTS = {
    "race": "byol_jax against byol-pytorch 0.9.1, equal time to train",
    "long": "all of Fashion-MNIST in about an hour",
    "ablations": "what BYOL is known to need",
    "transfer": "a run's weights fine-tuned in PyTorch on 1 % of the labels",
}
"""By name, in the order of the page; each is the module of that name in this folder."""


@dataclass(frozen=True)
class Item:
    """One run.

    Attributes:
        experiment: of `EXPERIMENTS`.
        variant: what it differs in from the experiment's others; with experiment and seed it is the run's name.
        seed: of weights, order and augmentation.
        budget: seconds that it should take at most, with its measurements, on two idle cores.
        data: "fashion-mnist" or "photos".
        options: the experiment's own, JSON's types.
    """

    experiment: str
    variant: str
    seed: int
    budget: int
    data: str
    options: dict[str, Any] = field(hash=False)

    @property
    def group(self) -> str:
        """What it has in common with the same run of other seeds."""
        return f"{self.experiment}-{self.variant}"

    @property
    def name(self) -> str:
        return f"{self.group}_{self.seed}"


def facts(item: Item) -> dict[str, Any]:
    """The item as JSON; a row that was made of other facts is none of this item's."""
    return asdict(item) | {"options": dict(sorted(item.options.items()))}


RACE = {"layer": -1, "batch_size": 64, "train_seconds": 600, "every_seconds": 60, "labelled": 10_000}
RACES = {
    "fashion": ("fashion-mnist", 1_000, RACE | {"network": "benchmarks.proof.race:small_network", "image_size": 28}),
    "photos": ("photos", 720, RACE | {"network": "benchmarks.proof.race:photo_network", "image_size": 64}),
}
"""Networks that learn in ten minutes on two cores. torchvision's ResNet-18, the first choice, doesn't: on Fashion-MNIST
kNN went from 78.4 % untrained to 74.8 (byol_jax, 2,014 steps) and 71.3 (byol-pytorch, 1,407 beside other programs), on
the photos from 65.6 to 64.6 (511) and 63.4 (618)."""
SIDES = ("byol_jax", "byol_pytorch")

LONG = {"widths": [64, 128, 256], "steps": 50_000, "batch_size": 64, "labelled": 60_000}
"""XLA counts 128 MFLOP an image, 3.3 times the demo's network's, whose step takes 18 ms: some 50 minutes."""

ABLATION = {"steps": 4_000, "batch_size": 64, "labelled": 10_000}
ABLATIONS = (
    *("baseline", "untrained", "no_predictor", "decay_zero", "decay_one", "no_batch_norm", "no_tone", "no_crop"),
    "separate_views",
)
"""ablations.py says what each is."""

TRANSFER = {
    "steps": 1_300,
    "batch_size": 64,
    "image_size": 28,
    "stages": [2, 2, 2, 2],
    "fraction": 0.01,
    "epochs": 30,
    "learning_rates": [0.1, 0.03, 0.01],
}


ITEMS: tuple[Item, ...] = (
    *(
        Item("race", f"{name}-{side}", seed, budget, data, options | {"side": side})
        for name, (data, budget, options) in RACES.items()
        for seed in SEEDS
        for side in SIDES
    ),
    *(
        Item("ablations", variant, seed, 150, "fashion-mnist", ABLATION | {"change": variant})
        for seed in SEEDS
        for variant in ABLATIONS
    ),
    *(Item("transfer", "resnet18", seed, 700, "fashion-mnist", TRANSFER) for seed in SEEDS),
    Item("long", "raw_pixels", 0, 300, "fashion-mnist", {"labelled": 60_000}),
    *(Item("long", "byol", seed, 3_900, "fashion-mnist", LONG) for seed in SEEDS),
)
"""Every run, in the order in which they are run: both sides of a race one after the other, and what a seed takes
together. Raw pixels have no seed: they are measured once."""

_SMALL = {"stages": [1, 1, 1, 1]}
_TINY_RACE = {"train_seconds": 1, "every_seconds": 0.5, "labelled": 40, "batch_size": 8, "layer": -1}
_SMOKE: dict[str, dict[str, Any]] = {
    "race": _TINY_RACE | {"network": "benchmarks.proof.race:tiny_network", "projection_size": 8, "hidden_size": 16},
    "long": {"widths": [4], "steps": 4, "batch_size": 8, "labelled": 40},
    "ablations": {"steps": 3, "batch_size": 8, "labelled": 40},
    "transfer": {"steps": 2, "batch_size": 4, "fraction": 0.5, "epochs": 1, "learning_rates": [0.01], **_SMALL},
}


def _smoke(item: Item) -> Item:
    given = {key: value for key, value in _SMOKE[item.experiment].items() if item.variant != "raw_pixels"}
    return replace(item, budget=60, options=item.options | given | {"images": 80})


def of_scale(scale: str) -> tuple[Item, ...]:
    """`ITEMS` at "full" scale; at "smoke", one seed of each, so small that it only tries the command."""
    return ITEMS if scale == "full" else tuple(_smoke(item) for item in ITEMS if item.seed == 0)


SCALES = ("full", "smoke")


def chosen(items: Sequence[Item], names: Sequence[str]) -> list[Item]:
    """Those items that one of `names` stands for: an experiment, a group or a single run; all without names.

    Raises:
        ConfigurationError: a name that stands for none.
    """
    known = list(dict.fromkeys(name for item in items for name in (item.experiment, item.group, item.name)))
    for name in names:
        if name not in known:
            raise ConfigurationError(
                f"--only {name}: there is no such item, {nearest(name, known, at_most=1)[0]} is the nearest"
            )
    return [item for item in items if not names or {item.experiment, item.group, item.name} & set(names)]
