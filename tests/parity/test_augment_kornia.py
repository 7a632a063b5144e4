"""The deterministic augmentations against kornia 0.9, by the mapping of names and parameters under which they agree.

kornia's own names mislead: its `adjust_brightness` adds and its `adjust_contrast` multiplies. Where the conventions
truly differ (weights of grey, antialiasing, the cubic's coefficient) the difference is measured here.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from kornia import color as kornia_color
from kornia import enhance, filters
from kornia.geometry import transform

from byol_jax import augment
from byol_jax.augment import color, paper
from tests.parity.pictures import (
    SHAPES,
    Operation,
    assert_within,
    between,
    boxes_in,
    check_many,
    from_torch,
    largest_differences,
    picture,
    pictures,
    random_shapes,
    to_torch,
)

GREY = 1e-4  # 0.2989 against 0.299 for red, at most; contrast and saturation multiply it by |1 - factor|


def on_batches(function):
    """kornia's function of a batch [1, C, H, W] as one of (image, parameter)."""
    return lambda image, value: from_torch(function(to_torch(image)[None], float(value))[0])


def kornia_grey(weights=None):
    return lambda batch, _: kornia_color.rgb_to_grayscale(batch, weights).expand_as(batch)


def upsampled(image, box, size):
    top, left, height, width = map(int, box)
    cut = to_torch(image)[None, :, top : top + height, left : left + width]
    return from_torch(transform.resize(cut, size, "bilinear", align_corners=False)[0])


def operations_for(shape):
    """Ours and kornia's, for pictures of one shape; enlarging only, where antialiasing has nothing to do."""
    kernel_size = min(9, 2 * min(shape) - 1)
    size = (shape[0] + shape[1] % 4, 2 * shape[1] + 1)
    like_torchvision = {
        "adjust_brightness": (augment.adjust_brightness, enhance.adjust_brightness_accumulative, (0, 3)),
        "adjust_contrast": (augment.adjust_contrast, enhance.adjust_contrast_with_mean_subtraction, (0, 3)),
        "adjust_saturation": (augment.adjust_saturation, enhance.adjust_saturation_with_gray_subtraction, (0, 3)),
        "adjust_hue": (augment.adjust_hue, lambda batch, d: enhance.adjust_hue(batch, 2 * math.pi * d), (-0.5, 0.5)),
        "adjust_gamma": (augment.adjust_gamma, enhance.adjust_gamma, (0.5, 2)),
        "solarize": (augment.solarize, enhance.solarize, (0, 1)),
        "grayscale": (lambda image, _: augment.grayscale(image), kornia_grey(), (0, 1)),
        "grayscale by our weights": (
            lambda image, _: augment.grayscale(image),
            kornia_grey(torch.tensor(color.LUMA_WEIGHTS, dtype=torch.float64)),
            (0, 1),
        ),
        "flip_left_right": (lambda image, _: augment.flip_left_right(image), lambda b, _: transform.hflip(b), (0, 1)),
        "gaussian_blur": (
            partial(augment.gaussian_blur, kernel_size=kernel_size),
            lambda batch, sigma: filters.gaussian_blur2d(batch, kernel_size, (sigma, sigma), "reflect"),
            (0.1, 3),
        ),
    }
    like_the_paper = {
        "add_brightness": (paper.add_brightness, enhance.adjust_brightness, (-0.9, 0.9)),
        "scale_hsv_saturation": (paper.scale_hsv_saturation, enhance.adjust_saturation, (0, 3)),
        "blur_zero_padded": (
            partial(paper.blur_zero_padded, radius=4),
            lambda batch, sigma: filters.gaussian_blur2d(batch, 9, (sigma, sigma), "constant"),
            (0.1, 3),
        ),
    }
    operations = {
        name: Operation(ours, on_batches(theirs), between(*bounds))
        for name, (ours, theirs, bounds) in (like_torchvision | like_the_paper).items()
    }
    operations["enlarging"] = Operation(
        partial(augment.crop_and_resize, size=size), partial(upsampled, size=size), boxes_in(shape)
    )
    return operations


