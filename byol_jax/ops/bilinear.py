"""A convolution as three primitives of JAX: the result, the gradient by the images, the gradient by the kernel.

The three are bilinear, and the derivative of each by one of its operands is another of them. As each other's transposes
they give every derivative of any order, forward and reverse, in the forms that a platform computes them in.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from byol_jax.ops.axis import equally_varying

__all__ = ["Compute", "Form", "Shapes", "make_convolution", "with_transposes"]

Compute = Callable[..., jax.Array]
"""Of two arrays and the convolution's parameters."""


class Form(NamedTuple):
    """One way to compute the three; the parameters of the convolution follow as keywords.

    Attributes:
        convolve: of x and kernel.
        input_gradient: of dy and kernel.
        kernel_gradient: of x and dy.
    """

    convolve: Compute
    input_gradient: Compute
    kernel_gradient: Compute


class Shapes(NamedTuple):
    """The shapes of the three, from those of their two operands and the parameters."""

    convolve: Callable[..., tuple[int, ...]]
    input_gradient: Callable[..., tuple[int, ...]]
    kernel_gradient: Callable[..., tuple[int, ...]]


def with_transposes(convolve: Compute, shapes: Shapes) -> Form:
    """A form that is written once: its gradients are its transposes."""

    def input_gradient(dy: jax.Array, kernel: jax.Array, **where: Any) -> jax.Array:
        images = _like(dy, shapes.input_gradient(dy.shape, kernel.shape, **where))
        return jax.linear_transpose(lambda x: convolve(x, kernel, **where), images)(dy)[0]

    def kernel_gradient(x: jax.Array, dy: jax.Array, **where: Any) -> jax.Array:
        kernel = _like(x, shapes.kernel_gradient(x.shape, dy.shape, **where))
        return jax.linear_transpose(lambda kernel: convolve(x, kernel, **where), kernel)(dy)[0]

    return Form(convolve, input_gradient, kernel_gradient)


def _like(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Zeros that vary over the same mapped axes as `array`: else the transpose would sum the gradient over devices."""
    return equally_varying(jnp.zeros(shape, array.dtype), array)[0]


def _last(where: dict[str, Any]) -> int:
    return -1


def make_convolution(
    name: str,
    *,
    shapes: Shapes,
    on_cpu: Callable[[int], Form],
    elsewhere: Form,
    fold: Callable[[dict[str, Any], int], dict[str, Any]],
    outputs_axis: Callable[[dict[str, Any]], int] = _last,
) -> Compute:
    """The convolution of x and kernel with the parameters as keywords, which are hashable.

    Args:
        name: of the primitives, before "_convolution", "_input_gradient" and "_kernel_gradient".
        shapes: of the three results; their dtype is the first operand's.
        on_cpu: what computes them, for images that one program spreads over so many devices; 1 also where each device
            has a program of its own (`shard_map`, `pmap`).
        elsewhere: what computes them on other platforms.
        fold: the parameters of so many convolutions in one, their channels side by side.
        outputs_axis: the kernel's axis of output channels, counted from -1 backwards, from the parameters.
    """
    axes = (("images", "kernel", "images"), ("images", "kernel", "images"), ("images", "images", "kernel"))
    near = (lambda devices, which=which: on_cpu(devices)[which] for which in range(3))
    names = (f"{name}_{which}" for which in ("convolution", "input_gradient", "kernel_gradient"))
    convolve, input_gradient, kernel_gradient = (
        _primitive(full_name, shape, own, far, _Batching(kinds, fold, outputs_axis))
        for full_name, kinds, shape, own, far in zip(names, axes, shapes, near, elsewhere, strict=True)
    )
    ad.defbilinear(
        convolve,
        lambda dy, x, kernel, **where: input_gradient.bind(dy, kernel, **where),
        lambda dy, x, kernel, **where: kernel_gradient.bind(x, dy, **where),
    )
    ad.defbilinear(
        input_gradient,
        lambda x, dy, kernel, **where: convolve.bind(x, kernel, **where),
        lambda x, dy, kernel, **where: kernel_gradient.bind(x, dy, **where),
    )
    ad.defbilinear(
        kernel_gradient,
        lambda kernel, x, dy, **where: input_gradient.bind(dy, kernel, **where),
        lambda kernel, x, dy, **where: convolve.bind(x, kernel, **where),
    )
    return lambda x, kernel, **where: convolve.bind(*equally_varying(x, kernel), **where)


class _Batching(NamedTuple):
    """What `jax.vmap` has to know: what the two operands and the result are, "images" or "kernel"; and
    `make_convolution`'s arguments of the same names."""

    kinds: tuple[str, str, str]
    fold: Callable[[dict[str, Any], int], dict[str, Any]]
    outputs_axis: Callable[[dict[str, Any]], int]


def _primitive(
    name: str,
    shape: Callable[..., tuple[int, ...]],
    on_cpu: Callable[[int], Compute],
    elsewhere: Compute,
    batching_of: _Batching,
) -> Primitive:
    """A primitive of two arrays; its derivatives are told apart from it."""
    primitive = Primitive(name)

    @primitive.def_impl
    def run(first: Any, second: Any, **where: Any) -> Any:
        return _run(primitive, tuple(where.items()), first, second)

    @primitive.def_abstract_eval
    def aval(first: Any, second: Any, **where: Any) -> Any:
        return first.update(shape=shape(first.shape, second.shape, **where), weak_type=False)

    mlir.register_lowering(primitive, mlir.lower_fun(elsewhere, multiple_results=False))

    def lower_on_cpu(context: Any, *operands: Any, **where: Any) -> Any:
        devices = getattr(context.module_context.axis_context, "num_devices", 1)
        return mlir.lower_fun(on_cpu(devices), multiple_results=False)(context, *operands, **where)

    mlir.register_lowering(primitive, lower_on_cpu, platform="cpu")

    def batch(operands: Sequence[Any], batch_axes: Sequence[Any], **where: Any) -> tuple[Any, int]:
        """Batches of images with one kernel are more images; else a batch of calls is one with more channels."""
        kinds, fold, outputs_axis = batching_of
        is_shared = kinds[1] == "kernel" and batch_axes[1] is None
        of_images, of_kernel = -4 if is_shared else -1, outputs_axis(where)
        *axes, to = (of_images if kind == "images" else of_kernel for kind in kinds)
        size = next(x.shape[axis] for x, axis in zip(operands, batch_axes, strict=True) if axis is not None)
        if is_shared:
            y = primitive.bind(_merge(operands[0], size, batch_axes[0], axes[0]), operands[1], **where)
        else:
            merged = (_merge(x, size, *both) for x, *both in zip(operands, batch_axes, axes, strict=True))
            y = primitive.bind(*merged, **fold(where, size))
        to += y.ndim
        return y.reshape(*y.shape[:to], size, -1, *y.shape[to + 1 :]), to

    batching.primitive_batchers[primitive] = batch
    return primitive


def _merge(x: Any, size: int, batch_axis: int | None, axis: int) -> Any:
    """A batch of `size` arrays, or one array so many times, side by side on an array's own axis, counted from -1."""
    if batch_axis is None:
        batch_axis, x = 0, jnp.broadcast_to(x, (size, *x.shape))
    to = x.ndim - 1 + axis
    x = jnp.moveaxis(x, batch_axis, to)
    return x.reshape(*x.shape[:to], -1, *x.shape[to + 2 :])


@partial(jax.jit, static_argnums=(0, 1))
def _run(primitive: Primitive, where: tuple[tuple[str, Any], ...], first: Any, second: Any) -> Any:
    return primitive.bind(first, second, **dict(where))
