"""Functional form: what torch.export wrote down, with every in-place write made a new value.

`run_decompositions({})` does it by tracing the exported program once more, which takes two thirds of the time of a
trace. Here the operators are rewritten where they stand, as that second pass would: a write gives its tensor a new
value; views of the tensor that are read later are taken again from that value; batch norm in training gives its
buffers' new values as results. Whatever isn't known here (a write through a view, control flow, an operator that torch
may or may not take for a view) is left to torch: then there is no result.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from interop.trace.graph import Node, Ref

__all__ = ["Functional", "functional_form"]


class Functional(NamedTuple):
    """A graph without writes.

    Attributes:
        nodes: in order.
        values: a value's name in the exported graph → its name at the end.
        written: names of the sources that were written to, in the exported graph.
        shapes: a value's name → its shape, whose numbers may be symbols of torch's.
    """

    nodes: tuple[Node, ...]
    values: Mapping[str, str]
    written: tuple[str, ...]
    shapes: Mapping[str, Any]


class Unknown(Exception):
    """Something that is torch's to rewrite."""


def functional_form(
    torch: Any, graph: Any, buffers: Iterable[str], as_node: Callable[[Any], Node]
) -> Functional | None:
    """The functional form of a graph; None where torch has to find it.

    Args:
        graph: the `torch.fx.Graph` of what `torch.export.export` gives.
        buffers: names of the sources that may be written to.
        as_node: a call of torch's as a `Node`.
    """
    try:
        return _Rewriting(torch, graph, as_node).run(frozenset(buffers))
    except Unknown:
        return None


class _View(NamedTuple):
    """How a value is seen of another one: the calls from there to it; none where it is the value itself."""

    base: str
    calls: tuple[Node, ...]


class _Held(NamedTuple):
    """A value's name in `nodes`, and how often its base had been written then."""

    name: str
    age: int


