"""What people wrap around a state dict: training scripts' containers and module wrappers' prefixes.

Only the state dict's names change, never a value. The names of whole learners (byol-pytorch, lightly, …) come out as
they are.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from byol_jax.errors import CheckpointFormatError, InteropError, UnsafeCheckpointError
from interop.formats.torch_pickle import Object

__all__ = ["CONTAINERS", "find_state_dict", "short_list", "without_wrappers"]

CONTAINERS = (
    *("state_dict", "model_state_dict", "model", "net", "network"),
    *("module", "ema", "student", "teacher"),
)
"""Entries of a training script's checkpoint that hold the weights; where several exist the first one is taken."""

DEEPEST = 8
"""Containers inside containers; the deepest one seen in the wild is 3."""

WRAPPERS = {"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Path segments that only wrappers make: torch.compile, Fabric and DeepSpeed, FSDP, activation checkpointing."""


def find_state_dict(loaded: Any, *, where: str, is_tensor: Callable[[Any], bool]) -> Mapping[str, Any]:
    """The state dict in what a file held: that itself, or the first of `CONTAINERS` in it, and so on inwards.

    Args:
        loaded: what the file held.
        where: the file's name, for messages.
        is_tensor: tells tensors from everything else.

    Raises:
        CheckpointFormatError: there is no state dict, or it holds something beside tensors.
        UnsafeCheckpointError: the same, and some of it are objects, which would need code to be read.

    Example:
        >>> find_state_dict({"epoch": 3, "model": {"w": 0.0}}, where="x", is_tensor=lambda v: isinstance(v, float))
        {'w': 0.0}
    """
    for _ in range(DEEPEST):
        if not isinstance(loaded, Mapping):
            raise _refusal([loaded], f"{where}: holds a {_kind(loaded)}, not a state dict")
        inner = next((name for name in CONTAINERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is not None:
            loaded = loaded[inner]
            continue
        others = {name: value for name, value in loaded.items() if not is_tensor(value)}
        words = short_list(f"{name} ({_kind(value)})" for name, value in others.items())
        if others and len(others) == len(loaded):
            expected = f"expected tensors or one of {', '.join(CONTAINERS)}"
            raise _refusal(others.values(), f"{where}: no state dict found in {words}; {expected}")
        if others:
            message = f"{where}: holds {words} beside tensors; save module.state_dict() by itself"
            raise _refusal(others.values(), message)
        strange = [repr(name) for name in loaded if not isinstance(name, str)]
        if strange:
            raise CheckpointFormatError(f"{where}: names must be text, got {short_list(strange)}")
        return loaded
    raise CheckpointFormatError(f"{where}: more than {DEEPEST} containers inside one another")


def _kind(value: Any) -> str:
    return value.in_words if isinstance(value, Object) else type(value).__name__


def _refusal(values: Iterable[Any], message: str) -> InteropError:
    """The error about values that stand where tensors are wanted."""
    if any(isinstance(value, Object) and not value.is_tensor for value in values):
        return UnsafeCheckpointError(f"{message}; nothing was run, save module.state_dict() instead of objects")
    return CheckpointFormatError(message)


def without_wrappers(state_dict: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The same values under the names that the bare module has.

    Segments of `WRAPPERS` are taken out wherever they stand (a sub-module may have been compiled by itself). "module."
    is taken off where all names share it, repeatedly, and with it goes the `n_averaged` of torch's AveragedModel.

    Raises:
        CheckpointFormatError: two names would become one.

    Example:
        >>> without_wrappers({"module._orig_mod.fc.weight": 1, "n_averaged": 2}, where="x")
        {'fc.weight': 1}
    """
    names = {name: _without_segments(name) for name in state_dict}
    while True:
        rest = [name for name, short in names.items() if short != "n_averaged"]
        if not rest or not all(names[name].startswith("module.") and names[name] != "module." for name in rest):
            break
        names = {name: names[name].removeprefix("module.") for name in rest}
    twice = sorted(name for name, times in Counter(names.values()).items() if times > 1)
    if twice:
        raise CheckpointFormatError(f"{where}: without wrapper prefixes these names occur twice: {short_list(twice)}")
    return {short: state_dict[name] for name, short in names.items()}


def _without_segments(name: str) -> str:
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    *branches, leaf = name.split(".")
    return ".".join([*(branch for branch in branches if branch not in WRAPPERS), leaf])


def short_list(items: Iterable[str], *, at_most: int = 12) -> str:
    """A line of the first items and how many more there are; for messages.

    Example:
        >>> short_list(["a", "b", "c"], at_most=2)
        'a, b and 1 more'
    """
    items = list(items)
    rest = len(items) - at_most
    return ", ".join(items[:at_most]) + (f" and {rest} more" if rest > 0 else "")
