"""Laws of the three sets, and the values that the paper's own operations are known to give."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import augment
from byol_jax.augment import paper

SETS = {
    "simclr": augment.simclr,
    "byol 1": partial(augment.byol, view=1),
    "byol 2": partial(augment.byol, view=2),
    "small_grey": augment.small_grey,
    "multichannel": augment.multichannel,
}

COMPILED = [*sorted(set(SETS) - {"multichannel"}), pytest.param("multichannel", marks=pytest.mark.slow)]

COUNT = 8
SIZE = (16, 40)  # smaller than the pictures one way, larger the other


def pictures(channels=3):
    return np.random.default_rng(0).uniform(size=(COUNT, 30, 26, channels)).astype(np.float32)


def keys(count=COUNT, seed=1):
    return jax.random.split(jax.random.key(seed), count)


@cache
def batched(name):
    return jax.jit(jax.vmap(SETS[name](SIZE)))


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("name", sorted(SETS))
def test_shapes(name, channels):
    for dtype in (jnp.float32, jnp.bfloat16):
        views = jax.eval_shape(batched(name), keys(), pictures(channels).astype(dtype))
        assert views.shape == (COUNT, *SIZE, channels)
        assert views.dtype == dtype


@pytest.mark.parametrize("channels", [3, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        "simclr",
        "small_grey",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("byol 1", "byol 2", "multichannel")),
    ],
)
def test_range(name, channels):
    views = batched(name)(keys(), pictures(channels))
    low, high = (-0.3, 1.3) if name == "small_grey" else (0, 1)
    assert views.min() >= low - 1e-6
    assert views.max() <= high + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SETS))
def test_vmap_is_a_loop(name):
    views, single = batched(name)(keys(), pictures()), jax.jit(SETS[name](SIZE))
    for key, image, expected in zip(keys(), pictures(), views, strict=True):
        np.testing.assert_allclose(single(key, image), expected, atol=2e-4)  # a hue near grey amplifies a rounding


@pytest.mark.parametrize("name", COMPILED)
def test_each_image_has_its_own_randomness(name):
    same = np.broadcast_to(pictures()[:1], (COUNT, 30, 26, 3))
    views = np.asarray(batched(name)(keys(), same)).reshape(COUNT, -1)
    distances = np.abs(views[:, None] - views[None]).max(axis=-1)
    assert (distances[~np.eye(COUNT, dtype=bool)] > 1e-3).all()
    np.testing.assert_array_equal(np.asarray(batched(name)(keys(), same)).reshape(COUNT, -1), views)


@pytest.mark.parametrize("name", COMPILED)
def test_constant_images_never_give_nan(name):
    for seed, level in enumerate([0.0, 0.5, 1.0]):
        for offset in range(5):
            views = batched(name)(keys(seed=10 * seed + offset), np.full((COUNT, 30, 26, 3), level, np.float32))
            assert np.isfinite(views).all()


@pytest.mark.parametrize(("sigma", "edge", "corner"), [(2.0, 0.600, 0.360), (1.0, 0.699, 0.489)])
def test_paper_blur_darkens_borders(sigma, edge, corner):
    blurred = paper.blur_zero_padded(jnp.ones((224, 224, 1)), sigma, radius=11)[..., 0]
    assert blurred[0, 112] == pytest.approx(edge, abs=5e-4)
    assert blurred[0, 0] == pytest.approx(corner, abs=5e-4)
    np.testing.assert_allclose(blurred[11:-11, 11:-11], 1, atol=1e-6)
    assert blurred[6, 112] > 0.99


def test_paper_colour_of_one_pixel():
    pixel = jnp.asarray([[[0.2, 0.5, 0.7]]])
    np.testing.assert_allclose(paper.scale_hsv_saturation(pixel, 1.2)[0, 0], [0.10, 0.46, 0.70], atol=1e-6)
    np.testing.assert_allclose(augment.adjust_hue(pixel, 0.1)[0, 0], [0.2, 0.2, 0.7], atol=1e-6)
    np.testing.assert_allclose(augment.adjust_saturation(pixel, 1.2)[0, 0], [0.1534, 0.5134, 0.7534], atol=5e-5)


def test_paper_saturation_is_that_of_hsv():
    import colorsys

    image = pictures()[0]
    for factor in (0.0, 0.8, 1.2, 3.0):
        ours = np.asarray(paper.scale_hsv_saturation(image, factor))
        for place in [(0, 0), (3, 9), (29, 25)]:
            hue, saturation, value = colorsys.rgb_to_hsv(*map(float, image[place]))
            expected = colorsys.hsv_to_rgb(hue, min(factor * saturation, 1), value)
            np.testing.assert_allclose(ours[place], expected, atol=1e-6)


def test_paper_contrast_is_per_channel_and_brightness_is_added():
    image = pictures()[0]
    mean = image.mean(axis=(0, 1))
    np.testing.assert_allclose(
        paper.scale_channel_contrast(image, 1.3), np.clip(1.3 * (image - mean) + mean, 0, 1), atol=1e-6
    )
    np.testing.assert_allclose(paper.add_brightness(image, -0.3), np.clip(image - np.float32(0.3), 0, 1), atol=1e-6)


def test_paper_crop_is_bicubic_without_antialiasing():
    image = jnp.asarray(pictures()[0])
    crop = jax.jit(partial(paper.crop_bicubic, size=(14, 14)))
    for box in [(0, 0, 30, 26), (3, 5, 20, 12), (9, 2, 5, 21)]:
        top, left, height, width = box
        cut = image[top : top + height, left : left + width]
        expected = jax.image.resize(cut, (14, 14, 3), "cubic", antialias=False)
        np.testing.assert_allclose(crop(image, jnp.asarray(box)), jnp.clip(expected, 0, 1), atol=1e-5)


def test_paper_crops_are_clipped_not_redrawn():
    """Mean area and share of large crops at 500 x 375, as simulated from the original: 0.519 and 12.7 %."""
    numbers = jax.random.uniform(jax.random.key(5), (20000, 2))
    sides = jax.vmap(lambda pair: paper.clip_box(pair, 375, 500, area=paper.AREA, log_ratio=paper.LOG_RATIO))(numbers)
    area = np.asarray(sides[0] * sides[1]) / (375 * 500)
    assert area.mean() == pytest.approx(0.519, abs=0.01)
    assert (area > 0.8).mean() == pytest.approx(0.127, abs=0.015)


def test_small_grey_cuts_out_and_solarises():
    """On white: contrast leaves it, brightness and the curve act, cutout is all that gives exact black."""
    white, count = np.ones((28, 28, 1), np.float32), 2000
    views = np.asarray(jax.jit(jax.vmap(augment.small_grey(28), in_axes=(0, None)))(keys(count, 6), white))
    holes = (views == 0).sum(axis=(1, 2, 3))
    cut = holes > 0
    assert abs(cut.mean() - 0.5) < 5 * np.sqrt(0.25 / count)
    assert holes[cut].max() <= 15 * 15
    assert holes[cut].min() >= 3 * 3  # a quarter of the smallest patch, where its centre is a corner
    levels = views.max(axis=(1, 2, 3))
    assert 0.2 < (levels < 0.5).mean() < 0.5
