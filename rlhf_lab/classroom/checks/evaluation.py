"""Checks of the exercises of chapter 11: the reader's own evaluation of two models, from judgements and from replies.

Each compares a function with the definition: on cases small enough for paper, on random ones, and the whole on probes
whose answer is known. When something differs, the usual mistakes are tried on the same inputs, and the message names
the one that gives the same. Answers may be numbers, lists, arrays or tensors of any precision; the normal quantile may
be 1.96 or exact.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.special import ndtr

from rlhf_lab.classroom.checks.comparing import ASKED, NO_RETURN, exercise, fail
from rlhf_lab.classroom.checks.dawid_skene import RANDOM_CASES, Array, Faults, compare_arrays

Judgement = tuple[str, str, str, int]  # prompt, who wrote the left reply, who the right one, 1, 0 or -1
Judges = Mapping[str, Callable[[Sequence[str]], Sequence[float]]]
Z, Z_ONE_SIDED = 1.959964, 1.644854
FAMILY = 0.05  # level at which a row stands after Holm


# -- judgements to outcomes --------------------------------------------------------------------------------------------
def _signed(judgements: Sequence[Judgement], model: str) -> list[tuple[str, int]]:
    """(prompt, 1 where the model won, 0 in a tie, -1 where it lost)."""
    return [(prompt, outcome if left == model else -outcome) for prompt, left, _, outcome in judgements]


def _by_prompt(rows: Sequence[tuple[str, float]], middle: Callable[[Sequence[float]], Any] = np.mean) -> list[float]:
    return [float(middle([x for prompt, x in rows if prompt == one])) for one in dict.fromkeys(p for p, _ in rows)]


def _points(rows: Sequence[tuple[str, int]], win: float = 1.0, tie: float = 0.5, loss: float = 0.0) -> list:
    return [(prompt, {1: win, 0: tie, -1: loss}[x]) for prompt, x in rows]


def _outcomes(judgements: Sequence[Judgement], model: str) -> list[float]:
    return _by_prompt(_points(_signed(judgements, model)))


_OUTCOME_FAULTS: Faults = {
    "the sides are ignored: where the model wrote the right reply, -1 is its win": lambda j, m: _by_prompt(
        _points([(prompt, outcome) for prompt, _, _, outcome in j])
    ),
    "the outcomes are those of the other model": lambda j, m: [1 - x for x in _outcomes(j, m)],
    "a tie counts as a win: it is half of one": lambda j, m: _by_prompt(_points(_signed(j, m), tie=1.0)),
    "a tie counts as a loss: it is half a win": lambda j, m: _by_prompt(_points(_signed(j, m), tie=0.0)),
    "ties are dropped: a tie is one half": lambda j, m: _by_prompt(_points([x for x in _signed(j, m) if x[1]])),
    "1, 0 and -1 are averaged as they are: an outcome is 1, 1/2 or 0": lambda j, m: _by_prompt(
        _points(_signed(j, m), 1.0, 0.0, -1.0)
    ),
    "one row for each judgement: those of a prompt are averaged first": lambda j, m: [
        x for _, x in _points(_signed(j, m))
    ],
    "the majority of a prompt: its mean is asked": lambda j, m: [
        float(np.sign(x - 0.5) + 1) / 2 for x in _outcomes(j, m)
    ],
    "the sum over a prompt: its mean is asked": lambda j, m: _by_prompt(_points(_signed(j, m)), np.sum),
    "the last judgement of a prompt replaces the others: the mean is asked": lambda j, m: _by_prompt(
        _points(_signed(j, m)), lambda some: some[-1]
    ),
    "the prompts are sorted: the order of their first judgement is asked": lambda j, m: _outcomes(sorted(j), m),
}


@exercise
def check_outcomes(function: Callable[[Sequence[Judgement], str], Any]) -> None:
    """Check `outcomes(judgements, model)`: a number in [0, 1] for each prompt, in the order of their first judgement.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "1 where `model` won, 1/2 in a tie, 0 where it lost, and the mean of each prompt"
    random = np.random.default_rng(0)
    hand: list[list[Judgement]] = [
        [("zoo", "new", "old", 1), ("zoo", "new", "old", 0)],
        [("zoo", "old", "new", 1), ("bank", "new", "old", 0), ("zoo", "new", "old", 1), ("zoo", "new", "old", 1)],
        [("pool", "old", "new", -1), ("bank", "old", "new", 0)],
    ]
    for judgements in [*hand, *(_random_judgements(random) for _ in range(RANDOM_CASES))]:
        given = judgements, "new"
        faults = {cause: partial(_guarded, fault, *given) for cause, fault in _OUTCOME_FAULTS.items()}
        case = f"judgements {judgements[:4]}{' ...' if len(judgements) > 4 else ''}, model 'new'"
        compare_arrays("outcomes", case, function, _outcomes(*given), faults, hint, given)
    print(f"outcomes: passed ({len(hand)} cases by hand, {RANDOM_CASES} random ones, several judges of a prompt)")


