"""Checks of the exercises of chapter 11 that go from judgements to a win rate: outcomes, and the score interval.

Also what all checks of the chapter compare with: the answers may be numbers in anything that keeps an order, of any
precision. The other checks stand in `evaluation`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import exercise, fail
from rlhf_lab.classroom.checks.dawid_skene import RANDOM_CASES, Array, Faults, compare_arrays

Judgement = tuple[str, str, str, int]  # prompt, who wrote the left reply, who the right one, 1, 0 or -1
Z, Z_ONE_SIDED = 1.959964, 1.644854
Z_EITHER = 1.959982  # halfway to 1.96: what a fault gives with it is close enough to what it gives with either


# -- answers in any form -----------------------------------------------------------------------------------------------
def listed(got: Any) -> Any:
    """A list of what comes one by one, such as a generator or `dict.values()`; anything else as it came.

    Example:
        >>> listed({"zoo": 0.5, "bank": 1.0}.values()), listed((1, 2)), listed("zoo")
        ([0.5, 1.0], (1, 2), 'zoo')
    """
    known = list | tuple | str | Mapping | Set | Array | Tensor
    return list(got) if isinstance(got, Iterable) and not isinstance(got, known) else got


def compare_answers(
    name: str, case: str, function: Callable[..., Any], right: Any, faults: Faults, hint: str, given: tuple
) -> None:
    """`compare_arrays` for numbers in anything that keeps an order.

    Args:
        faults: cause -> what a function with this fault gives; called with `given`.
    """

    def call(*inputs: Any) -> object:
        got = function(*inputs)
        if isinstance(got, str | Mapping | Set):
            cause = f"it returned {type(got).__name__}; a list, an array or a tensor of numbers is asked"
            fail(name, case, got, np.asarray(right), cause)
        return listed(got)

    wrong = {cause: partial(_guarded, fault, *given) for cause, fault in faults.items()}
    compare_arrays(name, case, call, right, wrong, hint, given)


def _guarded(fault: Callable[..., Any], *given: Any) -> Any:
    """What the fault gives, NaN where it gives nothing, such as a mean of no values."""
    with np.errstate(all="ignore"):
        try:
            return fault(*given)
        except (ValueError, ZeroDivisionError):
            return math.nan


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
    "the median of a prompt: its mean is asked": lambda j, m: _by_prompt(_points(_signed(j, m)), np.median),
    "the mean of all judgements: one number for each prompt is asked": lambda j, m: np.mean(
        [x for _, x in _points(_signed(j, m))]
    ),
    "the mean over the prompts: one number for each of them is asked": lambda j, m: np.mean(_outcomes(j, m)),
    "per cent: a share is asked": lambda j, m: [100 * x for x in _outcomes(j, m)],
    "the first judgement of a prompt stands for all: the mean is asked": lambda j, m: _by_prompt(
        _points(_signed(j, m)), lambda some: some[0]
    ),
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
        [("zoo", "new", "old", 1), ("zoo", "new", "old", 0), ("bank", "new", "old", -1)],
        [("zoo", "old", "new", 1), ("bank", "new", "old", 0), ("zoo", "new", "old", 1), ("zoo", "new", "old", 1)],
        [("pool", "old", "new", -1), ("bank", "old", "new", 0)],
    ]
    for judgements in [*hand, *(_random_judgements(random) for _ in range(RANDOM_CASES))]:
        given = judgements, "new"
        case = f"judgements {judgements[:4]}{' ...' if len(judgements) > 4 else ''}, model 'new'"
        compare_answers("outcomes", case, function, _outcomes(*given), _OUTCOME_FAULTS, hint, given)
    print(f"outcomes: passed ({len(hand)} cases by hand, {RANDOM_CASES} random ones, several judges of a prompt)")


def _random_judgements(random: np.random.Generator) -> list[Judgement]:
    prompts = random.permutation(["zoo", "bank", "pool", "market"])[: random.integers(1, 5)].tolist()
    rows = []
    for prompt in random.choice(prompts, random.integers(2, 9)).tolist():
        left, right = ("new", "old") if random.random() < 0.5 else ("old", "new")
        rows.append((prompt, left, right, int(random.integers(-1, 2))))
    return rows


# -- a win rate with its interval --------------------------------------------------------------------------------------
def _score(share: float, shortfall: float, count: float, z: float = Z) -> list[float]:
    """[share, low, high]: the mu with (share - mu)^2 <= z^2 (mu (1 - mu) - shortfall) / count."""
    a, b, c = 1 + z * z / count, 2 * share + z * z / count, share**2 + z * z * shortfall / count
    root = math.sqrt(max(b * b - 4 * a * c, 0.0))
    return [share, (b - root) / (2 * a), (b + root) / (2 * a)]


def _missing(y: Array) -> float:
    return float((y * (1 - y)).sum())


def rate(y: Array, z: float = Z) -> list[float]:
    """[win rate, low, high] of outcomes, by the score interval."""
    if len(y) == 0:  # where a fault has dropped everything
        return [math.nan] * 3
    return _score(float(y.mean()), _missing(y) / (len(y) + 1), len(y), z)


def _wald(y: Array, variance: float) -> list[float]:
    half = Z_EITHER * math.sqrt(variance / len(y))
    return [float(y.mean()), float(y.mean()) - half, float(y.mean()) + half]


def _widened(y: Array, change: Callable[[float, float], float]) -> list[float]:
    """With half the width changed, by a function of it and of 1 + z^2 / n."""
    share, low, high = rate(y, Z_EITHER)
    centre, half = (low + high) / 2, change((high - low) / 2, 1 + Z_EITHER**2 / len(y))
    return [share, centre - half, centre + half]


def _undivided(y: Array) -> list[float]:
    share, low, high = rate(y, Z_EITHER)
    scale = 1 + Z_EITHER**2 / len(y)
    return [share, scale * low, scale * high]


def _of_student(y: Array) -> list[float]:
    from scipy.stats import t  # costs a second that only this needs

    return rate(y, float(t.ppf(0.975, len(y) - 1)))


_RATE_FAULTS: Faults = {
    "the variance is that of yes or no: c is missing, so the interval is too wide where there are ties": lambda y: (
        _score(float(y.mean()), 0.0, len(y))
    ),
    "ties are dropped: they are comparisons, and count half": lambda y: rate(y[y != 0.5]),
    "ties count as wins": lambda y: rate(np.where(y == 0.5, 1.0, y)),
    "ties count as losses": lambda y: rate(np.where(y == 0.5, 0.0, y)),
    "c is divided by n and not by n + 1": lambda y: _score(float(y.mean()), _missing(y) / len(y), len(y)),
    "z is 1.645, of one side: 95 % between both ends needs 1.96": lambda y: rate(y, 1.645),
    "z is 1.644854, of one side: 95 % between both ends needs 1.96": lambda y: rate(y, Z_ONE_SIDED),
    "a quantile of Student's t: the score interval has that of the normal law, 1.96": _of_student,
    "the square root is missing": lambda y: _widened(y, lambda half, scale: half**2 * scale / Z_EITHER),
    "the square root of b^2 - 4 a c is missing": lambda y: _widened(y, lambda half, scale: 2 * scale * half**2),
    "the division by 1 + z^2 / n is missing": _undivided,
    "per cent: a share is asked": lambda y: [100 * x for x in rate(y)],
    "mean +- z s / sqrt(n), with the variance at the estimate: the score interval takes it at each mu": lambda y: _wald(
        y, float(y.var())
    ),
    "mean +- z s / sqrt(n), with n - 1: the score interval takes the variance at each mu": lambda y: _wald(
        y, float(y.var(ddof=1))
    ),
    "mean +- z sqrt(m (1 - m) / n): of yes or no, and at the estimate": lambda y: _wald(
        y, float(y.mean() * (1 - y.mean()))
    ),
    "low and high are swapped": lambda y: [rate(y)[i] for i in (0, 2, 1)],
    "the order is low, rate, high: the rate comes first": lambda y: [rate(y)[i] for i in (1, 0, 2)],
    "the middle of the interval in the place of the mean outcome": lambda y: [sum(rate(y)[1:]) / 2, *rate(y)[1:]],
    "the rate of the other model": lambda y: rate(1 - y),
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
        shown = f"outcomes {y.tolist()}" if len(y) < 9 else f"{len(y)} outcomes that begin with {y[:6].tolist()}"
        compare_answers("score_interval", shown, function, rate(y), _RATE_FAULTS, hint, (y,))
    print(f"score_interval: passed ({len(hand)} cases by hand, {RANDOM_CASES} random ones with ties)")


def _law(random: np.random.Generator) -> Array:
    """Of losses, ties and wins."""
    return random.dirichlet([2.0, 1.0, 2.0])
