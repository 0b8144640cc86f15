"""Checks of the exercises of chapter 00.

Each compares a function with the definition: on a case small enough for paper, on random cases, and on a property.
When something differs, the usual mistakes are tried on the same inputs, and the message names the one that gives the
same answer. Numbers may be of any type and precision: they are compared up to rounding in float32.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import combinations, pairwise, permutations, product
from random import Random
from typing import Any

from torch import Tensor

from rlhf_lab.classroom.checks.comparing import NO_RETURN, TOLERANCE, as_tensor, compare, exercise

RANDOM_CASES = 50
Tiers = Sequence[Sequence[int]]


def _same(got: Any, expected: list[tuple[int, int]] | float) -> bool:
    """Whether the pairs are the same in any order, or the number is, up to rounding in float32; of any type."""
    if isinstance(expected, list):
        return _as_pairs(got) == sorted(expected)
    number = as_tensor(got)
    if not isinstance(number, Tensor) or number.numel() != 1:
        return False
    return math.isclose(number.item(), expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _as_pairs(got: Any) -> list[tuple[int, ...]] | None:
    """Rows of whole numbers, sorted: of lists, tuples, sets, arrays and tensors; None of anything else."""
    try:
        rows = [[as_tensor(reply) for reply in row] for row in got]
    except TypeError:
        return None
    numbers = [[float(x) for x in row if isinstance(x, Tensor) and x.numel() == 1] for row in rows]
    if list(map(len, numbers)) != list(map(len, rows)) or not all(x.is_integer() for row in numbers for x in row):
        return None
    return sorted(tuple(map(int, row)) for row in numbers)


def _odd(got: object, expected: object) -> str | None:
    return NO_RETURN if got is None else None


_compare = partial(compare, same=_same, odd=_odd)


def _listed(pairs: Any) -> Any:
    """What is made pair by pair with `yield` or `zip`, as a list: it can be read more than once."""
    return list(pairs) if isinstance(pairs, Iterable) and not hasattr(pairs, "__len__") else pairs


# -- pairs of a ranking ----------------------------------------------------------------------------------------------
def _pairs(tiers: Tiers) -> list[tuple[int, int]]:
    return [pair for above, below in combinations(tiers, 2) for pair in product(above, below)]


def _random_tiers(random: Random) -> list[list[int]]:
    order = random.sample(range(count := random.randint(2, 6)), count)
    cuts = sorted(random.sample(range(1, count), random.randint(0, count - 1)))
    return [order[a:b] for a, b in zip([0, *cuts], [*cuts, count], strict=True)]


@exercise
def check_pairs_of_ranking(function: Callable[[Tiers], Sequence[tuple[int, int]]]) -> None:
    """Check `pairs_of_ranking(tiers) -> [(better, worse), ...]`: replies of one tier form no pair.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "pairs_of_ranking", "every reply of a tier with every reply of every later tier, the better one first"
    random = Random(0)
    hand = [[[2], [0, 3], [1]], [[1], [0]], [[0, 1, 2]]]
    cases = [(f"tiers {tiers}", tiers) for tiers in hand + [_random_tiers(random) for _ in range(RANDOM_CASES)]]
    for case, tiers in cases:
        flat, places = [reply for tier in tiers for reply in tier], range(len(tiers))
        faults = {
            "the order in the pair: the better reply comes first": lambda t=tiers: [(w, b) for b, w in _pairs(t)],
            "only neighbouring tiers are paired; the best also beats the last": lambda t=tiers: [
                pair for above, below in pairwise(t) for pair in product(above, below)
            ],
            "replies of one tier are paired; a tie says nothing about which is better": lambda f=flat: list(
                combinations(f, 2)
            ),
            "one reply for each tier: a tier may hold several": lambda t=tiers: list(
                combinations([tier[0] for tier in t], 2)
            ),
            "the places of the tiers are paired and not the replies in them": lambda p=places: list(combinations(p, 2)),
            "each pair is there in both orders": lambda t=tiers: _pairs(t) + [(w, b) for b, w in _pairs(t)],
        }
        call = lambda given: _listed(function(given))  # noqa: E731
        _compare(name, case, call, _pairs(tiers), faults, hint, inputs=(tiers,))
    print(f"{name}: passed (3 cases by hand, {RANDOM_CASES} random ones)")


# -- agreement of scores with a ranking ------------------------------------------------------------------------------
def _agreement(scores: Sequence[float], pairs: Sequence[tuple[int, int]], tie: float = 0.5) -> float:
    points = [1.0 if scores[b] > scores[w] else tie if scores[b] == scores[w] else 0.0 for b, w in pairs]
    return sum(points) / len(points)


