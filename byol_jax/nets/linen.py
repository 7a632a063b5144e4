"""A flax.linen module as an `Encoder`: the parameters are its "params" collection, the statistics all the others.

Modules are not changed: hidden layers are what `capture_intermediates` records, and their names are those of Flax
("Conv_0", "Block_0.Conv_0"). `nnx` beside this file does the same for flax.nnx.
"""

import contextlib
import inspect
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import core, errors

from byol_jax.errors import ConfigurationError, HiddenLayerNotFoundError, nearest
from byol_jax.hidden import OUTPUT, resolve_hidden_layer
from byol_jax.ops.precision import standard_promotion
from byol_jax.types import Encoder, Variables

__all__ = ["from_linen"]

INVERTED = ("deterministic", "use_running_average")
"""Flax's own arguments that mean the opposite of training."""

GUESSED_SIDES = (224, 32, 64, 96, 28, 128, 192, 256)
"""Image sides to trace with when only names are wanted; which one fits makes no difference to the names."""


class _Network(NamedTuple):
    module: nn.Module
    train_argument: str | None
    rngs: tuple[str, ...]
    shapes: dict[tuple[int, ...], None]
    """Image shapes that `init` was given, as keys: `hidden_layers` gets none, and tries these first."""


def from_linen(
    module: nn.Module, *, train_argument: str | None = "train", rngs: Sequence[str] = ("dropout",)
) -> Encoder:
    """An encoder from a flax.linen module that is called as `module(images, train=...)`.

    `params` is the module's "params" collection. `stats` holds all its other collections, save what `sow` collects.
    A sub-module called several times gives its last output. Batch norm is synchronised over the axis that the module
    itself names; the encoder's `axis_name` is ignored. The module may mix dtypes as Flax does.

    `hidden_layers(variables)` has the sub-modules in the order of definition (`setup`) or of first call (`compact`),
    each before its own. They are found by tracing with an image as `init` was given, before that of a guessed size;
    `()` where no guess fits.

    Args:
        train_argument: the keyword that switches training on; "deterministic" and "use_running_average" get its
            opposite. None for a module that has no such argument.
        rngs: names of the random streams that the module draws from while training.

    Raises:
        ConfigurationError: not a linen module, no such argument, or an argument that no encoder gives.
        HiddenLayerNotFoundError: from `apply`: no such layer, or one that isn't called.
        ValueError: from `apply`: the module draws random numbers and there is no key.

    Example:
        >>> encoder = from_linen(nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), train_argument=None)
        >>> variables = encoder.init(jax.random.key(0), (3,))
        >>> encoder.hidden_layers(variables)
        ('layers_0', 'layers_2')
        >>> encoder.apply(variables, jnp.ones((5, 3)), train=True, hidden_layer="layers_0")[0].shape
        (5, 4)
    """
    _check(module, train_argument)
    network = _Network(module, train_argument, tuple(rngs), {})
    return Encoder(partial(_init, network), partial(_apply, network), partial(_hidden_layers, network))


def _init(network: _Network, key: Any, image_shape: tuple[int, ...]) -> Variables:
    variables = _variables(network, key, image_shape)
    network.shapes[tuple(image_shape)] = None
    return variables


def _variables(network: _Network, key: Any, image_shape: tuple[int, ...]) -> Variables:
    images = jnp.zeros((1, *image_shape), jnp.float32)
    keys = _keys(("params", *network.rngs), key)
    with _module_call(network, key):
        variables = network.module.init(keys, images, **_train_keyword(network, False))
    collections = core.meta.unbox(core.unfreeze(variables))
    params = collections.pop("params", {})
    return Variables(params, {name: tree for name, tree in collections.items() if not _is_sown(tree)})


def _apply(
    network: _Network,
    variables: Variables,
    images: Any,
    *,
    train: bool,
    hidden_layer: str | int,
    key: Any = None,
    axis_name: str | None = None,
) -> tuple[Any, Any]:
    del axis_name  # the module names its own
    if type(hidden_layer) is int and hidden_layer != OUTPUT:
        hidden_layer = resolve_hidden_layer(_hidden_layers(network, variables), hidden_layer)
    path = None if hidden_layer == OUTPUT else tuple(str(hidden_layer).split("."))
    params, stats = variables
    with _module_call(network, key):
        output, changed = network.module.apply(
            {"params": params, **stats},
            images,
            rngs=None if key is None else _keys(network.rngs, key),
            mutable=[*(stats if train else ()), *(() if path is None else ("intermediates",))],
            capture_intermediates=False if path is None else partial(_is_call_of, path),
            **_train_keyword(network, train),
        )
    if path is not None:
        output = _layer_output(network, changed.get("intermediates", {}), path, images.shape[1:])
    return output, {name: changed.get(name, stats[name]) for name in stats} if train else stats


def _is_call_of(path: tuple[str, ...], module: nn.Module, method: str) -> bool:
    return method == "__call__" and module.path == path


def _layer_output(network: _Network, intermediates: Any, path: tuple[str, ...], image_shape: tuple[int, ...]) -> Any:
    """The last output of the sub-module at `path`."""
    node = intermediates
    for name in (*path, "__call__"):
        if name not in node:
            names, _ = _trace(network, image_shape)
            asked = ".".join(path)
            what = "gives no output" if asked in names else "not found"
            known = ", ".join(nearest(asked, [other for other in names if other != asked])) or "-1, the output"
            raise HiddenLayerNotFoundError(f"hidden layer {asked!r} {what}: use one of {known}")
        node = node[name]
    return node[-1]


