"""Q-learning on tables: against value iteration, and its update by hand."""

import contextlib
import dataclasses
import functools
import math
import signal

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.wrappers import TimeLimit
from toy_envs import Counter, Played

from rlhf_lab.maths.mdp import chain, gridworld, value_iteration
from rlhf_lab.recipes.q_learning import QLearningConfig, explore, train_q_learning

RANDOM = QLearningConfig(epsilon=1.0, final_epsilon=1.0, learning_rate=1.0, learning_rate_power=0.0)
FAST = QLearningConfig(steps=500, log_every=100)


def with_(config=RANDOM, **changes):
    return dataclasses.replace(config, **changes)


def exact(mdp):
    return mdp.q_values(value_iteration(mdp)[0])[:-1].numpy()  # without the end, which is never updated


# -- where it leads ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "mdp",
    [
        chain(4, gamma=0.9, step_reward=-0.1),
        gridworld(["S..", ".#O", "..G"], gamma=0.8, step_reward=-0.05),
    ],
)
def test_without_chance_it_finds_the_exact_values(mdp):
    result = train_q_learning(lambda: Played(mdp), with_(steps=10_000, gamma=mdp.gamma))
    assert (result.visits[:-1] > 20).all()
    np.testing.assert_allclose(result.model[:-1], exact(mdp), atol=1e-9)
    assert not result.model[-1].any()
    assert result.history.last("td_error") < 1e-9


def test_with_chance_it_comes_near_the_exact_values():
    mdp = gridworld(["S.", ".G"], gamma=0.8, slip=0.3)
    result = train_q_learning(lambda: Played(mdp), with_(steps=30_000, gamma=0.8, learning_rate_power=0.85))
    np.testing.assert_allclose(result.model[:-1], exact(mdp), atol=0.04)


def test_the_way_along_the_cliff_costs_13():
    config = with_(steps=25_000, gamma=1.0, epsilon=0.5, final_epsilon=0.1)
    result = train_q_learning("CliffWalking-v1", config)
    assert result.model[36].max() == pytest.approx(-13, abs=0.01)
    assert result.model[36, 1] == -113  # east, over the edge, and from there the best way
    assert result.history.column("return")[1][0] < -100


# -- an update by hand ------------------------------------------------------------------------------------------------
class Numbered(Counter):
    """The counter, in whole numbers."""

    observation_space = Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        _, *rest = super().step(action)
        return self.count, *rest


TENS = np.full((5, 2), 10.0)


@pytest.mark.parametrize(("make", "expected"), [(lambda: Numbered(1), 1.0), (lambda: TimeLimit(Numbered(9), 1), 6.0)])
def test_only_a_terminal_step_ends_the_future(make, expected):
    """The first step pays 1; gamma 0.5 and a future of 10 add 5 where it was only truncated."""
    result = train_q_learning(make, with_(steps=40, gamma=0.5), q_values=TENS)
    assert result.model[0].tolist() == [expected, expected]
    assert (result.model[1:] == 10).all()


def test_the_future_is_the_best_value_of_the_next_state():
    start = np.zeros((5, 2))
    start[1] = [3.0, 7.0]
    result = train_q_learning(lambda: Numbered(3), with_(steps=1, gamma=0.5, learning_rate=0.5), q_values=start)
    assert sorted(result.model[0]) == [0.0, 0.5 * (1 + 0.5 * 7)]


@pytest.mark.parametrize(("power", "rates"), [(0.0, [0.4] * 4), (1.0, [0.4 / n for n in range(1, 5)])])
def test_the_rate_falls_with_the_visits_of_a_pair(power, rates):
    class OneChoice(Numbered):
        action_space = Discrete(1)

    config = with_(steps=4, learning_rate=0.4, learning_rate_power=power, gamma=0.0)
    result = train_q_learning(lambda: OneChoice(1), config)
    assert result.visits[0, 0] == 4
    assert result.model[0, 0] == pytest.approx(1 - math.prod(1 - rate for rate in rates))
    assert result.history.last("return") == 1.0


def test_what_it_starts_from_is_copied():
    start = np.zeros((5, 2), dtype=int)
    result = train_q_learning(lambda: Numbered(3), with_(steps=50), q_values=start)
    assert not start.any()
    assert result.model.dtype == float
    assert result.model.any()


# -- exploring --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("epsilon", "law"), [(0.0, [0, 0.5, 0, 0.5]), (1.0, [0.25] * 4), (0.4, [0.1, 0.4, 0.1, 0.4])])
def test_equal_actions_are_explored_evenly(epsilon, law):
    """Each share within 5 standard errors: one false alarm in 150,000."""
    random, n = np.random.default_rng(0), 20_000
    q_values = np.array([1.0, 2.0, 0.0, 2.0])
    shares = np.bincount([explore(q_values, epsilon, random) for _ in range(n)], minlength=4) / n
    errors = np.sqrt(np.array(law) * (1 - np.array(law)) / n)
    assert (np.abs(shares - law) <= 5 * errors).all()


