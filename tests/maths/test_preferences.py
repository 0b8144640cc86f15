"""Likelihoods of choices, ties and rankings against their definitions; ceilings and calibration."""

import itertools
import math

import choix
import pytest
import torch
from hypothesis import given, settings, strategies as st

from rlhf_lab.maths.preferences import (
    ReliabilityBins,
    accuracy,
    best_possible_accuracy,
    bradley_terry_loss,
    davidson_loss,
    expected_accuracy,
    plackett_luce_loss,
    rater_agreement,
    rating_loss,
    reliability_bins,
)

torch.set_num_threads(1)
few = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 2**31)


def draw(seed, *shape, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def maximise_likelihood(loss, size):
    """Scores with mean 0 that minimise a convex loss, by Newton's method."""
    scores = torch.zeros(size, dtype=torch.float64)
    for _ in range(30):
        slope = torch.autograd.functional.jacobian(loss, scores)
        curvature = torch.autograd.functional.hessian(loss, scores)
        scores = scores - torch.linalg.pinv(curvature, hermitian=True) @ slope
        scores = scores - scores.mean()
    assert slope.abs().max() < 1e-10
    return scores


# ---- choices -----------------------------------------------------------------------------------------------


@few
@given(SEEDS, st.sampled_from([0.0, 0.5, -1.0]))
def test_bradley_terry_against_the_definition(seed, margin):
    chosen, rejected = draw(seed, 2, 6, scale=3.0)
    pairs = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
    expected = [-math.log(1 / (1 + math.exp(-(c - r - margin)))) for c, r in pairs]
    loss = bradley_terry_loss(chosen, rejected, margin)
    assert loss.tolist() == pytest.approx(expected)
    torch.testing.assert_close(bradley_terry_loss(chosen + 4, rejected + 4, margin), loss)
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected, torch.full((6,), margin)), loss)
    both_ways = torch.exp(-bradley_terry_loss(chosen, rejected)) + torch.exp(-bradley_terry_loss(rejected, chosen))
    torch.testing.assert_close(both_ways, torch.ones(6).double())


def test_bradley_terry_of_huge_differences_is_finite():
    assert bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0])).item() == 1000
    assert bradley_terry_loss(torch.tensor([500.0]), torch.tensor([-500.0])).item() == 0


def test_its_minimum_is_the_maximum_likelihood_of_choix():
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(5, (200, 2), generator=generator)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    scores = maximise_likelihood(lambda s: bradley_terry_loss(s[pairs[:, 0]], s[pairs[:, 1]]).mean(), 5)
    reference = choix.opt_pairwise(5, pairs.tolist(), alpha=0, method="Newton-CG", tol=1e-10)
    assert scores.tolist() == pytest.approx(reference - reference.mean(), abs=1e-6)


@few
@given(SEEDS, st.sampled_from([-2.0, 0.0, 0.3]))
def test_davidson_against_the_definition(seed, log_nu):
    left, right = draw(seed, 2, 4, scale=2.0)
    laws = []
    for outcome in (1, 0, -1):
        loss = davidson_loss(left, right, torch.full((4,), outcome), log_nu)
        laws.append(torch.exp(-loss))
        for b, (x, y) in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
            weights = {1: math.exp(x), 0: math.exp(log_nu + (x + y) / 2), -1: math.exp(y)}
            assert laws[-1][b].item() == pytest.approx(weights[outcome] / sum(weights.values()), rel=1e-12)
    wins, _, losses = laws
    torch.testing.assert_close(wins / (wins + losses), torch.sigmoid(left - right))
    torch.testing.assert_close(sum(laws), torch.ones(4).double())


def test_davidson_without_ties_is_bradley_terry_and_turning_a_pair_turns_the_outcome():
    left, right = draw(0, 2, 5)
    outcome = torch.tensor([1, -1, 1, 1, -1])
    chosen, rejected = torch.where(outcome == 1, left, right), torch.where(outcome == 1, right, left)
    torch.testing.assert_close(davidson_loss(left, right, outcome, -1000.0), bradley_terry_loss(chosen, rejected))
    log_nu = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(
        davidson_loss(left, right, outcome, log_nu), davidson_loss(right, left, -outcome, log_nu)
    )


