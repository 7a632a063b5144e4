"""Multinomial logistic regression with an L2 penalty, solved to its optimum by L-BFGS.

    objective(W, b) = Σ_i r_i · cross_entropy(x_i W + b, y_i) + l2/2 · ‖W‖²,   Σ_i r_i = 1, r_i = 1/N by default

The penalty leaves out b. scikit-learn's LogisticRegression has the same optimum with C = 1/(N · l2).

The optimum is unique, so how it is reached changes nothing but the time: features are turned onto their principal axes
and each axis is scaled by the curvature expected along it, which halves the iterations. The protocol is in linear.py.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from byol_jax.ops.precision import standard_promotion

__all__ = ["LogisticFit", "PrincipalAxes", "fit_logistic", "principal_axes"]

MAX_ROTATED_DIMENSIONS = 4096
"""Features with more dimensions stay as they are: the eigenvectors (D³) would cost more than the iterations saved."""
CURVATURE = 0.25
"""Assumed second derivative of the cross-entropy along a logit, at most 1/2 (Böhning, 1992). Only the speed depends on
it: 0.1 took 1.3 to 1.7 times the iterations on Fashion-MNIST (pixels; 2,048 random features of them), 0.5 as many."""


class PrincipalAxes(NamedTuple):
    """Features on principal axes: `x` [N, D] = features @ `axes`; `axes` [D, D] or None for as is; `variance` [D]."""

    x: jax.Array
    axes: jax.Array | None
    variance: jax.Array


class LogisticFit(NamedTuple):
    """An optimum.

    Attributes:
        weights: [D, K] float32, of the features as given.
        bias: [K] float32; adds up to 0.
        objective: its value, float32 scalar.
        gradient_norm: of the gradient in the scaled coordinates (Euclidean); about sqrt(2 · distance to the minimum).
        iterations: int32 scalar.
    """

    weights: jax.Array
    bias: jax.Array
    objective: jax.Array
    gradient_norm: jax.Array
    iterations: jax.Array


@jax.jit
def principal_axes(features: jax.Array) -> PrincipalAxes:
    """Turns features [N, D] onto the eigenvectors of their second moments; leaves them alone above 4,096 dimensions."""
    count, dimensions = features.shape
    if dimensions > MAX_ROTATED_DIMENSIONS:
        return PrincipalAxes(features, None, jnp.ones(dimensions, features.dtype))
    with jax.default_matmul_precision("highest"):
        variance, axes = jnp.linalg.eigh(features.T @ features / count)  # [D], [D, D]
        return PrincipalAxes(features @ axes, axes, jnp.maximum(variance, 0.0))


def fit_logistic(
    features: Any,
    classes: Any,
    *,
    class_count: int,
    l2: float,
    row_weights: Any = None,
    start: LogisticFit | None = None,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
) -> LogisticFit:
    """The weights and bias that minimise the objective at the top of this file.

    Args:
        features: [N, D] floating, well scaled (standardise them first); for several fits of the same what this file's
            `principal_axes` makes of them, once.
        classes: [N] int32 in [0, class_count).
        class_count: at least 2.
        l2: > 0.
        row_weights: [N] ≥ 0, not all 0; normalised to add up to 1. A row of weight 0 takes no part.
        start: an optimum for another `l2` or other rows, to start from; zeros by default.
        tolerance: stop when `gradient_norm` is at most this. In float32 about 1e-5 can be reached.
        max_iterations: the most that are done; `gradient_norm` tells whether they were enough.

    Example:
        >>> import jax.numpy as jnp
        >>> fit = fit_logistic(jnp.array([[-1.0], [1.0]]), jnp.array([0, 1]), class_count=2, l2=0.1)
        >>> bool(fit.weights[0, 1] > 0)
        True
    """
    if not isinstance(features, PrincipalAxes):
        features = principal_axes(jnp.asarray(features))
    (count, dimensions), dtype = features.x.shape, features.x.dtype
    if start is None:
        weights, bias = jnp.zeros((dimensions, class_count), dtype), jnp.zeros(class_count, dtype)  # [D, K], [K]
    else:
        weights, bias = start.weights, start.bias
    rows = jnp.ones(count, dtype) if row_weights is None else jnp.asarray(row_weights, dtype)  # [N]
    with jax.default_matmul_precision("highest"), standard_promotion():
        return _solve(
            features, jnp.asarray(classes), rows / jnp.sum(rows), l2, weights, bias, tolerance, max_iterations
        )


@jax.jit
def _solve(features, classes, rows, l2, weights, bias, tolerance, max_iterations) -> LogisticFit:
    """L-BFGS in V, where Wᵀ = V · diag(scale) · axesᵀ makes the objective about equally curved in all directions.

    Classes come first, [K, D] and [K, N]: XLA on a CPU computes the gradient's product four times faster that way.
    """
    x, axes, variance = features
    scale = jax.lax.rsqrt(CURVATURE * variance + l2)  # [D]

    def objective(point: tuple[jax.Array, jax.Array]) -> jax.Array:
        turned, bias = point[0] * scale, point[1]  # [K, D], [K]
        logits = jnp.einsum("kd,nd->kn", turned, x) + bias[:, None]  # [K, N]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, classes, axis=0)  # [N]
        return jnp.sum(rows * losses) + 0.5 * l2 * jnp.sum(jnp.square(turned))

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def iterate(carry: tuple) -> tuple:
        point, state, _, iterations = carry
        value, gradient = value_and_grad(point, state=state)  # kept by the line search, not computed again
        updates, state = optimizer.update(gradient, state, point, value=value, grad=gradient, value_fn=objective)
        norm = optax.tree.norm(optax.tree.get(state, "grad"))
        return optax.apply_updates(point, updates), state, norm, iterations + 1

    start = ((weights if axes is None else axes.T @ weights).T / scale, bias)
    norm = optax.tree.norm(jax.grad(objective)(start))
    carry = (start, optimizer.init(start), norm, jnp.int32(0))
    point, _, norm, iterations = jax.lax.while_loop(
        lambda carry: (carry[2] > tolerance) & (carry[3] < max_iterations), iterate, carry
    )
    turned = (point[0] * scale).T  # [D, K]
    return LogisticFit(turned if axes is None else axes @ turned, point[1], objective(point), norm, iterations)
