"""A run's folder, opened again: the learner as it was trained, and its newest intact state."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from byol_jax import checkpoint, recipe
from byol_jax.byol import Learner, make_learner
from byol_jax.data import Dataset
from byol_jax.errors import ConfigurationError
from byol_jax.runs.config import read_config
from byol_jax.runs.folder import run_paths
from byol_jax.runs.network import encoder_from
from byol_jax.runs.value_range import check_dtype
from byol_jax.types import Encoder, TrainState

__all__ = ["READING", "Run", "open_run"]

READING = ("bands", "tiff_axes", "dicom_rescale")
"""Keys of config.json that say how image files are read, where anybody said it."""


class Run(NamedTuple):
    """What a run's folder holds.

    Attributes:
        config: `config.json`.
        image_size: pixels, as `make_learner` had it.
        encoder, learner: rebuilt from `config`; they compute in float32, as whoever has the exported weights does.
        state: of the newest intact checkpoint.
        which: the network asked for, "online" or "target".
    """

    config: dict[str, Any]
    image_size: int | tuple[int, int]
    encoder: Encoder
    learner: Learner
    state: TrainState
    which: str

    @property
    def evaluation_fit(self) -> str:
        """How image files get one shape: as in training, but for "none" by the centre, as evaluations take it."""
        return "contain" if self.config.get("fit") == "contain" else "cover"

    def reading(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """How images are read, for `open_images`: in the depth that it was trained in, with its range, and by its bands
        and axes, where none are given. Where it was trained on floats and has their range, in the images' own numbers,
        which `check_images` compares."""
        stored = {name: self.config[name] for name in READING if name in self.config}
        value_range, trained = self.learner.settings.value_range, self._trained_dtype
        own = trained == "float32" and value_range is not None
        return {
            "dtype": None if own else "uint16" if trained == "uint16" else "uint8",
            "value_range": value_range,
            "reading": stored | dict(given),
        }

    def check_images(self, dataset: Dataset, what: str) -> None:
        """Returns where a dataset's numbers mean what they meant in training.

        Raises:
            DataError: the run has a value range, and the images another dtype.
        """
        if self.learner.settings.value_range is not None:
            check_dtype(dataset.dtype, self._trained_dtype, what=what)

    @property
    def _trained_dtype(self) -> str | None:
        """Of the images that the run was trained on, where its configuration says so."""
        return (self.config.get("data") or {}).get("dtype")

    def embedding(self) -> Callable[[TrainState, jax.Array], jax.Array]:
        """A compiled function from a state and images to features [N, D] of the network asked for."""
        return jax.jit(lambda state, images: self.learner.embed(state, images, which=self.which))

    def projection(self) -> Callable[[TrainState, jax.Array], jax.Array]:
        """A compiled function from a state and images to projections [N, P] of the network asked for."""
        return jax.jit(lambda state, images: self.learner.project(state, images, which=self.which))


def open_run(folder: Path, which: str = "online") -> Run:
    """Rebuilds a run that `byol-jax train` wrote.

    Raises:
        ConfigurationError: the run was started from Python with a network or options that only its script knows; or
            the target network of a run without momentum is asked for.
        CheckpointFormatError: the torch module that it keeps isn't there, or is damaged.
        DamagedCheckpointError: no checkpoint is there, none is intact, or it doesn't fit the configuration.
    """
    config = read_config(folder)
    network, learned = config.get("network"), config.get("learner")
    if not isinstance(network, dict) or not isinstance(learned, dict) or "augment" not in learned:
        raise ConfigurationError(
            f"{folder}: config.json doesn't name a network and its options, so this run was started from Python:"
            " rebuild its learner there and use byol_jax.checkpoint.restore"
        )
    if which == "target" and not learned.get("use_momentum", True):
        raise ConfigurationError(f"{folder}: trained without momentum, so there is no target network: --which online")
    kept = encoder_from(network, run=folder) if ":" in str(network.get("name")) else None
    try:
        size, _ = config["image_size"], int(config["seed"])
        image_size = size if isinstance(size, int) else (size[0], size[1])
        encoder = encoder_from(network) if kept is None else kept
        own = recipe.from_json(
            learned, image_size=image_size, steps=config["steps"], batch_size=config.get("batch_size", 256)
        )
        own = replace(own, dtype="float32")
        learner = make_learner(encoder, **recipe.learner_arguments(own, normalize=network.get("normalize")))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{folder / 'config.json'} isn't as it was written ({type(error).__name__}: {error}): restore the file"
        ) from error
    like = jax.eval_shape(lambda: learner.init(jax.random.key(0)))
    state, _ = checkpoint.restore(run_paths(folder).checkpoints, like=like)
    return Run(config, image_size, encoder, learner, state, which)
