"""Each check of chapter 08 takes right answers in any form and fails on realistic mistakes, naming the cause."""

import numpy as np
import pytest
import torch
from answer_forms import FORMS

from rlhf_lab.classroom.checks.comparing import NotAttempted
from rlhf_lab.classroom.checks.human_feedback import (
    check_dawid_skene,
    check_expect,
    check_first_beliefs,
    check_fleiss,
    check_maximise,
    check_token_marks,
    probe,
)
from rlhf_lab.feedback.reliability import dawid_skene
from rlhf_lab.maths.agreement import fleiss_kappa


# ---- solutions -----------------------------------------------------------------------------------------------
def fleiss(counts):
    n = counts[0].sum()
    agreed = (counts * (counts - 1)).sum() / (len(counts) * n * (n - 1))
    chance = ((counts.sum(0) / counts.sum()) ** 2).sum()
    return (agreed - chance) / (1 - chance)


def fleiss_by_pairs(counts):
    """One pair of labels after the other, in plain Python."""
    rows = [[c for c, number in enumerate(row) for _ in range(int(number))] for row in counts]
    same = [a == b for row in rows for i, a in enumerate(row) for j, b in enumerate(row) if i != j]
    labels = [label for row in rows for label in row]
    chance = sum((labels.count(c) / len(labels)) ** 2 for c in set(labels))
    return (sum(same) / len(same) - chance) / (1 - chance)


def token_marks(offsets, spans):
    return [int(any(start < b and a < end for a, b in spans)) for start, end in offsets]


def token_marks_by_characters(offsets, spans):
    marked = {i for a, b in spans for i in range(a, b)}
    return np.array([not marked.isdisjoint(range(start, end)) for start, end in offsets])


def first_beliefs(labels, categories):
    counts = np.stack([(labels == c).sum(0) for c in range(categories)], axis=1)
    return counts / counts.sum(1, keepdims=True)


def first_beliefs_in_loops(labels, categories):
    rows = []
    for item in labels.T:
        given = [label for label in item if label >= 0]
        rows.append([given.count(c) / len(given) for c in range(categories)])
    return rows


def maximise(labels, beliefs, smoothing):
    raters, size = len(labels), beliefs.shape[1]
    confusion = np.full((raters, size, size), smoothing / 2 / (size - 1))
    for r in range(raters):
        np.fill_diagonal(confusion[r], smoothing / 2)
        for i, label in enumerate(labels[r]):
            if label >= 0:
                confusion[r, :, label] += beliefs[i]
    return beliefs.mean(0), confusion / confusion.sum(2, keepdims=True)


def expect(labels, shares, confusion):
    logs = np.tile(np.log(shares), (labels.shape[1], 1))
    for r, row in enumerate(labels):
        for i, label in enumerate(row):
            if label >= 0:
                logs[i] += np.log(confusion[r, :, label])
    law = np.exp(logs - logs.max(1, keepdims=True))
    return law / law.sum(1, keepdims=True)


def expect_in_torch(labels, shares, confusion):
    said = torch.tensor(labels)[:, :, None] == torch.arange(len(shares))
    logs = torch.tensor(shares).log() + torch.einsum(
        "ril,rcl->ic", said.double(), torch.tensor(np.array(confusion)).log()
    )
    return logs.softmax(1).float()


def expect_in_float32(labels, shares, confusion):
    said = torch.nn.functional.one_hot(torch.tensor(labels) + 1, len(shares) + 1)[..., 1:].float()
    shares, confusion = (torch.tensor(np.array(x)).float() for x in (shares, confusion))
    return (shares.log() + torch.einsum("ril,rcl->ic", said, confusion.log())).softmax(1)


def expect_with_one_maximum(labels, shares, confusion):
    """The largest logarithm of all is subtracted, and not that of each row."""
    said = (labels[:, :, None] == np.arange(len(shares))).astype(float)
    logs = np.log(shares) + np.einsum("ril,rcl->ic", said, np.log(confusion))
    law = np.exp(logs - logs.max())
    with np.errstate(invalid="ignore"):
        return law / law.sum(1, keepdims=True)


def marks_by_bisection(offsets, spans):
    """Right for tokens without gaps between them only."""
    starts, found = [start for start, _ in offsets], [0] * len(offsets)
    for a, b in spans:
        first, last = np.searchsorted(starts, a, "right") - 1, np.searchsorted(starts, b)
        found[first:last] = [1] * (last - first)
    return found


