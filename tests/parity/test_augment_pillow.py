"""The deterministic augmentations against Pillow: resizing in its 32-bit floats, the rest in its 8-bit levels.

In 8 bits tolerances are of rounding: Pillow's blends cut fractions off, and its grey and its mean are whole levels.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms.v2 import functional as F

from byol_jax import augment
from tests.parity.pictures import (
    SHAPES,
    Operation,
    assert_within,
    between,
    boxes_in,
    in_words,
    largest_differences,
    picture,
    pictures,
    random_shapes,
)

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
LEVELS = 255


def planes(image, function):
    """`function` of each channel as a picture of 32-bit floats, put together again."""
    made = [np.asarray(function(Image.fromarray(np.ascontiguousarray(plane)))) for plane in np.moveaxis(image, -1, 0)]
    return np.stack(made, axis=-1)


def corners(box):
    """Pillow's box: left, top, right, bottom."""
    top, left, height, width = map(float, box)
    return left, top, left + width, top + height


def cropped(image, box, *, size, method):
    left, top, right, bottom = map(int, corners(box))
    rows, columns = size
    return planes(
        image, lambda plane: plane.crop((left, top, right, bottom)).resize((columns, rows), RESAMPLING[method])
    )


def boxed(image, box, *, size, method):
    """Pillow's own `box=`, which may be fractional."""
    rows, columns = size
    return planes(image, lambda plane: plane.resize((columns, rows), RESAMPLING[method], box=corners(box)))


def in_eight_bits(function):
    """A function of (8-bit picture, parameter) as one of (float image, parameter); one channel becomes three."""

    def theirs(image, value):
        made = np.asarray(function(Image.fromarray(np.round(LEVELS * image).astype(np.uint8)), value))
        return (made if made.ndim == 3 else made[:, :, None].repeat(3, axis=2)) / LEVELS

    return theirs


def halved(image):
    """Levels 64 to 191, between which bicubic doesn't overshoot what 8 bits hold, of 0 to 255; for either library."""
    return (64 + (image * (LEVELS / 2) + 0.25) // 1) / LEVELS


def cropped_in_eight_bits(picture, box, *, size, method):
    left, top, right, bottom = map(int, corners(box))
    picture = Image.fromarray(np.round(LEVELS * halved(np.asarray(picture) / LEVELS)).astype(np.uint8))
    return picture.crop((left, top, right, bottom)).resize((size[1], size[0]), RESAMPLING[method])


def size_for(shape):
    return (5 * shape[0]) % 13 + 1, (7 * shape[1]) % 17 + 1


def float_operations_for(shape):
    size = size_for(shape)
    return {
        f"crop_and_resize {method}": Operation(
            partial(augment.crop_and_resize, size=size, method=method),
            partial(cropped, size=size, method=method),
            boxes_in(shape),
        )
        for method in RESAMPLING
    }


def level_operations_for(shape):
    operations = {
        name: Operation(ours, in_eight_bits(theirs), between(*bounds))
        for name, (ours, theirs, bounds) in {
            "adjust_brightness": (
                augment.adjust_brightness,
                lambda picture, factor: ImageEnhance.Brightness(picture).enhance(float(factor)),
                (0, 2),
            ),
            "adjust_contrast": (
                augment.adjust_contrast,
                lambda picture, factor: ImageEnhance.Contrast(picture).enhance(float(factor)),
                (0, 2),
            ),
            "adjust_saturation": (
                augment.adjust_saturation,
                lambda picture, factor: ImageEnhance.Color(picture).enhance(float(factor)),
                (0, 2),
            ),
            "adjust_hue": (augment.adjust_hue, lambda picture, d: F.adjust_hue(picture, float(d)), (-0.5, 0.5)),
            "solarize": (
                lambda image, level: augment.solarize(image, (jnp.floor(level) - 0.5) / LEVELS),  # between two levels
                lambda picture, level: ImageOps.solarize(picture, int(level)),
                (0, 257),
            ),
            "grayscale": (
                lambda image, _: augment.grayscale(image),
                lambda picture, _: ImageOps.grayscale(picture),
                (0, 1),
            ),
            "flip_left_right": (
                lambda image, _: augment.flip_left_right(image),
                lambda picture, _: ImageOps.mirror(picture),
                (0, 1),
            ),
        }.items()
    }
    size = size_for(shape)
    return operations | {
        f"crop_and_resize {method}": Operation(
            lambda image, box, method=method: augment.crop_and_resize(halved(image), box, size=size, method=method),
            in_eight_bits(partial(cropped_in_eight_bits, size=size, method=method)),
            boxes_in(shape),
        )
        for method in RESAMPLING
    }


FLOAT_TOLERANCES = {"crop_and_resize bilinear": 2e-6, "crop_and_resize bicubic": 4e-6}
LEVEL_TOLERANCES = {
    "adjust_brightness": 1.001,  # a fraction cut off
    "adjust_contrast": 2.03,  # and a mean of greys, both rounded, times |1 - factor| <= 1
    "adjust_saturation": 1.53,  # and a grey, rounded, the same
    "adjust_hue": 20,  # Pillow's hue and saturation are 8-bit numbers too: a step of hue is 6 levels
    "solarize": 1e-4,
    "grayscale": 0.53,  # rounded, and 0.299 for our 0.2989
    "flip_left_right": 1e-4,
    "crop_and_resize bilinear": 1.01,  # rounded twice, once a side
    "crop_and_resize bicubic": 1.26,  # the first rounding times the cubic's largest sum of |weights|, 1.5 at most
}


@pytest.mark.slow
def test_resizing_in_floats():
    assert_within(largest_differences(float_operations_for, SHAPES[::2], count=8), FLOAT_TOLERANCES)


@pytest.mark.slow
def test_eight_bit_pictures():
    assert_within(largest_differences(level_operations_for, SHAPES[::2], count=8, levels=LEVELS), LEVEL_TOLERANCES)


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(RESAMPLING))
def test_fractional_boxes_inside(method):
    """Pillow's `resize(box=)` sees pixels outside the box, ours doesn't: they agree where the filter stays inside."""
    generator, size = np.random.default_rng(0), (9, 14)
    image = picture(0, 40, 50)
    ours = jax.jit(partial(augment.crop_and_resize, image, size=size, method=method))
    radius = {"bilinear": 1, "bicubic": 2}[method]
    compared = 0
    for _ in range(40):
        sides = generator.uniform((6, 6), (40, 50))
        box = np.concatenate([generator.uniform(0, np.asarray((40, 50)) - sides), sides]).astype(np.float32)
        theirs = boxed(image, box, size=size, method=method)
        inner = []
        for side, count in zip(sides, size, strict=True):
            step = side / count
            centres, reach = step * (np.arange(count) + 0.5), radius * max(step, 1) + 1
            inner.append((centres >= reach) & (centres <= side - reach))
        inside = inner[0][:, None] & inner[1][None, :]
        np.testing.assert_allclose(np.asarray(ours(box))[inside], theirs[inside], rtol=0, atol=1e-5)
        compared += inside.sum()
    assert compared > 500