# ---- rankings ----------------------------------------------------------------------------------------------


def slow_plackett_luce(scores, num_ranked):
    """-log of the product of the choices: the best of all, then the best of what is left, and so on."""
    probability = 1.0
    for place in range(num_ranked):
        probability *= math.exp(scores[place]) / sum(math.exp(score) for score in scores[place:])
    return -math.log(probability)


@few
@given(SEEDS, st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3))
def test_plackett_luce_against_the_definition(seed, pattern):
    present = torch.tensor(pattern)
    present[:, [1, 3]] = True  # at least two in every row, holes allowed
    scores = draw(seed, *present.shape).masked_fill(~present, math.nan)
    kept = [row[here].tolist() for row, here in zip(scores, present, strict=True)]
    whole = [slow_plackett_luce(row, len(row)) for row in kept]
    assert plackett_luce_loss(scores, present).tolist() == pytest.approx(whole)
    best_two = [slow_plackett_luce(row, 2) for row in kept]
    assert plackett_luce_loss(scores, present, num_ranked=2).tolist() == pytest.approx(best_two)
    counts = [1 + seed % len(row) for row in kept]
    each = [slow_plackett_luce(row, count) for row, count in zip(kept, counts, strict=True)]
    assert plackett_luce_loss(scores, present, torch.tensor(counts)).tolist() == pytest.approx(each)
    assert plackett_luce_loss(scores, present, num_ranked=99).tolist() == pytest.approx(whole)


@pytest.mark.parametrize("num_ranked", [1, 2, 4])
def test_the_probabilities_of_all_rankings_add_up_to_1(num_ranked):
    scores = draw(1, 4)
    tops = {order[:num_ranked]: order for order in itertools.permutations(range(4))}
    rows = torch.stack([scores[list(order)] for order in tops.values()])
    loss = plackett_luce_loss(rows, torch.ones(len(rows), 4).bool(), num_ranked)
    assert torch.exp(-loss).sum().item() == pytest.approx(1)


def test_losses_lie_where_the_scores_do(devices_named):
    scores, present = draw(2, 3, 4), torch.ones(3, 4).bool()
    with devices_named:
        davidson_loss(scores[:, 0], scores[:, 1], present[:, 0].int(), 0.5)
        plackett_luce_loss(scores, present)
        reliability_bins(scores.sigmoid(), present)


def test_two_responses_are_bradley_terry_and_a_constant_changes_nothing():
    scores, present = draw(2, 6, 2), torch.ones(6, 2).bool()
    loss = plackett_luce_loss(scores, present)
    torch.testing.assert_close(loss, bradley_terry_loss(scores[:, 0], scores[:, 1]))
    torch.testing.assert_close(plackett_luce_loss(scores + 9, present), loss)
    padded = torch.nn.functional.pad(scores, (0, 3), value=math.inf)
    torch.testing.assert_close(plackett_luce_loss(padded, torch.nn.functional.pad(present, (0, 3))), loss)
    torch.testing.assert_close(plackett_luce_loss(scores.flip(0), present), loss.flip(0))


def test_its_minimum_is_the_maximum_likelihood_of_choix_for_rankings():
    generator = torch.Generator().manual_seed(3)
    orders = torch.stack([torch.randperm(5, generator=generator)[:4] for _ in range(30)])
    present = torch.ones(orders.shape).bool()
    scores = maximise_likelihood(lambda s: plackett_luce_loss(s[orders], present).mean(), 5)
    reference = choix.opt_rankings(5, orders.tolist(), alpha=0, method="Newton-CG", tol=1e-10)
    assert scores.tolist() == pytest.approx(reference - reference.mean(), abs=1e-6)


