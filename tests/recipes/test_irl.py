"""Maximum causal entropy inverse RL against its likelihood, and the discriminator's reward in a world of known laws."""

from dataclasses import replace

import pytest
import torch
from toy_processes import normals, random_mdp

from rlhf_lab.evaluation.irl import judge_irl, occupancy_distance, reward_distance
from rlhf_lab.experience.episodes import collect_episodes, open_envs
from rlhf_lab.maths.exact import TokenWorld
from rlhf_lab.maths.landscapes import terrain
from rlhf_lab.maths.soft import soft_value_iteration, state_action_visits
from rlhf_lab.models.policies import TabularPolicy, sampling
from rlhf_lab.recipes.irl import (
    IRLConfig,
    _Likelihood,
    demonstrated_visits,
    discriminator_labels,
    discriminator_reward,
    state_action_features,
    state_features,
    train_irl,
)
from rlhf_lab.recipes.reward_data import as_feedback
from rlhf_lab.records import Demonstration, as_conversation
from rlhf_lab.worlds.envs import TabularEnv

ROWS, PAYS = ["S....", ".~~~.", "..~..", ".~~~.", "....G"], {"G": 1.0, "~": -1.0}


def log_likelihood(mdp, demonstrators, rewards, temperature):
    """sum over t of gamma^t E[log pi(a_t | s_t)] of demonstrators with this policy, a step at a time."""
    _, policy = soft_value_iteration(mdp, temperature, rewards)
    total, law, goes_on = 0.0, mdp.start, (~mdp.absorbing).double()
    for t in range(mdp.horizon or 400):
        taken = law[:, None] * demonstrators
        logs = (policy[t] if policy.dim() == 3 else policy).log()
        total = total + mdp.gamma**t * (taken * goes_on[:, None] * logs).sum()
        law = torch.einsum("sa,sat->t", taken, mdp.transitions)
    return float(total)


@pytest.mark.parametrize(("gamma", "horizon", "ends"), [(0.9, None, False), (0.8, None, True), (1.0, 4, True)])
def test_the_gradient_is_that_of_the_exact_log_likelihood(gamma, horizon, ends):
    """Against central differences of the likelihood as it is defined, at random weights, for demonstrators that are no
    soft-optimal ones."""
    mdp, temperature, l2 = random_mdp(0, gamma, horizon, ends), 0.7, 0.05
    demonstrators, features = normals(1, 4, 2).softmax(1), normals(2, 4, 2, 3)
    visits = state_action_visits(mdp, demonstrators)
    problem = _Likelihood(
        mdp, features * (~mdp.absorbing).double()[:, None, None], visits, IRLConfig(temperature=temperature, l2=l2)
    )
    weights = normals(3, 3)
    problem.weights.data.copy_(weights)
    loss = float(problem.closure())
    posterior = lambda w: log_likelihood(mdp, demonstrators, features @ w, temperature) - l2 / 2 * float(w @ w)  # noqa: E731
    assert -loss == pytest.approx(posterior(weights), abs=1e-8)
    for k in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[k] = 1e-4
        slope = (posterior(weights + step) - posterior(weights - step)) / 2e-4
        assert -float(problem.weights.grad[k]) == pytest.approx(slope, abs=1e-6)


def test_the_likelihood_of_sampled_demonstrations():
    """In deterministic dynamics from one start it is the mean over episodes of sum gamma^t log pi(a_t | s_t)."""
    mdp = terrain(["S.", ".G"], {"G": 1.0}, gamma=0.8, horizon=6)
    with open_envs(lambda: TabularEnv(mdp), 5, seed=0) as envs:
        episodes = collect_episodes(envs, sampling(TabularPolicy(4, 4), torch.Generator().manual_seed(0)), gamma=0.8)
    result = train_irl(mdp, episodes, config=IRLConfig(iterations=3, l2=0.1))
    logs = result.policy.log()
    rows = zip(episodes.observations.tolist(), episodes.actions.tolist(), strict=True)
    total = sum(
        0.8**t * float(logs[t, s, a]) for seen, done in rows for t, (s, a) in enumerate(zip(seen, done, strict=False))
    )
    assert result.history.last("log_likelihood") == pytest.approx(total / 5, abs=1e-9)
    assert not result.converged
    assert not result.interrupted


