"""How augmentations are put together: one after another, with a probability, in a random order.

An augmentation is a function `(key, image) -> image`. Nothing here knows what an image looks like.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from byol_jax.augment.checks import check_probability
from byol_jax.errors import ConfigurationError

__all__ = ["AugmentFn", "compose", "draw", "happens", "in_order", "in_random_order", "scale_to", "with_probability"]

AugmentFn = Callable[[jax.Array, jax.Array], jax.Array]


def compose(*functions: AugmentFn) -> AugmentFn:
    """One augmentation from several, applied left to right, each with a key of its own.

    `compose(f, g)(key, image) = g(key_2, f(key_1, image))` with `key_1, key_2 = split(key, 2)`. Without functions it
    is the identity. A function with options becomes one of `(key, image)` through `functools.partial`.

    Raises:
        ConfigurationError: one of the functions isn't callable.

    Example:
        >>> compose(lambda key, image: image + 1, lambda key, image: 2 * image)(jax.random.key(0), jnp.ones(())).item()
        4.0
    """
    for position, function in enumerate(functions):
        if not callable(function):
            raise ConfigurationError(
                f"compose: argument {position} must be a function (key, image) -> image, got {function!r}"
            )

    def apply_all(key: jax.Array, image: jax.Array) -> jax.Array:
        for position, function in enumerate(functions):
            image = function(jax.random.fold_in(key, position), image)
        return image

    return apply_all


def with_probability(function: AugmentFn, *, p: float) -> AugmentFn:
    """The augmentation applied with probability `p`, else the image as it came. Shape and dtype must stay the same.

    Both outcomes are computed and one is chosen: under `vmap` a branch would be computed for every image anyway.

    Raises:
        ConfigurationError: `p` isn't in [0, 1].

    Example:
        >>> with_probability(lambda key, image: 1 - image, p=1.0)(jax.random.key(0), jnp.zeros((1, 1, 1))).item()
        1.0
    """
    check_probability("with_probability", p)

    def choose(key: jax.Array, image: jax.Array) -> jax.Array:
        key_chance, key_function = jax.random.split(key)
        return jnp.where(happens(key_chance, p), function(key_function, image), image)

    return choose


def happens(key: jax.Array, p: float) -> jax.Array:
    """A boolean that is true with probability `p`; certain at 1, impossible at 0."""
    return jax.random.uniform(key, dtype=jnp.float32) < p


def draw(key: jax.Array, bounds: tuple[float, float], dtype: Any) -> jax.Array:
    """A uniform number in `[low, high)`, drawn in float32 whatever `dtype`, so that a key means one view."""
    return jax.random.uniform(key, (), jnp.float32, *bounds).astype(dtype)


def scale_to(bounds: tuple[float, float], numbers: jax.Array) -> jax.Array:
    """Uniform numbers in [0, 1) moved to `[low, high)`."""
    return bounds[0] + (bounds[1] - bounds[0]) * numbers


def in_random_order(
    key: jax.Array,
    image: jax.Array,
    *,
    apply_cheap: Callable[[jax.Array, jax.Array], jax.Array],
    count: int,
    apply_costly: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """`count` cheap operations and at most one costly one, all orders equally likely. See `in_order`."""
    key_order, key_place = jax.random.split(key)
    orders = jnp.asarray(list(itertools.permutations(range(count))), jnp.int32)  # [count!, count]
    order = orders[jax.random.randint(key_order, (), 0, len(orders), jnp.int32)]
    place = jax.random.randint(key_place, (), 0, count + 1, jnp.int32)
    return in_order(order, place, image, apply_cheap=apply_cheap, apply_costly=apply_costly)


def in_order(
    order: jax.Array,
    place: jax.Array,
    image: jax.Array,
    *,
    apply_cheap: Callable[[jax.Array, jax.Array], jax.Array],
    apply_costly: Callable[[jax.Array], jax.Array] | None,
) -> jax.Array:
    """Applies `apply_cheap(kind, image)` for each kind in `order`, and `apply_costly(image)` before the `place`-th.

    The order is data, not control flow, so it may differ from image to image under `vmap`. A switch per position would
    there compute every operation at every position: 4 x 4 for torchvision's colour jitter. Here each cheap operation
    has a slot before and a slot after the costly one, of which one is used: 2 x 3 cheap ones and the costly one once.

    Args:
        order: int32 [count], a permutation.
        place: int32 scalar in [0, count].
    """
    slots = jnp.arange(order.shape[0], dtype=jnp.int32)
    if apply_costly is None:
        return _apply(order, slots >= 0, image, apply_cheap=apply_cheap)
    image = _apply(order, slots < place, image, apply_cheap=apply_cheap)
    return _apply(order, slots >= place, apply_costly(image), apply_cheap=apply_cheap)


def _apply(
    order: jax.Array, used: jax.Array, image: jax.Array, *, apply_cheap: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """The cheap operations of the slots that are used.

    A scan, because its carry is computed once. In an unrolled chain XLA's CPU compiler computes an operation anew for
    each use of its result, and a mean over the image is one more use: four times as slow for 64 images of 64 px.
    """
    if not order.shape[0]:
        return image

    def slot(pixels: jax.Array, kind_and_used: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        kind, is_used = kind_and_used
        return jnp.where(is_used, apply_cheap(kind, pixels), pixels), None

    return jax.lax.scan(slot, image, (order, used))[0]
