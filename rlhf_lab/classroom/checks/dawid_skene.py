"""Checks of the exercise of chapter 08 that builds Dawid and Skene's model: its pieces, and the whole on a probe.

Labels are [raters, items] whole numbers, -1 where a rater gave none; which each piece has to leave out. When something
differs, the usual mistakes are tried on the same inputs, and the message names the one that gives the same.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import (
    ASKED,
    IN_PLACE,
    NO_RETURN,
    as_tensor,
    compare,
    exercise,
    fail,
    odd_tensors,
    same_tensors,
)

RANDOM_CASES = 20
Array = np.ndarray
Faults = Mapping[str, Callable[..., Any]]


# -- numbers in lists, arrays and tensors ------------------------------------------------------------------------------
def compare_arrays(
    name: str, case: str, function: Callable[..., Any], expected: Any, faults: Faults, hint: str, inputs: tuple
) -> None:
    """`compare` for answers that may be lists, arrays or tensors; it also sees an array that was changed in place.

    Args:
        faults: cause -> what a function with this fault gives; called without arguments.
    """

    def call(*given: Any) -> Any:
        before = deepcopy(given)
        got = function(*given)
        for number, (old, new) in enumerate(zip(before, given, strict=True), start=1):
            if not np.array_equal(np.asarray(old), np.asarray(new)):
                fail(name, f"{case}, argument {number} after the call", new, old, IN_PLACE)
        return _tensor(got)

    wrong = {cause: partial(_numbers, fault) for cause, fault in faults.items()}
    right = _numbers(lambda: expected)
    compare(name, case, call, right, wrong, hint, same=same_tensors, odd=_odd, inputs=inputs)


def _numbers(fault: Callable[[], Any]) -> Tensor:
    return torch.as_tensor(np.asarray(fault(), dtype=float))


def _tensor(got: object) -> object:
    """Lists, arrays and tensors of numbers as a tensor, whatever their precision; other answers as they are."""
    if isinstance(got, list | tuple):
        parts = [x.detach() if isinstance(x, Tensor) else x for x in got]
    elif isinstance(got, np.ndarray | np.generic):
        parts = got  # type: ignore[assignment]  # an array in the place of a list
    else:
        return as_tensor(got)
    try:
        if np.asarray(parts).dtype.kind in "US":  # words, which would be read as numbers
            return got
        return torch.as_tensor(np.array(parts, dtype=float))
    except (TypeError, ValueError, RuntimeError):
        return got


def _odd(got: object, expected: Tensor) -> str | None:
    return NO_RETURN if got is None else odd_tensors(got, expected, not_finite="a 0 / 0, or the logarithm of 0?")


def _part_of(name: str, case: str, function: Callable[..., Any], names: Sequence[str], part: int, *given: Any) -> Any:
    """One of the parts of an answer that has to have so many."""
    got = function(*given)
    if got is None or not isinstance(got, Sequence) or len(got) != len(names):
        cause = NO_RETURN if got is None else ASKED
        fail(f"{name}, the number of parts", case, got, len(names), f"return {', '.join(names)}", cause)
    return got[part]


# -- the model ---------------------------------------------------------------------------------------------------------
def _said(labels: Array, categories: int) -> Array:
    """[raters, items, categories] 1 where the rater said it; zeros where there is no label."""
    return (labels[:, :, None] == np.arange(categories)).astype(float)


def _last_for_missing(labels: Array, categories: int) -> Array:
    """The same with -1 taken for an index, which means the last category."""
    return _said(np.where(labels < 0, categories - 1, labels), categories)


def _first(said: Array) -> Array:
    return said.sum(0) / said.sum((0, 2))[:, None]


def _hard(beliefs: Array) -> Array:
    return np.eye(beliefs.shape[1])[beliefs.argmax(1)]


def _prior(categories: int, smoothing: float) -> Array:
    return np.where(np.eye(categories) > 0, smoothing / 2, smoothing / 2 / (categories - 1))


def _counts(said: Array, beliefs: Array, prior: Array | float) -> Array:
    return prior + np.einsum("ic,ril->rcl", beliefs, said)


def _confusion(said: Array, beliefs: Array, prior: Array | float) -> Array:
    counts = _counts(said, beliefs, prior)
    return counts / counts.sum(2, keepdims=True)


def _expect(said: Array, shares: Array, confusion: Array) -> Array:
    logs = np.log(shares) + np.einsum("ril,rcl->ic", said, np.log(confusion))
    law = np.exp(logs - logs.max(1, keepdims=True))
    return law / law.sum(1, keepdims=True)


def _random_case(seed: int, raters: int = 4, items: int = 7, categories: int = 3) -> tuple[Array, Array, Array, Array]:
    """Labels with some missing, beliefs, shares and confusion matrices."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, categories, (raters, items))
    labels[random.random(labels.shape) < 0.2] = -1
    labels[0] = random.integers(0, categories, items)  # every item has a label
    beliefs, shares = random.dirichlet(np.ones(categories), items), random.dirichlet(2 * np.ones(categories))
    return labels, beliefs, shares, random.dirichlet(2 * np.ones(categories), (raters, categories))


