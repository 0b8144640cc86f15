"""REINFORCE: its estimate against the exact gradient, over every episode that can happen; then the loop."""

import contextlib
import dataclasses
import itertools
import math
import signal

import pytest
import torch
from torch import nn
from toy_envs import Played, broken, closing

from rlhf_lab.experience.episodes import Episodes, collect_episodes, make_envs, policy_for
from rlhf_lab.experience.invariants import InvariantViolation
from rlhf_lab.maths.mdp import TabularMDP, chain, expected_return, policy_evaluation, policy_gradient, value_iteration
from rlhf_lab.maths.returns import gae
from rlhf_lab.maths.tensors import length_mask
from rlhf_lab.models.policies import TabularPolicy, TabularValue, sampling
from rlhf_lab.recipes.ppo import PPOConfig, train_ppo
from rlhf_lab.recipes.reinforce import ReinforceConfig, fit_value, leashed, others_mean, train_reinforce, weights
from rlhf_lab.training.randomness import generator_for

torch.set_num_threads(1)
FAST = ReinforceConfig(iterations=6, episodes=4, evaluate_every=2, max_steps=30)


# -- every episode that can happen ------------------------------------------------------------------------------------
def two_steps(gamma=1.0, seed=0):
    """States 0 and 1 come first; then 2, 3 or the end; then the end. 20 episodes in all."""
    generator = torch.Generator().manual_seed(seed)
    moves = torch.zeros(5, 2, 5, dtype=torch.float64)
    moves[:2, :, 2:] = torch.rand(2, 2, 3, generator=generator, dtype=torch.float64)
    moves[2:, :, 4] = 1
    rewards = torch.randn(5, 2, generator=generator, dtype=torch.float64)
    rewards[4] = 0
    return TabularMDP(moves / moves.sum(-1, keepdim=True), rewards, [0.4, 0.6, 0, 0, 0], gamma)


def table(seed=1):
    policy = TabularPolicy(5, 2)
    nn.init.normal_(policy.logits, generator=torch.Generator().manual_seed(seed))
    return policy


def values(numbers):
    value = TabularValue(5)
    value.values.data = torch.as_tensor(numbers, dtype=torch.float32)
    return value


def histories(mdp, probs, state, probability=1.0, steps=()):
    """(probability, steps as (state, action)) of all that can follow, to the absorbing state."""
    if mdp.absorbing[state]:
        yield probability, steps
        return
    for action, after in itertools.product(range(2), range(5)):
        if (p := float(probs[state, action] * mdp.transitions[state, action, after])) > 0:
            yield from histories(mdp, probs, after, probability * p, (*steps, (state, action)))


def every_episode(mdp, policy):
    """All of them as rows, and their probabilities."""
    probs = policy.logits.detach().double().softmax(-1)
    starts = [h for s in range(2) for h in histories(mdp, probs, s, float(mdp.start[s]))]
    law = torch.tensor([p for p, _ in starts])
    lengths = torch.tensor([len(steps) for _, steps in starts])
    seen, actions = torch.full((len(law), 3), 4), torch.zeros(len(law), 2, dtype=torch.long)
    for row, (_, steps) in enumerate(starts):
        for t, (state, action) in enumerate(steps):
            seen[row, t], actions[row, t] = state, action
    mask = length_mask(lengths, 2)
    rewards = torch.where(mask, mdp.rewards[seen[:, :2], actions], 0).float()
    discounts = torch.where(mask & (torch.arange(2) < lengths[:, None] - 1), mdp.gamma, 0.0)
    return Episodes(seen, actions, rewards, discounts, mask, tuple(rewards.sum(1).tolist())), law


def pick(episodes, rows):
    names = ("observations", "actions", "rewards", "discounts", "mask")
    return dataclasses.replace(episodes, **{name: getattr(episodes, name)[rows] for name in names})


def expected_gradient(mdp, policy, value=None, **changes):
    """Expectation of sum over t of weight times grad log pi."""
    config = ReinforceConfig(gamma=mdp.gamma, **changes)
    episodes, law = every_episode(mdp, policy)
    assert float(law.sum()) == pytest.approx(1)
    weight = weights(episodes, episodes.rewards, value, config)
    gain = (weight * episodes.log_probs(policy)).sum(1)
    return torch.autograd.grad(law @ gain, policy.logits)[0].double()


