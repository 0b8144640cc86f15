"""DQN: the ring of its memory, its loss by hand, what trains and what is copied; then the loop."""

import contextlib
import dataclasses
import itertools
import math
import signal

import gymnasium
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from hypothesis import given, settings, strategies as st
from torch import nn
from toy_envs import Counter, Played, Walk, broken, closing, last_bit

from rlhf_lab.experience.episodes import Runner, make_envs
from rlhf_lab.maths.mdp import chain, value_iteration
from rlhf_lab.models.policies import perceptron
from rlhf_lab.recipes.dqn import DQNConfig, Memory, exploration_rate, exploring, td_loss, train_dqn
from rlhf_lab.training.randomness import generator_for

torch.set_num_threads(1)
few = settings(max_examples=30, deadline=None)
FAST = DQNConfig(
    total_steps=96, learning_starts=8, train_every=16, gradients=3, batch=8, memory=64, hidden=(8,), evaluate_every=2
)


def with_(config=FAST, **changes):
    return dataclasses.replace(config, **changes)


# -- memory -----------------------------------------------------------------------------------------------------------
def transitions(memory):
    columns = (memory.observations, memory.actions, memory.rewards, memory.discounts, memory.next_observations)
    return {tuple(torch.cat([c[i].flatten().float() for c in columns]).tolist()) for i in range(len(memory))}


@few
@given(st.integers(0, 10**6), st.integers(5, 30), st.lists(st.integers(1, 5), min_size=1, max_size=12))
def test_memory_keeps_the_newest_and_drops_the_oldest(seed, size, fragments):
    runner, envs = Runner(make_envs(Walk, 1, seed)), make_envs(Walk, 1, seed)
    memory, everything = Memory(size, torch.zeros(3)), []
    for steps in fragments:
        memory.add(runner.collect(last_bit, steps, gamma=0.9))
    again = Runner(envs)
    for _ in range(sum(fragments)):
        one = Memory(1, torch.zeros(3))
        one.add(again.collect(last_bit, 1, gamma=0.9))
        everything += transitions(one)
    assert len(memory) == min(size, len(everything))
    assert transitions(memory) == set(everything[-size:])
    assert memory.count == len(everything)


def test_the_ring_overwrites_its_oldest_place():
    memory, runner = Memory(4, torch.zeros(1)), Runner([Counter(100)])
    for steps in (3, 3):
        memory.add(runner.collect(last_bit, steps, gamma=0.5))
    assert memory.rewards.tolist() == [5, 6, 3, 4]
    assert memory.next_observations[:, 0].tolist() == [5, 6, 3, 4]
    assert memory.observations[:, 0].tolist() == [4, 5, 2, 3]


def test_of_too_many_steps_the_last_ones_stay():
    memory = Memory(4, torch.zeros(1))
    memory.add(Runner([Counter(100)]).collect(last_bit, 7, gamma=0.5))
    assert sorted(memory.rewards.tolist()) == [4, 5, 6, 7]
    assert memory.count == 7


def test_memory_keeps_what_was_truly_seen_after_a_step():
    """Episodes of two steps: neither kind of end shows the 0 after the reset."""
    for env, discounts in ((Counter(2), [0.5, 0, 0.5, 0]), (TimeLimit(Counter(9), 2), [0.5] * 4)):
        memory = Memory(4, torch.zeros(1))
        memory.add(Runner([env]).collect(last_bit, 4, gamma=0.5))
        assert memory.next_observations[:, 0].tolist() == [1, 2, 1, 2]
        assert memory.discounts.tolist() == discounts


