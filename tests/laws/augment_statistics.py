"""Whether draws follow a stated distribution: a false alarm in a million, and always an alarm for one 5 % off."""

import numpy as np
from scipy import stats

ALARM = 1e-6
OFF = 0.05


def gap(sample, low, high):
    """Kolmogorov and Smirnov's: the largest distance of the sample's distribution function from the uniform one's."""
    ordered = np.sort(np.asarray(sample, np.float64).ravel())
    expected = np.clip((ordered - low) / (high - low), 0, 1)
    ranks = np.arange(len(ordered) + 1) / len(ordered)
    return max(np.max(ranks[1:] - expected), np.max(expected - ranks[:-1]))


def gap_limit(count):
    """What `gap` exceeds once in 1 / ALARM samples of `count` (asymptotically, and at most)."""
    return np.sqrt(np.log(2 / ALARM) / (2 * count))


def check_uniform(sample, low, high):
    """The sample is uniform in [low, high), and a range with an end, or its width, 5 % off is told from it."""
    limit, shift = gap_limit(np.size(sample)), OFF * (high - low)
    assert gap(sample, low, high) < limit
    assert low - 0.1 * shift <= np.min(sample) <= np.max(sample) <= high + 0.1 * shift  # roundings to pixels
    for lower, upper in [(shift, 0), (-shift, 0), (0, shift), (0, -shift), (shift / 2, -shift / 2)]:
        assert gap(sample, low + lower, high + upper) > limit
    assert gap(sample, low - shift / 2, high + shift / 2) > limit


def check_share(happened, p):
    """Truth in a share of about p, and p times 1.05 or 0.95 is told from it."""
    count, share = np.size(happened), np.mean(happened)
    limit = stats.norm.isf(ALARM / 2)
    assert abs(share - p) < limit * np.sqrt(p * (1 - p) / count)
    for wrong in (p * (1 + OFF), p * (1 - OFF)):
        assert abs(share - wrong) > limit * np.sqrt(wrong * (1 - wrong) / count)


def check_equally_likely(outcomes, kinds):
    """Chi-square over `kinds` outcomes, all of which must occur; one that is rarer by 1 in 5 is told from them."""
    _, counts = np.unique(outcomes, return_counts=True)
    assert len(counts) == kinds
    limit = stats.chi2.isf(ALARM, kinds - 1)

    def chi_square(observed):
        expected = observed.sum() / kinds
        return ((observed - expected) ** 2 / expected).sum()

    assert chi_square(counts) < limit
    counts[0] *= 0.8
    assert chi_square(counts) > limit


def check_uncorrelated(first, second):
    """Pearson's correlation of independent samples is normal with deviation 1 / sqrt(count)."""
    correlation = np.corrcoef(np.ravel(first), np.ravel(second))[0, 1]
    assert abs(correlation) < stats.norm.isf(ALARM / 2) / np.sqrt(np.size(first))


def two_sample_gap(first, second):
    """Of the two empirical distribution functions."""
    at = np.concatenate([first, second])
    share = [np.searchsorted(np.sort(sample), at, side="right") / len(sample) for sample in (first, second)]
    return np.abs(share[0] - share[1]).max()
