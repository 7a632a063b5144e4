"""A file of weights, whoever wrote it: what it is, and its weights for whatever network or learner needs them.

`open_weights` reads it once; what it returns can be handed on in place of the path. Opening needs NumPy alone.
"""

import contextlib
import hashlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from byol_jax.errors import CheckpointFormatError, ConfigurationError, InteropError, StateDictMismatchError
from interop.arrays import as_numpy
from interop.errors import warn_caller
from interop.formats.containers import find_prefixes, find_spellings, short_list, without_wrappers
from interop.formats.regular_file import open_regular
from interop.formats.sharded_file import index_for, looks_like_index, shard_paths
from interop.inspect.anatomy import Architecture, architecture, head_layers
from interop.inspect.recognition import difference, find_origin, learner_arrays, network_arrays
from interop.learners.checkpoint import load_learner
from interop.learners.library import Difference, Origin, difference_in
from interop.learners.reading import read_weights
from interop.learners.states import NETWORKS
from interop.weights.architectures import HEADS, is_head
from interop.weights.encoder_tensors import (
    EncoderTensor,
    body_of,
    classifier_advice,
    encoder_tensors,
    with_own_classifier,
)
from interop.weights.first_layer import find_first_layers, shapes_of
from interop.weights.values import warn_of_values

if TYPE_CHECKING:
    from byol_jax.types import Encoder, TrainState, Variables

__all__ = ["WeightFile", "encoder_state_dict", "open_weights"]

TORCHVISION = ("conv1.weight",)
"""A name that torchvision's ResNets have and cut ones lack."""

INNER_HEADS = tuple(f"{head}." for head in HEADS)
"""What a head in a classifier's place begins with."""

BEGINNING = 64
"""Bytes that tell an index from other files."""


