"""Soft values and visits against their definitions: the entropy they buy, limits, sums over time."""

import pytest
import torch
from toy_processes import random_mdp

from rlhf_lab.maths.landscapes import terrain
from rlhf_lab.maths.mdp import chain, expected_return, gridworld, value_iteration
from rlhf_lab.maths.soft import soft_value_iteration, state_action_visits

CASES = [(0.9, None, False), (0.9, None, True), (1.0, 3, False), (0.7, 4, True), (0.0, None, False)]


def random_policy(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)


def carried_forward(mdp, policy, steps):
    """Visits by the definition, a step at a time."""
    law, total, goes_on = mdp.start.clone(), torch.zeros_like(mdp.rewards), (~mdp.absorbing).double()
    for t in range(steps):
        taken = law[:, None] * (policy[t] if policy.dim() == 3 else policy)
        total += mdp.gamma**t * taken * goes_on[:, None]
        law = torch.einsum("sa,sat->t", taken, mdp.transitions)
    return total


@pytest.mark.parametrize(("gamma", "horizon", "ends"), CASES)
@pytest.mark.parametrize("seed", range(3))
def test_visits_are_the_sum_over_time(seed, gamma, horizon, ends):
    mdp = random_mdp(seed, gamma, horizon, ends)
    policies = [random_policy(seed, 4, 2)] + ([random_policy(seed, horizon, 4, 2)] if horizon else [])
    for policy in policies:
        expected = carried_forward(mdp, policy, horizon or 300)
        torch.testing.assert_close(state_action_visits(mdp, policy), expected, rtol=0, atol=1e-10)
    earned = (state_action_visits(mdp, policies[0]) * mdp.rewards).sum()
    assert float(earned) == pytest.approx(float(expected_return(mdp, policies[0])), abs=1e-10)


@pytest.mark.parametrize(("gamma", "horizon", "ends"), CASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_soft_policy_earns_its_value_and_no_other_earns_more(seed, gamma, horizon, ends):
    """E[sum gamma^t (r - temperature log pi)] of the soft-optimal policy is E_start[V], and less of any other."""
    mdp, temperature = random_mdp(seed, gamma, horizon, ends), 0.4
    values, policy = soft_value_iteration(mdp, temperature)
    at_start = float(mdp.start @ (values if horizon is None else values[0]))

    def bought(chosen):
        total, law = 0.0, mdp.start.clone()
        for t in range(horizon or 300):
            row = chosen[t] if chosen.dim() == 3 else chosen
            paid = (row * (mdp.rewards - temperature * row.log())).sum(1) * (~mdp.absorbing).double()
            total += float(mdp.gamma**t * law @ paid)
            law = torch.einsum("s,sa,sat->t", law, row, mdp.transitions)
        return total

    assert bought(policy) == pytest.approx(at_start, abs=1e-9)
    for other in range(5):
        changed = policy * torch.exp(0.3 * torch.randn(policy.shape, generator=torch.Generator().manual_seed(other)))
        assert bought(changed / changed.sum(-1, keepdim=True)) < at_start - 1e-6


def test_towards_zero_temperature_it_is_value_iteration():
    for mdp in (gridworld(["S..", ".#O", "..G"], slip=0.2), random_mdp(1, 1.0, 3)):
        values, _ = value_iteration(mdp)
        soft, policy = soft_value_iteration(mdp, 1e-4)
        assert float((soft - values).abs().max()) < 2e-3
        assert bool((policy.sum(-1) - 1).abs().max() < 1e-12)


def test_gamma_one_ends_or_is_refused():
    paying = chain(2, step_reward=-2.0)
    values, policy = soft_value_iteration(paying)
    torch.testing.assert_close(values[1].exp(), (values[0] - 2).exp() + torch.tensor(-1.0).double().exp())
    assert float(values[-1]) == 0.0
    assert float(policy[1, 1]) == pytest.approx(float((-1 - values[1]).exp()))
    with pytest.raises(ValueError, match="lower gamma"):
        soft_value_iteration(chain(2))  # walking in circles costs nothing and has entropy


def test_other_rewards_do_not_reach_the_end():
    mdp = random_mdp(0, ends=True)
    rewards = torch.ones(4, 2)
    values, _ = soft_value_iteration(mdp, 0.5, rewards)
    rewards[3] = 100.0
    again, _ = soft_value_iteration(mdp, 0.5, rewards)
    assert torch.equal(values, again)


def test_arguments_are_named():
    mdp = random_mdp(0)
    with pytest.raises(ValueError, match="temperature is 0"):
        soft_value_iteration(mdp, 0)
    with pytest.raises(ValueError, match=r"rewards has shape \(4,\)"):
        soft_value_iteration(mdp, rewards=torch.ones(4))
    with pytest.raises(ValueError, match="not all finite"):
        soft_value_iteration(mdp, rewards=torch.full((4, 2), torch.nan))
    with pytest.raises(ValueError, match=r"policy has shape \(2, 4, 2\)"):
        state_action_visits(random_mdp(0, horizon=3), random_policy(0, 2, 4, 2))


# -- maps -------------------------------------------------------------------------------------------------------------
def test_a_map_leads_where_it_says():
    field = terrain(["S.", "#G"], {"G": 2.0}, slip=0.2)
    assert field.states == ("0,0", "0,1", "1,1")
    assert field.rewards.tolist() == [[0.0] * 4] * 2 + [[2.0] * 4]
    east, south = field.transitions[:, 1], field.transitions[:, 2]
    torch.testing.assert_close(east[0], torch.tensor([0.2, 0.8, 0.0]).double())
    torch.testing.assert_close(south[1], torch.tensor([0.1, 0.1, 0.8]).double())


def test_a_closed_cell_is_not_entered_and_a_turned_compass_turns():
    open_map, closed = (terrain(["S.G"], {}, closed=shut) for shut in ((), ("0,2",)))
    assert float(open_map.transitions[1, 1, 2]) == 1
    assert float(closed.transitions[1, 1, 1]) == 1
    assert float(closed.transitions[2, 3, 1]) == 1  # out of it one may walk
    turned = terrain(["S.G"], {}, turned=3)
    assert torch.equal(turned.transitions[:, 2], open_map.transitions[:, 1])  # south leads east


def test_maps_that_cannot_be_are_refused():
    for rows, more, message in (
        (["S.", "."], {}, "rows of the same length"),
        (["..", ".."], {}, "no start"),
        (["S."], {"slip": 1.5}, "slip is 1.5"),
        (["S."], {"closed": ["5,5"]}, "'5,5'"),
    ):
        with pytest.raises(ValueError, match=message):
            terrain(rows, {}, **more)
