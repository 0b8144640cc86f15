"""Checks of the exercises of chapter 09: the two bounds of accuracy, and a linear Bradley-Terry model from empty cells.

Each compares a function with the definition: on cases small enough for paper and on random ones. When something
differs, the usual mistakes are tried on the same inputs, and the message names the one that gives the same. Answers may
be numbers, lists, arrays or tensors of any precision.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from scipy.special import expit
from torch import Tensor

from rlhf_lab.classroom.checks.comparing import ASKED, NO_RETURN, as_tensor, exercise, fail
from rlhf_lab.classroom.checks.dawid_skene import RANDOM_CASES, Array, Faults, compare_arrays


# -- agreement and ceiling ---------------------------------------------------------------------------------------------
def _ceilings(p: Array) -> list[float]:
    return [float((p**2 + (1 - p) ** 2).mean()), float(np.maximum(p, 1 - p).mean())]


_CEILING_FAULTS: Faults = {
    "the two are swapped: agreement of two raters first, then the ceiling": lambda p: _ceilings(p)[::-1],
    "both raters prefer the left one, p^2: they also agree where both prefer the right one": lambda p: [
        float((p**2).mean()),
        _ceilings(p)[1],
    ],
    "the mean of p is taken first: agreement and ceiling are of each pair, and then their mean": lambda p: _ceilings(
        np.array([p.mean()])
    ),
    "p itself and not the larger of p and 1 - p: the right reply may be the better one": lambda p: [
        _ceilings(p)[0],
        float(p.mean()),
    ],
    "one number for each pair: the mean over pairs is asked": lambda p: [p**2 + (1 - p) ** 2, np.maximum(p, 1 - p)],
    "the largest of all pairs and not the mean": lambda p: [_ceilings(p)[0], float(np.maximum(p, 1 - p).max())],
}


@exercise
def check_ceilings(function: Callable[[Array], Any]) -> None:
    """Check `ceilings(p)` -> (how often two raters agree, the best accuracy): means over pairs.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "return agreement, ceiling: the means of p^2 + (1 - p)^2 and of max(p, 1 - p)"
    random = np.random.default_rng(0)
    hand = [np.array(p) for p in ([0.9, 0.6], [0.5, 0.5, 0.5], [1.0, 0.0], [0.2])]
    for p in [*hand, *(random.random(7) for _ in range(RANDOM_CASES))]:
        faults = {cause: partial(fault, p) for cause, fault in _CEILING_FAULTS.items()}
        compare_arrays("ceilings", f"p {p.round(3).tolist()}", function, _ceilings(p), faults, hint, (p,))
    print(f"ceilings: passed ({len(hand)} cases by hand, {RANDOM_CASES} random ones)")


# -- from a ranking to differences of features -------------------------------------------------------------------------
def _differences(features: Array, places: Array) -> Array:
    """[N, d + 1]: better minus worse, and what the pair counts, in a fixed order of the rows."""
    found = [
        (a, b) if places[a] < places[b] else (b, a)
        for a, b in combinations(range(len(places)), 2)
        if places[a] != places[b]
    ]
    return _table(features, found, (len(set(places.tolist())) - 1) / len(found))


def _table(features: Array, pairs: Sequence[tuple[int, int]], count: float) -> Array:
    return _in_order(np.array([[*(features[better] - features[worse]), count] for better, worse in pairs]))


def _in_order(table: Array) -> Array:
    """Rows by their entries, of which float32 keeps the order: any order of the pairs is right."""
    return table[np.lexsort(table.round(4).T[::-1])] if table.ndim == 2 else table


def _faulty_pairs(features: Array, places: Array, which: str) -> Array:
    order = range(len(places))
    if which == "ties":  # also in both directions
        pairs = [(a, b) for a in order for b in order if a != b and places[a] <= places[b]]
        return _table(features, pairs, (len(set(places.tolist())) - 1) / len(pairs))
    if which == "listed":
        pairs = list(combinations(order, 2))
        return _table(features, pairs, (len(places) - 1) / len(pairs))
    best_first = np.argsort(places, kind="stable")
    return _table(features, list(pairwise(best_first)), 1.0)


def _with_count(count: Callable[[Array, int], float], features: Array, places: Array) -> Array:
    table = _differences(features, places).copy()
    table[:, -1] = count(places, len(table))
    return table


