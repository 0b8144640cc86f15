"""The fit of a linear reward equals its definition, and finds what is linear in the states."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from toy_models import word_model

from rlhf_lab.maths.acquisition import preference_curvature
from rlhf_lab.maths.intervals import proportion_interval
from rlhf_lab.recipes.few_labels import (
    FEW,
    Differences,
    LinearRewardConfig,
    are_few,
    cautious,
    cross_validate,
    differences,
    fit_weights,
    reply_states,
    train_linear_reward,
    typical,
)
from rlhf_lab.recipes.reward_data import prepare_feedback
from rlhf_lab.recipes.rlhf import RLHFConfig
from rlhf_lab.records import Choice, Comparison, Ranking, as_conversation

torch.set_num_threads(1)
WORDS = ("a", "b", "c", "d")
SHORT = LinearRewardConfig(max_new_tokens=8)


@pytest.fixture(scope="module")
def lm():
    return word_model()


def pairs_of(seed, count=40, width=5):
    rng = np.random.default_rng(seed)
    return Differences(rng.normal(size=(count, width)), rng.uniform(0.2, 2, count), np.repeat(np.arange(count // 4), 4))


def loss(pairs, weights, ridge):
    return (pairs.weights * np.logaddexp(0, -pairs.x @ weights)).sum() + ridge / 2 * weights @ weights


@pytest.mark.parametrize("ridge", [0.1, 1.0, 10.0])
def test_the_weights_minimise_the_loss_of_the_docstring(ridge):
    pairs = pairs_of(1)
    best = minimize(lambda w: loss(pairs, w, ridge), np.zeros(5), tol=1e-12, method="BFGS")
    assert fit_weights(pairs, ridge) == pytest.approx(best.x, abs=1e-4)


def test_the_curvature_is_the_second_derivative():
    pairs, ridge, step = pairs_of(2), 0.7, 1e-3
    weights = np.linspace(-1, 1, 5)
    found = preference_curvature(*map(torch.from_numpy, (pairs.x, weights)), ridge, torch.from_numpy(pairs.weights))
    for i in range(5):
        for j in range(5):
            a, b = np.eye(5)[i] * step, np.eye(5)[j] * step
            corners = [loss(pairs, weights + s * a + t * b, ridge) * s * t for s in (1, -1) for t in (1, -1)]
            assert found[i, j] == pytest.approx(sum(corners) / (4 * step**2), abs=1e-4)


def test_an_order_of_four_counts_as_three_choices_and_ties_as_none(lm):
    a_to_d = ("a", "b", "c", "d")
    records = [
        Ranking(as_conversation("a b"), a_to_d, ((2,), (0,), (1,), (3,))),
        Ranking(as_conversation("c"), a_to_d, ((1,), (0, 2, 3))),
        Choice(as_conversation("d"), "a", "b", outcome=-1),
        Comparison(as_conversation("d"), "a", "c"),
    ]
    judged = prepare_feedback(lm, records, "bradley_terry", 8).judged
    states = reply_states(lm, judged)
    pairs = differences(states, judged)
    assert np.bincount([0] * 6 + [1] * 3 + [2] + [3], pairs.weights).tolist() == pytest.approx([3, 1, 1, 1])
    assert pairs.prompts.tolist() == [0] * 6 + [1] * 3 + [2, 2]
    best_to_second = states[0][0] - states[0][1]  # replies stand best first
    assert pairs.x[0] == pytest.approx(best_to_second)


def test_two_replies_to_a_prompt_are_one_apart(lm):
    rng = np.random.default_rng(0)
    states = [rng.normal(size=(4, 6)) * np.arange(1, 7) + rng.normal(size=6) * 50 for _ in range(2000)]
    centre, scale = typical(states)
    assert centre == pytest.approx(np.concatenate(states).mean(0))
    apart = np.mean([((h[0] - h[1]) / scale) @ ((h[0] - h[1]) / scale) for h in states])
    assert apart == pytest.approx(1, abs=0.03)
    constant = [np.column_stack([h, np.ones(4)]) for h in states]  # a coordinate that never moves divides nothing by 0
    assert np.isfinite(np.concatenate(constant) / typical(constant)[1]).all()


def rankings_by(utility, count, seed, noise=0.3):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        prompt = " ".join(rng.choice(WORDS, 3))
        replies = tuple(dict.fromkeys(" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(4)))
        if len(replies) > 1:
            worth = np.array([utility(reply) for reply in replies]) + noise * rng.gumbel(size=len(replies))
            found.append(Ranking(as_conversation(prompt), replies, tuple((int(i),) for i in np.argsort(-worth))))
    return found


def share_of_a(reply):
    return 3 * reply.split().count("a") / len(reply.split())


def test_it_learns_what_the_rater_likes_and_says_how_well(lm):
    records = rankings_by(share_of_a, 60, 0)
    result = train_linear_reward(lm, records, SHORT)
    right = []
    for record in rankings_by(share_of_a, 300, 1, noise=1e-6):
        score = result.model.score([record.prompt] * len(record.replies), record.replies)
        worth = [share_of_a(reply) for reply in record.replies]
        right += [float(score[b] > score[w]) for b, w in record.pairs() if worth[b] != worth[w]]
    assert np.mean(right) > 0.75
    assert result.held_out_accuracy.verdict == "above 0.5"
    assert (result.used, result.unused, result.interrupted) == (len(records), 0, False)
    scores = torch.cat([result.model.score([r.prompt] * len(r.replies), r.replies) for r in records])
    assert (float(scores.mean()), float(scores.std())) == (pytest.approx(0, abs=1e-4), pytest.approx(1, abs=1e-4))


def test_of_labels_that_say_nothing_it_rarely_says_that_they_do(lm):
    """Orders drawn at random: the lower end of the interval of 97.5 % one-sided is above one half rarely. The ridge is
    the best of five, so the rate is above 2.5 %; 40 runs allow 5 (probability of more at a rate of 5 %: 1.4 %)."""
    claims = [
        train_linear_reward(lm, rankings_by(lambda reply: 0.0, 40, seed), SHORT).held_out_accuracy.verdict
        == "above 0.5"
        for seed in range(40)
    ]
    assert sum(claims) <= 5


def test_the_ridge_is_chosen_by_prompts_that_are_left_out(lm):
    records = rankings_by(share_of_a, 30, 5)
    result = train_linear_reward(lm, records, replace(SHORT, folds=1000))
    judged = prepare_feedback(lm, records, "bradley_terry", 8).judged
    states = reply_states(lm, judged)
    centre, scale = typical(states)
    pairs = differences([(h - centre) / scale for h in states], judged)
    for row, ridge in enumerate(LinearRewardConfig().ridges):
        total = 0.0
        for prompt in set(pairs.prompts.tolist()):  # by hand: each prompt alone is left out
            out = pairs.prompts == prompt
            w = fit_weights(Differences(pairs.x[~out], pairs.weights[~out], pairs.prompts[~out]), ridge)
            total += loss(Differences(pairs.x[out], pairs.weights[out], pairs.prompts[out]), w, 0.0)
        assert result.history.rows[row]["held_out_loss"] == pytest.approx(total / pairs.weights.sum(), abs=1e-6)
    losses = result.history.column("held_out_loss")[1]
    assert result.ridge == LinearRewardConfig().ridges[int(losses.argmin())]


def test_eight_held_out_prompts_that_are_all_right_are_not_certainty():
    pairs = Differences(np.ones((8, 1)), np.ones(8), np.arange(8))
    row = cross_validate(pairs, LinearRewardConfig()).rows[0]
    assert (row["held_out_accuracy"], row["held_out_accuracy_high"]) == (1, 1)
    assert row["held_out_accuracy_low"] == pytest.approx(proportion_interval(8, 8).low)


def test_too_little_and_bad_settings_are_said(lm):
    few = rankings_by(share_of_a, 5, 0)
    with pytest.raises(ValueError, match="preferences on 5 prompts'; expected at least 8 prompts"):
        train_linear_reward(lm, few, SHORT)
    with pytest.raises(ValueError, match="ridges"):
        LinearRewardConfig(ridges=(0.0,))
    with pytest.raises(ValueError, match="folds"):
        LinearRewardConfig(folds=1)


def test_the_leash_is_stiffer_where_labels_say_less(lm):
    config = RLHFConfig(iterations=60, kl_coef=0.1)
    clear, vague = (train_linear_reward(lm, rankings_by(share_of_a, 60, 0, noise), SHORT).model for noise in (0.1, 3.0))
    assert vague.score_std < clear.score_std
    assert cautious(config, vague).kl_coef > cautious(config, clear).kl_coef
    assert cautious(config, clear).kl_coef == pytest.approx(0.2 / clear.score_std)
    assert [cautious(replace(config, iterations=n), clear).iterations for n in (3, 60)] == [3, 9]


def test_few_are_fewer_than_600_choices_on_at_least_eight_prompts(lm):
    records = rankings_by(share_of_a, 300, 0)
    by_hand = sum(len(record.tiers) - 1 for record in records)
    assert by_hand > 600 == FEW
    assert not are_few(records)
    assert are_few(records[:60])
    one_prompt = [replace(record, prompt=records[0].prompt) for record in records[:60]]
    assert not are_few(one_prompt)
    assert are_few(records, below=by_hand + 1)