def marks_in_one_walk(offsets, spans):
    """Right for spans in order only."""
    at, found = 0, []
    for start, end in offsets:
        while at < len(spans) and spans[at][1] <= start:
            at += 1
        found.append(int(at < len(spans) and spans[at][0] < end))
    return found


def my_dawid_skene(labels, categories, steps, first=first_beliefs, maximise=maximise):
    beliefs = first(labels, categories)
    for _ in range(steps):
        shares, confusion = maximise(labels, beliefs, 1.0)
        beliefs = expect(labels, shares, confusion)
    return beliefs, shares, confusion


RIGHT = {
    check_fleiss: fleiss,
    check_token_marks: token_marks,
    check_first_beliefs: first_beliefs,
    check_maximise: maximise,
    check_expect: expect,
    check_dawid_skene: my_dawid_skene,
}
UNUSUAL = {
    "fleiss, pair by pair": (check_fleiss, fleiss_by_pairs),
    "fleiss of the library": (check_fleiss, fleiss_kappa),
    "marks by characters": (check_token_marks, token_marks_by_characters),
    "marks, true and false": (check_token_marks, lambda o, s: [bool(x) for x in token_marks(o, s)]),
    "marks as a tuple": (check_token_marks, lambda o, s: tuple(map(float, token_marks(o, s)))),
    "beliefs in loops": (check_first_beliefs, first_beliefs_in_loops),
    "beliefs, a list of arrays": (check_first_beliefs, lambda a, n: list(first_beliefs(a, n))),
    "a list of two": (check_maximise, lambda *given: list(maximise(*given))),
    "expect in torch, float32": (check_expect, expect_in_torch),
    "expect, all in float32": (check_expect, expect_in_float32),
    "beliefs, strides turned": (check_first_beliefs, lambda a, n: first_beliefs(a, n)[:, ::-1].copy()[:, ::-1]),
    "beliefs, long doubles": (check_first_beliefs, lambda a, n: first_beliefs(a, n).astype(np.longdouble)),
    "beliefs, tensors that learn": (
        check_first_beliefs,
        lambda a, n: list(torch.tensor(first_beliefs(a, n)).requires_grad_()),
    ),
    "whole in torch": (check_dawid_skene, lambda *given: list(map(torch.tensor, my_dawid_skene(*given)))),
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
    labels, truth = probe(3)
    theirs = dawid_skene(np.where(labels < 0, np.nan, labels), steps=30)
    mine = my_dawid_skene(labels, 2, len(theirs.log_posteriors))
    np.testing.assert_allclose(mine[0], theirs.probabilities, atol=1e-9)
    np.testing.assert_allclose(mine[2], theirs.confusion, atol=1e-9)
    assert (mine[0].argmax(1) == truth).mean() > 0.9


def test_the_liar_of_the_probe_lies_and_the_majority_is_often_wrong():
    labels, truth = probe(0, items=2000)
    agree = [(row[row >= 0] == truth[row >= 0]).mean() for row in labels]
    assert agree == pytest.approx([0.95, 0.9, 0.5, 0.5, 0.1], abs=0.05)  # 5 standard errors of 1,800 labels at 1/2


# ---- mistakes ------------------------------------------------------------------------------------------------
def no_smoothing(labels, beliefs, smoothing):
    return maximise(labels, beliefs, 1e-12)


def turned(labels, beliefs, smoothing):
    shares, confusion = maximise(labels, beliefs, smoothing)
    return shares, confusion.transpose(0, 2, 1)


def as_last(labels, size):
    """-1 taken for an index: the last category."""
    return np.where(labels < 0, size - 1, labels)


def by_products(labels, shares, confusion):
    law = np.tile(shares, (labels.shape[1], 1))
    for r, row in enumerate(labels):
        for i, label in enumerate(row):
            if label >= 0:
                law[i] = law[i] * confusion[r, :, label]
    with np.errstate(invalid="ignore"):
        return law / law.sum(1, keepdims=True)


def in_place(labels, categories):
    labels[labels < 0] = 0
    return first_beliefs(labels, categories)


def one_more(labels, categories, steps):
    return my_dawid_skene(labels, categories, steps + 1)


def even_start(labels, categories, steps):
    return my_dawid_skene(labels, categories, steps, lambda a, n: np.full((a.shape[1], n), 1 / n))


def mean_of_rows(counts):
    shares = counts / counts.sum(1, keepdims=True)
    agreed, chance = (shares**2).sum(1).mean(), (shares.mean(0) ** 2).sum()
    return (agreed - chance) / (1 - chance)


def fitted_again(labels, categories, steps):
    beliefs, *_ = my_dawid_skene(labels, categories, steps)
    return beliefs, *maximise(labels, beliefs, 1.0)


def cut_at_0(counts):
    return max(0.0, fleiss(counts))


def of_what_was_said(labels, categories):
    return first_beliefs(labels, labels.max() + 1)


def smoothed_evenly(labels, beliefs, smoothing):
    shares, confusion = maximise(labels, beliefs, 0.0)
    counts = confusion * np.array([(row >= 0) @ beliefs for row in labels])[:, :, None] + smoothing / beliefs.shape[1]
    return shares, counts / counts.sum(2, keepdims=True)


MISTAKES = {
    "cut at 0": (check_fleiss, cut_at_0, "cut to 0"),
    "spans counted": (
        check_token_marks,
        lambda o, s: [sum(a < end and start < b for a, b in s) for start, end in o],
        "how many spans",
    ),
    "gaps": (check_token_marks, marks_by_bisection, r"\(4, 7\)"),
    "spans in no order": (check_token_marks, marks_in_one_walk, r"\(0, 2\)"),
    "categories said": (check_first_beliefs, of_what_was_said, "one that nobody said"),
    "missing is 0": (check_first_beliefs, lambda a, n: first_beliefs(np.maximum(a, 0), n), "counted as category 0"),
    "missing is 0, maximise": (
        check_maximise,
        lambda a, q, k: maximise(np.maximum(a, 0), q, k),
        "counted as category 0",
    ),
    "only two": (check_maximise, lambda a, q, k: maximise(a, q[:, : a.max() + 1], k), "one that nobody said"),
    "items dropped": (
        check_maximise,
        lambda a, q, k: (q.mean(0), maximise(a[:, (a >= 0).all(0)], q[(a >= 0).all(0)], k)[1]),
        "items without some label",
    ),
    "one part": (check_maximise, lambda a, q, k: maximise(a, q, k)[:1], "number of parts"),
    "no parts": (check_maximise, lambda a, q, k: None, "number of parts"),
    "one maximum": (check_expect, expect_with_one_maximum, "largest of each row"),
    "a product": (
        check_expect,
        lambda a, p, t: np.exp(np.log(expect(a, p, t)) * 0) * np.nan if len(a) > 9 else expect(a, p, t),
        "add logarithms",
    ),
    "two categories always": (check_dawid_skene, lambda a, n, k: my_dawid_skene(a, 2, k), "three categories"),
    "even smoothing of the whole": (
        check_dawid_skene,
        lambda a, n, k: my_dawid_skene(a, n, k, maximise=smoothed_evenly),
        "three categories",
    ),
    "always one step": (check_dawid_skene, lambda a, n, k: my_dawid_skene(a, n, 1), "always one step"),
    "words": (check_token_marks, lambda o, s: [str(x) for x in token_marks(o, s)], "token_marks"),
    "P alone": (check_fleiss, lambda c: fleiss(c) * (1 - chance_of(c)) + chance_of(c), "no correction for chance"),
    "with itself": (check_fleiss, mean_of_rows, "paired with himself"),
    "even categories": (
        check_fleiss,
        lambda c: (fleiss(c) * (1 - chance_of(c)) + chance_of(c) - 1 / c.shape[1]) / (1 - 1 / c.shape[1]),
        "as if all categories",
    ),
    "not divided": (check_fleiss, lambda c: fleiss(c) * (1 - chance_of(c)), "not divided by 1 - C"),
    "the sign": (check_fleiss, lambda c: -fleiss(c), "the sign"),
    "no return": (check_fleiss, lambda c: None if c.any() else 1, "is there a `return`"),
    "constant": (check_fleiss, lambda c: 0.55, "perhaps|what is asked"),
    "nan": (check_fleiss, lambda c: float("nan"), "0 / 0"),
    "closed ends": (
        check_token_marks,
        lambda o, s: [any(x <= b and a <= y for a, b in s) for x, y in o],
        "ends are excluded",
    ),
    "inside": (check_token_marks, lambda o, s: [any(a <= x and y <= b for a, b in s) for x, y in o], "as a whole"),
    "begins in": (check_token_marks, lambda o, s: [any(a <= x < b for a, b in s) for x, y in o], "begin in a span"),
    "overwritten": (
        check_token_marks,
        lambda o, s: token_marks(o, s[-1:]),
        "overwritten in the loop",
    ),
    "upside down": (check_token_marks, lambda o, s: [1 - x for x in token_marks(o, s)], "upside down"),
    "places and not numbers": (
        check_token_marks,
        lambda o, s: [i for i, x in enumerate(token_marks(o, s)) if x],
        "the shape",
    ),
    "missing as last": (
        check_first_beliefs,
        lambda a, n: first_beliefs(as_last(a, n), n),
        "-1 is counted as the last category",
    ),
    "counts": (check_first_beliefs, lambda a, n: np.stack([(a == c).sum(0) for c in range(n)], 1), "counts and not"),
    "all raters": (
        check_first_beliefs,
        lambda a, n: np.stack([(a == c).mean(0) for c in range(n)], 1),
        "divided by all raters",
    ),
    "winner": (check_first_beliefs, lambda a, n: np.eye(n)[first_beliefs(a, n).argmax(1)], "the winner alone"),
    "turned over": (check_first_beliefs, lambda a, n: first_beliefs(a, n).T, "the axes are the other way round"),
    "changed": (check_first_beliefs, in_place, "in place"),
    "no smoothing": (check_maximise, no_smoothing, "the smoothing is missing"),
    "turned": (check_maximise, turned, "the axes are the other way round"),
    "missing counted": (
        check_maximise,
        lambda a, b, k: maximise(as_last(a, b.shape[1]), b, k),
        "-1 is counted as the last category",
    ),
    "hard": (
        check_maximise,
        lambda a, b, k: maximise(a, np.eye(b.shape[1])[b.argmax(1)], k),
        "the likeliest category alone",
    ),
    "sum": (check_maximise, lambda a, b, k: (b.sum(0), maximise(a, b, k)[1]), "the sum and not the mean"),
    "one thing": (check_maximise, lambda a, b, k: maximise(a, b, k)[1], "return shares, confusion"),
    "even smoothing": (
        check_maximise,
        lambda a, b, k: (b.mean(0), np.stack([even(a, b, k, r) for r in range(len(a))])),
        "spread evenly",
    ),
    "products": (check_expect, by_products, "0 / 0"),
    "no shares": (check_expect, lambda a, p, t: expect(a, np.ones(len(p)), t), "the shares are missing"),
    "turned confusion": (
        check_expect,
        lambda a, p, t: expect(a, p, t.transpose(0, 2, 1)),
        "axes of confusion are the other way round",
    ),
    "missing as index": (check_expect, lambda a, p, t: expect(as_last(a, len(p)), p, t), "-1 is taken"),
    "raises": (check_expect, lambda a, p, t: a[99999], "IndexError"),
    "one more step": (check_dawid_skene, one_more, "one step too many"),
    "even start": (check_dawid_skene, even_start, "begin evenly"),
    "two of three": (check_dawid_skene, lambda a, n, k: my_dawid_skene(a, n, k)[:2], "return beliefs, shares"),
    "fitted again": (check_dawid_skene, fitted_again, "fitted once more"),
}


def chance_of(counts):
    return ((counts.sum(0) / counts.sum()) ** 2).sum()


def even(labels, beliefs, smoothing, rater):
    size = beliefs.shape[1]
    table = np.full((size, size), smoothing / size)
    for i, label in enumerate(labels[rater]):
        if label >= 0:
            table[:, label] += beliefs[i]
    return table / table.sum(1, keepdims=True)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named(name):
    check, mistake, cause = MISTAKES[name]
    with pytest.raises(AssertionError, match=cause) as caught:
        check(mistake)
    assert "\n  or  " not in str(caught.value)  # no second cause beside the right one


@pytest.mark.parametrize("factor", [0.0, float("nan"), 1.001])
@pytest.mark.parametrize("check", [c for c in RIGHT if c is not check_token_marks], ids=lambda check: check.__name__)
def test_numbers_of_the_right_shape_are_not_enough(check, factor):
    def scaled(x):
        return tuple(map(scaled, x)) if isinstance(x, tuple) else np.asarray(x) * factor

    with pytest.raises(AssertionError, match="got "):
        check(lambda *given: scaled(RIGHT[check](*given)))


@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_what_was_not_begun_gets_one_line(check):
    def mine(*given):
        raise NotImplementedError("your code here")

    with pytest.raises(NotAttempted, match="write the body of mine"):
        check(mine)
