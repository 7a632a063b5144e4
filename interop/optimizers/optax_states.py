"""An optax state as what one torch optimiser would hold: moments by the parameters' paths, and counts.

    ScaleByAdamState(count, mu, nu)    Adam, AdamW          exp_avg, exp_avg_sq, step
    TraceState(trace)                  SGD with momentum    momentum_buffer

Read and replaced wherever they stand in chains, masks, partitions, injected hyper-parameters and `apply_if_finite`. A
state with numbers of another kind is refused by its name.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from byol_jax.errors import ConfigurationError, StateDictMismatchError
from byol_jax.tree import copy_leaves, leaf_names
from interop.learners.states import place_like
from interop.optimizers.torch_states import ADAM, MOMENTUM, PLAIN

__all__ = ["Moments", "all_moments", "kind_of", "with_moments"]

INJECTED = (optax.InjectHyperparamsState, optax.InjectStatefulHyperparamsState)
CONTAINERS = (*INJECTED, optax.MaskedState, optax.PartitionState, optax.ApplyIfFiniteState)
"""What may stand around moments; numbers of its own, such as injected hyper-parameters, aren't torch's state."""


class Moments(NamedTuple):
    """What one part of an optax state holds.

    Attributes:
        kind: `ADAM` or `MOMENTUM`.
        count: Adam's number of steps, an integer scalar; None for momentum.
        trees: torch's name of each moment, "exp_avg", to its leaves by the parameters' paths. Parameters that are
            masked, or None, have none.
    """

    kind: str
    count: Any
    trees: dict[str, dict[str, Any]]


def all_moments(opt_state: Any) -> list[Moments]:
    """Every part of `opt_state` that holds moments, in its order.

    Raises:
        StateDictMismatchError: names every other kind of state with numbers, and every parameter with two moments.

    Example:
        >>> all_moments(optax.sgd(0.1, momentum=0.9).init({"bias": np.zeros(2, np.float32)}))[0].trees
        {'momentum_buffer': {'bias': Array([0., 0.], dtype=float32)}}
    """
    found: list[Moments] = []
    foreign: list[str] = []

    def note(part: Any) -> Any:
        if isinstance(part, optax.ScaleByAdamState):
            found.append(
                Moments(ADAM, part.count, {"exp_avg": _leaves_by_path(part.mu), "exp_avg_sq": _leaves_by_path(part.nu)})
            )
        elif isinstance(part, optax.TraceState):
            found.append(Moments(MOMENTUM, None, {"momentum_buffer": _leaves_by_path(part.trace)}))
        elif not _has_only_counts(part):
            foreign.append(type(part).__name__)
        return part

    _map_parts(note, opt_state)
    paths = [path for moments in found for path in next(iter(moments.trees.values()))]
    twice = sorted(path for path, times in Counter(paths).items() if times > 1)
    wrong = [f"{name} has no counterpart in torch's Adam, AdamW or SGD" for name in sorted(set(foreign))]
    wrong += [f"{path} has moments twice" for path in twice]
    if len({moments.kind for moments in found}) > 1:
        wrong.append("Adam's and SGD's moments together are no single torch optimiser's")
    if wrong:
        raise StateDictMismatchError(f"the optax state can't be converted: {'; '.join(wrong)}")
    return found


def kind_of(found: list[Moments]) -> str:
    """`ADAM`, `MOMENTUM` or `PLAIN`: the torch optimiser that has such moments.

    Example:
        >>> kind_of(all_moments(optax.sgd(0.1).init({})))
        'SGD without momentum'
    """
    return found[0].kind if found else PLAIN


def with_moments(opt_state: Any, arrays: Mapping[tuple[str, str], np.ndarray], *, step: int | None) -> Any:
    """`opt_state` with other moments and counts, and fresh copies of all else; shardings stay.

    Args:
        arrays: by torch's name of the moment and the parameter's path; for all leaves, in their shapes and types.
        step: for every count of Adam's, of schedules and of injected hyper-parameters; None keeps them.

    Raises:
        ConfigurationError: what would be kept is a `jax.ShapeDtypeStruct`.
    """

    def tree(name: str, like: Any) -> Any:
        leaves = zip(leaf_names(like), jax.tree.leaves(like), strict=True)
        return jax.tree.unflatten(
            jax.tree.structure(like), [place_like(arrays[name, path], leaf) for path, leaf in leaves]
        )

    def count(like: Any) -> Any:
        return _copy(like) if step is None else place_like(np.asarray(step, like.dtype), like)

    def change(part: Any) -> Any:
        if isinstance(part, optax.ScaleByAdamState):
            return optax.ScaleByAdamState(count(part.count), tree("exp_avg", part.mu), tree("exp_avg_sq", part.nu))
        if isinstance(part, optax.TraceState):
            return optax.TraceState(tree("momentum_buffer", part.trace))
        return part._replace(count=count(part.count))

    return _map_parts(change, opt_state)


def _has_only_counts(part: Any) -> bool:
    """Whether it is a schedule's state, optax's own or one inside injected hyper-parameters (which has no public name),
    or injected hyper-parameters themselves, of which only the count is changed."""
    return isinstance(part, INJECTED) or getattr(part, "_fields", ()) == ("count",)


def _map_parts(change: Callable[[Any], Any], state: Any) -> Any:
    """`state` with `change` applied to each part that is no container; what has no numbers stays as it is."""
    if isinstance(state, INJECTED):
        state = change(state)
        inner, schedules = _map_parts(change, state.inner_state), {}
        if isinstance(state, optax.InjectStatefulHyperparamsState):
            schedules = {"hyperparams_states": _map_parts(change, state.hyperparams_states)}
        return state._replace(inner_state=inner, hyperparams=jax.tree.map(_copy, state.hyperparams), **schedules)
    if type(state) is dict:
        return {name: _map_parts(change, value) for name, value in state.items()}
    if isinstance(state, CONTAINERS):
        return type(state)(*(_map_parts(change, value) for value in state))
    if type(state) in (tuple, list):
        return type(state)(_map_parts(change, value) for value in state)
    if not jax.tree.leaves(state):
        return state
    return _copy(state) if hasattr(state, "dtype") else change(state)


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ConfigurationError("like: its counts and hyper-parameters are kept, so it must hold arrays")
    return copy_leaves(leaf)


def _leaves_by_path(tree: Any) -> dict[str, Any]:
    return dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))
