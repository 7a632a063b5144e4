"""Any encoder with less memory in training: what lies between a few places is computed again in the backward pass.

The whole encoder under one `jax.checkpoint` saves nothing in a step of BYOL: the second forward pass, right before the
backward pass, keeps everything. So the program of a call is cut at places where few bytes are alive, and each segment
is a checkpoint of its own. It works on what JAX traces, whoever wrote the network.

What a step sets aside, compiled by XLA:CPU with `KEEP_BARRIERS`, jax 0.10.2, float32, heads of 256 and 64:

    MB                                               as it is   whole   by blocks   by segments   operations
    ResNet-18, 64 px, batch 128                           877     865         477           398        1.23
    ResNet-50, 64 px, batch 64                           1525                 574           510        1.24
    ViT-S/16, 128 px, batch 32                           2588                 379           357        1.17
    torchvision's mobilenet_v3_small, traced, 64 px, 128  572     572                       177        1.18

A policy that keeps all products (`jax.checkpoint(policy=...)`) saved nothing in the first and the last.
"""

from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from byol_jax.types import Encoder, PyTree, Variables

__all__ = ["KEEP_BARRIERS", "cuts_below", "with_remat"]

KEEP_BARRIERS: dict[str, str | bool] = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""Compiler options for CPUs: XLA:CPU drops the barriers around what is computed again, finds it equal to the first
computation, and keeps that (jax 0.10.2)."""

GRID = 24
"""How many bounds of a segment's inside are tried, each √2 below the last, down to 1/2900 of the whole."""


def with_remat(encoder: Encoder) -> Encoder:
    """`encoder` that keeps few activations for its backward pass and computes the others again, segment by segment.

        kept = Σ over cuts of the bytes alive there + the largest segment's activations,  the smallest such sum

    Outputs, statistics and gradients are the encoder's own to rounding; its forward pass is computed twice in training,
    about a quarter more work in a step. The cuts are chosen where a call is traced, by the sizes of its arrays. A loop
    (`lax.scan`) isn't cut: give its body a checkpoint of its own. On CPUs the step must be compiled with
    `byol_jax.nets.remat.KEEP_BARRIERS` to save anything, `jax.jit(step).lower(state, images).compile(KEEP_BARRIERS)`;
    `pretrain` does so by itself.

    `nets.resnet(remat=True)` and `nets.vit(remat=True)`, which cut at their blocks, save a little less.

    Args:
        encoder: any: native, from a Flax or torch module, or pure functions.

    Returns:
        An encoder with the same `init` and `hidden_layers`; its `facts` say `remat`.

    Example:
        >>> import byol_jax
        >>> encoder = with_remat(byol_jax.nets.small_cnn())
        >>> variables = encoder.init(jax.random.key(0), (16, 16, 3))
        >>> encoder.apply(variables, jnp.zeros((2, 16, 16, 3)), train=True, hidden_layer="9")[0].shape
        (2, 512)

    Source: Chen et al., "Training deep nets with sublinear memory cost", arXiv:1604.06174.
    """

    def apply(
        variables: Variables,
        images: Any,
        *,
        train: bool,
        hidden_layer: str | int,
        key: Any = None,
        axis_name: str | None = None,
    ) -> tuple[Any, PyTree]:
        options = {"train": train, "hidden_layer": hidden_layer, "axis_name": axis_name}
        if not train:  # whoever differentiates in evaluation mode keeps what that takes
            return encoder.apply(variables, images, key=key, **options)

        def call(variables: Variables, images: Any, key: Any) -> Any:
            return encoder.apply(variables, images, key=key, **options)

        return _run(call, variables, images, key)

    return encoder._replace(apply=apply, facts=encoder.facts._replace(remat=True))


class _Operation(NamedTuple):
    """A function, and the numbers of the values that it takes (literals left out) and gives (unused ones left out)."""

    run: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class _Program(NamedTuple):
    """A traced function, flat. Values are known by numbers, the arguments' from 0.

    Attributes:
        operations: in the order of tracing.
        constants: values by their numbers.
        results: numbers of what the function returns.
        sizes: bytes of every operation's outputs, by their numbers.
    """

    operations: list[_Operation]
    constants: dict[int, Any]
    results: list[int]
    sizes: dict[int, int]


def _run(call: Any, *arguments: Any) -> Any:
    """`call(*arguments)`, each segment under `jax.checkpoint`."""
    leaves, structure = jax.tree.flatten(arguments)
    flat = lambda *leaves: call(*jax.tree.unflatten(structure, leaves))  # noqa: E731
    closed, shape = jax.make_jaxpr(flat, return_shape=True)(*leaves)
    program = _flatten(closed, len(leaves))
    values = dict(enumerate(leaves)) | program.constants
    cuts = [0, *_best_cuts(program), len(program.operations)]
    wanted = set(program.results)
    segments = []
    for first, last in reversed(list(pairwise(cuts))):
        operations = program.operations[first:last]
        made = {number for operation in operations for number in operation.outputs}
        outputs = tuple(sorted(made & wanted))
        inputs = tuple(sorted({number for operation in operations for number in operation.inputs} - made))
        segments.append((operations, inputs, outputs))
        wanted |= set(inputs)
    for operations, inputs, outputs in reversed(segments):
        run = jax.checkpoint(partial(_run_segment, operations, inputs, outputs))
        values |= zip(outputs, run(*(values[number] for number in inputs)), strict=True)
    return jax.tree.unflatten(jax.tree.structure(shape), [values[number] for number in program.results])


