"""The model of tiers and its posterior: known likelihoods, all outcomes add up to 1, derivatives, choix, quadrature."""

import itertools
from dataclasses import replace

import choix
import numpy as np
import pytest
import torch

from rlhf_lab.maths.choices import (
    LOG_NU_STD,
    TEMPERATURE_STD,
    Blocks,
    ChoiceModel,
    Parameters,
    TierChoices,
    alternatives,
    local_terms,
    log_likelihood,
    products,
    temperature_terms,
)
from rlhf_lab.maths.posterior import contrast_ends, contrast_marginals, copies, fit_posterior, only_group
from rlhf_lab.maths.preferences import davidson_loss, plackett_luce_loss


def choice(members, tier=1, largest=1, counts=1.0, rater=0):
    """The same choice, as often as `counts`."""
    members = np.array([members])
    return TierChoices(members, tier, largest, np.array([float(counts)]), np.array([rater]))


def choices_of(tiers, largest, rater=0):
    """The choices that a ranking in tiers is made of."""
    parts = []
    for i, tier in enumerate(tiers):
        rest = [item for lower in tiers[i + 1 :] for item in lower]
        if len(tier) + len(rest) > 1:
            parts.append(choice([*tier, *rest], len(tier), min(largest, len(tier) + len(rest)), rater=rater))
    return parts


def at(scores, log_nu=-0.7, temperatures=(1.0,)):
    return Parameters(np.asarray(scores, dtype=float), log_nu, np.asarray(temperatures, dtype=float))


def weak_orders(items):
    """Every ranking in tiers of some items."""
    if not items:
        yield ()
    for length in range(1, len(items) + 1):
        for tier in itertools.combinations(items, length):
            for rest in weak_orders([item for item in items if item not in tier]):
                yield (tier, *rest)


# -- the likelihood ---------------------------------------------------------------------------------------------------
def test_without_ties_it_is_plackett_luce():
    scores = np.random.default_rng(0).normal(size=5)
    order = [3, 0, 4, 1, 2]
    loss = plackett_luce_loss(torch.tensor(scores[order])[None], torch.ones(1, 5, dtype=torch.bool))
    assert log_likelihood(choices_of([[i] for i in order], 1), at(scores)) == pytest.approx(-loss.item())


@pytest.mark.parametrize("outcome", [1, 0, -1])
def test_with_two_replies_it_is_davidson(outcome):
    left, right, log_nu = 0.3, -0.9, 0.4
    tiers = {1: [[0], [1]], 0: [[0, 1]], -1: [[1], [0]]}[outcome]
    loss = davidson_loss(*(torch.tensor([x]) for x in (left, right, outcome)), log_nu)
    assert log_likelihood(choices_of(tiers, 2), at([left, right], log_nu)) == pytest.approx(-loss.item(), abs=1e-6)


@pytest.mark.parametrize(("items", "count"), [(2, 3), (3, 13), (4, 75)])
def test_all_rankings_in_tiers_add_up_to_one(items, count):
    scores = np.random.default_rng(1).normal(size=items)
    orders = list(weak_orders(list(range(items))))
    assert len(orders) == count
    total = sum(np.exp(log_likelihood(choices_of(order, items), at(scores, temperatures=[1.7]))) for order in orders)
    assert total == pytest.approx(1)


def test_alternatives_begin_with_the_chosen_tier_of_each_length():
    means, extra = alternatives(4, 3)
    for tier in (1, 2, 3):
        place = choice(range(4), tier, 3).place
        assert means[place].tolist() == [1 / tier] * tier + [0] * (4 - tier)
        assert extra[place] == tier - 1
    with pytest.raises(ValueError, match="Rank fewer replies at once"):
        alternatives(30, 15)


@pytest.mark.parametrize(("size", "largest"), [(1, 1), (4, 1), (4, 2), (5, 5)])
def test_products_are_those_of_every_two_features(size, largest):
    features = np.column_stack(alternatives(size, largest))
    expected = features[:, :, None] * features[:, None]
    assert (products(size, largest).toarray().reshape(expected.shape) == expected).all()


