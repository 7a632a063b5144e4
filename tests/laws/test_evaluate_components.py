"""Principal components: scikit-learn's PCA, and laws."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from byol_jax import ConfigurationError, DataError
from byol_jax.evaluate import principal_components


@pytest.mark.parametrize("shape", [(40, 9), (6, 30)])
def test_it_is_scikit_learn_s(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32) * np.arange(1, shape[1] + 1, dtype=np.float32)
    model = PCA(3, svd_solver="full")
    expected = model.fit_transform(x.astype(np.float64))
    found = principal_components(x, count=3)
    np.testing.assert_allclose(np.abs(found.coordinates), np.abs(expected), atol=1e-9)
    np.testing.assert_allclose(found.explained, model.explained_variance_ratio_, atol=1e-12)
    moved = principal_components(x + np.float32(8), count=3)
    np.testing.assert_allclose(moved.coordinates, found.coordinates, atol=1e-4)


def test_points_that_are_all_alike_stay_in_one_place():
    found = principal_components(np.full((4, 3), 0.1, np.float32))
    assert np.abs(found.coordinates).max() < 1e-12
    assert found.explained.sum() <= 1


def test_bad_input_is_one_line():
    with pytest.raises(ConfigurationError, match=r"count=4: expected 1 to 3, the smaller side of \(5, 3\)"):
        principal_components(np.ones((5, 3)), count=4)
    with pytest.raises(DataError, match="features has NaN"):
        principal_components(np.full((5, 3), np.nan))