_PAIR_FAULTS: Faults = {
    "worse minus better: the sign is the other way round": lambda f, p: _in_order(
        _differences(f, p) * np.array([*[-1.0] * f.shape[1], 1.0])
    ),
    "the larger place is taken for the better one: 0 is the best": lambda f, p: _differences(f, -p),
    "each pair counts 1: all pairs of a ranking together count as many as its choices, (tiers - 1)": partial(
        _with_count, lambda places, pairs: 1.0
    ),
    "each pair counts 1 / pairs: a ranking of more tiers holds more choices": partial(
        _with_count, lambda places, pairs: 1 / pairs
    ),
    "replies in the place of tiers: tied replies are no choice, so (tiers - 1) is shared": partial(
        _with_count, lambda places, pairs: (len(places) - 1) / pairs
    ),
    "pairs of all replies in the place of pairs that differ, below the line": partial(
        _with_count, lambda places, pairs: (len(set(places.tolist())) - 1) / (len(places) * (len(places) - 1) / 2)
    ),
    "ties are paired as well: a tie prefers neither": partial(_faulty_pairs, which="ties"),
    "the order of the list is taken for the ranking: places says which is better": partial(
        _faulty_pairs, which="listed"
    ),
    "neighbours alone are paired: all pairs of different places are asked": partial(_faulty_pairs, which="neighbours"),
}


@exercise
def check_ranking_differences(function: Callable[[Array, Array], Any]) -> None:
    """Check `ranking_differences(features, places)` -> x [N, d], better minus worse, and counts [N].

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "ranking_differences", "one row for each pair of different places; each counts (tiers - 1) / pairs"

    def as_table(features: Array, places: Array) -> Any:
        got = function(features, places)
        if got is None or not isinstance(got, Sequence) or len(got) != 2:
            case = f"places {places.tolist()}"
            fail(
                f"{name}, the number of parts",
                case,
                got,
                2,
                "return x, counts" if got is not None else NO_RETURN,
                ASKED,
            )
        x, counts = (np.asarray(_plain(part), float) for part in got)
        if x.ndim != 2 or x.shape[1] != features.shape[1] or counts.shape != (len(x),):
            shapes = f"shapes {list(x.shape)} and {list(counts.shape)}"
            wanted = f"shapes [N, {features.shape[1]}] and [N]"
            fail(f"{name}, shapes", f"places {places.tolist()}", shapes, wanted, hint, ASKED)
        return _in_order(np.column_stack([x, counts]))

    random = np.random.default_rng(1)
    hand = [[0, 1], [1, 0, 2], [0, 1, 1], [1, 1, 0, 2], [2, 0, 1, 0]]
    places = [np.array(p) for p in hand] + [_random_places(random) for _ in range(RANDOM_CASES)]
    for one in places:
        given = random.normal(size=(len(one), 3)).round(3), one
        faults = {cause: partial(fault, *given) for cause, fault in _PAIR_FAULTS.items()}
        compare_arrays(name, f"places {one.tolist()}", as_table, _differences(*given), faults, hint, given)
    print(f"{name}: passed ({len(hand)} rankings by hand, {RANDOM_CASES} random ones, most with ties)")


def _plain(part: Any) -> Any:
    """A list of arrays or tensors, or one of them, without gradients."""
    if isinstance(part, list | tuple):
        return [_plain(one) for one in part]
    return part.detach() if hasattr(part, "detach") else part


def _random_places(random: np.random.Generator) -> Array:
    """Two to five replies on at least two tiers, without gaps between the tiers."""
    while True:
        places = np.unique(random.integers(0, 4, random.integers(2, 6)), return_inverse=True)[1]
        if places.max() > 0:
            return places


# -- the loss and its step ---------------------------------------------------------------------------------------------
def _loss(w: Array, x: Array, counts: Array, ridge: float) -> float:
    return float(counts @ np.logaddexp(0, -x @ w) + ridge / 2 * w @ w)


def _gradient(w: Array, x: Array, counts: Array, ridge: float) -> Array:
    return -(counts * expit(-x @ w)) @ x + ridge * w


_LOSS_FAULTS: Faults = {
    "the sign of the margin: this prefers the worse reply": lambda w, x, v, r: _loss(-w, x, v, r),
    "the ridge is missing": lambda w, x, v, r: _loss(w, x, v, 0.0),
    "the ridge without its half": lambda w, x, v, r: _loss(w, x, v, 2 * r),
    "the length of w in the place of its square": lambda w, x, v, r: (
        _loss(w, x, v, 0.0) + r / 2 * float(np.linalg.norm(w))
    ),
    "the counts are missing": lambda w, x, v, r: _loss(w, x, np.ones_like(v), r),
    "the mean over pairs: the sum is asked": lambda w, x, v, r: _loss(w, x, v, 0.0) / len(x) + r / 2 * float(w @ w),
    "everything is divided by the number of pairs: the sum is asked": lambda w, x, v, r: _loss(w, x, v, r) / len(x),
    "the weighted mean over pairs: the sum is asked": lambda w, x, v, r: (
        _loss(w, x, v, 0.0) / float(v.sum()) + r / 2 * float(w @ w)
    ),
    "the log-likelihood and not the loss: a loss is minimised": lambda w, x, v, r: -_loss(w, x, v, r),
    "the probability and not its logarithm": lambda w, x, v, r: float(v @ (1 - expit(x @ w)) + r / 2 * w @ w),
    "the ridge is subtracted": lambda w, x, v, r: _loss(w, x, v, -r),
}
_FAR = "log(1 + exp(-1000)) is 0, and log(1 + exp(1000)) is 1000: take np.logaddexp(0, -z) or softplus, exp overflows"


def _random_pairs(random: np.random.Generator) -> tuple[Array, Array, Array, float]:
    pairs, width = int(random.integers(2, 7)), int(random.integers(1, 4))
    return random.normal(size=width), random.normal(size=(pairs, width)), random.uniform(0.3, 2, pairs), 0.7


@exercise
def check_bt_loss(function: Callable[..., Any]) -> None:
    """Check `bt_loss(w, x, counts, ridge)`: the sum of counts log(1 + exp(-w . x)), and ridge / 2 |w|^2.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "the sum over pairs of counts * log(1 + exp(-x @ w)), and ridge / 2 times the squared length of w"
    random = np.random.default_rng(2)
    one = np.array([[1.0, 0.0], [0.0, 2.0]])
    hand = [(np.zeros(2), one, np.array([3.0, 1.0]), 1.0), (np.array([1.0, -1.0]), one, np.array([1.0, 2.0]), 0.5)]
    for case in [*hand, *(_random_pairs(random) for _ in range(RANDOM_CASES))]:
        faults = {cause: partial(fault, *case) for cause, fault in _LOSS_FAULTS.items()}
        compare_arrays("bt_loss", _label(*case), function, _loss(*case), faults, hint, case)
    for sign in (1.0, -1.0):
        far = np.array([sign * 1000.0]), np.ones((1, 1)), np.ones(1), 0.0
        label, right = f"w . x = {sign * 1000:g}, no ridge", _loss(*far)
        compare_arrays("bt_loss", label, partial(_finite, function, label, right), right, {}, _FAR, far)
    print(f"bt_loss: passed ({len(hand)} cases by hand, {RANDOM_CASES} random ones, margins of 1,000 either way)")


