"""The order of images: a permutation, a pure function of (seed, epoch), the same for ever."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byol_jax import ConfigurationError, DataError
from byol_jax.data import batch_indices, batches_from, epoch_order, steps_per_epoch

SMALL = st.integers(0, 40)


@given(seed=st.integers(0, 2**64), epoch=SMALL, count=SMALL)
def test_an_epoch_is_a_permutation(seed, epoch, count):
    assert sorted(epoch_order(seed, epoch, count).tolist()) == list(range(count))


@given(seed=SMALL, epoch=SMALL)
def test_the_order_depends_on_seed_and_epoch_alone_and_on_both(seed, epoch):
    order = epoch_order(seed, epoch, 50).tolist()
    assert order == epoch_order(seed, epoch, 50).tolist()
    assert order != epoch_order(seed + 1, epoch, 50).tolist()
    assert order != epoch_order(seed, epoch + 1, 50).tolist()


def test_the_order_never_changes_between_versions():
    """These very numbers: a run that was started with another NumPy must resume with the same images."""
    assert epoch_order(0, 0, 10).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    assert epoch_order(7, 2, 10).tolist() == [0, 3, 5, 1, 8, 4, 9, 2, 6, 7]


def test_every_position_is_equally_likely():
    """Chi-squared over 20 positions: 2,000 epochs; 43.8 is the 99.9 % point for 19 degrees of freedom."""
    first = [epoch_order(1, epoch, 20)[0] for epoch in range(2000)]
    counts = np.bincount(first, minlength=20)
    assert ((counts - 100) ** 2 / 100).sum() < 43.8


@given(seed=SMALL, count=st.integers(1, 30), batch_size=st.integers(1, 30), step=SMALL)
def test_a_batch_is_a_slice_of_its_epoch_and_the_remainder_is_dropped(seed, count, batch_size, step):
    if batch_size > count:
        return
    epoch, position = divmod(step, count // batch_size)
    expected = epoch_order(seed, epoch, count)[position * batch_size : (position + 1) * batch_size]
    assert batch_indices(step, seed=seed, count=count, batch_size=batch_size).tolist() == expected.tolist()


@given(start=st.integers(0, 20))
def test_starting_at_a_step_equals_skipping_to_it(start):
    options = {"seed": 3, "count": 11, "batch_size": 3}
    whole, resumed = batches_from(0, **options), batches_from(start, **options)
    for _ in range(start):
        next(whole)
    for _ in range(8):
        assert next(whole).tolist() == next(resumed).tolist()


def test_a_batch_larger_than_the_data_names_both_numbers():
    with pytest.raises(DataError, match="batch size 256 is larger than the data, 100 images"):
        steps_per_epoch(100, 256)


def test_numbers_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match="batch size 0"):
        steps_per_epoch(100, 0)
    with pytest.raises(ConfigurationError, match="seed -1"):
        epoch_order(-1, 0, 10)