@pytest.mark.parametrize(("gamma", "horizon", "ends"), [(0.9, None, False), (0.8, None, True), (1.0, 4, False)])
def test_the_maximum_matches_the_features_and_finds_the_policy(gamma, horizon, ends):
    mdp = random_mdp(5, gamma, horizon, ends)
    _, policy = soft_value_iteration(mdp, 0.5)
    visits = state_action_visits(mdp, policy)
    settings = IRLConfig(temperature=0.5, l2=0.0, iterations=400, tolerance=1e-8)
    result = train_irl(mdp, visits, state_action_features(mdp), settings)
    assert result.converged
    assert result.history.last("feature_gap") < 1e-8
    found = state_action_visits(mdp, result.policy)
    torch.testing.assert_close(found, visits, rtol=0, atol=1e-7)
    if horizon is None:
        assert reward_distance(mdp, mdp.rewards, result.reward) < 1e-4
    assert bool((result.reward[mdp.absorbing] == 0).all())


def test_state_rewards_keep_their_meaning_in_other_dynamics_and_action_rewards_need_not():
    """Both explain the demonstrators, and so does cloning; then north and south, east and west change places."""
    mdp, changed = terrain(ROWS, PAYS), terrain(ROWS, PAYS, turned=2)
    _, policy = soft_value_iteration(mdp, 0.3)
    visits = state_action_visits(mdp, policy)
    settings = IRLConfig(temperature=0.3, l2=1e-3)
    of_states = train_irl(mdp, visits, config=settings)
    of_actions = train_irl(mdp, visits, state_action_features(mdp), settings)
    reports = [judge_irl(mdp, changed, visits, result.reward, result.policy) for result in (of_states, of_actions)]
    for result, report in zip((of_states, of_actions), reports, strict=True):
        assert result.converged
        assert report.occupancy_distance < 0.01
        assert report.cloned_occupancy_distance < 1e-9
        assert report.cloned_return < 0.5
        assert report.best_return > 4
    assert reports[0].reward_distance_changed < 0.02
    assert reports[0].learned_return == pytest.approx(reports[0].best_return)
    assert reports[1].learned_return < 0.5
    # the log-probs of the demonstrators, as a reward, explain them wholly and are nothing but behaviour cloning
    logs = 0.3 * policy.log()
    assert reward_distance(mdp, mdp.rewards, logs) < 1e-6
    torch.testing.assert_close(soft_value_iteration(mdp, 0.3, logs)[1], policy)
    assert judge_irl(mdp, changed, visits, logs, policy).learned_return < 0.5
    assert reward_distance(changed, mdp.rewards, logs) > 0.3


def test_sampled_demonstrations_come_close():
    """60 walks of 60 steps; the exact visits are within total variation 0.12 of theirs (0.036 to 0.077 on 5
    seeds), and so are those of the learned policy (0.030 to 0.066); the reward is at 0.08 to 0.20."""
    mdp = terrain(ROWS, PAYS)
    _, policy = soft_value_iteration(mdp, 0.3)
    table = TabularPolicy(*mdp.rewards.shape)
    table.logits.data = policy.log().float()
    walk = replace(mdp, horizon=60)
    with open_envs(lambda: TabularEnv(walk), 60, seed=0) as envs:
        episodes = collect_episodes(envs, sampling(table, torch.Generator().manual_seed(0)), gamma=0.9)
    visits, exact = demonstrated_visits(mdp, episodes), state_action_visits(mdp, policy)
    assert float(visits.sum()) == pytest.approx((1 - 0.9**60) / 0.1)
    result = train_irl(mdp, episodes, config=IRLConfig(temperature=0.3, l2=0.01))
    learned = state_action_visits(mdp, result.policy)
    assert 0 < occupancy_distance(visits, exact) < 0.12
    assert occupancy_distance(learned, exact) < 0.12
    assert reward_distance(mdp, mdp.rewards, result.reward) < 0.35


def test_visits_by_hand_and_what_is_refused():
    mdp = terrain(["SG"], {}, gamma=0.5, horizon=3)
    with open_envs(lambda: TabularEnv(mdp), 2, seed=0) as envs:
        east = lambda seen: torch.ones(len(seen), dtype=torch.long)  # noqa: E731
        episodes = collect_episodes(envs, east, gamma=0.5)
        short = collect_episodes(envs, east, gamma=0.5, max_steps=2)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    expected[0, 1], expected[1, 1] = 1.0, 0.75
    assert torch.equal(demonstrated_visits(mdp, episodes), expected)
    with pytest.raises(ValueError, match=r"cut at a discount of 0\.25"):
        demonstrated_visits(mdp, short)
    with pytest.raises(ValueError, match="actions of demonstrations"):
        demonstrated_visits(random_mdp(0), replace(episodes, actions=episodes.actions + 2))
    for wrong, message in (
        ({"demonstrations": torch.ones(4)}, "demonstrations is"),
        ({"demonstrations": -expected}, "some above 0"),
        ({"demonstrations": expected, "features": torch.ones(2, 4)}, "features is"),
    ):
        with pytest.raises(ValueError, match=message):
            train_irl(mdp, **wrong)
    with pytest.raises(ValueError, match="temperature is 0"):
        IRLConfig(temperature=0)


