"""A run's folder, opened again: the learner as it was trained and its newest intact state."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from byol_jax import checkpoint
from byol_jax.byol import make_learner
from byol_jax.cli.networks import encoder_from
from byol_jax.cli.recipe import learner_arguments
from byol_jax.cli.torch_networks import load_kept
from byol_jax.errors import ConfigurationError
from byol_jax.runs.config import read_config
from byol_jax.types import Encoder, Learner, TrainState

__all__ = ["OpenedRun", "open_run"]


class OpenedRun(NamedTuple):
    """What a run's folder holds.

    Attributes:
        config: `config.json`.
        image_size: pixels, as `make_learner` had it.
        encoder, learner: rebuilt from `config`.
        state: of the newest intact checkpoint.
        checkpoint_path: that checkpoint's folder.
        which: the network asked for, "online" or "target".
    """

    config: dict[str, Any]
    image_size: int | tuple[int, int]
    encoder: Encoder
    learner: Learner
    state: TrainState
    checkpoint_path: Path
    which: str

    def embedding(self) -> Callable[[TrainState, jax.Array], jax.Array]:
        """A compiled function from a state and images to features [N, D] of the network asked for."""
        return jax.jit(lambda state, images: self.learner.embed(state, images, which=self.which))

    def projection(self) -> Callable[[TrainState, jax.Array], jax.Array]:
        """A compiled function from a state and images to projections [N, P] of the network asked for."""
        return jax.jit(lambda state, images: self.learner.project(state, images, which=self.which))


def open_run(folder: Path, which: str = "online") -> OpenedRun:
    """Rebuilds a run that `byol-jax train` wrote.

    Raises:
        ConfigurationError: the run was started from Python with a network or options that only its script knows; or
            the target network of a run without momentum is asked for.
        CheckpointFormatError: the torch module that it keeps isn't there, or is damaged.
        DamagedCheckpointError: no checkpoint is there, none is intact, or it doesn't fit the configuration.
    """
    config = read_config(folder)
    network, recipe = config.get("network"), config.get("learner")
    if not isinstance(network, dict) or not isinstance(recipe, dict) or "augment" not in recipe:
        raise ConfigurationError(
            f"{folder}: config.json doesn't name a network and its options, so this run was started from Python:"
            " rebuild its learner there and use byol_jax.checkpoint.restore"
        )
    if which == "target" and not recipe.get("use_momentum", True):
        raise ConfigurationError(f"{folder}: trained without momentum, so there is no target network: --which online")
    kept = load_kept(folder) if ":" in str(network.get("name")) else None
    try:
        size, _ = config["image_size"], int(config["seed"])
        image_size = size if isinstance(size, int) else (size[0], size[1])
        encoder = encoder_from(network) if kept is None else kept
        arguments = learner_arguments(recipe, network=network, image_size=image_size, total_steps=config["steps"])
        learner = make_learner(encoder, image_size=image_size, **arguments)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ConfigurationError(
            f"{folder / 'config.json'} isn't as it was written ({type(error).__name__}: {error}): restore the file"
        ) from error
    checkpoints = folder / "checkpoints"
    state, _ = checkpoint.restore(checkpoints, like=jax.eval_shape(lambda: learner.init(jax.random.key(0))))
    return OpenedRun(config, image_size, encoder, learner, state, checkpoints / f"{int(state.step):08d}", which)
