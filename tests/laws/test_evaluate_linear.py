"""The linear probe: the same optimum as scikit-learn's, honest use of the validation rows, laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from byol_jax import ConfigurationError, DataError
from byol_jax.evaluate import fit_logistic, linear_probe
from byol_jax.evaluate.linear import validation_rows
from byol_jax.evaluate.logistic import principal_axes
from tests.laws.test_evaluate_knn import blobs

PROBLEM = {"train": 300, "test": 100, "dimensions": 12, "classes": 4}


def objective(weights, bias, x, labels, l2):
    """The formula, in float64."""
    logits = x.astype(np.float64) @ weights + bias
    logits -= logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(x)), labels]
    return losses.mean() + l2 / 2 * np.square(weights, dtype=np.float64).sum()


def standardise(x):
    return ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32)


def oracle(x, labels, l2):
    """scikit-learn's weights [D, K] and bias [K]."""
    model = LogisticRegression(C=1 / (len(x) * l2), tol=1e-10, max_iter=5000).fit(x.astype(np.float64), labels)
    weights, bias = model.coef_.T, model.intercept_
    if weights.shape[1] > 1:
        return weights, bias
    return np.hstack([-weights, weights]) / 2, np.hstack([-bias, bias]) / 2  # two classes: one column stands for both


@pytest.mark.parametrize("l2", [pytest.param(0.3, marks=pytest.mark.slow), 0.01, 0.001])
def test_the_optimum_is_scikit_learns(l2):
    x, labels, *_ = blobs(0, **PROBLEM)
    x = standardise(x)
    fit = fit_logistic(principal_axes(jnp.asarray(x)), labels, class_count=4, l2=l2, tolerance=2e-5)
    weights, bias = oracle(x, labels, l2)
    np.testing.assert_allclose(fit.weights, weights, atol=1e-3)
    np.testing.assert_allclose(fit.bias, bias - bias.mean(), atol=1e-3)
    best = objective(weights, bias, x, labels, l2)
    assert objective(np.asarray(fit.weights), np.asarray(fit.bias), x, labels, l2) - best < 1e-6
    assert float(fit.objective) == pytest.approx(best, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3])
