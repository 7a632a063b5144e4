"""Optimisation: the paper's LARS, and which parameters an optimiser should see at all.

`lars` is a chain of optax pieces. `find_dependence` finds the parameters that a function depends on, `drop` takes
the others out of a tree (None in their place, which JAX takes for an empty branch) and `fill` puts them back. Every
optax transformation then leaves them alone: no decay, no state. That is what PyTorch does where `grad is None`.

Learning-rate schedules are in `schedules`, what an optimiser must be able to do in `optimizer_checks`.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.extend import core

from byol_jax.errors import ConfigurationError
from byol_jax.ops.compilation import quick_options
from byol_jax.ops.precision import standard_promotion

__all__ = ["apply_gradient", "drop", "fill", "find_dependence", "init_optimizer", "lars", "matrices", "updates_for"]

_MANY_LEAVES = 60
"""From here on one program that is compiled quickly: of a mobilenet_v3_small's 170 leaves 60 differ in shape, and as
many programs of zeros took 1.8 s to compile where one takes 0.3 s."""


def matrices(params: Any) -> Any:
    """True for the leaves with two dimensions or more (kernels), False for biases, scales and offsets.

    Example:
        >>> matrices({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
        {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


def lars(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    trust_coefficient: float = 1e-3,
    mask: Any = None,
) -> optax.GradientTransformation:
    """LARS in the order of the BYOL paper's code: decay, trust ratio, momentum, learning rate.

    For a parameter w with gradient g at step k:

        d = g + weight_decay · w                    (adapted leaves only)
        d = d · trust_coefficient · ‖w‖ / ‖d‖       (adapted leaves only; factor 1 where either norm is 0)
        m = momentum · m + d
        w = w - learning_rate(k) · m

    `optax.lars` has the learning rate inside the momentum; the two differ as soon as the rate changes.

    Args:
        learning_rate: a number, or a schedule from the step (int32) to one.
        mask: pytree of bools like the parameters, or a function from the parameters to one; True = adapted. Leaves
            that aren't adapted get plain momentum. None adapts the leaves with two dimensions or more.

    Raises:
        ConfigurationError: weight_decay < 0, momentum outside [0, 1), or trust_coefficient <= 0.

    Example:
        >>> optimizer = lars(1.0, weight_decay=1e-6)
        >>> state = optimizer.init({"bias": jnp.zeros(2)})
        >>> optimizer.update({"bias": jnp.ones(2)}, state, {"bias": jnp.zeros(2)})[0]
        {'bias': Array([-1., -1.], dtype=float32)}

    Constants: momentum 0.9 and trust coefficient 1e-3 are those of google-deepmind/deepmind-research, `byol/`.
    """
    if weight_decay < 0 or not 0 <= momentum < 1 or trust_coefficient <= 0:
        raise ConfigurationError(
            f"lars: weight_decay={weight_decay}, momentum={momentum}, trust_coefficient={trust_coefficient}: "
            "expected weight_decay >= 0, 0 <= momentum < 1, trust_coefficient > 0"
        )
    adapted = matrices if mask is None else mask
    return optax.chain(
        optax.add_decayed_weights(weight_decay, adapted),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), adapted),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def init_optimizer(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """The optimiser's state for `params`, whose leaves may be None; dtypes may mix in it, as optax's own do."""
    with standard_promotion():
        leaves = jax.tree.leaves(params)
        at_once = len(leaves) >= _MANY_LEAVES and not any(isinstance(leaf, Tracer) for leaf in leaves)
        init = jax.jit(optimizer.init, compiler_options=quick_options()) if at_once else optimizer.init
        return init(params)


def apply_gradient(
    optimizer: optax.GradientTransformation, gradient: Any, opt_state: Any, params: Any, *, value: jax.Array
) -> tuple[Any, Any]:
    """One step of `optimizer`: the new parameters and its new state.

    Parameters whose `gradient` is None stay as they are; the optimiser doesn't see them.

    Args:
        value: the loss at `params`, for optimisers that ask for it.

    Example:
        >>> optimizer = optax.sgd(0.5)
        >>> params, gradient = {"used": jnp.ones(()), "unused": jnp.ones(())}, {"used": jnp.ones(()), "unused": None}
        >>> state = init_optimizer(optimizer, gradient)
        >>> new, _ = apply_gradient(optimizer, gradient, state, params, value=jnp.ones(()))
        >>> new["used"].item(), new["unused"].item()
        (0.5, 1.0)
    """
    has_gradient = jax.tree.map(lambda leaf: leaf is not None, gradient, is_leaf=lambda leaf: leaf is None)
    trained = drop(params, has_gradient)
    updates, opt_state = updates_for(optimizer, gradient, opt_state, trained, value=value)
    with standard_promotion():
        return fill(optax.apply_updates(trained, updates), params), opt_state


def updates_for(
    optimizer: optax.GradientTransformation, gradient: Any, opt_state: Any, params: Any, *, value: jax.Array
) -> tuple[Any, Any]:
    """What `optimizer` would add to `params`, and its new state; all four trees hold None in the same places.

    Of optax's extra arguments a step has two, `value`, the loss, and `grad`, the gradient before any part of a chain
    has changed it. An optimiser gets those that its `update` takes.

    Example:
        >>> plateau = optax.contrib.reduce_on_plateau(patience=1)
        >>> one = jnp.ones(())
        >>> updates_for(plateau, one, init_optimizer(plateau, one), one, value=one)[0].item()
        1.0
    """
    parameters = inspect.signature(optimizer.update).parameters
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    known = {"value": value, "grad": gradient}
    asked = {name: known[name] for name in known if takes_all or name in parameters}
    with standard_promotion():
        return optimizer.update(gradient, opt_state, params, **asked)


def drop(tree: Any, mask: Any) -> Any:
    """`tree` with None in place of each leaf whose `mask` is False.

    Example:
        >>> drop({"used": 1.0, "unused": 2.0}, {"used": True, "unused": False})
        {'unused': None, 'used': 1.0}
    """
    return jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, mask)


def fill(tree: Any, like: Any) -> Any:
    """The inverse of `drop`: `tree` with the leaves of `like` where it holds None.

    Example:
        >>> fill({"used": 3.0, "unused": None}, {"used": 1.0, "unused": 2.0})
        {'unused': 2.0, 'used': 3.0}
    """
    return jax.tree.map(lambda original, leaf: original if leaf is None else leaf, like, tree)


def find_dependence(function: Callable[..., Any], params: Any, *rest: Any) -> Any:
    """Which leaves of `params` the value of `function(params, *rest)` depends on differentiably; nothing is run.

    False where PyTorch would leave `grad is None`: unused leaves, leaves behind `stop_gradient` or an integer, and
    integer leaves. A gradient that is zero only for these numbers (a dead ReLU) still is a dependence.

    Args:
        function: traceable; returns an array or a pytree of them, of which the floating ones count.
        params: pytree of arrays or `jax.ShapeDtypeStruct`; each of `rest` likewise.

    Returns:
        A pytree of Python bools with the structure of `params`.

    Example:
        >>> find_dependence(lambda p: p["used"] ** 2, {"used": jnp.ones(()), "unused": jnp.ones(())})
        {'unused': False, 'used': True}
    """
    leaves, structure = jax.tree.flatten(params)
    floating = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]

    def values(changing: list[Any], fixed: list[Any], rest: tuple[Any, ...]) -> list[Any]:
        changing_, fixed_ = iter(changing), iter(fixed)
        given = jax.tree.unflatten(structure, [next(changing_ if flag else fixed_) for flag in floating])
        outputs = jax.tree.leaves(function(given, *rest))
        return [output for output in outputs if jnp.issubdtype(jnp.result_type(output), jnp.floating)]

    def pullback(cotangents: list[Any], changing: list[Any], fixed: list[Any], rest: tuple[Any, ...]) -> list[Any]:
        _, vjp = jax.vjp(lambda leaves: values(leaves, fixed, rest), changing)
        return vjp(cotangents)[0]

    changing = [leaf for leaf, flag in zip(leaves, floating, strict=True) if flag]
    fixed = [leaf for leaf, flag in zip(leaves, floating, strict=True) if not flag]
    cotangents = jax.eval_shape(values, changing, fixed, rest)
    jaxpr = jax.make_jaxpr(pullback)(cotangents, changing, fixed, rest).jaxpr
    inputs = [position < len(cotangents) for position in range(len(jaxpr.invars))]
    reached = iter(_reach(jaxpr, inputs))
    return jax.tree.unflatten(structure, [flag and next(reached) for flag in floating])


def _reach(jaxpr: Any, inputs: Sequence[bool]) -> list[bool]:
    """Which outputs of a jaxpr are computed from any of the marked inputs."""
    marked = {variable for variable, mark in zip(jaxpr.invars, inputs, strict=True) if mark}

    def marks(variables: Sequence[Any]) -> list[bool]:
        return [not isinstance(variable, core.Literal) and variable in marked for variable in variables]

    for equation in jaxpr.eqns:
        outputs = _reach_outputs(equation, marks(equation.invars))
        marked |= {variable for variable, mark in zip(equation.outvars, outputs, strict=True) if mark}
    return marks(jaxpr.outvars)


def _reach_outputs(equation: Any, inputs: list[bool]) -> list[bool]:
    """`_reach` for one equation: through loops and called functions one by one, through all else wholesale.

    Wholesale is right for a primitive. For a call it would mark what only travels along: a scan, for one, carries an
    accumulator for each constant of its body, used or not.
    """
    inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    inner = getattr(inner, "jaxpr", inner)  # a closed jaxpr holds the open one
    if not any(inputs) or inner is None or len(inner.invars) != len(inputs):
        return [any(inputs)] * len(equation.outvars)
    if equation.primitive.name != "scan":
        outputs = _reach(inner, inputs)
        return outputs if len(outputs) == len(equation.outvars) else [any(inputs)] * len(equation.outvars)
    first, count = _count_constants_and_carries(equation, inner)
    while True:
        outputs = _reach(inner, inputs)
        carried = [a or b for a, b in zip(inputs[first : first + count], outputs[:count], strict=True)]
        if carried == inputs[first : first + count]:
            return outputs
        inputs = [*inputs[:first], *carried, *inputs[first + count :]]


def _count_constants_and_carries(scan: Any, body: Any) -> tuple[int, int]:
    """How many inputs of a scan its body gets as they are, and how many values it carries from round to round.

    What is sliced has one axis less inside the loop than outside, what is stacked likewise. The parameters that say it
    outright have other names from jax 0.11 on.
    """

    def as_they_are(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        return sum(a.aval.ndim == b.aval.ndim for a, b in zip(outside, inside, strict=True))

    carries = as_they_are(scan.outvars, body.outvars)
    return as_they_are(scan.invars, body.invars) - carries, carries