@pytest.mark.parametrize(
    ("size", "tier", "largest"), [(2, 1, 1), (2, 2, 2), (4, 2, 3), (5, 1, 5), (6, 4, 4), (7, 7, 7)]
)
def test_a_choice_by_listing_every_tier(size, tier, largest):
    """Log-probability, gradient, covariance, and both by the rater's temperature, by sums over tiers in plain words."""
    generator = np.random.default_rng(size)
    items = generator.permutation(9)[:size]
    point = at(3 * generator.normal(size=9), log_nu=0.4, temperatures=[1.0, -0.6])
    tiers = [t for k in range(1, largest + 1) for t in itertools.combinations(range(size), k)]
    means = [np.mean([point.scores[items[i]] for i in t]) for t in tiers]
    weights = np.exp([-0.6 * mean + (len(t) - 1) * 0.4 for mean, t in zip(means, tiers, strict=True)])
    law = weights / weights.sum()
    features = np.array([[*((i in t) / len(t) for i in range(size)), len(t) - 1] for t in tiers])
    centred = features - law @ features
    chosen = tiers.index(tuple(range(tier)))
    three = choice(items, tier, largest, counts=3, rater=1)
    value, gradient, information = local_terms(three, point)
    assert value == pytest.approx(3 * np.log(law[chosen]))
    assert gradient[0] == pytest.approx(3 * centred[chosen], abs=1e-12)
    assert information[0] == pytest.approx(3 * (centred.T * law) @ centred, abs=1e-12)
    slope, bend = temperature_terms(three, point)
    assert slope == pytest.approx(3 * (means[chosen] - law @ means))
    assert bend == pytest.approx(3 * law @ (means - law @ means) ** 2)
    everything = np.zeros((len(tiers), 12))  # 9 scores, log nu, 2 temperatures
    everything[:, items], everything[:, 9], everything[:, 11] = -0.6 * features[:, :-1], features[:, -1], means
    everything -= law @ everything
    _, matrix = dense(ChoiceModel([three], Blocks([9]), 1.0, free_nu=True), point)
    priors = np.diag([1.0] * 9 + [1 / LOG_NU_STD**2] + [1 / TEMPERATURE_STD**2] * 2)
    assert matrix == pytest.approx(priors + 3 * (everything.T * law) @ everything, abs=1e-12)


def test_choices_in_parts_are_those_in_one(monkeypatch):
    generator = np.random.default_rng(3)
    members = generator.permuted(np.tile(np.arange(5), (70, 1)), axis=1)
    whole = TierChoices(members, 2, 4, generator.random(70), np.zeros(70, dtype=int))
    point = at(generator.normal(size=5))
    monkeypatch.setattr("rlhf_lab.maths.choices.CHUNK", 500)  # of 30 tiers, and 36 products of features
    parts = list(whole.chunks())
    assert [len(part.members) for part in parts] == [13] * 5 + [5]
    for i, expected in enumerate(local_terms(whole, point)):
        assert np.concatenate([local_terms(part, point)[i] for part in parts]) == pytest.approx(expected)


# -- derivatives and the mode -----------------------------------------------------------------------------------------
def random_model(seed, free_nu=True, sizes=(3, 2, 4), raters=3, rankings=25, std=1.3):
    generator = np.random.default_rng(seed)
    starts = np.cumsum([0, *sizes])
    parts = []
    for _ in range(rankings):
        group = generator.integers(len(sizes))
        items = starts[group] + generator.permutation(sizes[group])
        cut = [[int(items[0])]]
        for item in items[1:]:
            cut = [*cut[:-1], [*cut[-1], int(item)]] if generator.random() < 0.3 else [*cut, [int(item)]]
        parts += choices_of(cut, sizes[group], int(generator.integers(raters)))
    return ChoiceModel(parts, Blocks(sizes), std, free_nu)


