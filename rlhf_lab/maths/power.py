"""What an evaluation could have found, and what stands when many things are compared at once.

An interval that holds the value of no difference says INCONCLUSIVE, and that is two things: there is none, or there
were too few comparisons to see it. The minimum detectable effect tells them apart: the true difference that an
evaluation of this size finds with a given probability, its power. Formulae by the normal law.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scipy.special import ndtri

from rlhf_lab.maths.intervals import Interval, check_level

IntervalAt = Callable[[float], Interval]
SMALLEST = 1e-12  # a level closer to 1 is no longer told from 1 in a normal quantile


# -- means and paired differences -------------------------------------------------------------------------------------
def detectable_difference(spread: float, count: int, power: float = 0.8, level: float = 0.95) -> float:
    """Minimum detectable effect of a mean or a paired difference.

        delta = (z_{(1 + level) / 2} + z_power) s / sqrt(n)

    The true mean whose interval excludes 0, on the right side, in a share `power` of evaluations of n values. Student's
    interval is a little wider than the normal law says: with n = 20 it finds this effect in 76 % of studies in place of
    80 %, with n = 50 in 78 %.

    Args:
        spread: s, standard deviation of the values, or of the paired differences row by row; of two groups apart with n
            values each, the root of the sum of their variances.
        count: n, at least 2.
        power: in [0.5, 1).
        level: of the interval.

    Returns:
        delta in the unit of the values, at least 0.

    Raises:
        ValueError: an argument that does not fit this description.

    Example:
        >>> round(detectable_difference(1.0, 100), 3)
        0.28

    Source: Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, chapter 2. Chapter 11.
    """
    _check_spread(spread)
    _check_count(count)
    z, z_power = _quantiles(power, level)
    return (z + z_power) * spread / math.sqrt(count)


def difference_sample_size(effect: float, spread: float, power: float = 0.8, level: float = 0.95) -> int:
    """How many values, or pairs, find a true mean of `effect`; the inverse of `detectable_difference`.

        n = ((z_{(1 + level) / 2} + z_power) s / delta)^2, rounded up, at least 2

    Args:
        effect: delta, not 0; its sign does not matter.
        spread, power, level: as in `detectable_difference`.

    Example:
        >>> difference_sample_size(0.28, 1.0)
        101

    Chapter 11.
    """
    _check_spread(spread)
    if not (math.isfinite(effect) and effect != 0):
        raise ValueError(f"effect is {effect}; expected a finite number other than 0: no sample finds no difference")
    z, z_power = _quantiles(power, level)
    return max(2, math.ceil(((z + z_power) * spread / effect) ** 2))


# -- win rates --------------------------------------------------------------------------------------------------------
def detectable_win_rate(count: int, ties: float = 0.0, power: float = 0.8, level: float = 0.95) -> float:
    """The win rate above one half that n comparisons find; below one half it is 1 minus this.

        delta sqrt(n) = z_{(1 + level) / 2} sqrt(v) + z_power sqrt(v - delta^2),    v = (1 - t) / 4

    solved for delta. v is the variance of an outcome where both are equally good, v - delta^2 at win rate 1/2 + delta,
    both with a share t of ties, a tie counted half. Ties lower v, so a smaller delta can be found; they also shrink the
    delta there is to find, to (1 - t) times that of the decided comparisons.

    Args:
        count: n, independent comparisons, at least 2.
        ties: t, the expected share of ties, in [0, 1).
        power: in [0.5, 1).
        level: of the interval.

    Returns:
        In (1/2, 1 - t/2]; infinity where even winning every decided comparison would not be found.

    Raises:
        ValueError: an argument that does not fit this description.

    Example:
        >>> [round(detectable_win_rate(n), 3) for n in (50, 400)], detectable_win_rate(3)
        ([0.693, 0.57], inf)

    Source: Connor 1987, Sample size for testing differences in proportions for the paired-sample design, for a test of
    wins against losses. Chapter 11.
    """
    _check_count(count)
    _check_ties(ties)
    z, z_power = _quantiles(power, level)
    v, room = (1 - ties) / 4, count - z * z + z_power * z_power
    if room < 0:
        return math.inf
    delta = math.sqrt(v) * (z * math.sqrt(count) + z_power * math.sqrt(room)) / (count + z_power * z_power)
    return 0.5 + delta if delta <= (1 - ties) / 2 else math.inf


def win_rate_sample_size(rate: float, ties: float = 0.0, power: float = 0.8, level: float = 0.95) -> int:
    """How many comparisons find a true win rate; the inverse of `detectable_win_rate`.

        n = ((z_{(1 + level) / 2} sqrt(v) + z_power sqrt(v - delta^2)) / delta)^2, rounded up, at least 2

    with delta = rate - 1/2 and v = (1 - t) / 4.

    Args:
        rate: the true win rate, a tie counted half: in [t/2, 1 - t/2] and not 1/2.
        ties, power, level: as in `detectable_win_rate`.

    Example:
        >>> win_rate_sample_size(0.55), win_rate_sample_size(0.55, ties=0.5)
        (783, 391)

    Chapter 11.
    """
    _check_ties(ties)
    delta, v = abs(rate - 0.5), (1 - ties) / 4
    if not 0 < delta <= (1 - ties) / 2 + 1e-12:
        got = f"rate is {rate} with a share {ties} of ties"
        raise ValueError(f"{got}; expected one from {ties / 2:.4g} to {1 - ties / 2:.4g} other than 0.5")
    z, z_power = _quantiles(power, level)
    needed = z * math.sqrt(v) + z_power * math.sqrt(max(v - delta * delta, 0.0))
    return max(2, math.ceil((needed / delta) ** 2))


# -- several comparisons at once --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Adjusted:
    """One of several comparisons.

    Attributes:
        interval: of this comparison alone, at the level asked for; it is not adjusted.
        p_value: of this comparison alone, two-sided.
        adjusted_p_value: by Holm's procedure among all of them.
        verdict: as that of an `Interval`, but of the whole family: INCONCLUSIVE unless it stands after Holm.
    """

    interval: Interval
    p_value: float
    adjusted_p_value: float
    verdict: str


def p_value(interval_at: IntervalAt) -> float:
    """Two-sided p-value of no difference, from the intervals: 1 - the highest level whose interval excludes it.

    So it agrees with the interval that is shown. With `paired_difference` it is the paired t-test's, with `win_rate`
    without ties that of the normal test of wins against losses.

    Args:
        interval_at: level -> interval, wider for a higher level, such as `partial(paired_difference, after, before)`.

    Returns:
        In [1e-12, 1]; 1e-12 stands for anything smaller.

    Example:
        >>> from functools import partial
        >>> from rlhf_lab.maths.intervals import win_rate
        >>> round(p_value(partial(win_rate, 60, 0, 40)), 4)
        0.0455

    Chapter 11.
    """
    excludes = lambda p: interval_at(1 - p).verdict != "INCONCLUSIVE"  # noqa: E731
    low, high = math.log(SMALLEST), math.log1p(-SMALLEST)
    if excludes(SMALLEST):
        return SMALLEST
    if not excludes(1 - SMALLEST):
        return 1.0
    for _ in range(40):  # halves the logarithm, so that small p are as exact as large ones: to 1e-10 of themselves
        middle = (low + high) / 2
        low, high = (low, middle) if excludes(math.exp(middle)) else (middle, high)
    return math.exp(high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values by Holm's step-down procedure: a comparison stands at family level a where its own is <= a.

        adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),    p_(1) <= ... <= p_(m)

    With probability 1 - a no comparison stands where there is no difference, whatever depends on what. Twenty plain
    intervals of 95 % find on average one difference where there is none.

    Args:
        p_values: name -> p in [0, 1].

    Returns:
        name -> adjusted p, in the order given.

    Raises:
        ValueError: a p outside [0, 1].

    Example:
        >>> holm({"truthful": 0.01, "polite": 0.04, "form": 0.03})
        {'truthful': 0.03, 'polite': 0.06, 'form': 0.06}

    Source: Holm 1979, A simple sequentially rejective multiple test procedure. Chapter 11.
    """
    wrong = {name: p for name, p in p_values.items() if not 0 <= p <= 1}
    if wrong:
        raise ValueError(f"p_values holds {wrong}; expected probabilities in [0, 1]")
    adjusted, reached = dict.fromkeys(p_values, 1.0), 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = reached
    return adjusted


