"""The rules choose what their formulas say, from linear rewards and ensembles; only recorded times are told."""

import math
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from scipy.stats import binom
from toy_models import word_model

from rlhf_lab.feedback.choice import (
    RULES,
    QuestionPool,
    choose,
    ensemble_pool,
    linear_pool,
    question_pool,
    seconds_per_label,
)
from rlhf_lab.maths.acquisition import members_information, mutual_information
from rlhf_lab.models.ensemble import RewardEnsemble
from rlhf_lab.models.linear_reward import LinearReward
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.records import Choice, Edit, Event, Ranking, Rating, Skip

torch.set_num_threads(1)
PROMPTS = ["a b", "c", "d d", "b"]
REPLIES = [("a", "b c", "d"), ("c", "c"), ("d a b", "a"), ("b", "c", "d d", "a c")]  # the second asks nothing


def features(seed=0, sizes=(3, 1, 2, 4, 4, 2), width=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, width, generator=generator, dtype=torch.float64) for size in sizes]


def posterior(seed=1, width=5):
    generator = torch.Generator().manual_seed(seed)
    weights, root = torch.randn(width, generator=generator), torch.randn(width, width, generator=generator)
    return weights.double(), (root @ root.T / width + 0.05 * torch.eye(width)).double()


@pytest.fixture(scope="module")
def lm():
    return word_model()


@pytest.fixture(scope="module")
def linear(lm):
    weights, covariance = posterior(width=lm.model.config.hidden_size)
    width = len(weights)
    one = torch.ones(width, dtype=torch.float64)
    return LinearReward(lm, 0 * one, one, weights, covariance, 0.3, 2.0)


@pytest.fixture(scope="module")
def ensemble(lm):
    members = [RewardModel.from_language_model(lm, torch.Generator().manual_seed(i)) for i in range(4)]
    for i, member in enumerate(members):
        member.score_mean, member.score_std = 0.1 * i, 0.5 + i  # each in a unit of its own
    return RewardEnsemble(tuple(members), pessimism=1.0)


# -- pools ------------------------------------------------------------------------------------------------------------
def test_a_linear_pool_is_the_posterior_of_each_difference():
    parts, (weights, covariance) = features(), posterior()
    pool = linear_pool(parts, weights, covariance)
    assert pool.means.shape == (6, 6)
    for prompt, part in enumerate(parts):
        pairs = [part[i] - part[j] for i, j in combinations(range(len(part)), 2)]
        there = pool.choices[prompt] > 0
        assert pool.means[prompt][there].tolist() == pytest.approx([float(x @ weights) for x in pairs])
        variances = [float(x @ covariance @ x) for x in pairs]
        assert (pool.deviations[prompt][there] ** 2).tolist() == pytest.approx(variances)
        assert float(pool.choices[prompt].sum()) == pytest.approx(len(part) - 1)  # an order of K is K - 1 choices


def test_an_ensemble_pool_has_the_mean_and_covariance_of_its_members():
    scores = features(width=4)  # [K, M]
    pool = ensemble_pool(scores)
    difference = scores[0][0] - scores[0][2]
    assert float(pool.means[0, 1]) == pytest.approx(float(difference.mean()))
    assert float(pool.deviations[0, 1]) == pytest.approx(float(difference.std()))
    other = scores[3][1] - scores[3][2]
    assert float(pool.roots[0, 1] @ pool.roots[3, 3]) == pytest.approx(
        float(torch.cov(torch.stack([difference, other]))[0, 1])
    )
    assert pool.members[:, 0, 1].tolist() == pytest.approx(difference.tolist())
    with pytest.raises(ValueError, match="at least 2; train_reward_ensemble"):
        ensemble_pool([torch.ones(2, 1)])


