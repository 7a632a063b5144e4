"""What people wrap around a state dict: training scripts' containers and module wrappers' prefixes.

A file may hold several sets of weights, of one network (an average of them, a teacher) or of several; here one of them
is chosen. Only the state dict's names change, never a value. The names of whole learners (byol-pytorch, lightly, …)
come out as they are.
"""

import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from byol_jax.errors import CheckpointFormatError, InteropError, UnsafeCheckpointError, nearest
from interop.formats.pickle_machine import MOST_OPERATIONS
from interop.formats.torch_pickle import Object

__all__ = [
    "CONTAINERS",
    "OPTIMISERS",
    "Choice",
    "below_prefix",
    "choose_weights",
    "find_prefixes",
    "find_spellings",
    "is_extra_state",
    "short_list",
    "weight_sets",
    "without_wrappers",
]

CONTAINERS = (
    *("state_dict", "model_state_dict", "model", "net", "network"),
    *("module", "ema", "student", "teacher"),
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model"),
    *("classy_state_dict", "base_model", "trunk"),
)
"""Entries of a training script's checkpoint that hold the weights; where several exist the first one is taken. The last
three are VISSL's, one inside another."""

AVERAGED = {"state_dict": "state_dict_ema"}
"""timm's scripts, and nobody else's, write the second of these beside the first, and timm itself loads the second
(timm.models.load_state_dict, use_ema=True). Elsewhere the first of `CONTAINERS` counts: of mmengine's files, for one,
`state_dict` is the average and `ema_state_dict` what was averaged."""

OPTIMISERS = (
    *("optimizer", "optimizers", "optimizer_states", "optimizer_state_dict", "optimizer_state"),
    *("optim", "opt", "opt_state"),
)
"""Entries of a training script's checkpoint that hold an optimiser's state, and in which no weights are looked for;
Lightning's is a list."""

DEEPEST = 8
"""Containers inside containers; the deepest one seen in the wild is 4."""

MOST_LOOKED_AT = MOST_OPERATIONS
"""Names that are looked at in search of weights: an honest file has fewer, but one dict may stand in a file often."""

