"""Recurrent layers: long short-term memory (Sequencer), gated units, plain ones; torch's gates and order of weights."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from interop.trace.ops.operator import Context, Operator, in_torch_order, product
from interop.trace.ops.random import drop_elements
from interop.trace.values import Value, from_torch_order, to_torch_order

__all__ = ["TABLE", "recurrent_operators"]

States = tuple[jax.Array, ...]
"""What a cell carries from time to time, [N, H] each; the first is its output."""

Cell = Callable[[jax.Array, States, Callable[[jax.Array], jax.Array]], States]
"""The next states, from what the inputs give to the gates, [N, G · H], the states, and what a state gives to them."""


def _lstm_cell(given: jax.Array, states: States, recur: Callable[[jax.Array], jax.Array]) -> States:
    """State and cell; the gates' order: input, forget, cell, output."""
    state, cell = states
    enter, forget, new, leave = jnp.split(given + recur(state), 4, -1)
    cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
    return jax.nn.sigmoid(leave) * jnp.tanh(cell), cell


def _gru_cell(given: jax.Array, states: States, recur: Callable[[jax.Array], jax.Array]) -> States:
    """The gates' order: reset, update, new; what the state gives to the last is reset, its bias too."""
    (state,) = states
    resets, updates, new = jnp.split(given, 3, -1)
    own_resets, own_updates, own_new = jnp.split(recur(state), 3, -1)
    update = jax.nn.sigmoid(updates + own_updates)
    new = jnp.tanh(new + jax.nn.sigmoid(resets + own_resets) * own_new)
    return ((1 - update) * new + update * state,)


def _plain_cell(function: Callable[[jax.Array], jax.Array]) -> Cell:
    return lambda given, states, recur: (function(given + recur(states[0])),)


CELLS: dict[str, Cell] = {
    "lstm": _lstm_cell,
    "gru": _gru_cell,
    "rnn_tanh": _plain_cell(jnp.tanh),
    "rnn_relu": _plain_cell(jax.nn.relu),
}


def _layers(drop: Callable[[Context, jax.Array, float], jax.Array], cell: Cell) -> Operator:
    """Layers in one or both directions: outputs [T, N, D · H], and each of the last states, [L · D, N, H].

    `drop`: what dropout does with the outputs of all layers but the last, `random.drop_elements`.
    """

    def operator(
        context: Context,
        x: Value,
        states: Value | Sequence[Value],
        weights: Sequence[Value],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Value, ...]:
        sequence = jnp.swapaxes(to_torch_order(x), 0, 1) if batch_first else to_torch_order(x)
        first = [to_torch_order(state) for state in ((states,) if isinstance(states, Value) else states)]
        size, directions = len(weights) // len(first[0]), 1 + bidirectional
        last = []
        for layer in range(num_layers):
            if layer > 0 and train and dropout > 0:
                sequence = drop(context, sequence, dropout)
            outputs = []
            for place in range(layer * directions, (layer + 1) * directions):
                own = [to_torch_order(weight) for weight in weights[place * size : (place + 1) * size]]
                begin, reverse = tuple(state[place] for state in first), place > layer * directions
                ends, output = _one_direction(cell, sequence, begin, own, has_biases, reverse)
                outputs.append(output)
                last.append(ends)
            sequence = jnp.concatenate(outputs, -1)
        outputs = jnp.swapaxes(sequence, 0, 1) if batch_first else sequence
        return tuple(map(from_torch_order, (outputs, *(jnp.stack(part) for part in zip(*last, strict=True)))))

    return product(operator)


def _one_direction(
    cell: Cell, sequence: jax.Array, first: States, weights: list[jax.Array], has_biases: bool, reverse: bool
) -> tuple[States, jax.Array]:
    """Last states, and outputs [T, N, H]. Weights: of inputs, of states, both biases, and of an LSTM's projection."""
    projection = weights[-1] if len(weights) in (3, 5) else None
    biases = weights[2:4] if has_biases else (None, None)
    given = _affine(sequence, weights[0], biases[0])  # [T, N, G · H]

    def step(states: States, inputs: jax.Array) -> tuple[States, jax.Array]:
        output, *rest = cell(inputs, states, lambda state: _affine(state, weights[1], biases[1]))
        output = output if projection is None else output @ projection.T
        return (output, *rest), output

    return jax.lax.scan(step, first, given, reverse=reverse)


def _affine(x: jax.Array, weight: jax.Array, bias: jax.Array | None) -> jax.Array:
    return x @ weight.T if bias is None else x @ weight.T + bias


def _one_step(
    cell: Cell,
    x: jax.Array,
    states: Any,
    weight: jax.Array,
    own_weight: jax.Array,
    bias: jax.Array | None = None,
    own_bias: jax.Array | None = None,
) -> jax.Array | States:
    """A cell by itself."""
    first = states if isinstance(states, tuple) else (states,)
    last = cell(_affine(x, weight, bias), first, lambda state: _affine(state, own_weight, own_bias))
    state, *others = last
    return last if others else state


def recurrent_operators(drop: Callable[[Context, jax.Array, float], jax.Array]) -> dict[str, Operator]:
    """The layers' operators, with what dropout does between layers."""
    return {f"aten.{name}": _layers(drop, cell) for name, cell in CELLS.items()}


TABLE: dict[str, Operator] = {
    **recurrent_operators(drop_elements),
    **{f"aten.{name}_cell": product(in_torch_order(partial(_one_step, cell))) for name, cell in CELLS.items()},
}
