"""Properties over random images and parameters: ranges, identities to the bit, no NaN, dtypes, formulas, refusals."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byol_jax import ConfigurationError, augment
from byol_jax.augment import paper

SHAPE = (6, 7, 3)
FLOATS = (jnp.float16, jnp.bfloat16, jnp.float32)
NARROW = {jnp.float16: 2.0**-11, jnp.bfloat16: 2.0**-8}


def each(image, number):
    """A factor for each channel, from a number in [0, 1]."""
    return 4 * number * jnp.linspace(0, 1, image.shape[-1])


IN_RANGE = {  # of (image, number in [0, 1])
    "brightness": lambda image, number: augment.adjust_brightness(image, 4 * number),
    "contrast": lambda image, number: augment.adjust_contrast(image, 4 * number),
    "saturation": lambda image, number: augment.adjust_saturation(image, 4 * number),
    "hue": lambda image, number: augment.adjust_hue(image, 2 * number - 1),
    "grayscale": lambda image, number: augment.grayscale(image),
    "solarize": augment.solarize,
    "gamma": lambda image, number: augment.adjust_gamma(image, 0.1 + 3 * number),
    "tone_curve": lambda image, number: augment.tone_curve(image, jnp.stack([number, 1 - number, number])),
    "cutout": lambda image, number: augment.cutout(image, (6 * number, 0, 2, 3)),
    "flip": lambda image, number: augment.flip_left_right(image),
    "flip_up_down": lambda image, number: augment.flip_up_down(image),
    "each brightness": lambda image, number: augment.adjust_channel_brightness(image, each(image, number)),
    "each contrast": lambda image, number: augment.adjust_channel_contrast(image, each(image, number)),
    "dropout": lambda image, number: augment.channel_dropout(image, each(image, number) > 2),
    "add_brightness": lambda image, number: paper.add_brightness(image, 2 * number - 1),
    "channel_contrast": lambda image, number: paper.scale_channel_contrast(image, 4 * number),
    "hsv_saturation": lambda image, number: paper.scale_hsv_saturation(image, 4 * number),
    "crop_bicubic": lambda image, number: paper.crop_bicubic(image, (0, 6 * number, 4, 1), size=(9, 2)),
}
AVERAGING = {  # sums of weights that make 1 but for their rounding
    "blur": lambda image, number: augment.gaussian_blur(image, 0.05 + 3 * number, kernel_size=5),
    "blur_zero_padded": lambda image, number: paper.blur_zero_padded(image, 0.05 + 3 * number, radius=2),
    "crop": lambda image, number: augment.crop_and_resize(image, (number, 2 * number, 3, 2 + number), size=(4, 5)),
}
ALL = IN_RANGE | AVERAGING
COLOUR = {"saturation", "hue", "grayscale", "hsv_saturation"}


@cache
def everything():
    """Every transform of one image and number, compiled together."""
    return jax.jit(lambda image, number: {name: function(image, number) for name, function in ALL.items()})


@st.composite
def images(draw):
    """Of few or many levels, of one colour, black and white, with the smallest floats."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    image = generator.uniform(size=SHAPE)
    kind = draw(st.integers(0, 4))
    made = [image, np.round(image), image[:1, :1] + 0 * image, np.round(3 * image) / 3, image * 1e-40]
    return made[kind].astype(np.float32)


@pytest.mark.slow
@settings(max_examples=150, derandomize=True, database=None)
@given(images(), st.floats(0, 1, width=32))
def test_range(image, number):
    for name, view in everything()(image, np.float32(number)).items():
        slack = 1e-6 if name in AVERAGING else 6e-8 if name in {"tone_curve", "gamma"} else 0
        assert np.isfinite(view).all(), name
        assert view.min() >= 0, name
        assert view.max() <= 1 + slack, name


