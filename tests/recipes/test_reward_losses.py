"""Every loss is its definition, written out, and its minimum is where another library finds it."""

import itertools
import math

import choix
import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from statsmodels.discrete.conditional_models import ConditionalLogit

from rlhf_lab.maths.preferences import davidson_loss
from rlhf_lab.recipes.reward_data import Judged, Said, read_said
from rlhf_lab.recipes.reward_losses import LOSSES, first_log_nu, record_loss
from rlhf_lab.records import Choice, Comparison, Ranking, Rating

ITEMS = 5
TRUE = torch.tensor([1.2, 0.4, 0.0, -0.5, -1.1], dtype=torch.float64)
NAMES = "abcde"


# ---- the definitions -----------------------------------------------------------------------------------------------


def of_pair(better, worse, margin=0.0):
    return -math.log(1 / (1 + math.exp(-(better - worse - margin))))


def of_davidson(left, right, outcome, log_nu):
    weights = {1: math.exp(left), 0: math.exp(log_nu + (left + right) / 2), -1: math.exp(right)}
    return -math.log(weights[outcome] / sum(weights.values()))


def test_bradley_terry_with_margins_is_the_mean_over_pairs():
    s = [0.3, -0.2, 1.5, 0.1]
    [(texts, said)] = read_said([Ranking("Hi", tuple("abcd"), ((2,), (0, 3), (1,)))], "bradley_terry")
    place = {"c": 0, "a": 1, "d": 1, "b": 2}
    scores = dict(zip(texts, s, strict=True))
    for margin in (0.0, 0.7):
        pairs = [(x, y) for x in place for y in place if place[x] < place[y]]
        expected = [of_pair(scores[x], scores[y], margin * (place[y] - place[x])) for x, y in pairs]
        loss = record_loss(torch.tensor(s, dtype=torch.float64), said, "bradley_terry", margin)
        assert len(pairs) == 5
        assert loss.item() == pytest.approx(sum(expected) / 5, abs=1e-12)


@pytest.mark.parametrize("last", [1, 2, 3])
def test_plackett_luce_is_the_share_of_the_orders_that_fit(last):
    """Of all orders of 4 those that begin with the ranked ones, each with its product of choices."""
    s, ranked = [0.3, -0.2, 1.5, 0.1], 4 - last if last > 1 else 4
    tiers = tuple((i,) for i in range(4 - last)) + (tuple(range(4 - last, 4)),)
    [(_, said)] = read_said([Ranking("Hi", tuple("abcd"), tiers)], "plackett_luce")
    total = 0.0
    for order in itertools.permutations(range(4)):
        if list(order[:ranked]) == list(range(ranked)):
            total += math.prod(math.exp(s[i]) / sum(math.exp(s[j]) for j in order[k:]) for k, i in enumerate(order))
    loss = record_loss(torch.tensor(s, dtype=torch.float64), said, "plackett_luce")
    assert loss.item() == pytest.approx(-math.log(total), abs=1e-12)


def test_davidson_counts_pairs_and_ties_alike_and_its_outcomes_have_probability_one():
    s, log_nu = [0.3, -0.2, 1.5], 0.4
    [(texts, said)] = read_said([Ranking("Hi", tuple("abc"), ((1, 2), (0,)))], "davidson")
    at = dict(zip(texts, s, strict=True))
    pairs = [("b", "a", 1), ("c", "a", 1), ("b", "c", 0)]
    expected = [of_davidson(at[x], at[y], outcome, log_nu) for x, y, outcome in pairs]
    loss = record_loss(torch.tensor(s, dtype=torch.float64), said, "davidson", log_nu=torch.tensor(log_nu))
    assert loss.item() == pytest.approx(sum(expected) / 3, abs=1e-7)
    left, right = torch.tensor([0.3] * 3), torch.tensor([1.1] * 3)
    assert (-davidson_loss(left, right, torch.tensor([-1, 0, 1]), log_nu)).exp().sum().item() == pytest.approx(1)


@pytest.mark.parametrize(("score", "unit"), [(0.3, 0.75), (-2.0, 0.0), (5.0, 1.0)])
def test_a_rating_costs_half_its_squared_error_and_a_label_its_log_odds(score, unit):
    scores = torch.tensor([score], dtype=torch.float64)
    assert record_loss(scores, Said(target=unit), "regression").item() == pytest.approx((score - unit) ** 2 / 2)
    probability = 1 / (1 + math.exp(-score))
    for label in (1.0, 0.0):
        expected = -math.log(probability if label else 1 - probability)
        assert record_loss(scores, Said(target=label), "classification").item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_only_ratings_and_labels_know_the_level(loss):
    rows = {"regression": Said(target=0.3), "classification": Said(target=1.0)}
    said = rows.get(loss, Said([(0, 1)], [1], [(1, 2)], ordered=3))
    scores = torch.tensor([0.4] if loss in rows else [0.4, -1.0, 0.2], dtype=torch.float64)
    moved = [record_loss(scores + shift, said, loss).item() for shift in (0.0, 3.0)]
    assert (moved[0] == pytest.approx(moved[1])) == (loss not in rows)


# ---- the minimum ---------------------------------------------------------------------------------------------------