@exercise
def check_agreement(function: Callable[[Sequence[float], Sequence[tuple[int, int]]], float]) -> None:
    """Check `agreement(scores, pairs)`: the share of pairs whose better reply has the higher score, a tie half.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "agreement", "for each (better, worse) 1, 1/2 or 0 points, and the mean over the pairs"
    random = Random(1)
    cases = [([3.0, 0.5, 1.0], [(0, 1), (0, 2), (1, 2)]), ([-1.0, -2.0], [(0, 1)]), ([1.0, 1.0], [(0, 1)])]
    for _ in range(RANDOM_CASES):
        scores = [float(random.randint(-2, 2)) for _ in range(5)]
        cases.append((scores, random.sample(list(permutations(range(5), 2)), 6)))
    for scores, pairs in cases:
        faults = {
            "the sign: it counts the pairs where the worse reply has the higher score": lambda s=scores, p=pairs: (
                1 - _agreement(s, p)
            ),
            "equal scores count as right (>=); they count half": lambda s=scores, p=pairs: _agreement(s, p, 1.0),
            "equal scores count as wrong (>); they count half": lambda s=scores, p=pairs: _agreement(s, p, 0.0),
            "divided by the number of replies and not of pairs": lambda s=scores, p=pairs: (
                _agreement(s, p) * len(p) / len(s)
            ),
            "equal scores are left out; they count half, and the share is over all pairs": lambda s=scores, p=pairs: (
                _agreement(s, unequal) if (unequal := [(b, w) for b, w in p if s[b] != s[w]]) else 0.0
            ),
            "the first pair alone counts: is the `return` inside the loop?": lambda s=scores, p=pairs: (
                _agreement(s, p[:1]) / len(p)
            ),
            "the sum and not the mean": lambda s=scores, p=pairs: _agreement(s, p) * len(p),
            "the mean difference of the scores; count pairs instead": lambda s=scores, p=pairs: (
                sum(s[b] - s[w] for b, w in p) / len(p)
            ),
        }
        case, right = f"scores {scores}, pairs {pairs}", _agreement(scores, pairs)
        _compare(name, case, function, right, faults, hint, inputs=(scores, pairs))
    print(f"{name}: passed (3 cases by hand, {RANDOM_CASES} random ones with ties)")


# -- win rate --------------------------------------------------------------------------------------------------------
@exercise
def check_win_rate(function: Callable[[Sequence[float], Sequence[float]], float]) -> None:
    """Check `win_rate(after, before)`: the share of prompts on which `after` is better, a tie counted half.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "win_rate", "compare prompt by prompt: a win 1, a tie 1/2, a loss 0, and the mean over the prompts"
    random = Random(2)
    draw = lambda count: [float(random.randint(-3, 3)) for _ in range(count)]  # noqa: E731
    cases = [
        ([3.0, 2.0, 0.0, 1.0], [1.0, 1.0, 2.0, 1.0]),
        ([1.0], [1.0]),
        ([2.0, 2.0, 2.0, -3.0], [1.0, 1.0, 1.0, 3.0]),
    ]
    cases += [(draw(count), draw(count)) for count in (random.randint(2, 12) for _ in range(RANDOM_CASES))]
    for after, before in cases:
        rows, everyone = list(zip(after, before, strict=True)), list(product(after, before))
        faults = {
            "the direction: it is the share on which `before` is better": lambda r=rows: 1 - _points(r),
            "ties count as losses; they are worth one half": lambda r=rows: _points(r, 0.0),
            "ties count as wins; they are worth one half": lambda r=rows: _points(r, 1.0),
            "ties are left out; they count one half, and the share is over all prompts": lambda r=rows: (
                _points([(a, b) for a, b in r if a != b]) if any(a != b for a, b in r) else math.nan
            ),
            "every reply is compared with every other; the two of one prompt belong together": lambda e=everyone: (
                _points(e)
            ),
            "the mean difference: how much better, and not how often": lambda r=rows: sum(a - b for a, b in r) / len(r),
            "the number of wins and not their share": lambda r=rows: _points(r) * len(r),
        }
        case = f"after {after}, before {before}"
        _compare(name, case, function, _points(rows), faults, hint, inputs=(after, before))
        case = f"models swapped, so the two add up to 1: after {before}, before {after}"
        _compare(name, case, function, 1 - _points(rows), {}, hint, inputs=(before, after))
    print(f"{name}: passed (3 cases by hand, {RANDOM_CASES} random ones, models swapped)")


def _points(rows: Sequence[tuple[float, float]], tie: float = 0.5) -> float:
    return sum(1.0 if a > b else tie if a == b else 0.0 for a, b in rows) / len(rows)
