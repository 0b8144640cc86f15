"""Intervals: of means, shares, win rates and ratios, so that a mean never comes alone.

Left out: significance stars. Several comparisons at once, and what could have been found: `maths.power`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import ndtri

Numbers = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Interval:
    """An estimate and where the true value is likely to be.

    Attributes:
        mean: the estimate.
        low, high: ends of the interval; infinite where the data say nothing about the spread.
        count: values, pairs or documents it rests on.
        neutral: of the class, the value of no difference: 0 for a mean or a difference.
    """

    mean: float
    low: float
    high: float
    count: int
    neutral: ClassVar[float] = 0

    @property
    def verdict(self) -> str:
        """'above 0', 'below 0', or 'INCONCLUSIVE' where the interval holds 0; a `Share` says 0.5, a `Ratio` 1."""
        if self.low > self.neutral:
            return f"above {self.neutral}"
        return f"below {self.neutral}" if self.high < self.neutral else "INCONCLUSIVE"


class Share(Interval):
    """A share in [0, 1], such as a win rate or an accuracy: no difference is one half."""

    neutral = 0.5


class Ratio(Interval):
    """A ratio of means: no difference is 1."""

    neutral = 1


def mean_interval(values: Numbers, level: float = 0.95) -> Interval:
    """Mean of independent values with Student's t-interval.

        mean +- t(n - 1, (1 + level) / 2) * s / sqrt(n),    s^2 the unbiased variance

    Exact for normal values, good for many others from n = 30 on. Values that share a prompt or a seed are not
    independent: average them first. For a share near 0 or 1 use `proportion_interval`.

    Args:
        values: [n] finite numbers, n >= 1. One value has an infinite interval.
        level: probability in (0, 1) that the interval holds the true mean.

    Raises:
        ValueError: no values, a value that is not finite, or an impossible level.

    Example:
        >>> interval = mean_interval([1.0, 2.0, 3.0])
        >>> round(interval.low, 2), interval.mean, round(interval.high, 2), interval.verdict
        (-0.48, 2.0, 4.48, 'INCONCLUSIVE')

    Source: Student 1908, The probable error of a mean. Chapter 11.
    """
    array = finite(values, "values")
    check_level(level)
    mean, count = float(array.mean()), len(array)
    if count == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    from scipy.stats import t  # costs a second that only this needs

    half = float(t.ppf((1 + level) / 2, count - 1) * array.std(ddof=1) / math.sqrt(count))
    return Interval(mean, mean - half, mean + half, count)


def paired_difference(after: Sequence[float | None], before: Sequence[float | None], level: float = 0.95) -> Interval:
    """`mean_interval` of after - before, row by row: the same prompts, or the same seeds, in the same order.

    Pairing removes what the rows share, such as how hard the prompt is. A row with None on either side is
    left out.

    Example:
        >>> paired_difference([2.0, 3.1, 4.0], [1.0, 2.0, 3.0]).verdict
        'above 0'
    """
    if len(after) != len(before):
        raise ValueError(f"after and before must pair up, got {len(after)} and {len(before)} values")
    rows = [(a, b) for a, b in zip(after, before, strict=True) if a is not None and b is not None]
    return mean_interval([a - b for a, b in rows], level)


def proportion_interval(successes: float, count: int, level: float = 0.95) -> Interval:
    """Share successes / count with Wilson's score interval, which stays inside [0, 1] and never has width 0.

        (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n),    z the normal quantile

    `successes` may also be a sum of values in [0, 1]: of all laws on [0, 1] with mean p, yes-or-no has the
    largest variance, so the interval is then too wide rather than too narrow.

    Args:
        successes: in [0, count].
        count: independent trials, at least 1.

    Example:
        >>> interval = proportion_interval(0, 10)
        >>> interval.low, round(interval.high, 3)
        (0.0, 0.278)

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference. Chapter 11.
    """
    check_level(level)
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(f"successes must be in [0, count] and count at least 1, got {successes} of {count}")
    return _score_interval(successes / count, 0.0, count, level)


def win_rate(wins: int, ties: int, losses: int, level: float = 0.95) -> Interval:
    """Share of comparisons won, a tie counted half, with a score interval of the outcomes' own variance.

    An outcome is 1, 1/2 or 0. With win rate mu and a share t of ties its variance is mu (1 - mu) - t/4, less than that
    of yes or no. The interval holds every mu that the score test keeps, with t at its estimate:

        (m - mu)^2 <= z^2 (mu (1 - mu) - t/4) / n,    m = (wins + ties/2) / n,  t = ties / (n + 1)

    a quadratic in mu. Without ties it is Wilson's interval. The n + 1 in place of n keeps the width above 0 where
    everything was a tie; with n it would cover 87 % at n = 50 with 95 % ties, of which one side wins 80 % of the rest.

    The exact coverage of the 95 % interval, from all possible counts, is 93.5 to 95.5 % at n = 50 and 94.8 to 95.0 % at
    n = 400, with 0 to 50 % ties and 50 or 80 % of the decided ones won (data/results/interval_coverage.csv);
    where few are decided (5 of 100) it covers more than it says. `proportion_interval` with half ties, which takes the
    variance of yes or no, covers 96.8 to 99.7 % there with ties.

    Its verdict compares it with one half: neither side wins more often.

    Args:
        wins, ties, losses: counts of independent comparisons, at least one in all; average several judges of a prompt
            first and use `outcome_interval`.

    Raises:
        ValueError: a count below 0, or none at all.

    Example:
        >>> win_rate(6, 2, 2).mean, win_rate(60, 20, 20).verdict
        (0.7, 'above 0.5')

    Source: Wilson 1927 without ties. Tango 1998, Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design, also inverts the score test, with the share of ties that is most likely at
    each mu; ours keeps its estimate, which leaves a quadratic. Chapter 11.
    """
    if min(wins, ties, losses) < 0:
        raise ValueError(f"wins, ties and losses must be counts >= 0, got {wins}, {ties} and {losses}")
    count = wins + ties + losses
    check_level(level)
    if count < 1:
        raise ValueError("wins, ties and losses are all 0; expected at least one comparison")
    return _score_interval((wins + ties / 2) / count, ties / 4 / (count + 1), count, level)


def outcome_interval(outcomes: Numbers, level: float = 0.95) -> Interval:
    """Mean of independent outcomes in [0, 1], such as the means over the judges of a prompt; `win_rate` for counts.

        (m - mu)^2 <= z^2 (mu (1 - mu) - c) / n,    c = sum of x (1 - x) / (n + 1)

    c is what the variance of the outcomes falls short of that of yes or no, t/4 for a share t of ties. For 1, 1/2 and 0
    this is `win_rate` to the digit, for 1 and 0 Wilson's interval.

    Args:
        outcomes: [n] numbers in [0, 1], n >= 1.

    Raises:
        ValueError: no outcomes, one outside [0, 1], or an impossible level.

    Example:
        >>> outcome_interval([1, 1, 0.5, 0]) == win_rate(2, 1, 1)
        True

    Chapter 11.
    """
    array = finite(outcomes, "outcomes")
    check_level(level)
    if array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"outcomes must be in [0, 1], got {array.min():.4g} to {array.max():.4g}; 1 is a win, 0.5 a tie"
        )
    count = len(array)
    return _score_interval(float(array.mean()), float((array * (1 - array)).sum()) / (count + 1), count, level)


def _score_interval(share: float, shortfall: float, count: int, level: float) -> Interval:
    """The mu with (share - mu)^2 <= z^2 (mu (1 - mu) - shortfall) / count."""
    z = float(ndtri((1 + level) / 2))
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    variance = max(share * (1 - share) - shortfall, 0.0)
    half = z * math.sqrt(variance / count + z * z * (1 - 4 * shortfall) / (4 * count * count))
    # The ends are exactly 0 and 1 at shares 0 and 1; rounding would leave them a hair off.
    low = 0.0 if share == 0 else (centre - half) / scale
    high = 1.0 if share == 1 else (centre + half) / scale
    return Share(share, low, high, count)


def ratio_of_means_bootstrap(
    numerators: Numbers,
    denominators: Numbers,
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """mean(numerators) / mean(denominators) with a percentile interval from resampled pairs.

    Valid where the mean of the denominators is well away from 0; if its sign changes between resamples the
    ratio can be anything, and the interval is infinite. With fewer than about 10 pairs the interval is too
    narrow.

    Args:
        numerators, denominators: [n] finite numbers; position i of both is one replicate (a seed, a
            document).
        seed: of the resampling.

    Raises:
        ValueError: lengths that differ, no pairs, or denominators with mean 0.

    Example:
        >>> ratio_of_means_bootstrap([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]).low
        2.0

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13. Chapter 11.
    """
    top, bottom = finite(numerators, "numerators"), finite(denominators, "denominators")
    check_level(level)
    if len(top) != len(bottom):
        raise ValueError(f"numerators and denominators must pair up, got {len(top)} and {len(bottom)} values")
    if bottom.mean() == 0:
        raise ValueError("the mean of denominators is 0: the ratio does not exist; report the difference instead")
    ratio, count = float(top.mean() / bottom.mean()), len(top)
    picks = np.random.default_rng(seed).integers(count, size=(resamples, count))
    means = bottom[picks].mean(1)
    if count == 1 or (np.sign(means) != np.sign(bottom.mean())).any():
        return Ratio(ratio, -math.inf, math.inf, count)
    low, high = np.quantile(top[picks].mean(1) / means, [(1 - level) / 2, (1 + level) / 2])
    return Ratio(ratio, float(low), float(high), count)


def finite(values: Numbers, name: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=float)
    except (RuntimeError, TypeError, ValueError):  # texts, None, rows of several lengths, a tensor that requires grad
        array = np.array([])
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{name} must be one or more finite numbers in a row, got {values!r:.80}")
    return array


def check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be a probability between 0 and 1, got {level}")