class _Rewriting:
    """One graph on its way. Names are those of the exported graph, but in `nodes` and `current`."""

    def __init__(self, torch: Any, graph: Any, as_node: Callable[[Any], Node]) -> None:
        self.torch, self.graph, self.as_node = torch, graph, as_node
        self.nodes: list[Node] = []
        self.shapes: dict[str, Any] = {}
        self.views: dict[str, _View] = {}
        self.current: dict[str, _Held] = {}
        self.writes: dict[str, int] = {}  # a base → how often it was written
        self.maybe_copied: dict[str, Any] = {}  # a call's name → the tensor whose copy or view it is

    def run(self, buffers: frozenset[str]) -> Functional:
        sources = {node.name for node in self.graph.nodes if node.op == "placeholder"}
        for call in self.graph.nodes:
            if call.op == "placeholder":
                self._begin(call, call.name)
            elif call.op == "call_function":
                self._rewrite(call)
            elif call.op != "output":
                raise Unknown
        written = [name for name, count in self.writes.items() if count and name in sources]
        if not buffers.issuperset(written):
            raise Unknown
        outputs = {node.name for call in self.graph.nodes if call.op == "output" for node in call.all_input_nodes}
        values = {name: self._read(name) for name in [*outputs, *written]}
        return Functional(tuple(self.nodes), values, tuple(written), self.shapes)

    def _rewrite(self, call: Any) -> None:
        """Appends the nodes of one call."""
        name = str(call.target)
        if name in REWRITTEN:
            REWRITTEN[name](self, call)
        elif getattr(call.target, "__name__", "") == "getitem":
            self._take_item(call)
        elif not hasattr(call.target, "_schema"):
            self._append(call, self._node(call))  # a number's arithmetic
        elif call.target.namespace != "aten":
            raise Unknown
        elif call.target._schema.is_mutable:
            self._write(call)
        elif self._is_view(call.target):
            self._view(call, self._node(call))
        else:
            self._append(call, self._node(call))

    def _is_view(self, target: Any) -> bool:
        """Whether the result is a view of the first argument. Whatever torch would decompose is unknown."""
        aliases = any(argument.alias_info is not None for argument in target._schema.arguments)
        maybe = getattr(self.torch.Tag, "maybe_aliasing_or_mutating", None)
        composite = self.torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
        if maybe is None or maybe in target.tags or (aliases and composite):
            raise Unknown
        return aliases

    # What the values are.

    def _begin(self, call: Any, name: str) -> None:
        """A tensor of its own, `name` in `nodes`."""
        self.views[call.name] = _View(call.name, ())
        self.writes[call.name] = 0
        self._name(call, name)

    def _name(self, call: Any, name: str) -> None:
        self.current[call.name] = _Held(name, self.writes[self.views[call.name].base])
        self.shapes[name] = getattr(call.meta.get("val"), "shape", ())

    def _append(self, call: Any, node: Node) -> None:
        self.nodes.append(node)
        self._begin(call, node.name)

    def _view(self, call: Any, node: Node) -> None:
        """A view of the first argument, which `node` takes."""
        seen = self.views[call.args[0].name]
        self.views[call.name] = _View(seen.base, (*seen.calls, node._replace(args=node.args[1:])))
        self.nodes.append(node)
        self._name(call, node.name)

    def _read(self, name: str) -> str:
        """What holds the value now; views of what was written to since are taken again."""
        if name not in self.views:  # a number
            return name
        (base, calls), (held, age) = self.views[name], self.current[name]
        if age == self.writes[base]:
            return held
        held = self._read(base)
        for number, call in enumerate(calls):
            if call.name in self.maybe_copied and not self.maybe_copied[call.name].is_contiguous():
                raise Unknown
            node = call._replace(name=f"{name}/{self.writes[base]}.{number}", args=(Ref(held), *call.args))
            self.nodes.append(node)
            held = node.name
        self.shapes[held] = self.shapes[self.current[name].name]
        self.current[name] = _Held(held, self.writes[base])
        return held

    def _node(self, call: Any) -> Node:
        """The call, of what its arguments hold now."""
        node = self.as_node(call)
        return node._replace(args=self._now(node.args), options=self._now(node.options))

    def _now(self, argument: Any) -> Any:
        if isinstance(argument, Ref):
            return Ref(self._read(argument.name))
        if isinstance(argument, dict):
            return {name: self._now(value) for name, value in argument.items()}
        if type(argument) is tuple:
            return tuple(map(self._now, argument))
        return argument

    # Kinds of calls.

    def _take_item(self, call: Any) -> None:
        several = self.views.get(call.args[0].name)
        append = self._view if several is not None and several.calls else self._append
        append(call, self._node(call))

    def _write(self, call: Any) -> None:
        """`x.add_(y)`: x is `x.add(y)` from here on, and so is the call."""
        namespace, operator, overload = str(call.target).split(".")
        written = call.args[0] if call.args else None
        if not operator.endswith("_") or operator.endswith("__") or not self._may_write(call, written):
            raise Unknown
        overload = {"bernoulli_.float": "p"}.get(f"{operator}.{overload}", overload)
        packet = getattr(self.torch.ops.aten, operator[:-1], None)
        if packet is None or overload not in packet.overloads():
            raise Unknown
        if not self._gives_the_like(getattr(packet, overload), call):
            raise Unknown
        self._set(call, self._node(call)._replace(op=f"{namespace}.{operator[:-1]}.{overload}"))

    def _may_write(self, call: Any, written: Any) -> bool:
        """Whether the call writes to its first argument alone, which is a whole tensor."""
        arguments = call.target._schema.arguments
        alone = [place for place, argument in enumerate(arguments) if argument.is_write] == [0]
        return alone and written.name in self.views and not self.views[written.name].calls

    def _gives_the_like(self, functional: Any, call: Any) -> bool:
        """Whether the operator gives a tensor of its own with the shape and type of what the call writes to.

        `y.eq_(0)` leaves numbers where `y.eq(0)` gives truth values, and `y.squeeze_()` gives y another shape.
        """
        schema = functional._schema
        if schema.is_mutable or any(argument.alias_info is not None for argument in schema.arguments):
            return False
        given = [self.torch.fx.map_arg(part, lambda node: node.meta["val"]) for part in (call.args, call.kwargs)]
        try:
            result = functional(*given[0], **given[1])
        except Exception:  # whatever torch thinks of it
            return False
        own = call.args[0].meta["val"]
        if not isinstance(result, self.torch.Tensor):
            return False
        return (str(result.shape), result.dtype) == (str(own.shape), own.dtype)

    def _set(self, call: Any, node: Node) -> None:
        """As `_put`, for the call's first argument; the call is another name of it."""
        self._put(call.args[0], node)
        self._rename(call, call.args[0].name)

    def _put(self, written: Any, node: Node) -> None:
        """Appends what is the new value of a tensor."""
        base, calls = self.views[written.name]
        if calls:
            raise Unknown
        self.nodes.append(node)
        self.writes[base] += 1
        self.current[base] = self.current[written.name] = _Held(node.name, self.writes[base])
        self.shapes[node.name] = getattr(written.meta.get("val"), "shape", ())

    def _rename(self, call: Any, same: str) -> None:
        """The call is the value `same`."""
        self.views[call.name] = self.views[same]
        self.current[call.name] = self.current[same]

    def _add(self, name: str, op: str, args: tuple[Any, ...], module: str) -> Ref:
        self.nodes.append(Node(name, op, args, {}, module))
        return Ref(name)