def assert_exact(gradient, mdp, policy):
    torch.testing.assert_close(gradient, policy_gradient(mdp, policy.logits), rtol=0, atol=1e-6)


ANY_VALUE = [3.0, -1.0, 0.5, 2.0, 7.0]  # the end's is never used


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reward_to_go", [True, False])
@pytest.mark.parametrize(("baseline", "value"), [("none", None), ("value", values(ANY_VALUE))])
def test_the_estimate_is_unbiased_with_and_without_a_baseline(seed, reward_to_go, baseline, value):
    mdp, policy = two_steps(seed=seed), table(seed)
    gradient = expected_gradient(mdp, policy, value, baseline=baseline, reward_to_go=reward_to_go)
    assert_exact(gradient, mdp, policy)


@pytest.mark.parametrize(("baseline", "value"), [("none", None), ("value", values(ANY_VALUE))])
def test_the_discounted_return_needs_discounted_visits(baseline, value):
    mdp, policy = two_steps(gamma=0.5), table()
    assert_exact(expected_gradient(mdp, policy, value, baseline=baseline, discount_visits=True), mdp, policy)
    dropped = expected_gradient(mdp, policy, value, baseline=baseline)
    exact = policy_gradient(mdp, policy.logits)
    assert (dropped - exact).norm() > 0.1 * exact.norm()


def test_the_return_of_the_whole_episode_carries_its_discounts():
    mdp, policy = two_steps(gamma=0.5), table()
    assert_exact(expected_gradient(mdp, policy, baseline="none", reward_to_go=False), mdp, policy)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.4, 1.0])
def test_a_critic_is_unbiased_where_it_is_exact(gamma, gae_lambda):
    mdp, policy = two_steps(gamma), table()
    exact = values(policy_evaluation(mdp, policy.logits.detach().softmax(-1)))
    options = {"baseline": "value", "gae_lambda": gae_lambda, "discount_visits": True}
    assert_exact(expected_gradient(mdp, policy, exact, **options), mdp, policy)
    biased = expected_gradient(mdp, policy, values(ANY_VALUE), **options)
    error = (biased - policy_gradient(mdp, policy.logits)).norm()
    assert (error < 1e-6) == (gae_lambda == 1)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_the_mean_of_the_others_leaves_the_estimate_unbiased(gamma):
    """Over all pairs of episodes; a mean that includes oneself would halve the gradient of its baseline."""
    mdp, policy = two_steps(gamma), table()
    episodes, law = every_episode(mdp, policy)
    config = ReinforceConfig(gamma=gamma, baseline="mean", discount_visits=True)
    weight = torch.zeros(episodes.mask.shape)
    for i, j in itertools.product(range(len(law)), repeat=2):
        pair = pick(episodes, [i, j])
        both = law[i] * law[j] * weights(pair, pair.rewards, None, config) / 2
        weight.index_add_(0, torch.tensor([i, j]), both)
    (gradient,) = torch.autograd.grad((weight * episodes.log_probs(policy)).sum(), policy.logits)
    assert_exact(gradient.double(), mdp, policy)


