"""Any torch.nn.Module as an Encoder: its weights as leaves under torch's own names, its code as a graph run by JAX.

    module  ─ export ─▶  graphs (training, evaluation)  ─ interpret ─▶  pure apply(variables, images, …)

Leaves keep torch's names and layout ("layer1/0/conv1/weight", [O, I, h, w]); images come as [N, H, W, C] as everywhere
in byol_jax, other inputs as the module takes them.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConfigurationError, HiddenLayerNotFoundError, UnsupportedModuleError
from byol_jax.hidden import OUTPUT
from byol_jax.ops.precision import at_least_float32
from byol_jax.tree import copy_leaves, flatten, unflatten
from byol_jax.types import Encoder, EncoderFacts, Variables
from interop.arrays import as_numpy, import_torch
from interop.trace.batch_sizes import SizedGraphs, Traced, frozen_parameters, resize_batch, trace, trace_batch
from interop.trace.checks import check_module, extra_states, find_missing
from interop.trace.export import ANY_SIZE, example_batch
from interop.trace.fixed_draws import FIXED_DRAWS
from interop.trace.graph import Graph, Ref
from interop.trace.interpret import NO_STAND_INS, Program, interpret, program
from interop.trace.ops.norm import RAW_BUFFERS
from interop.trace.ops.operator import Operator, round_within_range
from interop.trace.side_effects import copy_module, in_mode, keep_random_states
from interop.trace.uniform import uniform_constants
from interop.trace.values import Value, from_torch_order, to_torch_order
from interop.trace.verification.verify import is_another_alone, verify_encoder

__all__ = ["TracedNetwork", "from_torch_module", "network_encoder", "traced_network"]

CHANNELS_LAST = (0, 2, 3, 1)
"""How [N, H, W, C] lies, by torch's axes."""

RESHAPES = ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")


@dataclass(frozen=True, eq=False)
class TracedNetwork:
    """A traced module: everything static. It is `Encoder.facts.traced`, and equal to itself alone.

    Attributes:
        traced: both graphs, and for which sizes of the batch they hold.
        input_shape: one input's shape as byol_jax has it, [H, W, C] for images.
        frozen: parameters that don't require gradients.
        state_dict: the keys of the module's state dict, in its order: the leaf that each is kept in, and torch's dtype.
        further: the graphs for all other sizes; filled as they are met.
    """

    traced: Traced
    input_shape: tuple[int, ...]
    frozen: frozenset[str]
    state_dict: Mapping[str, tuple[str, str]]
    further: SizedGraphs

    @property
    def channels(self) -> int | None:
        """C of the images, or of volumes; None of other inputs."""
        shape = self.input_shape
        return {3: shape[-1:], 4: shape[:1]}.get(len(shape), (None,))[0]

    @property
    def takes_any_batch(self) -> bool:
        """Whether one graph of each mode holds for every size of the batch."""
        return self.traced.sizes == ANY_SIZE

    def graph(self, train: bool, size: Any) -> Graph:
        """The graph for a batch of `size` inputs; where none of the kept ones holds for it, it is traced now."""
        if self.takes_any_batch or int(size) in self.traced.sizes:
            return self.traced.train if train else self.traced.eval
        return self.further(train, int(size))