def test_nothing_is_left_to_do_where_the_first_weights_are_right():
    """Demonstrators who do anything alike are soft-optimal for no reward at all."""
    mdp = random_mdp(0)
    visits = state_action_visits(mdp, torch.full((4, 2), 0.5))
    result = train_irl(mdp, visits, state_action_features(mdp))
    assert result.converged
    assert not result.interrupted
    assert len(result.history) == 1
    assert bool((result.reward == 0).all())


def test_features_of_states_and_actions():
    mdp = random_mdp(0)
    weights = normals(0, 8)
    assert torch.equal(state_action_features(mdp) @ weights, weights.view(4, 2))
    assert torch.equal(state_features(mdp) @ weights[:4], weights[:4, None].expand(4, 2))


# -- text -------------------------------------------------------------------------------------------------------------
WORLD = TokenWorld(3, 3, lambda prompt, tokens: 0.0, prompts=2, eos=0)


def laws():
    """Of the demonstrators and of the reference, [2, N] each."""
    return [WORLD.law(2 * normals(seed, 2, WORLD.num_prefixes, 3)) for seed in (0, 1)]


def test_the_leash_recovers_the_demonstrators_with_one_and_sharpens_with_less():
    demos, reference = laws()
    reward = discriminator_reward(demos.log(), reference.log())
    assert float(WORLD.kl(demos, reference).min()) > 0.5
    torch.testing.assert_close(WORLD.optimum(reference, 1.0, reward), demos)
    sharp = WORLD.optimum(reference, 0.1, reward)
    power = demos**10 / reference**9
    torch.testing.assert_close(sharp, power / power.sum(1, keepdim=True))
    assert float(WORLD.kl(sharp, demos).min()) > 0.5
    entropy = lambda law: -(law * law.clamp(min=1e-300).log()).sum(1)  # noqa: E731
    assert bool((entropy(sharp) < 0.6 * entropy(demos)).all())
    loose = WORLD.optimum(reference, 3.0, reward)  # more than 1: between the reference and the demonstrators
    assert bool((WORLD.kl(demos, loose) < WORLD.kl(demos, reference)).all())


def test_another_prior_moves_the_score_and_not_the_optimum():
    demos, reference = laws()
    even, rare = (discriminator_reward(demos.log(), reference.log(), prior) for prior in (0.5, 0.1))
    torch.testing.assert_close(rare - even, torch.full_like(even, -2.1972245773))  # log(1 / 9)
    d = 0.1 * demos / (0.1 * demos + 0.9 * reference)
    torch.testing.assert_close(rare, d.log() - (1 - d).log())
    for kl_coef in (0.1, 1.0):
        torch.testing.assert_close(
            WORLD.optimum(reference, kl_coef, rare), WORLD.optimum(reference, kl_coef, even), rtol=1e-9, atol=1e-12
        )


def test_without_shared_support_something_is_lost():
    """What the reference never writes stays unwritten; the rest gets the demonstrators' proportions."""
    demos, reference = laws()
    reference = reference.clone()
    reference[:, 0] = 0
    reference = reference / reference.sum(1, keepdim=True)
    with pytest.raises(ValueError, match="-inf for 2 replies"):
        discriminator_reward(demos.log(), reference.log())
    tiny = reference.clamp(min=1e-12)
    reward = discriminator_reward(demos.log(), tiny.log())
    found = WORLD.optimum(reference, 1.0, reward)
    rest = demos.clone()
    rest[:, 0] = 0
    torch.testing.assert_close(found, rest / rest.sum(1, keepdim=True))
    assert float(WORLD.kl(found, demos).min()) > 0.001
    with pytest.raises(ValueError, match="prior is 1"):
        discriminator_reward(demos.log(), tiny.log(), prior=1)
    with pytest.raises(ValueError, match="log_probs_ref has shape"):
        discriminator_reward(demos.log(), tiny.log()[:1])


def test_labels_for_the_classifier():
    hello = as_conversation("Hello")
    ratings = discriminator_labels([Demonstration(hello, "Good day.")], [Demonstration(hello, "Go away.")])
    same = [{"prompt": "Hello", "completion": t, "label": y} for t, y in (("Good day.", True), ("Go away.", False))]
    assert ratings == as_feedback(same)
    assert [(one.reply, one.score) for one in ratings] == [("Good day.", 1.0), ("Go away.", 0.0)]
    with pytest.raises(ValueError, match=r"\(1, 0\)"):
        discriminator_labels([Demonstration(hello, "Good day.")], [])
