"""What a weight file holds: its tensors, the prefixes that were taken off their names, and what lay beside them.

`interop.files` reads values, `recognition.py` tells whose names they are. Nothing is executed here either: a PyTorch
file's container is looked at after its pickle was found harmless, without its tensors' values.
"""

import os
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import CheckpointFormatError
from interop.files import SeveralWeightsWarning, load_state_dict, stored_format, torch_container
from interop.formats.containers import (
    OPTIMISERS,
    Choice,
    below_prefix,
    choose_weights,
    short_list,
    weight_sets,
    without_wrappers,
)
from interop.formats.dill_pickle import is_plain_pickle, load_pickle
from interop.formats.regular_file import open_regular
from interop.formats.safetensors_file import read_header
from interop.formats.sharded_file import index_for, index_names, shard_metadata
from interop.learners import deepmind
from interop.learners.reading import refuse_choice

__all__ = ["Contents", "escaped", "read_contents", "refuse_unprintable"]

COUNTERS = {"step": ("global_step", "step", "iteration", "iter"), "epoch": ("epoch",)}
LIGHTNING = "pytorch-lightning_version"


class Contents(NamedTuple):
    """A weight file, read.

    Attributes:
        format: "safetensors", "npz", "torch", "torch-legacy" or "pickle" (DeepMind's).
        state_dict: torch's names to arrays, wrappers' prefixes taken off; DeepMind's come under `deepmind.flat_names`.
        prefixes: what was taken off the front of all names, or out of some ("module.", "_orig_mod").
        beside: names of what the container holds beside the weights, in its order.
        entry: where the weights lie in the container, "state_dict_ema" say; "" where they are all of it.
        sets: every set of weights in the container, the names of its entries to how many tensors each has.
        sentence: which of several was taken, where nobody said which; else "".
        dropped: what is stored beside the tensors of `state_dict`: a wrapper's count, what isn't below the prefix,
            modules' extra state.
        metadata: text about the whole file, as a safetensors header may hold it.
    """

    format: str
    state_dict: dict[str, np.ndarray]
    prefixes: tuple[str, ...]
    beside: dict[str, Any]
    entry: str
    sets: dict[str, int]
    sentence: str
    dropped: tuple[str, ...] = ()
    metadata: Mapping[str, str] = MappingProxyType({})

    def facts(self) -> dict[str, Any]:
        """JSON: `beside` (names), `optimiser` (whether its state is there), `step`, `epoch` and `lightning`, the
        version of the Lightning that wrote it; None where the file doesn't tell."""
        facts: dict[str, Any] = {"beside": list(self.beside), "optimiser": _holds_optimiser(self.beside)}
        for name, keys in COUNTERS.items():
            numbers = [self.beside[key] for key in keys if isinstance(self.beside.get(key), int)]
            facts[name] = numbers[0] if numbers else None
        version = self.beside.get(LIGHTNING)
        return facts | {"lightning": version if isinstance(version, str) else None}


def escaped(text: str) -> str:
    r"""The text with an escape sequence for every character that can't be printed: line breaks, terminals' commands.

    Example:
        >>> escaped("fc\n\x1b[31m.bias")
        'fc\\n\\x1b[31m.bias'
    """
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def refuse_unprintable(names: Iterable[str], *, where: str) -> None:
    """Refuses names that would break, or colour, every message that shows them.

    Raises:
        CheckpointFormatError: see above.
    """
    strange = [f"'{escaped(name[:100])}'" for name in names if not name.isprintable()]
    if strange:
        raise CheckpointFormatError(
            f"{where}: no network's names hold characters that can't be printed: {short_list(strange)}"
        )