UNDERFLOW = "whose product is 0 in floating point: add logarithms, and subtract the largest of each row"
PARTS = ("beliefs", "shares", "confusion")
HAND = np.array([[0, 1, 1], [0, 1, 0], [1, 1, -1]])  # three raters, three items, one label missing


# -- first beliefs -----------------------------------------------------------------------------------------------------
_FIRST_FAULTS: Faults = {
    "-1 is counted as the last category, since an index of -1 means the last one: leave it out": lambda labels, n: (
        _first(_last_for_missing(labels, n))
    ),
    "-1 is counted as category 0: leave it out": lambda labels, n: _first(_said(np.maximum(labels, 0), n)),
    "counts and not shares: each row has to add up to 1": lambda labels, n: _said(labels, n).sum(0),
    "divided by all raters, those without a label too": lambda labels, n: _said(labels, n).mean(0),
    "the winner alone: the beliefs begin with the shares of the labels": lambda labels, n: _hard(
        _said(labels, n).sum(0)
    ),
    "the axes are the other way round: [items, categories] is asked": lambda labels, n: _first(_said(labels, n)).T,
}


@exercise
def check_first_beliefs(function: Callable[[Array, int], Array]) -> None:
    """Check `first_beliefs(labels, categories)`: [items, categories] share of each label among those of an item.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "count how many raters gave item i the label c, and divide by how many labelled it; -1 is no label"
    cases = [("by hand", (HAND, 2)), ("by hand, of three categories one that nobody said", (HAND, 3))]
    cases += [(f"random labels {seed}", (_random_case(seed)[0], 3)) for seed in range(RANDOM_CASES)]
    for case, given in cases:
        faults = {cause: partial(fault, *given) for cause, fault in _FIRST_FAULTS.items()}
        label = f"{case}: {given[0].tolist()}"
        compare_arrays("first_beliefs", label, function, _first(_said(*given)), faults, hint, given)
    print(f"first_beliefs: passed (a case by hand, {RANDOM_CASES} random ones, labels missing)")


# -- maximise ----------------------------------------------------------------------------------------------------------
_SHARE_FAULTS: Faults = {
    "the sum and not the mean: shares add up to 1": lambda said, beliefs, k: beliefs.sum(0),
    "shares of the labels: the shares of the beliefs are asked": lambda said, beliefs, k: said.sum((0, 1)) / said.sum(),
    "the likeliest category alone is counted: use the beliefs as they are": lambda said, beliefs, k: _hard(
        beliefs
    ).mean(0),
}
_CONFUSION_FAULTS: Faults = {
    "the axes are the other way round: the first is the true category, the second what was said": lambda said, b, k: (
        _confusion(said, b, _prior(b.shape[1], k)).transpose(0, 2, 1)
    ),
    "the columns add up to 1 and not the rows": lambda said, b, k: (
        (counts := _counts(said, b, _prior(b.shape[1], k))) / counts.sum(1, keepdims=True)
    ),
    "the two halves of the smoothing are exchanged": lambda said, b, k: _confusion(
        said, b, np.where(np.eye(b.shape[1]) > 0, k / 2 / (b.shape[1] - 1), k / 2)
    ),
    "the smoothing is added after the rows were made to add up to 1": lambda said, b, k: (
        _confusion(said, b, 1e-300) + _prior(b.shape[1], k)
    ),
    "the smoothing is missing": lambda said, b, k: _confusion(said, b, 1e-300),
    "the smoothing is spread evenly: half of it is for the right label": lambda said, b, k: _confusion(
        said, b, k / b.shape[1]
    ),
    "all of the smoothing goes to the right label: the other half is for the wrong ones": lambda said, b, k: _confusion(
        said, b, k * np.eye(b.shape[1])
    ),
    "each wrong label gets the other half of the smoothing: they share it": lambda said, b, k: _confusion(
        said, b, k / 2
    ),
    "the likeliest category alone is counted: use the beliefs as they are": lambda said, b, k: _confusion(
        said, _hard(b), _prior(b.shape[1], k)
    ),
    "one matrix for all raters: each has his own": lambda said, b, k: np.repeat(
        _confusion(said.sum(0, keepdims=True), b, _prior(b.shape[1], k)), len(said), axis=0
    ),
}


@exercise
def check_maximise(function: Callable[[Array, Array, float], tuple[Array, Array]]) -> None:
    """Check `maximise(labels, beliefs, smoothing)` -> shares [C] and confusion [raters, C, C].

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "shares: mean belief; confusion[r, c, l]: smoothing plus the beliefs in c of the items that r gave l, rows 1"
    cases = [("by hand", (HAND, np.array([[0.75, 0.25], [0.0, 1.0], [0.5, 0.5]]), 1.0))]
    unsaid = np.array([[0.5, 0.25, 0.25], [0.0, 0.75, 0.25], [0.25, 0.5, 0.25]])
    cases.append(("by hand, of three categories one that nobody said", (HAND, unsaid, 1.0)))
    for seed in range(RANDOM_CASES):
        cases.append((f"random labels {seed}", (*_random_case(seed)[:2], (1.0, 0.3)[seed % 2])))
    for case, given in cases:
        labels, beliefs, smoothing = given
        said, prior = _said(labels, beliefs.shape[1]), _prior(beliefs.shape[1], smoothing)
        last = _last_for_missing(labels, beliefs.shape[1])
        tables = [{cause: partial(f, said, beliefs, smoothing) for cause, f in table.items()}
                  for table in (_SHARE_FAULTS, _CONFUSION_FAULTS)]  # fmt: skip
        tables[1]["-1 is counted as the last category: leave it out"] = partial(_confusion, last, beliefs, prior)
        zero = _said(np.maximum(labels, 0), beliefs.shape[1])
        tables[1]["-1 is counted as category 0: leave it out"] = partial(_confusion, zero, beliefs, prior)
        all_there = (labels >= 0).all(0)
        tables[1]["items without some label are left out: only that label is"] = partial(
            _confusion, said[:, all_there], beliefs[all_there], prior
        )
        label = f"{case}, labels {labels.tolist()}, beliefs {beliefs.round(2).tolist()}, smoothing {smoothing}"
        for part, (name, right) in enumerate((("shares", beliefs.mean(0)), ("confusion", None))):
            expected = _confusion(said, beliefs, prior) if right is None else right
            call = partial(_part_of, "maximise", label, function, ("shares", "confusion"), part)
            compare_arrays(f"maximise, {name}", label, call, expected, tables[part], hint, given)
    print(f"maximise: passed (a case by hand, {RANDOM_CASES} random ones, labels missing, two smoothings)")


