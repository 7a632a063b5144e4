"""Augmentations for one float image [H, W, C] in [0, 1]: deterministic functions, random twins, and BYOL's sets."""

from byol_jax.augment.chain import compose, with_probability
from byol_jax.augment.channels import (
    adjust_channel_brightness,
    adjust_channel_contrast,
    channel_dropout,
    channel_jitter,
    random_channel_dropout,
    random_gaussian_noise,
)
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
    flip_up_down,
    random_crop_and_resize,
    random_flip_left_right,
    random_flip_up_down,
)
from byol_jax.augment.sets import byol, crop_and_flip, multichannel, simclr, small_grey
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
    "adjust_channel_brightness",
    "adjust_channel_contrast",
    "adjust_contrast",
    "adjust_gamma",
    "adjust_hue",
    "adjust_saturation",
    "byol",
    "channel_dropout",
    "channel_jitter",
    "color_jitter",
    "compose",
    "crop_and_flip",
    "crop_and_resize",
    "cutout",
    "flip_left_right",
    "flip_up_down",
    "gaussian_blur",
    "grayscale",
    "multichannel",
    "random_channel_dropout",
    "random_crop_and_resize",
    "random_cutout",
    "random_flip_left_right",
    "random_flip_up_down",
    "random_gamma",
    "random_gaussian_blur",
    "random_gaussian_noise",
    "random_grayscale",
    "random_solarize",
    "random_tone_curve",
    "simclr",
    "small_grey",
    "solarize",
    "tone_curve",
    "with_probability",
]