def read_contents(
    path: str | os.PathLike[str], *, which_weights: str | None = None, prefix: str | None = None
) -> Contents:
    """A weight file, or one of DeepMind's pickles.

    Args:
        which_weights, prefix: as in `load_state_dict`; nothing is said about a choice, which is in the result.

    Raises:
        CheckpointFormatError, UnsafeCheckpointError, MissingDependencyError: see `load_state_dict`.

    Example:
        >>> import tempfile
        >>> path = f"{tempfile.mkdtemp()}/net.npz"
        >>> np.savez(path, **{"module.fc.bias": np.zeros(3)})
        >>> contents = read_contents(path)
        >>> list(contents.state_dict), contents.prefixes
        (['fc.bias'], ('module.',))
    """
    where = os.fspath(path)
    if is_plain_pickle(where):
        refuse_choice(which_weights, prefix, where=where)
        return _read_pickle(where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SeveralWeightsWarning)
        state_dict = load_state_dict(where, which_weights=which_weights, prefix=prefix)
    kind = stored_format(where)
    beside, entry, sets, sentence, extra_state = {}, "", {}, "", ()
    if kind.startswith("torch"):
        choice, beside, sets = _torch_container(where, which_weights)
        stored, entry, sentence = list(choice.state_dict), choice.name, choice.sentence(where)
        extra_state = choice.extra_state
    elif kind == "npz":
        with zipfile.ZipFile(where) as archive:
            stored = [name.removesuffix(".npy") for name in archive.namelist()]
    else:
        stored = index_names(where) if kind == "safetensors-index" else _safetensors_names(where)
    removed = _removed_names(stored, where)
    taken = {name: name for name in stored}
    if prefix is not None:
        removed = (*removed, f"{prefix.rstrip('.')}.")
        taken = below_prefix(taken, prefix, where=where)
    left = set(stored) - set(without_wrappers(taken, where=where).values())
    dropped = (*(name for name in stored if name in left), *extra_state)
    return Contents(kind, state_dict, removed, beside, entry, sets, sentence, dropped, _metadata(where, kind))


def _metadata(where: str, kind: str) -> dict[str, str]:
    if kind == "safetensors-index":
        return shard_metadata(index_for(where))
    if kind != "safetensors":
        return {}
    with open_regular(index_for(where)) as (file, size):
        return read_header(file, where=where, size=size).metadata


def _read_pickle(where: str) -> Contents:
    content = load_pickle(where)
    if not deepmind.is_experiment(content):
        raise CheckpointFormatError(
            f"{where}: a pickle without DeepMind's experiment_state; other weights are read from .pt, .ckpt, .npz or "
            ".safetensors"
        )
    state_dict = {name: np.array(array) for name, array in deepmind.flat_names(content, where=where).items()}
    experiment = content["experiment_state"]
    fields = experiment if isinstance(experiment, Mapping) else {}
    optimisers = {name: value for name, value in fields.items() if name.endswith("opt_state")}
    others = {name: value for name, value in content.items() if name != "experiment_state"}
    return Contents("pickle", state_dict, (), others | optimisers, "", {}, "")


def _torch_container(where: str, which: str | None) -> tuple[Choice, dict[str, Any], dict[str, int]]:
    """Which weights are taken, tensors without values; all else that the file holds; and `Contents.sets`."""
    inner = torch_container(where)
    choice = choose_weights(inner, where=where, is_tensor=_is_tensor, which=which)
    sets = {name: len(tensors) for name, tensors in weight_sets(inner, is_tensor=_is_tensor).items()}
    beside = {}
    for holder in choice.steps:  # inwards
        beside |= {str(name): value for name, value in inner.items() if name != holder}
        inner = inner[holder]
    return choice, beside, sets


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "dtype")


def _safetensors_names(where: str) -> list[str]:
    from safetensors import safe_open

    with safe_open(where, framework="numpy") as file:
        return list(file.keys())


def _removed_names(stored: Iterable[str], where: str) -> tuple[str, ...]:
    """The prefixes and segments that `without_wrappers` takes off these names, each once."""
    found: dict[str, None] = {}
    for short, name in without_wrappers({name: name for name in stored}, where=where).items():
        if name.endswith(short) and name != short:
            found[name.removesuffix(short)] = None
        elif name != short:
            found |= {segment: None for segment in name.split(".") if segment not in short.split(".")}
    return tuple(found)


def _holds_optimiser(beside: Mapping[str, Any]) -> bool:
    given = [value for name, value in beside.items() if name in OPTIMISERS or name.endswith("opt_state")]
    return any(isinstance(value, Mapping | list | tuple) and len(value) > 0 for value in given)