def _random_judgements(random: np.random.Generator) -> list[Judgement]:
    prompts = random.permutation(["zoo", "bank", "pool", "market"])[: random.integers(1, 5)].tolist()
    rows = []
    for prompt in random.choice(prompts, random.integers(2, 9)).tolist():
        left, right = ("new", "old") if random.random() < 0.5 else ("old", "new")
        rows.append((prompt, left, right, int(random.integers(-1, 2))))
    return rows


def _guarded(fault: Callable[..., Any], *given: Any) -> Any:
    """What the fault gives, NaN where it gives nothing, such as a mean of no values."""
    with np.errstate(all="ignore"):
        try:
            return fault(*given)
        except (ValueError, ZeroDivisionError):
            return math.nan


# -- a win rate with its interval --------------------------------------------------------------------------------------
def _score(share: float, shortfall: float, count: float, z: float = Z) -> list[float]:
    """[share, low, high]: the mu with (share - mu)^2 <= z^2 (mu (1 - mu) - shortfall) / count."""
    a, b, c = 1 + z * z / count, 2 * share + z * z / count, share**2 + z * z * shortfall / count
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    return [share, (b - root) / (2 * a), (b + root) / (2 * a)]


def _missing(y: Array) -> float:
    return float((y * (1 - y)).sum())


def _rate(y: Array, z: float = Z) -> list[float]:
    if len(y) == 0:  # where a fault has dropped everything
        return [math.nan] * 3
    return _score(float(y.mean()), _missing(y) / (len(y) + 1), len(y), z)


def _wald(y: Array, variance: float) -> list[float]:
    half = Z * math.sqrt(variance / len(y))
    return [float(y.mean()), float(y.mean()) - half, float(y.mean()) + half]


_RATE_FAULTS: Faults = {
    "the variance is that of yes or no: c is missing, so the interval is too wide where there are ties": lambda y: (
        _score(float(y.mean()), 0.0, len(y))
    ),
    "ties are dropped: they are comparisons, and count half": lambda y: _rate(y[y != 0.5]),
    "ties count as wins": lambda y: _rate(np.where(y == 0.5, 1.0, y)),
    "ties count as losses": lambda y: _rate(np.where(y == 0.5, 0.0, y)),
    "c is divided by n and not by n + 1": lambda y: _score(float(y.mean()), _missing(y) / len(y), len(y)),
    "z is 1.645, of one side: 95 % between both ends needs 1.96": lambda y: _rate(y, Z_ONE_SIDED),
    "mean +- z s / sqrt(n), with the variance at the estimate: the score interval takes it at each mu": lambda y: _wald(
        y, float(y.var())
    ),
    "mean +- z s / sqrt(n), with n - 1: the score interval takes the variance at each mu": lambda y: _wald(
        y, float(y.var(ddof=1))
    ),
    "mean +- z sqrt(m (1 - m) / n): of yes or no, and at the estimate": lambda y: _wald(
        y, float(y.mean() * (1 - y.mean()))
    ),
    "low and high are swapped": lambda y: [_rate(y)[i] for i in (0, 2, 1)],
    "the order is low, rate, high: the rate comes first": lambda y: [_rate(y)[i] for i in (1, 0, 2)],
    "the middle of the interval in the place of the mean outcome": lambda y: [sum(_rate(y)[1:]) / 2, *_rate(y)[1:]],
    "the rate of the other model": lambda y: _rate(1 - y),
}


