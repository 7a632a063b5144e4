"""The tally of a run's steps, without a run: what its rows say of the speed, and when it has diverged.

That `pretrain` fetches no more than it must: test_guards.py. What a diverged run leaves: test_diverged.py.
"""

import itertools

import numpy as np
import pytest

from byol_jax.runs.tally import NONFINITE_LIMIT, STEPS_AHEAD, Tally


class Clock:
    """Stands still but where a test moves it."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def metrics(*, loss=1.0, nonfinite=0.0):
    return {"loss": np.float32(loss), "nonfinite": np.float32(nonfinite)}


def tally_of(bad, *, steps, log_every=1000, first_step=0):
    """A tally of `steps` steps of which the `bad` ones weren't finite, and its rows; it ends at a divergence."""
    tally, rows = Tally(first_step, log_every=log_every, epoch_steps=None), []
    for step in range(first_step + 1, first_step + steps + 1):
        tally.add(metrics(loss=np.nan if step in bad else 1.0, nonfinite=step in bad), images=8)
        row = tally.row(waited=0.0, last=step == first_step + steps)
        rows += [row] if row else []
        if tally.divergence:
            break
    return tally, rows


@pytest.mark.parametrize("log_every", [1, 2, 3, 7])
@pytest.mark.parametrize("first_step", [0, 5])
def test_every_speed_is_of_the_images_seen_and_of_the_time_without_compilation(log_every, first_step):
    """Steps of two seconds with 3, 4, 5, … images, after 50 seconds of compilation; half a second of each waited."""
    clock, rows, images = Clock(), [], {first_step + k: 2 + k for k in range(1, 10)}
    tally = Tally(first_step, log_every=log_every, epoch_steps=4, clock=clock)
    waited = 0.0
    for step, count in images.items():
        if step == first_step + 1:
            clock.now += 50
            tally.add_compilation(50.0)
        clock.now, waited = clock.now + 2, waited + 0.5
        tally.add(metrics(loss=step), images=count)
        rows.append(tally.row(waited=waited, last=step == max(images)))
        assert (rows[-1] is not None) == (step % log_every == 0 or step == max(images))
    rows = [row for row in rows if row is not None]
    ends = [first_step, *(row["step"] for row in rows)]
    for row, (start, end) in zip(rows, itertools.pairwise(ends), strict=True):
        steps = range(start + 1, end + 1)
        assert row["images_per_second"] == pytest.approx(sum(images[step] for step in steps) / (2 * len(steps)))
        assert row["seconds_per_step"] == pytest.approx(2)
        assert row["data_wait"] == pytest.approx(0.25)
        assert row["loss"] == pytest.approx(np.mean(steps))
        assert row["epoch"] == end / 4
    assert [row.get("compile_seconds") for row in rows] == [50.0, *[None] * (len(rows) - 1)]
    assert sum(row["seconds"] for row in rows) == pytest.approx(50 + 2 * len(images))


def test_a_row_means_over_the_finite_steps_and_counts_the_others():
    _, (row,) = tally_of({2, 3}, steps=5)
    assert (row["loss"], row["nonfinite"]) == (1.0, 2)
    _, (row,) = tally_of({1, 2}, steps=2)
    assert np.isnan(row["loss"])
    assert row["nonfinite"] == 2


@pytest.mark.parametrize("log_every", [1, 6, 1000])
@pytest.mark.parametrize("first_step", [0, 13])
def test_twenty_in_a_row_are_a_divergence_and_nineteen_are_none(log_every, first_step):
    few = set(range(first_step + 4, first_step + 3 + NONFINITE_LIMIT))
    tally, rows = tally_of(few, steps=60, log_every=log_every, first_step=first_step)
    assert tally.divergence is None
    assert (tally.step, sum(row["nonfinite"] for row in rows)) == (first_step + 60, NONFINITE_LIMIT - 1)
    last = first_step + 3 + NONFINITE_LIMIT
    tally, rows = tally_of(few | {last}, steps=60, log_every=log_every, first_step=first_step)
    assert tally.divergence == (NONFINITE_LIMIT, last)
    assert sum(row["nonfinite"] for row in rows) == NONFINITE_LIMIT
    assert rows[-1]["step"] == tally.step <= last + NONFINITE_LIMIT


def test_one_finite_step_in_between_starts_the_count_again():
    bad = set(range(1, 61)) - {20, 40}
    tally, _ = tally_of(bad, steps=60)
    assert tally.divergence == (20, 60)
    assert tally_of(bad - {60}, steps=60)[0].divergence is None


def test_what_comes_after_a_divergence_changes_nothing_of_it():
    """Seen late: steps 1 to 21, then finite ones and single ones that aren't, all fetched together."""
    tally = Tally(0, log_every=1000, epoch_steps=None)
    for step in range(1, 40):
        tally.add(metrics(nonfinite=step <= 21 or step in (25, 30)), images=8)
    row = tally.row(waited=0.0, last=True)
    assert row is not None
    assert tally.divergence == (21, 21)


def test_a_divergence_is_seen_though_no_row_is_due():
    """As early as metrics can be fetched without waiting for them."""
    tally = Tally(0, log_every=1000, epoch_steps=None)
    for _ in range(NONFINITE_LIMIT + STEPS_AHEAD):
        assert tally.divergence is None
        tally.add(metrics(nonfinite=1.0), images=8)
        row = tally.row(waited=0.0)
    assert tally.divergence == (NONFINITE_LIMIT, NONFINITE_LIMIT)
    assert row is not None
    assert row["step"] == NONFINITE_LIMIT


def test_the_host_waits_for_old_steps_alone():
    waited = []

    class Loss:
        def __init__(self, step):
            self.step = step

        def block_until_ready(self):
            waited.append(self.step)
            return self

    tally = Tally(0, log_every=1000, epoch_steps=None)
    for step in range(1, 8):
        tally.add({"loss": Loss(step)}, images=8)
        assert waited == list(range(1, step - STEPS_AHEAD + 1))