def test_exploration_falls_to_its_last_share():
    """With the best action known from the start, the others are half of the random ones."""
    start = np.tile([0.0, 1e6], (5, 1))
    config = with_(steps=8000, learning_rate=1e-9, epsilon=0.8, final_epsilon=0.0)
    result = train_q_learning(lambda: Numbered(3), config, q_values=start)
    assert result.visits[:, 0].sum() / 8000 == pytest.approx(0.2, abs=0.025)  # 5 standard errors
    # Of two steps the first explores fully and the last one not at all.
    seeds = [
        train_q_learning(lambda: Numbered(3), with_(config, steps=2, epsilon=1.0, seed=s), q_values=start)
        for s in range(40)
    ]
    assert not any(run.visits[1:, 0].any() for run in seeds)
    assert any(run.visits[0, 0] for run in seeds)
    greedy = train_q_learning(lambda: Numbered(3), with_(config, epsilon=0.0), q_values=start)
    assert not greedy.visits[:, 0].any()


# -- the run ----------------------------------------------------------------------------------------------------------
def test_the_history_averages_what_came_since_its_last_row():
    result = train_q_learning(lambda: Numbered(3), with_(steps=10, log_every=4, gamma=0.0))
    steps, returns = result.history.column("return")
    assert (steps.tolist(), returns.tolist()) == ([4, 8, 10], [6.0, 6.0, 6.0])
    assert result.history.column("td_error")[0].tolist() == [4, 8, 10]
    assert train_q_learning(lambda: Numbered(4), with_(steps=3)).history.rows[0]["return"] is None


def test_a_seed_decides_everything():
    make = functools.partial(gymnasium.make, "FrozenLake-v1")
    runs = [train_q_learning(make, with_(FAST, seed=seed)) for seed in (3, 3, 4)]
    assert np.array_equal(runs[0].visits, runs[1].visits)
    assert np.array_equal(runs[0].model, runs[1].model)
    assert runs[0].history == runs[1].history
    assert not np.array_equal(runs[0].visits, runs[2].visits)


def test_an_interrupt_keeps_what_was_learned():
    class Impatient(Numbered):
        taken = 0

        def step(self, action):
            Impatient.taken += 1
            if Impatient.taken == 7:
                signal.raise_signal(signal.SIGINT)
            return super().step(action)

    result = train_q_learning(lambda: Impatient(3), FAST)
    assert result.interrupted
    assert result.visits.sum() == 100  # the steps between two rows are finished
    assert result.history.rows[-1]["step"] == 100
    whole = train_q_learning(lambda: Numbered(3), FAST)
    assert not whole.interrupted
    assert whole.visits.sum() == 500


BAD = {
    "steps": 0,
    "log_every": 0,
    "learning_rate": 0.0,
    "learning_rate_power": 1.5,
    "epsilon": -0.1,
    "final_epsilon": 1.1,
    "gamma": math.nan,
}


@pytest.mark.parametrize("name", BAD)
def test_a_choice_that_cannot_be_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is .*; expected"):
        QLearningConfig(**{name: BAD[name]})


class Shifted(gymnasium.Env):
    """Spaces that do not begin at 0: three states from -1, two actions from 5; action 6 pays 1."""

    observation_space, action_space = Discrete(3, start=-1), Discrete(2, start=5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = -1
        return self.state, {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.state += 1
        return self.state, float(action - 5), self.state == 1, False, {}


def test_spaces_that_do_not_begin_at_0_are_shifted():
    result = train_q_learning(Shifted, QLearningConfig(steps=200, gamma=1.0))
    assert result.visits.sum(1).tolist() == [100, 100, 0]
    assert result.model[0].argmax() == result.model[1].argmax() == 1


def test_a_reward_that_is_no_number_is_refused():
    class Broken(Shifted):
        def step(self, action):
            seen, _, *rest = super().step(action)
            return seen, math.nan, *rest

    with pytest.raises(ValueError, match="env gave a reward of nan; expected finite"):
        train_q_learning(Broken, FAST)


def test_what_cannot_be_learned_in_a_table_is_refused():
    with pytest.raises(ValueError, match=r"q_values is \(2, 5\); expected shape \(5, 2\)"):
        train_q_learning(lambda: Numbered(3), FAST, q_values=np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"observations Box\(.*; expected Discrete \(use dqn"):
        train_q_learning("CartPole-v1", FAST)
    with pytest.raises(ValueError, match=r"actions Box\(.*expected Discrete$"):
        train_q_learning("Pendulum-v1", FAST)


@pytest.mark.parametrize("reward", [1.0, math.nan])
def test_its_environment_is_closed(reward):
    closed = []

    class Closing(Shifted):
        def step(self, action):
            seen, _, *rest = super().step(action)
            return seen, reward, *rest

        def close(self):
            closed.append(self)

    with pytest.raises(ValueError, match="reward of nan") if math.isnan(reward) else contextlib.nullcontext():
        train_q_learning(Closing, FAST)
    assert len(closed) == 1


@pytest.mark.parametrize("state", [-2, 2, 0.0, np.array([0])])
def test_a_state_that_is_not_in_the_table_is_refused(state):
    class Broken(Shifted):
        def step(self, action):
            _, *rest = super().step(action)
            return state, *rest

    with pytest.raises(ValueError, match=r"env gave an observation of .*; expected whole numbers of Discrete\(3"):
        train_q_learning(Broken, FAST)