@dataclass(frozen=True, eq=False)
class WeightFile:
    """An open file of weights: a network's, or a whole learner's of any library's.

    Attributes:
        path: the file, index or folder that was given; None for a dict.
        where: what it is called in messages.
        origin: whose weights these are, as far as names tell; its main parts are properties here.
        state_dict: the file's own names to arrays, wrappers' prefixes taken off.
        file_sha256: `sha256`, where there is a file.
        index_sha256: of a sharded set's index alone; None for anything else.
        entry: of a file that holds several sets of weights, the entry that these are, "state_dict_ema" say; else "".
        prefix: what was taken off all names, where one was asked for; else "".
        stored: the state dict under the names that it was stored with, wrappers' prefixes and counts among them.
    """

    path: str | None
    where: str
    origin: Origin = field(repr=False)
    state_dict: Mapping[str, Any] = field(repr=False)
    file_sha256: str | None = None
    index_sha256: str | None = None
    entry: str = ""
    prefix: str = ""
    stored: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def title(self) -> str:
        """For people: the library whose learner it is, its layout and its releases; "" for a network by itself."""
        return self.origin.title

    @property
    def source(self) -> str:
        """As `load_byol_checkpoint` calls the library; "" for a network by itself, or a learner that isn't read."""
        return self.origin.source

    @property
    def layout(self) -> str:
        """byol-pytorch's, "A" to "D1-sim"; "" otherwise."""
        return self.origin.layout

    @cached_property
    def sha256(self) -> str:
        """Of the content, whatever the file's name.

        A file's is that of its bytes when it was opened. A sharded set's is that of its shards' hashes, sorted and
        joined: the index and the shards' names have no part in it. A dict's is that of its names, types, shapes and
        values.
        """
        return _hash_of_arrays(self.state_dict) if self.file_sha256 is None else self.file_sha256

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        """Under the names of `learners.fitting`, in torch's layouts; not to be written to."""
        return {name: _read_only(array) for name, array in learner_arrays(self.origin, self.state_dict).items()}

    @cached_property
    def architecture(self) -> Architecture:
        """Its network, as far as names and shapes tell: `name`, `details`, `features`, `classes`."""
        return architecture({name: array.shape for name, array in self.network().items()})

    @cached_property
    def heads(self) -> dict[str, list[dict[str, Any]]]:
        """The layers of "projector" and "predictor", in order, as `inspect` lists them; empty where there are none."""
        shapes = {name: array.shape for name, array in self._arrays.items()}
        return {head: head_layers(shapes, f"online.{head}.") for head in ("projector", "predictor")}

    def network(self, wanted: Collection[str] = TORCHVISION, *, which: str = "online") -> dict[str, np.ndarray]:
        """One of its networks by itself as a state dict; empty where there is no such network.

        Args:
            wanted: the names that the network to load into has: a ResNet that was cut out of torchvision's has others,
                and is renamed to the one or the other, a vision transformer of timm's, or of an older torchvision, to
                torchvision's; and a network may itself have parts that are called as wrappers call theirs (`module`).
                By default those of torchvision's ResNets.
            which: "online", or "target" of a learner.

        Returns:
            Read-only arrays that share the file's memory; a learner's classifier is `fc`.

        Raises:
            ConfigurationError: neither.
        """
        if which not in NETWORKS:
            raise ConfigurationError(f"which {which!r} isn't known: use {' or '.join(NETWORKS)}")
        wanted = set(wanted)
        network = _in_wrappers(network_arrays(self._arrays, which=which, wanted=wanted), wanted)
        if self.title or which != "online" or set(self.stored) == set(self.state_dict):
            return network
        spellings = find_spellings(self.stored)
        best = max(spellings, key=lambda names: (len(wanted & set(names)), -len(set(names) - wanted)))
        if len(wanted & set(best)) <= len(wanted & set(network)):
            return network
        return {name: _read_only(as_numpy(self.stored[stored], name)) for name, stored in best.items()}

    def variables(
        self,
        encoder: "Encoder",
        *,
        like: "Variables",
        which: str = "online",
        dtype: str | None = "like",
        first_layer: str = "keep",
    ) -> "Variables":
        """One of its networks as an encoder's variables, whether the encoder is native or traced.

        The classifier of a learner, or of a network below a prefix, is no part of what it learned: where the file has
        none, or one of another width, the encoder keeps its own, which `like` must have the values of.

        Args:
            encoder: what the weights are for.
            like: its variables, which decide structure, shapes and types; arrays, or shapes alone.
            which: "online", or "target" of a learner.
            dtype: as in `from_torch_state_dict`; a traced network's types are always converted.
            first_layer: as in `from_torch_state_dict`, "keep" or "inflate"; so for a traced network too.

        Warns:
            StrangeValuesWarning: NaN, infinity or variances below zero.
            AbsentCountersWarning, InflatedInputWarning: see `from_torch_state_dict`.

        Raises:
            StateDictMismatchError: counts missing, unexpected, wrong-shape and wrong-dtype keys and names some.
        """
        variables = self._variables(encoder, like=like, which=which, dtype=dtype, first_layer=first_layer)
        self._warn_of_values(which)
        return variables

    def _variables(
        self,
        encoder: "Encoder",
        *,
        like: "Variables",
        which: str = "online",
        dtype: str | None = "like",
        first_layer: str = "keep",
    ) -> "Variables":
        own = encoder_tensors(encoder, like)
        network = self.network(own, which=which)
        if not network:
            raise StateDictMismatchError(f"{self.where}: holds no {which} network")
        self._check_prefix(network, own)
        if self.title or self.prefix:
            network = with_own_classifier(network, own)
        try:
            if encoder.facts.traced is not None:
                from interop.trace.state_dict import from_module_state_dict

                return from_module_state_dict(encoder, network, like=like, first_layer=first_layer)
            from interop.weights.state_dict import load_native

            return load_native(network, like=like, dtype=dtype, first_layer=first_layer, advise=classifier_advice)
        except StateDictMismatchError as error:
            where = "" if self.path is None else f"{self.where}: "
            raise StateDictMismatchError(f"{where}{self._looks_like(own, which)}{error}") from error

    def _looks_like(self, own: Mapping[str, EncoderTensor], which: str) -> str:
        """The file's network in words, where they tell it from the encoder's; else ""."""
        given, wanted_shapes = shapes_of(self.network(own, which=which)), {name: one.shape for name, one in own.items()}
        told, wanted = architecture(shapes_of(self.network(which=which))), architecture(wanted_shapes)
        if told.name == "unknown" or body_of(given) == body_of(wanted_shapes):
            return ""
        if wanted._replace(classes=None) in {one._replace(classes=None) for one in (told, architecture(given))}:
            return ""
        other = "" if wanted.name == "unknown" else f", not {', '.join([wanted.name, *wanted.details])}"
        return f"the file's network looks like {told.in_words}{other}; "

    def _check_prefix(self, network: Collection[str], own: Collection[str]) -> None:
        """Refuses a network whose names all have something in front that isn't the encoder's, and says what.

        Raises:
            StateDictMismatchError: see above.
        """
        prefixes = [] if set(network) & set(own) else find_prefixes(network, own)
        if prefixes:
            raise StateDictMismatchError(
                f"{self.where}: none of its names is the network's; those below {short_list(prefixes)} are: "
                f"prefix={prefixes[0]!r} (--prefix {prefixes[0]}) takes them"
            )

    def learner(self, encoder: "Encoder", *, like: "TrainState", dtype: str | None = None) -> "TrainState":
        """The training state `like` with all of a learner: see `load_byol_checkpoint`.

        Args:
            encoder: that of `like`'s learner.
            like: the state to go on with.
            dtype: None: types must be `like`'s. "like": floating types are rounded to that of `like`'s parameters.

        Warns:
            StrangeValuesWarning: NaN, infinity or variances below zero.
            UserWarning's children: see `load_byol_checkpoint`.

        Raises:
            CheckpointFormatError, StateDictMismatchError: no learner, or one with other heads or another network.
            ConfigurationError: `dtype` isn't known.
        """
        state = self._learner(encoder, like=like, dtype=dtype)
        self._warn_of_values()
        return state

    def _learner(self, encoder: "Encoder", *, like: "TrainState", dtype: str | None = None) -> "TrainState":
        if dtype not in (None, "like"):
            raise ConfigurationError(f'dtype {dtype!r} isn\'t known: use None (types must match) or "like"')
        state_dict = self.state_dict if dtype is None else _with_types_of(self.state_dict, like)
        return load_learner(state_dict, like=like, source=self.source or "auto", encoder=encoder, where=self.where)

    def start(self, encoder: "Encoder", state: "TrainState") -> "TrainState":
        """`state` with as much of the file as fits: a whole learner, or else the encoder.

        A learner whose heads have `state`'s sizes starts both networks, heads and statistics. Any other learner's
        encoder, or a network by itself, starts the encoder, online and target. Step, key and optimiser's state stay. A
        first layer for 3 channels is inflated to the encoder's, as by `from_torch_state_dict(first_layer="inflate")`;
        of a learner the online and the target network's.

        Args:
            encoder: that of `state`'s learner.
            state: a new training state.

        Warns:
            UserWarning: a learner's heads don't fit, and why; only the encoder starts from it.
            InflatedInputWarning: the first layer was inflated.
            StrangeValuesWarning: NaN, infinity or variances below zero.

        Raises:
            InteropError's children: of another architecture; every difference is listed.
        """
        started = self._with_encoder(encoder, state)
        self._warn_of_values("" if self.source else "online")
        if not self.source:
            return started
        try:
            return self._inflated_learner(encoder, state)
        except InteropError as error:
            warn_caller(UserWarning(f"{self.where}: a learner whose encoder alone is started from: {error}"))
        self.warn_of_difference(encoder)
        return started

    def _inflated_learner(self, encoder: "Encoder", state: "TrainState") -> "TrainState":
        from interop.learners.first_layers import load_inflated

        own = encoder_tensors(encoder, _own_variables(state))
        wanted = {key: one.shape for key, one in own.items()}
        traced = encoder.facts.traced
        first = find_first_layers(
            shapes_of(self.network(own)), wanted, channels=None if traced is None else traced.channels
        )
        return load_inflated(lambda like: self._learner(encoder, like=like), like=state, keys=first)

    def start_encoder(self, encoder: "Encoder", state: "TrainState") -> "TrainState":
        """The same, but of a learner too the encoder alone.

        Args:
            encoder: that of `state`'s learner.
            state: a new training state.

        Warns:
            PaddingWarning, StemWarning: the encoder computes otherwise than the network in the file.
            InflatedInputWarning: the first layer was inflated.
            StrangeValuesWarning: NaN, infinity or variances below zero.

        Raises:
            InteropError's children: of another architecture; every difference is listed.
        """
        started = self._with_encoder(encoder, state)
        self._warn_of_values("online")
        self.warn_of_difference(encoder)
        return started

    def difference(self, encoder: "Encoder") -> Difference | None:
        """What `encoder` computes otherwise than the file's network, with the same weights; None where nothing."""
        return difference_in(difference(self.origin, self.state_dict), encoder)

    def warn_of_difference(self, encoder: "Encoder") -> None:
        """Says so, with the difference's own category."""
        found = self.difference(encoder)
        if found is not None:
            warn_caller(found.category(f"{self.where}: {found.sentence}"))

    def _warn_of_values(self, which: str = "") -> None:
        """Says so where values of one network, or of all of a learner, are no trained network's."""
        front = f"{which}.encoder." if which else ""
        arrays = {name: self._arrays[ours] for name, ours in self.origin.names.items() if ours.startswith(front)}
        warn_of_values(arrays, where=self.where)

    def _with_encoder(self, encoder: "Encoder", state: "TrainState") -> "TrainState":
        from byol_jax.tree import copy_leaves
        from byol_jax.types import Variables

        new = self._variables(encoder, like=_own_variables(state), first_layer="inflate")

        def with_weights(network: Any) -> Any:
            if not network.params:
                return network
            params, stats = copy_leaves(new)
            return Variables(network.params | {"encoder": params}, network.stats | {"encoder": stats})

        return replace(state, online=with_weights(state.online), target=with_weights(state.target))