def test_more_than_32768_rows_of_three_numbers(classes):
    """On a CPU jaxlib 0.9.1 to 0.10.2 has such products wrong where XLA joins them with a sum over the classes."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 40_001)
    x = standardise(random.standard_normal((40_001, 3)) + 2 * np.eye(3)[labels])
    fit = fit_logistic(principal_axes(jnp.asarray(x)), labels, class_count=classes, l2=1e-3)
    weights, bias = np.asarray(fit.weights), np.asarray(fit.bias)
    assert float(fit.objective) == pytest.approx(objective(weights, bias, x, labels, 1e-3), abs=1e-5)
    raised = np.exp(x.astype(np.float64) @ weights + bias)
    shares = raised / raised.sum(axis=1, keepdims=True) - np.eye(classes)[labels]
    np.testing.assert_allclose(x.T @ shares / len(x) + 1e-3 * weights, 0, atol=2e-4)


@pytest.mark.slow
def test_two_classes_and_more_dimensions_than_rows():
    x, labels, *_ = blobs(1, train=40, test=1, dimensions=90, classes=2)
    x = standardise(x)
    fit = fit_logistic(principal_axes(jnp.asarray(x)), labels, class_count=2, l2=0.03, tolerance=2e-5)
    weights, _ = oracle(x, labels, 0.015)  # one column w stands for two of ±w/2, whose squares add up to w²/2
    np.testing.assert_allclose(fit.weights, weights, atol=1e-3)


@pytest.mark.slow
def test_without_rotation_the_optimum_is_the_same(monkeypatch):
    from byol_jax.evaluate import logistic

    x, labels, *_ = blobs(2, **PROBLEM)
    x = jnp.asarray(standardise(x))
    rotated = fit_logistic(principal_axes(x), labels, class_count=4, l2=0.01, tolerance=2e-5)
    monkeypatch.setattr(logistic, "MAX_ROTATED_DIMENSIONS", 11)
    principal_axes.clear_cache()
    axes = principal_axes(x)
    principal_axes.clear_cache()
    assert axes.axes is None
    plain = fit_logistic(axes, labels, class_count=4, l2=0.01, tolerance=2e-5)
    np.testing.assert_allclose(plain.weights, rotated.weights, atol=1e-3)


def test_a_row_of_weight_zero_is_as_if_absent():
    x, labels, *_ = blobs(3, **PROBLEM)
    x, kept = standardise(x), np.arange(300) % 3 > 0
    axes = principal_axes(jnp.asarray(x))
    masked = fit_logistic(axes, labels, class_count=4, l2=0.02, row_weights=kept, tolerance=2e-5)
    weights, _ = oracle(x[kept], labels[kept], 0.02)
    np.testing.assert_allclose(masked.weights, weights, atol=1e-3)


def test_the_start_changes_nothing_but_the_time():
    x, labels, *_ = blobs(4, **PROBLEM)
    axes = principal_axes(jnp.asarray(standardise(x)))
    strong = fit_logistic(axes, labels, class_count=4, l2=0.1)
    warm = fit_logistic(axes, labels, class_count=4, l2=0.01, start=strong, tolerance=2e-5)
    cold = fit_logistic(axes, labels, class_count=4, l2=0.01, tolerance=2e-5)
    np.testing.assert_allclose(warm.weights, cold.weights, atol=1e-3)
    again = fit_logistic(axes, labels, class_count=4, l2=0.01, start=cold, tolerance=1e-4)
    assert int(again.iterations) == 0


def test_weights_are_for_features_as_they_came():
    train, labels, test, test_labels = blobs(5, **PROBLEM)
    train, test = train * 50 + 3, test * 50 + 3
    result = linear_probe(train, labels, test, test_labels)
    assert result.weights.shape == (12, 4)
    np.testing.assert_array_equal(np.argmax(test @ result.weights + result.bias, axis=1), result.predictions)
    assert result.accuracy == pytest.approx(np.mean(result.predictions == test_labels))
    assert result.gradient_norm <= 1e-4
    weights, _ = oracle(standardise(train), labels, result.l2)
    np.testing.assert_allclose(result.weights * train.std(axis=0)[:, None], weights, atol=2e-3)


def test_the_choice_of_l2_is_the_validation_rows_alone():
    train, labels, test, test_labels = blobs(6, **PROBLEM)
    candidates = (1e-4, 0.03, 3.0)
    result = linear_probe(train, labels, test, test_labels, l2=candidates, seed=1)
    held_out = validation_rows(labels, fraction=0.2, seed=1)
    x, scores = standardise(train), {}
    for l2 in candidates:
        weights, bias = oracle(x[~held_out], labels[~held_out], l2)
        scores[l2] = np.mean(np.argmax(x[held_out] @ weights + bias, axis=1) == labels[held_out])
    assert result.l2 == max(l2 for l2 in candidates if scores[l2] == max(scores.values()))
    assert result.validation_accuracy == pytest.approx(scores[result.l2])
    other = linear_probe(train, labels, test[:10], test_labels[:10] * 0, l2=candidates[::-1], seed=1)
    assert other.l2 == result.l2
    np.testing.assert_allclose(other.weights, result.weights, atol=1e-6)


def test_validation_rows_are_a_share_of_each_class():
    classes = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    held_out = validation_rows(classes, fraction=0.2, seed=0)
    assert [int(held_out[classes == label].sum()) for label in range(4)] == [10, 2, 0, 0]
    assert not np.array_equal(held_out, validation_rows(classes, fraction=0.2, seed=1))
    np.testing.assert_array_equal(held_out, validation_rows(classes, fraction=0.2, seed=0))
    assert not validation_rows(classes, fraction=0.999, seed=0).all()


def test_constant_dimensions_get_weight_zero():
    train, labels, test, test_labels = blobs(7, **PROBLEM)
    train[:, -1], test[:, -1] = 0.1, 9.0  # 0.1 isn't a float32, so its mean and deviation aren't exact
    result = linear_probe(train, labels, test, test_labels)
    assert np.all(result.weights[-1] == 0)
    rest = oracle(standardise(train[:, :-1]), labels, result.l2)
    np.testing.assert_allclose(result.weights[:-1] * train[:, :-1].std(axis=0)[:, None], rest[0], atol=2e-3)


@pytest.mark.parametrize("scale", [1e-22, 1e20])
def test_scale_of_features_changes_no_prediction(scale):
    train, labels, test, test_labels = blobs(7, **PROBLEM)
    expected = linear_probe(train, labels, test, test_labels)
    found = linear_probe(train * np.float32(scale), labels, test * np.float32(scale), test_labels)
    assert np.mean(found.predictions == expected.predictions) > 0.97  # rounding may turn a close one


@pytest.mark.slow
def test_the_probe_is_float32s_with_64_bits_on():
    train, labels, test, test_labels = blobs(7, **PROBLEM)
    with jax.enable_x64(True):
        found = linear_probe(train, labels, test, test_labels)
    assert (found.weights.dtype, found.bias.dtype) == (np.float32, np.float32)
    assert found.accuracy == pytest.approx(linear_probe(train, labels, test, test_labels).accuracy, abs=0.02)


def test_labels_that_the_training_part_lacks_are_never_predicted():
    train, labels, test, test_labels = blobs(8, **PROBLEM)
    result = linear_probe(train, labels * 10, test, np.full_like(test_labels, 5))
    assert result.accuracy == 0
    assert set(result.predictions) <= {0, 10, 20, 30}


@pytest.mark.slow
def test_sharded_features_give_the_same():
    train, labels, test, test_labels = blobs(9, train=304, test=104, dimensions=12, classes=4)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = linear_probe(jax.device_put(train, rows), labels, jax.device_put(test, rows), test_labels)
    single = linear_probe(train, labels, test, test_labels)
    assert sharded.l2 == single.l2
    np.testing.assert_allclose(sharded.weights, single.weights, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"l2": ()}, ConfigurationError, r"l2=\(\): expected one or more"),
        ({"l2": (0.1, 0.0)}, ConfigurationError, r"l2=\(0.1, 0.0\)"),
        ({"validation_fraction": 1.0}, ConfigurationError, r"validation_fraction=1.0"),
        ({"validation_fraction": 1e-4}, DataError, r"validation_fraction=0.0001 of 120 training rows"),
        ({1: np.zeros(120, int)}, DataError, r"one class only"),
        ({0: np.full((120, 9), np.nan, np.float32)}, DataError, r"train_features has NaN"),
    ],
)
def test_bad_input_is_one_line(change, error, words):
    data = list(blobs(0))
    options = {name: value for name, value in change.items() if isinstance(name, str)}
    for position in change.keys() - options.keys():
        data[position] = change[position]
    with pytest.raises(error, match=words) as raised:
        linear_probe(*data, **options)
    assert "\n" not in str(raised.value)
