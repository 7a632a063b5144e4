"""Whole BYOL learners from and to other libraries' files: the two functions that users call."""

import os
from collections.abc import Mapping
from typing import Any

from byol_jax.errors import CheckpointFormatError, ConfigurationError, nearest
from interop.arrays import as_numpy
from interop.files import save_state_dict
from interop.learners import byol_pytorch, deepmind, lightly, solo_learn
from interop.learners.library import NETWORK_ALONE, warn_of_difference
from interop.learners.reading import read_weights, without_owner
from interop.weights.architectures import recognise
from interop.weights.values import warn_of_values

__all__ = ["SOURCES", "load_byol_checkpoint", "load_learner", "save_byol_checkpoint"]

SOURCES = {
    "byol_pytorch": byol_pytorch.LIBRARY,
    "lightly": lightly.LIBRARY,
    "solo_learn": solo_learn.LIBRARY,
    "deepmind": deepmind.LIBRARY,
}
"""Libraries by their names, tested in this order."""


def load_byol_checkpoint(
    path_or_dict: str | os.PathLike[str] | Mapping[str, Any], *, like: Any, source: str = "auto", encoder: Any = None
) -> Any:
    """A training state with both networks, heads and statistics of a learner that another library trained.

    Args:
        path_or_dict: a weight file (.pt, .pth, .ckpt, .safetensors, .npz; see `load_state_dict`), one of DeepMind's
            pickles (read as data, never executed), or a dict of names to NumPy arrays, JAX arrays or torch tensors,
            such as `learner.state_dict()`.
        like: a `TrainState` of the learner to go on with, native or traced; decides structure, shapes, types and
            shardings. What a file doesn't hold, `step, key, opt_state`, is copied from it.
        source: the library, "byol_pytorch" (any release), "lightly", "solo_learn" or "deepmind"; "auto" tells it from
            the names. Hyphens may stand for underscores. "byol_pytorch" also takes a network by itself, which is what
            its trainer's `checkpoint.N.pt` holds: both encoders become it.
        encoder: the `Encoder` that `like`'s learner was made with. It tells how the network pads, which no state does,
            so that a PaddingWarning comes only where one is due.

    Returns:
        `TrainState`, the same bits as in the file (counters are int64 there and int32 here), in buffers of its own.
        Biases that a library's heads lack are 0. An online classifier becomes `fc` where the network has one.

    Warns:
        AbsentHeadsWarning: byol-pytorch's trainer saved the network alone; the heads are `like`'s.
        PaddingWarning: the network pads otherwise than the one that was trained (DeepMind's, solo-learn's for CIFAR).
        StemWarning: the network has a ReLU behind its stem, the one that was trained has none (lightly's for CIFAR).
        EmbeddingsWarning: byol-pytorch 0.9.0's simplicial embeddings, behind the heads, are left out.
        AbsentTargetWarning: a copy of the online network stands in for a target that the file lacks.
        SeveralWeightsWarning: the file holds several sets of weights; which is taken. `open_weights(...).learner` takes
            another.
        AbsentCountersWarning: batch norms come without `num_batches_tracked`, and count from 0.
        StrangeValuesWarning: NaN, infinity or variances below zero.

    Raises:
        CheckpointFormatError: the file can't be read, or holds no learner, or one with other heads than `like`; the
            message says how to make the learner.
        StateDictMismatchError: counts missing, unexpected, wrong-shape and wrong-dtype keys and names some.
        ConfigurationError: no such source.
        UnsafeCheckpointError: see `load_state_dict`.

    Example:
        >>> import tempfile, byol_jax
        >>> learner = byol_jax.make_learner(byol_jax.nets.small_cnn((4,)), image_size=8, projection_size=4,
        ...                                 projection_hidden_size=8)
        >>> state = learner.init(jax.random.key(0))
        >>> path = f"{tempfile.mkdtemp()}/learner.safetensors"
        >>> save_byol_checkpoint(path, state, layout="byol_pytorch")
        >>> loaded = load_byol_checkpoint(path, like=state)
        >>> bool((learner.embed(loaded, jnp.ones((1, 8, 8, 3))) == learner.embed(state, jnp.ones((1, 8, 8, 3)))).all())
        True
    """
    names = {"auto": "auto"} | {name: name for name in SOURCES}
    wanted = _choose(source, names, "source")
    where, weights = read_weights(path_or_dict)
    state = load_learner(weights.arrays, like=like, source=wanted, encoder=encoder, where=where)
    warn_of_values({name: as_numpy(value, name) for name, value in weights.arrays.items()}, where=where)
    return state