@exercise
def check_score_interval(function: Callable[[Array], Any]) -> None:
    """Check `score_interval(outcomes)` -> (win rate, low, high), 95 %, of the variance that the outcomes have.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "(m - mu)^2 = z^2 (mu (1 - mu) - c) / n with c = sum of y (1 - y) / (n + 1), solved for mu: m, low, high"
    random = np.random.default_rng(1)
    hand = [[1, 1, 0.5, 0], [1, 0, 1, 1, 0], [0.5, 0.5, 0.5], [1.0, 1.0, 1.0], [0, 0, 0.5, 1, 1, 1, 0.5, 0.25]]
    drawn = [random.choice([0, 0.5, 1], random.integers(3, 30), p=_law(random)) for _ in range(RANDOM_CASES)]
    for y in [*(np.array(y, float) for y in hand), *drawn]:
        faults = {cause: partial(_guarded, fault, y) for cause, fault in _RATE_FAULTS.items()}
        shown = f"outcomes {y.tolist()}" if len(y) < 9 else f"{len(y)} outcomes that begin with {y[:6].tolist()}"
        compare_arrays("score_interval", shown, function, _rate(y), faults, hint, (y,))
    print(f"score_interval: passed ({len(hand)} cases by hand, {RANDOM_CASES} random ones with ties)")


def _law(random: np.random.Generator) -> Array:
    """Of losses, ties and wins."""
    return random.dirichlet([2.0, 1.0, 2.0])


# -- a paired difference -----------------------------------------------------------------------------------------------
def _t(mean: float, error: float, freedom: float, quantile: float = 0.975, tails: int = 2) -> list[float]:
    """[mean, low, high, p] of an estimate with this standard error."""
    from scipy.stats import t  # costs a second that only this needs

    if error == 0:
        return [mean, mean, mean, float(mean == 0)]
    half = float(t.ppf(quantile, freedom)) * error
    return [mean, mean - half, mean + half, tails * float(t.sf(abs(mean) / error, freedom))]


def _paired(after: Array, before: Array) -> list[float]:
    d = after - before
    return _t(float(d.mean()), float(d.std(ddof=1)) / math.sqrt(len(d)), len(d) - 1)


def _error(d: Array, ddof: int = 1) -> float:
    return float(d.std(ddof=ddof)) / math.sqrt(len(d))


def _unpaired(after: Array, before: Array, lists: int = 2) -> list[float]:
    """With the variances of both lists added, and the degrees of freedom of so many of them."""
    error = math.hypot(_error(after), _error(before))
    return _t(float((after - before).mean()), error, lists * (len(after) - 1))


def _normal(after: Array, before: Array) -> list[float]:
    d = after - before
    mean, error = float(d.mean()), _error(d)
    return [
        mean,
        mean - Z * error,
        mean + Z * error,
        float(2 * ndtr(-abs(mean) / error)) if error else float(mean == 0),
    ]


_PAIRED_FAULTS: Faults = {
    "unpaired, the variances of both lists are added: what the rows share stays in": _unpaired,
    "unpaired, the variances of both lists are added, with n - 1 degrees of freedom": partial(_unpaired, lists=1),
    "before - after: the sign is the other way round": lambda a, b: _paired(b, a),
    "the variance is divided by n: n - 1, since the mean was estimated too": lambda a, b: _t(
        float((a - b).mean()), _error(a - b, 0), len(a) - 1
    ),
    "1.96 and the normal law: with n values it is Student's t with n - 1": _normal,
    "the quantile of one side, 0.95: both ends together leave out 5 %, so it is 0.975": lambda a, b: _t(
        float((a - b).mean()), _error(a - b), len(a) - 1, 0.95
    ),
    "the p-value of one side: twice that": lambda a, b: _t(
        float((a - b).mean()), _error(a - b), len(a) - 1, 0.975, tails=1
    ),
    "n degrees of freedom: n - 1": lambda a, b: _t(float((a - b).mean()), _error(a - b), len(a)),
    "the standard deviation in the place of that of a mean: divide by sqrt(n)": lambda a, b: _t(
        float((a - b).mean()), float((a - b).std(ddof=1)), len(a) - 1
    ),
    "the median of the differences: the mean is asked": lambda a, b: [float(np.median(a - b)), *_paired(a, b)[1:]],
}


@exercise
def check_paired(function: Callable[[Array, Array], Any]) -> None:
    """Check `paired(after, before)` -> (mean difference, low, high, p), by Student's t, two-sided.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "d = after - before row by row; mean +- t s / sqrt(n) n - 1 degrees of freedom: mean, low, high, p"
    random = np.random.default_rng(2)
    hand = [([2.0, 3.0, 5.0], [1.0, 1.0, 2.0]), ([1.0, 2.0], [1.0, 2.0]), ([3.0, 4.0, 9.0], [1.0, 2.0, 7.0])]
    cases = [(np.array(a), np.array(b)) for a, b in hand]
    for _ in range(RANDOM_CASES):
        shared = random.normal(0, 3, random.integers(3, 12))
        cases.append(tuple(shared + random.normal(size=len(shared)) for _ in range(2)))  # type: ignore[arg-type]
    for after, before in cases:
        faults = {cause: partial(_guarded, fault, after, before) for cause, fault in _PAIRED_FAULTS.items()}
        case = f"after {after.round(2).tolist()}, before {before.round(2).tolist()}"
        compare_arrays("paired", case, function, _paired(after, before), faults, hint, (after, before))
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


