"""PPO: its batch against the definition, its first step against REINFORCE, its leashes by hand; then the loop."""

import contextlib
import copy
import dataclasses
import math
import signal

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from toy_envs import Counter, Played, broken, closing

from rlhf_lab.experience.episodes import Episodes, Runner, make_envs, policy_for, value_for
from rlhf_lab.experience.invariants import InvariantViolation
from rlhf_lab.maths.mdp import chain
from rlhf_lab.maths.tensors import length_mask
from rlhf_lab.models.policies import CategoricalPolicy, TabularPolicy, TabularValue, Value, sampling
from rlhf_lab.recipes.ppo import PPOConfig, ppo_losses, prepare, train_ppo
from rlhf_lab.training.randomness import generator_for, minibatches

torch.set_num_threads(1)
few = settings(max_examples=40, deadline=None)
STATES, ACTIONS = 6, 3
FAST = PPOConfig(total_steps=96, environments=2, steps=16, minibatch=16, epochs=2, evaluate_every=1)


def tables(seed):
    generator = torch.Generator().manual_seed(seed)
    policy, value = TabularPolicy(STATES, ACTIONS), TabularValue(STATES)
    nn.init.normal_(policy.logits, generator=generator)
    nn.init.normal_(value.values, generator=generator)
    return policy, value


def random_rows(seed, lengths, terminal, gamma=0.9):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = length_mask(torch.tensor(lengths), shape[1])
    discounts = torch.where(mask, gamma, 0.0)
    for row, (length, ends) in enumerate(zip(lengths, terminal, strict=True)):
        discounts[row, length - 1] *= not ends
    seen = torch.randint(STATES, (shape[0], shape[1] + 1), generator=generator)
    actions = torch.randint(ACTIONS, shape, generator=generator)
    return Episodes(seen, actions, torch.randn(shape, generator=generator), discounts, mask, (2.0, 4.0))


@st.composite
def rows(draw):
    lengths = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    terminal = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    return random_rows(draw(st.integers(0, 2**31)), lengths, terminal)


ROWS = random_rows(0, [5, 2, 7], [True, False, True])
MOVED = 0.3  # far enough from ratio 1 to be seen, and within the band for most


# -- the batch --------------------------------------------------------------------------------------------------------
@few
@given(rows(), st.sampled_from([0.0, 0.7, 1.0]))
def test_a_batch_holds_every_step_once_with_its_advantage(episodes, gae_lambda):
    policy, value = tables(1)
    batch, numbers = prepare(episodes, policy, value, None, PPOConfig(gae_lambda=gae_lambda))
    log_probs, table = policy.logits.detach().log_softmax(-1), value.values.detach()
    place = 0
    for b, length in enumerate(episodes.mask.sum(1).tolist()):
        advantage, expected = 0.0, []
        for t in reversed(range(length)):
            now, after = episodes.observations[b, t], episodes.observations[b, t + 1]
            surprise = episodes.rewards[b, t] + episodes.discounts[b, t] * table[after] - table[now]
            advantage = float(surprise + episodes.discounts[b, t] * gae_lambda * advantage)
            expected.insert(0, (now, episodes.actions[b, t], advantage))
        for now, action, advantage in expected:
            one = batch.select(torch.tensor([place]))
            assert (int(one.observations), int(one.actions)) == (now, action)
            assert float(one.old_log_probs) == pytest.approx(float(log_probs[now, action]))
            assert float(one.old_values) == float(table[now])
            assert float(one.advantages) == pytest.approx(advantage, abs=1e-5)
            assert float(one.returns) == pytest.approx(advantage + float(table[now]), abs=1e-5)
            place += 1
    assert place == len(batch.actions)
    assert numbers["return"] == 3.0
    assert not any(getattr(batch, field.name).requires_grad for field in dataclasses.fields(batch))


def test_without_an_end_there_is_no_mean_return():
    episodes = dataclasses.replace(ROWS, returns=())
    assert prepare(episodes, *tables(1), None, PPOConfig())[1]["return"] is None