WRAPPERS = {"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Path segments that only wrappers make: torch.compile, Fabric and DeepSpeed, FSDP, activation checkpointing."""

EXTRA_STATE = "_extra_state"
"""The last part of the name that a state dict has for what a module's `get_extra_state` gives, mostly no tensor.
Source: `torch.nn.modules.module._EXTRA_STATE_KEY_SUFFIX`."""

COUNTS = {"n_averaged", "steps"}
"""What models that average another one count by, torch's and mmengine's."""

Steps = tuple[str, ...]
"""Names of entries, each inside the one before."""


class Choice(NamedTuple):
    """The state dict that was taken out of what a file held.

    Attributes:
        state_dict: names to tensors, or what stands for them.
        steps: the entries that lead to it; none where the file held the state dict itself.
        others: names of other entries with weights of the same network.
        beside: whether the file holds any other set of weights, of whatever network.
        extra_state: names that the state dict was left without, of modules' extra state that is no tensor.
    """

    state_dict: Mapping[str, Any]
    steps: Steps
    others: tuple[str, ...]
    beside: bool
    extra_state: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As `which` has it; "" for the state dict itself."""
        return ".".join(self.steps)

    def sentence(self, where: str) -> str:
        """What a person should know who didn't choose; "" where there was nothing to choose."""
        if not self.others:
            return ""
        average = ", the average, as timm does" if self.steps[-1] in AVERAGED.values() else ""
        example = self.others[0]
        return (
            f"{where}: holds weights of one network as {short_list([self.name, *self.others])}; {self.name} is taken"
            f"{average}; which_weights={example!r} (--which-weights {example}) takes {example}"
        )


def choose_weights(loaded: Any, *, where: str, is_tensor: Callable[[Any], bool], which: str | None = None) -> Choice:
    """One state dict in what a file held: that itself, or the first of `CONTAINERS` in it, and so on inwards.

    What modules keep in it beside tensors, by `get_extra_state`, is left out.

    Args:
        loaded: what the file held.
        where: the file's name, for messages.
        is_tensor: tells tensors from everything else.
        which: the name of the entry to take, wherever it lies, as in `weight_sets`, or the last part of that name.

    Raises:
        CheckpointFormatError: there is no state dict, none called `which`, or it holds something beside tensors.
        UnsafeCheckpointError: the same, and some of it are objects, which would need code to be read.

    Example:
        >>> content = {"student": {"w": 1.0}, "teacher": {"w": 2.0}}
        >>> choose_weights(content, where="x", is_tensor=lambda v: isinstance(v, float), which="teacher").state_dict
        {'w': 2.0}
    """
    steps: Steps = ()
    if which is not None:
        steps = _named_entry(loaded, which, where=where, is_tensor=is_tensor)
    inner = loaded
    for step in steps:
        inner = inner[step]
    steps, whole = _descend(inner, steps, where=where)
    sets = weight_sets(loaded, is_tensor=is_tensor)
    state_dict = _without_extra_state(whole, is_tensor)
    _check_state_dict(state_dict or whole, sets, where=where, is_tensor=is_tensor)
    extra_state = tuple(name for name in whole if name not in state_dict)
    beside = {name: other for name, other in sets.items() if name != ".".join(steps)}
    others = tuple(name for name, other in beside.items() if _are_of_one_network(state_dict, other))
    return Choice(state_dict, steps, () if which is not None else others, bool(beside), extra_state)


def weight_sets(loaded: Any, *, is_tensor: Callable[[Any], bool]) -> dict[str, Mapping[str, Any]]:
    """Every state dict in what a file held, by the names of the entries that lead to it, joined by ".".

    Example:
        >>> content = {"epoch": 3, "model": {"w": 0.0}, "callbacks": {"EMA": {"w": 1.0}}}
        >>> list(weight_sets(content, is_tensor=lambda value: isinstance(value, float)))
        ['model', 'callbacks.EMA']
    """
    entries = ((steps, _without_extra_state(entry, is_tensor)) for steps, entry in _entries(loaded))
    return {".".join(steps): entry for steps, entry in entries if _holds_tensors(entry, is_tensor)}


def is_extra_state(name: Any) -> bool:
    """Whether a state dict has what a module's `get_extra_state` gave under this name.

    Example:
        >>> is_extra_state("layer1.0._extra_state"), is_extra_state("layer1.0.weight")
        (True, False)
    """
    return isinstance(name, str) and name.rpartition(".")[2] == EXTRA_STATE


def _without_extra_state(entry: Mapping[str, Any], is_tensor: Callable[[Any], bool]) -> Mapping[str, Any]:
    if not any(map(is_extra_state, entry)):
        return entry
    return {name: value for name, value in entry.items() if is_tensor(value) or not is_extra_state(name)}


def _entries(loaded: Any) -> Iterator[tuple[Steps, Mapping[str, Any]]]:
    """Every mapping in what a file held, the optimiser's left out, and how it is reached; outer ones first."""
    todo: deque[tuple[Steps, Mapping[Any, Any]]] = deque([((), loaded)] if isinstance(loaded, Mapping) else [])
    seen = 0
    while todo and seen < MOST_LOOKED_AT:
        steps, entry = todo.popleft()
        seen += 1 + len(entry)
        yield steps, entry
        if len(steps) < DEEPEST:
            todo += [
                ((*steps, name), value)
                for name, value in entry.items()
                if isinstance(name, str) and isinstance(value, Mapping) and not _is_passed_over(name)
            ]


def _is_passed_over(name: str) -> bool:
    """Whether no weights are looked for in an entry of this name."""
    return name in OPTIMISERS or is_extra_state(name)


def _holds_tensors(entry: Mapping[str, Any], is_tensor: Callable[[Any], bool]) -> bool:
    return bool(entry) and all(isinstance(name, str) and is_tensor(value) for name, value in entry.items())


def _named_entry(loaded: Any, which: str, *, where: str, is_tensor: Callable[[Any], bool]) -> Steps:
    """The entry called `which`: by its whole name, or by its last part where that is one entry's alone."""
    entries = {steps: entry for steps, entry in _entries(loaded) if steps}
    whole = [steps for steps in entries if ".".join(steps) == which]
    found = whole or [steps for steps in entries if steps[-1] == which]
    if len(found) == 1:
        return found[0]
    if found:
        several = short_list(".".join(steps) for steps in found)
        raise CheckpointFormatError(f"{where}: has several entries called {which!r}: give one of {several}")
    known = [name for name in weight_sets(loaded, is_tensor=is_tensor) if name]
    held = f"it holds {short_list(nearest(which, known))}" if known else "it holds no entries with weights"
    raise CheckpointFormatError(f"{where}: has no weights called {which!r}; {held}")


def _descend(loaded: Any, steps: Steps, *, where: str) -> tuple[Steps, Mapping[str, Any]]:
    """The innermost container, and how it is reached."""
    for _ in range(DEEPEST):
        if not isinstance(loaded, Mapping):
            raise _refusal([loaded], f"{where}: holds a {_kind(loaded)}, not a state dict")
        inner = next((name for name in CONTAINERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            return steps, loaded
        average = AVERAGED.get(inner)
        inner = average if average is not None and isinstance(loaded.get(average), Mapping) else inner
        steps, loaded = (*steps, inner), loaded[inner]
    raise CheckpointFormatError(f"{where}: more than {DEEPEST} containers inside one another")


def _check_state_dict(
    given: Mapping[str, Any], sets: Mapping[str, Any], *, where: str, is_tensor: Callable[[Any], bool]
) -> None:
    others = {name: value for name, value in given.items() if not is_tensor(value)}
    words = short_list(f"{name} ({_kind(value)})" for name, value in others.items())
    if others and len(others) == len(given):
        expected = f"expected tensors or one of {', '.join(CONTAINERS)}"
        if sets:
            expected = f"it has weights called {short_list(sets)}: which_weights (--which-weights) takes one of them"
        raise _refusal(others.values(), f"{where}: no state dict found in {words}; {expected}")
    if others:
        raise _refusal(others.values(), f"{where}: holds {words} beside tensors; save module.state_dict() by itself")
    strange = [repr(name) for name in given if not isinstance(name, str)]
    if strange:
        raise CheckpointFormatError(f"{where}: names must be text, got {short_list(strange)}")


def _kind(value: Any) -> str:
    return value.in_words if isinstance(value, Object) else type(value).__name__


def _refusal(values: Iterable[Any], message: str) -> InteropError:
    """The error about values that stand where tensors are wanted."""
    if any(isinstance(value, Object) and not value.is_tensor for value in values):
        return UnsafeCheckpointError(f"{message}; nothing was run, save module.state_dict() instead of objects")
    return CheckpointFormatError(message)


def _are_of_one_network(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether half of the names, or more, are in both."""
    names = [set(_bare_names(given)) for given in (one, other)]
    return 2 * len(names[0] & names[1]) >= max(map(len, names))


def _bare_names(state_dict: Mapping[str, Any]) -> Iterable[str]:
    try:
        return without_wrappers(state_dict, where="")
    except CheckpointFormatError:
        return state_dict


def without_wrappers(state_dict: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The same values under the names that the bare module has.

    Segments of `WRAPPERS` are taken out wherever they stand (a sub-module may have been compiled by itself). "module."
    is taken off where all names share it, repeatedly, and with it goes the count of an averaging model (`COUNTS`).

    Raises:
        CheckpointFormatError: two names would become one.

    Example:
        >>> without_wrappers({"module._orig_mod.fc.weight": 1, "n_averaged": 2}, where="x")
        {'fc.weight': 1}
    """
    names = {name: _without_segments(name) for name in state_dict}
    while (inner := _without_first(names, ("module",))) is not None:
        names = inner
    twice = sorted(name for name, times in Counter(names.values()).items() if times > 1)
    if twice:
        raise CheckpointFormatError(f"{where}: without wrapper prefixes these names occur twice: {short_list(twice)}")
    return {short: state_dict[name] for name, short in names.items()}


def find_spellings(stored: Iterable[str]) -> list[dict[str, str]]:
    """Every set of names that a network of these may have itself, each name to the stored one.

    A network may call a part of its own `module`, as one does that was traced inside `DataParallel` or `torch.compile`,
    and may have a buffer `steps`: only the network that is wanted tells what is a wrapper's and what its own. The names
    as they are stored come first, then with one wrapper after another taken off.

    Example:
        >>> [list(names) for names in find_spellings(["module.module.fc.weight"])]
        [['module.module.fc.weight'], ['module.fc.weight'], ['fc.weight']]
    """
    stored = list(stored)
    found: list[dict[str, str]] = []
    for spelt in ({name: name for name in stored}, {name: _without_segments(name) for name in stored}):
        names: dict[str, str] | None = spelt
        for _ in range(DEEPEST):
            if names is None:
                break
            for counted in (names, {name: short for name, short in names.items() if short not in COUNTS}):
                turned = {short: name for name, short in counted.items()}
                if len(turned) == len(counted) and turned not in found:
                    found.append(turned)
            names = _without_first(names, ("module", *WRAPPERS))
    return found


def _without_first(names: Mapping[str, str], wrappers: Iterable[str]) -> dict[str, str] | None:
    """The names (to what is left of them) without the wrapper's segment that begins them all, and without the counts
    of what averages; None where no wrapper's does."""
    rest = {name: short for name, short in names.items() if short not in COUNTS}
    for front in (f"{wrapper}." for wrapper in wrappers):
        if rest and all(short.startswith(front) and short != front for short in rest.values()):
            return {name: short.removeprefix(front) for name, short in rest.items()}
    return None


def _without_segments(name: str) -> str:
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    *branches, leaf = name.split(".")
    return ".".join([*(branch for branch in branches if branch not in WRAPPERS), leaf])


def below_prefix(state_dict: Mapping[str, Any], prefix: str, *, where: str) -> dict[str, Any]:
    """What stands below `prefix`, under the names that follow it.

    Args:
        state_dict: names as they are stored; below none of them, as `without_wrappers` gives them.
        prefix: whole segments of names, with or without the last dot, and with or without the wrappers' in front.

    Raises:
        CheckpointFormatError: nothing stands below it.

    Example:
        >>> below_prefix({"encoder_q.conv1.weight": 1, "queue": 2}, "module.encoder_q.", where="x")
        {'conv1.weight': 1}
    """
    segments = prefix.rstrip(".").split(".")
    bare = [segment for segment in segments if segment not in WRAPPERS]
    while bare[:1] == ["module"]:
        bare = bare[1:]
    stripped = without_wrappers(state_dict, where=where)
    for given, front in itertools.product((state_dict, stripped), (".".join(segments) + ".", ".".join(bare) + ".")):
        below = {name.removeprefix(front): value for name, value in given.items() if name.startswith(front)}
        if below:
            return below
    fronts = dict.fromkeys(name.partition(".")[0] for name in stripped)
    raise CheckpointFormatError(
        f"{where}: no name begins with {prefix.rstrip('.')!r}; names begin with {short_list(nearest(prefix, fronts))}"
    )


def find_prefixes(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """The prefixes below which more than half of the names `wanted` are, in order.

    Example:
        >>> find_prefixes(["encoder_q.fc.bias", "encoder_k.fc.bias", "queue"], ["fc.bias"])
        ['encoder_q', 'encoder_k']
    """
    wanted, found = set(wanted), Counter[str]()
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts)):
            if ".".join(parts[length:]) in wanted:
                found[".".join(parts[:length])] += 1
    return [prefix for prefix, times in found.items() if 2 * times > len(wanted)]


def short_list(items: Iterable[str], *, at_most: int = 12) -> str:
    """A line of the first items and how many more there are; for messages.

    Example:
        >>> short_list(["a", "b", "c"], at_most=2)
        'a, b and 1 more'
    """
    items = list(items)
    rest = len(items) - at_most
    return ", ".join(items[:at_most]) + (f" and {rest} more" if rest > 0 else "")
