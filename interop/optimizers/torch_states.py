"""A torch optimiser's `state_dict()`, or a checkpoint that holds one, checked and as NumPy arrays.

Adam, AdamW and SGD only: other optimisers' states mean something else, and are refused by name. torch isn't needed.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import CheckpointFormatError, StateDictMismatchError
from interop.arrays import as_numpy
from interop.formats.containers import CONTAINERS, OPTIMISERS

__all__ = ["ADAM", "MOMENTUM", "PLAIN", "TorchState", "read_torch_state"]

ADAM, MOMENTUM, PLAIN = "Adam or AdamW", "SGD with momentum", "SGD without momentum"

MOMENTS = {"exp_avg": ADAM, "exp_avg_sq": ADAM, "momentum_buffer": MOMENTUM}

OTHERS = {
    "max_exp_avg_sq": "AMSGrad",
    "mu_product": "NAdam",
    "momentum_decay": "NAdam",
    "exp_inf": "Adamax",
    "square_avg": "RMSprop or Adadelta",
    "grad_avg": "centred RMSprop",
    "alpha": "RMSprop",
    "rho": "Adadelta",
    "sum": "Adagrad",
    "lr_decay": "Adagrad",
    "lambd": "ASGD",
    "ax": "ASGD",
    "etas": "Rprop",
    "prev": "Rprop",
    "ns_coefficients": "Muon",
}
"""What only other optimisers have in their state or in their groups."""

LARGEST_STEP = np.iinfo(np.int32).max
"""optax's counts are int32."""


class TorchState(NamedTuple):
    """What a torch optimiser holds; a parameter's place is its number in the order of the groups.

    Attributes:
        ids: at each place what `state` calls the parameter: its number mostly.
        groups: `param_groups`, unchanged.
        kind: `ADAM`, `MOMENTUM` or `PLAIN`; None where nothing tells.
        state: moments by torch's names, at the places that have any.
        steps: at the places that have one.
        step_dtype: of the steps, float32 mostly.
        shapes: of the parameters, at the places where they are known.
        names: of the parameters, in the order of places; None where nothing names them. Buffers may be among them.
        names_are_given: whether the caller named them, so that they must fit.
    """

    ids: list[Any]
    groups: list[dict[str, Any]]
    kind: str | None
    state: dict[int, dict[str, np.ndarray]]
    steps: dict[int, int]
    step_dtype: np.dtype
    shapes: dict[int, tuple[int, ...]]
    names: list[str] | None
    names_are_given: bool

    @property
    def is_one_group(self) -> bool:
        """Whether one group has all parameters, in the order of their module then; several have any order."""
        return _is_one_group(self.groups)


def read_torch_state(given: Any, parameter_names: Iterable[str] | None = None) -> TorchState:
    """The state of a torch optimiser.

    Args:
        given: `optimizer.state_dict()`, the optimiser itself, or a checkpoint with an entry of `containers.OPTIMISERS`.
        parameter_names: the caller's; else the groups' `param_names`, or of one group those of the weights in the
            checkpoint.

    Raises:
        CheckpointFormatError: no optimiser's state, several of them, or a damaged one.
        StateDictMismatchError: names everything that Adam, AdamW and SGD with optax's rules don't have.

    Example:
        >>> read_torch_state({"state": {}, "param_groups": [{"params": [0, 1], "momentum": 0.9}]}).kind
        'SGD with momentum'
    """
    if isinstance(parameter_names, str):
        raise CheckpointFormatError("parameter_names: expected many names, got one text")
    held, weights = _find_state(given.state_dict() if hasattr(given, "state_dict") else given)
    groups = [dict(group) for group in held["param_groups"]]
    ids = [one for group in groups for one in group["params"]]
    places = {one: place for place, one in enumerate(ids)}
    if len(places) != len(ids) or not set(held["state"]) <= set(places):
        raise CheckpointFormatError("the optimiser's state: param_groups don't list each of its parameters once")
    entries = {places[one]: dict(entry) for one, entry in held["state"].items()}
    _refuse_others(groups, entries)
    state = {
        place: {
            name: as_numpy(entry[name], f"{name} of parameter {place}")
            for name in MOMENTS
            if entry.get(name) is not None
        }
        for place, entry in entries.items()
    }
    state = {place: moments for place, moments in state.items() if moments}
    kind = _kind(groups, state)
    steps = {place: _step(entries[place], place) for place in state if kind == ADAM}
    shapes = {place: next(iter(moments.values())).shape for place, moments in state.items()}
    if hasattr(given, "param_groups"):
        tensors = [tensor for group in given.param_groups for tensor in group["params"]]
        shapes = {place: tuple(tensor.shape) for place, tensor in enumerate(tensors)}
    return TorchState(
        ids=ids,
        groups=groups,
        kind=kind,
        state=state,
        steps={place: int(step) for place, step in steps.items()},
        step_dtype=next((step.dtype for step in steps.values()), np.dtype(np.float32)),
        shapes=shapes,
        names=_names(groups, ids, weights) if parameter_names is None else list(parameter_names),
        names_are_given=parameter_names is not None,
    )