def log_posterior(model, point):
    prior = (
        -((point.scores / model.prior_std) ** 2).sum() / 2
        - ((point.temperatures - 1) / TEMPERATURE_STD) @ ((point.temperatures - 1) / TEMPERATURE_STD) / 2
    )
    return log_likelihood(model.choices, point) + prior - (point.log_nu / LOG_NU_STD) ** 2 / 2


def as_point(vector, items):
    return Parameters(vector[:items], float(vector[items]), vector[items + 1 :])


def dense(model, point):
    """Gradient and information of all parameters, of the system's blocks and border."""
    system, blocks = model.system(point, free_temperatures=True), model.blocks
    items, shared = blocks.items, len(system.shared_gradient)
    matrix = np.zeros((items + shared, items + shared))
    for _, rows, cells in blocks.buckets:
        for row, cell in zip(rows, cells, strict=True):
            matrix[np.ix_(row, row)] = system.information[cell]
    matrix[:items, items:], matrix[items:, :items] = system.border, system.border.T
    matrix[items:, items:] = system.shared_information
    return np.concatenate([system.gradient, system.shared_gradient]), matrix


def test_the_gradient_is_that_of_the_log_posterior():
    model = random_model(0)
    generator = np.random.default_rng(1)
    vector = np.concatenate([generator.normal(size=9), [0.3], generator.normal(size=3)])
    gradient, _ = dense(model, as_point(vector, 9))
    for i in range(len(vector)):
        step = np.zeros(len(vector))
        step[i] = 1e-5
        ends = [log_posterior(model, as_point(vector + sign * step, 9)) for sign in (1, -1)]
        assert gradient[i] == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-6)


def test_the_information_of_scores_and_log_nu_is_the_second_derivative():
    model = random_model(0)
    vector = np.concatenate([np.random.default_rng(1).normal(size=9), [0.3], np.ones(3)])
    _, matrix = dense(model, as_point(vector, 9))
    for i in range(10):  # of the temperatures it is the expected one
        step = np.zeros(len(vector))
        step[i] = 1e-5
        ends = [dense(model, as_point(vector + sign * step, 9))[0] for sign in (1, -1)]
        assert matrix[i, :10] == pytest.approx(-(ends[0] - ends[1])[:10] / 2e-5, abs=1e-5)


def test_the_mode_has_no_gradient_from_a_bad_start():
    model = random_model(2)
    point, system = model.mode(at(10 * np.random.default_rng(3).normal(size=9), 5.0, np.ones(3)))
    assert np.abs(system.gradient).max() < 1e-6
    assert np.abs(system.shared_gradient).max() < 1e-6
    again, _ = model.mode(at(np.zeros(9), 0.0, np.ones(3)))
    assert point.scores == pytest.approx(again.scores, abs=1e-6)


def test_the_step_is_halved_where_newton_overshoots():
    """At a difference of 4 with a flat prior a whole step leads to -4, and the next one back."""
    model = ChoiceModel([choice((0, 1), counts=5), choice((1, 0), counts=5)], Blocks([2]), 100.0)
    point, system = model.mode(at([2.0, -2.0]))
    assert np.abs(system.gradient).max() < 1e-6
    assert point.scores == pytest.approx([0, 0], abs=1e-6)


def test_a_step_solves_the_whole_system():
    model = random_model(2)
    point = at(np.random.default_rng(0).normal(size=9), 0.4, np.ones(3))
    gradient, matrix = dense(model, point)
    expected = np.linalg.solve(matrix[:10, :10], gradient[:10])  # without the temperatures
    step, shared = model.step(model.system(point), None)
    assert np.concatenate([step, shared]) == pytest.approx(expected)