def test_the_leash_is_paid_in_every_step():
    (policy, value), (reference, _) = tables(1), tables(2)
    config = PPOConfig(kl_coef=0.4)
    batch, _ = prepare(ROWS, policy, value, reference, config)
    new, old = (module.logits.detach().log_softmax(-1) for module in (policy, reference))
    seen, actions = ROWS.observations[:, :-1], ROWS.actions
    paid = dataclasses.replace(ROWS, rewards=ROWS.rewards - 0.4 * (new - old)[seen, actions])
    expected, _ = prepare(paid, policy, value, None, config)
    torch.testing.assert_close(batch.advantages, expected.advantages)
    torch.testing.assert_close(batch.returns, expected.returns)


@few
@given(st.integers(2, 60), st.integers(3, 60), st.integers(1, 4), st.integers(0, 2**31))
def test_minibatches_hold_every_step_once_an_epoch(size, minibatch, epochs, seed):
    parts = list(minibatches(size, minibatch, epochs, torch.Generator().manual_seed(seed)))
    count = math.ceil(size / minibatch)
    assert len(parts) == epochs * count
    assert {2 <= len(part) <= minibatch for part in parts} == {True}
    orders = [torch.cat(parts[i : i + count]) for i in range(0, len(parts), count)]
    assert all(order.sort().values.tolist() == list(range(size)) for order in orders)
    if size > 12:  # in another order each time, but for one chance in 13!
        assert len({tuple(order.tolist()) for order in orders}) == epochs


# -- the loss ---------------------------------------------------------------------------------------------------------
def prepared(config=FAST, moved=0.0):
    policy, value = tables(1)
    batch, _ = prepare(ROWS, policy, value, None, config)
    with torch.no_grad():
        policy.logits += moved * torch.randn(STATES, ACTIONS, generator=torch.Generator().manual_seed(5))
        value.values += moved
    return policy, value, batch


def loss_and_numbers(moved=MOVED, **changes):
    config = dataclasses.replace(FAST, **changes)
    loss, numbers = ppo_losses(*prepared(config, moved), config, update=2)
    return float(loss.detach()), numbers


@pytest.mark.parametrize("clip_epsilon", [math.inf, 0.2])
def test_the_first_gradient_is_reinforces_on_whitened_advantages(clip_epsilon):
    config = dataclasses.replace(FAST, clip_epsilon=clip_epsilon, value_coef=0.0)
    policy, value, batch = prepared(config)
    loss, numbers = ppo_losses(policy, value, batch, config, update=0)
    (gradient,) = torch.autograd.grad(loss, policy.logits)
    whitened = (batch.advantages - batch.advantages.mean()) / batch.advantages.std()
    gain = (policy(batch.observations).log_prob(batch.actions) * whitened).mean()
    torch.testing.assert_close(gradient, torch.autograd.grad(-gain, policy.logits)[0])
    assert (numbers["approx_kl"], numbers["clip_fraction"]) == (pytest.approx(0, abs=1e-6), 0)


def test_the_loss_is_its_formula():
    config = dataclasses.replace(FAST, whiten=False, entropy_coef=0.3, kl_penalty=0.7, value_coef=0.25)
    policy, value, batch = prepared(config, MOVED)
    loss, numbers = ppo_losses(policy, value, batch, config, update=2)
    log_probs = policy.logits.detach().log_softmax(-1)
    total, outside = 0.0, 0
    for i in range(len(batch.actions)):
        state, action = batch.observations[i], batch.actions[i]
        ratio, advantage = float((log_probs[state, action] - batch.old_log_probs[i]).exp()), float(batch.advantages[i])
        surrogate = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
        entropy = -float((log_probs[state].exp() * log_probs[state]).sum())
        error = float(value.values[state].detach() - batch.returns[i]) ** 2 / 2
        total += -surrogate - 0.3 * entropy + 0.7 * (ratio - 1 - math.log(ratio)) + 0.25 * error
        outside += abs(ratio - 1) > 0.2
    assert 0 < outside < len(batch.actions)
    assert float(loss.detach()) == pytest.approx(total / len(batch.actions), rel=1e-5)
    assert numbers["clip_fraction"] == pytest.approx(outside / len(batch.actions))


