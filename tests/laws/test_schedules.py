"""The schedules against DeepMind's own values, against NumPy in float64, and their errors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import ConfigurationError, schedules

DECAY_VALUES = {0: 0.996, 250: 0.99658579, 500: 0.998, 750: 0.99941421, 999: 0.99999999, 1000: 1.0}
RATE_VALUES = {0: 0.0, 1: 0.032, 50: 1.6, 99: 3.168, 100: 3.2, 550: 1.6, 999: 9.748e-6, 1000: 0.0}


def numpy_rate(base, batch_size, warmup, total, step):
    peak = base * batch_size / 256
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + np.cos(np.pi * min(step - warmup, total - warmup) / (total - warmup)))


@pytest.mark.parametrize(("step", "expected"), DECAY_VALUES.items())
def test_target_decay_has_the_reference_values(step, expected):
    value = schedules.target_decay(0.996, 1000)(step)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, atol=6e-8)  # half a unit in the last place below 1


@pytest.mark.parametrize(("step", "expected"), RATE_VALUES.items())
def test_learning_rate_has_the_reference_values(step, expected):
    value = schedules.learning_rate(0.2, 4096, 100, 1000)(step)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=2e-7)  # 1 + cos(π) rounds to 6e-8 of the peak


@pytest.mark.parametrize(("warmup", "total"), [(0, 7), (3, 40), (10, 5000), (3127, 93835)])
def test_learning_rate_is_numpys(warmup, total):
    steps = np.unique(np.linspace(0, total + 5, 97).astype(np.int32))
    expected = [numpy_rate(0.3, 1024, warmup, total, step) for step in steps]
    actual = jax.jit(schedules.learning_rate(0.3, 1024, warmup, total))(steps)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("base", "total"), [(0.0, 10), (0.98, 16_700), (0.9995, 300_000), (1.0, 3)])
def test_target_decay_is_numpys(base, total):
    steps = np.unique(np.linspace(0, total + 5, 97).astype(np.int32))
    expected = 1 - (1 - base) * 0.5 * (1 + np.cos(np.pi * np.minimum(steps, total) / total))
    np.testing.assert_allclose(jax.jit(schedules.target_decay(base, total))(steps), expected, atol=2e-7)


@pytest.mark.parametrize(
    "schedule", [lambda: schedules.target_decay(0.9, 20), lambda: schedules.learning_rate(1, 64, 5, 20)]
)
def test_arrays_python_ints_and_jit_agree(schedule):
    function = schedule()
    one_by_one = np.array([function(step) for step in range(25)])
    np.testing.assert_allclose(function(jnp.arange(25)), one_by_one, atol=1e-7)
    np.testing.assert_allclose(jax.jit(function)(jnp.arange(25)), one_by_one, atol=1e-7)
    assert all(b >= a for a, b in itertools.pairwise(one_by_one[:5]))


def test_without_warmup_the_first_step_has_the_peak():
    assert schedules.learning_rate(0.5, 512, 0, 10)(0) == 1.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: schedules.target_decay(1.5, 10), "base_decay=1.5"),
        (lambda: schedules.target_decay(float("nan"), 10), "base_decay=nan"),
        (lambda: schedules.target_decay(0.9, 0), "total_steps=0"),
        (lambda: schedules.learning_rate(0.1, 256, 11, 10), "warmup_steps=11"),
        (lambda: schedules.learning_rate(0.1, 256, -1, 10), "warmup_steps=-1"),
        (lambda: schedules.learning_rate(0.1, 0, 1, 10), "batch_size=0"),
        (lambda: schedules.learning_rate(-0.1, 256, 1, 10), "base_learning_rate=-0.1"),
        (lambda: schedules.learning_rate(0.1, 256, 0, -3), "total_steps=-3"),
    ],
)
def test_nonsense_is_one_clear_line(build, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)
