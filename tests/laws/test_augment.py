"""Laws of the deterministic augmentations: identities, ranges, jit = no jit, vmap = loop, gradients, refusals."""

import doctest
import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import ConfigurationError, augment

CHANNELS = (1, 3, 5)
ONE_NUMBER = {  # name: a parameter's value that changes something
    "adjust_brightness": 1.4,
    "adjust_contrast": 0.6,
    "adjust_saturation": 1.7,
    "adjust_hue": 0.13,
    "solarize": 0.4,
    "adjust_gamma": 0.7,
}
IDENTITY = {
    "adjust_brightness": 1.0,
    "adjust_contrast": 1.0,
    "adjust_saturation": 1.0,
    "adjust_hue": 0.0,
    "adjust_gamma": 1.0,
}


def picture(seed=0, shape=(9, 12, 3)):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


def spread(image):
    """A factor for each channel."""
    return np.linspace(0.5, 1.5, image.shape[-1])


def functions():
    """Every deterministic function as image -> image."""
    one = {
        name: lambda image, name=name, value=value: getattr(augment, name)(image, value)
        for name, value in ONE_NUMBER.items()
    }
    return one | {
        "grayscale": augment.grayscale,
        "flip_left_right": augment.flip_left_right,
        "gaussian_blur": lambda image: augment.gaussian_blur(image, 1.3, kernel_size=5),
        "crop_and_resize": lambda image: augment.crop_and_resize(image, (1.5, 2, 6.25, 7), size=(4, 5)),
        "tone_curve": lambda image: augment.tone_curve(image, jnp.asarray([0, 0.5, 0.3, 1])),
        "cutout": lambda image: augment.cutout(image, (2, 3, 4.5, 100)),
        "flip_up_down": augment.flip_up_down,
        "adjust_channel_brightness": lambda image: augment.adjust_channel_brightness(image, spread(image)),
        "adjust_channel_contrast": lambda image: augment.adjust_channel_contrast(image, spread(image)),
        "channel_dropout": lambda image: augment.channel_dropout(image, spread(image) > 1),
    }


NAMES = tuple(functions())


@pytest.mark.parametrize("name", sorted(IDENTITY))
def test_identity_parameters(name):
    image = picture()
    np.testing.assert_allclose(getattr(augment, name)(image, IDENTITY[name]), image, rtol=0, atol=1e-6)