def from_torch_module(
    module: Any,
    *,
    image_size: int | Sequence[int] | None = None,
    channels: int = 3,
    example_input: Any = None,
    verify: bool = True,
) -> Encoder:
    """An `Encoder` that computes what `module` computes: forward, gradients, buffer updates, in both modes.

    The module itself is only read, never changed; `update_torch_module` writes trained variables back into it.

    Args:
        module: any `torch.nn.Module` of one input whose code torch.export can follow, on any device.
        image_size: H = W, or (H, W), of the images; fixed from then on. The batch's size stays open. (Code that mixes
            the inputs of a batch may be another graph for each size: then a copy of the module is traced again for each
            size that is met; compared with torch is the first.)
        channels: C of the images.
        example_input: instead of both, a tensor [n, ...] as the module takes it, for input that isn't images.
        verify: run both frameworks on the example, in both modes, and refuse where output, buffers or gradients differ:
            in float64, and in float32 as XLA compiles it by default, for batches of 2 and 8.

    Returns:
        An `Encoder` whose `init` gives the module's weights whatever the key, and whose hidden layers are the module's
        named sub-modules. Parameters with `requires_grad=False` get no gradient.

    Raises:
        UnsupportedModuleError: the module can't be written down as one graph, or has hooks on gradients; the message
            says what and where.
        UnsupportedOpError: operators without a JAX counterpart; all of them, with the modules that use them.
        ConversionMismatchError: with `verify`, both ran and differ; the first sub-module or parameter that does is
            named.
        MissingDependencyError: torch is absent.

    Example:
        >>> import torch
        >>> module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten())
        >>> encoder = from_torch_module(module, image_size=8)
        >>> encoder.hidden_layers()
        ('0', '1', '2')
        >>> variables = encoder.init(jax.random.key(0), (8, 8, 3))
        >>> variables.params["0"]["weight"].shape
        (4, 3, 3, 3)
    """
    torch = import_torch()
    with keep_random_states(module):
        check_module(module)
        example = example_batch(torch, module, image_size, channels, example_input)
        traced = trace(module, example, 2 if example_input is None else len(example_input))
        find_missing(traced.train, traced.eval).raise_if_any(type(module).__name__)
        if extra := extra_states(module):
            warnings.warn(
                f"{type(module).__name__} has extra state, no part of an encoder's weights ({', '.join(extra[:5])}): "
                "what is exported goes into the module by load_state_dict(…, strict=False) or update_torch_module",
                stacklevel=2,
            )
        if traced.eval.buffers:
            warnings.warn(
                f"{type(module).__name__} changes {', '.join([*traced.eval.buffers][:5])} in evaluation too: there an "
                "encoder gives features alone, and leaves them as training left them",
                stacklevel=2,
            )
        changing = frozenset(traced.train.buffers)
        traced = traced._replace(
            train=_with_constants(module, traced.train, changing), eval=_with_constants(module, traced.eval, changing)
        )
        shape = tuple(example.shape[1:])
        input_shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape
        further = _further_graphs(module, example, traced)
        network = TracedNetwork(traced, input_shape, frozen_parameters(module), _state_dict(module), further)
        variables = module_variables(module, network.traced)
        if verify:
            compared = network_encoder(network, variables, stand_ins=FIXED_DRAWS)
            verify_encoder(module, compared, resize_batch(example, traced.example_size), variables)
            if 1 in traced.sizes and is_another_alone(module, compared, example, variables):
                traced = traced._replace(sizes=traced.sizes[traced.sizes.index(1) + 1 :])
                network = replace(network, traced=traced, further=_further_graphs(module, example, traced))
    return network_encoder(network, variables)


def _further_graphs(module: Any, example: Any, traced: Traced) -> SizedGraphs:
    """What traces a copy of the module, which its owner may change or give up, for the sizes that `traced` lacks."""
    if traced.sizes == ANY_SIZE:
        return SizedGraphs({}, None)
    copied = copy_module(module)

    def make(train: bool, size: int) -> Graph:
        with keep_random_states(copied):
            graph = trace_batch(in_mode(copied, train), resize_batch(example, size))
        find_missing(graph).raise_if_any(type(copied).__name__)
        return _with_constants(copied, graph, frozenset(traced.train.buffers))

    return SizedGraphs({}, make, traced.sizes)


def network_encoder(network: TracedNetwork, variables: Variables, **options: Any) -> Encoder:
    """The encoder of a network whose `init` gives these weights."""
    return Encoder(
        partial(_init, network, variables),
        partial(_apply, network, {}, **options),
        lambda variables=None: network.traced.names,
        EncoderFacts(traced=network, unflattened=partial(_apply, network, {}, flat=False)),
    )


def traced_network(encoder: Encoder) -> TracedNetwork:
    """What is known of a traced encoder.

    Raises:
        ConfigurationError: this encoder wasn't traced.
    """
    network = encoder.facts.traced
    if network is None:
        raise ConfigurationError("this encoder wasn't traced from a torch module: its own code rebuilds it")
    return network