def load_learner(state_dict: Mapping[str, Any], *, like: Any, source: str, encoder: Any, where: str) -> Any:
    """`load_byol_checkpoint` of names and arrays that were read already; `where` is said in messages."""
    libraries = SOURCES if source == "auto" else {source: SOURCES[source]}
    inner: Mapping[str, Any] | None = state_dict
    while inner is not None:
        for library in libraries.values():
            if library.recognises(inner):
                state = library.from_state_dict(inner, like=like, where=where)
                warn_of_difference(library.difference(inner), state=like, where=where, encoder=encoder)
                return state
        inner = without_owner(inner)
    if source == "auto":
        kind = recognise({key: tuple(value.shape) for key, value in state_dict.items()})
        raise CheckpointFormatError(
            f"{where}: no learner of {' or '.join(SOURCES)} (names tell: {kind}); "
            f"{NETWORK_ALONE}, and with source='byol_pytorch' it goes into both encoders"
        )
    return SOURCES[source].from_state_dict(state_dict, like=like, where=where)


def save_byol_checkpoint(path: str | os.PathLike[str], state: Any, *, layout: str) -> None:
    """Writes a training state's networks as another library's learner has them, atomically.

    Step, key and optimiser's state have no place in such a file. Loading it again gives the same bits; but lightly's
    heads have no first bias, which is taken off the running mean, and `fc` has no place in most of its layouts.

    Args:
        path: its ending decides the format; see `save_state_dict`.
        state: a `TrainState`.
        layout: "byol_pytorch", which `BYOL.load_state_dict` of 0.9.1 accepts: the layout that belongs to the state's
            heads. Or one of "C", "C-sim", "D1", "D1-sim", to be sure of it, and "A" (0.0.1 to 0.5.1), "B" (0.5.2 to
            0.5.7), "D0", "D0-sim" (0.9.0, with a warning). "lightly" (its examples), or "lightly-benchmarks",
            "lightly-cifar", "lightly-models" (the old class). "solo_learn", or "solo-learn-encoder" (up to 1.0.2).
            Hyphens may stand for underscores.

    Warns:
        PaddingWarning, StemWarning: the library's network of that layout computes otherwise than a native one.

    Raises:
        CheckpointFormatError: the state has another layout, or the file can't be written so.
        ConfigurationError: no such layout.
        StateDictMismatchError: not a `TrainState`.

    Example:
        >>> save_byol_checkpoint("learner.pt", None, layout="C-simm")
        Traceback (most recent call last):
        byol_jax.errors.ConfigurationError: layout 'C-simm' isn't known: use one of C-sim, ...
    """
    owners = {name: name for name in SOURCES}
    owners |= {layout: name for name, library in SOURCES.items() for layout in library.layouts}
    wanted = _choose(layout, owners, "layout")
    where, library = os.fspath(path), SOURCES[owners[wanted]]
    state_dict = library.to_state_dict(state, layout=wanted, where=where)
    warn_of_difference(library.difference(state_dict), state=state, where=where)
    save_state_dict(path, state_dict)


def _choose(given: Any, names: Mapping[str, str], what: str) -> str:
    """The one of `names` that `given` spells."""
    spelt = {name.lower().replace("-", "_"): name for name in names}
    wanted = spelt.get(given.lower().replace("-", "_")) if isinstance(given, str) else None
    if wanted is None:
        raise ConfigurationError(f"{what} {given!r} isn't known: use one of {', '.join(nearest(given, names))}")
    return wanted
