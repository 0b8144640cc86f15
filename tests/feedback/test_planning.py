"""What the next labels are worth, when to stop, and how many labels a difference takes."""

import itertools
import math

import numpy as np
import pytest

from rlhf_lab.feedback.aggregation import consensus
from rlhf_lab.feedback.planning import (
    INTERVALS,
    LabelPlan,
    StopRule,
    labels_needed,
    next_labels,
    stopping_studies,
)
from rlhf_lab.maths.intervals import Interval
from rlhf_lab.records import Choice, Ranking

GRID = np.linspace(-30, 30, 12001)  # of the difference of two scores


def density(wins, losses, std=1.0):
    """Posterior of the difference of two scores ~ N(0, std^2) on the grid."""
    log = -(GRID**2) / (4 * std**2) - wins * np.logaddexp(0, -GRID) - losses * np.logaddexp(0, GRID)
    mass = np.exp(log - log.max())
    return mass / mass.sum()


def ends(wins, losses, level=0.95, std=1.0):
    mass = density(wins, losses, std)
    return np.interp([(1 - level) / 2, (1 + level) / 2], np.cumsum(mass) - mass / 2, GRID)


def judged(wins, losses, ties=0):
    outcomes = [1] * wins + [-1] * losses + [0] * ties
    return [Choice("Hi", "a", "b", outcome) for outcome in outcomes]


# -- the next labels --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wins", "losses", "labels", "std"), [(0, 1, 1, 1.0), (4, 0, 10, 1.0), (5, 3, 20, 1.0), (3, 0, 10, 3.0)]
)
def test_the_expected_width_is_that_of_all_outcomes(wins, losses, labels, std):
    """Enumerated by quadrature. The tolerance is 4 standard errors of the draws: a false alarm in 15,000."""
    mass, p = density(wins, losses, std), 1 / (1 + np.exp(-GRID))
    expected = squares = 0.0
    for k in range(labels + 1):
        chance = (mass * math.comb(labels, k) * p**k * (1 - p) ** (labels - k)).sum()
        low, high = ends(wins + k, losses + labels - k, std=std)
        expected, squares = expected + chance * (high - low), squares + chance * (high - low) ** 2
    found = next_labels(consensus(judged(wins, losses), prior_std=std), "a", "b", [("a", "b")] * labels, draws=2000)
    error = math.sqrt((squares - expected**2) / 2000)
    assert found.expected_width.mean == pytest.approx(expected, abs=4 * error + 0.003 * expected)
    low, high = ends(wins, losses, std=std)
    assert found.width == pytest.approx(high - low, rel=0.01)
    assert found.narrower_by == found.width - found.expected_width.mean > 0
    assert found.labels == labels


def test_the_width_now_is_that_of_the_contrast():
    found = consensus([Ranking("Hi", tuple("abc"), ((0,), (1, 2)), rater="me")] * 3 + judged(3, 1, 2))
    interval = found.contrast("a", "b")
    assert next_labels(found, "a", "b", draws=2).width == pytest.approx(interval.high - interval.low)


def test_a_design_that_asks_about_others_narrows_less():
    found = consensus([Ranking("Hi", tuple("abc"), ((0,), (1,), (2,)), rater="me")] * 2)
    direct = next_labels(found, "a", "b", [("a", "b")] * 10)
    third = next_labels(found, "a", "b", [("a", "c")] * 10)
    assert direct.expected_width.high < third.expected_width.low
    assert third.expected_width.high < third.width


def test_where_ties_are_common_a_label_may_widen():
    """Only an answer against the earlier ones does, and has a chance of 0.025; of 2000 draws within 4 sd of 0.0035."""
    given = {"log_nu": 3.0}
    ahead = next_labels(consensus(judged(8, 5, 10), **given), "a", "b", [("a", "b")], draws=2000)
    after = {"win": judged(9, 5, 10), "loss": judged(8, 6, 10), "tie": judged(8, 5, 11)}
    intervals = {kind: consensus(labels, **given).contrast("a", "b") for kind, labels in after.items()}
    wider = {kind: interval.high - interval.low > ahead.width for kind, interval in intervals.items()}
    assert wider == {"win": False, "loss": True, "tie": False}
    assert ahead.wider.mean == pytest.approx(0.025, abs=0.014)
    assert f"with a chance of {ahead.wider.mean:.0%} they widen it" in str(ahead)


def test_a_design_needs_pairs():
    with pytest.raises(ValueError, match="the design has 0 pairs"):
        next_labels(consensus(judged(1, 0)), "a", "b", [])


# -- stopping ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("rule", "interval", "reason"),
    [
        (StopRule(exclude_zero=True), Interval(1, 0.1, 2, 5), "excludes 0"),
        (StopRule(exclude_zero=True), Interval(-1, -2, -0.1, 5), "excludes 0"),
        (StopRule(exclude_zero=True), Interval(1, 0.0, 2, 5), ""),
        (StopRule(width=2.0), Interval(1, 0.1, 2, 5), "narrower than 2"),
        (StopRule(width=1.9), Interval(1, 0.1, 2, 5), ""),
        (StopRule(maximum=5), Interval(0, -1, 1, 5), "5 labels were given"),
        (StopRule(exclude_zero=True, minimum=6), Interval(1, 0.1, 2, 5), ""),
    ],
)
def test_the_rule_says_why(rule, interval, reason):
    assert reason in rule.reason(interval)
    assert bool(rule.reason(interval)) == bool(reason)


def test_a_rule_that_cannot_hold_is_refused():
    for wrong in ({"width": 0.0}, {"maximum": 0}, {"minimum": 7, "maximum": 6}):
        with pytest.raises(ValueError, match="expected a width above 0 and 1 <= minimum <= maximum"):
            StopRule(**wrong)
    with pytest.raises(ValueError, match="interval is 'bayes'"):
        stopping_studies(StopRule(), 1, interval="bayes")