def test_the_penalty_on_kl_has_the_gradient_of_kl_from_old_to_new():
    """In expectation over the old policy's actions, enumerated in every state."""
    (old, value), (new, _) = tables(1), tables(2)
    states, actions = torch.arange(STATES).repeat_interleave(ACTIONS), torch.arange(ACTIONS).repeat(STATES)
    law = old.logits.detach().softmax(-1)
    gradient = torch.zeros_like(new.logits)
    for s, a in zip(states, actions, strict=True):
        one = Episodes(
            torch.tensor([[s, 0], [s, 0]]), a.repeat(2, 1), *(torch.zeros(2, 1),) * 2, torch.ones(2, 1) > 0, ()
        )
        batch, _ = prepare(one, old, value, None, FAST)
        losses = (
            ppo_losses(new, value, batch, dataclasses.replace(FAST, kl_penalty=c, whiten=False), 2)[0]
            for c in (1.0, 0.0)
        )
        gradient += law[s, a] * torch.autograd.grad(next(losses) - next(losses), new.logits)[0]
    exact = new.logits.softmax(-1) - law  # of KL(old || new), row by row
    torch.testing.assert_close(gradient, exact.detach(), rtol=0, atol=1e-5)


def test_coefficients_enter_with_their_signs():
    plain, numbers = loss_and_numbers()
    assert loss_and_numbers(entropy_coef=2.0)[0] == pytest.approx(plain - 2 * numbers["entropy"], rel=1e-5)
    assert loss_and_numbers(kl_penalty=2.0)[0] == pytest.approx(plain + 2 * numbers["approx_kl"], rel=1e-5)
    assert loss_and_numbers(value_coef=2.5)[0] == pytest.approx(plain + 2 * numbers["value_loss"], rel=1e-5)
    assert numbers["approx_kl"] > 0.001


def test_the_values_step_is_clipped():
    assert loss_and_numbers(value_clip_epsilon=0.01)[1]["value_loss"] > loss_and_numbers()[1]["value_loss"]


@pytest.mark.parametrize("update", [0, 1])
def test_a_policy_that_changed_before_the_first_minibatch_is_noticed(update):
    policy, value, batch = prepared(moved=MOVED)
    if update == 0:
        with pytest.raises(InvariantViolation, match="first_minibatch"):
            ppo_losses(policy, value, batch, FAST, update)
    else:
        ppo_losses(policy, value, batch, FAST, update)
    ppo_losses(policy, value, batch, dataclasses.replace(FAST, check_invariants=False), update)


def test_dropout_is_noticed_in_the_loop():
    torch.manual_seed(0)
    policy = CategoricalPolicy(nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Linear(16, 2)))
    with pytest.raises(InvariantViolation, match="dropout"):
        train_ppo("CartPole-v1", FAST, policy=policy)


# -- the loop ---------------------------------------------------------------------------------------------------------
class Corridor(Played):
    def __init__(self):
        super().__init__(chain(3, step_reward=-0.1), one_hot=True)


def state(result):
    return [*result.model.state_dict().values(), *result.value.state_dict().values()]


def test_the_loop_takes_the_steps_of_the_formula():
    """Two iterations again, by hand, with torch's own Adam."""
    config = dataclasses.replace(
        FAST, total_steps=64, final_fraction=0.5, max_grad_norm=0.3, gamma=0.7, gae_lambda=0.5, clip_epsilon=0.001
    )
    result = train_ppo("CartPole-v1", config)
    envs, generator = make_envs("CartPole-v1", 2, 0), generator_for(0, "ppo")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy, value = policy_for(envs[0]), value_for(envs[0])
    parameters = [*policy.parameters(), *value.parameters()]
    optimiser, runner = torch.optim.Adam(parameters, lr=1e-3, eps=1e-5), Runner(envs)
    for rate in (1e-3, 0.75e-3):
        optimiser.param_groups[0]["lr"] = rate
        batch, _ = prepare(runner.collect(sampling(policy, generator), 16, 0.7), policy, value, None, config)
        clipped = []
        for part in [p for _ in range(2) for p in torch.randperm(32, generator=generator).chunk(2)]:
            optimiser.zero_grad()
            ratio = (policy(batch.observations[part]).log_prob(batch.actions[part]) - batch.old_log_probs[part]).exp()
            clipped.append(float(((ratio - 1).abs() > 0.001).float().mean()))
            ppo_losses(policy, value, batch.select(part), config, update=2)[0].backward()
            nn.utils.clip_grad_norm_(parameters, 0.3)
            optimiser.step()
    by_hand = [*policy.state_dict().values(), *value.state_dict().values()]
    assert all(map(torch.equal, state(result), by_hand))
    assert result.history.column("entropy")[0].tolist() == [32, 64]
    assert sum(clipped) > 0
    assert result.history.last("clip_fraction") == pytest.approx(sum(clipped) / 4)


