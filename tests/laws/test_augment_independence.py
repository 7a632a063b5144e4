"""Every image, view and step draws for itself, and no image's views depend on the batch that it came in."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from augment_draws import byol_draws, simclr_draws
from augment_statistics import check_equally_likely, check_share, check_uncorrelated, check_uniform

from byol_jax import augment
from byol_jax.views import sample_views

COUNT = 100_000
CHANCES = {"flip": 0.5, "colour": 0.8, "grey": 0.2, "solarize": 0.2}
RANGES = {
    "brightness": (-0.4, 0.4),
    "contrast": (0.6, 1.4),
    "saturation": (0.8, 1.2),
    "hue": (-0.1, 0.1),
    "sigma": (0.1, 2.0),
}


@cache
def byol_numbers():
    """{(step, view): {what: [COUNT]}} as the learner's own views draw them: an augmentation that gives its numbers."""

    def numbers(key, image):
        return {name: number for name, number in byol_draws(key).items() if name != "order"}

    @jax.jit
    def both(step):
        key = jax.random.fold_in(jax.random.key(7), step)
        return sample_views(numbers, numbers, jnp.zeros((COUNT, 1)), key)

    drawn = {}
    for step in (0, 1):
        for view, made in zip((1, 2), both(step), strict=True):
            crop = {f"crop {place}": made["crop"][:, place] for place in range(4)}
            drawn[step, view] = {name: np.asarray(number) for name, number in (made | crop).items() if name != "crop"}
    return drawn


@pytest.mark.slow
def test_the_papers_probabilities_and_ranges():
    first = byol_numbers()[0, 1]
    for name, p in CHANCES.items():
        check_share(first[name] < p, p)
    for name, bounds in RANGES.items():
        check_uniform(first[name], *bounds)
    for place in range(4):
        check_uniform(first[f"crop {place}"], 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("function", [byol_draws, simclr_draws])
def test_the_four_colour_operations_come_in_any_order(function):
    orders = jax.jit(jax.vmap(lambda key: function(key)["order"]))(jax.random.split(jax.random.key(3), 48_000))
    assert (np.sort(orders, axis=1) == np.arange(4)).all()
    check_equally_likely(np.asarray(orders) @ (1000, 100, 10, 1), 24)


@pytest.mark.slow
def test_no_number_tells_of_another():
    """The next image's, the other view's, the next step's, and the other numbers of the same view."""
    drawn = byol_numbers()
    names = sorted(drawn[0, 1])
    assert len(names) == 14
    for name in names:
        here, other_view, next_step = drawn[0, 1][name], drawn[0, 2][name], drawn[1, 1][name]
        for other in (other_view, next_step, np.roll(here, 1), np.roll(here, 2)):
            assert np.mean(here == other) < 1e-3
            check_uncorrelated(here, other)
    for position, name in enumerate(names):
        for another in names[position + 1 :]:
            check_uncorrelated(drawn[0, 1][name], drawn[0, 1][another])


@pytest.mark.slow
def test_an_images_views_depend_on_its_place_alone():
    """Not on the batch's size nor on its other images; the same pixels in another place get other views."""
    generator = np.random.default_rng(0)
    images = generator.uniform(size=(8, 10, 12, 3)).astype(np.float32)
    others = np.concatenate([images[:3], generator.uniform(size=(5, 10, 12, 3)).astype(np.float32)])
    sets = augment.byol(8, view=2), augment.small_grey(8)
    views = jax.jit(lambda batch, key: jnp.stack(sample_views(*sets, batch, key)))
    key = jax.random.key(1)
    whole = np.asarray(views(images, key))  # [2, 8, 8, 8, 3]
    np.testing.assert_array_equal(views(others, key)[:, :3], whole[:, :3])
    np.testing.assert_allclose(views(images[:3], key), whole[:, :3], rtol=0, atol=1e-6)

    same = np.asarray(views(np.broadcast_to(images[:1], images.shape), key)).reshape(16, -1)
    next_step = np.asarray(views(np.broadcast_to(images[:1], images.shape), jax.random.key(2))).reshape(16, -1)
    distances = np.abs(same[:, None] - np.concatenate([same, next_step])[None]).max(axis=-1)
    np.fill_diagonal(distances, 1)
    assert distances.min() > 1e-3


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_with_keys_of_every_kind_an_image_has_the_same_views_in_any_batch(impl):
    """`vmap` over rbg's keys uses the first alone, so that a number depends on its neighbours."""

    def noise(key, image):
        return image + jax.random.uniform(key, image.shape)

    key, images = jax.random.key(3, impl=impl), jnp.zeros((6, 4))
    whole = sample_views(noise, noise, images, key)
    part = sample_views(noise, noise, images[2:4], key, first=2)
    for of_all, of_part in zip(whole, part, strict=True):
        np.testing.assert_array_equal(of_all[2:4], of_part)
        assert len(np.unique(of_all)) == of_all.size
    assert not np.array_equal(*whole)
    other = sample_views(noise, noise, images, jax.random.key(4, impl=impl))
    assert not np.array_equal(whole[0], other[0])
