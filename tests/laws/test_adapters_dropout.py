"""Randomness inside networks written as linen, nnx and functions: whose key it follows, its rate, and when it's off.

The view of every image is the image itself, so that nothing but dropout can differ. The network is in one_network.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from one_network import QUICKLY, WAYS, batches, learner_of, unchanged, written

from byol_jax import parallel

SHAPE, RATE = (16, 16, 3), 0.3
OPTIONS = {"hidden_layer": "drop", "augment_fn": unchanged, "augment_fn2": unchanged}

pytestmark = pytest.mark.slow


def features(learner, state, images, key):
    """[N, 2, D] of an online network in training, for both views."""
    _, aux = learner.loss(state.online.params, state, images, key)
    return aux.outputs.features.reshape(len(images), 2, -1)


@pytest.fixture(scope="module", params=WAYS)
def pair(request):
    """The learner with dropout, its state, the jitted `features`, and what dropout was given."""
    learners = [learner_of(written(request.param, SHAPE, rate), SHAPE, **OPTIONS) for rate in (RATE, 0.0)]
    state, images = learners[0].init(jax.random.key(0)), jnp.asarray(batches(SHAPE, 1)[0])
    run, still = (
        jax.jit(lambda state, images, key, one=one: features(one, state, images, key), compiler_options=QUICKLY)
        for one in learners
    )
    return learners, state, images, run, still(state, images, jax.random.key(0))


def test_dropout_keeps_its_rate_and_rescales(pair):
    """Of the inputs that aren't zero, against a binomial's five standard deviations."""
    _, state, images, run, given = pair
    dropped = np.asarray(run(state, images, jax.random.key(7)))
    reached = np.asarray(given) > 1e-6
    ratio = dropped[reached] / np.asarray(given)[reached]
    kept = ratio > 0.5
    np.testing.assert_allclose(ratio[kept], 1 / (1 - RATE), rtol=1e-4)
    assert (ratio[~kept] == 0).all()
    assert kept.size > 3000
    assert abs(kept.mean() - (1 - RATE)) < 5 * np.sqrt(RATE * (1 - RATE) / kept.size)


def test_dropout_follows_the_steps_key_and_differs_between_views(pair):
    learners, state, images, run, _ = pair
    first, second = (jax.random.fold_in(state.key, step) for step in (0, 1))
    once = run(state, images, first)
    np.testing.assert_array_equal(once, run(state, images, first))
    with jax.disable_jit():
        np.testing.assert_allclose(features(learners[0], state, images, first), once, rtol=2e-6, atol=2e-6)
    assert _share_of_equal_zeros(once, run(state, images, second)) < 0.6
    assert _share_of_equal_zeros(once[:, 0], once[:, 1]) < 0.6, "views of one image share their mask"
    assert _share_of_equal_zeros(once[0], once[1]) < 0.9, "images share their mask"


def _share_of_equal_zeros(left, right):
    """Of what is zero on either side; 1 for one mask. Inputs may be zero as well, on both sides."""
    left, right = (np.asarray(side) == 0 for side in (left, right))
    return (left & right).sum() / (left | right).sum()


def test_dropout_is_off_in_evaluation(pair):
    (with_dropout, without), state, images, _, _ = pair
    embedded = with_dropout.embed(state, images)
    np.testing.assert_array_equal(embedded, with_dropout.embed(state, images))
    np.testing.assert_array_equal(embedded, without.embed(state, images))
    np.testing.assert_allclose(embedded[:3], with_dropout.embed(state, images[:3]), atol=2e-6)


def test_dropout_differs_between_devices(pair, request):
    """Every device gets the same two images; statistics are synchronised, so only masks can differ."""
    way = request.node.callspec.params["pair"]
    learner = learner_of(written(way, SHAPE, RATE), SHAPE, axis_name=parallel.AXIS, **OPTIONS)
    state, images = pair[1], pair[2][:2]

    def on_each(state, images):
        return features(learner, state, images, jax.random.key(7))

    run = jax.pmap(on_each, axis_name=parallel.AXIS, in_axes=(None, 0), devices=jax.devices()[:2])
    first, second = run(state, jnp.stack([images] * 2))
    assert _share_of_equal_zeros(first, second) < 0.6