def open_weights(
    path_or_dict: "str | os.PathLike[str] | Mapping[str, Any] | WeightFile",
    *,
    which_weights: str | None = None,
    prefix: str | None = None,
) -> WeightFile:
    """A file of weights, read: PyTorch's, ours or DeepMind's, of a network or of a whole learner.

    Args:
        path_or_dict: as in `load_state_dict`; one of DeepMind's pickles; or a dict of names to NumPy arrays, JAX arrays
            or torch tensors. What this function returned comes back as it is.
        which_weights: as in `load_state_dict`: "state_dict_ema", "teacher" and so on.
        prefix: as in `load_state_dict`: "encoder_q", say. The network below it was part of something: what it has in
            its classifier's place is no classifier, and is left out where it isn't a linear layer.

    Warns:
        SeveralWeightsWarning: see `load_state_dict`.
        UserWarning: something in the classifier's place was left out.

    Raises:
        CheckpointFormatError: see `load_state_dict`; or there is no tensor.
        ConfigurationError: `which_weights` or `prefix` of weights that are open already.
        UnsafeCheckpointError: see `load_state_dict`.

    Example:
        >>> weights = open_weights({"module.backbone.conv1.weight": np.zeros((64, 3, 7, 7), np.float32),
        ...                         "module.projector.0.weight": np.zeros((32, 512), np.float32),
        ...                         "module.predictor.0.weight": np.zeros((32, 16), np.float32)})
        >>> weights.title, list(weights.network())
        ('solo-learn (1.0.3 and later)', ['conv1.weight'])
    """
    if isinstance(path_or_dict, WeightFile):
        if which_weights is not None or prefix is not None:
            raise ConfigurationError(f"{path_or_dict.where}: open already, choose weights and prefix in opening it")
        return path_or_dict
    where, weights = read_weights(path_or_dict, which_weights=which_weights, prefix=prefix)
    if not weights.arrays:
        raise CheckpointFormatError(f"{where}: holds no tensor; expected the weights of a network or a learner")
    state_dict = weights.arrays if prefix is None else _without_inner_head(weights.arrays, where=where)
    dropped = {id(value) for name, value in weights.arrays.items() if name not in state_dict}
    facts = {
        "entry": weights.entry if weights.beside else "",
        "prefix": (prefix or "").rstrip("."),
        "stored": {name: value for name, value in weights.stored.items() if id(value) not in dropped},
    }
    origin = find_origin(state_dict)
    if isinstance(path_or_dict, Mapping):
        return WeightFile(None, where, origin, state_dict, **facts)
    return WeightFile(where, where, origin, state_dict, *_file_hashes(where), **facts)


