"""Checks of the exercises of chapter 08.

Each compares a function with the definition: on cases small enough for paper and on random ones. When something
differs, the usual mistakes are tried on the same inputs, and the message names the one that gives the same. Answers may
be lists, arrays or tensors of any precision. Those of Dawid and Skene's model stand in `dawid_skene`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np

from rlhf_lab.classroom.checks.comparing import exercise
from rlhf_lab.classroom.checks.dawid_skene import (
    RANDOM_CASES,
    Array,
    Faults,
    check_dawid_skene,
    check_expect,
    check_first_beliefs,
    check_maximise,
    compare_arrays,
    probe,
)

__all__ = [
    "check_dawid_skene", "check_expect", "check_first_beliefs", "check_fleiss", "check_maximise", "check_token_marks",
    "probe",
]  # fmt: skip
Spans = Sequence[tuple[int, int]]


# -- Fleiss' kappa -----------------------------------------------------------------------------------------------------
def _agreed(counts: Array) -> float:
    """Share of the pairs of raters of an item that agree."""
    n = counts[0].sum()
    return float((counts * (counts - 1)).sum() / (len(counts) * n * (n - 1)))


def _chance(counts: Array) -> float:
    return float(((counts.sum(0) / counts.sum()) ** 2).sum())


def _kappa(agreed: float, chance: float) -> float:
    return (agreed - chance) / (1 - chance)


_FLEISS_FAULTS: Faults = {
    "no correction for chance: this is P alone": _agreed,
    "a rater is paired with himself: n_c (n_c - 1) over n (n - 1) is asked, and not n_c^2 over n^2": lambda c: _kappa(
        float((c**2).sum() / (len(c) * c[0].sum() ** 2)), _chance(c)
    ),
    "chance as if all categories were as frequent: it is the sum of the squared shares": lambda c: _kappa(
        _agreed(c), 1 / c.shape[1]
    ),
    "P - C is not divided by 1 - C: perfect agreement would not be 1": lambda c: _agreed(c) - _chance(c),
    "chance from the items and not from the categories: sum over the other axis": lambda c: _kappa(
        _agreed(c), float(((c.sum(1) / c.sum()) ** 2).sum())
    ),
    "a kappa below 0 is cut to 0: it says that they agree less than by chance": lambda c: max(
        0.0, _kappa(_agreed(c), _chance(c))
    ),
    "the sign: it is 1 for perfect agreement": lambda c: -_kappa(_agreed(c), _chance(c)),
    "the share of items on which all agree: pairs of raters are asked": lambda c: _kappa(
        float((c.max(1) == c.sum(1)).mean()), _chance(c)
    ),
}


@exercise
def check_fleiss(function: Callable[[Array], float]) -> None:
    """Check `fleiss(counts)`: counts [items, categories], the same number of labels for every item.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "(P - C) / (1 - C), P the share of the pairs of raters of an item that agree, C the sum of squared shares"
    random = np.random.default_rng(0)
    hand = [[[3, 0], [2, 1], [0, 3]], [[2, 0], [0, 2], [2, 0]], [[1, 1], [1, 1], [2, 0]]]
    cases = [np.array(counts) for counts in hand]
    cases += [random.multinomial(5, (0.5, 0.3, 0.2), size=6) for _ in range(RANDOM_CASES)]
    for counts in cases:
        faults = {cause: partial(fault, counts) for cause, fault in _FLEISS_FAULTS.items()}
        right = _kappa(_agreed(counts), _chance(counts))
        compare_arrays("fleiss", f"counts {counts.tolist()}", function, right, faults, hint, (counts,))
    print(f"fleiss: passed ({len(hand)} cases by hand, {RANDOM_CASES} random ones)")


# -- marks of characters to marks of tokens ----------------------------------------------------------------------------
def _marks(touches: Callable[[int, int, int, int], bool], offsets: Spans, spans: Spans) -> list[float]:
    """1 for each token (start, end) that touches a span (a, b) in some sense."""
    return [float(any(touches(start, end, a, b) for a, b in spans)) for start, end in offsets]


_token_marks = partial(_marks, lambda start, end, a, b: start < b and a < end)
_MARK_FAULTS: Faults = {
    "a token counts that only meets a span: ends are excluded, so compare with < and not <=": partial(
        _marks, lambda start, end, a, b: start <= b and a <= end
    ),
    "only tokens that lie in a span as a whole: one marked character is enough": partial(
        _marks, lambda start, end, a, b: a <= start and end <= b
    ),
    "only tokens that begin in a span: a span may begin within a token": partial(
        _marks, lambda start, end, a, b: a <= start < b
    ),
    "only tokens in which a span begins: it may go over several": partial(
        _marks, lambda start, end, a, b: start <= a < end
    ),
    "how many spans there are: 1 is asked for one or more": lambda offsets, spans: [
        float(sum(start < b and a < end for a, b in spans)) for start, end in offsets
    ],
    "the first span alone counts": lambda offsets, spans: _token_marks(offsets, spans[:1]),
    "the last span alone counts: is the answer overwritten in the loop?": lambda offsets, spans: _token_marks(
        offsets, spans[-1:]
    ),
    "upside down: 1 where nothing is marked": lambda offsets, spans: [1 - x for x in _token_marks(offsets, spans)],
}


def _random_marks(random: np.random.Generator) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Tokens that cut a text of 30 characters, and one to three marked spans of it."""
    cuts = [0, *sorted(random.choice(np.arange(1, 30), 9, replace=False).tolist()), 30]
    ends = sorted(random.choice(31, 2 * int(random.integers(1, 4)), replace=False).tolist())
    return list(pairwise(cuts)), list(zip(ends[::2], ends[1::2], strict=True))


@exercise
def check_token_marks(function: Callable[[Spans, Spans], Sequence[float]]) -> None:
    """Check `token_marks(offsets, spans)`: for each token 1 where it shares a character with a span, else 0.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "1 for every token that has at least one marked character; ends are excluded"
    three = [(0, 3), (3, 7), (7, 12)]
    hand: list[tuple[Spans, Spans]] = [
        (three, [(3, 7)]), (three, [(5, 8)]), (three, []), ([(0, 12)], [(4, 6)]), (three, [(0, 1), (8, 12)]),
        ([(0, 3), (4, 7), (8, 12)], [(3, 4), (8, 9)]),  # with gaps between the tokens, and a mark in one
        (three, [(8, 12), (0, 1), (0, 2)]),  # spans in no order, two in one token
    ]  # fmt: skip
    random = np.random.default_rng(1)
    for given in hand + [_random_marks(random) for _ in range(RANDOM_CASES)]:
        faults = {cause: partial(fault, *given) for cause, fault in _MARK_FAULTS.items()}
        case = f"tokens {given[0]}, marked {given[1]}"
        compare_arrays("token_marks", case, function, _token_marks(*given), faults, hint, tuple(given))
    print(f"token_marks: passed ({len(hand)} cases by hand, {RANDOM_CASES} random ones)")