@pytest.mark.slow
def test_pillows_box_argument_sees_its_surroundings():
    """So it isn't our crop, nor torchvision's: on noise up to about 0.5 apart at the box's border."""
    image, box = picture(1, 20, 20), (6, 6, 8, 8)
    ours = np.asarray(augment.crop_and_resize(image, box, size=(16, 16)))
    theirs = boxed(image, box, size=(16, 16), method="bilinear")
    assert 0.05 < np.abs(ours - theirs).max() < 0.6
    np.testing.assert_allclose(ours[2:-2, 2:-2], theirs[2:-2, 2:-2], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_blur_is_pillows_convolution_inside(kernel_size):
    """ImageFilter.Kernel leaves the border as it is."""
    blur = jax.jit(partial(augment.gaussian_blur, kernel_size=kernel_size))
    radius = kernel_size // 2
    for seed, image in enumerate(pictures(np.random.default_rng(0), 12, (23, 31))):
        sigma = 0.3 + 0.25 * seed
        taps = np.exp(-0.5 * ((np.arange(kernel_size) - radius) / sigma) ** 2)
        kernel = np.outer(taps, taps)
        image = (np.round(LEVELS * image) / LEVELS).astype(np.float32)
        kind = ImageFilter.Kernel((kernel_size, kernel_size), kernel.ravel().tolist(), scale=float(kernel.sum()))
        theirs = in_eight_bits(lambda picture, kind: picture.filter(kind))(image, kind)
        inside = (slice(radius, -radius), slice(radius, -radius))
        np.testing.assert_allclose(np.asarray(blur(image, sigma))[inside], theirs[inside], rtol=0, atol=0.501 / LEVELS)


@pytest.mark.slow
def test_pillows_gaussian_blur_is_another_one():
    """Three box blurs in place of a Gaussian, the border extended: about 10 levels off on noise, inside alone."""
    image = (np.round(LEVELS * picture(2, 40, 40)) / LEVELS).astype(np.float32)
    ours = np.asarray(augment.gaussian_blur(image, 1.0, kernel_size=9))
    theirs = in_eight_bits(lambda picture, sigma: picture.filter(ImageFilter.GaussianBlur(sigma)))(image, 1.0)
    inside = np.abs(ours - theirs)[8:-8, 8:-8].max() * LEVELS
    assert 2 < inside < 20


@pytest.mark.long
def test_many_shapes_and_parameters(share, figure):
    shapes, count = share(random_shapes(20, seed=2)), 120
    cases = len(shapes) * count
    floats = largest_differences(float_operations_for, shapes, count=count)
    levels = largest_differences(level_operations_for, shapes, count=count, levels=LEVELS)
    result = f"largest differences: {in_words(floats)}; in 8-bit levels: {in_words(levels)}"
    figure("augmentations beside Pillow's, 32-bit float crops and 8-bit pictures", cases=cases, result=result)
    assert_within(floats, FLOAT_TOLERANCES)
    assert_within(levels, LEVEL_TOLERANCES)