@pytest.mark.slow
def test_nothing_is_nan_under_debug_nans():
    """On constant images, and within: forward for all, backward but for gamma, whose slope at 0 is none."""
    smooth = {name: function for name, function in ALL.items() if name != "gamma"}

    @jax.jit
    def slopes(image, number):
        return jax.grad(lambda pixels: sum(function(pixels, number).sum() for function in smooth.values()))(image)

    with jax.debug_nans(True):
        for level in (0.0, 0.5, 1.0):
            for number in (0.0, 0.5, 1.0):
                image = np.full(SHAPE, level, np.float32)
                assert all(np.isfinite(view).all() for view in everything()(image, np.float32(number)).values())
                assert np.isfinite(slopes(image, np.float32(number))).all()


@pytest.mark.slow
def test_sets_are_never_nan_under_debug_nans():
    sets = {"simclr": augment.simclr(8), "byol": augment.byol(8, view=2), "small_grey": augment.small_grey(8)}
    sets["multichannel"] = augment.multichannel(8)
    views = jax.jit(lambda key, image: {name: made(key, image) for name, made in sets.items()})
    with jax.debug_nans(True):
        for seed, level in enumerate((0.0, 0.5, 1.0) * 6):
            for name, view in views(jax.random.key(seed), np.full((10, 12, 3), level, np.float32)).items():
                assert np.isfinite(view).all()
                assert name == "small_grey" or 0 <= view.min() <= view.max() <= 1 + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS)
def test_identities_to_the_bit(dtype):
    image = jnp.asarray(np.random.default_rng(0).uniform(size=SHAPE), dtype)
    key, size = jax.random.key(0), SHAPE[:2]
    unchanged = {
        "brightness": lambda: augment.adjust_brightness(image, 1.0),
        "contrast": lambda: augment.adjust_contrast(image, 1.0),
        "saturation": lambda: augment.adjust_saturation(image, 1.0),
        "solarize": lambda: augment.solarize(image, 1.1),
        "each brightness": lambda: augment.adjust_channel_brightness(image, np.ones(3)),
        "each contrast": lambda: augment.adjust_channel_contrast(image, np.ones(3)),
        "dropout of none": lambda: augment.channel_dropout(image, np.zeros(3, bool)),
        "no channel jitter": lambda: augment.channel_jitter(key, image),
        "no channel dropout": lambda: augment.random_channel_dropout(key, image, p=0.0),
        "no noise": lambda: augment.random_gaussian_noise(key, image, p=0.0),
        "no turn": lambda: augment.random_flip_up_down(key, image, p=0.0),
        "flips": lambda: augment.flip_left_right(augment.flip_left_right(image)),
        "blur": lambda: augment.gaussian_blur(image, 2.0, kernel_size=1),
        "bilinear": lambda: augment.crop_and_resize(image, (0, 0, *size), size=size),
        "bicubic": lambda: augment.crop_and_resize(image, (0, 0, *size), size=size, method="bicubic"),
        "paper's crop": lambda: paper.crop_bicubic(image, (0, 0, *size), size=size),
        "no jitter": lambda: augment.color_jitter(key, image),
        "no flip": lambda: augment.random_flip_left_right(key, image, p=0.0),
        "no grey": lambda: augment.random_grayscale(key, image, p=0.0),
        "no blur": lambda: augment.random_gaussian_blur(key, image, p=0.0, kernel_size=3),
        "no crop": lambda: augment.random_crop_and_resize(key, image, p=0.0, size=size),
        "no gate": lambda: augment.with_probability(lambda _, pixels: 1 - pixels, p=0.0)(key, image),
    }
    made = jax.jit(lambda: {name: function() for name, function in unchanged.items()})()
    for name, view in made.items():
        assert view.dtype == dtype, name
        assert (view == image).all(), name


