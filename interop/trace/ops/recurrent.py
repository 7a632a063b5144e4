"""Long short-term memory, the recurrence of image networks (Sequencer), with torch's gates and order of weights."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from interop.trace.ops.operator import Context, Operator
from interop.trace.ops.random import drop_elements
from interop.trace.values import Value, from_torch_order, to_torch_order

__all__ = ["TABLE", "lstm"]


def lstm(drop: Callable[[Context, jax.Array, float], jax.Array]) -> Operator:
    """Layers in one or both directions: outputs [T, N, D · H], last states and last cells [L · D, N, H].

    `drop`: what dropout does with the outputs of all layers but the last, `random.drop_elements`.
    """

    def operator(
        context: Context,
        x: Value,
        states: Sequence[Value],
        weights: Sequence[Value],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Value, Value, Value]:
        sequence = jnp.swapaxes(to_torch_order(x), 0, 1) if batch_first else to_torch_order(x)
        first_states, first_cells = map(to_torch_order, states)
        size, directions = len(weights) // len(first_states), 1 + bidirectional
        last = []
        for layer in range(num_layers):
            if layer > 0 and train and dropout > 0:
                sequence = drop(context, sequence, dropout)
            outputs = []
            for place in range(layer * directions, (layer + 1) * directions):
                own = [to_torch_order(weight) for weight in weights[place * size : (place + 1) * size]]
                reverse = place > layer * directions
                output, *ends = _one_direction(
                    sequence, first_states[place], first_cells[place], own, has_biases, reverse
                )
                outputs.append(output)
                last.append(ends)
            sequence = jnp.concatenate(outputs, -1)
        outputs = jnp.swapaxes(sequence, 0, 1) if batch_first else sequence
        ends = [jnp.stack(part) for part in zip(*last, strict=True)]
        return from_torch_order(outputs), from_torch_order(ends[0]), from_torch_order(ends[1])

    return operator


def _one_direction(
    sequence: jax.Array, state: jax.Array, cell: jax.Array, weights: list[jax.Array], has_biases: bool, reverse: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Outputs [T, N, H], last state, last cell. Weights: of inputs, of states, both biases, and of a projection."""
    given = sequence @ weights[0].T  # [T, N, 4 H], the gates' order: input, forget, cell, output
    if has_biases:
        given = given + weights[2] + weights[3]
    projection = weights[-1] if len(weights) in (3, 5) else None

    def step(carried: tuple[jax.Array, jax.Array], inputs: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        state, cell = carried
        enter, forget, new, leave = jnp.split(inputs + state @ weights[1].T, 4, -1)
        cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(enter) * jnp.tanh(new)
        state = jax.nn.sigmoid(leave) * jnp.tanh(cell)
        state = state if projection is None else state @ projection.T
        return (state, cell), state

    (state, cell), outputs = jax.lax.scan(step, (state, cell), given, reverse=reverse)
    return outputs, state, cell


TABLE: dict[str, Operator] = {"aten.lstm": lstm(drop_elements)}