def test_more_identities():
    image = picture()
    whole = jax.jit(partial(augment.crop_and_resize, size=(9, 12)))(image, jnp.asarray((0, 0, 9, 12)))
    np.testing.assert_array_equal(whole, image)
    np.testing.assert_array_equal(jax.jit(partial(augment.gaussian_blur, kernel_size=1))(image, 3.0), image)
    np.testing.assert_array_equal(augment.flip_left_right(augment.flip_left_right(image)), image)
    np.testing.assert_allclose(
        jax.jit(augment.tone_curve)(image, np.linspace(0, 1, 6, dtype=np.float32)), image, atol=3e-7
    )
    np.testing.assert_array_equal(augment.compose()(jax.random.key(0), image), image)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_without_jit(name):
    function, image = functions()[name], picture()
    np.testing.assert_allclose(function(image), jax.jit(function)(image), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_vmap_and_float64_agree_and_stay_in_range(name):
    function = functions()[name]
    images = jnp.asarray(picture(0, (3, 9, 12, 3)))
    single = jax.jit(function)
    loop = jnp.stack([single(image) for image in images])
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(images), loop, rtol=0, atol=1e-6)
    assert loop.dtype == jnp.float32
    assert loop.min() >= 0
    assert loop.max() <= 1 + 1e-6
    with jax.enable_x64(True):
        wide = jax.jit(function)(np.asarray(images[0], np.float64))
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide, loop[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_constant_images_give_numbers_and_finite_gradients(name):
    function = functions()[name]
    check = jax.jit(lambda image: (function(image), jax.grad(lambda pixels: function(pixels).sum())(image)))
    for level in (0.0, 0.5, 1.0):
        value, gradient = check(jnp.full((9, 12, 3), level))
        assert np.isfinite(value).all()
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(channels):
    image = picture(1, (9, 12, channels))
    needs_color = {"adjust_saturation", "adjust_hue", "grayscale"}
    for name, function in functions().items():
        if name not in needs_color or channels == 3:
            assert jax.eval_shape(function, image).shape[-1] == channels, name
        elif channels == 1:
            np.testing.assert_array_equal(function(image), image)
        else:
            with pytest.raises(ConfigurationError, match=f"{name}: expected 1 or 3 channels, got 5"):
                function(image)


def test_crop_sees_nothing_outside_its_box():
    image, other = picture(0, (20, 24, 3)), picture(1, (20, 24, 3))
    inside = np.zeros((20, 24, 1), bool)
    inside[4:13, 6:19] = True
    for method in ("bilinear", "bicubic"):
        crop = jax.jit(partial(augment.crop_and_resize, box=(4, 6, 9, 13), size=(5, 30), method=method))
        np.testing.assert_array_equal(crop(image), crop(np.where(inside, image, other)))


def test_crop_is_differentiable_in_its_box():
    with jax.enable_x64(True):
        image = jnp.asarray(picture(0, (20, 24, 1)), jnp.float64)
        loss = jax.jit(lambda box: jnp.sum(augment.crop_and_resize(image, box, size=(5, 7))[:, 2] ** 2))
        box = jnp.asarray([3.37, 2.1, 12.4, 11.7])
        step = 1e-5
        differences = [(loss(box + step * e) - loss(box - step * e)) / (2 * step) for e in jnp.eye(4)]
        np.testing.assert_allclose(jax.grad(loss)(box), differences, rtol=1e-5, atol=1e-7)
        assert np.abs(differences).min() > 1e-3


def test_crop_of_a_fractional_box_moves_without_jumps():
    image = picture(0, (16, 16, 1))
    crop = jax.jit(jax.vmap(lambda top: augment.crop_and_resize(image, (top, 0, 8, 16), size=8)))
    views = crop(jnp.linspace(0, 8, 801))
    assert jnp.abs(jnp.diff(views, axis=0)).max() < 0.05  # 0.01 px a step; a jump of a pixel would be near 1


def test_tone_curve_is_linear_interpolation():
    image, knots = picture(0, (7, 7, 2)) * 1.4 - 0.2, np.array([0.1, 0.9, -0.2, 1.3], np.float32)
    expected = np.interp(np.clip(image, 0, 1), np.linspace(0, 1, 4), knots)
    np.testing.assert_allclose(augment.tone_curve(image, knots), expected, atol=1e-6)


def test_cutout_blackens_the_pixels_of_a_whole_box_and_no_others():
    image = picture() + 1
    expected = image.copy()
    expected[2:5, 7:] = 0
    np.testing.assert_array_equal(augment.cutout(image, (2, 7, 3, 50)), expected)


def test_hue_turns_add_up_and_value_stays():
    image = jnp.asarray(picture())
    twice = augment.adjust_hue(augment.adjust_hue(image, 0.15), 0.2)
    np.testing.assert_allclose(twice, augment.adjust_hue(image, 0.35), atol=2e-6)
    np.testing.assert_allclose(augment.adjust_hue(image, 3.0), image, atol=2e-6)
    np.testing.assert_allclose(twice.max(-1), image.max(-1), atol=1e-6)


HEAVY = [
    pytest.param(module, marks=pytest.mark.slow)
    for module in ("channels", "color", "geometry", "paper", "tone", "sets")
]


@pytest.mark.parametrize("module", ["chain", "checks", "filters", "sides", *HEAVY])
def test_examples_in_docstrings(module):
    module = importlib.import_module(f"byol_jax.augment.{module}")
    assert doctest.testmod(module).failed == 0


REFUSED = {
    "uint8": (lambda: augment.grayscale(np.zeros((4, 4, 3), np.uint8)), "one float image"),
    "batch": (lambda: augment.simclr(8)(jax.random.key(0), np.zeros((2, 4, 4, 3), np.float32)), "jax.vmap"),
    "even kernel": (lambda: augment.gaussian_blur(picture(), 1.0, kernel_size=4), "odd positive int, got 4"),
    "large kernel": (lambda: augment.gaussian_blur(picture(), 1.0, kernel_size=19), "use at most 17"),
    "sigma": (lambda: augment.gaussian_blur(picture(), 0.0, kernel_size=3), "sigma must be above 0"),
    "sigma order": (
        lambda: augment.random_gaussian_blur(jax.random.key(0), picture(), p=1, kernel_size=3, sigma=(2, 1)),
        "low <= high",
    ),
    "factor": (lambda: augment.adjust_contrast(picture(), -1.0), "factor must be at least 0"),
    "p": (lambda: augment.random_grayscale(jax.random.key(0), picture(), p=1.5), r"number in \[0, 1\], got 1.5"),
    "p of gate": (lambda: augment.with_probability(lambda key, image: image, p=-0.1), "got -0.1"),
    "scale": (
        lambda: augment.random_crop_and_resize(jax.random.key(0), picture(), size=4, scale=(0, 1)),
        "scale must have 0 <",
    ),
    "ratio": (
        lambda: augment.random_crop_and_resize(jax.random.key(0), picture(), size=4, ratio=3),
        "ratio must be two",
    ),
    "method": (
        lambda: augment.crop_and_resize(picture(), (0, 0, 4, 4), size=4, method="bicubc"),
        "did you mean 'bicubic'",
    ),
    "box": (lambda: augment.crop_and_resize(picture(), (0, 0, 4), size=4), "top, left, height, width"),
    "empty box": (lambda: augment.crop_and_resize(picture(), (0, 0, 0, 4), size=4), "box height must be above 0"),
    "size": (lambda: augment.simclr(0), "simclr: the size must be a positive int"),
    "size pair": (lambda: augment.small_grey((4, 2.5)), "small_grey: the size"),
    "view": (lambda: augment.byol(32, view=3), "view must be one of 1, 2, got 3"),
    "hue": (lambda: augment.color_jitter(jax.random.key(0), picture(), hue=0.6), r"hue must be in \[0, 0.5\]"),
    "not a number": (lambda: augment.adjust_brightness(picture(), float("nan")), "at least 0 and finite, got nan"),
    "infinite": (lambda: augment.adjust_contrast(picture(), float("inf")), "at least 0 and finite, got inf"),
    "a word": (lambda: augment.gaussian_blur(picture(), "wide", kernel_size=3), "above 0 and finite, got 'wide'"),
    "nothing": (lambda: augment.adjust_hue(picture(), None), "delta must be a finite number, got None"),
    "threshold": (lambda: augment.solarize(picture(), float("nan")), "threshold must be a finite number"),
    "truth": (lambda: augment.gaussian_blur(picture(), 1.0, kernel_size=True), "odd positive int, got True"),
    "pieces": (
        lambda: augment.random_tone_curve(jax.random.key(0), picture(), pieces=2.5),
        "pieces must be a positive",
    ),
    "strength": (
        lambda: augment.random_gamma(jax.random.key(0), picture(), strength=-1),
        "strength must be at least 0",
    ),
    "hue's kind": (lambda: augment.color_jitter(jax.random.key(0), picture(), hue="a"), "hue must be a finite number"),
    "box place": (lambda: augment.cutout(picture(), (0, float("nan"), 2, 2)), "box left must be a finite number"),
    "knots": (lambda: augment.tone_curve(picture(), [1.0]), "at least two numbers"),
    "compose": (lambda: augment.compose(3), "argument 0 must be a function"),
    "factors": (
        lambda: augment.adjust_channel_brightness(picture(), [1.0, 2.0]),
        r"3 numbers, one a channel, got shape \[2\]",
    ),
    "a NumPy scalar": (
        lambda: augment.random_gamma(jax.random.key(0), picture(), strength=np.float32(-0.5)),
        "strength must be at least 0",
    ),
    "negative factor": (lambda: augment.adjust_channel_contrast(picture(), [1, -1, 1]), "at least 0 and finite"),
    "factors in words": (lambda: augment.adjust_channel_contrast(picture(), "abc"), "factors must be numbers"),
    "dropped": (lambda: augment.channel_dropout(picture(), [1, 0, 1]), "3 truth values, one a channel, got int32"),
    "no channel": (
        lambda: augment.random_channel_dropout(jax.random.key(0), picture(), count=(0, 1)),
        "count must have 1 <= low <= high",
    ),
    "half a channel": (
        lambda: augment.random_channel_dropout(jax.random.key(0), picture(), count=(0.5, 1)),
        "count must be two whole numbers",
    ),
    "noise below 0": (
        lambda: augment.random_gaussian_noise(jax.random.key(0), picture(), sigma=(-0.1, 0.1)),
        "sigma must have 0 <= low <= high",
    ),
    "jitter of a channel": (
        lambda: augment.channel_jitter(jax.random.key(0), picture(), contrast=-1),
        "contrast must be at least 0",
    ),
    "multichannel size": (lambda: augment.multichannel("a"), "multichannel: the size must be a positive int"),
    "colour of 5": (lambda: augment.color_jitter(jax.random.key(0), picture(0, (4, 4, 5)), hue=0.1), "1 or 3 channels"),
}


@pytest.mark.slow
def test_numpys_integers_are_sizes_too():
    image = picture()
    blurred = augment.gaussian_blur(image, np.float32(1), kernel_size=np.int64(3))
    np.testing.assert_array_equal(blurred, augment.gaussian_blur(image, 1.0, kernel_size=3))
    assert augment.crop_and_resize(image, (0, 0, 2, 2), size=(np.int32(4), 5)).shape == (4, 5, 3)


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_bad_arguments_are_refused_in_one_line(what):
    call, message = REFUSED[what]
    with pytest.raises(ConfigurationError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