TOLERANCES = {  # measured on 20 shapes, 120 pictures each; see docs/long.md
    "adjust_brightness": 0,
    "adjust_contrast": 2 * GREY + 1e-6,  # factors up to 3
    "adjust_saturation": 2 * GREY + 1e-6,
    "adjust_hue": 2e-6,
    "adjust_gamma": 1e-6,
    "solarize": 0,
    "grayscale": GREY + 1e-7,
    "grayscale by our weights": 2e-7,
    "flip_left_right": 0,
    "gaussian_blur": 1e-6,
    "add_brightness": 0,
    "scale_hsv_saturation": 5e-7,
    "blur_zero_padded": 1e-6,
    "enlarging": 6e-6,
}


@pytest.mark.slow
def test_shapes_and_parameters():
    assert_within(largest_differences(operations_for, SHAPES[::2], count=8), TOLERANCES)


@pytest.mark.slow
def test_float64_shows_that_only_rounding_and_grey_differ():
    """kornia adds 1e-8 to divisors of saturation, hue's included."""
    exact = dict.fromkeys(TOLERANCES, 1e-14)
    grey = {name: TOLERANCES[name] for name in ("adjust_contrast", "adjust_saturation", "grayscale")}
    epsilon = dict.fromkeys(("adjust_hue", "scale_hsv_saturation"), 4e-8)
    with jax.enable_x64(True):
        largest = largest_differences(operations_for, SHAPES[2:4], count=8, dtype=np.float64)
    assert_within(largest, exact | grey | epsilon)


@pytest.mark.slow
def test_contrast_and_saturation_differ_by_the_weights_of_grey_alone():
    """With kornia's weights in place of ours they agree: the blend itself is the same."""
    image, factor = picture(3), 2.5
    weights = torch.tensor(color.LUMA_WEIGHTS)
    grey = from_torch(kornia_color.rgb_to_grayscale(to_torch(image), weights))
    for ours, other in ((augment.adjust_saturation, grey), (augment.adjust_contrast, grey.mean())):
        expected = np.clip(factor * image + (1 - factor) * other, 0, 1)
        np.testing.assert_allclose(ours(image, factor), expected, atol=1e-6)


@pytest.mark.slow
def test_where_resizing_differs_and_by_how_much():
    """On noise: kornia's bicubic has a = -0.75, and it blurs by a Gaussian of its own before it makes smaller."""
    image = pictures(np.random.default_rng(0), 1, (24, 24))[0]

    def difference(size, method, antialias):
        ours = augment.crop_and_resize(image, (0, 0, 24, 24), size=size, method=method)
        theirs = transform.resize(to_torch(image), size, method, align_corners=False, antialias=antialias)
        return np.abs(np.asarray(ours) - from_torch(theirs)).max()

    measured = {
        (larger, method): difference((36, 36) if larger else (9, 9), method, antialias=not larger)
        for larger in (True, False)
        for method in ("bilinear", "bicubic")
    }
    assert measured[True, "bilinear"] < 1e-6
    assert 0.02 < measured[True, "bicubic"] < 0.1
    assert 0.05 < measured[False, "bilinear"] < 0.3
    assert 0.05 < measured[False, "bicubic"] < 0.4


def test_contrast_by_kornias_short_name_is_our_brightness():
    image = picture(0, 4, 5)
    theirs = from_torch(enhance.adjust_contrast(to_torch(image), 1.7))
    np.testing.assert_array_equal(augment.adjust_brightness(jnp.asarray(image), 1.7), theirs)


@pytest.mark.long
def test_many_shapes_and_parameters(share, figure):
    shapes = share(random_shapes(20, seed=1))
    check_many("augmentations beside kornia's, float32", operations_for, shapes, TOLERANCES, figure)
