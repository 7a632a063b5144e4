"""Bootstrap intervals against the closed form and the definition; confusion matrices against scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from byol_jax import ConfigurationError, DataError
from byol_jax.evaluate import bootstrap_interval, confusion_matrix


@pytest.mark.parametrize(("right", "count"), [(0.5, 2000), (0.9, 2000), (0.97, 400)])
def test_an_accuracy_s_interval_is_the_binomial_s(right, count):
    """Resampling right and wrong is drawing from a binomial; for many images also the normal approximation."""
    values = np.arange(count) < right * count
    low, high = bootstrap_interval(values, resamples=20_000)
    exact = stats.binom(count, right).ppf([0.025, 0.975]) / count
    np.testing.assert_allclose([low, high], exact, atol=1.5 / count)
    if count == 2000:
        half = 1.96 * np.sqrt(right * (1 - right) / count)
        np.testing.assert_allclose([low, high], [right - half, right + half], atol=0.1 * half)


def test_several_share_their_draws_and_equal_each_alone():
    random = np.random.default_rng(0)
    values = random.random((3, 50)) < 0.7
    low, high = bootstrap_interval(values, seed=5)
    for row, one in enumerate(values):
        np.testing.assert_allclose((low[row], high[row]), bootstrap_interval(one, seed=5))
    np.testing.assert_array_equal(bootstrap_interval(values[0] * 1.0 - values[0], seed=5), (0, 0))
    numbers = random.random(50)
    assert bootstrap_interval(numbers, seed=5) != bootstrap_interval(numbers, seed=6)


def test_it_is_scipy_s_bootstrap():
    """Another one's draws, of numbers that aren't 0 and 1."""
    values = np.random.default_rng(1).exponential(size=300)
    theirs = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(2), vectorized=True
    ).confidence_interval
    found = bootstrap_interval(values, resamples=20_000)
    np.testing.assert_allclose(found, (theirs.low, theirs.high), atol=0.05 * (theirs.high - theirs.low))


def test_chunks_change_little_and_certainty_has_no_width(monkeypatch):
    from byol_jax.evaluate import interval

    values = np.random.default_rng(3).random(60) < 0.4
    whole = bootstrap_interval(values, resamples=5000)
    monkeypatch.setattr(interval, "DRAWS", 60 * 7)
    np.testing.assert_allclose(bootstrap_interval(values, resamples=5000), whole, atol=0.02)
    assert bootstrap_interval(np.ones(9, bool)) == (1, 1)


@pytest.mark.parametrize(
    ("values", "options", "error", "words"),
    [
        (np.ones(0), {}, DataError, r"values have shape \(0,\)"),
        (np.ones((2, 2, 2)), {}, DataError, r"values have shape \(2, 2, 2\)"),
        (np.array([1.0, np.nan]), {}, DataError, "NaN"),
        (np.ones(3), {"level": 1.0}, ConfigurationError, "level=1.0"),
        (np.ones(3), {"resamples": 99}, ConfigurationError, "resamples=99"),
    ],
)
def test_bad_input_is_one_line(values, options, error, words):
    with pytest.raises(error, match=words) as raised:
        bootstrap_interval(values, **options)
    assert "\n" not in str(raised.value)


def test_the_confusion_matrix_is_scikit_learn_s():
    random = np.random.default_rng(4)
    labels, predictions = random.integers(0, 5, 200) * 3, random.integers(0, 4, 200) * 3
    np.testing.assert_array_equal(confusion_matrix(labels, predictions), metrics.confusion_matrix(labels, predictions))
    names = np.array([0, 3, 6, 7, 9, 12])
    expected = metrics.confusion_matrix(labels, predictions, labels=names)
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, classes=names), expected)
    for classes in ([0, 6, 3, 9, 12], [0, 3, 3, 6, 9, 12], np.array([12, 9, 6, 3, 0], np.uint8)):
        with pytest.raises(DataError, match="expected ascending numbers, each once"):
            confusion_matrix(labels, predictions, classes=classes)
    with pytest.raises(DataError, match="classes lack 6, 9, 12"):
        confusion_matrix(labels, predictions, classes=[0, 3])
    with pytest.raises(DataError, match=r"labels int64 \(200,\) and predictions int64 \(9,\)"):
        confusion_matrix(labels, predictions[:9])
