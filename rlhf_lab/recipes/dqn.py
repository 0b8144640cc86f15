"""DQN: Q-learning with a network, made stable by a replay memory and a target network, with double targets.

Left out: prioritised replay, dueling heads, several steps, distributions of returns.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from rlhf_lab.experience.episodes import Episodes, MakeEnv, Runner, open_envs
from rlhf_lab.models.policies import perceptron
from rlhf_lab.training.configs import above_zero, at_least_one, flags, require, shares, whole, whole_number
from rlhf_lab.training.history import Result, mean_rows
from rlhf_lab.training.optimisers import clipped_step, linear, scale_rates
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.training.steps import Steps


@dataclass(frozen=True)
class DQNConfig:
    """Every choice of a DQN run. Defaults are for CartPole and its like.

    Attributes:
        total_steps: of the environment, >= 1; the last burst is never cut short, so it may be a few more.
        learning_starts: steps taken at random before the first gradient, >= 1.
        train_every: steps between bursts of gradients, >= 1.
        gradients: of each burst, >= 1.
        batch: transitions in one gradient, >= 1.
        memory: transitions kept, the oldest leave first; at least `batch`.
        target_every: gradients between copies to the target network, >= 1.
        double: the online network chooses the next action and the target network values it.
        learning_rate: Adam's, at the start.
        final_fraction: in [0, 1]; share of the rate left at the end, a linear fall; 1 is constant.
        max_grad_norm: > 0.
        gamma: in [0, 1].
        epsilon, final_epsilon: in [0, 1], share of random actions; a linear fall from the one at step 0 to the other,
            of which the part before `learning_starts` is replaced by 1.
        exploration: in (0, 1], share of the run after which `final_epsilon` is reached.
        hidden: widths of the network's layers.
        evaluate_every: bursts between calls of `evaluate`.
        seed: of weights, environment, actions and batches.
    """

    total_steps: int = 50_000
    learning_starts: int = 1000
    train_every: int = 128
    gradients: int = 64
    batch: int = 64
    memory: int = 100_000
    target_every: int = 100
    double: bool = True
    learning_rate: float = 1e-3
    final_fraction: float = 0.0
    max_grad_norm: float = 10.0
    gamma: float = 0.99
    epsilon: float = 1.0
    final_epsilon: float = 0.04
    exploration: float = 0.2
    hidden: Sequence[int] = (128, 128)
    evaluate_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "total_steps", "learning_starts", "train_every", "gradients")
        at_least_one(self, "batch", "memory", "target_every", "evaluate_every")
        above_zero(self, "learning_rate", "max_grad_norm", "exploration")
        shares(self, "gamma", "final_fraction", "epsilon", "final_epsilon", "exploration")
        flags(self, "double")
        whole(self, "seed", least=0)
        require(isinstance(self.hidden, Sequence), "hidden", self.hidden, "a list of widths")
        for width in self.hidden:
            whole_number("a width in hidden", width, least=1)
        require(self.memory >= self.batch, "memory", self.memory, f"at least batch, {self.batch}")
        require(self.learning_starts < self.total_steps, "learning_starts", self.learning_starts, "below total_steps")


@dataclass(frozen=True, eq=False, repr=False)
class DQNResult(Result[nn.Module]):
    """What was learned.

    Attributes:
        model: the network, observations [..., D] -> values of the actions [..., A].
        history: a row a burst, numbered by the steps taken. return: mean of the episodes that ended since the last row
            (None where none did). loss, q_value (of the actions taken), grad_norm: means. epsilon: now.
    """


class Memory:
    """The last `size` transitions, in a ring."""

    def __init__(self, size: int, observation: Tensor):
        self.observations, self.next_observations = (observation.new_zeros(size, *observation.shape) for _ in range(2))
        self.actions = torch.zeros(size, dtype=torch.long)
        self.rewards, self.discounts = torch.zeros(size), torch.zeros(size)
        self.count = 0

    def __len__(self) -> int:
        return min(self.count, len(self.rewards))

    def add(self, episodes: Episodes) -> None:
        """The steps of the rows, with what was truly seen after them; the last ones where they are too many."""
        mask, size = episodes.mask, len(self.rewards)
        place = ((self.count + torch.arange(int(mask.sum()))) % size)[-size:]
        self.observations[place] = episodes.observations[:, :-1][mask][-size:]
        self.next_observations[place] = episodes.observations[:, 1:][mask][-size:]
        for name in ("actions", "rewards", "discounts"):
            getattr(self, name)[place] = getattr(episodes, name)[mask][-size:]
        self.count += int(mask.sum())


def train_dqn(
    env: MakeEnv,
    config: DQNConfig | None = None,
    *,
    network: nn.Module | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> DQNResult:
    """Learn action values with a network.

        minimise  huber(r + discount max over a' of Q_target(s', a') - Q(s, a)),    discount 0 after a terminal step

    Args:
        env: Box observations and Discrete actions: an id, or a function that makes one.
        config: DQNConfig() if None.
        network: trained in place; a perceptron if None.
        evaluate: called with the network before the first step, every `evaluate_every` bursts and after the last.

    Returns:
        DQNResult; it acts by `model(observations).argmax(-1)`.

    Raises:
        ValueError: an argument that cannot be, an environment with other spaces, or one that breaks a rule.
        FloatingPointError: the gradient is NaN or infinite.

    Example:
        >>> result = train_dqn("CartPole-v1", DQNConfig(total_steps=256, learning_starts=64))
        >>> result.model(torch.zeros(1, 4)).shape
        torch.Size([1, 2])

    Source: Mnih et al. 2015; the double targets: van Hasselt, Guez and Silver 2016. Chapter 03.
    """
    config = config or DQNConfig()
    with open_envs(env, 1, config.seed) as envs:
        seen, actions = envs[0].observation_space, envs[0].action_space
        if not (isinstance(seen, Box) and isinstance(actions, Discrete)):
            raise ValueError(f"env has observations {seen}; expected a Box (use q_learning for Discrete ones)")
        sizes = (math.prod(seen.shape), int(actions.n))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network = perceptron(*sizes, config.hidden) if network is None else network
        target = copy.deepcopy(network).requires_grad_(False)
        optimiser = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
        runner, memory, generator = Runner(envs), None, generator_for(config.seed, "dqn")
        updates, every, bursts = 0, config.train_every, -(-config.total_steps // config.train_every)
        look = None if evaluate is None else partial(evaluate, network)
        with Steps("DQN", bursts, look, config.evaluate_every, number=lambda done: done * every) as steps:
            for burst in steps:
                epsilon = exploration_rate(config, burst * every)
                scale_rates(optimiser, linear(1.0, config.final_fraction, burst / bursts))
                episodes = runner.collect(exploring(network, epsilon, generator), every, config.gamma)
                memory = Memory(config.memory, episodes.observations[0, 0]) if memory is None else memory
                memory.add(episodes)
                numbers = []
                for _ in range(config.gradients if memory.count >= config.learning_starts else 0):
                    if updates % config.target_every == 0:
                        target.load_state_dict(network.state_dict())
                    rows = torch.randint(len(memory), (config.batch,), generator=generator)
                    loss, q_value = td_loss(network, target, memory, rows, config.double)
                    optimiser.zero_grad()
                    loss.backward()
                    (norm,) = clipped_step(optimiser, config.max_grad_norm, burst * every, network)
                    updates += 1
                    numbers.append({"loss": float(loss.detach()), "q_value": float(q_value), "grad_norm": norm})
                steps.log({"return": episodes.mean_return, "epsilon": epsilon}, mean_rows(numbers))
        return DQNResult(network, steps.history, steps.interrupted)


def exploration_rate(config: DQNConfig, step: int) -> float:
    """Share of random actions at a step: 1 until learning starts, then a linear fall, then constant."""
    if step < config.learning_starts:
        return 1.0
    done = min(1.0, step / (config.exploration * config.total_steps))
    return linear(config.epsilon, config.final_epsilon, done)


def exploring(network: nn.Module, epsilon: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Observations -> the action with the highest value, or any with probability epsilon."""

    def act(observations: Tensor) -> Tensor:
        q_values = network(observations)
        anything = torch.randint(q_values.shape[-1], q_values.shape[:-1], generator=generator)
        random = torch.rand(anything.shape, generator=generator) < epsilon
        return torch.where(random, anything, q_values.argmax(-1))

    return act


def td_loss(network: nn.Module, target: nn.Module, memory: Memory, rows: Tensor, double: bool) -> tuple[Tensor, Tensor]:
    """Mean Huber loss of the TD errors of some transitions, and the mean value of their actions."""
    with torch.no_grad():
        after = memory.next_observations[rows]
        later = target(after)
        chosen = (network(after) if double else later).argmax(-1, keepdim=True)
        targets = memory.rewards[rows] + memory.discounts[rows] * later.gather(-1, chosen).squeeze(-1)
    q_values = network(memory.observations[rows]).gather(-1, memory.actions[rows, None]).squeeze(-1)
    return smooth_l1_loss(q_values, targets), q_values.detach().mean()
