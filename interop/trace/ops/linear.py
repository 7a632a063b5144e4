"""Matrix products, einsum and attention."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.ops.precision import at_least_float32
from interop.trace.ops.operator import Context, Operator, in_one_dtype, in_torch_order, product
from interop.trace.ops.random import drop_elements
from interop.trace.values import Value, from_torch_order, to_torch_order

__all__ = ["TABLE", "attention"]


@product
def _linear(context: Context, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """`x @ weightᵀ + bias` over torch's last axis, wherever it lies: [..., in] to [..., out]; a vector is one output,
    which has no axis."""
    last = x.ndim - 1
    contracted = ((x.order.index(last),), (weight.ndim - 1,))
    y = jax.lax.dot_general(x.array, to_torch_order(weight), (contracted, ((), ())))
    if bias is not None:
        y = y + bias.array
    return Value(y, (*(axis for axis in x.order if axis != last), *(last,) * (weight.ndim - 1)))


@product
def _matmul(context: Context, x: Value, y: Value) -> Value:
    """A matrix on the right as a linear layer has it, so that x stays as it lies; else torch's order."""
    if y.ndim == 2 and x.ndim > 2:
        return _linear(context, x, Value(y.array, (1 - y.order[0], 1 - y.order[1])))
    return from_torch_order(jnp.matmul(to_torch_order(x), to_torch_order(y)))


def _addmm(x: jax.Array, a: jax.Array, b: jax.Array, *, beta: float = 1, alpha: float = 1) -> jax.Array:
    product = jnp.matmul(a, b)
    return (x if beta == 1 else x * beta) + (product if alpha == 1 else product * alpha)


@product
def _einsum(context: Context, equation: str, operands: Sequence[Value], *rest: Any, **options: Any) -> Value:
    return from_torch_order(jnp.einsum(equation.replace(" ", ""), *(to_torch_order(operand) for operand in operands)))


def attention(drop: Callable[[Context, jax.Array, float], jax.Array]) -> Operator:
    """`softmax(query · keyᵀ · scale + mask) · value`, scale = 1 / sqrt(E) by default; [..., L, E], [..., S, E].

    A row that the mask leaves nothing of is 0, with the gradient 0, as in torch.

    `drop`: what dropout does with the softmax, `random.drop_elements`.
    """

    def attend(
        context: Context,
        query: Value,
        key: Value,
        value: Value,
        attn_mask: Value | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Value:
        q, k, v = (to_torch_order(part) for part in (query, key, value))
        if enable_gqa:
            k, v = (jnp.repeat(part, q.shape[-3] // part.shape[-3], axis=-3) for part in (k, v))
        factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        scores = jnp.matmul(q * factor, jnp.swapaxes(k, -1, -2))  # [..., L, S]
        scores = scores.astype(at_least_float32(scores.dtype))
        if is_causal:
            scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        if attn_mask is not None:
            mask = to_torch_order(attn_mask)
            is_bool = mask.dtype == jnp.bool_
            scores = jnp.where(mask, scores, -jnp.inf) if is_bool else scores + mask.astype(scores.dtype)
        weights = (jax.nn.softmax(scores) if attn_mask is None else _masked_softmax(scores)).astype(q.dtype)
        if dropout_p > 0:
            weights = drop(context, weights, dropout_p)
        return from_torch_order(jnp.matmul(weights, v))

    def operator(context: Context, query: Value, key: Value, value: Value, *rest: Any, **options: Any) -> Value:
        q, k, v = in_one_dtype((query, key, value), context.floating)
        return attend(context, q, k, v, *rest, **options)

    return operator


def _masked_softmax(scores: jax.Array) -> jax.Array:
    """The softmax over the last axis; zeros, whose gradient is zero, where all scores are -infinity."""
    is_empty = jnp.all(scores == -jnp.inf, axis=-1, keepdims=True)
    return jnp.where(is_empty, 0, jax.nn.softmax(jnp.where(is_empty, 0, scores)))


def _bilinear(x: jax.Array, y: jax.Array, weight: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    z = jnp.einsum("...i,oij,...j->...o", x, weight, y)
    return z if bias is None else z + bias


def _cosine(x: jax.Array, y: jax.Array, dim: int = 1, eps: float = 1e-8) -> jax.Array:
    """As torch has it: each norm is at least eps."""
    x, y = jnp.broadcast_arrays(x, y)
    norms = [jnp.maximum(jnp.sum(jnp.square(part), dim), eps * eps) for part in (x, y)]
    return jnp.sum(x * y, dim) * jax.lax.rsqrt(norms[0]) * jax.lax.rsqrt(norms[1])


def _householder_product(a: jax.Array, tau: jax.Array) -> jax.Array:
    """The first n columns of H₁ · … · Hₖ, Hᵢ = 1 - τᵢ vᵢ vᵢᵀ, [..., m, n]; vᵢ is a column of a below a one."""
    m, n = a.shape[-2:]
    vectors = jnp.tril(a, -1) + jnp.eye(m, n, dtype=a.dtype)

    def reflect(product: jax.Array, reflector: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        v, factor = reflector  # [..., m], [...]
        along = jnp.einsum("...m,...mn->...n", v, product)
        return product - factor[..., None, None] * v[..., :, None] * along[..., None, :], None

    reflectors = jnp.moveaxis(vectors[..., : tau.shape[-1]], -1, 0), jnp.moveaxis(tau, -1, 0)
    begin = jnp.broadcast_to(jnp.eye(m, n, dtype=a.dtype), a.shape)
    return jax.lax.scan(reflect, begin, reflectors, reverse=True)[0]


def _solve(a: jax.Array, b: jax.Array, *, left: bool = True, **options: Any) -> tuple[jax.Array, ...]:
    """x of a · x = b, or of x · a = b; what torch gives beside it, its own backward pass alone reads."""
    del options
    x = jnp.linalg.solve(a, b) if left else jnp.swapaxes(jnp.linalg.solve(*map(jnp.matrix_transpose, (a, b))), -1, -2)
    return x, a, jnp.zeros(a.shape[:-1], jnp.int32), jnp.zeros(a.shape[:-2], jnp.int32)


TABLE: dict[str, Operator] = {
    "aten._linalg_solve_ex": in_torch_order(_solve),
    "aten.linalg_householder_product": in_torch_order(_householder_product),
    "aten.matrix_exp": in_torch_order(jax.scipy.linalg.expm),
    "aten.linear": _linear,
    "aten.matmul": _matmul,
    "aten.mm": _matmul,
    "aten.bmm": _matmul,
    "aten.mv": _matmul,
    "aten.dot": _matmul,
    "aten.vdot": _matmul,
    "aten.addmm": product(in_torch_order(_addmm)),
    "aten.baddbmm": product(in_torch_order(_addmm)),
    "aten.outer": in_torch_order(jnp.outer),
    "aten.einsum": _einsum,
    "aten.bilinear": product(in_torch_order(_bilinear)),
    "aten.cosine_similarity": in_torch_order(_cosine),
    "aten.scaled_dot_product_attention": attention(drop_elements),
}
