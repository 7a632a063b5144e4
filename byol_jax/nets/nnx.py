"""A flax.nnx module as an `Encoder`: the parameters are its `nnx.Param`s, the statistics its other arrays.

The module is taken apart once, and put together anew for each call; the user's own object is never changed. `linen`
beside this file does the same for flax.linen.
"""

import functools
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from flax.nnx.nn.dtypes import promote_dtype

from byol_jax.errors import ConfigurationError, HiddenLayerNotFoundError, nearest
from byol_jax.hidden import OUTPUT, resolve_hidden_layer
from byol_jax.ops.precision import standard_promotion
from byol_jax.types import Encoder, Variables

__all__ = ["from_nnx"]

Path = tuple[Any, ...]


class _Snapshot(NamedTuple):
    """A module taken apart. `state` has a Variable or an array at each path."""

    graph: Any
    state: dict[Path, Any]
    params: tuple[Path, ...]
    stats: tuple[Path, ...]
    names: tuple[str, ...]


def from_nnx(module: nnx.Module) -> Encoder:
    """An encoder from a flax.nnx module that is called as `module(images)`; train() and eval() switch training.

    `params` has the module's floating `nnx.Param`s, `stats` its other arrays, save random state and intermediates; both
    are nested dicts of attribute names, a list's index as a string. `init` returns copies of the numbers that the
    module had when it was given, whatever the key. The random state is made from `apply`'s key, and never stored.

    Hidden layers are the sub-modules' attribute paths ("stem", "blocks.0"), in the order of definition, each before its
    own; a list is a child that gives no output; a shared sub-module has its first name. Called several times, a
    sub-module gives its last output. The encoder's `axis_name` is ignored: synchronisation is the module's own.

    Raises:
        ConfigurationError: not a flax.nnx module.
        HiddenLayerNotFoundError: from `apply`: no such layer, or one that isn't called.
        ValueError: from `apply`: the module draws random numbers and there is no key.

    Example:
        >>> rngs = nnx.Rngs(0)
        >>> encoder = from_nnx(nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.relu, nnx.Linear(4, 2, rngs=rngs)))
        >>> encoder.hidden_layers()
        ('layers', 'layers.0', 'layers.2')
        >>> variables = encoder.init(jax.random.key(0), (3,))
        >>> encoder.apply(variables, jnp.ones((5, 3)), train=True, hidden_layer="layers.0")[0].shape
        (5, 4)
    """
    if isinstance(module, type) and issubclass(module, nnx.Module):
        raise ConfigurationError(f"from_nnx: got the class {module.__name__}, expected a module: {module.__name__}(…)")
    if not isinstance(module, nnx.Module):
        raise ConfigurationError(
            f"from_nnx: expected a flax.nnx.Module, got a {type(module).__name__}; for flax.linen there is from_linen"
        )
    graph, state = nnx.split(module)
    state = dict(nnx.to_flat_state(jax.tree.map(lambda leaf: leaf, state)))  # Variables of our own, the same arrays
    params = tuple(path for path, leaf in state.items() if isinstance(leaf, nnx.Param) and _is_floating(leaf))
    apart = (nnx.RngState, nnx.Intermediate)
    stats = tuple(p for p, leaf in state.items() if p not in params and not isinstance(leaf, apart) and _is_array(leaf))
    snapshot = _Snapshot(graph, state, params, stats, tuple(_names(module, (), {id(module)})))
    return Encoder(partial(_init, snapshot), partial(_apply, snapshot), lambda variables=None: snapshot.names)


def _init(snapshot: _Snapshot, key: Any, image_shape: tuple[int, ...]) -> Variables:
    del key, image_shape  # imported numbers
    copied = {
        path: jax.tree.map(partial(jnp.array, copy=True), _value(leaf))
        for path, leaf in snapshot.state.items()
        if path in snapshot.params or path in snapshot.stats
    }
    return Variables(*(_nest({path: copied[path] for path in paths}) for paths in (snapshot.params, snapshot.stats)))


def _apply(
    snapshot: _Snapshot,
    variables: Variables,
    images: Any,
    *,
    train: bool,
    hidden_layer: str | int,
    key: Any = None,
    axis_name: str | None = None,
) -> tuple[Any, Any]:
    del axis_name  # the module names its own
    wanted = resolve_hidden_layer(snapshot.names, hidden_layer)
    module = _rebuild(snapshot, variables, key)
    if train:
        module.train()
    else:
        module.eval()
    if wanted != OUTPUT and isinstance(layer := _find(module, str(wanted)), nnx.Module):
        _recast(layer, _recording_class)
    with standard_promotion():
        output, recorded = nnx.capture(_call, _Output)(module, images)
    if wanted != OUTPUT:
        outputs = [leaf for path, leaf in nnx.to_flat_state(recorded) if path[-1] == "output"]
        if not outputs:
            known = ", ".join(nearest(wanted, [name for name in snapshot.names if name != wanted])) or "-1, the output"
            raise HiddenLayerNotFoundError(f"hidden layer {wanted!r} gives no output: use one of {known}")
        output = _value(outputs[0])
    if not train:
        return output, variables.stats
    after = dict(nnx.to_flat_state(nnx.state(module)))
    return output, _nest({path: _value(after[path]) for path in snapshot.stats})