def test_gradients_by_finite_differences_and_none_where_nothing_is_present():
    left, right = (x.requires_grad_() for x in draw(4, 2, 3))
    log_nu = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    outcome, check = torch.tensor([1, 0, -1]), torch.autograd.gradcheck
    assert check(lambda x, y: bradley_terry_loss(x, y, 0.3), (left, right))
    assert check(lambda x, y, z: davidson_loss(x, y, outcome, z), (left, right, log_nu))
    assert check(lambda x: rating_loss(x, right.detach()), left)
    scores, present = draw(5, 2, 4).requires_grad_(), torch.tensor([[True] * 4, [True, False, True, False]])
    assert check(lambda x: plackett_luce_loss(x, present), scores)
    dirty = scores.detach().masked_fill(~present, math.nan).requires_grad_()
    (gradient,) = torch.autograd.grad(plackett_luce_loss(dirty, present).sum(), dirty)
    assert gradient.isfinite().all()
    assert gradient[~present].eq(0).all()


@few
@given(SEEDS)
def test_rating_loss_has_the_error_as_its_slope(seed):
    scores, ratings = draw(seed, 2, 5)
    loss = rating_loss(scores.requires_grad_(), ratings)
    assert loss.tolist() == pytest.approx(
        [(s - r) ** 2 / 2 for s, r in zip(scores.tolist(), ratings.tolist(), strict=True)]
    )
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), scores)[0], scores.detach() - ratings)


def test_rating_loss_is_half_the_squared_error():
    assert rating_loss(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 2.5])).tolist() == [4.5, 0.125]


# ---- how good are the predictions --------------------------------------------------------------------------


def test_accuracy_counts_ties_half():
    chosen, rejected = torch.tensor([3.0, 1.0, 0.0, 5.0]), torch.tensor([1.0, 1.0, 2.0, 4.0])
    assert accuracy(chosen, rejected).item() == (1 + 0.5 + 0 + 1) / 4


@few
@given(SEEDS)
def test_accuracies_against_the_definition(seed):
    p = torch.rand(20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    differences = draw(seed, 20).round()  # with ties
    right = sum((d > 0) + 0.5 * (d == 0) for d in differences.tolist())
    assert accuracy(differences + 1, torch.ones(20).double()).item() == pytest.approx(right / 20)
    slow = [q if d > 0 else 1 - q if d < 0 else 0.5 for d, q in zip(differences.tolist(), p.tolist(), strict=True)]
    assert expected_accuracy(differences, p).item() == pytest.approx(sum(slow) / 20)
    ceiling = sum(max(q, 1 - q) for q in p.tolist()) / 20
    assert best_possible_accuracy(p).item() == pytest.approx(ceiling)
    assert expected_accuracy(p - 0.5, p).item() == pytest.approx(ceiling)  # who knows p reaches it
    agreement = sum(q * q + (1 - q) * (1 - q) for q in p.tolist()) / 20
    assert rater_agreement(p).item() == pytest.approx(agreement)
    assert 0.5 <= rater_agreement(p) <= best_possible_accuracy(p)
    assert expected_accuracy(differences, p) <= best_possible_accuracy(p)


@few
@given(SEEDS, st.sampled_from([1, 2, 5, 10]))
def test_reliability_bins_against_the_definition(seed, bins):
    generator = torch.Generator().manual_seed(seed)
    p = torch.cat([torch.rand(15, generator=generator), torch.tensor([0.0, 0.5, 1.0])])
    outcomes = torch.randint(2, (18,), generator=generator)
    table = reliability_bins(p, outcomes, bins)
    error = 0.0
    for b in range(bins):
        low, high = b / bins, (b + 1) / bins
        inside = [i for i, x in enumerate(p.tolist()) if low <= x < high or (b == bins - 1 and x == 1)]
        assert table.counts[b] == len(inside)
        if not inside:
            assert table.predicted[b].isnan()
            assert table.observed[b].isnan()
            continue
        predicted = sum(float(p[i]) for i in inside) / len(inside)
        observed = sum(float(outcomes[i]) for i in inside) / len(inside)
        assert table.predicted[b].item() == pytest.approx(predicted)
        assert table.observed[b].item() == pytest.approx(observed)
        error += abs(predicted - observed) * len(inside) / 18
    assert table.calibration_error == pytest.approx(error)
    assert table.edges.tolist() == pytest.approx([b / bins for b in range(bins + 1)], abs=1e-15)


def test_bins_that_nothing_falls_into_are_there():
    table = reliability_bins(torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), bins=4)
    assert table.counts.tolist() == [2, 0, 0, 0]
    assert table.observed.isnan().tolist() == table.predicted.isnan().tolist() == [False, True, True, True]