def _batch_norm(rewriting: _Rewriting, call: Any) -> None:
    """Buffers' new values are results of the operator in training."""
    node = rewriting._node(call)
    (x, weight, bias, mean, var, train, momentum, epsilon, *_), module = node.args, node.module
    statistics, mode = (mean, var), (momentum, epsilon)
    if train and mean is None:
        op, args = "aten._native_batch_norm_legit.no_stats", (x, weight, bias, True, *mode)
    elif train:
        op, args = "aten._native_batch_norm_legit_functional.default", (x, weight, bias, *statistics, True, *mode)
    else:
        op, args = "aten._native_batch_norm_legit_no_training.default", (x, weight, bias, *statistics, *mode)
    results = rewriting._add(f"{call.name}/all", op, args, module)
    rewriting._append(call, Node(call.name, "getitem", (results, 0), {}, module))
    if train and mean is not None:
        for place in (3, 4):
            rewriting._put(call.args[place], Node(f"{call.name}/{place}", "getitem", (results, place), {}, module))


def _dropout(rewriting: _Rewriting, call: Any) -> None:
    """Where it drops nothing it is its argument."""
    x, probability, train = call.args
    if not train or probability == 0:
        rewriting._rename(call, x.name)
        return
    node = rewriting._node(call)
    results = rewriting._add(
        f"{call.name}/all", "aten.native_dropout.default", (node.args[0], probability, True), node.module
    )
    rewriting._append(call, Node(call.name, "getitem", (results, 0), {}, node.module))


def _dropout_in_place(rewriting: _Rewriting, call: Any) -> None:
    """`x · bernoulli(1 - p) / (1 - p)`."""
    x, probability, train = call.args
    if not train or probability == 0:
        rewriting._rename(call, x.name)
        return
    if probability >= 1 or not rewriting._may_write(call, x):
        raise Unknown
    node = rewriting._node(call)
    name, held, module, kept = call.name, node.args[0], node.module, 1 - probability
    empty = rewriting._add(f"{name}/empty", "aten.empty_like.default", (held,), module)
    drawn = rewriting._add(f"{name}/drawn", "aten.bernoulli.p", (empty, kept), module)
    mask = rewriting._add(f"{name}/mask", "aten.div.Scalar", (drawn, kept), module)
    rewriting._set(call, Node(name, "aten.mul.Tensor", (held, mask), {}, module))


def _reshape(rewriting: _Rewriting, call: Any) -> None:
    """`reshape` and its like: a view, or, where numbers don't lie so, a copy."""
    node = rewriting._node(call)
    shape = [n if isinstance(n, int) else -1 for n in call.meta["val"].shape]
    if str(call.target) == "aten.reshape.default":
        shape = node.args[1]
    elif shape.count(-1) > 1:
        raise Unknown
    rewriting.maybe_copied[call.name] = call.args[0].meta["val"]
    rewriting._view(call, node._replace(op="aten.view.default", args=(node.args[0], tuple(shape)), options={}))


def _chunk(rewriting: _Rewriting, call: Any) -> None:
    """`chunk(x, n)`: views of the n-th part of an axis, the last one of what is left."""
    x, count = call.args[:2]
    axis = call.args[2] if len(call.args) > 2 else 0
    size = x.meta["val"].shape[axis]
    if not isinstance(size, int) or size == 0:
        raise Unknown
    node = rewriting._node(call)
    rewriting._view(
        call, node._replace(op="aten.split.Tensor", args=(node.args[0], -(-size // count), axis), options={})
    )


def _contiguous(rewriting: _Rewriting, call: Any) -> None:
    """The same numbers, as a copy where they lie otherwise."""
    if call.kwargs.get("memory_format") not in (None, rewriting.torch.contiguous_format):
        raise Unknown
    node = rewriting._node(call)
    rewriting.maybe_copied[call.name] = call.args[0].meta["val"]
    rewriting._view(call, node._replace(op="aten.clone.default", args=node.args[:1], options={}))


REWRITTEN: dict[str, Callable[[_Rewriting, Any], None]] = {
    "aten.batch_norm.default": _batch_norm,
    "aten.dropout.default": _dropout,
    "aten.dropout_.default": _dropout_in_place,
    "aten.reshape.default": _reshape,
    "aten.reshape_as.default": _reshape,
    "aten.view_as.default": _reshape,
    "aten.flatten.using_ints": _reshape,
    "aten.unflatten.int": _reshape,
    "aten.chunk.default": _chunk,
    "aten.contiguous.default": _contiguous,
}
"""Operators that torch decomposes because they may write or be views."""