def module_variables(module: Any, traced: Traced) -> Variables:
    """The module's parameters and buffers as NumPy arrays under their own names; integers as int32.

    Parameters that aren't floating, which nothing trains, are kept with the buffers.
    """
    changing = set(traced.train.buffers)
    persistent = set(module.state_dict(keep_vars=True))
    kept = {
        **{name: tensor for name, tensor in module.named_parameters() if not tensor.is_floating_point()},
        **{name: tensor for name, tensor in module.named_buffers() if name in persistent or name in changing},
    }
    params = {name: as_numpy(tensor, name).copy() for name, tensor in module.named_parameters() if name not in kept}
    stats = {name: _as_int32(as_numpy(tensor, name).copy(), name) for name, tensor in kept.items()}
    return Variables(*(unflatten({k.replace(".", "/"): v for k, v in part.items()}) for part in (params, stats)))


def _state_dict(module: Any) -> dict[str, tuple[str, str]]:
    """`TracedNetwork.state_dict`: tied tensors are kept in one leaf, and have the name of each of their places."""
    first_name: dict[int, str] = {}
    for named in (module.named_parameters, module.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            first_name.setdefault(id(tensor), name)
    return {
        key: (first_name[id(tensor)], str(tensor.dtype).removeprefix("torch."))
        for key, tensor in module.state_dict(keep_vars=True).items()
        if id(tensor) in first_name
    }


def _as_int32(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype != np.int64:
        return array
    if array.size and (array.max() > np.iinfo(np.int32).max or array.min() < np.iinfo(np.int32).min):
        raise UnsupportedModuleError(f"{name}: integers beyond 32 bits, which JAX has only with x64")
    return array.astype(np.int32)


def _with_constants(module: Any, graph: Graph, changing: frozenset[str]) -> Graph:
    """Buffers that are no part of the state and never change become constants of the graph.

    `changing`: those that training changes.
    """
    persistent = set(module.state_dict(keep_vars=True))
    fixed = {name: tensor for name, tensor in module.named_buffers() if name not in persistent and name not in changing}
    sources = {
        value: source._replace(kind="constant") if source.kind == "buffer" and source.target in fixed else source
        for value, source in graph.sources.items()
    }
    used = {source.target for source in sources.values() if source.target in fixed}
    arrays = graph.constants | {name: as_numpy(fixed[name], name).copy() for name in used}
    return graph._replace(sources=sources, constants={name: _as_int32(array, name) for name, array in arrays.items()})


def _init(network: TracedNetwork, variables: Variables, key: Any, image_shape: tuple[int, ...]) -> Variables:
    _check_shape(network, image_shape)
    return copy_leaves(variables)


def _apply(
    network: TracedNetwork,
    programs: dict[tuple[bool, Any, int | None], Program],
    variables: Variables,
    images: jax.Array,
    *,
    train: bool,
    hidden_layer: str | int | tuple[str | int, ...],
    key: jax.Array | None = None,
    axis_name: str | None = None,
    stand_ins: Mapping[str, Operator] = NO_STAND_INS,
    flat: bool = True,
) -> tuple[Any, Any]:
    """See `byol_jax.types.Encoder.apply`. `programs` is filled as modes, layers and batches of other graphs are asked
    for: they never change. For verification `hidden_layer` may be several layers; the features are a tuple then.
    Unless `flat` they have the axes that the module gave them, in torch's order."""
    _check_shape(network, images.shape[1:])
    graph = network.graph(train, images.shape[0])
    layers = hidden_layer if isinstance(hidden_layer, tuple) else (hidden_layer,)
    wanted = [_layer(graph, network.traced.names, layer) for layer in layers]
    wanted = wanted if flat else [_before_flattening(graph, ref) for ref in wanted]
    if train:
        wanted += graph.buffers.values()
    kind = train, hidden_layer, None if network.takes_any_batch else int(images.shape[0])
    if kind not in programs:
        programs[kind] = program(graph, wanted)
    nodes = programs[kind]
    floating = images.dtype if jnp.issubdtype(images.dtype, jnp.floating) else jnp.dtype(jnp.float32)
    stats = flatten(variables.stats)
    changing = frozenset(network.traced.train.buffers)
    sources = _sources(graph, nodes, network.frozen, changing, flatten(variables.params), stats, images, floating)
    values = interpret(
        nodes,
        sources,
        wanted,
        floating=floating,
        key=key,
        axis_name=axis_name,
        stand_ins=stand_ins,
        uniform=uniform_constants(graph),
    )
    features = tuple(
        to_torch_order(value).astype(floating if jnp.issubdtype(value.dtype, jnp.floating) else value.dtype)
        for value in values[: len(layers)]
    )
    for layer, array in zip(layers, features, strict=True):
        if array.shape[:1] != images.shape[:1]:
            raise HiddenLayerNotFoundError(
                f"hidden layer {layer!r} gives {array.shape[0]} rows for {images.shape[0]} images: "
                "it works on parts of them; choose a layer that keeps the batch"
            )
    for name, value in zip(graph.buffers, values[len(layers) :], strict=False):
        path = name.replace(".", "/")
        stats[path] = jax.lax.stop_gradient(to_torch_order(value)).astype(stats[path].dtype)
    return features if isinstance(hidden_layer, tuple) else features[0], unflatten(stats)


def _check_shape(network: TracedNetwork, shape: Sequence[int]) -> None:
    if tuple(shape) != network.input_shape:
        raise ConfigurationError(
            f"this network was traced for inputs of shape {network.input_shape}, not {tuple(shape)}: trace it again"
        )


def _layer(graph: Graph, names: Sequence[str], hidden_layer: str | int) -> Ref:
    if hidden_layer == OUTPUT and graph.output is not None:
        return graph.output
    if isinstance(hidden_layer, str) and hidden_layer in graph.hidden:
        return graph.hidden[hidden_layer]
    if hidden_layer == OUTPUT:
        raise HiddenLayerNotFoundError("this network's output isn't one tensor: name a hidden_layer whose output is")
    raise HiddenLayerNotFoundError(
        f"hidden layer {hidden_layer!r} has no output: it doesn't run, or returns something else than a tensor"
        if hidden_layer in names
        else f"hidden layer {hidden_layer!r} not found"
    )


def _before_flattening(graph: Graph, ref: Ref) -> Ref:
    """What a hidden layer's value was made of by the hook that recorded it, `reshape(n, -1)`; others as they are."""
    node = next((node for node in graph.nodes if node.name == ref.name), None)
    if node is None or node.op not in RESHAPES or node.args[1][1:] != (-1,):
        return ref
    return node.args[0]


def _sources(
    graph: Graph,
    nodes: Program,
    frozen: frozenset[str],
    changing: frozenset[str],
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    images: jax.Array,
    floating: Any,
) -> dict[str, Value]:
    """Floats follow the inputs' dtype, but for the statistics that batch norm keeps in their own; buffers that training
    changes have float32 at least, which can count and average. What is finite stays so, but for parameters."""
    raw = {
        node.args[place].name
        for node in nodes
        for place in RAW_BUFFERS.get(node.op, ())
        if isinstance(node.args[place], Ref)
    }
    values, leaves = {}, {**stats, **params}
    for name, source in graph.sources.items():
        if source.kind == "input":
            values[name] = Value(images, CHANNELS_LAST) if images.ndim == 4 else from_torch_order(images)
            continue
        if source.kind == "constant":
            array = jnp.asarray(graph.constants[source.target])
        else:
            array = leaves[source.target.replace(".", "/")]
            array = jax.lax.stop_gradient(array) if source.target in frozen else array
        if jnp.issubdtype(array.dtype, jnp.floating) and name not in raw:
            dtype = at_least_float32(floating) if source.target in changing else floating
            is_narrower = source.kind != "param" and jnp.finfo(dtype).max < jnp.finfo(array.dtype).max
            array = round_within_range(array, dtype) if is_narrower else array.astype(dtype)
        values[name] = from_torch_order(array)
    return values
