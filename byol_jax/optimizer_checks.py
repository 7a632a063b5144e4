"""Whether a training step can use an optimiser, asked of it abstractly in `make_learner`, before anything is trained.

Refused are optimisers that hold updates back, since the target would move without them; that ask for what a step can't
give; that can't take None in place of a parameter (docs/decisions/0002_unused_parameters_are_none.md); and that change
shapes or dtypes. Each refusal names the part of the optimiser that is the reason. How a step calls it is in optim.py.
"""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import optax

from byol_jax.errors import ConfigurationError, one_line
from byol_jax.ops.precision import standard_promotion
from byol_jax.optim import init_optimizer, updates_for
from byol_jax.tree import leaf_names

__all__ = ["check_evaluation_params", "check_optimizer", "warn_of_training_point"]

ACCUMULATES = (
    "accumulates gradients, and at the steps between its updates the target, its decay schedule and the batch"
    " statistics would move without them: give the optimiser inside alone, and byol_jax.accumulate(learner, parts) for"
    " batches that memory can't hold"
)
SKIPS = (
    "skips updates, and the target and its decay schedule would move without them: give the optimiser inside alone, and"
    " a learning-rate schedule that is 0 where nothing should be learned"
)

HOLDING_BACK = {
    "MultiStepsState": ("optax.MultiSteps", ACCUMULATES),
    "ApplyEvery": ("optax.apply_every", ACCUMULATES),
    "AccumulateAvgUpdatesState": ("optax.experimental's accumulate_avg_updates", ACCUMULATES),
    "ConditionallyMaskState": ("optax.conditionally_mask", SKIPS),
    "ApplyIfFiniteState": (
        "optax.apply_if_finite",
        "skips updates, and the target would move without them: give the optimiser inside alone, a step that isn't"
        " finite changes nothing",
    ),
    "SAMState": (
        "optax.contrib.sam",
        "goes to adversarial parameters and back, and the target and the batch statistics would follow there (with"
        " opaque_mode it asks for grad_fn, which a step can't give): give its outer optimiser alone",
    ),
    "LookaheadState": (
        "optax.lookahead",
        "wants two sets of parameters, LookaheadParams, and a learner has one: give the fast optimiser alone",
    ),
}
"""By the type of its state, which any wrapper around it holds: an optimiser's name, and why it is refused."""

COMBINE = ("chain", "named_chain", "partition", "masked")
"""Functions whose names don't tell one optimiser from another."""


def check_optimizer(
    optimizer: optax.GradientTransformation, params: Any, trained: Any, *, axis_name: str | None = None
) -> Any:
    """The optimiser's abstract state, if a training step can use it; nothing is computed.

    Args:
        params: all of the online network's parameters, abstract.
        trained: the same, with None in place of those that the loss doesn't depend on.
        axis_name: the mapped axis that the optimiser may average over.

    Raises:
        ConfigurationError: a step can't use it; see above.

    Example:
        >>> params = {"bias": jax.ShapeDtypeStruct((2,), "float32")}
        >>> check_optimizer(optax.sgd(0.1, momentum=0.9), params, params)[0]
        TraceState(trace={'bias': ShapeDtypeStruct(shape=(2,), dtype=float32)})
    """
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise ConfigurationError(f"optimizer: a {type(optimizer).__name__} is no optax transformation: give one")
    try:
        opt_state = _init(optimizer, trained)
    except Exception as error:  # whatever an optimiser of anybody's raises
        _refuse_without_none(optimizer, params, trained, error)
        raise ConfigurationError(
            f"optimizer: {_culprit(error)}its init fails on abstract parameters ({_reason(error)}): give one that makes"
            " its state of them by jax.numpy"
        ) from error
    for path, part in jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_holds_back):
        if _holds_back(part):
            name, why = HOLDING_BACK[type(part).__name__]
            raise ConfigurationError(f"optimizer: {name}{_place(path)} {why}")
    try:
        updates, after = _update(optimizer, opt_state, trained, axis_name)
    except Exception as error:
        _refuse_without_none(optimizer, params, trained, error, axis_name)
        raise ConfigurationError(
            f"optimizer with {', '.join(_states(opt_state)) or 'no state'}: {_culprit(error)}its update fails in a"
            f" training step ({_reason(error)}): a step gives it gradient, state and parameters and, where it asks,"
            " value (the loss) and grad; what evaluates the loss or its gradient again, as a line search does, can't be"
            " used"
        ) from error
    _refuse_other_shapes(updates, trained, "updates of other shapes than the parameters", dtypes=False)
    _refuse_other_shapes(after, opt_state, "a state of another structure, shape or dtype than it gets")
    return opt_state


def check_evaluation_params(function: Callable[[Any, Any], Any], opt_state: Any, trained: Any) -> None:
    """Returns if `function(opt_state, trained)` gives parameters like `trained`; all abstract.

    Raises:
        ConfigurationError: it fails, or gives something else.
    """
    expected = "expected (opt_state, params) -> params, such as optax.contrib.schedule_free_eval_params"
    try:
        with standard_promotion():
            given = jax.eval_shape(function, opt_state, trained)
    except Exception as error:
        states = ", ".join(_states(opt_state)) or "no state"
        raise ConfigurationError(
            f"evaluation_params fails on the optimiser's state, a {type(opt_state).__name__} with {states}"
            f" ({_reason(error)}): {expected}"
        ) from error
    if _shapes(given) != _shapes(trained):
        raise ConfigurationError(
            "evaluation_params gives another structure, shape or dtype than it gets"
            f" ({_first_difference(given, trained)}): {expected}"
        )