def test_pools_of_rewards_are_in_log_odds_and_a_reply_counts_once(linear, ensemble):
    for reward in (linear, ensemble):
        pool = question_pool(reward, PROMPTS, REPLIES)
        assert (pool.choices > 0).sum(1).tolist() == [3, 0, 1, 6]
        if isinstance(reward, LinearReward):
            raw = reward.score(["d d"] * 2, REPLIES[2]).double() * reward.score_std + reward.score_mean
            assert float(pool.means[2, 0]) == pytest.approx(float(raw[0] - raw[1]), abs=1e-5)
        else:
            raw = [m.score(["d d"] * 2, REPLIES[2]).double() * m.score_std + m.score_mean for m in reward.members]
            expected = [float(one[0] - one[1]) for one in raw]
            assert pool.members[:, 2, 0].tolist() == pytest.approx(expected, abs=1e-5)
        for rule in RULES:
            assert 1 not in choose(rule, pool, 3)
    with pytest.raises(ValueError, match="replies is '1 lists'; expected one for each of 4 prompts"):
        question_pool(linear, PROMPTS, REPLIES[:1])


# -- rules ------------------------------------------------------------------------------------------------------------
def brute_force(pool, value):
    means = [
        sum(value(i, j) for j in range(pool.means.shape[1]) if pool.choices[i, j] > 0)
        / max(1, int((pool.choices[i] > 0).sum()))
        for i in range(len(pool))
    ]
    return sorted((i for i in range(len(pool)) if (pool.choices[i] > 0).any()), key=lambda i: -means[i])


@pytest.mark.parametrize("kind", ["linear", "ensemble"])
@pytest.mark.parametrize("seed", range(3))
def test_rules_take_the_highest_values(kind, seed):
    pool = linear_pool(features(seed), *posterior(seed)) if kind == "linear" else ensemble_pool(features(seed))
    p = torch.sigmoid(pool.means)
    order = brute_force(pool, lambda i, j: -abs(float(p[i, j]) - 0.5))
    assert choose("uncertainty", pool, 5) == order
    order = brute_force(pool, lambda i, j: float(pool.deviations[i, j]) ** 2)
    assert choose("variance", pool, 5) == order
    if kind == "linear":
        information = mutual_information(pool.means, pool.deviations)
    else:
        information = members_information(pool.members)
    assert choose("bald", pool, 3) == brute_force(pool, lambda i, j: float(information[i, j]))[:3]


def test_d_optimal_is_greedy_on_the_precision_of_the_weights():
    parts, (weights, covariance) = features(4), posterior(4)

    def volume(asked):
        precision = torch.linalg.inv(covariance)
        for i in asked:
            for a, b in combinations(range(len(parts[i])), 2):
                x = parts[i][a] - parts[i][b]
                p = torch.sigmoid(x @ weights)
                precision = precision + 2 / len(parts[i]) * p * (1 - p) * torch.outer(x, x)
        return float(torch.logdet(precision))

    usable, taken = [0, 2, 3, 4, 5], []
    while len(taken) < 4:
        taken.append(max((i for i in usable if i not in taken), key=lambda i: volume([*taken, i])))
    pool = linear_pool(parts, weights, covariance)
    assert choose("d_optimal", pool, 4) == taken
    assert taken[0] not in choose("d_optimal", pool, 4, already=[taken[0]])


def test_a_batch_of_copies_is_seen_by_d_optimality_alone():
    copies = [torch.tensor([[4.0, 0.0], [0.0, 0.0]])] * 3 + [torch.tensor([[0.0, 2.0], [0.0, 0.0]])]
    pool = linear_pool(copies, torch.zeros(2), torch.eye(2))
    assert 3 in choose("d_optimal", pool, 2)
    for rule in ("variance", "bald"):
        assert 3 not in choose(rule, pool, 2)


def test_equals_are_drawn_and_the_draw_is_reproducible():
    pool = linear_pool([torch.eye(2)] * 40, torch.zeros(2), torch.eye(2))  # before any label all prompts are alike
    for rule in RULES:
        draws = [tuple(choose(rule, pool, 3, generator=torch.Generator().manual_seed(i))) for i in range(4)]
        assert len(set(draws)) == 4
        assert choose(rule, pool, 3) == choose(rule, pool, 3)