def fitted(records, loss, free_log_nu=False):
    """Scores of a table that minimise the sum of the losses, and log nu."""
    said = read_said(records, loss)
    scores = torch.zeros(ITEMS, dtype=torch.float64, requires_grad=True)
    log_nu = torch.zeros((), dtype=torch.float64, requires_grad=True)
    learned = [scores, log_nu] if free_log_nu else [scores]
    options = {"line_search_fn": "strong_wolfe", "tolerance_grad": 1e-10, "tolerance_change": 1e-14}
    optimiser = torch.optim.LBFGS(learned, max_iter=500, **options)

    def objective():
        optimiser.zero_grad()
        total = sum(
            record_loss(scores[[NAMES.index(t) for t in texts]], s, loss, 0.0, log_nu) * (len(s.pairs + s.ties) or 1)
            for texts, s in said
        )
        total.backward()
        return total

    optimiser.step(objective)
    return scores.detach().numpy(), float(log_nu.detach())


def centred(scores):
    return scores - np.mean(scores)


def drawn_pairs(count=400, seed=0):
    generator = np.random.default_rng(seed)
    for _ in range(count):
        i, j = generator.choice(ITEMS, 2, replace=False)
        yield (i, j) if generator.random() < 1 / (1 + math.exp(TRUE[j] - TRUE[i])) else (j, i)


def test_bradley_terry_is_fitted_as_choix_and_logistic_regression_do():
    pairs = list(drawn_pairs())
    scores, _ = fitted([Comparison("Hi", NAMES[i], NAMES[j]) for i, j in pairs], "bradley_terry")
    np.testing.assert_allclose(
        centred(scores), centred(choix.opt_pairwise(ITEMS, pairs, alpha=0, method="Newton-CG", tol=1e-10)), atol=1e-4
    )
    rows = np.zeros((len(pairs), ITEMS))
    for row, (i, j) in zip(rows, pairs, strict=True):
        row[[i, j]] = 1, -1
    both, labels = np.concatenate([rows, -rows]), np.repeat([1, 0], len(rows))
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000).fit(both, labels)
    np.testing.assert_allclose(centred(scores), centred(model.coef_[0]), atol=1e-3)


def test_plackett_luce_is_fitted_as_choix_does():
    noise = np.random.default_rng(1).gumbel(size=(40, ITEMS))
    orders = (-(TRUE.numpy() + noise)).argsort(1)
    rankings = [Ranking("Hi", tuple(NAMES), tuple((int(i),) for i in order)) for order in orders]
    scores, _ = fitted(rankings, "plackett_luce")
    expected = choix.opt_rankings(ITEMS, [order.tolist() for order in orders], alpha=0, method="Newton-CG", tol=1e-10)
    np.testing.assert_allclose(centred(scores), centred(expected), atol=1e-4)


def test_davidson_is_fitted_as_a_conditional_logit_is():
    """Three alternatives a comparison: the left one, both half with a constant, the right one."""
    generator = np.random.default_rng(2)
    records, rows, chosen = [], [], []
    for _ in range(300):
        i, j = generator.choice(ITEMS, 2, replace=False)
        features = np.zeros((3, ITEMS + 1))
        features[0, i] = features[2, j] = features[1, -1] = 1
        features[1, [i, j]] = 0.5
        law = np.exp(features @ np.append(TRUE.numpy(), 0.3))
        pick = generator.choice(3, p=law / law.sum())
        records.append(Choice("Hi", NAMES[i], NAMES[j], 1 - int(pick)))
        rows.append(features)
        chosen += [int(k == pick) for k in range(3)]
    scores, log_nu = fitted(records, "davidson", free_log_nu=True)
    table = np.concatenate(rows)[:, 1:]  # the first item is the zero
    model = ConditionalLogit(np.array(chosen), table, groups=np.repeat(range(300), 3)).fit(
        disp=0, method="bfgs", gtol=1e-8
    )
    np.testing.assert_allclose((scores - scores[0])[1:], model.params[:-1], atol=1e-3)
    assert log_nu == pytest.approx(model.params[-1], abs=1e-3)
    assert log_nu == pytest.approx(0.3, abs=0.4)  # three standard errors of 300 choices


def test_ratings_are_fitted_as_least_squares_and_labels_as_logistic_regression():
    generator = np.random.default_rng(3)
    items = generator.integers(ITEMS, size=300)
    given = np.clip(np.round(3 + TRUE.numpy()[items] + generator.normal(size=300)), 1, 5)
    ratings = [Rating("Hi", NAMES[i], score) for i, score in zip(items, given, strict=True)]
    rows = np.eye(ITEMS)[items]
    scores, _ = fitted(ratings, "regression")
    targets = [said.target for _, said in read_said(ratings, "regression")]
    expected = LinearRegression(fit_intercept=False).fit(rows, targets).coef_
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    sided = given != 3
    ratings = [rating for rating, keep in zip(ratings, sided, strict=True) if keep]
    scores, _ = fitted(ratings, "classification")
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10, max_iter=10_000)
    np.testing.assert_allclose(scores, model.fit(rows[sided], given[sided] > 3).coef_[0], atol=1e-3)


def test_log_nu_starts_where_equal_scores_would_tie_as_often():
    some = [Judged([0], [[1], [2]], Said(ties=[(0, 1)]))] * 99 + [Judged([0], [[1], [2]], Said([(0, 1)], [1]))] * 299
    nu = math.exp(first_log_nu(some))
    assert nu / (nu + 2) == pytest.approx(0.25)
