"""What a run leaves beside its checkpoints, and what it starts from: configuration, network, picture of views, weights.

Weights go through `interop`, which knows PyTorch's names; torch itself isn't needed for .safetensors.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax import augment, disk, parallel
from byol_jax.byol import encoder_variables
from byol_jax.data import Dataset
from byol_jax.errors import InteropError
from byol_jax.runs.pictures import views_grid
from byol_jax.tree import fresh
from byol_jax.types import Encoder, TrainState, Variables
from byol_jax.views import sample_views

__all__ = [
    "CLASSIFIER",
    "ENCODER",
    "START",
    "describe",
    "encoder_state_dict",
    "export_encoder",
    "keep_network",
    "network_in",
    "picture_views",
    "start_encoder_from",
    "start_from",
]

ENCODER, START = "encoder.safetensors", "start.safetensors"
"""In `exported/`: the trained encoder, and the weights that it started from, where they weren't random."""

CLASSIFIER = ("fc.weight", "fc.bias")
"""A learner's linear classifier, in its network or beside it, is this in a ResNet here."""

PICTURED = 8
"""Images in views.png."""


def describe(
    *,
    network: dict[str, Any] | None,
    learner: dict[str, Any],
    data: dict[str, Any],
    training: dict[str, Any],
    unimportant: dict[str, Any],
    init_from: str | Path | None,
) -> dict[str, Any]:
    """config.json: everything that decides a run, as JSON. Functions are named; weights are known by their hash."""
    weights = None
    if init_from is not None:
        weights = {"file": Path(init_from).name, "sha256": hashlib.sha256(Path(init_from).read_bytes()).hexdigest()}
    return {
        "network": network,
        "learner": _plain(learner),
        "data": data,
        **_plain(training),
        "init_from": weights,
        **unimportant,
    }


def start_from(path: str | Path, state: TrainState, encoder: Encoder) -> TrainState:
    """`state` with the weights of a file, PyTorch's or ours: of a network, or of a whole learner of any library's.

    A learner whose heads have `state`'s sizes starts both networks, heads and statistics. Any other learner's encoder,
    or a network by itself, starts the encoder, online and target. Step, key and optimiser's state stay.

    Warns:
        UserWarning: a learner's heads don't fit, and why; only the encoder starts from it.

    Raises:
        InteropError's children: unreadable, unsafe, or of another architecture; every difference is listed.
    """
    import interop
    from interop.inspect.recognition import difference, recognised
    from interop.learners.native import warn_of_difference
    from interop.learners.opened import opened

    _, given = opened(path)
    found = recognised(given)
    started = _with_encoder(given, state, encoder)
    if not found.source:
        return started
    try:
        return interop.load_byol_checkpoint(given, like=state)
    except InteropError as error:
        warnings.warn(f"{path}: a learner whose encoder alone is started from: {error}", stacklevel=2)
        warn_of_difference(difference(found, given), state=state, where=str(path), stacklevel=3)
    return started


def start_encoder_from(path: str | Path, state: TrainState, encoder: Encoder) -> TrainState:
    """The same, but of a learner too the encoder alone.

    Warns:
        PaddingWarning, StemWarning: the network computes otherwise than the one in the file.

    Raises:
        InteropError's children: unreadable, unsafe, or of another architecture; every difference is listed.
    """
    from interop.inspect.recognition import difference, recognised
    from interop.learners.native import warn_of_difference
    from interop.learners.opened import opened

    _, given = opened(path)
    started = _with_encoder(given, state, encoder)
    warn_of_difference(difference(recognised(given), given), state=state, where=str(path), stacklevel=3)
    return started


def _with_encoder(given: Mapping[str, Any], state: TrainState, encoder: Encoder) -> TrainState:
    import interop
    from interop.trace.encoder import is_traced
    from interop.trace.state_dict import from_module_state_dict

    like = encoder_variables(state)
    network = network_in(given, encoder_state_dict(encoder, like))
    if is_traced(encoder):
        weights = from_module_state_dict(encoder, network, like=like)
    else:
        weights = interop.from_torch_state_dict(network, like=like, dtype="like")

    def placed(network: Variables, new: Variables) -> Variables:
        if not network.params:
            return network
        return Variables(network.params | {"encoder": new.params}, network.stats | {"encoder": new.stats})

    return replace(state, online=placed(state.online, fresh(weights)), target=placed(state.target, fresh(weights)))


def network_in(
    given: Mapping[str, Any], own: Mapping[str, np.ndarray], *, which: str = "online"
) -> dict[str, np.ndarray]:
    """The network in a file's tensors, under the names that ours has.

    Args:
        given: names to arrays; a network, with or without a prefix in front, or a learner of any library's.
        own: our network's state dict. Where `given` is a learner, whose classifier is no part of what it learned, ours
            keeps its own where there is none or one of another width.
        which: "online", or "target" of a learner.
    """
    from interop.inspect.recognition import encoder_state_dict as encoder_in
    from interop.inspect.recognition import recognised

    found = recognised(given)
    network = encoder_in(found, given, which=which, wanted=own)
    if not found.title:
        return network
    for name in CLASSIFIER:
        if name not in own:
            network.pop(name, None)
        elif name not in network or network[name].shape != own[name].shape:
            network[name] = own[name]
    return network


def keep_network(folder: Path, encoder: Encoder) -> None:
    """A traced network in `folder`, all or nothing, to go on without torch; any other's own code rebuilds it."""
    import interop
    from interop.trace.encoder import is_traced

    if folder.exists() or not is_traced(encoder):
        return
    with disk.new_folder(folder) as temporary:
        interop.save_network(temporary, encoder)


def encoder_state_dict(encoder: Encoder, variables: Variables) -> dict[str, np.ndarray]:
    """An encoder's weights under PyTorch's names.

    Raises:
        StateDictMismatchError: they have no such names.
    """
    import interop
    from interop.trace.encoder import is_traced
    from interop.trace.state_dict import to_module_state_dict

    return to_module_state_dict(encoder, variables) if is_traced(encoder) else interop.to_torch_state_dict(variables)


def export_encoder(path: Path, encoder: Encoder, variables: Variables, *, say: Callable[[str], None]) -> None:
    """A .safetensors file with PyTorch's names; for a network whose leaves have none, one line says why not."""
    import interop

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        state_dict = encoder_state_dict(encoder, variables)
    except InteropError as error:
        say(f"no weights exported: {error}")
        return
    interop.save_state_dict(path, state_dict)


def picture_views(path: Path, source: Any, learner_options: dict[str, Any], image_size: Any, key: jax.Array) -> None:
    """views.png: the first images and their two views, drawn as the first step would draw them."""
    if not isinstance(source, Dataset) or not parallel.is_writer():
        return
    images = source.take(np.arange(min(PICTURED, len(source))))
    first = learner_options.get("augment_fn") or augment.simclr(image_size)
    second = learner_options.get("augment_fn2") or first
    floats = jnp.asarray(images, jnp.float32) / (255 if images.dtype == np.uint8 else 1)
    with jax.numpy_dtype_promotion("standard"):
        view1, view2 = jax.jit(lambda batch: sample_views(first, second, batch, key))(floats)
    if view1.ndim == 4 and view1.shape[-1] in (1, 3):
        views_grid(images, np.asarray(view1), np.asarray(view2), path)


def _plain(value: Any) -> Any:
    """As JSON: numbers, strings and containers as they are; functions by their names; arrays and dtypes as text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    return type(value).__name__