def test_random_draws_every_prompt_equally_often():
    """Each of 5 usable prompts is expected in 2 of 5 draws of 400: outside 127 to 194 with a chance of 3e-4 each."""
    pool, generator = linear_pool(features(), *posterior()), torch.Generator().manual_seed(0)
    counts = torch.bincount(
        torch.tensor([choose("random", pool, 2, generator=generator) for _ in range(400)]).flatten()
    )
    assert counts[1] == 0
    assert all(127 <= int(counts[i]) <= 194 for i in (0, 2, 3, 4, 5))
    assert 2 * (binom.cdf(126, 400, 0.4) + binom.sf(194, 400, 0.4)) < 1.5e-3


def test_what_cannot_be_asked_is_refused():
    pool = linear_pool(features(), *posterior())
    with pytest.raises(ValueError, match="rule is 'best'; expected one of"):
        choose("best", pool, 1)
    with pytest.raises(ValueError, match="count is 5; expected 1 to 4, the prompts that have two"):
        choose("random", pool, 5, already=[0])
    with pytest.raises(ValueError, match="already is"):
        choose("random", pool, 1, already=[6])
    with pytest.raises(ValueError, match="count is 0"):
        choose("random", pool, 0)
    with pytest.raises(ValueError, match="replies is 'no prompts'"):
        linear_pool([], *posterior())
    assert isinstance(pool, QuestionPool)
    assert len(pool) == 6


# -- seconds ----------------------------------------------------------------------------------------------------------
def event(name, record, seconds, **more):
    return Event(name, record, duration=seconds, **more)


def test_times_are_those_recorded_of_people_by_form():
    ranked = Ranking("Hi", ("a", "b"), ((0,), (1,)))
    events = [event(f"r{i}", ranked, 10.0 + i) for i in range(6)]
    events += [event("invented", replace(ranked, simulated=True), 1.0), event("untimed", ranked, 0.0)]
    events += [event("skipped", Ranking("Hi", ("a", "b"), (), "skipped"), 1.0), event("skip", Skip("Hi", "rate"), 2.0)]
    events += [event("first", Rating("Hi", "a", 2), 90.0), event("second", Rating("Hi", "a", 4), 4.0, target="first")]
    events += [event("bad", Ranking("Hi", ("a", "b"), (), "all_bad"), 16.0)]
    found = seconds_per_label(events)
    assert (found["rank"].median, found["rank"].count) == (13.0, 7)
    assert (found["rate"].median, found["rate"].count) == (4.0, 1)
    assert str(found["rate"]) == "4.0 s [0.0, inf] of 1"
    assert [form for form, seconds in found.items() if str(seconds) == "not known"] == [
        "compare", "compare segments", "edit", "mark", "comment",
    ]  # fmt: skip
    assert all(str(seconds) == "not known" for seconds in seconds_per_label([]).values())
    others = [event("c", Choice("Hi", "a", "b", 0), 3.0), event("e", Edit("Hi", "a", "b"), 30.0)]
    found = seconds_per_label(others)
    assert (found["compare"].median, found["edit"].median) == (3.0, 30.0)


@pytest.mark.parametrize("count", [1, 5, 6, 9, 20, 41])
def test_the_interval_of_the_median_misses_no_more_often_than_it_says(count):
    """Exactly: the k-th smallest of n lies above the median when fewer than k lie below it."""
    times = [event(str(i), Rating("Hi", "a", 3), 1.0 + i) for i in range(count)]
    found = seconds_per_label(times)["rate"]
    below = round(found.low)  # the k of the k-th smallest, 0 where there is no end
    assert binom.cdf(below - 1, count, 0.5) <= 0.025 < binom.cdf(below, count, 0.5)
    assert found.high == (count + 1 - below if below else math.inf)
    assert found.median == (count + 1) / 2