@pytest.mark.slow
def test_narrow_dtypes_are_float32_but_for_roundings():
    """In units of half a last place at 1, most 2.6; adjust_hue, computed in float32, 0.5 (in bfloat16 it was 11)."""
    for dtype, unit in NARROW.items():
        for seed in range(5):
            image = jnp.asarray(np.random.default_rng(seed).uniform(size=SHAPE), dtype)
            narrow, wide = everything()(image, 0.3), everything()(image.astype(jnp.float32), 0.3)
            for name, view in narrow.items():
                assert view.dtype == dtype
                limit = 0.51 if name in {"hue", "solarize", "flip", "flip_up_down", "dropout", *AVERAGING} else 4
                assert np.abs(np.asarray(view, np.float32) - wide[name]).max() <= limit * unit, (name, dtype)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_channels_and_dtypes(channels):
    for name, function in ALL.items():
        for dtype in FLOATS:
            image = jax.ShapeDtypeStruct((*SHAPE[:2], channels), dtype)
            made = partial(jax.eval_shape, lambda pixels, f=function: f(pixels, jnp.float32(0.3)), image)
            if channels == 3 or name not in COLOUR or (channels == 1 and name != "hsv_saturation"):
                assert (made().shape[-1], made().dtype) == (channels, dtype), name
            else:
                with pytest.raises(ConfigurationError, match=f"expected .*3 channels, got {channels}; leave it out"):
                    made()


TWINS = {
    "jitter": partial(augment.color_jitter, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
    "flip": augment.random_flip_left_right,
    "grayscale": partial(augment.random_grayscale, p=0.5),
    "solarize": augment.random_solarize,
    "gamma": augment.random_gamma,
    "tone_curve": augment.random_tone_curve,
    "cutout": augment.random_cutout,
    "blur": partial(augment.random_gaussian_blur, p=0.5, kernel_size=3),
    "channel_jitter": partial(augment.channel_jitter, brightness=0.4, contrast=0.4),
    "channel_dropout": partial(augment.random_channel_dropout, count=(1, 2)),
    "noise": augment.random_gaussian_noise,
    "flip_up_down": augment.random_flip_up_down,
    "crop": partial(augment.random_crop_and_resize, size=(4, 9)),
}


@pytest.mark.slow
def test_twins_mapped_are_twins_in_a_loop_and_without_jit():
    """And uint8 / 255 in NumPy's float64 is float32."""
    keys = jax.random.split(jax.random.key(0), 6)
    batch = np.random.default_rng(0).uniform(size=(6, *SHAPE))
    each = jax.jit(lambda key, image: {name: twin(key, image) for name, twin in TWINS.items()})
    mapped = jax.jit(jax.vmap(each))(keys, batch)
    for index, key in enumerate(keys):
        for name, view in each(key, batch[index]).items():
            np.testing.assert_allclose(mapped[name][index], view, rtol=0, atol=2e-6, err_msg=name)
    for name in ("cutout", "grayscale", "solarize"):  # without jit the others take seconds each
        twin = TWINS[name]
        np.testing.assert_allclose(twin(keys[1], batch[1]), mapped[name][1], rtol=0, atol=2e-6, err_msg=name)


def resampled(side, start, extent, count, kernel):
    """The matrix of `crop_and_resize`'s formula, term by term, a pixel covered in part counting in proportion."""
    step = extent / count
    matrix = np.zeros((count, side))
    for i in range(count):
        for j in range(side):
            covered = max(min(j + 1, start + extent) - max(j, start), 0)
            matrix[i, j] = covered * kernel(abs(j + 0.5 - start - step * (i + 0.5)) / max(step, 1))
    return matrix / matrix.sum(axis=1, keepdims=True)


def keys_cubic(d):
    return 1.5 * d**3 - 2.5 * d**2 + 1 if d < 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_fractional_boxes_by_the_formula(method):
    kernel = {"bilinear": lambda d: max(1 - d, 0), "bicubic": keys_cubic}[method]
    with jax.enable_x64(True):
        image = np.random.default_rng(0).uniform(size=(9, 11, 2))
        crop = jax.jit(partial(augment.crop_and_resize, image, size=(5, 8), method=method))

        @settings(max_examples=60, derandomize=True, database=None)
        @given(st.floats(1, 9), st.floats(1, 11), st.floats(0, 1), st.floats(0, 1))
        def check(height, width, down, right):
            box = np.asarray([down * (9 - height), right * (11 - width), height, width])
            rows, columns = resampled(9, box[0], height, 5, kernel), resampled(11, box[1], width, 8, kernel)
            expected = np.einsum("hH,wW,HWc->hwc", rows, columns, image)
            np.testing.assert_allclose(crop(jnp.asarray(box)), expected, rtol=0, atol=1e-9)

        check()
