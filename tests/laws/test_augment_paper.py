"""The sets operation by operation against their recipes, built a second time from other libraries.

The paper's set (DeepMind's code, which the paper's table 6 summarises) in NumPy, SciPy and scikit-image; byol-pytorch's
in torchvision. Both take the numbers that a key draws (`augment_draws`) and must give the same image.
"""

import dataclasses
from functools import cache, partial

import jax
import numpy as np
import pytest
import torch
from augment_draws import byol_draws, simclr_draws
from scipy import ndimage
from skimage.color import hsv2rgb, rgb2hsv
from torchvision.transforms.v2 import functional as F

from byol_jax import augment, presets
from byol_jax.augment import geometry, paper

FLIP, COLOUR, GREY = 0.5, 0.8, 0.2
BLUR, SOLARIZE = {1: 1.0, 2: 0.1}, {1: 0.0, 2: 0.2}
AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
SHAPE = (60, 44)
DRAWN = 2000
SIZE = (59, 33)  # blur of radius 2: 59 / 20, rounded down
AS_FOR_USERS = {"xla_cpu_use_fusion_emitters": True}
"""Both programs must round a float32 draw alike. Without the emitters, as `make test` compiles, they don't."""


def picture(seed, shape=SHAPE):
    """Noise over slow waves: something to crop, and colours of every saturation."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = [np.sin(rows / a + columns / b) for a, b in generator.uniform(3, 9, (3, 2))]
    return np.clip(0.5 + 0.4 * np.stack(waves, -1) + 0.2 * generator.normal(size=(*shape, 3)), 0, 1)


@cache
def keys(count):
    return jax.random.split(jax.random.key(0), count)


@cache
def draws(function):
    """{what: [DRAWN, ...]} of the keys."""
    numbers = jax.jit(jax.vmap(function), compiler_options=AS_FOR_USERS)(keys(DRAWN))
    return {name: number if name == "box key" else np.asarray(number) for name, number in numbers.items()}


def of_one(numbers, index):
    return {name: number[index] for name, number in numbers.items()}


def keys_cubic(distance):
    """Keys' kernel with a = -0.5."""
    a, d = -0.5, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def bicubic(side, count):
    """TensorFlow's bicubic along one side, [count, side]: half-pixel centres, four taps, those outside left out."""
    matrix = np.zeros((count, side))
    for row in range(count):
        centre = (row + 0.5) * side / count - 0.5
        taps = [tap for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3) if 0 <= tap < side]
        weights = np.array([keys_cubic(centre - tap) for tap in taps])
        matrix[row, taps] = weights / weights.sum()
    return matrix


def resize(image, size):
    return np.einsum("ij,kl,jlc->ikc", bicubic(image.shape[0], size[0]), bicubic(image.shape[1], size[1]), image)


def paper_box(numbers, rows, columns):
    """Width and height rounded, then clipped to the image; place uniform over all whole offsets."""
    area, ratio, top, left = numbers.astype(np.float64)
    area = rows * columns * (AREA[0] + (AREA[1] - AREA[0]) * area)
    ratio = np.exp(np.log(RATIO[0]) + (np.log(RATIO[1]) - np.log(RATIO[0])) * ratio)
    width, height = min(round(np.sqrt(area * ratio)), columns), min(round(np.sqrt(area / ratio)), rows)
    return int(top * (rows - height + 1)), int(left * (columns - width + 1)), height, width


def recoloured(image, kind, draw):
    if kind == 0:
        image = image + draw["brightness"]
    elif kind == 1:
        mean = image.mean(axis=(0, 1))
        image = draw["contrast"] * (image - mean) + mean
    else:
        hue, saturation, value = np.moveaxis(rgb2hsv(image), -1, 0)
        if kind == 2:
            saturation = np.clip(draw["saturation"] * saturation, 0, 1)
        else:
            hue = (hue + draw["hue"]) % 1
        image = hsv2rgb(np.stack((hue, saturation, value), axis=-1))
    return np.clip(image, 0, 1)