def _find_state(given: Any) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """The optimiser's state dict, and that of the weights beside it."""
    if isinstance(given, Mapping) and "state" in given and "param_groups" in given:
        return given, None
    inside = [given[name] for name in OPTIMISERS if name in given] if isinstance(given, Mapping) else []
    held = [one for some in inside for one in (some if isinstance(some, list | tuple) else [some])]
    if len(held) != 1:
        raise CheckpointFormatError(
            (f"the checkpoint holds {len(held)} optimisers' states" if held else "no optimiser's state")
            + ": expected optimizer.state_dict(), with state and param_groups; from a file, "
            "torch.load(path, weights_only=True)"
        )
    weights = next((given[name] for name in CONTAINERS if isinstance(given.get(name), Mapping)), None)
    return _find_state(held[0])[0], weights


def _refuse_others(groups: list[dict[str, Any]], entries: Mapping[int, Mapping[str, Any]]) -> None:
    """Names all that isn't Adam's, AdamW's or SGD's, or has no counterpart in optax."""
    wrong = [f"{key} ({OTHERS[key]})" for group in groups for key in group if key in OTHERS]
    for key in (key for entry in entries.values() for key, value in entry.items() if value is not None):
        if key not in {*MOMENTS, "step"}:
            wrong.append(f"{key} ({OTHERS.get(key, 'not known')})")
    for group in groups:
        wrong += [f"{option}={group[option]}" for option in ("amsgrad", "maximize", "dampening") if group.get(option)]
        if "betas" in group and "foreach" in group and "amsgrad" not in group:
            wrong.append("betas without amsgrad (RAdam, Adamax or another variant)")
    if wrong:
        raise StateDictMismatchError(
            f"the torch optimiser's state can't be converted, only Adam's, AdamW's and SGD's: it has "
            f"{', '.join(dict.fromkeys(wrong))}"
        )


def _kind(groups: list[dict[str, Any]], state: Mapping[int, Mapping[str, Any]]) -> str | None:
    kinds = {MOMENTS[name] for moments in state.values() for name in moments}
    if len(kinds) > 1:
        raise StateDictMismatchError("the torch optimiser's state holds Adam's and SGD's moments together")
    if kinds:
        return kinds.pop()
    if any("betas" in group for group in groups):
        return ADAM
    momenta = [group["momentum"] for group in groups if "momentum" in group]
    return (MOMENTUM if any(momenta) else PLAIN) if momenta else None


def _step(entry: Mapping[str, Any], place: int) -> np.ndarray:
    """A parameter's step as torch keeps it: a scalar tensor, a plain number before torch 1.12."""
    given = entry.get("step")
    array = (
        np.asarray(given, np.float32)
        if isinstance(given, int | float)
        else as_numpy(given, f"step of parameter {place}")
    )
    if array.size != 1 or not 0 <= float(array) <= LARGEST_STEP or float(array) % 1:
        raise CheckpointFormatError(f"the optimiser's state: step of parameter {place} is {given}, not a whole number")
    return array


def _names(groups: list[dict[str, Any]], ids: list[Any], weights: Mapping[str, Any] | None) -> list[str] | None:
    if ids and all(isinstance(one, str) for one in ids):
        return ids
    if groups and all("param_names" in group for group in groups):
        return [name for group in groups for name in group["param_names"]]
    return [str(name) for name in weights] if weights is not None and _is_one_group(groups) else None


def _is_one_group(groups: list[dict[str, Any]]) -> bool:
    return sum(bool(group["params"]) for group in groups) <= 1
