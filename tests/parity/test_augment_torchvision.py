"""Every deterministic augmentation against torchvision on float tensors; the random ones against its distributions."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

from byol_jax import augment
from byol_jax.augment import chain, color, geometry

COLOR = 2e-6  # float32: a handful of roundings, and means summed in another order
RESAMPLE = 1e-5  # a position near 200 px is rounded to about that; measured 6e-6
PHOTO = (150, 200)


def picture(seed, height=23, width=31, channels=3):
    return np.random.default_rng(seed).uniform(size=(height, width, channels)).astype(np.float32)


def to_torch(image):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))


def from_torch(tensor):
    return np.moveaxis(tensor.numpy(), 0, -1)


def assert_close(ours, theirs, tolerance):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_blends(name, channels):
    ours, theirs = jax.jit(getattr(augment, f"adjust_{name}")), getattr(F, f"adjust_{name}")
    for seed, factor in enumerate([0.0, 0.2, 0.93, 1.0, 1.8, 5.0]):
        image = picture(seed, channels=channels)
        assert_close(ours(image, factor), from_torch(theirs(to_torch(image), factor)), COLOR)


@pytest.mark.parametrize("channels", [1, 3])
def test_hue(channels):
    ours = jax.jit(augment.adjust_hue)
    for seed, delta in enumerate([-0.5, -0.21, 0.0, 0.05, 0.2, 0.5]):
        image = picture(seed, channels=channels)
        assert_close(ours(image, delta), from_torch(F.adjust_hue(to_torch(image), delta)), COLOR)


def test_hue_of_the_corners_and_edges_of_the_colour_cube():
    levels = np.array(list(itertools.product([0.0, 0.25, 0.5, 1.0], repeat=3)), np.float32)[None]  # [1, 64, 3]
    ours = jax.jit(augment.adjust_hue)
    for delta in (-0.4, -1 / 6, 0.0, 1 / 3, 0.47):
        assert_close(ours(levels, delta), from_torch(F.adjust_hue(to_torch(levels), delta)), COLOR)


@pytest.mark.parametrize("channels", [1, 3])
def test_grayscale(channels):
    image = picture(0, channels=channels)
    theirs = F.rgb_to_grayscale(to_torch(image), num_output_channels=channels)
    assert_close(augment.grayscale(image), from_torch(theirs), 1e-7)


def test_solarize_inverts_from_the_threshold_itself():
    image = np.linspace(0, 1, 33, dtype=np.float32).reshape(3, 11, 1)  # holds 0.25, 0.5 and 1 exactly
    for threshold in (0.0, 0.25, 0.5, 1.0):
        theirs = from_torch(F.solarize(to_torch(image), threshold))
        np.testing.assert_array_equal(augment.solarize(image, threshold), theirs)


def test_flip():
    image = picture(0)
    np.testing.assert_array_equal(augment.flip_left_right(image), from_torch(F.horizontal_flip(to_torch(image))))


def test_gamma():
    for seed, gamma in enumerate([0.6, 1.0, 1.64]):
        image = picture(seed)
        image[0, 0] = 0
        assert_close(augment.adjust_gamma(image, gamma), from_torch(F.adjust_gamma(to_torch(image), gamma)), COLOR)


@pytest.mark.parametrize(("kernel_size", "channels"), [(1, 3), (3, 1), (9, 5), (23, 3)])
def test_blur(kernel_size, channels):
    ours = jax.jit(partial(augment.gaussian_blur, kernel_size=kernel_size))
    for seed, sigma in enumerate([0.1, 0.8, 2.0, 9.0]):
        image = picture(seed, 13, 17, channels)
        theirs = from_torch(F.gaussian_blur(to_torch(image), [kernel_size] * 2, [sigma] * 2))
        assert_close(ours(image, sigma), theirs, COLOR)


@st.composite
def boxes(draw):
    height, width = draw(st.integers(1, PHOTO[0])), draw(st.integers(1, PHOTO[1]))
    return draw(st.integers(0, PHOTO[0] - height)), draw(st.integers(0, PHOTO[1] - width)), height, width


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (20, 45)])
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_crop_and_resize(method, size):
    interpolation = {"bilinear": F.InterpolationMode.BILINEAR, "bicubic": F.InterpolationMode.BICUBIC}[method]
    image = picture(0, *PHOTO)
    tensor = to_torch(image)
    ours = jax.jit(partial(augment.crop_and_resize, image, size=size, method=method))

    @settings(max_examples=60, deadline=None, derandomize=True)
    @example((0, 0, *PHOTO))
    @given(boxes())
    def check(box):
        theirs = F.resized_crop(tensor, *box, list(size), interpolation=interpolation, antialias=True)
        assert_close(ours(jnp.asarray(box)), from_torch(theirs), RESAMPLE)

    check()


def test_crop_of_the_size_asked_for_is_a_plain_slice():
    image = picture(0, 40, 50)
    ours = jax.jit(partial(augment.crop_and_resize, size=(20, 30)))(image, jnp.asarray((3, 7, 20, 30)))
    np.testing.assert_array_equal(ours, image[3:23, 7:37])


def test_every_order_of_the_jitter():
    image = picture(1)
    factors = {0: 0.6, 1: 1.7, 2: 0.4}
    theirs_by_kind = {0: F.adjust_brightness, 1: F.adjust_contrast, 2: F.adjust_saturation}

    @jax.jit
    def ours(order, place):
        def cheap(kind, pixels):
            return color._blend(pixels, color._target(kind, pixels), jnp.asarray(list(factors.values()))[kind])

        return chain.in_order(order, place, jnp.asarray(image), cheap=cheap, dear=lambda x: color.adjust_hue(x, 0.17))

    for order in itertools.permutations(range(4)):  # 3 is hue
        expected = to_torch(image)
        for kind in order:
            factor = factors.get(kind)
            expected = F.adjust_hue(expected, 0.17) if factor is None else theirs_by_kind[kind](expected, factor)
        blends = jnp.asarray([kind for kind in order if kind != 3])
        assert_close(ours(blends, order.index(3)), from_torch(expected), 2 * COLOR)


@pytest.mark.parametrize(
    ("shape", "scale"), [((375, 500), (0.08, 1.0)), ((100, 20), (0.5, 1.0)), ((64, 64), (0.2, 0.9))]
)
def test_boxes_are_distributed_as_theirs(shape, scale):
    count, ratio = 3000, (3 / 4, 4 / 3)
    keys = jax.random.split(jax.random.key(0), count)
    ours = jax.jit(jax.vmap(lambda key: geometry.random_box(key, *shape, scale=scale, ratio=ratio)))(keys)
    ours = np.asarray(ours, np.float64)
    blank = torch.zeros(1, *shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(count)], float)
    for draws in (ours, theirs):
        assert (draws[:, :2] >= 0).all()
        assert (draws[:, 0] + draws[:, 2] <= shape[0]).all()
        assert (draws[:, 1] + draws[:, 3] <= shape[1]).all()
    measures = [lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2]]
    for measure in measures:
        # Kolmogorov and Smirnov's 0.1 % bound for two samples of this size
        assert largest_gap(measure(ours), measure(theirs)) < 1.95 * np.sqrt(2 / count)


def largest_gap(first, second):
    """Of the two empirical distribution functions."""
    at = np.concatenate([first, second])
    share = [np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (first, second)]
    return np.abs(share[0] - share[1]).max()


def test_fallback_box_is_theirs():
    scale, ratio = [4.0, 4.0], (3 / 4, 4 / 3)  # four times the image: no attempt fits
    for shape in [(100, 10), (7, 90), (30, 30), (40, 30), (31, 40), (1, 1), (5, 100)]:
        theirs = RandomResizedCrop.get_params(torch.zeros(1, *shape), scale, list(ratio))
        assert geometry._central_box(*shape, ratio) == theirs