def _finite(function: Callable[..., Any], case: str, right: float, *given: Any) -> Any:
    """The answer, unless it is infinite or no number, of which the cause is known."""
    got = function(*given)
    number = as_tensor(_plain(got))
    if isinstance(number, Tensor) and not number.isfinite().all():
        fail("bt_loss", case, got, right, _FAR)
    return got


def _label(w: Array, x: Array, counts: Array, ridge: float) -> str:
    return f"w {w.round(2).tolist()}, x {x.round(2).tolist()}, counts {counts.round(2).tolist()}, ridge {ridge:g}"


def _step(w: Array, x: Array, counts: Array, ridge: float, rate: float) -> Array:
    return w - rate * _gradient(w, x, counts, ridge)


_STEP_FAULTS: Faults = {
    "uphill: a loss is minimised, so the step is minus rate times the gradient": lambda w, x, v, r, a: (
        w + a * _gradient(w, x, v, r)
    ),
    "the step alone: the new weights are asked": lambda w, x, v, r, a: -a * _gradient(w, x, v, r),
    "the gradient alone: the new weights are asked": lambda w, x, v, r, a: _gradient(w, x, v, r),
    "sigma(w . x) in the place of 1 - sigma(w . x): pull by the surprise": lambda w, x, v, r, a: (
        w - a * (-(v * expit(x @ w)) @ x + r * w)
    ),
    "the sign of the surprise: it pulls towards the worse reply": lambda w, x, v, r, a: (
        w - a * ((v * expit(-x @ w)) @ x + r * w)
    ),
    "the ridge is missing": lambda w, x, v, r, a: _step(w, x, v, 0.0, a),
    "the ridge pulls away from 0": lambda w, x, v, r, a: _step(w, x, v, -r, a),
    "half the ridge: the derivative of ridge / 2 |w|^2 is ridge w": lambda w, x, v, r, a: _step(w, x, v, r / 2, a),
    "the counts are missing": lambda w, x, v, r, a: _step(w, x, np.ones_like(v), r, a),
    "the rate is missing": lambda w, x, v, r, a: _step(w, x, v, r, 1.0),
    "the mean over pairs: the gradient of the sum is asked": lambda w, x, v, r, a: (
        w - a * (_gradient(w, x, v, 0.0) / len(x) + r * w)
    ),
    "everything is divided by the number of pairs: the gradient of the sum is asked": lambda w, x, v, r, a: (
        w - a * _gradient(w, x, v, r) / len(x)
    ),
}


