"""Every random twin draws from its stated distribution: recovered from its outputs, many draws at a fixed key.

Each statistic would also tell a range or a probability 5 % off: see `augment_statistics`.
"""

import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from augment_statistics import (
    check_equally_likely,
    check_share,
    check_uncorrelated,
    check_uniform,
    gap_limit,
    two_sample_gap,
)
from torchvision.transforms import RandomResizedCrop

from byol_jax import augment
from byol_jax.augment import chain, geometry

COUNT = 40_000
MANY = 200_000  # to tell 0.1 from 0.105
RATIO = (3 / 4, 4 / 3)


def drawn(function, image, count=COUNT, seed=0):
    """[count, ...]: the function's outputs for one image and `count` keys."""
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(function, in_axes=(0, None)))(keys, jnp.asarray(image)), np.float64)


def row(*pixels):
    """An image one pixel high; a number is a pixel of one channel."""
    return np.asarray([[np.atleast_1d(pixel) for pixel in pixels]], np.float32)


@pytest.mark.slow
def test_jitters_factors_and_hue():
    brightness = drawn(partial(augment.color_jitter, brightness=0.6), row(0.5))[:, 0, 0, 0] / 0.5
    check_uniform(brightness, 0.4, 1.6)
    contrast = np.diff(drawn(partial(augment.color_jitter, contrast=0.6), row(0.25, 0.75))[:, 0, :, 0]) / 0.5
    check_uniform(contrast, 0.4, 1.6)
    saturation = np.ptp(drawn(partial(augment.color_jitter, saturation=0.6), row((0.4, 0.5, 0.6)))[:, 0, 0], axis=1)
    check_uniform(saturation / 0.2, 0.4, 1.6)
    turned = drawn(partial(augment.color_jitter, hue=0.1), row((1, 0, 0)))[:, 0, 0]  # green, or blue, is 6 |delta|
    check_uniform((turned[:, 1] - turned[:, 2]) / 6, -0.1, 0.1)


@pytest.mark.slow
def test_a_strength_above_1_begins_at_0():
    """torchvision's max(0, 1 - strength): the factors are uniform in [0, 2.5], and none is cut off to black."""
    factors = drawn(partial(augment.color_jitter, brightness=1.5), row(0.4))[:, 0, 0, 0] / 0.4
    check_uniform(factors, 0.0, 2.5)


@pytest.mark.slow
def test_blurs_sigma():
    """The neighbours of a single bright pixel are exp(-1 / (2 sigma^2)) of it; default range and one of its own."""
    spot = np.zeros((5, 5, 1), np.float32)
    spot[2, 2] = 1
    for options, bounds in (({}, (0.1, 2.0)), ({"sigma": (1.0, 2.0)}, (1.0, 2.0))):
        views = drawn(partial(augment.random_gaussian_blur, kernel_size=3, **options), spot, 100_000)[..., 0]
        check_uniform(np.sqrt(-0.5 / np.log(views[:, 2, 1] / views[:, 2, 2])), *bounds)


PROBABILITIES = {
    "random_flip_left_right": (augment.random_flip_left_right, 0.5),
    "random_grayscale": (augment.random_grayscale, 0.1),
    "random_solarize": (augment.random_solarize, 0.5),
    "random_cutout": (partial(augment.random_cutout, height=(1.0, 1.0), width=(1.0, 1.0)), 0.5),
    "random_gamma": (partial(augment.random_gamma, p=0.3), 0.3),
    "random_tone_curve": (partial(augment.random_tone_curve, p=0.3), 0.3),
    "solarize with p 0.2": (partial(augment.random_solarize, p=0.2), 0.2),
    "grayscale with p 0.2": (partial(augment.random_grayscale, p=0.2), 0.2),
    "with_probability": (augment.with_probability(lambda key, image: 1 - image, p=0.8), 0.8),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PROBABILITIES))
def test_probabilities(name):
    """Without p: the default's."""
    function, p = PROBABILITIES[name]
    image = row((0.9, 0.2, 0.3), (0.6, 0.1, 0.4))
    check_share((np.abs(drawn(function, image, MANY) - image) > 1e-6).any(axis=(1, 2, 3)), p)