# -- expect ------------------------------------------------------------------------------------------------------------
_EXPECT_FAULTS: Faults = {
    "the shares are missing: before any label a category is as likely as its share": lambda said, shares, table: (
        _expect(said, np.ones(len(shares)), table)
    ),
    "the axes of confusion are the other way round: the first is the true category": lambda said, shares, table: (
        _expect(said, shares, table.transpose(0, 2, 1))
    ),
    "the rows do not add up to 1": lambda said, shares, table: (
        shares * np.exp(np.einsum("ril,rcl->ic", said, np.log(table)))
    ),
    "the mean over the raters: independent labels multiply": lambda said, shares, table: (
        (law := shares * np.einsum("ril,rcl->ic", said, table)) / law.sum(1, keepdims=True)
    ),
    "the shares count once for every rater: they count once for an item": lambda said, shares, table: _expect(
        said, shares ** len(said), table
    ),
}


@exercise
def check_expect(function: Callable[[Array, Array, Array], Array]) -> None:
    """Check `expect(labels, shares, confusion)`: [items, C] probability of the true category of each item.

    The last case has 2,000 raters: a product of as many probabilities is 0 in floating point.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "share of c times confusion[r, c, label] over all raters with a label, in logarithms; then each row to 1"
    confusion = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.6, 0.4], [0.4, 0.6]], [[0.5, 0.5], [0.1, 0.9]]])
    cases = [("by hand", (HAND, np.array([0.7, 0.3]), confusion))]
    for seed in range(RANDOM_CASES):
        labels, _, shares, tables = _random_case(seed)
        cases.append((f"random labels {seed}", (labels, shares, tables)))
    many = (np.random.default_rng(0).random((2000, 3)) < (0.6, 0.4, 0.6)).astype(int)
    many[10:, 0] = -1  # few labels beside many: the largest of each row is to be subtracted, not that of all
    cases.append(("2,000 raters", (many, np.array([0.5, 0.5]), np.tile([[0.52, 0.48], [0.49, 0.51]], (2000, 1, 1)))))
    for case, given in cases:
        labels, shares, tables = given
        said, last = _said(labels, len(shares)), _last_for_missing(labels, len(shares))
        faults = {cause: partial(fault, said, shares, tables) for cause, fault in _EXPECT_FAULTS.items()}
        faults["-1 is taken as an index, the last category: who gave no label says nothing"] = partial(
            _expect, last, shares, tables
        )
        faults["-1 is taken for category 0: who gave no label says nothing"] = partial(
            _expect, _said(np.maximum(labels, 0), len(shares)), shares, tables
        )
        label = f"{case}, labels {labels.tolist()}" if labels.size < 100 else f"{case}, {UNDERFLOW}"
        compare_arrays("expect", label, function, _expect(said, shares, tables), faults, hint, given)
    print(f"expect: passed (a case by hand, {RANDOM_CASES} random ones, labels missing, 2,000 raters)")


# -- the whole ---------------------------------------------------------------------------------------------------------
def probe(seed: int = 0, items: int = 60) -> tuple[Array, Array]:
    """Labels of five raters whose answer is known: two good ones, one who guesses, one who always says 1, a liar.

    Returns:
        labels [5, items] of 0 and 1, some -1, and the truth [items].

    Example:
        >>> labels, truth = probe()
        >>> labels.shape, sorted(set(labels[3].tolist()))
        ((5, 60), [-1, 1])
    """
    random = np.random.default_rng(seed)
    truth = random.integers(0, 2, items)
    right = random.random((5, items)) < np.array([0.95, 0.9, 0.5, 0.5, 0.1])[:, None]
    labels = np.where(right, truth, 1 - truth)
    labels[3] = 1
    labels[1:][random.random((4, items)) < 0.1] = -1
    return labels, truth


def _states(beliefs: Array, said: Array, steps: int) -> list[tuple[Array, Array, Array]]:
    """(beliefs, shares, confusion) after 0, 1, ... steps; with smoothing 1."""
    prior = _prior(said.shape[2], 1.0)
    found = [(beliefs, np.zeros(said.shape[2]), np.zeros((len(said), *prior.shape)))]
    for _ in range(steps):
        shares, confusion = found[-1][0].mean(0), _confusion(said, found[-1][0], prior)
        found.append((_expect(said, shares, confusion), shares, confusion))
    return found


@exercise
def check_dawid_skene(function: Callable[..., tuple[Array, Array, Array]]) -> None:
    """Check `my_dawid_skene(labels, categories, steps)` -> beliefs, shares, confusion, on two probes.

    The smoothing is 1. A step is: maximise, then expect. The shares and the confusion that are returned are those from
    which the beliefs were computed.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "begin with first_beliefs; in every step maximise, then expect; return the last of all three"
    cases = [("three categories", _random_case(3, raters=5, items=12)[0], 3, 2)]
    cases += [(f"probe {seed}", probe(seed)[0], 2, steps) for seed, steps in ((0, 1), (0, 3), (1, 50))]
    for where, labels, categories, steps in cases:
        said = _said(labels, categories)
        states = _states(_first(said), said, steps + 1)
        even = _states(np.full((said.shape[1], categories), 1 / categories), said, steps)
        again = (states[steps][0], *states[steps + 1][1:])
        for part, name in enumerate(PARTS):
            wrong = {
                "always one step: do as many as `steps` says": states[1],
                "one step too few": states[steps - 1],
                "one step too many": states[steps + 1],
                "shares and confusion are fitted once more after the last beliefs": again,
                "the beliefs begin evenly: then nothing tells the categories apart": even[steps],
            }
            faults = {cause: partial(lambda state, part: state[part], state, part) for cause, state in wrong.items()}
            case = f"{where}, {steps} step{'s' if steps > 1 else ''}"
            call = partial(_part_of, "my_dawid_skene", case, function, PARTS, part)
            compare_arrays(
                f"my_dawid_skene, {name}", case, call, states[steps][part], faults, hint, (labels, categories, steps)
            )
    right = float(np.mean(states[steps][0].argmax(1) == probe(seed=1)[1]))
    print(f"my_dawid_skene: passed (two probes with a liar; of the second it gets {right:.0%} right)")