# -- the loss ---------------------------------------------------------------------------------------------------------
def linear(rows):
    """Values of two actions from a one-hot state."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor(rows).T.contiguous()
    return layer


def remembered(reward=1.0, discount=0.5):
    """From state 0 by action 1 into state 1."""
    memory = Memory(1, torch.zeros(2))
    memory.observations[0, 0] = memory.next_observations[0, 1] = 1.0
    memory.actions[0], memory.rewards[0], memory.discounts[0], memory.count = 1, reward, discount, 1
    return memory


@pytest.mark.parametrize(
    ("double", "discount", "target"),
    [
        (False, 0.5, 1 + 0.5 * 8.0),  # the target network's own best
        (True, 0.5, 1 + 0.5 * 6.0),  # the online network prefers action 0, which the target values at 6
        (True, 0.0, 1.0),
        (False, 0.0, 1.0),
    ],
)
@pytest.mark.parametrize("value", [2.0, 3.6, 4.5])
def test_the_loss_is_the_hand_case(double, discount, target, value):
    network, frozen = linear([[9.0, value], [5.0, 4.0]]), linear([[0.0, 0.0], [6.0, 8.0]])
    loss, q_value = td_loss(network, frozen, remembered(discount=discount), torch.tensor([0]), double)
    error = value - target
    assert float(loss.detach()) == pytest.approx(error**2 / 2 if abs(error) < 1 else abs(error) - 0.5)
    assert float(q_value) == pytest.approx(value)
    loss.backward()
    slope = max(-1.0, min(1.0, error))
    torch.testing.assert_close(network.weight.grad.T, torch.tensor([[0.0, slope], [0.0, 0.0]]))
    assert frozen.weight.grad is None


def test_the_loss_is_a_mean_over_its_rows():
    generator = torch.Generator().manual_seed(0)
    memory = Memory(6, torch.zeros(2))
    memory.count = 6
    for name in ("observations", "next_observations", "rewards", "discounts"):
        getattr(memory, name).normal_(generator=generator)
    network, frozen, rows = linear([[1.0, 2.0], [-1.0, 0.5]]), linear([[0.0, 1.0], [2.0, 0.3]]), torch.tensor([4, 1, 4])
    loss, q_value = td_loss(network, frozen, memory, rows, True)
    alone = [td_loss(network, frozen, memory, row[None], True) for row in rows]
    assert float(loss.detach()) == pytest.approx(sum(float(one.detach()) for one, _ in alone) / 3, rel=1e-5)
    assert float(q_value) == pytest.approx(sum(float(q) for _, q in alone) / 3, rel=1e-5)


# -- exploring --------------------------------------------------------------------------------------------------------
def test_the_share_of_random_actions_falls_linearly():
    config = DQNConfig(total_steps=1000, learning_starts=50, exploration=0.4, epsilon=0.9, final_epsilon=0.1)
    rates = {0: 1.0, 49: 1.0, 50: 0.8, 200: 0.5, 399: 0.102, 400: 0.1, 1000: 0.1}
    assert {step: exploration_rate(config, step) for step in rates} == pytest.approx(rates)


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_the_best_action_is_taken_but_for_a_share(epsilon):
    """Each share within 5 standard errors: a false alarm in 500,000 at each of 3 actions."""
    n, network = 20_000, nn.Linear(1, 3)
    network.weight.data, network.bias.data = torch.zeros(3, 1), torch.tensor([0.0, 2.0, 1.0])
    actions = exploring(network, epsilon, torch.Generator().manual_seed(0))(torch.zeros(n, 1))
    for action, share in enumerate((epsilon / 3, 1 - 2 * epsilon / 3, epsilon / 3)):
        error = 5 * math.sqrt(share * (1 - share) / n)
        assert abs(float((actions == action).float().mean()) - share) <= error


# -- the loop ---------------------------------------------------------------------------------------------------------
class Watched(nn.Linear):
    """Notes its weights whenever it is asked for values: as a target, or with a gradient."""

    def __init__(self, seen):
        super().__init__(4, 2)
        self.seen = seen

    def __deepcopy__(self, memo):
        other = Watched(self.seen)
        other.load_state_dict(self.state_dict())
        return other

    def forward(self, x):
        if not self.weight.requires_grad or torch.is_grad_enabled():
            self.seen["online" if self.weight.requires_grad else "target"].append(self.weight.detach().clone())
        return super().forward(x)


def test_the_target_is_copied_now_and_then_and_never_trained():
    seen = {"online": [], "target": []}
    torch.manual_seed(0)
    train_dqn("CartPole-v1", with_(target_every=4), network=Watched(seen))
    online, target = seen["online"], seen["target"]
    assert len(online) == len(target) == 6 * 3
    assert not any(torch.equal(a, b) for a, b in itertools.pairwise(online))
    for update, weight in enumerate(target):
        assert torch.equal(weight, online[update - update % 4])


def test_the_loop_takes_the_steps_of_the_formula():
    """Three bursts again, by hand, with torch's own Adam."""
    config = with_(
        total_steps=48, target_every=1, learning_rate=1e-3, max_grad_norm=0.3, final_fraction=0.25, exploration=1.0
    )
    result = train_dqn("CartPole-v1", config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = perceptron(4, 2, (8,))
    generator, runner = generator_for(0, "dqn"), Runner(make_envs("CartPole-v1", 1, 0))
    optimiser, memory = torch.optim.Adam(network.parameters()), Memory(64, torch.zeros(4))
    for rate, epsilon in ((1e-3, 1.0), (0.75e-3, 0.68), (0.5e-3, 0.36)):
        optimiser.param_groups[0]["lr"] = rate
        memory.add(runner.collect(exploring(network, epsilon, generator), 16, 0.99))
        for _ in range(3):
            rows = torch.randint(len(memory), (8,), generator=generator)
            optimiser.zero_grad()
            td_loss(network, network, memory, rows, double=True)[0].backward()
            nn.utils.clip_grad_norm_(network.parameters(), 0.3)
            optimiser.step()
    for got, expected in zip(result.model.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(got, expected)
    assert (result.history.column("grad_norm")[1] > 0.3).any()


def test_nothing_is_learned_before_learning_starts():
    result = train_dqn("CartPole-v1", with_(learning_starts=40, total_steps=80))
    assert result.history.column("loss")[0].tolist() == [48, 64, 80]
    assert result.history.column("epsilon")[1].tolist() == pytest.approx([1, 1, 1, 0.04, 0.04])
    whole = train_dqn("CartPole-v1", with_(learning_starts=48, total_steps=80))  # begins with the burst that reaches it
    assert whole.history.column("loss")[0].tolist() == [48, 64, 80]


class Corridor(Played):
    def __init__(self):
        super().__init__(chain(3, gamma=0.9, step_reward=-0.1), one_hot=True)


LEARN = DQNConfig(
    total_steps=1500, learning_starts=64, train_every=16, gradients=8, batch=32, memory=1000, target_every=20,
    learning_rate=5e-3, gamma=0.9, hidden=(32,), exploration=1.0, final_epsilon=0.5,
)  # fmt: skip


@pytest.mark.parametrize("double", [True, False])
def test_learns_the_exact_values(double):
    mdp = chain(3, gamma=0.9, step_reward=-0.1)
    result = train_dqn(Corridor, with_(LEARN, double=double))
    expected = mdp.q_values(value_iteration(mdp)[0])[:3].float()
    torch.testing.assert_close(result.model(torch.eye(4)[:3]).detach(), expected, rtol=0, atol=0.01)
    assert result.history.column("return")[1][-1] > result.history.column("return")[1][0]


def test_with_gamma_0_only_the_reward_counts():
    result = train_dqn(Corridor, with_(LEARN, gamma=0.0, total_steps=1000))
    mdp = chain(3, gamma=0.0, step_reward=-0.1)
    expected = mdp.rewards[:3].float()
    torch.testing.assert_close(result.model(torch.eye(4)[:3]).detach(), expected, rtol=0, atol=0.01)


def test_the_last_burst_is_whole():
    assert train_dqn("CartPole-v1", with_(total_steps=33)).history.rows[-1]["step"] == 48


def test_a_seed_decides_everything():
    runs = []
    for elsewhere, seed in enumerate((3, 3, 4)):
        torch.manual_seed(elsewhere)
        runs.append(train_dqn("CartPole-v1", with_(seed=seed)))
    assert runs[0].history == runs[1].history
    assert all(map(torch.equal, runs[0].model.parameters(), runs[1].model.parameters()))
    assert runs[0].history != runs[2].history
    before = torch.get_rng_state()
    train_dqn("CartPole-v1", FAST)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupt_keeps_what_was_learned():
    calls = []

    def evaluate(network):
        calls.append(len(calls))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return {"calls": len(calls)}

    result = train_dqn("CartPole-v1", FAST, evaluate=evaluate)
    assert result.interrupted
    assert result.history.column("calls")[0].tolist() == [0, 32]
    whole = train_dqn("CartPole-v1", FAST)
    assert not whole.interrupted
    assert [row["loss"] for row in whole.history.rows[:2]] == [row["loss"] for row in result.history.rows[1:]]


BAD = {
    "total_steps": 0,
    "learning_starts": 0,
    "train_every": 0,
    "gradients": 0,
    "batch": 0,
    "target_every": 0,
    "evaluate_every": 0,
    "learning_rate": math.inf,
    "max_grad_norm": 0.0,
    "gamma": 1.1,
    "final_fraction": -0.1,
    "epsilon": 1.1,
    "final_epsilon": math.nan,
    "exploration": 0.0,
    "memory": 63,
}


@pytest.mark.parametrize("name", BAD)
def test_a_choice_that_cannot_be_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        DQNConfig(**{name: BAD[name]})


def test_what_cannot_be_learned_is_refused():
    with pytest.raises(ValueError, match="learning_starts is 96; expected below total_steps"):
        with_(learning_starts=96)
    with pytest.raises(ValueError, match=r"observations Discrete\(48\); expected a Box \(use q_learning"):
        train_dqn("CliffWalking-v1", FAST)
    with pytest.raises(ValueError, match=r"actions Box\(.*expected Discrete$"):
        train_dqn("Pendulum-v1", FAST)


def test_a_gradient_that_is_no_number_stops_the_run():
    network = nn.Linear(gymnasium.make("CartPole-v1").observation_space.shape[0], 2)
    network.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match="gradient norm"):
        train_dqn("CartPole-v1", FAST, network=network)


@pytest.mark.parametrize("evaluate", [None, broken])
def test_its_environments_are_closed(evaluate):
    Closing, closed = closing(Corridor)
    with pytest.raises(KeyError) if evaluate else contextlib.nullcontext():
        train_dqn(Closing, FAST, evaluate=evaluate)
    assert len(set(map(id, closed))) == 1