def _call(module: Any, images: Any) -> Any:
    return module(images)


def _rebuild(snapshot: _Snapshot, variables: Variables, key: Any) -> nnx.Module:
    """A new module with these numbers, and random streams from `key`; without one, streams that refuse."""
    state = dict(snapshot.state)
    for paths, tree in ((snapshot.params, variables.params), (snapshot.stats, variables.stats)):
        state |= {path: _with_value(state[path], _at(tree, path)) for path in paths}
    streams = [path for path, leaf in state.items() if isinstance(leaf, nnx.RngKey)]
    if key is not None:
        for index, path in enumerate(streams):
            shape = state[path].get_value().shape
            stream = jax.random.fold_in(key, index)
            state[path] = _with_value(state[path], jax.random.split(stream, shape) if shape else stream)
    module = nnx.merge(snapshot.graph, nnx.from_flat_state(state), copy=True)
    for _, node in nnx.iter_graph(module):
        if key is None and isinstance(node, nnx.RngStream):
            _recast(node, _refusing_class)
        if isinstance(node, nnx.BatchNorm) and node.promote_dtype is promote_dtype:
            promote: Any = partial(_promote_all_but_statistics, node.promote_dtype)
            node.promote_dtype = promote
    return module


def _promote_all_but_statistics(promote: Any, arrays: tuple[Any, ...], **options: Any) -> tuple[Any, ...]:
    """For a batch norm's (x, mean, var, scale, bias): Flax 0.12.8 promotes x to the statistics' float32 too, so that in
    bfloat16 everything behind the first batch norm was computed in float32. Its linen batch norm doesn't."""
    x, mean, var, scale, bias = arrays
    x, scale, bias = promote((x, scale, bias), **options)
    return x, mean, var, scale, bias


class _Output(nnx.Variable):
    """Where a hidden layer's output is kept during a call; a Variable, so that nnx.jit and nnx.remat pass it on."""


def _recast(node: Any, subclass: Any) -> None:
    """Gives one object of our own copy another `__call__`. `nnx.capture` could record methods too, but it changes the
    users' classes meanwhile, and overlooks a `__call__` that is inherited."""
    object.__setattr__(node, "__class__", subclass(type(node)))


@functools.cache
def _recording_class(module_class: Any) -> Any:
    class Recording(module_class):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            output = super().__call__(*args, **kwargs)
            self.sow(_Output, "output", output, init_fn=lambda: None, reduce_fn=lambda _, last: last)
            return output

    return Recording


@functools.cache
def _refusing_class(stream_class: Any) -> Any:
    class Refusing(stream_class):
        def __call__(self) -> Any:
            raise ValueError(f"the network draws random numbers (stream {self.tag!r}) but got no key: pass key=...")

    return Refusing


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, list | tuple):
        yield from ((str(index), child) for index, child in enumerate(node))
    elif isinstance(node, nnx.Pytree):
        yield from ((name, child) for name, child in vars(node).items() if not name.startswith("_pytree__"))
    elif isinstance(node, Mapping):
        yield from ((str(name), child) for name, child in node.items())


def _names(node: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[str]:
    """Dotted names below a node: all modules, and the containers that hold any."""
    for name, child in _children(node):
        if isinstance(child, nnx.Variable | nnx.Rngs) or id(child) in seen:
            continue
        seen.add(id(child))
        below = list(_names(child, (*path, name), seen))
        if isinstance(child, nnx.Module) or below:
            yield ".".join((*path, name))
            yield from below


def _find(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = dict(_children(module))[part]
    return module


def _value(leaf: Any) -> Any:
    return leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf


def _with_value(leaf: Any, value: Any) -> Any:
    return leaf.replace(value) if isinstance(leaf, nnx.Variable) else value


def _is_array(leaf: Any) -> bool:
    return all(isinstance(part, jax.Array | np.ndarray) for part in jax.tree.leaves(_value(leaf)))


def _is_floating(leaf: Any) -> bool:
    return _is_array(leaf) and all(jnp.issubdtype(part.dtype, jnp.floating) for part in jax.tree.leaves(_value(leaf)))


def _nest(flat: Mapping[Path, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict({tuple(map(str, path)): value for path, value in flat.items()})


def _at(tree: Any, path: Path) -> Any:
    for part in path:
        tree = tree[str(part)]
    return tree
