"""What a run leaves beside its checkpoints: configuration, network, picture of views, weights.

Weights go through `interop`, which knows PyTorch's names; torch itself isn't needed for .safetensors.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax import augment, disk, parallel
from byol_jax.data import Dataset
from byol_jax.data.ranges import to_unit
from byol_jax.errors import DataError, InteropError
from byol_jax.runs.pictures import sample_grid
from byol_jax.types import Encoder, Variables

if TYPE_CHECKING:
    from interop import WeightFile

__all__ = ["ENCODER", "START", "export_encoder", "keep_network", "picture_views", "run_config"]

ENCODER, START = "encoder.safetensors", "start.safetensors"
"""In `exported/`: the trained encoder, and the weights that it started from, where they weren't random."""

PICTURED = 8
"""Images in views.png."""


def run_config(
    *,
    network: dict[str, Any] | None,
    learner: dict[str, Any],
    data: dict[str, Any],
    training: dict[str, Any],
    unimportant: dict[str, Any],
    init_from: "WeightFile | None",
    fingerprints: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """config.json: everything that decides a run, as JSON. Functions are named; weights are known by their hash.

    Functions given from Python are known by their `fingerprints` too.
    """
    weights = None
    if init_from is not None:
        weights = {"file": init_from.path and Path(init_from.path).name, "sha256": init_from.sha256}
        if init_from.index_sha256 is not None:
            weights["index_sha256"] = init_from.index_sha256
        chosen = {"entry": init_from.entry, "prefix": init_from.prefix}
        weights |= {name: value for name, value in chosen.items() if value}
    return {
        "network": network,
        "learner": _to_json(learner),
        "data": data,
        **_to_json(training),
        "init_from": weights,
        **unimportant,
        **({"fingerprints": fingerprints} if fingerprints else {}),
    }


def keep_network(folder: Path, encoder: Encoder) -> None:
    """A traced network in `folder`, all or nothing, to go on without torch; any other's own code rebuilds it."""
    import interop

    if folder.exists() or encoder.facts.traced is None:
        return
    with disk.new_folder(folder) as temporary:
        interop.save_network(temporary, encoder)


def export_encoder(path: Path, encoder: Encoder, variables: Variables, *, say: Callable[[str], None]) -> None:
    """A .safetensors file with PyTorch's names; one line says why not, for leaves without such names, or no leaves."""
    import interop

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        state_dict = interop.encoder_state_dict(encoder, variables)
    except InteropError as error:
        say(f"no weights exported: {error}")
        return
    if not state_dict:
        say("no weights exported: the network has none")
        return
    interop.save_state_dict(path, state_dict)


def torch_difference(encoder: Encoder) -> str | None:
    """What a torch network of the same names computes otherwise; None for nothing, or nothing that is known."""
    if encoder.facts.padding in (None, "torch"):
        return None
    return (
        "the network pads as TensorFlow does, torchvision's of the same names doesn't: unless an image's sides are 1"
        " more than a multiple of 32, its features differ by a fifth or more; docs/recipes.md, The paper's recipe, has"
        " what to put in front of its layers"
    )


def picture_views(path: Path, source: Any, learner_options: dict[str, Any], image_size: Any, key: jax.Array) -> None:
    """views.png: the first images and their two views, drawn as the first step would draw them."""
    if not isinstance(source, Dataset) or len(source.image_shape) != 3 or not parallel.is_writer():
        return
    first = learner_options.get("augment_fn") or augment.simclr(image_size)
    second = learner_options.get("augment_fn2") or first
    with contextlib.suppress(DataError):  # views that aren't images: no picture
        images = to_unit(source.take(np.arange(min(PICTURED, len(source)))), learner_options.get("value_range"))
        sample_grid(images, first, second, key, path)


def _to_json(value: Any) -> Any:
    """As JSON: numbers, strings and containers as they are, arrays as lists; dtypes and functions by their names."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {str(name): _to_json(part) for name, part in value.items()}
    if isinstance(value, np.ndarray | jax.Array) and jnp.issubdtype(value.dtype, jnp.number):
        return np.asarray(value).tolist()
    if isinstance(value, np.dtype) or (isinstance(value, type) and issubclass(value, np.generic)):
        return jnp.dtype(value).name
    if isinstance(value, type(jnp.bfloat16)):  # no type, but it stands for one
        return jnp.dtype(value).name
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [_to_json(part) for part in value]
    if isinstance(value, np.generic):
        return value.item()
    return type(value).__name__
