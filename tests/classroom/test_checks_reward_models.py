"""Each check of chapter 09 takes right answers in any form and fails on realistic mistakes, naming the cause."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from answer_forms import FORMS

from rlhf_lab.classroom.checks.comparing import NotAttempted
from rlhf_lab.classroom.checks.reward_models import (
    check_bt_loss,
    check_bt_step,
    check_ceilings,
    check_ranking_differences,
    check_train_bt,
    probe,
)
from rlhf_lab.maths.preferences import best_possible_accuracy, bradley_terry_loss, rater_agreement
from rlhf_lab.recipes.few_labels import Differences, fit_weights


# ---- solutions -----------------------------------------------------------------------------------------------
def ceilings(p):
    return (p**2 + (1 - p) ** 2).mean(), np.maximum(p, 1 - p).mean()


def ranking_differences(features, places):
    pairs = [(a, b) for a in range(len(places)) for b in range(len(places)) if places[a] < places[b]]
    x = np.array([features[a] - features[b] for a, b in pairs])
    return x, np.full(len(pairs), (len(set(places)) - 1) / len(pairs))


def bt_loss(w, x, counts, ridge):
    return counts @ np.logaddexp(0, -x @ w) + ridge / 2 * w @ w


def bt_step(w, x, counts, ridge, rate):
    surprise = 1 / (1 + np.exp(x @ w))
    return w - rate * (-(counts * surprise) @ x + ridge * w)


def train_bt(x, counts, ridge, rate, steps, step=bt_step):
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        w = step(w, x, counts, ridge, rate)
    return w


RIGHT = {
    check_ceilings: ceilings,
    check_ranking_differences: ranking_differences,
    check_bt_loss: bt_loss,
    check_bt_step: bt_step,
    check_train_bt: train_bt,
}


# ---- right answers of another kind ---------------------------------------------------------------------------
def ceilings_by_drawing(p):
    """Four ways in which two raters answer, one after the other."""
    agree = [q * q + (1 - q) * (1 - q) for q in p.tolist()]
    return [sum(agree) / len(agree), sum(max(q, 1 - q) for q in p.tolist()) / len(p)]


def pairs_by_matrix(features, places):
    """All at once, the pairs in another order."""
    better, worse = np.nonzero(np.less.outer(places, places))
    rows = features[better][::-1] - features[worse][::-1]
    return rows, np.full(len(rows), (places.max() - places.min()) / len(rows))


def pairs_in_lists(features, places):
    rows, tiers = [], sorted(set(places.tolist()))
    for k, tier in enumerate(tiers):
        for below in tiers[k + 1 :]:
            for a in np.flatnonzero(places == tier):
                for b in np.flatnonzero(places == below):
                    rows.append(torch.tensor(features[a]) - torch.tensor(features[b]))
    return rows, [(len(tiers) - 1) / len(rows)] * len(rows)


def loss_in_torch(w, x, counts, ridge):
    w, x, counts = map(torch.tensor, (w, x, counts))
    z = x @ w
    return (counts * bradley_terry_loss(z, torch.zeros_like(z))).sum() + ridge / 2 * w.square().sum()


def step_by_autograd(w, x, counts, ridge, rate):
    w = torch.tensor(w, requires_grad=True)
    z = torch.tensor(x) @ w
    (torch.tensor(counts) @ torch.nn.functional.softplus(-z) + ridge / 2 * (w * w).sum()).backward()
    return (w - rate * w.grad).requires_grad_()


def loop_in_float32(x, counts, ridge, rate, steps):
    w, x, counts = np.zeros(x.shape[1], np.float32), x.astype(np.float32), counts.astype(np.float32)
    for _ in range(steps):
        w = bt_step(w, x, counts, np.float32(ridge), np.float32(rate)).astype(np.float32)
    return w


def loop_in_torch(x, counts, ridge, rate, steps):
    w = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(steps):
        w = step_by_autograd(w.detach().numpy(), x, counts, ridge, rate)
    return w


UNUSUAL = {
    "ceilings in a loop": (check_ceilings, ceilings_by_drawing),
    "ceilings of the library": (
        check_ceilings,
        lambda p: (rater_agreement(torch.tensor(p)), best_possible_accuracy(torch.tensor(p))),
    ),
    "ceilings, an array": (check_ceilings, lambda p: np.array(ceilings(p))),
    "pairs by matrix, turned round": (check_ranking_differences, pairs_by_matrix),
    "pairs in lists of tensors": (check_ranking_differences, pairs_in_lists),
    "pairs as a list of two": (check_ranking_differences, lambda f, p: list(ranking_differences(f, p))),
    "loss in torch": (check_bt_loss, loss_in_torch),
    "step by autograd": (check_bt_step, step_by_autograd),
    "loop in float32": (check_train_bt, loop_in_float32),
    "loop in torch": (check_train_bt, loop_in_torch),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_a_right_answer_of_any_kind_passes(check, form, capsys):
    check(lambda *given: form(RIGHT[check](*given)))
    assert "passed" in capsys.readouterr().out


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_right_answer_passes(name, capsys):
    check, solution = UNUSUAL[name]
    check(solution)
    assert "passed" in capsys.readouterr().out


def test_the_pieces_make_the_librarys_model():
    random = np.random.default_rng(0)
    parts = [ranking_differences(random.normal(size=(4, 5)), random.permutation(4)) for _ in range(30)]
    x, counts = (np.concatenate(part) for part in zip(*parts, strict=True))
    assert counts.sum() == pytest.approx(90)  # three choices in each of thirty rankings
    theirs = fit_weights(Differences(x, counts, np.repeat(np.arange(30), 6)), 0.5)
    assert train_bt(x, counts, 0.5, 0.02, 3000) == pytest.approx(theirs, abs=1e-5)


def test_the_probe_has_the_optimum_that_is_promised():
    assert train_bt(*probe(3, 1), 0.0, 0.5, 200) == pytest.approx([np.log(3)], abs=1e-9)


# ---- mistakes ------------------------------------------------------------------------------------------------
def naive_loss(w, x, counts, ridge):
    with np.errstate(over="ignore"):
        return counts @ np.log(1 + np.exp(-x @ w)) + ridge / 2 * w @ w


def logarithm_of_sigma(w, x, counts, ridge):
    with np.errstate(over="ignore", divide="ignore"):
        return -counts @ np.log(1 / (1 + np.exp(-x @ w))) + ridge / 2 * w @ w


def in_place(w, x, counts, ridge, rate):
    w -= rate * (-(counts / (1 + np.exp(x @ w))) @ x + ridge * w)
    return w


def from_ones(x, counts, ridge, rate, steps):
    w = np.ones(x.shape[1])
    for _ in range(steps):
        w = bt_step(w, x, counts, ridge, rate)
    return w


def not_kept(x, counts, ridge, rate, steps):
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        bt_step(w, x, counts, ridge, rate)
    return w


def returned_in_the_loop(x, counts, ridge, rate, steps):
    w = np.zeros(x.shape[1])
    for _ in range(steps):
        w = bt_step(w, x, counts, ridge, rate)
        return w
    return w


def counted(count):
    def mine(features, places):
        x, _ = ranking_differences(features, places)
        return x, np.full(len(x), count(places, len(x)))

    return mine


def with_ties(features, places):
    order = range(len(places))
    x = np.array([features[a] - features[b] for a in order for b in order if a != b and places[a] <= places[b]])
    return x, np.full(len(x), (len(set(places)) - 1) / len(x))


def neighbours(features, places):
    order = np.argsort(places, kind="stable")
    x = np.array([features[a] - features[b] for a, b in pairwise(order)])
    return x, np.ones(len(x))


def as_listed(features, places):
    x, _ = ranking_differences(features, np.arange(len(places)))
    return x, np.full(len(x), (len(places) - 1) / len(x))


MISTAKES = {
    "swapped": (check_ceilings, lambda p: ceilings(p)[::-1], "swapped"),
    "both left": (check_ceilings, lambda p: ((p**2).mean(), ceilings(p)[1]), "both prefer the right one"),
    "mean first": (check_ceilings, lambda p: ceilings(np.array([p.mean()])), "mean of p is taken first"),
    "p itself": (check_ceilings, lambda p: (ceilings(p)[0], p.mean()), "p itself"),
    "of each pair": (
        check_ceilings,
        lambda p: (p**2 + (1 - p) ** 2, np.maximum(p, 1 - p)),
        "one number for each pair|shape",
    ),
    "the largest": (check_ceilings, lambda p: (ceilings(p)[0], np.maximum(p, 1 - p).max()), "largest of all pairs"),
    "one number": (check_ceilings, lambda p: ceilings(p)[0], "the shape|what is asked"),
    "no return": (check_ceilings, lambda p: None if len(p) else 1, "is there a `return`"),
    "worse minus better": (
        check_ranking_differences,
        lambda f, p: (-ranking_differences(f, p)[0], ranking_differences(f, p)[1]),
        "worse minus better|larger place",
    ),
    "larger is better": (
        check_ranking_differences,
        lambda f, p: ranking_differences(f, -p),
        "larger place|worse minus",
    ),
    "counts of 1": (check_ranking_differences, counted(lambda p, n: 1.0), "each pair counts 1:"),
    "counts of 1 / N": (check_ranking_differences, counted(lambda p, n: 1 / n), "counts 1 / pairs"),
    "replies for tiers": (
        check_ranking_differences,
        counted(lambda p, n: (len(p) - 1) / n),
        "replies in the place of tiers",
    ),
    "all pairs below": (
        check_ranking_differences,
        counted(lambda p, n: (len(set(p)) - 1) / (len(p) * (len(p) - 1) / 2)),
        "pairs of all replies",
    ),
    "ties": (check_ranking_differences, with_ties, "ties are paired"),
    "neighbours": (check_ranking_differences, neighbours, "neighbours alone"),
    "as listed": (check_ranking_differences, as_listed, "order of the list"),
    "one part": (check_ranking_differences, lambda f, p: ranking_differences(f, p)[0], "number of parts|shapes"),
    "turned": (
        check_ranking_differences,
        lambda f, p: (ranking_differences(f, p)[0].T, ranking_differences(f, p)[1]),
        "shapes",
    ),
    "no parts": (check_ranking_differences, lambda f, p: None if len(p) else 1, "is there a `return`"),
    "sign of the margin": (check_bt_loss, lambda w, x, v, r: bt_loss(-w, x, v, r), "sign of the margin"),
    "no ridge": (check_bt_loss, lambda w, x, v, r: bt_loss(w, x, v, 0), "ridge is missing"),
    "whole ridge": (check_bt_loss, lambda w, x, v, r: bt_loss(w, x, v, 2 * r), "without its half"),
    "no square": (
        check_bt_loss,
        lambda w, x, v, r: bt_loss(w, x, v, 0) + r / 2 * np.linalg.norm(w),
        "in the place of its square",
    ),
    "no counts": (check_bt_loss, lambda w, x, v, r: bt_loss(w, x, np.ones_like(v), r), "counts are missing"),
    "mean": (check_bt_loss, lambda w, x, v, r: bt_loss(w, x, v, 0) / len(v) + r / 2 * w @ w, "mean over pairs"),
    "weighted mean": (
        check_bt_loss,
        lambda w, x, v, r: bt_loss(w, x, v, 0) / v.sum() + r / 2 * w @ w,
        "weighted mean",
    ),
    "likelihood": (check_bt_loss, lambda w, x, v, r: -bt_loss(w, x, v, r), "log-likelihood"),
    "one loss a pair": (check_bt_loss, lambda w, x, v, r: v * np.logaddexp(0, -x @ w), "shape|sum"),
    "overflow": (check_bt_loss, naive_loss, "exp overflows"),
    "log of 0": (check_bt_loss, logarithm_of_sigma, "exp overflows"),
    "uphill": (check_bt_step, lambda w, x, v, r, a: bt_step(w, x, v, r, -a), "uphill"),
    "step alone": (check_bt_step, lambda w, x, v, r, a: bt_step(w, x, v, r, a) - w, "step alone|gradient"),
    "sigma for surprise": (
        check_bt_step,
        lambda w, x, v, r, a: w - a * (-(v / (1 + np.exp(-x @ w))) @ x + r * w),
        "pull by the surprise",
    ),
    "no ridge in the step": (check_bt_step, lambda w, x, v, r, a: bt_step(w, x, v, 0, a), "ridge is missing"),
    "ridge the other way": (check_bt_step, lambda w, x, v, r, a: bt_step(w, x, v, -r, a), "pulls away"),
    "half ridge": (check_bt_step, lambda w, x, v, r, a: bt_step(w, x, v, r / 2, a), "half the ridge"),
    "no counts in the step": (
        check_bt_step,
        lambda w, x, v, r, a: bt_step(w, x, np.ones_like(v), r, a),
        "counts are missing",
    ),
    "no rate": (check_bt_step, lambda w, x, v, r, a: bt_step(w, x, v, r, 1.0), "rate is missing"),
    "step of the mean": (check_bt_step, lambda w, x, v, r, a: bt_step(w, x, v / len(v), r, a), "mean over pairs"),
    "in place": (check_bt_step, in_place, "in place"),
    "from ones": (check_train_bt, from_ones, "begin with zeros"),
    "not kept": (check_train_bt, not_kept, "no step is kept"),
    "one step": (check_train_bt, returned_in_the_loop, "one step alone"),
    "one more": (check_train_bt, lambda x, v, r, a, n: train_bt(x, v, r, a, n + 1), "one step too many"),
    "one less": (check_train_bt, lambda x, v, r, a, n: train_bt(x, v, r, a, n - 1), "one step too few|no step is kept"),
    "no ridge in the loop": (check_train_bt, lambda x, v, r, a, n: train_bt(x, v, 0, a, n), "ridge does not arrive"),
    "uphill loop": (check_train_bt, lambda x, v, r, a, n: train_bt(x, v, r, -a, n), "uphill|sign"),
    "always 30 steps": (check_train_bt, lambda x, v, r, a, n: train_bt(x, v, r, a, 30), "begin with zeros"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named(name):
    check, mistake, cause = MISTAKES[name]
    with pytest.raises(AssertionError, match=cause) as caught:
        check(mistake)
    assert "expected" in str(caught.value)


@pytest.mark.parametrize("factor", [0.0, float("nan"), 1.001])
@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_numbers_of_the_right_shape_are_not_enough(check, factor):
    def scaled(x):
        return tuple(map(scaled, x)) if isinstance(x, tuple) else np.asarray(x) * factor

    with pytest.raises(AssertionError, match="got "):
        check(lambda *given: scaled(RIGHT[check](*given)))


@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_what_was_not_begun_gets_one_line(check):
    def mine(*given):
        raise NotImplementedError("your code here")

    with pytest.raises(NotAttempted, match="not attempted yet: write the body of mine"):
        check(mine)