def test_a_mean_of_the_others_leaves_oneself_out():
    returns = torch.tensor([[1.0, 3.0], [5.0, 9.9], [7.0, 8.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    assert others_mean(returns, mask)[:, 0].tolist() == pytest.approx([20 / 3, 19 / 4, 3.0])


def test_weights_are_data_and_0_at_padding():
    episodes, _ = every_episode(two_steps(), table())
    for changes in ({"baseline": "none"}, {"baseline": "mean"}, {"baseline": "value"}):
        weight = weights(episodes, episodes.rewards, values(ANY_VALUE) if changes["baseline"] == "value" else None,
                         ReinforceConfig(gamma=1.0, **changes))  # fmt: skip
        assert not weight.requires_grad
        assert not weight[~episodes.mask].any()


def test_the_weights_are_what_they_are_called():
    """With a value it is subtracted, also where whole returns weight the actions; a cut row bootstraps from it."""
    mask, value = torch.ones(1, 2).bool(), values([3.0, -1.0, 0.5, 2.0, 7.0])
    for discounts, after in (([0.9, 0.9], 0.5), ([0.9, 0.0], 0.0)):  # cut, and ended, in state 2
        cut = Episodes(
            torch.tensor([[0, 1, 2]]), torch.zeros(1, 2).long(), torch.ones(1, 2), torch.tensor([discounts]), mask, ()
        )
        to_go = [1 + 0.9 * (1 + 0.9 * after), 1 + 0.9 * after]
        for reward_to_go, returns in ((True, to_go), (False, to_go[:1] * 2)):
            config = ReinforceConfig(gamma=0.9, reward_to_go=reward_to_go)
            expected = [returns[0] - 3.0, returns[1] + 1.0]
            assert weights(cut, cut.rewards, value, config)[0].tolist() == pytest.approx(expected)


# -- the leash --------------------------------------------------------------------------------------------------------
def test_the_leash_is_paid_in_every_step():
    policy, reference = table(1), table(2)
    episodes, _ = every_episode(two_steps(), policy)
    rewards = leashed(episodes, policy, reference, kl_coef=0.3)
    assert not rewards.requires_grad
    new, old = (module.logits.detach().log_softmax(-1) for module in (policy, reference))
    for b, t in itertools.product(range(len(rewards)), range(2)):
        s, a = episodes.observations[b, t], episodes.actions[b, t]
        paid = 0.3 * float(new[s, a] - old[s, a]) if episodes.mask[b, t] else 0.0
        assert float(rewards[b, t]) == pytest.approx(float(episodes.rewards[b, t]) - paid, abs=1e-6)
    assert leashed(episodes, policy, None, kl_coef=0.0) is episodes.rewards


def test_with_the_leash_the_estimate_is_the_gradient_of_return_less_kl():
    mdp, policy, reference = two_steps(), table(1), table(2)
    episodes, law = every_episode(mdp, policy)
    rewards = leashed(episodes, policy, reference, kl_coef=0.7)
    weight = weights(episodes, rewards, None, ReinforceConfig(gamma=1.0, baseline="none"))
    (gradient,) = torch.autograd.grad(law @ (weight * episodes.log_probs(policy)).sum(1), policy.logits)
    logits = policy.logits.detach().double().requires_grad_()
    kl = (logits.softmax(-1) * (logits.log_softmax(-1) - reference.logits.detach().double().log_softmax(-1))).sum(-1)
    probs = logits.softmax(-1)
    visits = mdp.start + torch.einsum("s,sa,sat->t", mdp.start, probs, mdp.transitions)
    objective = expected_return(mdp, probs) - 0.7 * (visits * kl)[:4].sum()
    (exact,) = torch.autograd.grad(objective, logits)
    torch.testing.assert_close(gradient.double(), exact, rtol=0, atol=1e-6)


# -- the loop ---------------------------------------------------------------------------------------------------------
def corridor():
    return Played(chain(3, step_reward=-0.1))


@pytest.mark.parametrize("entropy_coef", [0.0, 0.3])
def test_a_step_follows_the_mean_over_episodes(entropy_coef):
    config = dataclasses.replace(FAST, iterations=1, baseline="none", gamma=0.9, entropy_coef=entropy_coef)
    policy = TabularPolicy(4, 2)
    policy.logits.data[:, 1] = 0.5
    start = TabularPolicy(4, 2)
    start.load_state_dict(policy.state_dict())
    train_reinforce(corridor, config, policy=policy)
    envs, generator = make_envs(corridor, config.episodes, config.seed), generator_for(config.seed, "reinforce")
    episodes = collect_episodes(envs, sampling(start, generator), config.gamma, config.max_steps)
    gain = torch.zeros(())
    for b, length in enumerate(episodes.mask.sum(1).tolist()):
        for t in range(length):
            law = start(episodes.observations[b, t])
            to_go = sum(0.9 ** (k - t) * float(episodes.rewards[b, k]) for k in range(t, length))
            gain = gain + law.log_prob(episodes.actions[b, t]) * to_go + entropy_coef * law.entropy()
    (expected,) = torch.autograd.grad(-gain / config.episodes, start.logits)
    torch.testing.assert_close(policy.logits.grad, expected)
    assert ((policy.logits - start.logits).sign() == -expected.sign()).all()


def test_the_loop_takes_the_steps_of_the_formula():
    """Two iterations of a leashed actor-critic again, by hand, with torch's own Adam."""
    config = dataclasses.replace(
        FAST, iterations=2, gamma=0.9, gae_lambda=0.6, kl_coef=0.4, learning_rate=0.1, value_learning_rate=0.03,
        value_epochs=3, entropy_coef=0.2,
    )  # fmt: skip
    reference = TabularPolicy(4, 2)
    reference.logits.data[:, 1] = 1.0
    result = train_reinforce(corridor, config, reference=reference)
    envs, generator = make_envs(corridor, 4, 0), generator_for(0, "reinforce")
    policy, value = TabularPolicy(4, 2), TabularValue(4)
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.1)
    critic = torch.optim.Adam(value.parameters(), lr=0.03)
    for row in result.history.rows:
        episodes = collect_episodes(envs, sampling(policy, generator), 0.9, 30)
        mask, entropy = episodes.mask, policy(episodes.observations[:, :-1]).entropy()[episodes.mask]
        with torch.no_grad():
            rewards = episodes.rewards - 0.4 * (episodes.log_probs(policy) - episodes.log_probs(reference))
            seen = episodes.values(value)
            advantages = gae(rewards, seen, episodes.discounts, mask, 0.6)
            targets = advantages + seen[:, :-1]
        optimiser.zero_grad()
        (-((episodes.log_probs(policy) * advantages).sum() + 0.2 * entropy.sum()) / 4).backward()
        expected = {"return": float(episodes.rewards.sum() / 4), "length": float(mask.sum() / 4)}
        expected |= {"entropy": entropy.mean().item(), "grad_norm": float(policy.logits.grad.norm())}
        optimiser.step()
        for _ in range(3):
            loss = (episodes.values(value)[:, :-1] - targets)[mask].square().mean() / 2
            critic.zero_grad()
            loss.backward()
            critic.step()
        expected["value_loss"] = loss.item()
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(result.model.logits, policy.logits)
    torch.testing.assert_close(result.value.values, value.values)


def test_a_part_of_the_policy_may_be_frozen():
    policy = policy_for(make_envs("CartPole-v1", 1, 0)[0])
    frozen = next(policy.parameters()).requires_grad_(False)
    before = frozen.clone()
    train_reinforce("CartPole-v1", dataclasses.replace(FAST, iterations=1), policy=policy)
    assert torch.equal(frozen, before)


@pytest.mark.parametrize("recipe", [train_reinforce, train_ppo])
def test_the_policy_is_no_reference_for_itself(recipe):
    policy = policy_for(make_envs("CartPole-v1", 1, 0)[0])
    config = {train_reinforce: ReinforceConfig, train_ppo: PPOConfig}[recipe](kl_coef=0.1)
    with pytest.raises(InvariantViolation, match="moves along"):
        recipe("CartPole-v1", config, policy=policy, reference=policy)


@pytest.mark.parametrize(
    "changes",
    [{"baseline": "none"}, {"baseline": "mean"}, {"baseline": "value"}, {"baseline": "value", "gae_lambda": 0.8}],
)
def test_learns_the_way_out(changes):
    mdp = chain(3, step_reward=-0.1)
    config = ReinforceConfig(
        iterations=50, episodes=8, learning_rate=0.15, value_learning_rate=0.1, gamma=1.0, max_steps=60, **changes
    )
    result = train_reinforce(corridor, config)
    probs = result.model.logits.detach().softmax(-1)
    best, first = float(value_iteration(mdp)[0][0]), float(expected_return(mdp, torch.full((4, 2), 0.5)))
    assert first < -0.1  # uniform: 12 steps to go
    assert float(expected_return(mdp, probs)) > best - 0.05
    assert result.history.column("return")[1][-5:].mean() > best - 0.05
    assert (result.value is None) == (changes["baseline"] != "value")


def test_the_value_learns_the_exact_values():
    mdp, policy = two_steps(gamma=0.5), table()
    episodes, law = every_episode(mdp, policy)
    rows = (law * 4000).round().long()
    episodes = pick(episodes, torch.arange(len(law)).repeat_interleave(rows))
    value = TabularValue(5)
    optimiser = torch.optim.Adam(value.parameters(), lr=0.02)
    config = ReinforceConfig(value_epochs=400)
    first = fit_value(value, optimiser, episodes, episodes.rewards, dataclasses.replace(config, value_epochs=1))
    assert fit_value(value, optimiser, episodes, episodes.rewards, config) < first
    exact = policy_evaluation(mdp, policy.logits.detach().softmax(-1)).float()
    torch.testing.assert_close(value.values.detach(), exact, rtol=0, atol=0.01)


def state(result):
    return [p for module in (result.model, result.value) if module for p in module.state_dict().values()]


def test_a_seed_decides_everything():
    runs = []
    for elsewhere, seed in enumerate((3, 3, 4)):
        torch.manual_seed(elsewhere)
        runs.append(train_reinforce("CartPole-v1", dataclasses.replace(FAST, seed=seed)))
    assert runs[0].history == runs[1].history
    assert all(map(torch.equal, state(runs[0]), state(runs[1])))
    assert runs[0].history != runs[2].history


def test_a_run_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    train_reinforce("CartPole-v1", FAST)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupt_keeps_what_was_learned():
    calls = []

    def evaluate(policy):
        calls.append(len(calls))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return {"calls": len(calls)}

    result = train_reinforce(corridor, FAST, evaluate=evaluate)
    assert result.interrupted
    assert result.history.column("calls")[0].tolist() == [0, 2]
    assert len(result.history) == 3
    assert result.model.logits.any()
    whole = train_reinforce(corridor, FAST)
    assert not whole.interrupted
    assert [row["return"] for row in whole.history.rows[:2]] == [row["return"] for row in result.history.rows[1:]]


def test_evaluates_before_between_and_after():
    result = train_reinforce(corridor, dataclasses.replace(FAST, iterations=5), evaluate=lambda policy: {"one": 1})
    assert result.history.column("one")[0].tolist() == [0, 2, 4, 5]


def test_a_reference_is_left_as_it_is_and_pulls():
    far = TabularPolicy(4, 2)
    far.logits.data[:, 0] = 1.5  # left, away from the way out
    before = far.logits.detach().clone()
    config = ReinforceConfig(
        iterations=60, episodes=8, learning_rate=0.1, kl_coef=5.0, gamma=1.0, max_steps=30, baseline="mean"
    )
    result = train_reinforce(corridor, config, reference=far)
    assert torch.equal(far.logits, before)
    assert far.logits.grad is None
    assert (result.model.logits[:3, 0] > result.model.logits[:3, 1]).all()


BAD = {
    "iterations": 0,
    "episodes": 0,
    "max_steps": 0,
    "value_epochs": 0,
    "evaluate_every": 0,
    "learning_rate": 0.0,
    "value_learning_rate": math.inf,
    "entropy_coef": -0.1,
    "kl_coef": math.nan,
    "gamma": 1.1,
    "gae_lambda": -0.1,
    "baseline": "average",
}


@pytest.mark.parametrize("name", BAD)
def test_a_choice_that_cannot_be_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        ReinforceConfig(**{name: BAD[name]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "mean", "episodes": 1}, "episodes is 1; expected at least 2"),
        ({"baseline": "none", "gae_lambda": 0.9}, "gae_lambda is 0.9; expected 1"),
        ({"baseline": "value", "reward_to_go": False, "gae_lambda": 0.9}, "gae_lambda is 0.9; expected 1"),
        ({"reward_to_go": False, "discount_visits": True}, "discount_visits is True; expected False"),
    ],
)
def test_choices_that_exclude_each_other_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        ReinforceConfig(**changes)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="reference is None; expected one exactly where kl_coef > 0"):
        train_reinforce(corridor, ReinforceConfig(kl_coef=0.1))
    with pytest.raises(ValueError, match=r"reference is Tab.*expected one exactly"):
        train_reinforce(corridor, ReinforceConfig(), reference=TabularPolicy(4, 2))
    with pytest.raises(ValueError, match=r"value is Tab.*expected None with another baseline"):
        train_reinforce(corridor, ReinforceConfig(baseline="mean"), value=TabularValue(4))
    with pytest.raises(ValueError, match=r"actions Box\(.*expected Discrete$"):
        train_reinforce("Pendulum-v1", FAST)


def test_a_gradient_that_is_no_number_stops_the_run():
    policy = TabularPolicy(4, 2)
    policy.logits.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match="gradient norm"):
        train_reinforce(corridor, FAST, policy=policy)


@pytest.mark.parametrize("evaluate", [None, broken])
def test_its_environments_are_closed(evaluate):
    Closing, closed = closing(Played)
    with pytest.raises(KeyError) if evaluate else contextlib.nullcontext():
        train_reinforce(lambda: Closing(chain(3)), FAST, evaluate=evaluate)
    assert len(set(map(id, closed))) == FAST.episodes
