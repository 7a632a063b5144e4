"""From raw images to what the network sees: floats in [0, 1], two augmented views of each, normalised.

Where every random number of a step comes from is decided here, and nowhere else: see `sample_keys` and `dropout_key`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from byol_jax.errors import ConfigurationError
from byol_jax.ops.axis import device_count, device_index
from byol_jax.ops.precision import standard_promotion
from byol_jax.settings import Settings
from byol_jax.types import Images

__all__ = [
    "dropout_key",
    "network_input",
    "normalize_images",
    "sample_keys",
    "sample_views",
    "two_views",
    "unit_range",
]

DROPOUT = np.uint32(2**32 - 1)
"""Folded into a step's key for dropout; a sample's key folds in its index in the batch, which never gets there."""

THREEFRY = "threefry2x32"
"""JAX's default kind of keys."""


def two_views(s: Settings, images: Images, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both views of a batch as network inputs, [N, H, W, C] each.

    Args:
        key: the step's; or for each image its own, [N], as `sample_keys` gives them: so the views of a part of a batch
            are those that its images have in the whole batch.

    Raises:
        ConfigurationError: one image; images of another type or rank; views of another shape than the network's.
    """
    images = unit_range(s, images)
    count = images.shape[0]
    if count * device_count(s.axis_name) < 2:
        size = "1 image" if count else "no images"
        raise ConfigurationError(f"a batch of {size} can't train: batch norm has nothing to compare; use at least 2")
    keys = key if _is_an_array_of_keys(key) else sample_keys(s, key, count)
    augmented = _draw(s.augment1, s.augment2, images, keys)
    for name, view in zip(("augment_fn", "augment_fn2"), augmented, strict=True):
        if not jnp.issubdtype(view.dtype, jnp.floating):
            raise ConfigurationError(f"{name} gave {view.dtype}: expected floats in [0, 1], as the image that it takes")
    view1, view2 = (_normalize(s, view.astype(s.storage_dtype)) for view in augmented)
    if not s.separate_views and (view1.shape[1:] != s.image_shape or view2.shape != view1.shape):
        raise ConfigurationError(
            f"views of shapes {view1.shape[1:]} and {view2.shape[1:]}, expected {s.image_shape}: let augment_fn give"
            " image_size, or take views='separate' for views of unequal shape"
        )
    return view1, view2


def sample_keys(s: Settings, key: jax.Array, count: int) -> jax.Array:
    """The keys [N] of this device's `count` images: fold_in(key, index), `key` being the step's.

    Under a mapped axis an image's index is `axis_index * n + i`, so its views don't depend on how many devices share
    the batch.
    """
    return _fold_in_indices(key, device_index(s.axis_name) * count, count)


def sample_views(
    augment1: Callable, augment2: Callable, images: jax.Array, key: jax.Array, *, first: int | jax.Array = 0
) -> tuple[jax.Array, jax.Array]:
    """Both augmented views of float images [N, H, W, C] in [0, 1], before normalisation.

        sample key = fold_in(key, first + i)      view key = fold_in(sample key, 1 or 2)

    `key` is the step's, `first` the index in the whole batch of the first image.
    """
    return _draw(augment1, augment2, images, _fold_in_indices(key, first, images.shape[0]))


@standard_promotion()
def _fold_in_indices(key: jax.Array, first: int | jax.Array, count: int) -> jax.Array:
    key = _mappable(key)
    return jax.vmap(partial(jax.random.fold_in, key))(first + jnp.arange(count))  # [N]


def _mappable(key: jax.Array) -> jax.Array:
    """A threefry key. Of the keys [N] of another kind, such as "rbg", `vmap` uses the first alone: a sample's views
    would depend on which samples it is drawn with, on this device and in this part of the batch."""
    if str(jax.random.key_impl(key)) == THREEFRY:
        return key
    first, second, third, fourth = jax.random.key_data(key)  # the third and fourth are often the first and second again
    mappable = jax.random.wrap_key_data(jnp.stack([first, second]), impl=THREEFRY)
    return jax.random.fold_in(jax.random.fold_in(mappable, third), fourth)


@standard_promotion()
def _draw(
    augment1: Callable, augment2: Callable, images: jax.Array, sample_keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Both views of images [N, H, W, C] by their own keys [N]."""

    def view(number: int, function: Callable) -> jax.Array:
        keys = jax.vmap(lambda sample_key: jax.random.fold_in(sample_key, number))(sample_keys)  # [N]
        return jax.vmap(function)(keys, images)  # [N, H, W, C]

    return view(1, augment1), view(2, augment2)


def network_input(s: Settings, images: Images) -> jax.Array:
    """Raw images [N, H, W, C] as the network takes them in evaluation: floats in [0, 1], normalised, not augmented."""
    return normalize_images(s, unit_range(s, images))


def normalize_images(s: Settings, images: jax.Array) -> jax.Array:
    """Floats in [0, 1], [N, H, W, C], as the network takes them: what `unit_range` gives, augmented or not.

    Raises:
        ConfigurationError: images of another size than the network's.
    """
    if images.shape[1:] != s.image_shape:
        raise ConfigurationError(f"images of shape {images.shape[1:]}, expected {s.image_shape}: resize them first")
    return _normalize(s, images)


def dropout_key(s: Settings, key: jax.Array) -> jax.Array:
    """The key of everything random inside the networks in one step, another one on each device.

    Of images' own keys, [N], the first stands for the step's: every part of a batch, and every device, has another.
    """
    if _is_an_array_of_keys(key):
        return jax.random.fold_in(key[0], DROPOUT)
    key = jax.random.fold_in(key, DROPOUT)
    return key if s.axis_name is None else jax.random.fold_in(key, device_index(s.axis_name))


def _is_an_array_of_keys(key: jax.Array) -> bool:
    return jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 1


def unit_range(s: Settings, images: Images) -> jax.Array:
    """Raw images as floats in [0, 1], in the storage dtype, which is float32 or wider.

        with a value range      min(max((x - low) / (high - low), 0), 1)      uint8, uint16 and floats alike
        without                 x / 255 for uint8, x / 65535 for uint16; floats keep their values

    Raises:
        ConfigurationError: another rank, number of channels or dtype.
    """
    images = jnp.asarray(images)
    if images.ndim != 1 + len(s.image_shape) or images.shape[-1] != s.image_shape[-1]:
        raise ConfigurationError(
            f"a batch of shape {images.shape}: expected [N, {', '.join(map(str, s.image_shape))}], channels last"
        )
    is_whole = images.dtype in (jnp.uint8, jnp.uint16)
    if not is_whole and not jnp.issubdtype(images.dtype, jnp.floating):
        raise ConfigurationError(f"images of dtype {images.dtype}: expected uint8, uint16, or floating in [0, 1]")
    floats = images.astype(s.storage_dtype)
    if s.value_range is not None:
        low, high = (jnp.asarray(part, s.storage_dtype) for part in s.value_range)  # [1] or [C] each
        return jnp.clip((floats - low) / (high - low), 0, 1)
    return floats / int(jnp.iinfo(images.dtype).max) if is_whole else floats


def _normalize(s: Settings, images: jax.Array) -> jax.Array:
    if s.mean_std is None:
        return images
    mean, std = (jnp.asarray(part, images.dtype) for part in s.mean_std)
    return (images - mean) / std
