"""Intervals against closed forms, scipy and their own coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from rlhf_lab.maths.intervals import (
    Interval,
    mean_interval,
    outcome_interval,
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


counts = st.tuples(*[st.integers(0, 60)] * 3).filter(any)


@given(counts, st.floats(0.5, 0.99))
def test_a_win_rate_holds_what_the_score_test_keeps(case, level):
    wins, ties, losses = case
    n, z = sum(case), stats.norm.ppf((1 + level) / 2)
    interval = win_rate(*case, level)
    assert interval.mean == pytest.approx((wins + ties / 2) / n)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.low < interval.high
    for end in (interval.low, interval.high):
        score = (interval.mean - end) ** 2 - z**2 * (end * (1 - end) - ties / (n + 1) / 4) / n
        assert score == pytest.approx(0, abs=1e-12)
    other = win_rate(losses, ties, wins, level)
    assert (other.low, other.high) == pytest.approx((1 - interval.high, 1 - interval.low))


@given(counts)
def test_without_ties_a_win_rate_is_wilsons(case):
    wins, _, losses = case
    if wins + losses:
        assert win_rate(wins, 0, losses) == proportion_interval(wins, wins + losses)


def test_a_win_rate_of_little():
    assert win_rate(50, 0, 0).high == 1
    assert win_rate(0, 0, 50).low == 0
    for ties, half in ((1, 0.3149), (50, 0.0187)):  # by hand from the quadratic with t = n / (n + 1)
        interval = win_rate(0, ties, 0)
        assert (interval.mean - interval.low, interval.high - interval.mean) == pytest.approx((half, half), abs=1e-4)
    assert win_rate(1, 0, 0).verdict == win_rate(0, 50, 0).verdict == win_rate(1, 49, 0).verdict == "INCONCLUSIVE"
    with pytest.raises(ValueError, match="counts"):
        win_rate(3, -1, 3)
    with pytest.raises(ValueError, match="at least one comparison"):
        win_rate(0, 0, 0)


def exact_coverage(interval, n, chances):
    """Of every wins, ties and losses that add up to n, the probability of those whose interval holds the truth."""
    truth, covered = chances[0] + chances[1] / 2, 0.0
    for wins in range(n + 1):
        for ties in range(n + 1 - wins):
            case = wins, ties, n - wins - ties
            found = interval(*case)
            if found.low - 1e-12 <= truth <= found.high + 1e-12:
                covered += stats.multinomial.pmf(case, n, chances)
    return covered


@pytest.mark.parametrize(
    ("decided", "ties", "expected", "as_yes_or_no"),
    [(0.5, 0.2, 0.9511, 0.9678), (0.8, 0.2, 0.9536, 0.9815), (0.5, 0.5, 0.9547, 0.9934), (0.8, 0.5, 0.9524, 0.9973)],
)
def test_a_win_rate_covers_what_it_says_and_wilson_with_half_ties_too_much(decided, ties, expected, as_yes_or_no):
    chances = (1 - ties) * decided, ties, (1 - ties) * (1 - decided)
    half_ties = lambda wins, ties, losses: proportion_interval(wins + ties / 2, wins + ties + losses)  # noqa: E731
    assert exact_coverage(win_rate, 50, chances) == pytest.approx(expected, abs=1e-4)
    assert exact_coverage(half_ties, 50, chances) == pytest.approx(as_yes_or_no, abs=1e-4)


@given(counts, st.floats(0.5, 0.99))
def test_outcomes_of_wins_ties_and_losses_are_a_win_rate(case, level):
    interval = outcome_interval(np.repeat([1.0, 0.5, 0.0], case), level)
    expected = win_rate(*case, level)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((expected.mean, expected.low, expected.high))
    assert interval.count == sum(case)


def coverage_of_averaged_judges(interval):
    """Of 2,000 evaluations of 50 prompts; 3 judges answer alike but for noise of their own, so that prompts differ."""
    rng, hits = np.random.default_rng(4), 0
    for _ in range(2000):
        likes = rng.beta(2, 1, (50, 1))  # mean 2/3
        hits += interval((rng.random((50, 3)) < likes).mean(1))
    return hits


def test_outcomes_of_several_judges_cover_when_they_are_averaged_first():
    # 2,000 draws at 95 %: 1,860 to 1,940 but for one seed in 20,000.
    holds = lambda found: found.low <= 2 / 3 <= found.high  # noqa: E731
    averaged = coverage_of_averaged_judges(lambda means: holds(outcome_interval(means)))
    as_yes_or_no = coverage_of_averaged_judges(lambda means: holds(proportion_interval(means.sum(), 50)))
    as_150 = coverage_of_averaged_judges(lambda means: holds(proportion_interval(round(means.sum() * 3), 150)))
    assert 1860 <= averaged <= 1940 < as_yes_or_no
    assert as_150 < 1860


@pytest.mark.parametrize("outcomes", [[], [0.5, 1.1], [-0.1], [math.nan], ["win"]])
def test_outcomes_are_refused(outcomes):
    with pytest.raises(ValueError, match="outcomes must be"):
        outcome_interval(outcomes)


def test_coverage_of_a_paired_difference_with_ties():
    # 2,000 draws at 95 %: 1,860 to 1,940 but for one seed in 20,000. Half of the rows tie, 80 % of the rest go up.
    rng = np.random.default_rng(5)
    signs = rng.choice([1.0, 0.0, -1.0], (2000, 50), p=[0.4, 0.5, 0.1])
    before = rng.normal(size=(2000, 50))
    after = before + signs * rng.exponential(size=(2000, 50))
    found = [paired_difference(a, b) for a, b in zip(after, before, strict=True)]
    assert 1860 <= sum(one.low <= 0.3 <= one.high for one in found) <= 1940


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
