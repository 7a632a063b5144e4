"""What a module keeps in Python from one call to the next, and Python's own random numbers: a graph has neither.

While `export.py` has the module's code run, `watch_state` compares all attributes of all sub-modules before and after.
Most of what changes is harmless: a table that is computed at the first call and kept, an output that is left to be
looked at. So nothing is refused for having changed: the module is run, in torch, several times, and what it leaves is
refused where it goes on changing, as a counter does, or where a later call gives other numbers than the first.
"""

import contextlib
import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from byol_jax.errors import UnsupportedModuleError, one_line
from interop.arrays import as_numpy, import_torch
from interop.trace.fixed_draws import fixed_draws
from interop.trace.side_effects import copy_module, in_mode

__all__ = ["Left", "refuse_what_is_read", "watch_state"]

KEPT_BY_TORCH = frozenset(["_parameters", "_buffers", "_modules", "training"])
"""Attributes of a module that a graph has, or that `keep_modes` looks after."""

DEEPEST = 6
"""Containers and objects inside each other that are looked into."""

TOLERANCE = 1e-6
"""Of the largest value. The same operators run on the same numbers, so that there should be no difference at all."""


class Left:
    """What was met while a module's code ran.

    Attributes:
        changed: attributes of its sub-modules, by dotted name, that had another value afterwards.
        drew: the sub-modules that drew a number of Python's or NumPy's global generator, and which.
        hooks: the sub-modules that had another hook afterwards.
        recast: buffers that were other tensors afterwards, of another shape or type.
        replaced: buffers that were other tensors afterwards, and None, or one tensor under two names.
    """

    def __init__(self) -> None:
        self.changed: dict[str, None] = {}
        self.drew: dict[str, str] = {}
        self.hooks: dict[str, None] = {}
        self.recast: dict[str, None] = {}
        self.replaced: dict[str, None] = {}

    def raise_if_refused(self, network: str) -> None:
        reasons = [
            f"{path} decides by {generator}, whose numbers would be the same for ever: draw by torch.rand, and choose "
            "by torch.where"
            for path, generator in self.drew.items()
        ]
        reasons += [f"{path} gets a hook when it runs: register it before, or not at all" for path in self.hooks]
        reasons += [f"{name} is assigned another tensor: change it in place, by copy_" for name in self.replaced]
        if reasons:
            raise UnsupportedModuleError(f"{network} can't be imported: {'; '.join(reasons)}")


@contextlib.contextmanager
def watch_state(module: Any, left: Left) -> Iterator[None]:
    """Inside the context the module runs; `left` gets what is another than before.

    Hooks, buffers that were None, and attributes of objects that aren't modules, are as they were afterwards.
    """
    before, hooks, objects = _leaves(module), _hooks(module), [*_objects(module)]
    buffers = [(part._buffers, dict(part._buffers)) for part in module.modules()]
    stack: list[tuple[Any, ...]] = []

    def enter(part: Any, inputs: Any) -> None:
        stack.append(_generators())

    def leave(name: str, *rest: Any) -> None:
        then, now = stack.pop(), _generators()
        moved = [kind for kind, one, other in zip(GENERATORS, then, now, strict=True) if one != other]
        if moved and not left.drew:  # the innermost ends first
            left.drew[name or "the module"] = moved[0]

    with contextlib.ExitStack() as handles:
        for name, part in module.named_modules():
            handles.callback(part.register_forward_pre_hook(enter, prepend=True).remove)
            handles.callback(part.register_forward_hook(partial(leave, name), always_call=True).remove)
        try:
            yield
        finally:
            left.changed.update(dict.fromkeys(_changed(before, _leaves(module))))
            for thing, attributes in objects:
                vars(thing).clear()
                vars(thing).update(attributes)
            for now, were in buffers:
                now.update({name: None for name, buffer in were.items() if buffer is None})
                for name in now.keys() - were.keys():
                    del now[name]
    for path, registered, were in hooks:
        if registered.keys() != were.keys():
            left.hooks[path or "the module"] = None
            registered.clear()
            registered.update(were)


GENERATORS = ("Python's random", "np.random")


def _generators() -> tuple[Any, ...]:
    kind, numbers, *rest = np.random.get_state()
    return random.getstate(), (kind, np.asarray(numbers).tobytes(), *rest)


def _hooks(module: Any) -> list[tuple[str, Any, dict[Any, Any]]]:
    """All dicts of hooks, and what is in them."""
    return [
        (path, value, dict(value))
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if name.endswith("_hooks") and isinstance(value, dict)
    ]


