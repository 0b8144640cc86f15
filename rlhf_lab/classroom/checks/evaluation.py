"""Checks of the exercises of chapter 11: the reader's own evaluation of two models, from judgements and from replies.

Each compares a function with the definition: on cases small enough for paper, on random ones, and the whole on probes
whose answer is known. When something differs, the usual mistakes are tried on the same inputs, and the message names
the one that gives the same. Answers may be numbers, lists, arrays or tensors of any precision; the normal quantile may
be 1.96 or exact. Those of judgements and of a win rate stand in `judging`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.special import ndtr
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import ASKED, NO_RETURN, exercise, fail
from rlhf_lab.classroom.checks.dawid_skene import RANDOM_CASES, Array, Faults
from rlhf_lab.classroom.checks.judging import Z, check_outcomes, check_score_interval, compare_answers, listed, rate

__all__ = [
    "PARTS", "check_evaluation", "check_outcomes", "check_paired", "check_score_interval", "check_step_down", "probes",
]  # fmt: skip
Judges = Mapping[str, Callable[[Sequence[str]], Sequence[float]]]
FAMILY = 0.05  # level at which a row stands after Holm


# -- a paired difference -----------------------------------------------------------------------------------------------
def _t(mean: float, error: float, freedom: float, quantile: float = 0.975, tails: int = 2) -> list[float]:
    """[mean, low, high, p] of an estimate with this standard error."""
    from scipy.stats import t  # costs a second that only this needs

    if error == 0:
        return [mean, mean, mean, float(mean == 0)]
    half = float(t.ppf(quantile, freedom)) * error
    return [mean, mean - half, mean + half, tails * float(t.sf(abs(mean) / error, freedom))]


def _error(d: Array, ddof: int = 1) -> float:
    return float(d.std(ddof=ddof)) / math.sqrt(len(d))


def _paired(
    after: Array, before: Array, *, error: Callable[[Array], float] = _error, lost: int = 1, **options: Any
) -> list[float]:
    """With len - lost degrees of freedom; the options are those of `_t`."""
    d = after - before
    return _t(float(d.mean()), error(d), len(d) - lost, **options)


def _unpaired(after: Array, before: Array, lists: int = 2) -> list[float]:
    """With the variances of both lists added, and the degrees of freedom of so many of them."""
    error = math.hypot(_error(after), _error(before))
    return _t(float((after - before).mean()), error, lists * (len(after) - 1))


def _normal(after: Array, before: Array, z: float = Z) -> list[float]:
    d = after - before
    mean, error = float(d.mean()), _error(d)
    p = float(2 * ndtr(-abs(mean) / error)) if error else float(mean == 0)
    return [mean, mean - z * error, mean + z * error, p]


def _flat(after: Array, before: Array, p: float) -> list[float]:
    """With this p where all differences are equal."""
    found = _paired(after, before)
    return [*found[:3], p] if found[1] == found[2] else found


def _normal_p(after: Array, before: Array) -> list[float]:
    return [*_paired(after, before)[:3], _normal(after, before)[3]]


def _of_the_normal_law(said: str, z: float) -> Faults:
    why = "with n values it is Student's t with n - 1"
    return {
        f"{said} and the normal law: {why}": partial(_normal, z=z),
        f"{said} in the interval: {why}, as in p": lambda a, b: [*_normal(a, b, z)[:3], _paired(a, b)[3]],
    }


_PAIRED_FAULTS: Faults = {
    "unpaired, the variances of both lists are added: what the rows share stays in": _unpaired,
    "unpaired, the variances of both lists are added, with n - 1 degrees of freedom": partial(_unpaired, lists=1),
    "before - after: the sign is the other way round": lambda a, b: _paired(b, a),
    "the variance is divided by n: n - 1, since the mean was estimated too": partial(
        _paired, error=partial(_error, ddof=0)
    ),
    **_of_the_normal_law("1.96", 1.96),
    **_of_the_normal_law("1.959964", Z),
    "the p-value is that of the normal law: Student's t with n - 1 degrees of freedom": _normal_p,
    "the quantile of one side, 0.95: both ends together leave out 5 %, so it is 0.975": partial(_paired, quantile=0.95),
    "the p-value of one side: twice that": partial(_paired, tails=1),
    "n degrees of freedom: n - 1": partial(_paired, lost=0),
    "the standard deviation in the place of that of a mean: divide by sqrt(n)": partial(
        _paired, error=lambda d: d.std(ddof=1)
    ),
    "s / n: the root is missing, s / sqrt(n)": partial(_paired, error=lambda d: d.std(ddof=1) / len(d)),
    "the variance in the place of the standard deviation": partial(
        _paired, error=lambda d: d.var(ddof=1) / math.sqrt(len(d))
    ),
    "p is 1 where all differences are equal: it is 0, unless they are all 0": partial(_flat, p=1.0),
    "p is 0 where all differences are equal: it is 1 if they are all 0": partial(_flat, p=0.0),
    "the median of the differences: the mean is asked": lambda a, b: [float(np.median(a - b)), *_paired(a, b)[1:]],
}


@exercise
def check_paired(function: Callable[[Array, Array], Any]) -> None:
    """Check `paired(after, before)` -> (mean difference, low, high, p), by Student's t, two-sided.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = (
        "d = after - before row by row; mean, mean -+ t s / sqrt(n) with n - 1 degrees of freedom, and p of both "
        "sides; where all d are equal, p is 0, or 1 if they are all 0"
    )
    random = np.random.default_rng(2)
    hand = [([2.0, 3.0, 7.0], [1.0, 1.0, 2.0]), ([1.0, 2.0], [1.0, 2.0]), ([3.0, 4.0, 9.0], [1.0, 2.0, 7.0])]
    cases = [(np.array(a), np.array(b)) for a, b in hand]
    for _ in range(RANDOM_CASES):
        shared = random.normal(0, 3, random.integers(3, 12))
        cases.append(tuple(shared + random.normal(size=len(shared)) for _ in range(2)))  # type: ignore[arg-type]
    for after, before in cases:
        case = f"after {after.round(2).tolist()}, before {before.round(2).tolist()}"
        compare_answers("paired", case, function, _paired(after, before), _PAIRED_FAULTS, hint, (after, before))
    print(f"paired: passed ({len(hand)} cases by hand, two of them without any spread, {RANDOM_CASES} random ones)")