def _without_inner_head(state_dict: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The network without the layers of a head that stands where its classifier was, as MoCo v2 has one."""
    head = [name for name in state_dict if name.startswith(INNER_HEADS) and not is_head(name)]
    if head:
        warn_caller(UserWarning(f"{where}: a head in the classifier's place is left out: {short_list(head)}"))
    return {name: value for name, value in state_dict.items() if name not in head}


def _in_wrappers(network: dict[str, np.ndarray], wanted: Collection[str]) -> dict[str, np.ndarray]:
    """The network under the wanted names, where these are its own behind a wrapper's prefix: a traced `compile`."""
    with contextlib.suppress(CheckpointFormatError):  # two of the wanted names would be one
        behind = without_wrappers({name: name for name in wanted}, where="")
        if len(set(network) & set(behind)) > len(set(network) & set(wanted)):
            renamed = {behind.get(name, name): array for name, array in network.items()}
            return renamed if len(renamed) == len(network) else network
    return network


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view


def encoder_state_dict(encoder: "Encoder", variables: "Variables") -> dict[str, np.ndarray]:
    """An encoder's weights as a torch state dict: a traced module's own names, in its order, or torchvision's.

    Args:
        encoder: any encoder.
        variables: its variables, trained or not.

    Raises:
        StateDictMismatchError: the leaves of this network have no torch names.

    Example:
        >>> import byol_jax
        >>> encoder = byol_jax.nets.small_cnn((4,))
        >>> list(encoder_state_dict(encoder, encoder.init(jax.random.key(0), (8, 8, 3))))[:2]
        ['0.weight', '1.bias']
    """
    if encoder.facts.traced is not None:
        from interop.trace.state_dict import to_module_state_dict

        return to_module_state_dict(encoder, variables)
    from interop.weights.state_dict import to_torch_state_dict

    return to_torch_state_dict(variables)


def _own_variables(state: "TrainState") -> "Variables":
    """The online encoder's."""
    from byol_jax.types import Variables

    return Variables(state.online.params["encoder"], state.online.stats["encoder"])


def _with_types_of(state_dict: Mapping[str, Any], state: "TrainState") -> dict[str, np.ndarray]:
    """The state dict with its floating arrays in the type of the state's parameters; others are left for loading.

    Raises:
        StateDictMismatchError: lists all arrays with values too large for that type.
    """
    import jax

    from interop.weights.mismatch import Mismatch
    from interop.weights.state_dict import cast, cast_problem, is_floating

    wanted = np.dtype(jax.tree.leaves(state.online.params)[0].dtype)
    arrays = {name: as_numpy(value, name) for name, value in state_dict.items()}
    floating = [name for name, array in arrays.items() if is_floating(array.dtype)]
    problems = {name: cast_problem(arrays[name], wanted) for name in floating}
    Mismatch(values=[f"{name} ({problem})" for name, problem in problems.items() if problem]).raise_if_any(
        "the learner's values don't fit the type"
    )
    return arrays | {name: cast(arrays[name], wanted) for name in floating}


def _file_hashes(path: str) -> tuple[str, str | None]:
    """The content's hash, and that of the index where a path means a sharded set."""
    index = index_for(path)
    with open_regular(index) as (file, _):
        is_set = looks_like_index(file.read(BEGINNING))
    if not is_set:
        return _hash_of_file(path), None
    shards = sorted(map(_hash_of_file, shard_paths(index)))
    return hashlib.sha256("".join(shards).encode()).hexdigest(), _hash_of_file(index)


def _hash_of_file(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of_arrays(state_dict: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        array = np.ascontiguousarray(as_numpy(state_dict[name], name))
        digest.update(f"{name}\n{array.dtype.name}\n{array.shape}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