class _Same:
    """Something that is looked at no further: equal to itself alone."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.thing is other.thing

    def __hash__(self) -> int:
        return id(self.thing)


def _leaves(module: Any) -> dict[tuple[str, ...], Any]:
    """Everything that the attributes of all sub-modules hold: (attribute's dotted name, place in it) → value.

    Numbers and strings are there as such; a tensor, and what isn't known, as a `_Same`.
    """
    found: dict[tuple[str, ...], Any] = {}
    for path, part in module.named_modules():
        for name, value in _attributes(part):
            _collect((f"{path}.{name}".removeprefix("."),), value, found, ())
    return found


def _attributes(part: Any) -> Iterable[tuple[str, Any]]:
    for name, value in vars(part).items():
        if name not in KEPT_BY_TORCH and not name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")):
            yield name, value
    for name, buffer in part._buffers.items():
        yield name, buffer is None  # which tensor it is, the graph says


def _collect(place: tuple[str, ...], value: Any, found: dict[tuple[str, ...], Any], around: tuple[int, ...]) -> None:
    if isinstance(value, bool | int | float | complex | str | bytes | type(None) | np.generic):
        found[place] = repr(value)
        return
    inner = [*_inside(value)] if len(around) < DEEPEST and id(value) not in around else None
    if inner is None or not (inner or isinstance(value, list | tuple | dict | set | frozenset | deque)):
        found[place] = _Same(value)
        return
    for name, part in inner:
        _collect((*place, name), part, found, (*around, id(value)))


def _inside(value: Any) -> Iterable[tuple[str, Any]]:
    """What a container, an object or a generator of random numbers holds."""
    match value:
        case list() | tuple() | deque():
            yield from ((str(place), part) for place, part in enumerate(value))
        case set() | frozenset():
            yield from ((repr(part), True) for part in value)
        case dict():
            yield from ((repr(name), part) for name, part in value.items())
        case np.ndarray() if value.dtype != object:
            yield "", value.tobytes()
        case random.Random():
            yield "", repr(value.getstate())
        case np.random.RandomState():
            yield "", repr(value.get_state())
        case np.random.Generator():
            yield "", repr(value.bit_generator.state)
        case _ if _is_ordinary(value):
            yield from ((str(name), part) for name, part in vars(value).items())


def _is_ordinary(value: Any) -> bool:
    """Whether it is an object of somebody's own class."""
    kind = type(value)
    if not hasattr(value, "__dict__") or callable(value) or isinstance(value, type):
        return False
    library = kind.__module__.partition(".")[0]
    return kind is SimpleNamespace or library not in {"torch", "numpy", "jax", "builtins"} | sys.stdlib_module_names


def _objects(module: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """All ordinary objects that the module holds, and their attributes."""
    seen: set[int] = set()

    def visit(value: Any, depth: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        if depth > DEEPEST or id(value) in seen:
            return
        if _is_ordinary(value):
            seen.add(id(value))
            yield value, dict(vars(value))
        elif not isinstance(value, list | tuple | dict | deque):
            return
        for _, part in _inside(value):
            yield from visit(part, depth + 1)

    for part in module.modules():
        for _, value in _attributes(part):
            yield from visit(value, 0)


def _changed(before: Mapping[tuple[str, ...], Any], after: Mapping[tuple[str, ...], Any]) -> list[str]:
    """The attributes of which something is another now, or is there or gone."""
    places = [place for place in {**before, **after} if before.get(place) != after.get(place)]
    return list(dict.fromkeys(name for name, *_ in places))


def refuse_what_is_read(module: Any, example: Any, left: Left) -> None:
    """Runs copies of the module, where it leaves anything in Python, and compares the first call with a later one.

    A buffer that is assigned one of another shape or type counts as left in Python: a table for the size of the images,
    say, which the graph computes with every call and which stays as it was in the state.

    Args:
        module: in the mode that is asked about; only read.
        example: a batch as it takes it.

    Raises:
        UnsupportedModuleError: what it leaves is read by its next call, or may be.
    """
    names = left.changed | left.recast
    if not names or any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers())):
        return
    torch, train, network = import_torch(), module.training, type(module).__name__
    others = [example.flatten(1).roll(shift, 1).view_as(example) for shift in (1, 2, 3)]
    try:
        fresh, used = copy_module(module), copy_module(module)
        first = _results(torch, fresh, example, train)
        states = []
        for mode, other in zip((train, not train, train), others, strict=True):
            _results(torch, used, other, mode)
            states.append(_state(used, left.recast))
        _restore(torch, used, module)
        later = _results(torch, used, example, train)
    except Exception as error:  # the module's own code: anything
        why = f"it can't be run to see whether that is read ({one_line(error, at_most=200)})"
        raise _refusal(network, names, why) from error
    moving = [name for name in _changed(states[0], states[-1]) if name in names]
    if moving:
        raise _refusal(network, moving, "it changes with every call")
    if not _are_equal(first, later):
        raise _refusal(network, names, "another call computes something else")


def _state(module: Any, buffers: Iterable[str]) -> dict[tuple[str, ...], Any]:
    """What the module holds: all that Python can compare, and the named buffers."""
    leaves = {place: value for place, value in _leaves(module).items() if not isinstance(value, _Same)}
    return leaves | {(name, "numbers"): as_numpy(module.get_buffer(name), name).tobytes() for name in buffers}


def _refusal(network: str, names: Iterable[str], why: str) -> UnsupportedModuleError:
    listed = ", ".join([*names][:5])
    return UnsupportedModuleError(
        f"{network} leaves {listed} for its next call, and {why}; a graph has no attributes: keep it in a buffer "
        "(register_buffer, changed in place), and choose by torch.where"
    )


def _restore(torch: Any, used: Any, module: Any) -> None:
    """Gives parameters and buffers their values back, and leaves all else as the calls left it."""
    now = {**dict(used.named_parameters()), **dict(used.named_buffers())}
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name in now and now[name].shape == tensor.shape:
                now[name].copy_(tensor)


def _results(torch: Any, module: Any, example: Any, train: bool) -> list[Any]:
    """All tensors of the output, and all buffers afterwards."""
    from torch.utils._pytree import tree_leaves

    in_mode(module, train)
    with torch.inference_mode(False), torch.enable_grad(), fixed_draws(torch):
        output = module(example.clone())
    tensors = [part for part in tree_leaves(output) if isinstance(part, torch.Tensor)]
    return [tensor.detach().clone() for tensor in (*tensors, *module.buffers())]


def _are_equal(ours: list[Any], theirs: list[Any]) -> bool:
    if [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return False
    for one, other in zip(ours, theirs, strict=True):
        one, other = one.double(), other.double()
        scale = one.nan_to_num().abs().max() if one.numel() else 0.0
        if not one.allclose(other, rtol=0.0, atol=float(scale) * TOLERANCE, equal_nan=True):
            return False
    return True