def test_a_calibrated_model_has_no_error_and_the_table_is_frozen():
    p = torch.rand(50, generator=torch.Generator().manual_seed(0))
    table = reliability_bins(p, p)
    assert isinstance(table, ReliabilityBins)
    assert table.calibration_error == pytest.approx(0)
    with pytest.raises(AttributeError, match="cannot assign"):
        table.calibration_error = 1.0


X, P = torch.zeros(2), torch.full((2,), 0.5)
ROWS, ALL = torch.zeros(2, 3), torch.ones(2, 3).bool()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bradley_terry_loss(X, X[:1]), r"rejected_scores has shape \[1\], expected \[2\]"),
        (lambda: bradley_terry_loss(X, X, X[:1]), "margin has shape"),
        (lambda: davidson_loss(X, X, torch.tensor([1]), 0.0), "outcome has shape"),
        (lambda: davidson_loss(X[:1], X, torch.tensor([1, 0]), 0.0), "right_scores has shape .* like left_scores"),
        (lambda: davidson_loss(X, X[:1], torch.tensor([1, 0]), 0.0), "right_scores has shape"),
        (
            lambda: davidson_loss(X, X, torch.tensor([1, 2]), 0.0),
            r"outcome must be 1 \(left\).* got \[1, 2\]",
        ),
        (lambda: plackett_luce_loss(X, ALL), "present has shape"),
        (lambda: plackett_luce_loss(X, ALL[0, :2]), r"must be \[N, K\]"),
        (lambda: plackett_luce_loss(ROWS, ROWS), "present bool, got .* torch.float32"),
        (
            lambda: plackett_luce_loss(ROWS, ALL & torch.tensor([True, False, False])),
            r"at least 2 .* \[1, 1\]",
        ),
        (lambda: plackett_luce_loss(ROWS, ALL, 0), r"num_ranked must be between 1 and .* got \[0, 0\]"),
        (lambda: plackett_luce_loss(ROWS, ALL, torch.tensor([3, 4])), r"num_ranked .* got \[3, 4\]"),
        (
            lambda: plackett_luce_loss(ROWS, ALL, torch.tensor([3])),
            r"num_ranked has shape \[1\], expected \[2\]",
        ),
        (lambda: rating_loss(X, X.clone().requires_grad_()), "ratings must be data"),
        (lambda: rating_loss(X, X[:1]), "ratings has shape"),
        (lambda: accuracy(X, X[:1]), "rejected_scores has shape"),
        (lambda: accuracy(X[:0], X[:0]), "p must be a non-empty"),
        (lambda: expected_accuracy(X, P[:1]), "p has shape"),
        (lambda: expected_accuracy(X, P + 1), r"p must be .* in \[0, 1\]"),
        (lambda: best_possible_accuracy(P * math.nan), "p must be"),
        (lambda: rater_agreement(-P), "p must be"),
        (lambda: reliability_bins(P, P[:1]), "outcomes has shape"),
        (lambda: reliability_bins(P, P + 1), "outcomes must be"),
        (lambda: reliability_bins(P + 1, P), "probabilities must be"),
        (lambda: reliability_bins(P, P, bins=0), "bins must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
