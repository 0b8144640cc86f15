"""Checks of two exercises of chapter 15 that count draws: the law of the best of n, and pass@k.

Each compares a function with the definition, which lists all draws where there are few; see `beyond`.
"""

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations, product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import exercise, fail
from rlhf_lab.classroom.checks.dawid_skene import RANDOM_CASES, Faults
from rlhf_lab.classroom.checks.judging import compare_answers, listed


# -- best of n ---------------------------------------------------------------------------------------------------------
def _by_draws(ref: Tensor, scores: Tensor, n: int) -> Tensor:
    """Every way in which n replies may come; the best of them, or of several that are equally good one by lot."""
    chance, points, law = ref.tolist(), scores.tolist(), [0.0] * len(ref)
    for draws in product(range(len(ref)), repeat=n):
        highest = max(points[x] for x in draws)
        best = [x for x in draws if points[x] == highest]
        for x in best:
            law[x] += math.prod(chance[y] for y in draws) / len(best)
    return torch.tensor(law).double()


def _levels(ref: Tensor, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[N] each: ref's mass of all replies with a lower score, with a score at most as high, and with the same one."""
    lower, same = scores[None] < scores[:, None], scores[None] == scores[:, None]
    below, level = lower.double() @ ref, same.double() @ ref
    return below, below + level, level


def _best_law(ref: Tensor, scores: Tensor, n: int) -> Tensor:
    below, up_to, level = _levels(ref, scores)
    return (up_to**n - below**n) * ref / level


def _in_a_row(ref: Tensor, scores: Tensor, n: int, step: int = 1) -> Tensor:
    """As if of two equal scores the one that comes later, or sooner, were the higher one."""
    order = scores.argsort(stable=True) if step > 0 else len(ref) - 1 - scores.flip(0).argsort(stable=True)
    return _best_law(ref, torch.empty_like(scores).scatter(0, order, torch.arange(len(ref)).to(scores)), n)


def _whole(weights: Tensor) -> Tensor:
    return weights / weights.sum()


def _unsorted(ref: Tensor, scores: Tensor, n: int) -> Tensor:
    order = scores.argsort()
    return _best_law(ref, scores, n)[order]


_BEST_FAULTS: Faults = {
    "n - 1 replies are drawn: the exponent is n": lambda q, s, n: _best_law(q, s, n - 1),
    "n + 1 replies are drawn: the exponent is n": lambda q, s, n: _best_law(q, s, n + 1),
    "F^n is the chance of a best score up to this one: subtract that of all lower scores": lambda q, s, n: (
        _levels(q, s)[1] ** n
    ),
    "F^n, made to add up to 1: it is the chance of a best score up to this one; subtract that of all lower scores": (
        lambda q, s, n: _whole(_levels(q, s)[1] ** n)
    ),
    "n ref F^(n - 1) is the density of a continuous score; here scores have jumps, and F^n has a difference": (
        lambda q, s, n: n * q * _levels(q, s)[1] ** (n - 1)
    ),
    "ref F^(n - 1), made to add up to 1, is for a continuous score; here F^n has a difference": lambda q, s, n: _whole(
        q * _levels(q, s)[1] ** (n - 1)
    ),
    "n ref F^(n - 1) with F of the lower scores alone: others may be equally good": lambda q, s, n: (
        n * q * _levels(q, s)[0] ** (n - 1)
    ),
    "equally good replies share equally: the likelier one is drawn more often, in proportion to ref": (
        lambda q, s, n: (_levels(q, s)[1] ** n - _levels(q, s)[0] ** n) / (s[None] == s[:, None]).sum(1)
    ),
    "each of several equally good replies has the whole chance of their score: it is shared out, and adds up to 1": (
        lambda q, s, n: _levels(q, s)[1] ** n - _levels(q, s)[0] ** n
    ),
    "of equally good replies the one that comes later wins: a tie has no order": _in_a_row,
    "of equally good replies the one that comes first wins: a tie has no order": partial(_in_a_row, step=-1),
    "the worst of n: the order of the scores is the other way round": lambda q, s, n: _best_law(q, -s, n),
    "the law is in the order of the scores: each reply keeps its place": _unsorted,
    "n = 1 whatever n is: this is the reference": lambda q, s, n: q,
    "not made to add up to 1: the share of ref within a level is ref divided by the level's sum": lambda q, s, n: (
        (_levels(q, s)[1] ** n - _levels(q, s)[0] ** n) * q
    ),
    "ref is missing: all replies are drawn equally often": lambda q, s, n: _best_law(torch.ones_like(q) / len(q), s, n),
    "1 - (1 - ref)^n is the chance that a reply is among the n, best or not": lambda q, s, n: 1 - (1 - q) ** n,
    "the lower scores are squared up in the wrong place: F^n - F_below^n, not (F - F_below)^n": lambda q, s, n: (
        (_levels(q, s)[2] ** n) * q / _levels(q, s)[2]
    ),
    "the optimum of the leash, ref exp(score) up to its sum: best of n looks at the order of the scores alone": (
        lambda q, s, n: _whole(q * s.exp())
    ),
}


Laws = tuple[str, tuple[Tensor, Tensor, int]]


def _random_laws() -> list[Laws]:
    cases = []
    for seed in range(RANDOM_CASES):
        generator = torch.Generator().manual_seed(seed)
        count, n = (4, 1 + seed % 4) if seed % 2 else (12, 1 + 5 * (seed % 3))
        ref = torch.randn(count, generator=generator, dtype=torch.float64).softmax(0)
        scores = torch.randn(count, generator=generator, dtype=torch.float64)
        scores = (2 * scores).round() / 2 if seed % 4 < 2 else scores  # with ties
        cases.append((f"random case {seed}, {count} replies, n {n}", (ref, scores, n)))
    return cases


@exercise
def check_best_of_n_law(function: Callable[..., Any]) -> None:
    """Check `best_of_n_law(ref_law, scores, n)`, [N] and [N] -> [N]: how often each reply is the best of n.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name = "best_of_n_law"
    hint = (
        "(F^n - F_below^n) ref / level: F the mass of ref up to a reply's score, F_below that of lower scores, "
        "level = F - F_below that of its own"
    )
    draw = lambda ref, scores: (torch.tensor(ref).double(), torch.tensor(scores).double())  # noqa: E731
    three = draw([0.5, 0.3, 0.2], [0.0, 1.0, 2.0])
    cases: list[Laws] = [("ref 0.5, 0.3, 0.2, scores 0, 1, 2, n 2", (*three, 2))]
    cases.append(
        ("ref 0.2, 0.5, 0.3, scores 1, 0, 1 (two are equally good), n 2", (*draw([0.2, 0.5, 0.3], [1.0, 0.0, 1.0]), 2))
    )
    cases += [("scores in no order: ref 0.1, 0.6, 0.3, scores 3, -1, 2, n 3", (*draw([0.1, 0.6, 0.3], [3, -1, 2]), 3))]
    cases += [("n 1 is the reference itself", (*three, 1)), ("one reply alone, n 3", (*draw([1.0], [0.4]), 3))]
    cases += [("all equally good, n 5: the reference itself", (*draw([0.5, 0.3, 0.2], [1.0, 1.0, 1.0]), 5))]
    for case, inputs in [*cases, *_random_laws()]:
        right = _by_draws(*inputs) if len(inputs[0]) ** inputs[2] < 300 else _best_law(*inputs)
        compare_answers(name, case, function, right, _BEST_FAULTS, hint, inputs)
    print(f"{name}: passed ({len(cases)} cases by hand, {RANDOM_CASES} random ones, half of them with ties)")


# -- pass@k ------------------------------------------------------------------------------------------------------------
def _by_subsets(correct: Tensor, n: int, k: int) -> Tensor:
    """The share of all choices of k among the n samples, of which the first c are right, that hold a right one."""
    chosen = list(combinations(range(n), k))
    return torch.tensor([sum(min(some) < c for some in chosen) / len(chosen) for c in correct.tolist()]).double()


def _exactly(correct: Tensor, n: int, k: int) -> Tensor:
    """1 - C(n - c, k) / C(n, k) in whole numbers up to the last division."""
    every = math.comb(n, k)
    return torch.tensor([(every - math.comb(n - c, k)) / every for c in correct.tolist()]).double()


def _factors(correct: Tensor, n: int, k: int, first: int, last: int) -> Tensor:
    """1 - prod (1 - k / i) over i from n - c + first to n + last."""
    rows = [[1 - k / i for i in range(n - c + first, n + last + 1) if i] for c in correct.tolist()]
    return torch.tensor([1 - math.prod(row) for row in rows]).double()


_PASS_FAULTS: Faults = {
    "1 - (1 - c/n)^k draws with replacement: that is biased; the k are different samples": lambda c, n, k: (
        1 - (1 - c / n) ** k
    ),
    "c/n is pass@1: k is missing": lambda c, n, k: c / n,
    "k c / n, the mean number of right ones among k, is no chance": lambda c, n, k: k * c / n,
    "k c / n, cut at 1, is no chance: right ones may come together": lambda c, n, k: (k * c / n).clamp(max=1),
    "(c/n)^k: all k right, with replacement": lambda c, n, k: (c / n) ** k,
    "C(c, k) / C(n, k): all k are right; one right one is enough": lambda c, n, k: torch.tensor(
        [math.comb(x, k) / math.comb(n, k) for x in c.tolist()]
    ).double(),
    "1 - C(c, k) / C(n, k): the wrong samples, n - c, have to fill all k": lambda c, n, k: torch.tensor(
        [1 - math.comb(x, k) / math.comb(n, k) for x in c.tolist()]
    ).double(),
    "C(n - c, k) / C(n, k) is the chance that all k are wrong: 1 minus it is asked": lambda c, n, k: (
        1 - _exactly(c, n, k)
    ),
    "one number: the chance of each problem is asked": lambda c, n, k: _exactly(c, n, k).mean(),
    "where n - c < k there are too few wrong samples to fill k, so it is 1 and not 0": lambda c, n, k: torch.where(
        n - c < k, 0.0, _exactly(c, n, k)
    ),
    "c = 0 is no sure failure here: it is 0 where no sample is right": lambda c, n, k: torch.where(
        c == 0, 1.0, _exactly(c, n, k)
    ),
    "1 or 0: whether any sample at all is right": lambda c, n, k: (c > 0).double(),
    "1 or 0: whether there are at least k right ones": lambda c, n, k: (c >= k).double(),
    "the product begins one factor too early": lambda c, n, k: _factors(c, n, k, 0, 0),
    "the product ends one factor too early: range and arange leave out their end": lambda c, n, k: _factors(
        c, n, k, 1, -1
    ),
    "the product is one factor off: range and arange leave out their end, n - c + 1 to n is asked": lambda c, n, k: (
        _factors(c, n, k, 0, -1)
    ),
    "k - 1 and not k": lambda c, n, k: _exactly(c, n, k - 1),
    "k + 1 and not k": lambda c, n, k: _exactly(c, n, min(k + 1, n)),
}


def _finite(name: str, case: str, function: Callable[..., Any], right: Tensor, *given: Any) -> Any:
    """The answer, unless numbers are missing in it where the binomial coefficients are too large for a float."""
    got = listed(function(*given))
    try:
        missing = given[1] > 1000 and not np.isfinite(np.asarray(got, dtype=float)).all()
    except (TypeError, ValueError, RuntimeError):
        return got
    if missing:
        cause = "C(n, k) is too large for a float here: divide factor by factor, use math.comb or stay with logarithms"
        fail(name, case, got, right, cause)
    return got


@exercise
def check_pass_at_k(function: Callable[..., Any]) -> None:
    """Check `pass_at_k(correct, n, k)`, [P] whole numbers -> [P]: the chance of a right one among k of n samples.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name = "pass_at_k"
    hint = (
        "1 - C(n - c, k) / C(n, k) for each c; as a product, 1 - prod over i from n - c + 1 to n of (1 - k / i), "
        "it neither overflows nor is it rounded away"
    )
    cases = [([0, 1, 2, 4], 4, 2), ([1, 0, 3], 3, 1), ([3, 2, 1, 0], 3, 3), ([2], 5, 4)]
    small = [(list(range(n + 1)), n, k) for n in range(1, 7) for k in range(1, n + 1)]
    large = [([0, 1, 5, 100, 5000, 10_000], 10_000, k) for k in (1, 8, 100)] + [([0, 1, 5, 100, 5000], 10_000, 5000)]
    for counts, n, k in [*cases, *small, *large]:
        case, inputs = f"correct {counts}, n {n}, k {k}", (torch.tensor(counts), n, k)
        right = _by_subsets(*inputs) if n < 10 else _exactly(*inputs)
        call = partial(_finite, name, case, function, right)
        compare_answers(name, case, call, right, _PASS_FAULTS, hint, inputs)
    print(f"{name}: passed ({len(cases)} cases by hand, all up to n = 6 by counting, n = 10,000)")
