"""Intervals: of means, shares, win rates and ratios, so that a mean never comes alone.

Left out: significance stars, and corrections for many comparisons.
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
    share, z = successes / count, float(ndtri((1 + level) / 2))
    centre, scale = share + z * z / (2 * count), 1 + z * z / count
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # The ends are exactly 0 and 1 at shares 0 and 1; rounding would leave them a hair off.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == count else (centre + half) / scale
    return Share(share, low, high, count)


def win_rate(wins: int, ties: int, losses: int, level: float = 0.95) -> Interval:
    """Share of comparisons won, a tie counted half, with `proportion_interval` (too wide with ties).

    Its verdict compares it with one half: neither side wins more often.

    Example:
        >>> win_rate(6, 2, 2).mean, win_rate(60, 20, 20).verdict
        (0.7, 'above 0.5')
    """
    if min(wins, ties, losses) < 0:
        raise ValueError(f"wins, ties and losses must be counts >= 0, got {wins}, {ties} and {losses}")
    return proportion_interval(wins + ties / 2, wins + ties + losses, level)


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