def paper_blur(image, sigma):
    """Radius: a twentieth of the height, rounded down; black beyond the border; along the width, then the height."""
    radius = image.shape[0] // 20
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    for axis in (1, 0):
        image = ndimage.correlate1d(image, taps / taps.sum(), axis=axis, mode="constant", cval=0)
    return image


def paper_view(image, draw, view, size=SIZE):
    """Crop, flip, colour, grey, blur, solarise, clip."""
    draw = {name: np.asarray(number, np.float64) for name, number in draw.items()}
    top, left, height, width = paper_box(draw["crop"], *image.shape[:2])
    image = np.clip(resize(image[top : top + height, left : left + width], size), 0, 1)
    if draw["flip"] < FLIP:
        image = image[:, ::-1]
    if draw["colour"] < COLOUR:
        for kind in draw["order"]:
            image = recoloured(image, kind, draw)
    if draw["grey"] < GREY:
        image = (image @ (0.2989, 0.5870, 0.1140))[..., None].repeat(3, axis=-1)
    if draw["blur"] < BLUR[view]:
        image = paper_blur(image, draw["sigma"])
    if draw["solarize"] < SOLARIZE[view]:
        image = np.where(image < 0.5, image, 1 - image)
    return np.clip(image, 0, 1)


@jax.jit
def torchvision_box(key):
    return geometry.random_box(key, *SHAPE, scale=AREA, ratio=RATIO)


def torchvision_view(image, draw, size=SIZE):
    """ColorJitter, grey, flip, blur, resized crop: byol-pytorch 0.9.1's default set with its own numbers."""
    tensor = torch.from_numpy(np.moveaxis(image, -1, 0).copy())
    if draw["colour"] < 0.3:
        adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
        names = ("brightness", "contrast", "saturation", "hue")
        for kind in draw["order"]:
            tensor = adjust[kind](tensor, float(draw[names[kind]]))
    if draw["grey"] < 0.2:
        tensor = F.rgb_to_grayscale(tensor, num_output_channels=3)
    if draw["flip"] < 0.5:
        tensor = F.horizontal_flip(tensor)
    if draw["blur"] < 0.2:
        tensor = F.gaussian_blur(tensor, [3, 3], [float(draw["sigma"])] * 2)
    box = map(int, torchvision_box(draw["box key"]))
    tensor = F.resized_crop(tensor, *box, list(size), F.InterpolationMode.BILINEAR, antialias=True)
    return np.moveaxis(tensor.numpy(), 0, -1)


def sharp(numbers, gates, count):
    """The first `count` keys, and of 2000 those whose chances are nearest to each p, from below and from above."""
    nearest = [np.argmin(np.where(numbers[name] < p, p - numbers[name], 1)) for name, p in gates.items()]
    nearest += [np.argmin(np.where(numbers[name] >= p, numbers[name] - p, 1)) for name, p in gates.items()]
    twice = 2 * [*gates.items()]
    assert all(abs(numbers[name][key] - p) < 0.02 * p for (name, p), key in zip(twice, nearest, strict=True))
    return [*range(count), *map(int, nearest)]


def largest_difference(augmentation, reference, numbers, which, dtype=np.float32):
    view = jax.jit(augmentation, compiler_options=AS_FOR_USERS)
    largest = 0.0
    for index in which:
        image = picture(index).astype(dtype)
        ours = np.asarray(view(keys(DRAWN)[index], image), np.float64)
        difference = ours - reference(image, of_one(numbers, index))
        largest = max(largest, np.abs(difference).max())
    return largest


@pytest.mark.slow
@pytest.mark.parametrize("view", [1, 2])
def test_the_papers_view_in_float64(view):
    numbers = draws(byol_draws)
    gates = {"flip": FLIP, "colour": COLOUR, "grey": GREY} | (
        {"blur": BLUR[2], "solarize": SOLARIZE[2]} if view == 2 else {}
    )
    which, reference = sharp(numbers, gates, 24), partial(paper_view, view=view)
    with jax.enable_x64(True):
        assert largest_difference(augment.byol(SIZE, view), reference, numbers, which, np.float64) < 1e-12