RULE = StopRule(exclude_zero=True, minimum=5, maximum=30)


def test_the_posterior_covers_at_the_stopping_time():
    """Of 200 at 95 %, 181 to 197: the false-alarm rate of another seed is 0.5 %."""
    for replies, rule in ((2, RULE), (3, StopRule(exclude_zero=True, minimum=5, maximum=15))):
        stopped = stopping_studies(rule, 200, replies=replies, seed=11)
        assert 181 <= stopped.covered.sum() <= 197


def test_a_prior_that_is_too_wide_covers_less():
    """Truths that are closer together than the prior says: stopping early then costs coverage, 0.95 against 0.76.

    Of 200 studies at least 0.1 apart: 2.6 standard deviations of the difference, a false alarm in 200.
    """
    rule = StopRule(exclude_zero=True, maximum=30)
    right, wrong = (
        stopping_studies(rule, 200, truth_std=0.2, prior_std=std, seed=1).covered.mean() for std in (0.2, 3)
    )
    assert right > wrong + 0.1


def test_a_study_stops_at_the_first_interval_of_its_rule():
    stopped = stopping_studies(RULE, 20, seed=2)
    for i in range(20):
        wins, losses = stopped.wins[i, 0]
        assert wins + losses == stopped.labels[i]
        assert (stopped.low[i], stopped.high[i]) == pytest.approx(tuple(ends(wins, losses)), abs=0.02)
        excluded = stopped.low[i] > 0 or stopped.high[i] < 0
        assert excluded if stopped.labels[i] < RULE.maximum else True
    assert (stopped.labels >= RULE.minimum).all()
    assert (stopped.labels < RULE.maximum).any()


@pytest.mark.parametrize("interval", INTERVALS)
def test_without_a_difference_every_interval_that_stops_at_once_is_wrong_more_often(interval):
    """Of 300, at least 25 more misses than the 15 that 95 % allow: 5 sd."""
    stopped = stopping_studies(RULE, 300, interval=interval, truth_std=0.0, seed=3)
    assert (~stopped.covered).sum() >= 40
    fixed = stopping_studies(StopRule(maximum=30, minimum=30), 300, interval=interval, truth_std=0.0, seed=3)
    assert fixed.covered.mean() > 0.9  # with the number fixed beforehand


def test_naive_ends_are_the_formulas():
    wins = np.array([[[7.0, 3.0]], [[4.0, 0.0]]])
    low, high = INTERVALS["logit"](wins, 2, 1.0, 0.95)
    half = 1.959964 / math.sqrt(10 * 0.7 * 0.3)
    assert (low[0], high[0]) == pytest.approx((math.log(7 / 3) - half, math.log(7 / 3) + half), abs=0.01)
    assert low[1] < 0 < high[1]  # all agree: as good as infinite
    low, high = INTERVALS["share"](wins, 2, 1.0, 0.95)
    share = 0.7 - 1.959964 * math.sqrt(0.021)
    assert low[0] == pytest.approx(math.log(share / (1 - share)), abs=1e-5)
    assert low[1] == math.inf  # all agree: certain, with a width of 0


# -- how many ---------------------------------------------------------------------------------------------------------
def power_of(labels, difference, std=1.0, level=0.95):
    share = 1 / (1 + math.exp(-difference))
    seen = [wins for wins in range(labels + 1) if ends(wins, labels - wins, level, std)[0] > 0]
    return sum(math.comb(labels, k) * share**k * (1 - share) ** (labels - k) for k in seen)


@pytest.mark.parametrize(("difference", "power"), [(1.0, 0.8), (2.0, 0.9), (0.7, 0.5)])
def test_the_plan_reaches_its_power_and_no_smaller_one_keeps_it(difference, power):
    plan = labels_needed(difference, power=power)
    assert plan.power == pytest.approx(power_of(plan.labels, difference), abs=1e-3)
    assert all(power_of(plan.labels + more, difference) >= power for more in range(6))
    assert power_of(plan.labels - 1, difference) < power


def test_a_plan_by_difference_and_by_win_probability_is_the_same():
    assert labels_needed(win_probability=0.75) == labels_needed(-math.log(3)) == labels_needed(win_probability=0.25)
    assert labels_needed(1.0).win_probability == pytest.approx(1 / (1 + math.exp(-1)))


def test_smaller_differences_more_power_and_ties_take_more():
    counts = [labels_needed(d).labels for d in (2.0, 1.0, 0.5, 0.25)]
    assert all(later > 3 * sooner for sooner, later in itertools.pairwise(counts[1:]))  # about four times
    assert labels_needed(1.0, power=0.95).labels > counts[1]
    tied = labels_needed(1.0, log_nu=0.0)
    p_tie = 1 / (1 + 2 * math.cosh(0.5))
    assert tied.labels == math.ceil(counts[1] / (1 - p_tie))
    assert isinstance(tied, LabelPlan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either a difference or a win_probability"),
        ({"difference": 1.0, "win_probability": 0.6}, "either a difference or a win_probability"),
        ({"difference": 0.0}, "other than 0"),
        ({"win_probability": 0.5}, "other than 0"),
        ({"win_probability": 1.0}, "other than 0"),
        ({"difference": 1e-4}, "plan for a larger one"),
        ({"difference": 1.0, "power": 1.0}, "power must be a chance between 0 and 1"),
    ],
)
def test_a_plan_that_cannot_be_made_says_so(options, message):
    with pytest.raises(ValueError, match=message):
        labels_needed(**options)
