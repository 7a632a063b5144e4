"""Augmentations for one float image [H, W, C] in [0, 1]: deterministic functions, random twins, and BYOL's sets."""

from byol_jax.augment.chain import compose, with_probability
from byol_jax.augment.color import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    color_jitter,
    grayscale,
    random_grayscale,
)
from byol_jax.augment.filters import gaussian_blur, random_gaussian_blur
from byol_jax.augment.geometry import (
    crop_and_resize,
    flip_left_right,
    random_crop_and_resize,
    random_flip_left_right,
)
from byol_jax.augment.sets import byol, crop_and_flip, simclr, small_grey
from byol_jax.augment.tone import (
    adjust_gamma,
    cutout,
    random_cutout,
    random_gamma,
    random_solarize,
    random_tone_curve,
    solarize,
    tone_curve,
)

__all__ = [
    "adjust_brightness",
    "adjust_contrast",
    "adjust_gamma",
    "adjust_hue",
    "adjust_saturation",
    "byol",
    "color_jitter",
    "compose",
    "crop_and_flip",
    "crop_and_resize",
    "cutout",
    "flip_left_right",
    "gaussian_blur",
    "grayscale",
    "random_crop_and_resize",
    "random_cutout",
    "random_flip_left_right",
    "random_gamma",
    "random_gaussian_blur",
    "random_grayscale",
    "random_solarize",
    "random_tone_curve",
    "simclr",
    "small_grey",
    "solarize",
    "tone_curve",
    "with_probability",
]
