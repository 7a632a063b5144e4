"""For which sizes of the batch one graph holds: for any, where torch can keep the size open, as it nearly always can.

Code that mixes the inputs of a batch may be another graph for each size, or one from some size on, or one for multiples
of four. `trace` takes torch's advice where it gives any; all other sizes are traced one by one, as they are met, by
`SizedGraphs`.
"""

import math
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from byol_jax.errors import ConfigurationError, UnsupportedModuleError
from interop.arrays import import_torch
from interop.trace.export import ANY_SIZE, Refusal, export_graph
from interop.trace.graph import Graph
from interop.trace.side_effects import in_mode, keep_modes

__all__ = ["SizedGraphs", "Traced", "frozen_parameters", "resize_batch", "trace", "trace_batch"]

EXAMPLE_SIZES = (2, 8)
"""Batches to begin with; torch takes 0 and 1 for special. Code that takes each input by itself takes as many times as
long to follow."""

LARGE_EXAMPLE = 64
"""Where torch's advice for a small batch is a largest size."""

ATTEMPTS = 3
"""Times that advice is taken for one example: each attempt may bring further advice."""


class Traced(NamedTuple):
    """What a module was traced to.

    Attributes:
        train, eval: the graphs of both modes.
        names: all sub-modules' names, in order of definition.
        sizes: the numbers of inputs that both graphs hold for.
    """

    train: Graph
    eval: Graph
    names: tuple[str, ...]
    sizes: range = ANY_SIZE

    @property
    def example_size(self) -> int:
        """The number of inputs to compare both frameworks on: two, where the graphs hold for two."""
        return 2 if 2 in self.sizes else self.sizes[0]


def trace(module: Any, example: Any, own_size: int = 2) -> Traced:
    """Both graphs of `module`, for as many sizes of the batch as torch can keep open.

    Args:
        module: a `torch.nn.Module`; its mode, its weights and its hooks are left as they are.
        example: a tensor [2, ...] as the module takes it.
        own_size: a number of inputs that the module is known to take.

    Raises:
        UnsupportedModuleError: torch can't write the module's code down as one graph, whatever the size.
    """
    frozen_parameters(module)
    names = tuple(name for name, _ in module.named_modules() if name)
    examples = [resize_batch(example, size) for size in dict.fromkeys((*EXAMPLE_SIZES, own_size))]
    with keep_modes(module):
        try:
            train, train_sizes = _open_graph(in_mode(module, True), examples)
            evaluation, sizes = _open_graph(in_mode(module, False), examples)
            common = _common(train_sizes, sizes)
        except Refusal:
            common = range(0)
        if common:
            return Traced(train, evaluation, names, common)
        return _closed_graphs(module, examples, names)


def frozen_parameters(module: Any) -> frozenset[str]:
    """The parameters that get no gradient once the module is in training; its own `train` may freeze some.

    Raises:
        UnsupportedModuleError: others in evaluation.
    """
    by_mode = []
    with keep_modes(module):
        for train in (True, False):
            parameters = in_mode(module, train).named_parameters()
            by_mode.append(frozenset(name for name, parameter in parameters if not parameter.requires_grad))
    if odd := sorted(by_mode[0] ^ by_mode[1]):
        raise UnsupportedModuleError(
            f"{type(module).__name__} freezes {', '.join(odd[:5])} in one mode alone, by its own train: do it in both"
        )
    return by_mode[0]


def trace_batch(module: Any, example: Any) -> Graph:
    """The graph for batches of the example's size alone, in the mode that the module is in.

    Raises:
        UnsupportedModuleError: torch can't write the module's code down as one graph for this size.
    """
    try:
        return export_graph(module, example, None)
    except Refusal as refusal:
        raise refusal.error from refusal


def _open_graph(module: Any, examples: list[Any]) -> tuple[Graph, range]:
    """The graph in the mode that the module is in, with the size of the batch open; and the sizes that it holds for.

    Raises:
        Refusal: it can't be kept open.
        UnsupportedModuleError: there is no graph for any size.
    """
    refusals = []
    for example in examples:
        try:
            return _follow_advice(module, example)
        except Refusal as refusal:
            refusals.append((example, refusal))
    bounded = [(example, refusal.sizes) for example, refusal in refusals if refusal.sizes]
    if not bounded:
        raise refusals[0][1]
    try:
        return _follow_advice(module, resize_batch(examples[0], LARGE_EXAMPLE))
    except Refusal:
        return export_graph(module, *bounded[0]), bounded[0][1]


