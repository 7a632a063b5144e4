"""Fingerprints of the functions that a run was given from Python, which have no other name in config.json.

A function's fingerprint is the hash of its jaxpr: operations, shapes, dtypes, literals and constants. It knows an
optimiser with another learning rate, and nothing of files, memory or processes. Other code may write the same numbers
as other operations, so beside the fingerprints stands what code they were made with. How they are compared: config.py.
"""

import enum
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from byol_jax.byol import Learner
from byol_jax.ops.precision import standard_promotion
from byol_jax.optim import init_optimizer, updates_for

__all__ = ["fingerprint", "function_fingerprints"]

DIGITS = 16
"""Of a hash, in config.json."""


def function_fingerprints(learner: Learner, given: Mapping[str, Any], image_shape: Sequence[int]) -> dict[str, Any]:
    """Fingerprints of the functions among the options that a learner was made with, by the options' names.

    Args:
        learner: made with them.
        given: `make_learner`'s options, without those that nobody gave.
        image_shape: of one image before its augmentation.

    Returns:
        For JSON: a hash for each function, None for one that can't be traced on such images; under "code" the versions
        of jax and optax and the hash of this package. Empty where no function was given.
    """
    s = learner.settings
    state = jax.eval_shape(lambda: learner.init(jax.random.key(0)))
    params, key = s.select_trained(state.online.params), state.key
    image = jax.ShapeDtypeStruct(tuple(image_shape), s.storage_dtype)
    value = jax.ShapeDtypeStruct((), s.storage_dtype)

    def optimize(params: Any, opt_state: Any, value: Any) -> Any:
        return init_optimizer(s.optimizer, params), updates_for(s.optimizer, params, opt_state, params, value=value)

    calls: dict[str, tuple[Any, ...]] = {
        "optimizer": (optimize, params, state.opt_state, value),
        "evaluation_params": (s.evaluation_params, state.opt_state, params),
        "moving_average_decay": (s.decay, state.step),
        "augment_fn": (s.augment1, key, image),
        "augment_fn2": (s.augment2, key, image),
    }
    functions = [name for name in calls if name == "optimizer" or callable(given.get(name))]
    found = {name: _try(*calls[name]) for name in functions if given.get(name) is not None}
    return found | {"code": _code()} if found else {}


def fingerprint(function: Callable[..., Any], *arguments: Any) -> str:
    """The hash of what `function` computes from `arguments`, which may be `jax.ShapeDtypeStruct`s; nothing is run.

    Example:
        >>> one = jax.ShapeDtypeStruct((), "float32")
        >>> first, same, other = (fingerprint(lambda x, rate=rate: rate * x, one) for rate in (0.1, 0.1, 0.2))
        >>> first == same, first == other
        (True, False)
    """
    with standard_promotion():
        jaxpr = jax.make_jaxpr(function)(*arguments)
    return hashlib.sha256("\n".join(_lines(jaxpr)).encode()).hexdigest()[:DIGITS]


def _try(function: Callable[..., Any], *arguments: Any) -> str | None:
    try:
        return fingerprint(function, *arguments)
    except Exception:  # an augmentation for images of another shape: an iterable's is known by its first batch
        return None


@cache
def _code() -> dict[str, str]:
    """Versions of what functions are mostly made of: other ones may write the same numbers as other operations."""
    package = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        package.update(path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in ("jax", "optax")}
    return versions | {"byol_jax": package.hexdigest()[:DIGITS]}


def _lines(closed: Any) -> Iterator[str]:
    """A jaxpr, closed or open, as text: constants, inputs, operations, outputs. Variables are numbered as they come."""
    jaxpr = getattr(closed, "jaxpr", closed)
    numbers: dict[Any, int] = {}

    def name(variable: Any) -> str:
        if isinstance(variable, core.Literal):
            return f"{_type(variable)} {_text(variable.val)}"
        return f"{_type(variable)} v{numbers.setdefault(variable, len(numbers))}"

    def names(variables: Sequence[Any]) -> str:
        return ", ".join(map(name, variables))

    yield from (_text(constant) for constant in getattr(closed, "consts", ()))
    yield names([*jaxpr.constvars, *jaxpr.invars])
    for equation in jaxpr.eqns:
        options = {key: value for key, value in equation.params.items() if key != "name"}  # a function's own name
        yield f"{names(equation.outvars)} = {equation.primitive.name} {_text(options)} {names(equation.invars)}"
    yield names(jaxpr.outvars)


def _type(variable: Any) -> str:
    aval = variable.aval
    return f"{aval.dtype}{list(aval.shape)}" if hasattr(aval, "shape") else type(aval).__name__


def _text(value: Any) -> str:
    """A constant or an operation's option; of functions and other objects the name alone, never an address."""
    if hasattr(getattr(value, "jaxpr", value), "eqns"):
        return "{" + "; ".join(_lines(value)) + "}"
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return _array_text(value)
    if isinstance(value, Mapping):
        return _text([(str(key), value[key]) for key in sorted(value, key=str)])
    if isinstance(value, frozenset | set):
        return _text(sorted(map(_text, value)))
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(_text, value))})"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.dtype | enum.Enum):
        return repr(value)
    return getattr(value, "__qualname__", type(value).__name__)


def _array_text(value: Any) -> str:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    content = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:DIGITS]
    return f"{array.dtype}{list(array.shape)} {content}"
