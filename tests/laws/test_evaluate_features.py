"""Collapse, controls, the table of feature sets, and features batch by batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byol_jax import ConfigurationError, DataError, metrics
from byol_jax.data import EvaluationImages, open_dataset
from byol_jax.evaluate import collapse, compare, extract, knn, linear_probe, raw_pixels
from tests.laws.test_evaluate_knn import blobs


def gaussian(seed, count=500, dimensions=32):
    return np.random.default_rng(seed).normal(size=(count, dimensions)).astype(np.float32)


def test_even_spread_is_healthy():
    result = collapse(gaussian(0, 4000))
    assert result.feature_std == pytest.approx(1 / np.sqrt(32), rel=0.02)
    assert result.effective_rank == pytest.approx(32, rel=0.02)
    assert result.mean_cosine == pytest.approx(0, abs=0.01)
    assert result.collapsed is False


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-3])
def test_one_point_is_collapsed(noise):
    result = collapse(5 * np.ones((200, 16), np.float32) + np.float32(noise) * gaussian(1, 200, 16))
    assert result.collapsed is True
    assert result.mean_cosine == pytest.approx(1, abs=1e-5)
    assert result.effective_rank < 1.01
    assert np.isfinite(result.feature_std)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(1, 30), st.integers(0, 1000), st.floats(0, 3))
def test_the_numbers_are_their_definitions(count, dimensions, seed, offset):
    x = gaussian(seed, count, dimensions) + np.float32(offset)
    result = collapse(x)
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    cosines = (unit @ unit.T)[~np.eye(count, dtype=bool)]
    assert result.mean_cosine == pytest.approx(cosines.mean(), abs=1e-9)
    assert result.feature_std == pytest.approx(unit.std(axis=0).mean(), abs=1e-9)
    p = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    p = p / p.sum()
    assert result.effective_rank == pytest.approx(np.exp(-np.sum(p[p > 0] * np.log(p[p > 0]))), rel=1e-5)
    assert 1 <= result.effective_rank + 1e-9 <= min(count, dimensions) + 1e-6
    assert 0 <= result.feature_std <= 1 / np.sqrt(dimensions) + 1e-9


def test_spread_is_what_training_logs():
    x = gaussian(2) + 1
    assert collapse(x).feature_std == pytest.approx(float(metrics.feature_std(jnp.asarray(x))), rel=1e-5)


def test_few_dimensions_show_in_the_rank_alone():
    flat = gaussian(3, 400, 4) @ gaussian(4, 4, 64)
    result = collapse(flat)
    assert result.effective_rank < 4.01
    assert not result.collapsed


def test_zeros_are_collapsed():
    assert collapse(np.zeros((4, 8), np.float32)) == (0.0, 1.0, 0.0, True)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ones((1, 4), np.float32), "one row"),
        (np.ones(4, np.float32), r"embeddings has shape \(4,\)"),
        (np.array([[0, np.nan], [0, 0]], np.float32), "NaN or infinity in 1 of 2 rows"),
        (np.ones((2, 2), int), "dtype int"),
    ],
)
def test_collapse_refuses_in_one_line(x, words):
    with pytest.raises(DataError, match=words):
        collapse(x)


def test_raw_pixels_are_the_images():
    images = np.random.default_rng(0).integers(0, 256, size=(3, 4, 5, 2), dtype=np.uint8)
    features = raw_pixels(images)
    assert features.shape == (3, 40)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, images.reshape(3, -1).astype(np.float32) / 255)
    np.testing.assert_array_equal(raw_pixels(images[..., 0] / 255.0), features[:, ::2])
    np.testing.assert_array_equal(raw_pixels(jnp.asarray(images)), features)


@pytest.mark.parametrize("images", [np.zeros((2, 3)), np.zeros((0, 2, 2, 1)), np.zeros((1, 2, 2, 1), int)])
def test_raw_pixels_refuse_other_things(images):
    with pytest.raises(DataError, match="images have"):
        raw_pixels(images)


@pytest.mark.slow
def test_compare_is_knn_with_centring_and_the_probe():
    train, labels, test, test_labels = blobs(0, train=300, test=100, dimensions=12, classes=4)
    table = compare({"a": (train, test), "b": (train + 5, test + 5)}, labels, test_labels, k=9)
    assert list(table) == ["a", "b"]
    centred = knn(train, labels, test, test_labels, k=9, center=True).accuracy
    probe = linear_probe(train, labels, test, test_labels).accuracy
    assert table["a"] == {"knn": centred, "linear": probe}
    assert table["b"]["knn"] == pytest.approx(centred, abs=0.011)  # an offset is no handicap
    assert type(table["a"]["knn"]) is float


def test_compare_says_which_set_is_wrong():
    train, labels, test, test_labels = blobs(0)
    with pytest.raises(DataError, match=r"^mine: train_features have 9 dimensions and test_features 3"):
        compare({"mine": (train, test[:, :3])}, labels, test_labels)
    with pytest.raises(ConfigurationError, match="feature_sets is empty"):
        compare({}, labels, test_labels)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16])
def test_extract_is_the_function_on_all_images(count):
    images = gaussian(count, count, 12).reshape(count, 2, 3, 2)
    shapes = []

    @jax.jit
    def embed(batch):
        shapes.append(batch.shape)
        return 2 * batch.reshape(len(batch), -1)

    np.testing.assert_array_equal(extract(embed, images, batch_size=8), 2 * images.reshape(count, -1))
    assert shapes == [(8, 2, 3, 2)]  # traced once, for one shape


@pytest.mark.parametrize("count", [9, 15])
def test_rows_that_depend_on_each_other_are_not_padded(count):
    """Features minus the batch's mean: the last batch is one of its own, and a warning says so."""
    images = gaussian(count, count, 6)

    def embed(batch):
        return batch - batch.mean(0)

    with pytest.warns(UserWarning, match=f"depend on the other images of its batch.*the last {count - 8} are"):
        found = extract(embed, images, batch_size=8)
    np.testing.assert_array_equal(found, np.concatenate([embed(images[:8]), embed(images[8:])]))
    np.testing.assert_array_equal(extract(embed, images[:8], batch_size=8), embed(images[:8]))


def test_rows_that_are_not_finite_are_given_as_they_are():
    images = np.array([[1.0, 2.0], [np.inf, 1.0], [np.nan, 4.0]])
    np.testing.assert_array_equal(extract(lambda batch: 2 * batch, images, batch_size=2), 2 * images)


def test_extract_takes_images_that_are_made_slice_by_slice():
    """A dataset's images, in any order and repeated; after each batch it says how far it is."""
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)  # [N, H, W, C]
    order, said = np.array([7, 0, 3, 3, 9]), []
    lazy = EvaluationImages(open_dataset(images), order, 4)
    found = extract(lambda batch: batch[:, 0, 0], lazy, batch_size=2, progress=lambda *done: said.append(done))
    np.testing.assert_array_equal(found, images[order][:, 0, 0])
    assert said == [(2, 5), (4, 5), (5, 5)]


def test_extract_refuses_in_one_line():
    with pytest.raises(DataError, match="no images"):
        extract(lambda batch: batch, np.zeros((0, 2)))
    with pytest.raises(DataError, match=r"embed gave shape \(4, 2, 2\) for 4 images"):
        extract(lambda batch: batch, np.zeros((3, 2, 2)), batch_size=4)
    with pytest.raises(ConfigurationError, match="batch_size=0"):
        extract(lambda batch: batch, np.zeros((3, 2)), batch_size=0)