def _follow_advice(module: Any, example: Any) -> tuple[Graph, range]:
    """`_open_graph` by one example, for sizes that have no end.

    Raises:
        Refusal: there is an end, no open size, or torch can't follow the module on this example.
        UnsupportedModuleError: there is no graph for any size.
    """
    sizes = ANY_SIZE
    for _ in range(ATTEMPTS - 1):
        try:
            return export_graph(module, example, sizes), sizes
        except Refusal as refusal:
            advice = refusal.sizes
            if advice is None or advice.stop != sys.maxsize:
                raise
            sizes = advice
            example = example if len(example) in sizes else resize_batch(example, sizes[0])
    return export_graph(module, example, sizes), sizes


def _closed_graphs(module: Any, examples: list[Any], names: tuple[str, ...]) -> Traced:
    """Both graphs for the first example that both can be traced for, and for its size alone."""
    refusals = []
    for example in examples:
        try:
            train, evaluation = (export_graph(in_mode(module, mode), example, None) for mode in (True, False))
        except Refusal as refusal:
            refusals.append(refusal)
        else:
            return Traced(train, evaluation, names, range(len(example), len(example) + 1))
    raise refusals[0].error from refusals[0]


def _common(a: range, b: range) -> range:
    """The sizes that are in both; each begins at a multiple of its step.

    Example:
        >>> _common(range(8, 1000, 4), range(5, 800))
        range(8, 800, 4)
    """
    step = math.lcm(a.step, b.step)
    start = -(-max(a.start, b.start) // step) * step
    return range(start, max(start, min(a.stop, b.stop)), step)


def resize_batch(example: Any, size: int) -> Any:
    """`size` inputs: the example's, and these rolled along, which keeps every kind of input in its range."""
    torch = import_torch()
    rolled = [example.flatten(1).roll(shift, 1).view_as(example) for shift in range(-(-size // len(example)))]
    return torch.cat(rolled)[:size]


class SizedGraphs:
    """Graphs that hold for one size of the batch each: those that were met, and others as they are met.

    Attributes:
        known: the graphs, by whether they are of training and the size of the batch.
    """

    def __init__(
        self,
        known: dict[tuple[bool, int], Graph],
        make: Callable[[bool, int], Graph] | None,
        others: range = ANY_SIZE,
    ) -> None:
        """`make` traces one; without it, as in a network that was loaded from a folder, there are no further ones.
        `others`: the sizes that another graph holds for, to be named beside these."""
        self.known, self._make, self._others, self._lock = known, make, others, threading.Lock()

    def __call__(self, train: bool, size: int) -> Graph:
        """The graph for a batch of `size` inputs.

        Raises:
            UnsupportedModuleError: the module can't be traced for such a batch.
            ConfigurationError: the graph would have to be made, and the module is gone; or the batch is empty.
        """
        if size == 0:
            raise ConfigurationError(
                "an empty batch: this network's code is another graph for other sizes of the batch: give one input at "
                "least"
            )
        with self._lock:
            if (train, size) not in self.known:
                if self._make is None:
                    raise ConfigurationError(self._not_kept(train, size))
                self.known[train, size] = self._make(train, size)
            return self.known[train, size]

    def _not_kept(self, train: bool, size: int) -> str:
        held = sorted(known for mode, known in self.known if mode == train)
        return (
            "this network's code is another graph for other sizes of the batch, and was kept without its module for "
            f"{', '.join([describe_sizes(self._others), *map(str, held)])}, not for {size}: take a batch of such a size"
            ", or trace the module anew"
        )


def describe_sizes(sizes: range) -> str:
    """In words.

    Example:
        >>> describe_sizes(range(8, sys.maxsize, 4)), describe_sizes(range(2, sys.maxsize)), describe_sizes(range(3, 9))
        ('multiples of 4 from 8 on', '2 and more', '3 to 8')
    """
    is_open = sizes.stop == sys.maxsize
    if sizes.step == 1:
        return f"{sizes[0]} and more" if is_open else f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
    return f"multiples of {sizes.step} from {sizes[0]} {'on' if is_open else f'to {sizes[-1]}'}"
