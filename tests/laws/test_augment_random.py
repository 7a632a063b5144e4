"""Laws of the random twins: how often they act, one key one view, and what they become at p = 0 and 1.

Their distributions are in `test_augment_distributions`.

Bounds are five standard deviations of the binomial, at a fixed key.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import augment
from byol_jax.augment import chain

COUNT = 2000


def picture(shape=(6, 8, 3)):
    return jnp.asarray(np.random.default_rng(0).uniform(0.1, 0.9, size=shape).astype(np.float32))


def keys(count=COUNT, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def drawn(function, image, count=COUNT):
    return np.asarray(jax.jit(jax.vmap(function, in_axes=(0, None)))(keys(count), image))


TWINS = {
    "random_flip_left_right": {},
    "random_grayscale": {},
    "random_solarize": {"threshold": 0.5},
    "random_gaussian_blur": {"kernel_size": 3, "sigma": (0.5, 1.0)},
    "random_crop_and_resize": {"size": (6, 8), "scale": (0.2, 0.5)},
    "random_gamma": {},
    "random_tone_curve": {},
    "random_cutout": {"height": (0.9, 1.0), "width": (0.9, 1.0)},
    "random_flip_up_down": {},
    "random_channel_dropout": {"count": (1, 2)},
    "random_gaussian_noise": {"sigma": (0.1, 0.2)},
}


@pytest.mark.parametrize("name", sorted(TWINS))
def test_twins_act_as_often_as_asked(name):
    image = picture()
    views = drawn(partial(getattr(augment, name), p=0.3, **TWINS[name]), image)
    changed = (np.abs(views - np.asarray(image)) > 1e-6).any(axis=(1, 2, 3)).mean()
    assert abs(changed - 0.3) < 5 * np.sqrt(0.3 * 0.7 / COUNT)


@pytest.mark.slow
def test_never_at_0_and_always_at_1():
    image = picture()
    assert not jax.vmap(lambda key: chain.happens(key, 0))(keys()).any()
    assert jax.vmap(lambda key: chain.happens(key, 1))(keys()).all()
    assert (drawn(partial(augment.random_cutout, p=0), image, 50) == np.asarray(image)).all()
    always = drawn(partial(augment.random_cutout, p=1, **TWINS["random_cutout"]), image, 50)
    assert (always == 0).any(axis=(1, 2, 3)).all()


def test_with_probability_and_compose():
    image = picture((2, 2, 1))
    half = augment.with_probability(lambda key, image: image + 1, p=0.5)
    views = drawn(augment.compose(half, half), image)
    times = np.round((views - np.asarray(image)).mean(axis=(1, 2, 3))).astype(int)
    shares = np.bincount(times, minlength=3) / COUNT  # independent keys: 1/4, 1/2, 1/4
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=5 * np.sqrt(0.25 / COUNT))


def test_jitter_without_strength_is_the_identity():
    image = picture()
    np.testing.assert_array_equal(augment.color_jitter(jax.random.key(0), image), image)


def test_cutout_covers_what_it_says():
    ones = jnp.ones((20, 30, 1))
    views = drawn(partial(augment.random_cutout, p=1.0, height=(0.2, 0.5), width=(0.1, 0.1)), ones)
    black = views[..., 0] == 0
    heights, widths = black.any(axis=2).sum(axis=1), black.any(axis=1).sum(axis=1)
    assert heights.max() <= 10
    assert widths.max() <= 3
    inner = black[:, 5:15].any(axis=(1, 2))  # a centre in the middle half always shows there
    assert inner.mean() > 0.5
    rows = black.any(axis=2).mean(axis=0)  # more often inside than at the border, the same from top and bottom
    assert rows[10] > rows[0] > 0
    np.testing.assert_allclose(rows, rows[::-1], atol=10 * np.sqrt(0.25 / COUNT))


@pytest.mark.slow
def test_one_key_means_one_view_in_either_precision():
    image = np.asarray(picture((24, 20, 3)))
    for view in (augment.simclr(12), augment.byol(12, view=2), augment.small_grey(12), augment.multichannel(12)):
        view = jax.jit(view)
        for key in keys(4):
            narrow = view(key, image)
            with jax.enable_x64(True):
                wide = view(key, image.astype(np.float64))
            assert wide.dtype == np.float64
            np.testing.assert_allclose(narrow, wide, atol=2e-4)  # a hue near grey amplifies a rounding