def _false_finds(p: Array) -> Array:
    return _stepped(p, lambda m, i: m / (i + 1.0), _downwards)


def _unbounded(p: Array) -> Array:
    return np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1))[_ranks(p)]


_HOLM_FAULTS: Faults = {
    "the running maximum is missing: no row may have a smaller one than a row with a smaller p": lambda p: _stepped(
        p, lambda m, i: m - i, lambda x: x
    ),
    "m p, Bonferroni: only the smallest p is multiplied by m": lambda p: np.minimum(len(p) * p, 1.0),
    "the order is that of the sorted p: give each row its own": lambda p: np.sort(_holm(p)),
    "the factors end at 0: the largest p is multiplied by 1": lambda p: _stepped(p, lambda m, i: m - i - 1.0, _upwards),
    "the factors end at 2: the largest p is multiplied by 1": lambda p: _stepped(p, lambda m, i: m - i + 1.0, _upwards),
    "m p / rank, Benjamini and Hochberg: that bounds the share of false finds, not the chance of any": _false_finds,
    "the running minimum from the largest p down, Hochberg: Holm takes the running maximum upwards": lambda p: _stepped(
        p, lambda m, i: m - i, _downwards
    ),
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
        faults = {cause: partial(fault, p) for cause, fault in _HOLM_FAULTS.items()}
        compare_arrays("step_down", f"p {p.round(3).tolist()}", function, _holm(p), faults, hint, (p,))
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
    rows = [(paired(a, b), _rate(points(a, b))) for a, b in scores]
    stands = adjusted(np.array([row[3] for row, _ in rows])) <= family
    return np.array([[*row[:3], *rate, float(yes)] for (row, rate), yes in zip(rows, stands, strict=True)])


def _of_rates(after: Sequence[str], before: Sequence[str], judges: Judges) -> Array:
    """Stands where the interval of the win rate leaves out one half."""
    table = _evaluation(after, before, judges)
    table[:, 6] = (table[:, 4] > 0.5) | (table[:, 5] < 0.5)
    return table


_WHOLE_FAULTS: Faults = {
    "the two models are swapped: after less before": lambda a, b, j: _evaluation(b, a, j),
    "the rows are not paired: differences row by row": partial(_evaluation, paired=_unpaired),
    "the rows are not paired, with n - 1 degrees of freedom": partial(_evaluation, paired=partial(_unpaired, lists=1)),
    "each judge by its own p: Holm looks at all of them together": partial(_evaluation, adjusted=lambda p: p),
    "Bonferroni: only the smallest p is multiplied by m": partial(_evaluation, adjusted=lambda p: len(p) * p),
    "Benjamini and Hochberg: that bounds another error": partial(_evaluation, adjusted=_false_finds),
    "equal scores count as a win: they tie": partial(_evaluation, points=lambda a, b: (a >= b).astype(float)),
    "equal scores count as a loss: they tie": partial(_evaluation, points=lambda a, b: (a > b).astype(float)),
    "the win rate is that of the other model": partial(_evaluation, points=lambda a, b: (np.sign(b - a) + 1) / 2),
    "rows with equal scores are dropped from the win rate: a tie is one half": partial(
        _evaluation, points=lambda a, b: (a > b)[a != b].astype(float)
    ),
    "what stands is read from the win rate: it is asked of the differences, after Holm": _of_rates,
    "every score of one model against every score of the other: the same prompt, row by row": partial(
        _evaluation, points=lambda a, b: ((np.sign(np.subtract.outer(a, b)) + 1) / 2).ravel()
    ),
}


def _reading(column: int) -> Callable[[Sequence[str]], list[float]]:
    """A judge who reads one of the numbers that a reply of a probe is made of."""
    return lambda texts: [float(text.split()[column]) for text in texts]


def _texts(table: Array) -> list[str]:
    return [" ".join(f"{x:g}" for x in row) for row in table]


def probes() -> dict[str, tuple[list[str], list[str], dict[str, Callable[[Sequence[str]], list[float]]]]]:
    """Name -> (after, before, judges): replies that are a row of numbers, and judges who read one of them.

    The answers are known: of the same replies twice; of replies that are better by 2 in every row; of two columns that
    both differ by 0.5 a row, one beside a large shared part; of twenty columns without any difference but one that
    leaves out 0 by chance; and of ties.
    """
    random = np.random.default_rng(4)
    shared, noise = random.normal(0, 5, (12, 1)).round(1), random.normal(0, 0.3, (12, 2)).round(1)
    base = random.integers(0, 4, (12, 2)).astype(float)
    null = random.normal(size=(30, 20)).round(2)
    null[:, 0] += 0.45 - null[:, 0].mean()  # p is 0.01 to 0.05 alone
    tied = np.where(random.random((16, 1)) < 0.6, 0.0, random.choice([-1.0, 1.0], (16, 1), p=[0.2, 0.8]))

    def judges(count: int) -> dict[str, Callable[[Sequence[str]], list[float]]]:
        return {f"judge {i}": _reading(i) for i in range(count)}

    return {
        "the same replies twice": (_texts(base), _texts(base), judges(2)),
        "better by 2 in every row": (_texts(base + 2), _texts(base), judges(2)),
        "a large part that both share": (_texts(shared + noise + 0.5), _texts(shared + 0 * noise), judges(2)),
        "twenty judges, one of whom differs by chance": (_texts(null), _texts(0 * null), judges(20)),
        "mostly ties": (_texts(tied), _texts(0 * tied), judges(1)),
    }


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
        sizes = {name: len(row) if isinstance(row, Sequence | Array) else 1 for name, row in got.items()}
        if set(sizes.values()) != {7}:
            fail("evaluation, numbers of a judge", case, sizes, 7, PARTS, ASKED)
        return np.array([[float(x) for x in got[name]] for name in judges])

    random = np.random.default_rng(5)
    cases: dict[str, tuple] = dict(probes())
    for number in range(5):
        tables = [random.normal(0, 1, (15, 4)).round(number % 2) + shift for shift in (0.7, 0.0)]
        cases[f"random replies {number}"] = (*map(_texts, tables), {f"judge {i}": _reading(i) for i in range(4)})
    for case, given in cases.items():
        faults = {cause: partial(_guarded, fault, *given) for cause, fault in _WHOLE_FAULTS.items()}
        compare_arrays("evaluation", case, as_table, _evaluation(*given), faults, hint, given)
    print(f"evaluation: passed ({len(probes())} probes with known answers, 5 random tables)")
