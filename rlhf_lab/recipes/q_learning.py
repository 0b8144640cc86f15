"""Q-learning on a table: the value of every action in every state, learned one step at a time.

Left out: eligibility traces, double Q-learning on tables, optimistic starts (pass your own `q_values`).
"""

from dataclasses import dataclass

import numpy as np
from gymnasium.spaces import Discrete

from rlhf_lab.experience.episodes import MakeEnv, checked_reset, checked_step, open_envs
from rlhf_lab.training.configs import above_zero, at_least_one, require, shares, whole
from rlhf_lab.training.history import Result
from rlhf_lab.training.optimisers import linear
from rlhf_lab.training.steps import Steps


@dataclass(frozen=True)
class QLearningConfig:
    """Every choice of a run of Q-learning.

    Attributes:
        steps: of the environment, >= 1.
        learning_rate: in (0, 1]; of the first visit of a pair.
        learning_rate_power: in [0, 1]; visit n of a pair learns at learning_rate / n^power. Above 1/2 the rates meet
            the conditions of the convergence proof, 0 is a constant rate.
        epsilon: in [0, 1], share of actions at random at the first step.
        final_epsilon: in [0, 1], the same at the last step, a linear change between them.
        gamma: in [0, 1].
        log_every: steps between rows of the history.
        seed: of environment and actions.
    """

    steps: int = 50_000
    learning_rate: float = 1.0
    learning_rate_power: float = 0.6
    epsilon: float = 1.0
    final_epsilon: float = 0.1
    gamma: float = 0.99
    log_every: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "steps", "log_every")
        above_zero(self, "learning_rate")
        shares(self, "learning_rate", "learning_rate_power", "epsilon", "final_epsilon", "gamma")
        whole(self, "seed", least=0)


@dataclass(frozen=True, eq=False, repr=False)
class QLearningResult(Result[np.ndarray]):
    """What was learned.

    Attributes:
        model: [S, A] action values.
        visits: [S, A], how often each pair was updated.
        history: a row every `log_every` steps. return: mean of the episodes that ended since the last row (None where
            none did). td_error: mean of |target - Q| since then.
    """

    visits: np.ndarray


def train_q_learning(
    env: MakeEnv, config: QLearningConfig | None = None, *, q_values: np.ndarray | None = None
) -> QLearningResult:
    """Learn the optimal action values from a policy that explores.

        Q(s, a) += rate (r + gamma max over a' of Q(s', a') - Q(s, a)),    without the max after a terminal step

    Args:
        env: with Discrete observations and actions: an id, or a function that makes one.
        config: QLearningConfig() if None.
        q_values: [S, A] to start from (copied); 0 if None.

    Returns:
        QLearningResult.

    Raises:
        ValueError: an argument that cannot be, an environment with other spaces, or one that breaks a rule.

    Example:
        >>> result = train_q_learning("CliffWalking-v1", QLearningConfig(steps=200, gamma=1.0))
        >>> result.model.shape, int(result.visits.sum())
        ((48, 4), 200)

    Source: Watkins and Dayan 1992. Chapter 03.
    """
    config = config or QLearningConfig()
    with open_envs(env, 1, config.seed) as (world,):
        states, actions = world.observation_space, world.action_space
        if not (isinstance(states, Discrete) and isinstance(actions, Discrete)):
            raise ValueError(f"env has observations {states}; expected Discrete (use dqn for these)")
        shape = (int(states.n), int(actions.n))
        q_values = np.zeros(shape) if q_values is None else np.array(q_values, dtype=float)
        require(q_values.shape == shape, "q_values", q_values.shape, f"shape {shape}")
        visits, random = np.zeros(shape, dtype=int), np.random.default_rng(config.seed)
        first, shift = int(states.start), int(actions.start)
        state, earned = int(checked_reset(world)) - first, 0.0
        row_after = lambda done: min(done * config.log_every, config.steps)  # noqa: E731
        with Steps("Q-learning", -(-config.steps // config.log_every), number=row_after) as steps:
            for row in steps:
                returns, errors = [], []
                for step in range(row_after(row), row_after(row + 1)):
                    epsilon = linear(config.epsilon, config.final_epsilon, step / max(1, config.steps - 1))
                    action = explore(q_values[state], epsilon, random)
                    seen, reward, terminated, truncated = checked_step(world, action + shift)
                    after = int(seen) - first
                    target = reward + config.gamma * (0.0 if terminated else q_values[after].max())
                    error = target - q_values[state, action]
                    visits[state, action] += 1
                    rate = config.learning_rate / visits[state, action] ** config.learning_rate_power
                    q_values[state, action] += rate * error
                    errors.append(abs(error))
                    earned, state = earned + reward, after
                    if terminated or truncated:
                        returns.append(earned)
                        state, earned = int(checked_reset(world)) - first, 0.0
                mean_return = float(np.mean(returns)) if returns else None
                steps.log({"return": mean_return, "td_error": float(np.mean(errors))})
        return QLearningResult(q_values, steps.history, steps.interrupted, visits)


def explore(q_values: np.ndarray, epsilon: float, random: np.random.Generator) -> int:
    """Epsilon-greedy: any action with probability epsilon, else one of the best, drawn evenly among equals."""
    if random.random() < epsilon:
        return int(random.integers(len(q_values)))
    return int(random.choice(np.flatnonzero(q_values == q_values.max())))