def warn_of_training_point(opt_state: Any) -> None:
    """Warns if an optimiser trains at other parameters than those that are worth evaluating, and nobody said which."""
    for path, part in jax.tree_util.tree_leaves_with_path(opt_state, is_leaf=_trains_elsewhere):
        if _trains_elsewhere(part):
            warnings.warn(
                f"optimizer: schedule_free{_place(path)} trains at one point and is evaluated at another, and embed,"
                " evaluate and export would take the first: give"
                " evaluation_params=optax.contrib.schedule_free_eval_params, or a function that finds its state",
                stacklevel=2,
            )


def _trains_elsewhere(part: Any) -> bool:
    return type(part).__name__ == "ScheduleFreeState"


def _init(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """The abstract state, as strongly typed as `Learner.init` makes it."""
    opt_state = jax.eval_shape(lambda params: init_optimizer(optimizer, params), params)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), opt_state)


def _update(optimizer: optax.GradientTransformation, opt_state: Any, params: Any, axis_name: str | None) -> Any:
    """Abstract updates and state after a step; a mapped axis is one device wide."""
    value = jax.ShapeDtypeStruct((), jax.tree.leaves(params)[0].dtype)

    def step(opt_state: Any, params: Any, value: Any) -> Any:
        return updates_for(optimizer, params, opt_state, params, value=value)

    def mapped(*arguments: Any) -> Any:
        outputs = jax.vmap(step, in_axes=None, axis_name=axis_name, axis_size=1)(*arguments)
        return jax.tree.map(lambda leaf: leaf[0], outputs)

    return jax.eval_shape(step if axis_name is None else mapped, opt_state, params, value)


def _refuse_without_none(
    optimizer: optax.GradientTransformation, params: Any, trained: Any, error: Exception, axis_name: str | None = None
) -> None:
    """Raises if None in place of some parameters is the reason for `error`: where with all of them there is none."""
    absent = sorted(set(leaf_names(params)) - set(leaf_names(trained)))
    if not absent:
        return
    try:
        _update(optimizer, _init(optimizer, params), params, axis_name)
    except Exception:  # then it has another reason
        return
    named = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
    raise ConfigurationError(
        f"optimizer: {_culprit(error)}it can't take None in place of parameters that the loss doesn't depend on"
        f" ({named}; {_reason(error)}): take an encoder without them (num_classes=None), hidden_layer=-1, or another"
        " optimiser"
    ) from error


def _refuse_other_shapes(given: Any, expected: Any, what: str, *, dtypes: bool = True) -> None:
    if _shapes(given, dtypes=dtypes) != _shapes(expected, dtypes=dtypes):
        raise ConfigurationError(
            f"optimizer with {', '.join(_states(expected)) or 'no state'}: its update gives {what}"
            f" ({_first_difference(given, expected)}): give another one"
        )


def _shapes(tree: Any, *, dtypes: bool = True) -> tuple[Any, list[Any]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.shape, leaf.dtype if dtypes else None) for leaf in leaves]


def _first_difference(given: Any, expected: Any) -> str:
    """The first leaf that is another one, for a message."""
    now, before = (dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True)) for tree in (given, expected))
    for name in [*before, *(name for name in now if name not in before)]:
        new, old = now.get(name), before.get(name)
        if old is None or new is None or (new.shape, new.dtype) != (old.shape, old.dtype):
            return f"{name or 'the whole'}: {_leaf(new)} for {_leaf(old)}"
    return "other containers"


def _leaf(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{leaf.dtype} {list(leaf.shape)}"


def _holds_back(part: Any) -> bool:
    return type(part).__name__ in HOLDING_BACK


def _place(path: Any) -> str:
    """Where in a wrapper's state a part of it is."""
    return f" (in its state at {jax.tree_util.keystr(path)})" if path else ""


def _states(opt_state: Any) -> list[str]:
    """Names of the types of all states in it: what tells an optimiser from others."""
    parts: list[Any] = []
    jax.tree.flatten(opt_state, is_leaf=lambda part: bool(parts.append(part)))  # append gives None: no leaf
    named = (type(part).__name__ for part in parts if hasattr(part, "_fields"))
    return [name for name in dict.fromkeys(named) if name not in ("EmptyState", "MaskedNode")]


def _culprit(error: BaseException) -> str:
    """The innermost of the optimiser's functions that was running, "scale_by_galore: "; "" where none shows."""
    innermost = list(_running(error))[-1:]
    return "".join(f"{name}: " for name in innermost if name not in COMBINE)


def _running(error: BaseException) -> Iterator[str]:
    """Names of functions that made an `init` or `update` in which `error` was raised, the outermost first."""
    place = error.__traceback__
    while place is not None:
        outer, _, inner = place.tb_frame.f_code.co_qualname.partition(".<locals>.")
        if inner.startswith(("init", "update")) and place.tb_frame.f_globals.get("__name__") != __name__:
            yield outer
        place = place.tb_next


def _reason(error: BaseException) -> str:
    return one_line(error, at_most=200)