@pytest.mark.slow
def test_probabilities_of_blur_and_crop():
    image = np.random.default_rng(0).uniform(size=(2, 3, 1)).astype(np.float32)
    blur = partial(augment.random_gaussian_blur, kernel_size=3, sigma=(1.0, 2.0), p=0.2)
    crop = partial(augment.random_crop_and_resize, size=(2, 3), scale=(0.1, 0.4), p=0.3)
    for function, p in ((blur, 0.2), (crop, 0.3)):
        check_share((np.abs(drawn(function, image, MANY // 2) - image) > 1e-6).any(axis=(1, 2, 3)), p)


@pytest.mark.slow
def test_gamma_and_tone_curve():
    exponents = np.log(np.log2(1 / drawn(augment.random_gamma, row(0.5))[:, 0, 0, 0]))
    check_uniform(exponents, -0.5, 0.5)
    knots = np.asarray([0.2, 0.4, 0.6, 0.8, 1.0])
    shifts = drawn(augment.random_tone_curve, row(*knots))[:, 0, :, 0] - knots
    for place in range(5):
        check_uniform(shifts[:, place], -0.3, 0.3)
        check_uncorrelated(shifts[:, place], shifts[:, (place + 1) % 5])


@pytest.mark.slow
def test_cutouts_sides_and_centre():
    """On a column one pixel wide; a patch whose centre is in the middle half is whole, whatever its height."""
    column = np.ones((500, 1, 1), np.float32)
    cut = drawn(partial(augment.random_cutout, p=1.0, width=(1.0, 1.0)), column, 40_000)[:, :, 0, 0] == 0
    black = cut.sum(axis=1)
    centre = (cut * (np.arange(500) + 0.5)).sum(axis=1) / black / 500
    inner = np.abs(centre - 0.5) < 0.25
    check_uniform(black[inner] / 500, 0.2, 0.5)
    check_uniform(centre[inner], 0.25, 0.75)


@pytest.mark.slow
def test_orders_of_three_cheap_operations_and_a_dear_one():
    """Each operation appends its digit in base 10: the number spells the order."""

    def spell(key, number):
        return chain.in_random_order(
            key,
            number,
            apply_cheap=lambda kind, so_far: 10 * so_far + kind + 1,
            count=3,
            apply_costly=lambda x: 10 * x + 9,
        )

    check_equally_likely(drawn(spell, np.int32(0), 48_000), 24)


@cache
def random_boxes(shape, scale, ratio=RATIO, count=12_000):
    keys = jax.random.split(jax.random.key(1), count)
    boxes = jax.jit(jax.vmap(lambda key: geometry.random_box(key, *shape, scale=scale, ratio=ratio)))(keys)
    return np.asarray(boxes, np.float64)


@pytest.mark.slow
def test_boxes_that_always_fit():
    """Area uniform, ratio log-uniform, place uniform, and none tells about another."""
    boxes = random_boxes((4000, 4000), (0.1, 0.5), count=COUNT)
    area, ratio = boxes[:, 2] * boxes[:, 3] / 4000**2, np.log(boxes[:, 3] / boxes[:, 2])
    check_uniform(area, 0.1, 0.5)
    check_uniform(ratio, math.log(RATIO[0]), math.log(RATIO[1]))
    places = [boxes[:, side] / (4001 - boxes[:, side + 2]) for side in (0, 1)]
    for place in places:
        check_uniform(place, 0, 1)
        check_uncorrelated(place, area)
        check_uncorrelated(place, ratio)
    check_uncorrelated(*places)
    check_uncorrelated(area, ratio)


MEASURES = {
    "top": lambda boxes: boxes[:, 0],
    "left": lambda boxes: boxes[:, 1],
    "area": lambda boxes: boxes[:, 2] * boxes[:, 3],
    "ratio": lambda boxes: boxes[:, 3] / boxes[:, 2],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "scale"), [((375, 500), (0.08, 1.0)), ((100, 40), (0.3, 1.0)), ((64, 64), (0.2, 0.9))]
)
def test_boxes_are_distributed_as_torchvisions(shape, scale):
    """With rejections and the fallback, which many of the 100 x 40 pictures' boxes come to."""
    count, blank = 12_000, torch.zeros(1, *shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), list(RATIO)) for _ in range(count)], float)
    limit = gap_limit(count) * np.sqrt(2)
    ours = random_boxes(shape, scale)
    for draws in (ours, theirs):
        assert (draws[:, :2] >= 0).all()
        assert (draws[:, :2] + draws[:, 2:] <= shape).all()
    for name, measure in MEASURES.items():
        assert two_sample_gap(measure(ours), measure(theirs)) < limit, name


@pytest.mark.slow
def test_boxes_of_a_range_5_percent_off_would_show():
    shape, scale = (64, 64), (0.2, 0.9)
    limit, right = gap_limit(12_000) * np.sqrt(2), random_boxes(shape, scale)
    wrong = random_boxes(shape, (scale[0] + 0.05 * (scale[1] - scale[0]), scale[1]))
    assert two_sample_gap(MEASURES["area"](wrong), MEASURES["area"](right)) > limit
    wrong = random_boxes(shape, scale, (RATIO[0] * 1.05, RATIO[1] * 1.05))
    assert two_sample_gap(MEASURES["ratio"](wrong), MEASURES["ratio"](right)) > limit


@pytest.mark.slow
def test_random_crop_is_the_crop_of_a_random_box():
    image = np.random.default_rng(0).uniform(size=(20, 30, 1)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def both(key):
        box = geometry.random_box(jax.random.split(key)[0], 20, 30, scale=(0.08, 1.0), ratio=RATIO)
        expected = augment.crop_and_resize(image, box, size=(7, 9), method="bicubic")
        return augment.random_crop_and_resize(key, image, size=(7, 9), method="bicubic"), expected

    ours, expected = both(jax.random.split(jax.random.key(2), 500))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