# -- several rows at once ----------------------------------------------------------------------------------------------
def _ranks(p: Array) -> Array:
    """0 for the smallest; equal ones in their order."""
    return np.argsort(np.argsort(p, kind="stable"), kind="stable")


def _stepped(p: Array, factors: Callable[[int, Array], Array], running: Callable[[Array], Array]) -> Array:
    """factor times p in ascending order, made monotone by `running`, at most 1, in the order given."""
    order = np.argsort(p, kind="stable")
    stepped = running(factors(len(p), np.arange(len(p))) * p[order])
    return np.minimum(stepped, 1.0)[_ranks(p)]


def _upwards(x: Array) -> Array:
    return np.maximum.accumulate(x)


def _downwards(x: Array) -> Array:
    return np.minimum.accumulate(x[::-1])[::-1]


def _holm(p: Array) -> Array:
    return _stepped(p, lambda m, i: m - i, _upwards)


def _bare(p: Array) -> Array:
    """Without the running maximum."""
    return _stepped(p, lambda m, i: m - i, lambda x: x)


def _hochberg(p: Array) -> Array:
    return _stepped(p, lambda m, i: m - i, _downwards)


def _sidak(p: Array) -> Array:
    return _upwards(1 - (1 - np.sort(p)) ** np.arange(len(p), 0, -1))[_ranks(p)]


def _false_finds(p: Array) -> Array:
    return _stepped(p, lambda m, i: m / (i + 1.0), _downwards)


def _unbounded(p: Array) -> Array:
    return np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1))[_ranks(p)]


