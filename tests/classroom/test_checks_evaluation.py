"""Each check of chapter 11 takes right answers in any form and fails on realistic mistakes, naming the cause."""

from collections import defaultdict
from fractions import Fraction
from functools import partial
from math import sqrt
from statistics import NormalDist, mean, stdev

import numpy as np
import pytest
import torch
from answer_forms import FORMS
from scipy import stats

from rlhf_lab.classroom.checks.comparing import NotAttempted
from rlhf_lab.classroom.checks.evaluation import (
    check_evaluation,
    check_outcomes,
    check_paired,
    check_score_interval,
    check_step_down,
    probes,
)
from rlhf_lab.evaluation.comparisons import outcomes_of_choices
from rlhf_lab.maths.intervals import outcome_interval, paired_difference, win_rate
from rlhf_lab.maths.power import holm, p_value
from rlhf_lab.records import Choice


# ---- solutions -----------------------------------------------------------------------------------------------
def outcomes(judgements, model):
    found = {}
    for prompt, left, _, outcome in judgements:
        found.setdefault(prompt, []).append((1 + (outcome if left == model else -outcome)) / 2)
    return [np.mean(some) for some in found.values()]


def score_interval(y, z=1.959964, dof=1):
    n, m, c = len(y), np.mean(y), np.sum(y * (1 - y)) / (len(y) + dof)
    centre, half = m + z**2 / (2 * n), z * np.sqrt(max(m * (1 - m) - c, 0) / n + z**2 * (1 - 4 * c) / (4 * n**2))
    return m, (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def student(d, error, freedom):
    m = np.mean(d)
    if error == 0:
        return m, m, m, float(m == 0)
    half = stats.t.ppf(0.975, freedom) * error
    return m, m - half, m + half, 2 * stats.t.sf(abs(m) / error, freedom)


def paired(after, before):
    d = np.asarray(after) - np.asarray(before)
    return student(d, np.std(d, ddof=1) / np.sqrt(len(d)), len(d) - 1)


def step_down(p):
    order, reached, adjusted = np.argsort(p, kind="stable"), 0.0, np.ones(len(p))
    for rank, i in enumerate(order):
        reached = max(reached, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = reached
    return adjusted


def evaluation(after, before, judges, *, paired=paired, points=None, adjusted=step_down, level=0.05):
    points = points or (lambda a, b: (np.sign(a - b) + 1) / 2)
    rows, ps = {}, []
    for name, judge in judges.items():
        a, b = np.array(judge(after), float), np.array(judge(before), float)
        difference, low, high, p = paired(a, b)
        rows[name] = [difference, low, high, *score_interval(points(a, b))]
        ps.append(p)
    for row, p in zip(rows.values(), adjusted(np.array(ps)), strict=True):
        row.append(p <= level)
    return rows


RIGHT = {
    check_outcomes: outcomes,
    check_score_interval: score_interval,
    check_paired: paired,
    check_step_down: step_down,
}


# ---- right answers of another kind ---------------------------------------------------------------------------
def outcomes_by_library(judgements, model):
    other = "old" if model == "new" else "new"
    choices = [Choice(prompt, left, right, outcome, left, right) for prompt, left, right, outcome in judgements]
    return outcomes_of_choices(choices, model, other).outcomes


def outcomes_in_fractions(judgements, model):
    total, number = defaultdict(Fraction), defaultdict(int)
    for prompt, _, right, outcome in judgements:
        won = outcome if right != model else -outcome
        total[prompt] += Fraction(won + 1, 2)
        number[prompt] += 1
    return [float(total[prompt] / number[prompt]) for prompt in total]


def by_prompt(judgements, model):
    return dict(zip(dict.fromkeys(prompt for prompt, *_ in judgements), outcomes(judgements, model), strict=True))


class Column:
    """Numbers under names, as a column of a table has them."""

    def __init__(self, numbers):
        self.numbers = numbers

    def __len__(self):
        return len(self.numbers)

    def __iter__(self):
        return iter(self.numbers)


def rows_as(form):
    """The evaluation with each row in this form."""
    return lambda *given: {name: form([float(x) for x in row]) for name, row in evaluation(*given).items()}


def interval_by_counts(y):
    """Ties as counts; outcomes of other kinds go to the library."""
    y = np.asarray(y)
    wins, ties, losses = (int((y == x).sum()) for x in (1, 0.5, 0))
    found = win_rate(wins, ties, losses) if wins + ties + losses == len(y) else outcome_interval(y)
    return found.mean, found.low, found.high


def interval_by_roots(y):
    """The ends as roots of a polynomial in mu."""
    n, z = len(y), NormalDist().inv_cdf(0.975)
    m, c = sum(y) / n, sum(x * (1 - x) for x in y) / (n + 1)
    low, high = sorted(np.roots([1 + z * z / n, -2 * m - z * z / n, m * m + z * z * c / n]).real)
    return [m, low, high]


def paired_by_scipy(after, before):
    found = stats.ttest_rel(after, before)
    if np.std(np.subtract(after, before)) == 0:
        return paired(after, before)
    ends = found.confidence_interval(0.95)
    return np.mean(after) - np.mean(before), ends.low, ends.high, found.pvalue


def paired_without_numpy(after, before):
    d = [float(a - b) for a, b in zip(after, before, strict=True)]
    return student(d, stdev(d) / sqrt(len(d)), len(d) - 1) if mean(d) or any(d) else (0.0, 0.0, 0.0, 1.0)


def paired_by_library(after, before):
    found = paired_difference(after, before)
    return found.mean, found.low, found.high, p_value(partial(paired_difference, after, before))


def holm_of_the_library(p):
    return list(holm({str(i): x for i, x in enumerate(p)}).values())


def holm_by_maxima(p):
    """In the words of the definition: the largest (m - j + 1) p_(j) up to the own place."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    return [min(1, max((len(p) - j) * p[order[j]] for j in range(order.index(i) + 1))) for i in range(len(p))]


def holm_in_torch(p):
    found = torch.tensor(p).sort(stable=True)
    adjusted = (found.values * torch.arange(len(p), 0, -1)).clamp(max=1).cummax(0).values
    return torch.empty_like(adjusted).scatter(0, found.indices, adjusted)


UNUSUAL = {
    "outcomes of the library": (check_outcomes, outcomes_by_library),
    "outcomes in fractions": (check_outcomes, outcomes_in_fractions),
    "outcomes, values of a dict": (check_outcomes, lambda *x: by_prompt(*x).values()),
    "outcomes, one by one": (check_outcomes, lambda *x: (one for one in outcomes(*x))),
    "outcomes, a column": (check_outcomes, lambda *x: Column(outcomes(*x))),
    "interval by counts": (check_score_interval, interval_by_counts),
    "interval by roots": (check_score_interval, interval_by_roots),
    "interval with 1.96": (check_score_interval, partial(score_interval, z=1.96)),
    "interval of the library": (
        check_score_interval,
        lambda y: [getattr(outcome_interval(y), name) for name in ("mean", "low", "high")],
    ),
    "paired by scipy": (check_paired, paired_by_scipy),
    "paired without numpy": (check_paired, paired_without_numpy),
    "paired by the library": (check_paired, paired_by_library),
    "holm of the library": (check_step_down, holm_of_the_library),
    "holm by maxima": (check_step_down, holm_by_maxima),
    "holm in torch": (check_step_down, holm_in_torch),
    "holm, values of a dict": (check_step_down, lambda p: dict(enumerate(step_down(p))).values()),
    "evaluation": (check_evaluation, evaluation),
    "evaluation, arrays": (check_evaluation, lambda *x: {k: np.array(v, float) for k, v in evaluation(*x).items()}),
    "evaluation, tensors": (check_evaluation, rows_as(torch.tensor)),
    "evaluation, float32": (check_evaluation, rows_as(np.float32)),
    "evaluation, tuples": (check_evaluation, rows_as(tuple)),
    "evaluation, one by one": (check_evaluation, rows_as(iter)),
    "evaluation, another order": (check_evaluation, lambda *x: dict(reversed(evaluation(*x).items()))),
    "evaluation, numbers of the library": (
        check_evaluation,
        partial(evaluation, paired=paired_by_library, adjusted=holm_of_the_library),
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_a_right_answer_of_any_kind_passes(check, form, capsys):
    check(lambda *given: form(RIGHT[check](*given)))
    assert "passed" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Precision loss:RuntimeWarning")  # scipy, where all differences are equal
@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_right_answer_passes(name, capsys):
    check, solution = UNUSUAL[name]
    check(solution)
    assert "passed" in capsys.readouterr().out


def test_the_probes_have_the_answers_that_are_promised():
    found = {name: evaluation(*given) for name, given in probes().items()}
    assert all(row == [0, 0, 0, 0.5, *row[4:6], False] for row in found["the same replies twice"].values())
    assert all(row[:4] == [2, 2, 2, 1] and row[6] for row in found["better by 2 in every row"].values())
    shared = found["a large part that both share"].values()
    assert all(row[6] and abs(row[0] - 0.5) < 0.4 for row in shared)
    twenty = list(found["twenty judges, one of whom differs by chance"].values())
    assert [row[1] > 0 or row[2] < 0 for row in twenty].count(True) >= 1
    assert not any(row[6] for row in twenty)
    after, before, _ = probes()["mostly ties"]
    same = np.mean([a == b for a, b in zip(after, before, strict=True)])
    assert 0.4 < same < 0.8
    stands = {name: [row[6] for row in rows.values()] for name, rows in found.items()}
    assert stands["two of four stand, one of them a fall"] == [False, True, False, True]
    assert [row[0] > 0 for row in found["two of four stand, one of them a fall"].values()] == [True, False, True, True]
    assert stands["two of four stand, and a third nearly"] == [True, False, True, False]
    assert not any(stands["none of three stands"] + stands["none of four stands, by a hair"])


def test_holm_is_not_decided_by_rounding_on_any_probe():
    """The nearest adjusted p is 0.0504, of the last probe: four digits of it are enough."""
    for after, before, judges in probes().values():
        p = [paired(np.array(judge(after)), np.array(judge(before)))[3] for judge in judges.values()]
        assert min(abs(step_down(np.array(p)) - 0.05)) > 0.0003


# ---- mistakes ------------------------------------------------------------------------------------------------
def rows(judgements, model, points):
    found = {}
    for prompt, left, _, outcome in judgements:
        found.setdefault(prompt, []).append(points[outcome if left == model else -outcome])
    return found


def with_points(tie, win=1.0, loss=0.0):
    return lambda j, m: [np.mean(some) for some in rows(j, m, {1: win, 0: tie, -1: loss}).values()]


def without_ties(judgements, model):
    some = rows([one for one in judgements if one[3]], model, {1: 1.0, -1: 0.0})
    return [np.mean(x) for x in some.values()] if some else []


def normal_interval(d, z=1.959964, ddof=1):
    error = np.std(d, ddof=ddof) / np.sqrt(len(d))
    p = 2 * NormalDist().cdf(-abs(np.mean(d)) / error) if error else float(np.mean(d) == 0)
    return np.mean(d), np.mean(d) - z * error, np.mean(d) + z * error, p


def unpaired(after, before, lists=2):
    a, b = np.asarray(after), np.asarray(before)
    return student(a - b, np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a)), lists * (len(a) - 1))


def of_quantile(after, before, quantile=0.95):
    d = after - before
    m, error = d.mean(), d.std(ddof=1) / np.sqrt(len(d))
    half = stats.t.ppf(quantile, len(d) - 1) * error
    return m, m - half, m + half, paired(after, before)[3]


def one_sided(after, before):
    *ends, p = paired(after, before)
    return (*ends, p / 2 if 0 < p < 1 else p)


def flat(p):
    """With this p where all differences are equal."""
    return lambda a, b: (*paired(a, b)[:3], paired(a, b)[3] if np.std(a - b) else p)


def of_error(error):
    return lambda a, b: student(a - b, error(a - b), len(a) - 1)


def normal_ends(a, b, z=1.96):
    return (*normal_interval(a - b, z)[:3], paired(a, b)[3])


def normal_p(a, b):
    return (*paired(a, b)[:3], normal_interval(a - b)[3])


def of_n(error_ddof):
    return of_error(lambda d: np.std(d, ddof=error_ddof) / np.sqrt(len(d)))


def wald(y):
    half = 1.96 * np.std(y, ddof=1) / np.sqrt(len(y))
    return np.mean(y), np.mean(y) - half, np.mean(y) + half


def _without_c(y, z=1.959964):
    n, m = len(y), np.mean(y)
    centre, half = m + z**2 / (2 * n), z * np.sqrt(m * (1 - m) / n + z**2 / (4 * n**2))
    return m, (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def wald_of_two_outcomes(y):
    m = np.mean(y)
    half = 1.96 * np.sqrt(m * (1 - m) / len(y))
    return m, m - half, m + half


def middle_of_the_interval(y):
    _, low, high = score_interval(y)
    return (low + high) / 2, low, high


def by_formula(y, z, root=np.sqrt, divisor=None):
    """The score interval as section 3 has it, with another root or another divisor."""
    n, m, c = len(y), np.mean(y), np.sum(y * (1 - y)) / (len(y) + 1)
    half = z * root(max(m * (1 - m) - c, 0) / n + z**2 * (1 - 4 * c) / (4 * n**2))
    divisor = divisor or 1 + z**2 / n
    return m, (m + z**2 / (2 * n) - half) / divisor, (m + z**2 / (2 * n) + half) / divisor


def by_quadratic(y, root=np.sqrt):
    n, m, z = len(y), np.mean(y), 1.96
    a, b, c = 1 + z**2 / n, -2 * m - z**2 / n, m**2 + z**2 / n * np.sum(y * (1 - y)) / (n + 1)
    return m, (-b - root(max(b * b - 4 * a * c, 0))) / (2 * a), (-b + root(max(b * b - 4 * a * c, 0))) / (2 * a)


def itself(x):
    return x


def stepped(p, factor, running):
    order = np.argsort(p, kind="stable")
    values = np.minimum(running(np.array([factor(len(p), i) for i in range(len(p))]) * p[order]), 1)
    back = np.empty(len(p))
    back[order] = values
    return back


def from_above(x):
    return np.minimum.accumulate(x[::-1])[::-1]


def unstepped(p):
    return stepped(p, lambda m, i: m - i, itself)


def benjamini(p):
    return stepped(p, lambda m, i: m / (i + 1), from_above)


def hochberg(p):
    return stepped(p, lambda m, i: m - i, from_above)


def sidak(p):
    order, back = np.argsort(p), np.empty(len(p))
    back[order] = np.maximum.accumulate(1 - (1 - p[order]) ** np.arange(len(p), 0, -1))
    return back


def among_as_many_more(p):
    return step_down(np.concatenate([p, np.ones(len(p))]))[: len(p)]


def in_place(p):
    p.sort()
    return np.minimum(np.maximum.accumulate(p * np.arange(len(p), 0, -1)), 1)


def without_tied_rows(a, b):
    return (a > b)[a != b] * 1.0 if (a != b).any() else np.array([0.5])


def rising_alone(after, before, judges):
    return {name: [*row[:6], row[6] and row[0] > 0] for name, row in evaluation(after, before, judges).items()}


def rates_in_per_cent(after, before, judges):
    found = evaluation(after, before, judges)
    return {name: [*row[:3], *(100 * x for x in row[3:6]), row[6]] for name, row in found.items()}


def from_rates(after, before, judges):
    found = evaluation(after, before, judges)
    return {name: [*row[:6], row[4] > 0.5 or row[5] < 0.5] for name, row in found.items()}


MISTAKES = {
    "left is mine": (
        check_outcomes,
        lambda j, m: outcomes([(p, m, "x", o) for p, _, _, o in j], m),
        "sides are ignored",
    ),
    "the other model": (check_outcomes, lambda j, m: [1 - x for x in outcomes(j, m)], "of the other model"),
    "ties win": (check_outcomes, with_points(1.0), "tie counts as a win"),
    "ties lose": (check_outcomes, with_points(0.0), "tie counts as a loss"),
    "ties dropped": (check_outcomes, without_ties, "ties are dropped|shape"),
    "signs": (check_outcomes, with_points(0.0, 1.0, -1.0), "averaged as they are"),
    "each judgement": (
        check_outcomes,
        lambda j, m: [(1 + (o if left == m else -o)) / 2 for _, left, _, o in j],
        "one row for each judgement",
    ),
    "majority": (check_outcomes, lambda j, m: [(np.sign(x - 0.5) + 1) / 2 for x in outcomes(j, m)], "majority"),
    "sum": (check_outcomes, lambda j, m: [sum(x) for x in rows(j, m, {1: 1, 0: 0.5, -1: 0}).values()], "sum over"),
    "last": (
        check_outcomes,
        lambda j, m: [x[-1] for x in rows(j, m, {1: 1, 0: 0.5, -1: 0}).values()],
        "last judgement",
    ),
    "first": (
        check_outcomes,
        lambda j, m: [x[0] for x in rows(j, m, {1: 1, 0: 0.5, -1: 0}).values()],
        "first judgement of a prompt",
    ),
    "median": (
        check_outcomes,
        lambda j, m: [np.median(x) for x in rows(j, m, {1: 1, 0: 0.5, -1: 0}).values()],
        "median of a prompt",
    ),
    "sorted": (check_outcomes, lambda j, m: outcomes(sorted(j), m), "sorted"),
    "overall": (check_outcomes, lambda j, m: np.mean(outcomes(j, m)), "mean over the prompts"),
    "overall, of all judgements": (
        check_outcomes,
        lambda j, m: np.mean([(1 + (o if left == m else -o)) / 2 for _, left, _, o in j]),
        "mean of all judgements",
    ),
    "per cent": (check_outcomes, lambda j, m: [100 * x for x in outcomes(j, m)], "per cent: a share is asked"),
    "a dict": (check_outcomes, by_prompt, "it returned dict; a list, an array or a tensor of numbers is asked"),
    "a set": (check_outcomes, lambda *x: set(outcomes(*x)), "it returned set; a list, an array or a tensor"),
    "words": (check_outcomes, lambda *x: str(outcomes(*x)), "it returned str; a list, an array or a tensor"),
    "no return": (check_outcomes, lambda j, m: None if len(j) else 1, "is there a `return`"),
    "wilson": (check_score_interval, _without_c, "variance is that of yes or no"),
    "ties dropped from the rate": (
        check_score_interval,
        lambda y: score_interval(y[y != 0.5]) if (y != 0.5).any() else (0.5, 0, 1),
        "ties are dropped",
    ),
    "ties as wins": (check_score_interval, lambda y: score_interval(np.where(y == 0.5, 1.0, y)), "ties count as wins"),
    "ties as losses": (
        check_score_interval,
        lambda y: score_interval(np.where(y == 0.5, 0.0, y)),
        "ties count as losses",
    ),
    "n for n + 1": (check_score_interval, partial(score_interval, dof=0), "divided by n and not by n"),
    "one-sided z": (check_score_interval, partial(score_interval, z=1.645), "z is 1.645, of one side"),
    "one-sided z, exact": (check_score_interval, partial(score_interval, z=1.6448536), "z is 1.644854, of one side"),
    "no root": (check_score_interval, partial(by_formula, z=1.96, root=itself), "the square root is missing"),
    "no root, exact z": (check_score_interval, partial(by_formula, z=1.959964, root=itself), "the square root is miss"),
    "no root of a quadratic": (
        check_score_interval,
        partial(by_quadratic, root=itself),
        r"root of b\^2 - 4 a c is miss",
    ),
    "undivided": (
        check_score_interval,
        partial(by_formula, z=1.96, divisor=1),
        r"division by 1 \+ z\^2 / n is missing",
    ),
    "undivided, exact z": (check_score_interval, partial(by_formula, z=1.959964, divisor=1), "division by 1"),
    "student": (
        check_score_interval,
        lambda y: score_interval(y, z=stats.t.ppf(0.975, len(y) - 1)),
        "a quantile of Student's t: the score interval",
    ),
    "rates in per cent": (check_score_interval, lambda y: [100 * x for x in score_interval(y)], "per cent: a share"),
    "z of 2": (check_score_interval, partial(score_interval, z=2.0), "what is asked"),
    "wald": (check_score_interval, wald, "with n - 1"),
    "wald with n": (
        check_score_interval,
        lambda y: (
            np.mean(y),
            np.mean(y) - 1.96 * np.std(y) / len(y) ** 0.5,
            np.mean(y) + 1.96 * np.std(y) / len(y) ** 0.5,
        ),
        "variance at the estimate|at each mu",
    ),
    "wald of yes or no": (check_score_interval, wald_of_two_outcomes, "of yes or no, and at the estimate"),
    "the middle": (check_score_interval, middle_of_the_interval, "the middle of the interval in the place"),
    "rate of the loser": (check_score_interval, lambda y: score_interval(1 - y), "the rate of the other model"),
    "swapped ends": (check_score_interval, lambda y: np.array(score_interval(y))[[0, 2, 1]], "swapped"),
    "rate in the middle": (
        check_score_interval,
        lambda y: np.array(score_interval(y))[[1, 0, 2]],
        "order is low, rate",
    ),
    "ends alone": (check_score_interval, lambda y: score_interval(y)[1:], "shape|asked"),
    "unpaired": (check_paired, unpaired, "unpaired"),
    "unpaired, one list": (check_paired, partial(unpaired, lists=1), "unpaired.*with n - 1 degrees"),
    "median of the differences": (
        check_paired,
        lambda a, b: (np.median(a - b), *paired(a, b)[1:]),
        "median of the differences",
    ),
    "before - after": (check_paired, lambda a, b: paired(b, a), "other way round"),
    "n for n - 1": (check_paired, of_n(0), "variance is divided by n"),
    "normal": (check_paired, lambda a, b: normal_interval(a - b, 1.96), "1.96 and the normal law"),
    "normal, exact": (check_paired, lambda a, b: normal_interval(a - b), "1.959964 and the normal law"),
    "normal ends": (check_paired, normal_ends, "1.96 in the interval: with n values it is Student's t"),
    "normal ends, exact": (check_paired, partial(normal_ends, z=1.959964), "1.959964 in the interval"),
    "normal p": (check_paired, normal_p, "the p-value is that of the normal law: Student's t"),
    "s / n": (check_paired, of_error(lambda d: np.std(d, ddof=1) / len(d)), "s / n: the root is missing"),
    "variance": (
        check_paired,
        of_error(lambda d: np.var(d, ddof=1) / np.sqrt(len(d))),
        "the variance in the place of the standard deviation",
    ),
    "always 1 without spread": (check_paired, flat(1.0), "p is 1 where all differences are equal: it is 0"),
    "always 0 without spread": (check_paired, flat(0.0), "p is 0 where all differences are equal: it is 1"),
    "quantile of one side": (check_paired, lambda a, b: of_quantile(a, b) if np.std(a - b) else paired(a, b), "0.95"),
    "p of one side": (check_paired, one_sided, "p-value of one side"),
    "n degrees": (
        check_paired,
        lambda a, b: student(a - b, np.std(a - b, ddof=1) / np.sqrt(len(a)), len(a)),
        "n degrees of freedom",
    ),
    "no root of n": (
        check_paired,
        lambda a, b: student(a - b, np.std(a - b, ddof=1), len(a) - 1),
        "standard deviation in the place",
    ),
    "nan without spread": (
        check_paired,
        lambda a, b: (*paired(a, b)[:3], np.nan if not np.std(a - b) else paired(a, b)[3]),
        "0 / 0",
    ),
    "no running maximum": (check_step_down, unstepped, "running maximum is missing"),
    "maximum in the order given": (
        check_step_down,
        lambda p: np.maximum.accumulate(unstepped(p)),
        "maximum goes along the order given",
    ),
    "read with the order": (
        check_step_down,
        lambda p: np.sort(step_down(p))[np.argsort(p)],
        r"read with \[order\] where it has to be written",
    ),
    "sidak": (check_step_down, sidak, "Sidak: Holm multiplies"),
    "bonferroni": (check_step_down, lambda p: np.minimum(len(p) * p, 1), "Bonferroni"),
    "sorted p": (check_step_down, lambda p: np.sort(step_down(p)), "order is that of the sorted"),
    "factors to 0": (check_step_down, lambda p: stepped(p, lambda m, i: m - i - 1, np.maximum.accumulate), "end at 0"),
    "factors to 2": (check_step_down, lambda p: stepped(p, lambda m, i: m - i + 1, np.maximum.accumulate), "end at 2"),
    "false discoveries": (check_step_down, benjamini, "Benjamini"),
    "hochberg": (check_step_down, hochberg, "Hochberg"),
    "rising factors": (
        check_step_down,
        lambda p: stepped(p, lambda m, i: i + 1, np.maximum.accumulate),
        "factors rise",
    ),
    "nothing adjusted": (check_step_down, lambda p: p, "p itself"),
    "above 1": (
        check_step_down,
        lambda p: np.maximum.accumulate(np.sort(p) * np.arange(len(p), 0, -1))[
            np.argsort(np.argsort(p, kind="stable"))
        ],
        "at most 1",
    ),
    "verdicts": (check_step_down, lambda p: step_down(p) <= 0.05, "whether it stands|what is asked|bool"),
    "in place": (check_step_down, in_place, "in place|order is that of the sorted"),
    "models swapped": (check_evaluation, lambda a, b, j: evaluation(b, a, j), "two models are swapped"),
    "rows not paired": (check_evaluation, partial(evaluation, paired=unpaired), "not paired"),
    "rows not paired, one list": (
        check_evaluation,
        partial(evaluation, paired=partial(unpaired, lists=1)),
        "not paired, with n - 1 degrees",
    ),
    "no holm": (check_evaluation, partial(evaluation, adjusted=lambda p: p), "each judge by its own p"),
    "ties won": (check_evaluation, partial(evaluation, points=lambda a, b: (a >= b) * 1.0), "count as a win"),
    "ties lost": (check_evaluation, partial(evaluation, points=lambda a, b: (a > b) * 1.0), "count as a loss"),
    "rate of the other": (
        check_evaluation,
        partial(evaluation, points=lambda a, b: (np.sign(b - a) + 1) / 2),
        "of the other model",
    ),
    "all against all": (
        check_evaluation,
        partial(evaluation, points=lambda a, b: (np.sign(np.subtract.outer(a, b)).ravel() + 1) / 2),
        "every score of one",
    ),
    "population variance": (check_evaluation, partial(evaluation, paired=of_n(0)), "variance is divided by n"),
    "p of one side, whole": (check_evaluation, partial(evaluation, paired=one_sided), "p-values are those of one side"),
    "level 0.1": (check_evaluation, partial(evaluation, level=0.1), "or the level is 0.1"),
    "level 0.01": (check_evaluation, partial(evaluation, level=0.01), "the level is 0.01"),
    "normal p, whole": (check_evaluation, partial(evaluation, paired=normal_p), "p-values are those of the normal law"),
    "bonferroni, whole": (
        check_evaluation,
        partial(evaluation, adjusted=lambda p: np.minimum(len(p) * p, 1)),
        "Bonferroni: only the smallest",
    ),
    "false discoveries, whole": (check_evaluation, partial(evaluation, adjusted=benjamini), "Benjamini and Hochberg:"),
    "hochberg, whole": (check_evaluation, partial(evaluation, adjusted=hochberg), "cause: Hochberg, a running minimum"),
    "no running maximum, whole": (
        check_evaluation,
        partial(evaluation, adjusted=unstepped),
        "the running maximum is missing",
    ),
    "sidak, whole": (check_evaluation, partial(evaluation, adjusted=sidak), "Sidak: Holm multiplies"),
    "more rows": (check_evaluation, partial(evaluation, adjusted=among_as_many_more), "Holm over more rows"),
    "sorted p, whole": (
        check_evaluation,
        partial(evaluation, adjusted=lambda p: np.sort(step_down(p))),
        "adjusted p are in ascending order",
    ),
    "rising alone": (check_evaluation, rising_alone, "only what rose stands"),
    "rates of the whole in per cent": (check_evaluation, rates_in_per_cent, "per cent: a share is asked"),
    "tied rows dropped": (
        check_evaluation,
        partial(evaluation, points=without_tied_rows),
        "rows with equal scores are dropped",
    ),
    "stands by rates": (check_evaluation, from_rates, "read from the win rate"),
    "one number": (check_evaluation, rows_as(lambda row: torch.tensor(row[0])), "numbers of a judge"),
    "six numbers": (check_evaluation, lambda *x: {k: v[:6] for k, v in evaluation(*x).items()}, "numbers of a judge"),
    "a list": (check_evaluation, lambda *x: list(evaluation(*x).values()), "a dict with"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named(name):
    check, mistake, cause = MISTAKES[name]
    with pytest.raises(AssertionError, match=cause) as caught:
        check(mistake)
    said = str(caught.value)
    assert "expected" in said
    assert "perhaps" not in said
    assert "\n  or " not in said


@pytest.mark.parametrize("factor", [0.0, float("nan"), 1.001])
@pytest.mark.parametrize("check", RIGHT, ids=lambda check: check.__name__)
def test_numbers_of_the_right_shape_are_not_enough(check, factor):
    def scaled(x):
        return np.asarray(x) * factor

    with pytest.raises(AssertionError, match="got "):
        check(lambda *given: scaled(RIGHT[check](*given)))


@pytest.mark.parametrize("check", [*RIGHT, check_evaluation], ids=lambda check: check.__name__)
def test_what_was_not_begun_gets_one_line(check):
    def mine(*given):
        raise NotImplementedError("your code here")

    with pytest.raises(NotAttempted, match="not attempted yet: write the body of mine"):
        check(mine)
