"""kNN against a loop, scikit-learn and its own laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from byol_jax import ConfigurationError, DataError
from byol_jax.evaluate import knn


def blobs(seed, *, train=120, test=37, dimensions=9, classes=5):
    """Overlapping classes, so that neighbours disagree: (train, labels, test, labels)."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, dimensions))
    labels = [random.integers(0, classes, size=count).astype(np.int32) for count in (train, test)]
    points = [
        (centres[label] + random.normal(size=(len(label), dimensions)) + 1).astype(np.float32) for label in labels
    ]
    return points[0], labels[0], points[1], labels[1]


def brute_force(train, train_labels, test, *, k, temperature, center):
    """The definition, one test row at a time, in float64."""
    train, test = train.astype(np.float64), test.astype(np.float64)
    mean = train.mean(axis=0) if center else 0.0
    train, test = train - mean, test - mean
    predictions = []
    for row in test:
        similarity = train @ row / np.linalg.norm(train, axis=1) / np.linalg.norm(row)
        nearest = np.argsort(-similarity, kind="stable")[:k]
        scores = np.zeros(train_labels.max() + 1)
        for index in nearest:
            scores[train_labels[index]] += np.exp(similarity[index] / temperature)
        predictions.append(np.argmax(scores))
    return np.array(predictions)


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (20, 0.5), (120, 1.0)])
def test_equals_the_definition(k, temperature, center):
    train, labels, test, test_labels = blobs(k)
    result = knn(train, labels, test, test_labels, k=k, temperature=temperature, center=center)
    expected = brute_force(train, labels, test, k=k, temperature=temperature, center=center)
    np.testing.assert_array_equal(result.predictions, expected)
    assert result.accuracy == pytest.approx(np.mean(expected == test_labels))
    assert 0.2 < result.accuracy < 1


@pytest.mark.parametrize("counts", [(20, 1, 7), [5], np.array([3, 120])])
def test_several_k_are_each_by_itself(counts):
    train, labels, test, test_labels = blobs(11)
    results = knn(train, labels, test, test_labels, k=counts, center=True)
    assert list(results) == list(counts)
    for k, result in results.items():
        expected = brute_force(train, labels, test, k=k, temperature=0.07, center=True)
        np.testing.assert_array_equal(result.predictions, expected)
        assert result.accuracy == knn(train, labels, test, test_labels, k=k, center=True).accuracy


def test_equals_scikit_learn():
    train, labels, test, test_labels = blobs(3, train=400, test=150)
    oracle = KNeighborsClassifier(11, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = oracle.fit(train, labels).predict(test)
    np.testing.assert_array_equal(knn(train, labels, test, test_labels, k=11).predictions, expected)


def test_chunks_change_nothing(monkeypatch):
    import sys

    data = blobs(4)
    whole = knn(*data, k=5)
    monkeypatch.setattr(sys.modules["byol_jax.evaluate.knn"], "CHUNK_ELEMENTS", 120 * 10)  # 10 rows: 37 leaves a rest
    np.testing.assert_array_equal(knn(*data, k=5).predictions, whole.predictions)


@pytest.mark.slow
def test_sharded_and_jax_features_give_the_same():
    train, labels, test, test_labels = blobs(5, test=40)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = knn(jax.device_put(train, rows), labels, jax.device_put(test, rows), jnp.asarray(test_labels), k=7)
    np.testing.assert_array_equal(sharded.predictions, knn(train, labels, test, test_labels, k=7).predictions)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-30, 0.01, 1.0, 100.0, 1e25]))
def test_scale_of_features_changes_nothing(seed, scale):
    train, labels, test, test_labels = blobs(seed, train=40, test=12)
    expected = knn(train, labels, test, test_labels, k=5).predictions
    scaled = knn(train * np.float32(scale), labels, test * np.float32(scale), test_labels, k=5).predictions
    assert np.mean(scaled == expected) > 0.9  # rounding may turn a close vote


def test_powers_of_two_change_no_bit():
    train, labels, test, test_labels = blobs(3)
    for scale in (2.0**-90, 2.0**90):
        scaled = knn(train * np.float32(scale), labels, test * np.float32(scale), test_labels, k=5)
        np.testing.assert_array_equal(scaled.predictions, knn(train, labels, test, test_labels, k=5).predictions)


def test_a_training_row_is_its_own_nearest():
    train, labels, *_ = blobs(6)
    assert knn(train, labels, train, labels, k=1).accuracy == 1.0


def test_ties_go_to_the_earlier_row_and_the_smaller_label():
    train = np.ones((4, 2), np.float32)
    assert knn(train, np.array([7, 2, 2, 2]), train[:1], np.array([7]), k=1).predictions.tolist() == [7]
    assert knn(train, np.array([7, 2, 2, 2]), train[:1], np.array([7]), k=2).predictions.tolist() == [2]


def test_labels_need_not_be_dense_and_no_temperature_overflows():
    train = np.eye(3, dtype=np.float32)
    labels = np.array([5, 2_000_000_000, 9])
    result = knn(train, labels, train, labels, k=3, temperature=1e-4)
    assert result.predictions.tolist() == labels.tolist()
    assert result.accuracy == 1.0


def test_a_row_of_zeros_is_like_nothing():
    train = np.array([[0, 0], [1, 0]], np.float32)
    assert knn(train, np.array([0, 1]), np.zeros((1, 2), np.float32), np.array([0]), k=1).predictions.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"k": 0}, ConfigurationError, r"k=0: expected 1 to 120"),
        ({"k": 121}, ConfigurationError, r"k=121: expected 1 to 120"),
        ({"k": (5, 121)}, ConfigurationError, r"k=121: expected 1 to 120"),
        ({"k": ()}, ConfigurationError, r"k=\(\): expected a number, or several that differ"),
        ({"k": (5, 20, 5)}, ConfigurationError, r"k=\(5, 20, 5\): expected"),
        ({"temperature": 0.0}, ConfigurationError, r"temperature=0.0"),
        ({"temperature": np.nan}, ConfigurationError, r"temperature=nan"),
        ({0: np.zeros((120, 3), np.float32)}, DataError, r"3 dimensions and test_features 9"),
        ({0: np.zeros(120, np.float32)}, DataError, r"train_features has shape \(120,\)"),
        ({0: np.zeros((120, 9), np.uint8)}, DataError, r"train_features has dtype uint8"),
        ({2: np.zeros((0, 9), np.float32)}, DataError, r"test_features has shape \(0, 9\)"),
        ({2: np.full((37, 9), np.inf, np.float32)}, DataError, r"test_features has NaN or infinity in 37 of 37 rows"),
        ({1: np.zeros(119, int)}, DataError, r"train_labels has 119 entries for 120 rows"),
        ({1: np.full(120, -1)}, DataError, r"train_labels ranges from -1"),
        ({3: np.zeros(37)}, DataError, r"test_labels has shape \(37,\) and dtype float64"),
    ],
)
def test_bad_input_is_one_line(change, error, words):
    data = list(blobs(0))
    options = {name: value for name, value in change.items() if isinstance(name, str)}
    for position in change.keys() - options.keys():
        data[position] = change[position]
    with pytest.raises(error, match=words) as raised:
        knn(*data, **options)
    assert "\n" not in str(raised.value)
