"""Estimators over groups of replies against their exact expectation over all K-tuples of a small world."""

import itertools
import math

import pytest
import torch

from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.returns import group_advantages, leave_one_out_advantages

torch.set_num_threads(1)
EPSILON = 1e-12  # in place of 1e-4, for closed forms


def world_and_policy(seed=0, scores=None):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(7, generator=generator, dtype=torch.float64) if scores is None else scores
    world = TokenWorld(3, 2, scores, eos=0)
    return world, torch.randn(1, world.num_prefixes, 3, generator=generator, dtype=torch.float64)


def expected_gradient(world, logits, size, advantages):
    """E over K independent replies of 1/K sum of A_k grad log pi(reply k), every tuple with its probability."""
    law, weights = world.law(logits)[0], torch.zeros(world.num_sequences, dtype=torch.float64)
    for tuple_of in itertools.product(range(world.num_sequences), repeat=size):
        probability = math.prod(float(law[n]) for n in tuple_of)
        found = advantages(world.scores[0, list(tuple_of)][None])[0]
        for n, advantage in zip(tuple_of, found.tolist(), strict=True):
            weights[n] += probability * advantage / size
    return world.score_gradient(logits, weights[None])


@pytest.mark.parametrize("size", [2, 3])
def test_leave_one_out_is_unbiased_and_the_groups_mean_is_short_by_one_part_in_k(size):
    world, logits = world_and_policy()
    exact = world.reward_gradient(logits)
    assert exact.norm() > 0.3
    others = expected_gradient(world, logits, size, leave_one_out_advantages)
    torch.testing.assert_close(others, exact, atol=1e-12, rtol=0)
    group = expected_gradient(world, logits, size, lambda r: group_advantages(r, scale=False))
    torch.testing.assert_close(group, (size - 1) / size * exact, atol=1e-12, rtol=0)


def test_two_replies_divided_by_their_spread_know_only_who_is_better():
    world, logits = world_and_policy()
    law, scores = world.law(logits)[0], world.scores[0]
    signs = torch.sign(scores[:, None] - scores[None, :]) @ law / math.sqrt(2)  # the spread of two is |r - s| / sqrt(2)
    found = expected_gradient(world, logits, 2, lambda r: group_advantages(r, epsilon=EPSILON))
    torch.testing.assert_close(found, world.score_gradient(logits, (law * signs)[None]), atol=1e-9, rtol=0)
    exact = world.reward_gradient(logits)
    cosine = float((found * exact).sum() / (found.norm() * exact.norm()))
    assert 0.5 < cosine < 0.999  # another direction, not another length


def factor(p, size):
    """Expected gradient over that of p, for rewards of 1 with probability p and else 0."""
    counts = torch.arange(size + 1, dtype=torch.float64)
    law = torch.distributions.Binomial(size, torch.tensor(p, dtype=torch.float64)).log_prob(counts).exp()
    spread = (law * (counts * (size - counts)).sqrt()).sum()
    return float(spread) * math.sqrt((size - 1) / size) / size / (p * (1 - p))


@pytest.mark.parametrize("size", [2, 3])
def test_rewards_of_0_and_1_have_the_closed_factor(size):
    world, logits = world_and_policy(scores=torch.tensor([0.0, 1, 0, 0, 1, 0, 0], dtype=torch.float64))
    p = float(world.expected_reward(world.law(logits)))
    found = expected_gradient(world, logits, size, lambda r: group_advantages(r, epsilon=EPSILON))
    exact = world.reward_gradient(logits)
    assert exact.norm() > 0.1
    torch.testing.assert_close(found, factor(p, size) * exact, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("size", "rare", "even"), [(4, 1.48, 1.40), (64, 4.30, 1.97)])
def test_rare_success_weighs_more(size, rare, even):
    """Known values: prompts with one success in twenty beside prompts with one in two."""
    assert factor(0.05, size) == pytest.approx(rare, abs=0.005)
    assert factor(0.5, size) == pytest.approx(even, abs=0.005)
