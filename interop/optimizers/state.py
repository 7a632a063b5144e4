"""torch's Adam, AdamW and SGD states to and from optax's: a run moved midway takes the steps that it would have taken.

    exp_avg, exp_avg_sq     mu, nu, in each parameter's own layout
    step, per parameter     count, one for all
    momentum_buffer         trace

Hyper-parameters are no state: in torch they lie in `param_groups`, in optax in the code, and it is the user who makes
them equal. `optax_states` finds the moments in an optax state, `names` whose each of torch's is.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from byol_jax.errors import ConfigurationError, StateDictMismatchError
from byol_jax.tree import leaf_names
from interop.arrays import as_numpy, as_tensor
from interop.optimizers.names import Positions, Shape, positions_by_name, positions_by_shape
from interop.optimizers.optax_states import Moments, all_moments, kind_of, with_moments
from interop.optimizers.torch_states import ADAM, TorchState, read_torch_state
from interop.weights.mismatch import Mismatch, compare_names
from interop.weights.names import Leaf, named_leaves, torch_names, whole_shape
from interop.weights.packing import PARTS, pack, whole_key
from interop.weights.state_dict import match_leaves, to_torch_array

__all__ = ["from_torch_opt_state", "to_torch_opt_state"]


def from_torch_opt_state(
    optimizer_state_dict: Any, *, like: Any, parameter_names: Iterable[str] | None = None, step: int | None = None
) -> Any:
    """An optax state with the moments and the step of a torch optimiser: Adam, AdamW, or SGD.

    The next steps are torch's where optax has torch's hyper-parameters, which aren't read: learning rate, betas, eps,
    decay, momentum. Adam's `weight_decay` is `optax.chain(optax.add_decayed_weights(w), optax.adam(...))`, AdamW's is
    `optax.adamw`; SGD's the same with `optax.sgd`. Nor does a state tell AdamW from Adam or NAdam, or SGD from LARS.
    `state.replace(opt_state=..., step=...)` puts it into a training state, whose networks `load_byol_checkpoint` moves.

    Args:
        optimizer_state_dict: `optimizer.state_dict()`, the optimiser, or a checkpoint that holds one ("optimizer",
            "optimizer_states", …), read by `torch.load(path, weights_only=True)`; tensors or NumPy arrays.
        like: a `TrainState`, or an optax state by itself, as `optimizer.init(params)` gives; decides structure, shapes,
            types and shardings. Moments may lie in chains, masks, partitions, `inject_hyperparams`, `apply_if_finite`.
        parameter_names: torch's names of the optimiser's parameters in its order, that of `param_groups`; of one group
            `[name for name, _ in module.named_parameters()]`, or a state dict of the module: byol-pytorch's, lightly's,
            solo-learn's, or the network's own. None: those in the file, which with several groups are `param_names`
            alone; else the order is found by shapes, and of one group by numbers in names.
        step: for the counts of learning-rate schedules under SGD, which keeps no step in torch; None keeps `like`'s.
            Adam's own step goes to all counts.

    Returns:
        `like`'s optax state, its arrays of its own. Parameters without state in torch have zeros; parameters that
        `like` has none for, because the loss doesn't depend on them, must have none or zeros in torch, too.

    Raises:
        StateDictMismatchError: another optimiser, on either side; names wanted; or lists every missing, unexpected,
            wrong-shape and wrong-dtype moment, and steps that differ.
        CheckpointFormatError: no optimiser's state, or several.
        ConfigurationError: `step` is negative, or isn't Adam's own.

    Example:
        >>> import optax
        >>> like = optax.adam(1e-3).init({"fc": {"kernel": np.zeros((4, 2), np.float32)}})
        >>> moments = {"exp_avg": np.ones((2, 4), np.float32), "exp_avg_sq": np.ones((2, 4), np.float32)}
        >>> theirs = {"state": {0: {"step": 7.0, **moments}}, "param_groups": [{"params": [0]}]}
        >>> state = from_torch_opt_state(theirs, like=like)
        >>> int(state[0].count), state[0].mu["fc"]["kernel"].shape
        (7, (4, 2))
    """
    if step is not None and (not isinstance(step, int) or step < 0):
        raise ConfigurationError(f"step={step!r}: expected a whole number of at least 0")
    theirs, opt_state = read_torch_state(optimizer_state_dict, parameter_names), _opt_state(like)
    ours = all_moments(opt_state)
    _check_kind(kind_of(ours), theirs)
    leaves = {
        (moment, path): leaf for part in ours for moment, tree in part.trees.items() for path, leaf in tree.items()
    }
    arrays = {place: np.zeros(leaf.shape, leaf.dtype) for place, leaf in leaves.items()}
    found = 0 if kind_of(ours) == ADAM else step
    if theirs.state:
        names, named = _names_and_positions(theirs, ours, like)
        moved, steps = _transfer(theirs, leaves, names, named)
        arrays, found = arrays | moved, steps.pop() if steps else found
    if step not in (None, found):
        raise ConfigurationError(f"step={step}: the torch optimiser has done {found}; leave step out")
    return with_moments(opt_state, arrays, step=found)


def to_torch_opt_state(state: Any, *, like: Any, parameter_names: Iterable[str] | None = None) -> dict[str, Any]:
    """An optax state as `optimizer.state_dict()` of torch's Adam, AdamW or SGD: the inverse of `from_torch_opt_state`.

    Args:
        state: a `TrainState`, or an optax state by itself.
        like: the torch optimiser that shall go on, or its `state_dict()`, new or used: it decides the order of the
            parameters and gives all hyper-parameters (`param_groups`), which optax doesn't keep in its state.
        parameter_names: as in `from_torch_opt_state`.

    Returns:
        `{"state": {0: {"step": …, "exp_avg": …, "exp_avg_sq": …}, …}, "param_groups": […]}` of torch tensors that share
        no memory, which `optimizer.load_state_dict` takes. Left out, as torch leaves out what has no gradient, are
        parameters without moments here (masked ones, the target's), all of them before the first step, and those with
        moments of zero for which a used `like` has nothing.

    Raises:
        StateDictMismatchError: another optimiser, on either side; names wanted; or lists every parameter that `like`
            lacks or has with another shape.
        CheckpointFormatError: `like` is no optimiser's state.
        MissingDependencyError: torch is absent.

    Example:
        >>> import optax, torch
        >>> layer, params = torch.nn.Linear(4, 2), {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        >>> state = optax.sgd(0.1, momentum=0.9).init(params)
        >>> state = (state[0]._replace(trace={"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)}), state[1])
        >>> optimizer.load_state_dict(to_torch_opt_state(state, like=optimizer))
        >>> optimizer.state[layer.weight]["momentum_buffer"].shape
        torch.Size([2, 4])
    """
    theirs, ours = read_torch_state(like, parameter_names), all_moments(_opt_state(state))
    _check_kind(kind_of(ours), theirs)
    written: dict[int, dict[str, np.ndarray]] = {}
    if ours:
        names, named = _names_and_positions(theirs, ours, state)
        _check_places(theirs, ours, names, named)
        started = any(_has_begun(part) for part in ours)
        for part in ours:
            count = {} if part.count is None else {"step": np.asarray(as_numpy(part.count, "count"), theirs.step_dtype)}
            trees = {moment: _torch_layout(tree, names) for moment, tree in part.trees.items()}
            for key in next(iter(trees.values())):
                place, moments = named.positions.get(key), {moment: tree[key] for moment, tree in trees.items()}
                unused = place not in theirs.state and (bool(theirs.state) or not started)
                if place is not None and not (unused and not any(array.any() for array in moments.values())):
                    written[place] = count | moments
    tensors = {
        theirs.ids[place]: {name: as_tensor(array) for name, array in written[place].items()}
        for place in sorted(written)
    }
    return {"state": tensors, "param_groups": copy.deepcopy(theirs.groups)}


def _opt_state(state: Any) -> Any:
    return state.opt_state if hasattr(state, "opt_state") else state


def _check_kind(kind: str, theirs: TorchState) -> None:
    if theirs.kind not in (None, kind):
        raise StateDictMismatchError(
            f"the torch optimiser is {theirs.kind}, the optax state one of {kind}: use the same optimiser on both sides"
        )


def _names_and_positions(theirs: TorchState, ours: Sequence[Moments], state: Any) -> tuple[dict[str, Leaf], Positions]:
    """Torch's key for each path of ours, and each key's place in the optimiser."""
    sizes = {path: tuple(leaf.shape) for part in ours for path, leaf in next(iter(part.trees.values())).items()}
    everything: dict[str, Any] = dict(sizes)
    network: dict[str, Any] = {}
    targets = 0
    if hasattr(state, "online"):
        network = named_leaves(state.online)
        everything |= dict.fromkeys(leaf_names(state.online.params))
        targets = len(jax.tree.leaves(state.target.params))
    names = torch_names({**network, **sizes})

    def shapes_by_key(paths: Iterable[str]) -> dict[str, Shape]:
        shapes = {path: sizes[path] if path in sizes else tuple(network[path].shape) for path in paths}
        return {whole_key(names[path].key): whole_shape(names[path], shape) for path, shape in shapes.items()}

    if theirs.names is not None:
        named = positions_by_name(theirs.names, shapes_by_key(sizes))
        if len(named.labels) == len(theirs.ids):
            return names, named
        if theirs.names_are_given:
            raise StateDictMismatchError(
                f"parameter_names: {len(named.labels)} parameters; the torch optimiser has {len(theirs.ids)}"
            )
    shapes = [theirs.shapes.get(place) for place in range(len(theirs.ids))]
    return names, positions_by_shape(
        shapes_by_key(sizes),
        shapes_by_key(everything),
        targets,
        shapes,
        sorted(theirs.state),
        is_in_order=theirs.is_one_group,
    )


def _torch_layout(tree: Mapping[str, Any], names: Mapping[str, Leaf]) -> dict[str, np.ndarray]:
    """Leaves by torch's keys, what is one tensor in torch put together."""
    return pack(
        {names[path].key: to_torch_array(as_numpy(leaf, path), names[path].rule) for path, leaf in tree.items()}
    )


def _transfer(
    theirs: TorchState, leaves: Mapping[tuple[str, str], Any], names: Mapping[str, Leaf], named: Positions
) -> tuple[dict[tuple[str, str], np.ndarray], set[int]]:
    """The moments that torch has, by `leaves`' names and in their layouts, and the step that they are of."""
    wanted: dict[str, tuple[str, str]] = {}
    keys: dict[str, Leaf] = {}
    for moment, path in leaves:
        key, rule = whole_key(names[path].key), names[path].rule
        place = named.positions.get(key)
        if place in theirs.state or (place is None and key not in named.optional):
            label = key if place is None else named.labels[place]
            wanted[f"{moment}/{path}"] = moment, path
            keys[f"{moment}/{path}"] = Leaf(f"{label}.{moment}{names[path].key.removeprefix(key)}", rule)
    own = {whole_key(names[path].key) for _, path in leaves}
    ours = {place for key, place in named.positions.items() if key in own}
    passed = {place for key, place in named.positions.items() if key not in own}  # a classifier trained beside
    passed |= {place for place in set(theirs.state) - ours if not any(a.any() for a in theirs.state[place].values())}
    given = {
        f"{named.labels[place]}.{moment}": array
        for place, moments in theirs.state.items()
        if place not in passed
        for moment, array in moments.items()
    }
    likes = {name: leaves[leaf] for name, leaf in wanted.items()}
    arrays, mismatch = match_leaves(given, likes, keys, strict=True, cast_to_like=False)
    steps: dict[int, list[str]] = {}
    for place in sorted(set(theirs.steps) - passed):
        steps.setdefault(theirs.steps[place], []).append(named.labels[place])
    if len(steps) > 1:
        counts = "; ".join(f"{count} of {', '.join(labels)}" for count, labels in steps.items())
        mismatch.values.append(f"step (optax has one for all parameters, here are {counts})")
    mismatch.raise_if_any("the torch optimiser's state doesn't fit the optax state")
    return {wanted[name]: array for name, array in arrays.items()}, set(steps)


def _check_places(theirs: TorchState, ours: Sequence[Moments], names: Mapping[str, Leaf], named: Positions) -> None:
    """Refuses a torch optimiser that lacks a parameter of ours, or has it with another shape."""
    leaves = {names[path]: leaf for part in ours for path, leaf in next(iter(part.trees.values())).items()}
    shapes = {whole_key(leaf.key): whole_shape(leaf, tuple(array.shape)) for leaf, array in leaves.items()}
    free = [label for place, label in enumerate(named.labels) if place not in named.positions.values()]
    lacking = [key for key in shapes if key not in {*named.positions, *named.optional}]
    mismatch = Mismatch(missing=compare_names(lacking, free).missing)
    known = {leaf.key for leaf in leaves}
    parts = [f"{key}[{part}]" for key in shapes if key not in known for part in PARTS]
    mismatch.missing += [f"{part} (no moments here)" for part in parts if part not in known]
    for key, expected in shapes.items():
        place = named.positions.get(key)
        given = None if place is None else theirs.shapes.get(place)
        if place is not None and given not in (None, expected):
            mismatch.shapes.append(f"{named.labels[place]} (given {list(given or ())}, expected {list(expected)})")
    mismatch.raise_if_any("the torch optimiser isn't one for these parameters")


def _has_begun(part: Moments) -> bool:
    """Whether a step was taken: torch has no state before."""
    if part.count is not None:
        return int(as_numpy(part.count, "count")) > 0
    with np.errstate(invalid="ignore"):  # a signalling NaN is a number like any other
        return any(as_numpy(leaf, path).any() for tree in part.trees.values() for path, leaf in tree.items())
