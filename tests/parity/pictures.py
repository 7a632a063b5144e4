"""Random pictures and parameters for the augmentation oracles, and the largest differences between ours and theirs.

All operations are compiled together, once for each shape of picture, and mapped over pictures and parameters.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
import torch

SHAPES = ((1, 1), (1, 6), (7, 1), (5, 8), (23, 31))


class Operation(NamedTuple):
    """One transform, ours and an oracle's, both of (image [H, W, C], parameter), and how parameters are drawn."""

    ours: Callable
    theirs: Callable
    draw: Callable


def picture(seed, height=23, width=31, channels=3):
    return np.random.default_rng(seed).uniform(size=(height, width, channels)).astype(np.float32)


def pictures(generator, count, shape, channels=3):
    """[count, *shape, channels]: in turn noise, few levels (ties, the cube's corners), nearly grey, one colour."""
    images = generator.uniform(size=(count, *shape, channels))
    images[1::4] = np.round(4 * images[1::4]) / 4
    images[2::4] = np.clip(images[2::4][..., :1] + 0.02 * (images[2::4] - 0.5), 0, 1)
    images[3::4] = images[3::4][:, :1, :1]
    return images.astype(np.float32)


def random_shapes(count, seed):
    """Some of 1 to 48 pixels a side, after SHAPES in the opposite order."""
    sides = np.random.default_rng(seed).integers(1, 49, size=(count - len(SHAPES), 2))
    return [*SHAPES[::-1], *((int(height), int(width)) for height, width in sides)]


def between(low, high):
    """Draws uniform float32 numbers."""
    return lambda generator, count: generator.uniform(low, high, count).astype(np.float32)


def boxes_in(shape):
    """Draws whole boxes (top, left, height, width) in a picture: int32 [count, 4], the first the whole picture."""

    def draw(generator, count):
        sides = generator.integers(1, np.asarray(shape) + 1, size=(count, 2))
        sides[0] = shape
        corners = generator.integers(0, np.asarray(shape) - sides + 1)
        return np.concatenate([corners, sides], axis=1).astype(np.int32)

    return draw


def differences(operations, shape, *, count, seed, channels=3, dtype=np.float32, levels=None):
    """{name: largest |ours - theirs|} over `count` pictures of one shape, each with parameters of its own.

    With `levels` (255) the pictures are multiples of 1 / levels, and differences are counted in that unit.
    """
    generator = np.random.default_rng([seed, *shape, channels])
    images = pictures(generator, count, shape, channels)
    images = (images if levels is None else np.round(levels * images.astype(np.float64)) / levels).astype(dtype)
    parameters = {name: operation.draw(generator, count) for name, operation in operations.items()}

    @jax.jit
    @jax.vmap
    def ours(image, values):
        return {name: operation.ours(image, values[name]) for name, operation in operations.items()}

    largest = {}
    for name, views in ours(images, parameters).items():
        theirs = np.stack(
            [operations[name].theirs(image, value) for image, value in zip(images, parameters[name], strict=True)]
        )
        assert views.shape == theirs.shape, name
        assert views.dtype == dtype, name
        largest[name] = float(np.abs(np.asarray(views, np.float64) - theirs).max()) * (levels or 1)
    return largest


def largest_differences(operations_for, shapes, *, count, **options):
    """{name: largest difference} over all shapes; `operations_for(shape)` gives the operations, or none of them."""
    largest = {}
    for seed, shape in enumerate(shapes):
        for name, difference in differences(operations_for(shape), shape, count=count, seed=seed, **options).items():
            largest[name] = max(largest.get(name, 0.0), difference)
    return largest


def assert_within(largest, tolerances):
    """Every operation of `tolerances` was measured and is within its own."""
    assert set(largest) == set(tolerances)
    beyond = {name: value for name, value in largest.items() if not value <= tolerances[name]}
    assert not beyond, f"{beyond} over {tolerances}"


def in_words(largest):
    """For the table of long tests: `contrast 2.7e-07, ...`, the largest first."""
    ordered = sorted(largest.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {value:.2g}" for name, value in ordered)


def check_many(what, operations_for, shapes, tolerances, figure, *, count=120):
    """`count` pictures of each shape, all within `tolerances`; `figure` gets the largest differences."""
    largest = largest_differences(operations_for, shapes, count=count)
    figure(what, cases=len(shapes) * count, result=f"largest differences: {in_words(largest)}")
    assert_within(largest, tolerances)


def to_torch(image):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))


def from_torch(tensor):
    return np.moveaxis(tensor.numpy(), 0, -1)
