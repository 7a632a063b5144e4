"""Laws of the augmentations for any channels: each channel by itself, its own draws, one always left, noise as stated.

What they share with all others (jit, vmap, dtypes, ranges, refusals) is in test_augment.py and its neighbours.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from augment_statistics import check_equally_likely, check_share, check_uncorrelated, check_uniform, gap_limit
from scipy import stats
from torchvision.transforms.v2 import functional as F

from byol_jax import augment

COUNT = 40_000
CHANNELS = 13


def picture(seed=0, channels=5):
    return np.random.default_rng(seed).uniform(size=(9, 12, channels)).astype(np.float32)


def drawn(function, image, count=COUNT, seed=0):
    """[count, ...]: the function's outputs for one image and `count` keys."""
    keys = jax.random.split(jax.random.key(seed), count)
    return np.asarray(jax.jit(jax.vmap(function, in_axes=(0, None)))(keys, jnp.asarray(image)), np.float64)


@pytest.mark.parametrize("name", ["brightness", "contrast"])
def test_each_channel_is_torchvisions_grey_image(name):
    image, factors = picture(), np.array([0.0, 0.4, 1.0, 1.7, 5.0], np.float32)
    ours = jax.jit(getattr(augment, f"adjust_channel_{name}"))(image, factors)
    for channel, factor in enumerate(factors):
        grey = torch.from_numpy(image[..., channel].copy())[None]  # [1, H, W]
        theirs = getattr(F, f"adjust_{name}")(grey, float(factor))[0].numpy()
        np.testing.assert_allclose(ours[..., channel], theirs, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_a_channel_knows_nothing_of_the_others():
    """Other numbers in the other channels, the same in this one: also where each step is random."""
    image, other = picture(0), picture(1)
    other[..., 2] = image[..., 2]
    jitter = jax.jit(partial(augment.channel_jitter, brightness=0.4, contrast=0.4))
    dropout = jax.jit(partial(augment.random_channel_dropout, p=1.0, count=(1, 3)))
    for seed in range(20):
        for function in (jitter, dropout, jax.jit(augment.random_gaussian_noise)):
            key = jax.random.key(seed)
            np.testing.assert_array_equal(function(key, image)[..., 2], function(key, other)[..., 2])


@pytest.mark.slow
def test_factors_of_each_channel_are_uniform_and_independent():
    image = np.full((1, 2, 4), 0.5, np.float32)
    factors = drawn(partial(augment.channel_jitter, brightness=0.4), image)[:, 0, 0] / 0.5  # [count, 4]
    image[0, 0], image[0, 1] = 0.25, 0.75
    contrasts = np.diff(drawn(partial(augment.channel_jitter, contrast=0.4), image), axis=2)[:, 0, 0] / 0.5
    for channel in range(4):
        check_uniform(factors[:, channel], 0.6, 1.4)
        check_uniform(contrasts[:, channel], 0.6, 1.4)
        for other in range(channel):
            check_uncorrelated(factors[:, channel], factors[:, other])
            check_uncorrelated(contrasts[:, channel], contrasts[:, other])


@pytest.mark.slow
def test_brightness_and_contrast_come_in_either_order():
    """On levels that one of them clips, the two orders differ, and each comes half of the time."""
    image = np.array([[[0.5], [1.0]]], np.float32)
    keys = jax.random.split(jax.random.key(0), 4000)

    def both(key):
        factors = jax.random.uniform(jax.random.split(key)[1], (2, 1), jnp.float32)
        brightness, contrast = 2 * factors
        first = augment.adjust_channel_contrast(augment.adjust_channel_brightness(image, brightness), contrast)
        second = augment.adjust_channel_brightness(augment.adjust_channel_contrast(image, contrast), brightness)
        return augment.channel_jitter(key, image, brightness=1.0, contrast=1.0), first, second

    ours, first, second = (np.asarray(views) for views in jax.jit(jax.vmap(both))(keys))
    is_first, is_second = (np.abs(ours - one).max(axis=(1, 2, 3)) < 1e-6 for one in (first, second))
    assert (is_first | is_second).all()
    told = is_first != is_second
    assert told.sum() > 1000
    assert abs(is_first[told].mean() - 0.5) < 5 * np.sqrt(0.25 / told.sum())


@pytest.mark.slow
def test_which_channels_go():
    ones = np.ones((1, 1, CHANNELS), np.float32)
    gone = (
        drawn(partial(augment.random_channel_dropout, p=0.5, count=(1, 4)), ones, 300_000)[:, 0, 0] == 0
    )  # [count, C]
    number = gone.sum(axis=1)
    check_share(number > 0, 0.5)
    check_equally_likely(number[number > 0], 4)
    check_equally_likely(np.nonzero(gone[number == 1])[1], CHANNELS)
    pairs = [tuple(np.flatnonzero(row)) for row in gone[number == 2]]
    assert set(pairs) == {(a, b) for a in range(CHANNELS) for b in range(a + 1, CHANNELS)}


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_one_channel_always_stays(channels):
    views = drawn(partial(augment.random_channel_dropout, p=1.0, count=(1, 9)), np.ones((1, 1, channels)), 500)
    stay = views[:, 0, 0].sum(axis=1)
    assert stay.min() == 1
    assert stay.max() == max(1, channels - 1)


@pytest.mark.slow
def test_noise_is_normal_with_a_sigma_for_each_image():
    grey = np.full((16, 16, 2), 0.5, np.float32)
    noise = drawn(partial(augment.random_gaussian_noise, p=1.0, sigma=(0.02, 0.1)), grey, 4000) - 0.5
    sigmas = noise.std(axis=(1, 2, 3))
    standard = noise / sigmas[:, None, None, None]
    assert stats.kstest(sigmas, stats.uniform(0.02, 0.08).cdf).statistic < gap_limit(4000) + 0.02  # its own spread, 3 %
    assert stats.kstest(standard.ravel()[::16], "norm").statistic < gap_limit(standard.size // 16)
    check_uncorrelated(standard[..., 0], standard[..., 1])
    check_uncorrelated(standard[:, 0], standard[:, 1])
    fixed = drawn(partial(augment.random_gaussian_noise, p=1.0, sigma=(0.1, 0.1)), grey, 400) - 0.5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = F.gaussian_noise(torch.full((400, 1, 16, 16), 0.5), sigma=0.1).numpy() - 0.5
    assert fixed.std() == pytest.approx(theirs.std(), rel=0.02)


@pytest.mark.slow
def test_noise_is_clipped_at_both_ends():
    image = np.stack([np.zeros((8, 8)), np.ones((8, 8))], axis=-1).astype(np.float32)
    views = drawn(partial(augment.random_gaussian_noise, p=1.0, sigma=(0.1, 0.1)), image, 50)
    assert (views.min(), views.max()) == (0, 1)
    assert 0.4 < (views[..., 0] == 0).mean() < 0.6


@pytest.mark.slow
def test_the_set_drops_noises_and_jitters_as_often_as_it_says():
    """On a grey image of equal channels: a channel that differs from another was jittered, one that is 0 dropped."""
    grey = np.full((8, 8, CHANNELS), 0.5, np.float32)
    views = drawn(augment.multichannel(8), grey, 4000)
    gone = (views == 0).all(axis=(1, 2))  # [count, C]
    number = gone.sum(axis=1)
    assert abs((number > 0).mean() - 0.2) < 5 * np.sqrt(0.2 * 0.8 / 4000)
    assert number.max() == CHANNELS // 4
    levels = np.where(gone, np.nan, views.mean(axis=(1, 2)))  # [count, C]
    jittered = np.nanstd(levels, axis=1) > 0.03  # noise moves a mean of 64 numbers by 0.006 at most
    assert abs(jittered.mean() - 0.8) < 5 * np.sqrt(0.8 * 0.2 / 4000)
    noisy = np.where(gone, 0, views.std(axis=(1, 2))).max(axis=1) > 1e-4
    assert abs(noisy.mean() - 0.5) < 5 * np.sqrt(0.25 / 4000) + 0.5 * 1e-4 / 0.05