def _run_segment(
    operations: Sequence[_Operation], inputs: tuple[int, ...], outputs: tuple[int, ...], *arguments: Any
) -> list[Any]:
    values = dict(zip(inputs, arguments, strict=True))
    for operation in operations:
        given = [values[number] for number in operation.inputs]
        values |= zip(operation.outputs, operation.run(*given), strict=True)
    return [values[number] for number in outputs]


def _flatten(closed: core.ClosedJaxpr, arguments: int) -> _Program:
    """The operations of a function and of every jitted function inside it."""
    program, count = _Program([], {}, [], {}), arguments

    def constant(value: Any) -> int:
        nonlocal count
        program.constants[count] = value
        count += 1
        return count - 1

    def walk(closed: core.ClosedJaxpr, given: Sequence[int]) -> list[int]:
        nonlocal count
        jaxpr = closed.jaxpr
        numbers = dict(zip(jaxpr.invars, given, strict=True))
        numbers |= {variable: constant(value) for variable, value in zip(jaxpr.constvars, closed.consts, strict=True)}

        def number_of(atom: Any) -> int:
            return constant(_literal(atom)) if isinstance(atom, core.Literal) else numbers[atom]

        for equation in jaxpr.eqns:
            if equation.primitive.name == "jit":
                results = walk(equation.params["jaxpr"], [number_of(atom) for atom in equation.invars])
                numbers |= zip(equation.outvars, results, strict=True)
                continue
            taken = [atom for atom in equation.invars if not isinstance(atom, core.Literal)]
            taken = list(dict.fromkeys(taken))
            given_out = [variable for variable in equation.outvars if type(variable) is core.Var]
            alone = core.Jaxpr([], taken, given_out, [equation], equation.effects, jaxpr.debug_info)
            run = core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))
            outputs = tuple(range(count, count + len(given_out)))
            count += len(given_out)
            numbers |= zip(given_out, outputs, strict=True)
            program.sizes.update(
                {number: _bytes(variable.aval) for number, variable in zip(outputs, given_out, strict=True)}
            )
            program.operations.append(_Operation(run, tuple(numbers[atom] for atom in taken), outputs))
        return [number_of(atom) for atom in jaxpr.outvars]

    program.results.extend(walk(closed, range(arguments)))
    return program


def _literal(atom: Any) -> Any:
    return jnp.asarray(atom.val, atom.aval.dtype)


def _bytes(aval: Any) -> int:
    dtype = aval.dtype
    return aval.size * (dtype.itemsize if hasattr(dtype, "itemsize") else 4)


def _best_cuts(program: _Program) -> list[int]:
    """Where to cut, as indices of operations: the smallest sum of what is alive at the cuts and the largest inside."""
    made, alive = _made(program), _alive(program)
    best, cuts = float(made[-1]), []
    for step in range(1, GRID if best else 1):
        bound = made[-1] / 2 ** (step / 2)
        found = cuts_below(bound, made, alive)
        places = [0, *found, len(alive)]
        inside = max(made[b] - made[a] for a, b in pairwise(places))
        total = sum(alive[cut] for cut in found) + inside
        if total < best:
            best, cuts = total, found
    return cuts


def _made(program: _Program) -> list[int]:
    """Bytes made before each operation, and by all of them."""
    made = [0]
    for operation in program.operations:
        made.append(made[-1] + sum(program.sizes[number] for number in operation.outputs))
    return made


def _alive(program: _Program) -> list[int]:
    """Bytes that were made before each operation and are taken by it or later ones; arguments don't count."""
    count = len(program.operations)
    last_use = {number: index for index, one in enumerate(program.operations) for number in one.inputs}
    change = [0] * (count + 2)
    for index, operation in enumerate(program.operations):
        for number in operation.outputs:
            if (last := last_use.get(number, -1)) > index:
                change[index + 1] += program.sizes[number]
                change[last + 1] -= program.sizes[number]
    alive = [0]
    for index in range(1, count):
        alive.append(alive[-1] + change[index])
    return alive


def cuts_below(bound: float, made: Sequence[int], alive: Sequence[int]) -> list[int]:
    """The cuts with the least alive at them, such that no segment makes more than `bound`, single operations apart."""
    count = len(alive)
    cost, before = [0.0] * (count + 1), [0] * (count + 1)
    window: deque[int] = deque([0])  # possible last cuts, their costs rising
    for place in range(1, count + 1):
        while len(window) > 1 and made[place] - made[window[0]] > bound:
            window.popleft()
        before[place] = window[0]
        cost[place] = cost[window[0]] + (alive[place] if place < count else 0)
        while window and cost[window[-1]] >= cost[place]:
            window.pop()
        window.append(place)
    cuts, place = [], before[count]
    while place > 0:
        cuts.append(place)
        place = before[place]
    return cuts[::-1]