def test_covariances_are_those_of_the_whole_inverse():
    model = random_model(4)
    posterior = fit_posterior(model, np.ones(3), True)
    _, matrix = dense(model, posterior.at)
    inverse = np.linalg.inv(matrix)
    assert posterior.shared == pytest.approx(inverse[9:, 9:])
    for _, rows, cells in model.blocks.buckets:
        for row, cell in zip(rows, cells, strict=True):
            assert posterior.covariance[cell] == pytest.approx(inverse[np.ix_(row, row)])


def test_a_held_contrast_stays_and_the_rest_moves_to_its_mode():
    model = random_model(5, free_nu=False)
    along = np.array([1, -1, 0, 1, -1, 0.5, 0.5, -1, 0])
    start = at(along * np.array([0.7] * 3 + [0.2] * 2 + [1.0] * 4), -0.5, np.ones(3))
    point, system = model.mode(start, along=along)
    assert model.blocks.sums(along * point.scores) == pytest.approx(model.blocks.sums(along * start.scores))
    for group in range(3):  # what is left of the gradient points along the contrast
        rows = model.blocks.group == group
        left = system.gradient[rows] - along[rows] * (along[rows] @ system.gradient[rows]) / (along[rows] @ along[rows])
        assert np.abs(left).max() < 1e-6
    assert np.abs(system.gradient).max() > 0.1


# -- against choix ----------------------------------------------------------------------------------------------------
def test_with_a_flat_prior_it_is_the_maximum_likelihood_of_choix():
    generator = np.random.default_rng(0)
    pairs = [tuple(generator.choice(5, size=2, replace=False).tolist()) for _ in range(60)]
    orders = [generator.permutation(5).tolist() for _ in range(20)]
    expected = {
        "pairs": choix.opt_pairwise(5, pairs, alpha=0, method="Newton-CG", tol=1e-10),
        "orders": choix.opt_rankings(5, orders, alpha=0, method="Newton-CG", tol=1e-10),
    }
    data = {
        "pairs": [choice(pair) for pair in pairs],
        "orders": [part for order in orders for part in choices_of([[i] for i in order], 1)],
    }
    for name, parts in data.items():
        scores = fit_posterior(ChoiceModel(parts, Blocks([5]), 1e4), np.ones(1), False).at.scores
        assert scores - scores.mean() == pytest.approx(expected[name] - expected[name].mean(), abs=1e-5)


def test_with_a_prior_it_is_the_penalised_likelihood_of_choix():
    pairs = [(0, 1)] * 3 + [(1, 2)] * 2 + [(2, 0)]
    expected = choix.opt_pairwise(3, pairs, alpha=1 / (2 * 0.8**2), method="Newton-CG", tol=1e-10)
    scores = fit_posterior(ChoiceModel([choice(p) for p in pairs], Blocks([3]), 0.8), np.ones(1), False).at.scores
    assert scores == pytest.approx(expected, abs=1e-6)


# -- intervals --------------------------------------------------------------------------------------------------------
def grid_ends(log_likelihood_of_gaps, replies, std, level=0.95, reach=None, points=None):
    """Quantiles of the first score minus the second by a plain sum over a grid of differences to the first."""
    reach = reach or 14 * std
    axis = np.linspace(-reach, reach, points or (8001 if replies == 2 else 601))
    axes = np.meshgrid(*[axis] * (replies - 1), indexing="ij")
    scores = np.stack([np.zeros_like(axes[0]), *(-a for a in axes)])
    prior = -((scores**2).sum(0) - scores.sum(0) ** 2 / replies) / (2 * std**2)
    density = prior + log_likelihood_of_gaps(scores)
    mass = np.exp(density - density.max()).reshape(len(axis), -1).sum(1)
    below = (np.cumsum(mass) - mass / 2) / mass.sum()
    return np.interp([(1 - level) / 2, (1 + level) / 2], below, axis)