def _hidden_layers(network: _Network, variables: Variables | None = None) -> tuple[str, ...]:
    """Names, found by tracing; of a network that insists on its images' size only after its `init`.

    The keys of `variables` don't suffice: sub-modules without parameters are absent, and the order is the alphabet's.
    """
    for shape in (*reversed(network.shapes), *_guessed_shapes(variables)):
        try:
            names, traced = _trace(network, shape)
        except Exception:  # whatever a module raises when a guess doesn't suit it
            continue
        if variables is None or jax.tree.structure(traced.params) == jax.tree.structure(variables.params):
            return names
    return ()


def _guessed_shapes(variables: Variables | None) -> Iterator[tuple[int, ...]]:
    """Image shapes, likeliest first: a kernel [..., C, features] of rank r takes images [..., C] of rank r - 1."""
    kernels = [] if variables is None else [leaf.shape for leaf in jax.tree.leaves(variables.params) if leaf.ndim > 1]
    ranks = sorted({4, *map(len, kernels)}, key=lambda rank: (all(len(shape) != rank for shape in kernels), rank != 4))
    channels = sorted({3, 1, *(shape[-2] for shape in kernels)}, key=lambda size: (size not in (3, 1), size))
    for rank, side, size in itertools.product(ranks, GUESSED_SIDES, channels[:4]):
        yield (*(side,) * (rank - 2), size)


def _trace(network: _Network, image_shape: tuple[int, ...]) -> tuple[tuple[str, ...], Variables]:
    """The sub-modules' names for images of this shape, and the abstract variables. Nothing is computed."""
    children: dict[tuple[str, ...], dict[tuple[str, ...], None]] = {}

    def note(path: tuple[str, ...]) -> None:
        for depth in range(len(path)):
            children.setdefault(path[:depth], {})[path[: depth + 1]] = None

    def interceptor(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name == "__call__":
            note(module.path)
            for child in jax.tree.leaves(list(vars(module).values()), is_leaf=lambda leaf: isinstance(leaf, nn.Module)):
                if isinstance(child, nn.Module) and child.parent is module and child.name:
                    note((*module.path, child.name))  # defined in `setup`, called or not
        return next_function(*args, **kwargs)

    def walk(path: tuple[str, ...]) -> Iterator[str]:
        for child in children.get(path, ()):
            yield ".".join(child)
            yield from walk(child)

    with nn.intercept_methods(interceptor):
        key = jax.eval_shape(lambda: jax.random.key(0))
        variables = jax.eval_shape(lambda key: _variables(network, key, image_shape), key)
    return tuple(walk(())), variables


def _train_keyword(network: _Network, train: bool) -> dict[str, Any]:
    name = network.train_argument
    return {} if name is None else {name: not train if name in INVERTED else train}


def _keys(names: Sequence[str], key: Any) -> dict[str, Any]:
    return {name: jax.random.fold_in(key, index) for index, name in enumerate(names)}


def _is_sown(tree: Any) -> bool:
    """Whether a collection holds what `sow` appends to; it would grow with every step, so it isn't state."""
    return any(isinstance(leaf, tuple) for leaf in jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, tuple)))


@contextlib.contextmanager
def _module_call(network: _Network, key: Any) -> Iterator[None]:
    """The context for calls into the module: Flax's dtype rules, and its commonest complaints in one line."""
    name, argument = type(network.module).__name__, network.train_argument
    try:
        with standard_promotion():
            yield
    except errors.InvalidRngError as error:
        reason = str(error).split(" (http")[0]
        if key is None:
            raise ValueError(f"{name} draws random numbers but got no key ({reason}): pass key=...") from error
        raise ConfigurationError(
            f"{name} draws from a random stream that isn't among rngs={network.rngs} ({reason}): name it to from_linen"
        ) from error
    except TypeError as error:
        if argument is None or f"unexpected keyword argument '{argument}'" not in str(error):
            raise
        raise ConfigurationError(
            f"{name} passes {argument!r} on to a module that has no such argument ({error}): "
            "give from_linen the train_argument that it takes, or None"
        ) from error


def _check(module: Any, train_argument: str | None) -> None:
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise ConfigurationError(
            f"from_linen: got the class {module.__name__}, expected a module: {module.__name__}(…)"
        )
    if not isinstance(module, nn.Module):
        raise ConfigurationError(
            f"from_linen: expected a flax.linen.Module, got a {type(module).__name__}; for flax.nnx there is from_nnx"
        )
    name = type(module).__name__
    parameters = list(inspect.signature(type(module).__call__).parameters.values())[1:]
    takes = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if (
        train_argument is not None
        and train_argument not in takes
        and not any(p.kind == p.VAR_KEYWORD for p in parameters)
    ):
        others = ", ".join(p.name for p in parameters[1:]) or "none but the images"
        raise ConfigurationError(
            f"from_linen: {name}.__call__ has no argument {train_argument!r} (it has {others}): pass its name as "
            "train_argument=..., or train_argument=None"
        )
    given = {train_argument, *(p.name for p in parameters[:1])}
    required = [p.name for p in parameters if p.default is p.empty and p.name not in given and p.name in takes]
    if required:
        raise ConfigurationError(
            f"from_linen: {name}.__call__ needs {', '.join(required)}, which no encoder passes: give it a default, or "
            "name what switches training as train_argument=..."
        )