def test_evaluates_before_between_and_after():
    config = dataclasses.replace(FAST, total_steps=32 * 5, evaluate_every=2)
    result = train_ppo("CartPole-v1", config, evaluate=lambda policy: {"one": 1})
    assert result.history.column("one")[0].tolist() == [0, 64, 128, 160]
    with pytest.raises(ValueError, match="'entropy' is there twice at step 64"):
        train_ppo("CartPole-v1", config, evaluate=lambda policy: {"entropy": 1})


def shared_agent():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    policy = CategoricalPolicy(nn.Sequential(body, nn.Linear(8, 2)))
    return body, policy, Value(nn.Sequential(body, nn.Linear(8, 1)))


def test_shared_parameters_take_one_step():
    """Adam's first step is the learning rate wherever there is a gradient."""
    body, policy, value = shared_agent()
    before = body[0].weight.detach().clone()
    config = dataclasses.replace(FAST, total_steps=32, minibatch=32, epochs=1, adam_epsilon=1e-12)
    train_ppo("CartPole-v1", config, policy=policy, value=value)
    moved = (body[0].weight - before).abs().detach()
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=0.01, atol=0)


def test_the_epochs_end_at_the_limit_of_kl():
    config = dataclasses.replace(FAST, total_steps=32, minibatch=32, learning_rate=0.01, epochs=8)
    one, stopped, all_of_them = (
        train_ppo("CartPole-v1", dataclasses.replace(config, **changes))
        for changes in ({"epochs": 1}, {"kl_stop": 1e-9}, {"kl_stop": 1e9})
    )
    assert all(map(torch.equal, state(one), state(stopped)))
    assert all_of_them.history.last("approx_kl") > 1e-4
    free = train_ppo("CartPole-v1", config)
    assert all(map(torch.equal, state(free), state(all_of_them)))


def test_learns_the_way_out():
    config = PPOConfig(
        total_steps=3000, environments=4, steps=32, minibatch=64, epochs=4, learning_rate=5e-3, gamma=1.0
    )
    result = train_ppo(Corridor, config)
    returns = result.history.column("return")[1]
    assert returns[0] < 0.3
    assert returns[-3:].mean() > 0.65  # 0.7 is the best
    assert (result.model(torch.eye(4)[:3]).probs[:, 1] > 0.8).all()
    assert result.history.last("explained_variance") > 0.5


def test_a_truncated_episode_is_bootstrapped_and_a_terminal_one_is_not():
    """Each step pays 1 for ever, or once: the values are 1 / (1 - gamma), or 1."""
    seen = torch.zeros(40, 2, 1, dtype=torch.float32)
    for gamma, terminal, expected in ((0.5, False, 2.0), (0.5, True, 1.0)):
        discounts = torch.full((40, 1), 0.0 if terminal else gamma)
        ones = torch.ones(40, 1)
        episodes = Episodes(seen, ones.long() * 0, ones, discounts, ones > 0, ())
        value = Value(nn.Linear(1, 1))
        value.body.bias.data[:] = expected
        batch, _ = prepare(episodes, CategoricalPolicy(nn.Linear(1, 2)), value, None, FAST)
        torch.testing.assert_close(batch.returns, torch.full((40,), expected))


def test_a_reference_is_left_as_it_is_and_pulls():
    torch.manual_seed(0)
    far = CategoricalPolicy(nn.Linear(4, 2))
    with torch.no_grad():
        far.body.weight.zero_()
        far.body.bias.copy_(torch.tensor([1.5, 0.0]))  # left, away from the way out
    before = copy.deepcopy(far.state_dict())
    config = PPOConfig(total_steps=2000, environments=4, steps=32, minibatch=64, epochs=4, learning_rate=5e-3)
    probs = {}
    for kl_coef in (1e-6, 5.0):
        result = train_ppo(Corridor, dataclasses.replace(config, kl_coef=kl_coef), reference=far)
        probs[kl_coef] = result.model(torch.eye(4)[:3]).probs[:, 0]
    assert all(torch.equal(before[name], tensor) for name, tensor in far.state_dict().items())
    assert (probs[1e-6] < 0.4).all()
    assert (probs[5.0] > 0.5).all()