_HOLM_FAULTS: Faults = {
    "the running maximum is missing: no row may have a smaller one than a row with a smaller p": _bare,
    "the running maximum goes along the order given: it goes from the smallest p up": lambda p: _upwards(_bare(p)),
    "read with [order] where it has to be written: adjusted[order] = ...": lambda p: np.sort(_holm(p))[np.argsort(p)],
    "m p, Bonferroni: only the smallest p is multiplied by m": lambda p: np.minimum(len(p) * p, 1.0),
    "the order is that of the sorted p: give each row its own": lambda p: np.sort(_holm(p)),
    "the factors end at 0: the largest p is multiplied by 1": lambda p: _stepped(p, lambda m, i: m - i - 1.0, _upwards),
    "the factors end at 2: the largest p is multiplied by 1": lambda p: _stepped(p, lambda m, i: m - i + 1.0, _upwards),
    "m p / rank, Benjamini and Hochberg: that bounds the share of false finds, not the chance of any": _false_finds,
    "the running minimum from the largest p down, Hochberg: Holm takes the running maximum upwards": _hochberg,
    "1 - (1 - p)^k, Sidak: Holm multiplies p by k": _sidak,
    "the factors rise with p: the smallest p is multiplied by m": lambda p: _stepped(p, lambda m, i: i + 1.0, _upwards),
    "p itself: nothing is adjusted": lambda p: p,
    "a probability is at most 1": _unbounded,
    "whether it stands, and not the adjusted p": lambda p: (_holm(p) <= FAMILY).astype(float),
}


