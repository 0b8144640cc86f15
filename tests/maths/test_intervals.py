"""Intervals against closed forms, scipy and their own coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from rlhf_lab.maths.intervals import (
    Interval,
    mean_interval,
    paired_difference,
    proportion_interval,
    ratio_of_means_bootstrap,
    win_rate,
)

numbers = st.floats(-100, 100, allow_nan=False)


@given(st.lists(numbers, min_size=2, max_size=30), st.floats(0.5, 0.99))
def test_mean_interval_is_scipys_t_interval(values, level):
    interval = mean_interval(values, level)
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    expected = (np.mean(values) - half, np.mean(values) + half)
    assert (interval.low, interval.high) == pytest.approx(expected, abs=1e-9)
    assert interval.count == len(values)


def test_one_value_says_nothing_about_the_spread():
    interval = mean_interval([3.0])
    assert (interval.mean, interval.low, interval.high) == (3.0, -math.inf, math.inf)
    assert interval.verdict == "INCONCLUSIVE"


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0]], ["a"], [[1.0], [1.0, 2.0]]])
def test_mean_interval_refuses(values):
    with pytest.raises(ValueError, match="values must be"):
        mean_interval(values)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_level_is_a_probability(level):
    with pytest.raises(ValueError, match="level"):
        mean_interval([1, 2], level)
    with pytest.raises(ValueError, match="level"):
        proportion_interval(1, 2, level)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 2, "above 0"), (-2, -0.1, "below 0"), (-1, 1, "INCONCLUSIVE"), (0, 1, "INCONCLUSIVE")],
)
def test_verdict(low, high, verdict):
    assert Interval((low + high) / 2, low, high, 9).verdict == verdict


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (win_rate(40, 0, 60), "below 0.5"),
        (win_rate(60, 0, 40), "above 0.5"),
        (win_rate(55, 0, 45), "INCONCLUSIVE"),
        (proportion_interval(3, 40), "below 0.5"),
        (ratio_of_means_bootstrap([1.0, 2.0, 3.5], [2.0, 4.0, 6.0]), "below 1"),
        (ratio_of_means_bootstrap([2.0, 4.0, 6.5], [1.0, 2.0, 3.0]), "above 1"),
        (ratio_of_means_bootstrap([1.0, 2.0, 3.0], [2.0, 1.0, 3.0]), "INCONCLUSIVE"),
    ],
)
def test_a_verdict_compares_with_the_value_of_no_difference(interval, verdict):
    assert interval.verdict == verdict


def test_coverage_of_the_t_interval():
    # The count of hits is binomial(2000, 0.95): within 4 sd but for one seed in 15,000.
    samples = np.random.default_rng(0).normal(1.5, 2, (2000, 5))
    hits = sum(i.low <= 1.5 <= i.high for i in map(mean_interval, samples))
    assert abs(hits - 1900) < 4 * math.sqrt(2000 * 0.95 * 0.05)


def test_paired_difference_leaves_out_what_is_unknown():
    interval = paired_difference([3.0, None, 5.0, 2.0], [1.0, 2.0, 2.0, None])
    assert (interval.mean, interval.count) == (2.5, 2)
    with pytest.raises(ValueError, match="pair up"):
        paired_difference([1.0], [1.0, 2.0])


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.6, 0.99))
def test_wilson_is_scipys(case, level):
    wins, count = case
    interval = proportion_interval(wins, count, level)
    expected = stats.binomtest(wins, count).proportion_ci(level, method="wilson")
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1


@pytest.mark.parametrize(("successes", "count"), [(-1, 5), (6, 5), (0, 0)])
def test_proportion_refuses(successes, count):
    with pytest.raises(ValueError, match="successes"):
        proportion_interval(successes, count)


def test_proportion_is_no_narrower_than_needed_for_values_between():
    values = np.random.default_rng(1).beta(2, 2, 400)
    wide, exact = proportion_interval(values.sum(), 400), mean_interval(values)
    assert wide.low < exact.low
    assert wide.high > exact.high


def test_win_rate_counts_a_tie_half():
    assert win_rate(3, 4, 3).mean == 0.5
    assert win_rate(3, 4, 3) == proportion_interval(5, 10)
    with pytest.raises(ValueError, match="counts"):
        win_rate(3, -1, 3)


def test_bootstrap_against_the_delta_method():
    rng = np.random.default_rng(2)
    bottom = rng.normal(2.0, 0.3, 400)
    top = 0.8 * bottom + rng.normal(0, 0.2, 400)
    interval = ratio_of_means_bootstrap(top, bottom)
    half = 1.96 * np.std(top - interval.mean * bottom, ddof=1) / bottom.mean() / math.sqrt(400)
    assert interval.mean == top.mean() / bottom.mean()
    # 10,000 resamples: the quantiles are noisy to about 2 % of half the width.
    assert interval.low == pytest.approx(interval.mean - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.1 * half)


def test_bootstrap_is_of_the_ratio_of_means_and_not_the_mean_of_ratios():
    bottom = np.linspace(0.1, 4, 50)
    interval = ratio_of_means_bootstrap(np.ones(50), bottom)
    assert interval.low < interval.mean < interval.high < (1 / bottom).mean()


def test_bootstrap_keeps_pairs_and_its_seed():
    rng = np.random.default_rng(3)
    bottom = rng.uniform(1, 9, 20)
    constant = ratio_of_means_bootstrap(2 * bottom, bottom)
    assert (constant.low, constant.high) == pytest.approx((2, 2))
    top = rng.normal(size=20)
    first, again, other = (ratio_of_means_bootstrap(top, bottom, seed=s) for s in (1, 1, 2))
    assert first == again != other


def test_bootstrap_where_the_denominator_may_be_zero():
    interval = ratio_of_means_bootstrap([1.0, 2.0, 3.0], [-1.0, 1.5, 0.1])
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="mean of denominators is 0"):
        ratio_of_means_bootstrap([1.0, 2.0], [-1.0, 1.0])
    with pytest.raises(ValueError, match="pair up"):
        ratio_of_means_bootstrap([1.0], [1.0, 2.0])