def compare_many(comparisons: Mapping[str, IntervalAt], level: float = 0.95) -> dict[str, Adjusted]:
    """Which of several comparisons stand when all are looked at together, by `holm` on the p-values of their intervals.

    Args:
        comparisons: name -> (level -> interval), such as `partial(paired_difference, after, before)` or
            `partial(win_rate, wins, ties, losses)`. All that were looked at belong here, also what
            showed nothing.
        level: of the family: with this probability no difference is named where there is none.

    Returns:
        name -> Adjusted, in the order given.

    Example:
        >>> from functools import partial
        >>> from rlhf_lab.maths.intervals import win_rate
        >>> found = compare_many({"polite": partial(win_rate, 61, 0, 39), "true": partial(win_rate, 60, 0, 40)})
        >>> [(name, one.interval.verdict, one.verdict) for name, one in found.items()]
        [('polite', 'above 0.5', 'INCONCLUSIVE'), ('true', 'above 0.5', 'INCONCLUSIVE')]

    Chapter 11.
    """
    check_level(level)
    intervals = {name: interval_at(level) for name, interval_at in comparisons.items()}
    p_values = {name: p_value(interval_at) for name, interval_at in comparisons.items()}
    adjusted = holm(p_values)
    stands = {name: adjusted[name] <= 1 - level for name in adjusted}
    return {
        name: Adjusted(interval, p_values[name], adjusted[name], interval.verdict if stands[name] else "INCONCLUSIVE")
        for name, interval in intervals.items()
    }


# -- checks -----------------------------------------------------------------------------------------------------------
def _quantiles(power: float, level: float) -> tuple[float, float]:
    """Normal quantiles of the interval and of the power."""
    check_level(level)
    if not 0.5 <= power < 1:
        raise ValueError(f"power is {power}; expected a probability from 0.5 up to, not including, 1")
    return float(ndtri((1 + level) / 2)), float(ndtri(power))


def _check_spread(spread: float) -> None:
    if not 0 <= spread < math.inf:
        raise ValueError(f"spread is {spread}; expected a standard deviation, finite and at least 0")


def _check_count(count: int) -> None:
    if not count >= 2:
        raise ValueError(f"count is {count}; expected at least 2 values or comparisons")


def _check_ties(ties: float) -> None:
    if not 0 <= ties < 1:
        raise ValueError(f"ties is {ties}; expected a share of the comparisons in [0, 1)")