@exercise
def check_step_down(function: Callable[[Array], Any]) -> None:
    """Check `step_down(p)`: Holm's adjusted p-values, [m] in the order given.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "ascending: factors m, m - 1, ..., 1, then the running maximum, at most 1, and back in the order given"
    random = np.random.default_rng(3)
    hand = [[0.01, 0.04, 0.03], [0.5], [0.02, 0.02], [0.9, 0.001, 0.6], [0.013, 0.012, 0.04, 0.3]]
    drawn = [random.random(random.integers(2, 9)) ** 2 for _ in range(RANDOM_CASES)]
    for p in [*map(np.array, hand), *drawn]:
        compare_answers("step_down", f"p {p.round(3).tolist()}", function, _holm(p), _HOLM_FAULTS, hint, (p,))
    print(f"step_down: passed ({len(hand)} cases by hand, {RANDOM_CASES} random ones)")


# -- the whole ---------------------------------------------------------------------------------------------------------
PARTS = "difference, low, high, rate, low of the rate, high of the rate, stands"


def _evaluation(
    after: Sequence[str],
    before: Sequence[str],
    judges: Judges,
    *,
    paired: Callable[[Array, Array], list[float]] = _paired,
    points: Callable[[Array, Array], Array] = lambda a, b: (np.sign(a - b) + 1) / 2,
    adjusted: Callable[[Array], Array] = _holm,
    family: float = FAMILY,
) -> Array:
    """[judges, 7], in the order of `PARTS`."""
    scores = [tuple(np.asarray(judge(texts), float) for texts in (after, before)) for judge in judges.values()]
    rows = [(paired(a, b), rate(points(a, b))) for a, b in scores]
    stands = adjusted(np.array([row[3] for row, _ in rows])) <= family
    return np.array([[*row[:3], *share, float(yes)] for (row, share), yes in zip(rows, stands, strict=True)])


def _of_rates(after: Sequence[str], before: Sequence[str], judges: Judges) -> Array:
    """Stands where the interval of the win rate leaves out one half."""
    table = _evaluation(after, before, judges)
    table[:, 6] = (table[:, 4] > 0.5) | (table[:, 5] < 0.5)
    return table


def _risen(after: Sequence[str], before: Sequence[str], judges: Judges) -> Array:
    """Stands only where the difference is above 0."""
    table = _evaluation(after, before, judges)
    table[:, 6] *= table[:, 0] > 0
    return table


def _per_cent(after: Sequence[str], before: Sequence[str], judges: Judges) -> Array:
    return _evaluation(after, before, judges) * (1, 1, 1, 100, 100, 100, 1)


_WHOLE_FAULTS: Faults = {
    "the two models are swapped: after less before": lambda a, b, j: _evaluation(b, a, j),
    "the rows are not paired: differences row by row": partial(_evaluation, paired=_unpaired),
    "the rows are not paired, with n - 1 degrees of freedom": partial(_evaluation, paired=partial(_unpaired, lists=1)),
    "the variance is divided by n: n - 1": partial(_evaluation, paired=partial(_paired, error=partial(_error, ddof=0))),
    "the p-values are those of one side, or the level is 0.1: both sides and 5 % are asked": partial(
        _evaluation, paired=partial(_paired, tails=1)
    ),
    "the p-values are those of the normal law: Student's t with n - 1": partial(_evaluation, paired=_normal_p),
    "the level is 0.01: 5 % is asked": partial(_evaluation, family=0.01),
    "each judge by its own p: Holm looks at all of them together": partial(_evaluation, adjusted=lambda p: p),
    "Bonferroni: only the smallest p is multiplied by m": partial(_evaluation, adjusted=lambda p: len(p) * p),
    "Benjamini and Hochberg: that bounds another error": partial(_evaluation, adjusted=_false_finds),
    "Hochberg, a running minimum from the largest p down: Holm takes the running maximum upwards": partial(
        _evaluation, adjusted=_hochberg
    ),
    "the running maximum is missing": partial(_evaluation, adjusted=_bare),
    "1 - (1 - p)^k, Sidak: Holm multiplies p by k": partial(_evaluation, adjusted=_sidak),
    "Holm over more rows: one p-value for each judge, that of its difference": partial(
        _evaluation, adjusted=lambda p: _holm(np.append(p, np.ones(len(p))))[: len(p)]
    ),
    "the adjusted p are in ascending order: give each judge its own": partial(
        _evaluation, adjusted=lambda p: np.sort(_holm(p))
    ),
    "equal scores count as a win: they tie": partial(_evaluation, points=lambda a, b: (a >= b).astype(float)),
    "equal scores count as a loss: they tie": partial(_evaluation, points=lambda a, b: (a > b).astype(float)),
    "the win rate is that of the other model": partial(_evaluation, points=lambda a, b: (np.sign(b - a) + 1) / 2),
    "rows with equal scores are dropped from the win rate: a tie is one half": partial(
        _evaluation, points=lambda a, b: (a > b)[a != b].astype(float)
    ),
    "per cent: a share is asked": _per_cent,
    "what stands is read from the win rate: it is asked of the differences, after Holm": _of_rates,
    "only what rose stands: a fall stands too": _risen,
    "every score of one model against every score of the other: the same prompt, row by row": partial(
        _evaluation, points=lambda a, b: ((np.sign(np.subtract.outer(a, b)) + 1) / 2).ravel()
    ),
}


def _reading(column: int) -> Callable[[Sequence[str]], list[float]]:
    """A judge who reads one of the numbers that a reply of a probe is made of."""
    return lambda texts: [float(text.split()[column]) for text in texts]


def _texts(table: Array) -> list[str]:
    return [" ".join(f"{x:g}" for x in row) for row in table]


def _with_p(random: np.random.Generator, wanted: Sequence[float], rows: int = 30) -> list[str]:
    """Replies whose numbers have, paired with zeros, these p-values to about four digits; a minus makes it a fall."""
    from scipy.stats import t  # costs a second that only this needs

    x = random.normal(size=(rows, len(wanted)))
    x = (x - x.mean(0)) / x.std(0, ddof=1)
    mean = np.sign(wanted) * t.isf(np.abs(wanted) / 2, rows - 1) / math.sqrt(rows)
    return _texts((x + mean).round(4))


_CLOSE = {
    "two of four stand, one of them a fall": [0.03, -0.001, 0.6, 0.014],  # after Holm 0.06, 0.004, 0.6, 0.042
    "two of four stand, and a third nearly": [0.01, 0.7, 0.004, 0.045],  # 0.03, 0.7, 0.016, 0.09
    "none of three stands": [0.02, 0.024, 0.9],  # 0.06, 0.06, 0.9
    "none of four stands, by a hair": [0.7, 0.0126, 0.5, 0.9],  # 1, 0.0504, 1, 1
}
ZEROS = "0 0 0 0"


def probes() -> dict[str, tuple[list[str], list[str], dict[str, Callable[[Sequence[str]], list[float]]]]]:
    """Name -> (after, before, judges): replies that are a row of numbers, and judges who read one of them.

    The answers are known: of ties; of the same replies twice; of replies that are better by 2 in every row; of two
    columns that both differ by 0.5 a row, one beside a large shared part; of twenty columns without any difference but
    one that leaves out 0 by chance; and of columns with p-values at which Holm and what resembles it disagree.
    """
    random = np.random.default_rng(4)
    shared, noise = random.normal(0, 5, (12, 1)).round(1), random.normal(0, 0.3, (12, 2)).round(1)
    base = random.integers(0, 4, (12, 2)).astype(float)
    null = random.normal(size=(30, 20)).round(2)
    null[:, 0] += 0.45 - null[:, 0].mean()  # p is 0.01 to 0.05 alone
    tied = np.where(random.random((16, 1)) < 0.6, 0.0, random.choice([-1.0, 1.0], (16, 1), p=[0.2, 0.8]))

    def judges(count: int) -> dict[str, Callable[[Sequence[str]], list[float]]]:
        return {f"judge {i}": _reading(i) for i in range(count)}

    close = {name: _with_p(random, wanted) for name, wanted in _CLOSE.items()}
    return {
        "mostly ties": (_texts(tied), _texts(0 * tied), judges(1)),
        "the same replies twice": (_texts(base), _texts(base), judges(2)),
        "better by 2 in every row": (_texts(base + 2), _texts(base), judges(2)),
        "a large part that both share": (_texts(shared + noise + 0.5), _texts(shared + 0 * noise), judges(2)),
        "twenty judges, one of whom differs by chance": (_texts(null), _texts(0 * null), judges(20)),
        **{name: (after, [ZEROS] * len(after), judges(len(_CLOSE[name]))) for name, after in close.items()},
    }


def _has_length(row: object) -> bool:
    return isinstance(row, Sequence) or (isinstance(row, Array | Tensor) and row.ndim > 0)


@exercise
def check_evaluation(function: Callable[[Sequence[str], Sequence[str], Judges], Any]) -> None:
    """Check `evaluation(after, before, judges)` -> {judge: the seven numbers of `PARTS`}, on probes too.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = f"for each judge {PARTS}; Holm over all judges, of the p-values of the paired differences"

    def as_table(after: Sequence[str], before: Sequence[str], judges: Judges) -> Any:
        got = function(after, before, judges)
        wanted = f"a dict with {list(judges)[:3]}{' ...' if len(judges) > 3 else ''}"
        if not isinstance(got, Mapping) or set(got) != set(judges):
            fail("evaluation", case, got, wanted, NO_RETURN if got is None else hint, ASKED)
        rows = {name: listed(row) for name, row in got.items()}
        sizes = {name: len(row) if _has_length(row) else 1 for name, row in rows.items()}
        if set(sizes.values()) != {7}:
            fail("evaluation, numbers of a judge", case, sizes, 7, PARTS, ASKED)
        return np.array([[float(x) for x in rows[name]] for name in judges])

    random = np.random.default_rng(5)
    cases: dict[str, tuple] = dict(probes())
    for number in range(5):
        tables = [random.normal(0, 1, (15, 4)).round(number % 2) + shift for shift in (0.7, 0.0)]
        cases[f"random replies {number}"] = (*map(_texts, tables), {f"judge {i}": _reading(i) for i in range(4)})
    for case, given in cases.items():
        compare_answers("evaluation", case, as_table, _evaluation(*given), _WHOLE_FAULTS, hint, given)
    print(f"evaluation: passed ({len(probes())} probes with known answers, 5 random tables)")
