"""Experience from gymnasium environments: whole episodes, or fragments of them from environments side by side.

A row is one episode or one fragment, padded on the right. Termination is a discount of 0 at the last step; a row that
was cut (by a time limit, or because the fragment was full) ends with gamma and keeps what was seen after it, so that a
value can be bootstrapped from the *true* last state and never from the first one after a reset.
Left out: environments in processes of their own, frame stacks, normalisation (gymnasium has wrappers for that).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from rlhf_lab.maths.tensors import length_mask
from rlhf_lab.models.policies import CategoricalPolicy, GaussianPolicy, TabularPolicy, TabularValue, Value, perceptron
from rlhf_lab.training.configs import require

MakeEnv = str | Callable[[], gymnasium.Env]
Act = Callable[[Tensor], Tensor]  # observations [B, ...] -> actions [B] or [B, D]


@dataclass(frozen=True, eq=False)
class Episodes:
    """B rows of at most T steps.

    Attributes:
        observations: [B, T + 1, ...]; column n of a row with n steps is what was seen after the last of them.
            Integers of an integer space, else float32 vectors.
        actions: [B, T] integers, or [B, T, D] floats as they were drawn.
        rewards: [B, T] float32.
        discounts: [B, T]; gamma, or 0 at a terminal step.
        mask: [B, T] bool, True at real steps.
        returns: undiscounted return of every episode that was over within these rows, in the order of the rows.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    mask: Tensor
    returns: tuple[float, ...]

    @property
    def mean_return(self) -> float | None:
        """Mean of `returns`; None where no episode was over."""
        return sum(self.returns) / len(self.returns) if self.returns else None

    def values(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        """[B, T + 1] values of every real observation, the last one of a row too; 0 at padding. Differentiable."""
        rows, steps = self.mask.shape
        seen = length_mask(self.mask.sum(1) + 1, steps + 1)
        values = value(self.observations[seen])
        return values.new_zeros(rows, steps + 1).masked_scatter(seen, values)

    def log_probs(self, policy: nn.Module) -> Tensor:
        """[B, T] nats, log-probs of the actions under a policy; 0 at padding. Differentiable."""
        log_probs = policy(self.observations[:, :-1][self.mask]).log_prob(self.actions[self.mask])
        return log_probs.new_zeros(self.mask.shape).masked_scatter(self.mask, log_probs)


@dataclass
class _Row:
    """One row while it grows; `before` is what its episode had earned when the row began."""

    observations: list
    before: float = 0.0
    actions: list = field(default_factory=list)
    rewards: list = field(default_factory=list)
    terminated: bool = False
    over: bool = False

    @property
    def earned(self) -> float:
        return self.before + sum(self.rewards)


def _first_row(env: gymnasium.Env) -> _Row:
    return _Row([np.array(env.reset()[0])])


def collect_episodes(envs: Sequence[gymnasium.Env], act: Act, gamma: float, max_steps: int = 10_000) -> Episodes:
    """One whole episode in each environment, all of them played to their ends.

    How many episodes there are is fixed before they begin. To take the first ones that *finish* in environments side
    by side would prefer short episodes.

    Args:
        envs: from `make_envs`; each is reset.
        act: observations -> actions, `policies.sampling(...)` or `policies.greedy(...)`.
        gamma: discount, in [0, 1].
        max_steps: a longer episode is cut there, as by a time limit; its return is not among `returns`.

    Returns:
        Episodes; row b is from envs[b].

    Raises:
        ValueError: a reward is NaN or infinite, or an argument that cannot be.

    Example:
        >>> from rlhf_lab.models.policies import sampling
        >>> envs = make_envs("CartPole-v1", 2, seed=0)
        >>> act = sampling(policy_for(envs[0]), torch.Generator().manual_seed(0))
        >>> episodes = collect_episodes(envs, act, gamma=0.99)
        >>> bool((episodes.rewards.sum(1) == episodes.mask.sum(1)).all())
        True

    Chapter 02.
    """
    _check_amount(len(envs), "max_steps", max_steps, gamma)
    rows = [_first_row(env) for env in envs]
    for _ in range(max_steps):
        alive = [i for i, row in enumerate(rows) if not row.over]
        if not alive:
            break
        _step([envs[i] for i in alive], [rows[i] for i in alive], act)
    return _stack(rows, gamma, envs[0])


class Runner:
    """Environments side by side that go on from one fragment to the next.

    Args:
        envs: from `make_envs`; each is reset here once, and whenever its episode is over.

    Chapter 05.
    """

    def __init__(self, envs: Sequence[gymnasium.Env]):
        self.envs = list(envs)
        self._rows = [_first_row(env) for env in self.envs]

    def collect(self, act: Act, steps: int, gamma: float) -> Episodes:
        """`steps` steps in each environment; where an episode ends within them a new row begins.

        Args:
            act, gamma: as in `collect_episodes`.
            steps: of each environment, >= 1.

        Returns:
            Episodes: the rows that ended, in the order in which they did, then those that go on.

        Raises:
            ValueError: a reward is NaN or infinite, or an argument that cannot be.
        """
        _check_amount(len(self.envs), "steps", steps, gamma)
        done: list[_Row] = []
        for _ in range(steps):
            _step(self.envs, self._rows, act)
            for i, (env, row) in enumerate(zip(self.envs, self._rows, strict=True)):
                if row.over:
                    done.append(row)
                    self._rows[i] = _first_row(env)
        rows = done + [row for row in self._rows if row.actions]
        self._rows = [_Row([row.observations[-1]], row.earned) for row in self._rows]
        return _stack(rows, gamma, self.envs[0])


def _check_amount(envs: int, name: str, steps: int, gamma: float) -> None:
    require(envs >= 1, "envs", envs, "at least 1 of them")
    require(steps >= 1, name, steps, "at least 1")
    require(0 <= gamma <= 1, "gamma", gamma, "in [0, 1]")


@torch.no_grad()
def _step(envs: Sequence[gymnasium.Env], rows: Sequence[_Row], act: Act) -> None:
    """One step in every environment, noted in its row."""
    actions = act(_observed([row.observations[-1] for row in rows], envs[0])).numpy()
    for env, row, action in zip(envs, rows, actions, strict=True):
        seen, reward, terminated, truncated, _ = env.step(_played(action, env))
        row.observations.append(np.array(seen))  # a copy: some environments write into one buffer
        row.actions.append(action)
        row.rewards.append(float(reward))
        row.terminated = bool(terminated)
        row.over = row.terminated or bool(truncated)


def _played(action: np.ndarray, env: gymnasium.Env) -> int | np.ndarray:
    """What the environment is given: an integer, or a vector within its bounds."""
    space = env.action_space
    if isinstance(space, Discrete):
        return int(action + space.start)
    if isinstance(space, Box):
        return np.clip(action.reshape(space.shape), space.low, space.high)
    raise ValueError(f"env has actions {space}; expected Discrete or Box")


def _observed(observations: list, env: gymnasium.Env) -> Tensor:
    """[B, ...] as a policy takes them."""
    space, array = env.observation_space, np.asarray(observations)
    if isinstance(space, Discrete):
        return torch.from_numpy(array - space.start)
    if np.issubdtype(space.dtype, np.integer):
        array = array.astype(np.int64)
    else:
        array = array.astype(np.float32)
    return torch.from_numpy(array.reshape(len(array), -1))


def _stack(rows: list[_Row], gamma: float, env: gymnasium.Env) -> Episodes:
    lengths = torch.tensor([len(row.actions) for row in rows])
    mask = length_mask(lengths, int(lengths.max()))
    rewards = torch.tensor([reward for row in rows for reward in row.rewards])
    if not rewards.isfinite().all():
        raise ValueError(f"env gave a reward of {rewards[~rewards.isfinite()][0]}; expected finite numbers")
    discounts = torch.where(mask, gamma, 0.0)
    terminated = torch.tensor([row.terminated for row in rows])
    discounts[terminated, lengths[terminated] - 1] = 0.0
    return Episodes(
        observations=_spread(
            _observed([seen for row in rows for seen in row.observations], env),
            length_mask(lengths + 1, mask.shape[1] + 1),
        ),
        actions=_spread(torch.from_numpy(np.stack([action for row in rows for action in row.actions])), mask),
        rewards=_spread(rewards, mask),
        discounts=discounts,
        mask=mask,
        returns=tuple(row.earned for row in rows if row.over),
    )


def _spread(flat: Tensor, where: Tensor) -> Tensor:
    """[B, T, ...] with the rows of `flat` [N, ...] at the N True places of `where` [B, T], 0 elsewhere."""
    whole = flat.new_zeros(*where.shape, *flat.shape[1:])
    whole[where] = flat
    return whole


# -- environments and agents ------------------------------------------------------------------------------------------
def make_envs(env: MakeEnv, count: int, seed: int, continuous: bool = False) -> list[gymnasium.Env]:
    """`count` environments, each seeded apart.

    Args:
        env: the id of a registered environment, or a function that makes a new one with every call.
        count: how many, >= 1.
        seed: >= 0; environment i gets a hash of seed and i.
        continuous: whether actions may be vectors of floats.

    Raises:
        ValueError: an argument that cannot be; the observations are neither Discrete nor Box, or the actions are not
            Discrete (or, where allowed, a Box of floats).
    """
    require(isinstance(env, str) or callable(env), "env", env, "an id, or a function that makes an environment")
    require(count >= 1, "count", count, "at least 1 environment")
    require(seed >= 0, "seed", seed, "a number from 0 on")
    envs = [gymnasium.make(env) if isinstance(env, str) else env() for _ in range(count)]
    require(len(set(map(id, envs))) == count, "env", env, "a function that makes a new environment with every call")
    seen, actions = envs[0].observation_space, envs[0].action_space
    if not isinstance(seen, Discrete | Box):
        raise ValueError(f"env has observations {seen}; expected Discrete or Box (FlattenObservation may help)")
    vectors = continuous and isinstance(actions, Box) and np.issubdtype(actions.dtype, np.floating)
    if not (isinstance(actions, Discrete) or vectors):
        raise ValueError(f"env has actions {actions}; expected Discrete{' or a Box of floats' if continuous else ''}")
    for i, made in enumerate(envs):
        made.reset(seed=int(np.random.SeedSequence([seed, i]).generate_state(1)[0]))
    return envs


def policy_for(env: gymnasium.Env, hidden: Sequence[int] = (64, 64)) -> nn.Module:
    """A table for Discrete observations, else a perceptron; normals where the actions are a Box."""
    seen, actions = env.observation_space, env.action_space
    if isinstance(seen, Discrete) and isinstance(actions, Discrete):
        return TabularPolicy(int(seen.n), int(actions.n))
    if isinstance(seen, Box) and isinstance(actions, Discrete):
        return CategoricalPolicy(perceptron(math.prod(seen.shape), int(actions.n), hidden, last_gain=0.01))
    if isinstance(seen, Box) and isinstance(actions, Box):
        dimensions = math.prod(actions.shape)
        return GaussianPolicy(perceptron(math.prod(seen.shape), dimensions, hidden, last_gain=0.01), dimensions)
    raise ValueError(f"env has observations {seen} and actions {actions}; expected Box observations for these")


def value_for(env: gymnasium.Env, hidden: Sequence[int] = (64, 64)) -> nn.Module:
    """A table for Discrete observations, else a perceptron."""
    seen = env.observation_space
    if isinstance(seen, Discrete):
        return TabularValue(int(seen.n))
    if isinstance(seen, Box):
        return Value(perceptron(math.prod(seen.shape), 1, hidden))
    raise ValueError(f"env has observations {seen}; expected Discrete or Box")


def play(env: MakeEnv, act: Act, episodes: int, seed: int) -> list[float]:
    """Undiscounted returns of fresh episodes, an environment each: a policy as it is, not the best of its past.

    Args:
        env, seed: as in `make_envs`.
        act: `policies.greedy(policy)`, or `policies.sampling(...)`.
        episodes: how many.

    Raises:
        ValueError: as `make_envs`, or an episode is longer than 10,000 steps.

    Chapter 05.
    """
    returns = list(collect_episodes(make_envs(env, episodes, seed, continuous=True), act, gamma=1.0).returns)
    require(len(returns) == episodes, "env", env, "episodes of at most 10,000 steps (gymnasium has a TimeLimit)")
    return returns