@exercise
def check_bt_step(function: Callable[..., Any]) -> None:
    """Check `bt_step(w, x, counts, ridge, rate)`: the weights after one step of gradient descent.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    hint = "w minus rate times the gradient, which is -sum of counts (1 - sigma(w . x)) x, and ridge w"
    random = np.random.default_rng(3)
    hand = [(np.zeros(1), np.array([[1.0], [-1.0]]), np.array([3.0, 1.0]), 0.0, 0.5)]
    cases = [(*_random_pairs(random), rate) for rate in (0.1, 0.4) for _ in range(RANDOM_CASES // 2)]
    for case in [*hand, *cases]:
        faults = {cause: partial(fault, *case) for cause, fault in _STEP_FAULTS.items()}
        label = f"{_label(*case[:4])}, rate {case[4]:g}"
        compare_arrays("bt_step", label, function, _step(*case), faults, hint, case)
    print(f"bt_step: passed ({len(hand)} case by hand, {RANDOM_CASES} random ones)")


# -- the loop ----------------------------------------------------------------------------------------------------------
def _train(x: Array, counts: Array, ridge: float, rate: float, steps: int) -> Array:
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        w = _step(w, x, counts, ridge, rate)
    return w


_LOOP_FAULTS: Faults = {
    "one step alone: is the result of the step kept?": lambda x, v, r, a, n: _train(x, v, r, a, min(n, 1)),
    "no step is kept: w = bt_step(w, ...)": lambda x, v, r, a, n: np.zeros(x.shape[1]),
    "one step too many": lambda x, v, r, a, n: _train(x, v, r, a, n + 1),
    "one step too few": lambda x, v, r, a, n: _train(x, v, r, a, max(n - 1, 0)),
    "the ridge does not arrive": lambda x, v, r, a, n: _train(x, v, 0.0, a, n),
    "the counts do not arrive": lambda x, v, r, a, n: _train(x, np.ones_like(v), r, a, n),
    "the sign: better and worse are the other way round": lambda x, v, r, a, n: _train(-x, v, r, a, n),
    "uphill": lambda x, v, r, a, n: _train(x, v, r, -a, n),
}


def probe(wins: int = 3, losses: int = 1) -> tuple[Array, Array]:
    """Two replies, A before B so many times and after it so many: (x [2, 1], counts [2]); the optimum is a logarithm.

    Example:
        >>> x, counts = probe()
        >>> x.tolist(), counts.tolist()
        ([[1.0], [-1.0]], [3.0, 1.0])
    """
    return np.array([[1.0], [-1.0]]), np.array([float(wins), float(losses)])


@exercise
def check_train_bt(function: Callable[..., Any]) -> None:
    """Check `train_bt(x, counts, ridge, rate, steps)`: weights after so many steps from zeros.

    First step by step, then until it stands still, on a probe whose optimum is known: A before B three times and after
    it once, without ridge, has w = log 3.

    Raises:
        AssertionError: with the first case that fails and what usually causes it.
    """
    name, hint = "train_bt", "begin with zeros, and replace w by bt_step(w, ...) as often as steps says"
    random = np.random.default_rng(4)
    for steps in (1, 2, 0, 5, 30):
        _, x, counts, ridge = _random_pairs(random)
        case = (x, counts, ridge, 0.1, steps)
        faults = {cause: partial(fault, *case) for cause, fault in _LOOP_FAULTS.items()}
        compare_arrays(
            name, f"{steps} steps, {len(x)} pairs, ridge 0.7, rate 0.1", function, _train(*case), faults, hint, case
        )
    found = []
    for wins, losses in ((3, 1), (1, 4)):
        case = (*probe(wins, losses), 0.0, 0.5, 200)
        faults = {cause: partial(fault, *case) for cause, fault in _LOOP_FAULTS.items()}
        label = f"the probe: A before B {wins} times, after it {losses}, 200 steps"
        compare_arrays(name, label, function, [np.log(wins / losses)], faults, hint, case)
        found.append(float(np.asarray(as_tensor(_plain(function(*case)))).ravel()[0]))
    print(f"{name}: passed (0 to 30 steps, and two probes: {found[0]:.4f} is log 3, {found[1]:.4f} is log 1/4)")