@pytest.mark.slow
def test_a_presets_views_are_the_papers_normalised_afterwards():
    """At 40 px in place of 128; imagenet(...) and small_batch() differ in their size alone."""
    for preset in (presets.imagenet(300), presets.small_batch(), presets.imagenette()):
        assert preset.normalize == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert preset.augmentation == "byol"
    small = dataclasses.replace(presets.imagenette(), image_size=40)
    options = presets.learner_options(small, batch_size=8, total_steps=1000, steps_per_epoch=37.0)
    numbers = draws(byol_draws)
    for view, name in ((1, "augment_fn"), (2, "augment_fn2")):
        reference = partial(paper_view, view=view, size=(40, 40))
        which = sharp(numbers, {"blur": BLUR[2], "solarize": SOLARIZE[2]}, 6)
        assert largest_difference(options[name], reference, numbers, which) < 2e-5


@pytest.mark.slow
def test_byol_pytorchs_view():
    """torchvision's hue computes in float32, and what follows may amplify its rounding."""
    numbers = draws(simclr_draws)
    which = sharp(numbers, {"colour": 0.3, "grey": 0.2, "flip": 0.5, "blur": 0.2}, 32)
    assert largest_difference(augment.simclr(SIZE), torchvision_view, numbers, which) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wrong"), [("HUE", 0.105), ("AREA", (0.08, 0.954))])
def test_a_constant_5_percent_off_shows(monkeypatch, name, wrong):
    numbers = draws(byol_draws)
    monkeypatch.setattr(paper, name, wrong)
    assert largest_difference(augment.byol(SIZE, 1), partial(paper_view, view=1), numbers, range(12)) > 1e-3


# tf.image.resize(picture, size, method="bicubic"), TensorFlow 2.21.0, for (37 i mod 101) / 100, i = 0 ... 34, as 5 x 7
TENSORFLOW = {
    (3, 4): [
        [0.28904, 0.57403, 0.30443, 0.49266],
        [0.23403, 0.83143, 0.54685, 0.5513],
        [0.40405, 0.81767, 0.5681, 0.45566],
    ],
    (8, 3): [
        [0.17858, 0.05899, 0.6693],
        [0.50409, 0.34719, 0.6029],
        [0.86591, 0.66839, 0.5513],
        [0.52431, 0.32681, 0.72874],
        [0.2772, 0.36744, 0.7948],
        [0.23561, 0.79027, 0.69399],
        [0.38194, 0.56241, 0.35943],
        [0.50247, 0.32834, 0.12621],
    ],
}


@pytest.mark.slow
def test_crop_is_tensorflows_bicubic():
    """Within 7e-4 (on 400 random crops): TensorFlow looks its weights up in a table of 1024 offsets a pixel."""
    image = (np.arange(35).reshape(5, 7, 1) * 37 % 101 / 100).astype(np.float32)
    for size, theirs in TENSORFLOW.items():
        ours = jax.jit(partial(paper.crop_bicubic, size=size))(image, (0, 0, 5, 7))[..., 0]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=7e-4)
        np.testing.assert_allclose(ours, resize(image.astype(np.float64), size)[..., 0], rtol=0, atol=1e-6)


@pytest.mark.long
def test_many_views(share, figure):
    """In float32, so with its roundings; a rounding near grey changes the hue that saturation then amplifies."""
    count = share(700)
    numbers = draws(byol_draws), draws(simclr_draws)
    views = [
        largest_difference(augment.byol(SIZE, view), partial(paper_view, view=view), numbers[0], range(count))
        for view in (1, 2)
    ]
    views.append(largest_difference(augment.simclr(SIZE), torchvision_view, numbers[1], range(count)))
    result = "largest differences: byol view 1 {:.2g}, view 2 {:.2g}, simclr {:.2g}".format(*views)
    figure("whole views beside NumPy's and torchvision's, float32", cases=3 * count, result=result)
    assert max(views) < 2e-5