@pytest.mark.parametrize("std", [0.5, 1.0, 3.0])
@pytest.mark.parametrize(("wins", "losses"), [(0, 1), (4, 0), (5, 1), (20, 10), (60, 0)])
def test_the_interval_of_two_is_that_of_quadrature(std, wins, losses):
    parts = [choice(order, counts=n) for order, n in (((0, 1), wins), ((1, 0), losses)) if n]
    posterior = fit_posterior(ChoiceModel(parts, Blocks([2]), std), np.ones(1), False)
    expected = grid_ends(lambda s: -wins * np.logaddexp(0, s[1] - s[0]) - losses * np.logaddexp(0, s[0] - s[1]), 2, std)
    got = np.concatenate(contrast_ends(posterior.model, posterior.at, np.array([1.0, -1.0]), 0.95))
    assert got == pytest.approx(expected, abs=0.005 * (expected[1] - expected[0]))


@pytest.mark.parametrize("std", [1.0, 2.0, 4.0])
def test_the_interval_of_three_is_that_of_quadrature(std):
    rankings = [[0, 1, 2], [0, 2, 1], [1, 0, 2]]
    parts = [part for order in rankings for part in choices_of([[i] for i in order], 1)]
    posterior = fit_posterior(ChoiceModel(parts, Blocks([3]), std), np.ones(1), False)

    def of_gaps(s):
        first = sum(s[a] - np.logaddexp(np.logaddexp(s[0], s[1]), s[2]) for a, _, _ in rankings)
        return first + sum(s[b] - np.logaddexp(s[b], s[c]) for _, b, c in rankings)

    expected = grid_ends(of_gaps, 3, std, reach=8 * std)
    got = np.concatenate(contrast_ends(posterior.model, posterior.at, np.array([1.0, -1.0, 0.0]), 0.95))
    assert got == pytest.approx(expected, abs=0.005 * (expected[1] - expected[0]))


def test_a_normal_interval_would_be_too_narrow_where_labels_are_few():
    posterior = fit_posterior(ChoiceModel([choice((0, 1), counts=5)], Blocks([2]), 3.0), np.ones(1), False)
    along = np.array([1.0, -1.0])
    low, high = contrast_ends(posterior.model, posterior.at, along, 0.95)
    normal = 2 * 1.96 * np.sqrt(along @ posterior.covariance.reshape(2, 2) @ along)
    assert normal < 0.9 * (high - low)


def test_groups_are_independent_of_each_other():
    model = random_model(6, free_nu=False)
    posterior = fit_posterior(model, np.ones(3), False, log_nu=-0.5)
    along = np.array([1, -1, 0, 1, -1, 1, 0, 0, -1.0])
    together = contrast_marginals(model, posterior.at, along)
    for group in range(3):
        rows = model.blocks.group == group
        alone, point = only_group(model, group), replace(posterior.at, scores=posterior.at.scores[rows])
        single = contrast_marginals(alone, point, along[rows])
        assert single.means()[0] == pytest.approx(together.means()[group])
        assert single.quantiles(0.1)[0] == pytest.approx(together.quantiles(0.1)[group])
    many = copies(model, 3)
    again, _ = many.mode(at(np.zeros(27), -0.5, np.ones(3)))
    assert again.scores.reshape(3, 9) == pytest.approx(np.tile(posterior.at.scores, (3, 1)), abs=1e-6)


def test_the_common_temperature_is_not_pulled_towards_small_scores():
    """With 400 pairs and true temperature 1 the estimate is near 1; maximised jointly with the scores it grows.

    Its standard deviation is about 0.07: a false alarm in 5,000 at 0.25.
    """
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(400, 2))
    wins = generator.binomial(6, 1 / (1 + np.exp(scores[:, 1] - scores[:, 0])))
    starts = 2 * np.arange(400)[:, None]
    zeros = np.zeros(400, dtype=int)
    parts = [
        TierChoices(starts + np.array(order), 1, 1, n.astype(float), zeros)
        for order, n in (((0, 1), wins), ((1, 0), 6 - wins))
    ]
    posterior = fit_posterior(ChoiceModel(parts, Blocks([2] * 400), 1.0), np.ones(1), True)
    assert posterior.at.temperatures[0] == pytest.approx(1, abs=0.25)
