"""Distances of rewards: what they must not see, and what they must."""

from dataclasses import replace

import pytest
import torch
from toy_processes import normals, random_mdp

from rlhf_lab.evaluation.irl import (
    canonical_reward,
    clone_behaviour,
    judge_irl,
    occupancy_distance,
    reward_distance,
)
from rlhf_lab.maths.landscapes import terrain
from rlhf_lab.maths.mdp import expected_return, gridworld
from rlhf_lab.maths.soft import soft_value_iteration, state_action_visits


def shaped(mdp, potential):
    """The rewards with a potential added, as the process expects it."""
    potential = potential * (~mdp.absorbing).double()
    return mdp.rewards + mdp.gamma * (mdp.transitions @ potential) - potential[:, None]


@pytest.mark.parametrize(("gamma", "ends"), [(0.9, False), (0.9, True), (1.0, True), (0.0, False)])
@pytest.mark.parametrize("seed", range(4))
def test_potentials_and_scale_are_not_seen_and_a_changed_reward_is(seed, gamma, ends):
    mdp = random_mdp(seed, gamma, ends=ends)
    other = shaped(mdp, 5 * normals(seed, 4))
    assert float((other - mdp.rewards).abs().max()) > 1
    assert reward_distance(mdp, mdp.rewards, other) < 1e-7
    assert reward_distance(mdp, mdp.rewards, 3 * other) < 1e-7
    assert reward_distance(mdp, mdp.rewards, -2 * other) == pytest.approx(1.0)
    changed = other.clone()
    changed[0, 0] += 0.5
    assert reward_distance(mdp, mdp.rewards, changed) > 0.01
    assert reward_distance(mdp, other, changed) == pytest.approx(reward_distance(mdp, mdp.rewards, changed))


def test_the_potential_of_one_process_is_a_reward_of_another():
    """A reward that is right in the dynamics it was learned in may be wrong in others."""
    mdp, changed = random_mdp(0), random_mdp(1)
    other = shaped(mdp, 5 * normals(0, 4))
    assert reward_distance(mdp, mdp.rewards, other) < 1e-7
    assert reward_distance(changed, mdp.rewards, other) > 0.1


def test_distance_zero_means_one_order_of_all_policies():
    """Shaped and scaled rewards put 20 policies in the order of the true one; an unrelated one does not."""
    mdp = random_mdp(2)
    policies = [normals(i, 4, 2).softmax(1) for i in range(20)]
    earned = lambda rewards: torch.stack([expected_return(replace(mdp, rewards=rewards), pi) for pi in policies])  # noqa: E731
    true, same, unrelated = map(earned, (mdp.rewards, 2 * shaped(mdp, normals(9, 4)), normals(5, 4, 2)))
    assert torch.equal(true.argsort(), same.argsort())
    assert not torch.equal(true.argsort(), unrelated.argsort())


def test_a_reward_without_any_preference():
    mdp = random_mdp(0)
    potential = shaped(mdp, normals(0, 4)) - mdp.rewards
    constant = torch.full((4, 2), 7.0)
    assert reward_distance(mdp, mdp.rewards, potential) == pytest.approx(0.5)
    assert reward_distance(mdp, constant, potential) == 0.0
    assert float(canonical_reward(mdp, mdp.rewards).sum(1).abs().max()) < 1e-12


def test_with_a_horizon_potentials_are_not_free():
    with pytest.raises(ValueError, match="horizon is 3"):
        reward_distance(replace(random_mdp(0), horizon=3), torch.ones(4, 2), torch.ones(4, 2))


def test_occupancy_distance_by_hand():
    one, other = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [0.0, 2.0]])
    assert occupancy_distance(one, other) == 0.5
    assert occupancy_distance(one, 3 * one) == 0.0
    assert occupancy_distance(one, torch.tensor([[0.0, 1.0], [0.0, 0.0]])) == 1.0
    for bad in (torch.zeros(2, 2), -one):
        with pytest.raises(ValueError, match="second sums to"):
            occupancy_distance(one, bad)
    with pytest.raises(ValueError, match="second has shape"):
        occupancy_distance(one, torch.ones(2, 3))


def test_cloning_visits_what_the_demonstrators_visit():
    mdp = gridworld(["S..", ".#O", "..G"], slip=0.2)
    _, policy = soft_value_iteration(mdp, 0.1)
    visits = state_action_visits(mdp, policy)
    cloned = clone_behaviour(visits)
    assert occupancy_distance(visits, state_action_visits(mdp, cloned)) < 1e-12
    assert torch.equal(cloned[-1], torch.full((4,), 0.25).double())


def test_the_report_holds_what_it_says():
    """The true reward is at distance 0 and earns the most; its opposite earns less than chance."""
    rows, pays = ["S..", ".~.", "..G"], {"G": 1.0, "~": -1.0}
    mdp, changed = terrain(rows, pays), terrain(rows, pays, turned=2)
    _, policy = soft_value_iteration(mdp, 0.3)
    visits = state_action_visits(mdp, policy)
    right = judge_irl(mdp, changed, visits, 2 * mdp.rewards + 1, policy)
    assert right.reward_distance < 1e-7
    assert right.reward_distance_changed < 1e-7
    assert right.learned_return == pytest.approx(right.best_return)
    assert right.occupancy_distance < 1e-12
    assert right.cloned_occupancy_distance < 1e-12
    assert max(right.cloned_return, right.uniform_return) < 0 < right.best_return
    wrong = judge_irl(mdp, changed, visits, -mdp.rewards, torch.full_like(policy, 0.25))
    assert wrong.reward_distance == pytest.approx(1)
    assert wrong.learned_return < wrong.uniform_return
    assert wrong.occupancy_distance > 0.1
    with pytest.raises(ValueError, match=r"changed has \(2, 4\)"):
        judge_irl(mdp, terrain(["SG"], {}), visits, mdp.rewards, policy)