def test_takes_actions_that_are_vectors():
    result = train_ppo("Pendulum-v1", dataclasses.replace(FAST, total_steps=64))
    assert result.history.column("entropy")[1][0] == pytest.approx((1 + math.log(2 * math.pi)) / 2, abs=0.01)
    assert result.model.log_std.any()
    assert not result.interrupted


def test_the_last_iteration_is_whole():
    assert train_ppo(Counter, dataclasses.replace(FAST, total_steps=33)).history.column("entropy")[0].tolist() == [
        32,
        64,
    ]


def test_a_seed_decides_everything():
    runs = []
    for elsewhere, seed in enumerate((3, 3, 4)):
        torch.manual_seed(elsewhere)
        runs.append(train_ppo("CartPole-v1", dataclasses.replace(FAST, seed=seed)))
    assert runs[0].history == runs[1].history
    assert all(map(torch.equal, state(runs[0]), state(runs[1])))
    assert runs[0].history != runs[2].history
    before = torch.get_rng_state()
    train_ppo("CartPole-v1", FAST)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupt_keeps_what_was_learned():
    calls = []

    def evaluate(policy):
        calls.append(len(calls))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return {"calls": len(calls)}

    result = train_ppo("CartPole-v1", FAST, evaluate=evaluate)
    assert result.interrupted
    assert result.history.column("calls")[0].tolist() == [0, 32]
    two = train_ppo("CartPole-v1", FAST)
    assert not two.interrupted
    assert [row["entropy"] for row in two.history.rows[:1]] == [row["entropy"] for row in result.history.rows[1:]]


BAD = {
    "total_steps": 0,
    "environments": 0,
    "steps": 0,
    "epochs": 0,
    "evaluate_every": 0,
    "learning_rate": 0.0,
    "adam_epsilon": 0.0,
    "max_grad_norm": -1.0,
    "clip_epsilon": 0.0,
    "value_clip_epsilon": math.nan,
    "value_coef": -0.1,
    "entropy_coef": math.inf,
    "kl_penalty": -1.0,
    "kl_coef": math.nan,
    "gamma": 1.1,
    "gae_lambda": -0.1,
    "final_fraction": 2.0,
    "minibatch": 1,
    "kl_stop": 0.0,
}


@pytest.mark.parametrize("name", BAD)
def test_a_choice_that_cannot_be_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        PPOConfig(**{name: BAD[name]})


def test_a_minibatch_fits_into_the_batch():
    with pytest.raises(ValueError, match=r"minibatch is 33; expected from 2 to environments \* steps, 32"):
        dataclasses.replace(FAST, minibatch=33)


def test_no_part_of_a_batch_is_a_single_step():
    with pytest.raises(ValueError, match="minibatch is 2; expected one that cuts 5 steps into parts of at least 2"):
        PPOConfig(environments=1, steps=5, minibatch=2)


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ValueError, match="reference is None; expected one exactly where kl_coef > 0"):
        train_ppo(Corridor, PPOConfig(kl_coef=0.1))
    with pytest.raises(ValueError, match=r"reference is Tab.*expected one exactly"):
        train_ppo(Corridor, PPOConfig(), reference=TabularPolicy(4, 2))


def test_a_gradient_that_is_no_number_stops_the_run():
    _, policy, value = shared_agent()
    policy.body[1].weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match="gradient norm"):
        train_ppo("CartPole-v1", FAST, policy=policy, value=value)


@pytest.mark.parametrize("evaluate", [None, broken])
def test_its_environments_are_closed(evaluate):
    Closing, closed = closing(Corridor)
    with pytest.raises(KeyError) if evaluate else contextlib.nullcontext():
        train_ppo(Closing, FAST, evaluate=evaluate)
    assert len(set(map(id, closed))) == FAST.environments


@pytest.mark.parametrize("clip_epsilon", [1e-12, 1e-5])
def test_a_band_narrower_than_rounding_is_no_violation(clip_epsilon):
    config = dataclasses.replace(FAST, clip_epsilon=clip_epsilon)
    policy, value, batch = prepared(config)
    noisy = dataclasses.replace(batch, old_log_probs=batch.old_log_probs + 2e-5)
    ppo_losses(policy, value, noisy, config, update=0)
    with pytest.raises(InvariantViolation, match="first_minibatch"):
        ppo_losses(policy, value, dataclasses.replace(batch, old_log_probs=batch.old_log_probs + 1e-3), config, 0)
