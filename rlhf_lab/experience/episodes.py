"""Experience from gymnasium environments: whole episodes, or fragments of them from environments side by side.

A row is one episode or one fragment, padded on the right. Termination is a discount of 0 at the last step; a row that
was cut (by a time limit, or because the fragment was full) ends with gamma and keeps what was seen after it, so that a
value can be bootstrapped from the *true* last state and never from the first one after a reset. Every step is checked
against the rules of gymnasium, and so is every action before it is played.
Left out: environments in processes of their own, frame stacks, normalisation (gymnasium has wrappers for that; `play`
says how they keep their statistics).
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.wrappers import NormalizeObservation, NormalizeReward
from torch import Tensor, nn

from rlhf_lab.maths.tensors import length_mask
from rlhf_lab.models.policies import CategoricalPolicy, GaussianPolicy, TabularPolicy, TabularValue, Value, perceptron
from rlhf_lab.training.configs import require, whole_number

MakeEnv = str | Callable[[], gymnasium.Env]
Act = Callable[[Tensor], Tensor]  # observations [B, ...] -> actions [B] or [B, D]
MOST = float(np.finfo(np.float32).max)  # numbers beyond it are infinite in float32


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
    return _Row([checked_reset(env)])


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
        ValueError: an environment breaks a rule (see `checked_step`), an action that it does not have, or an argument
            that cannot be.

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
            ValueError: as `collect_episodes`.
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
    whole_number(name, steps, least=1)
    require(0 <= gamma <= 1, "gamma", gamma, "in [0, 1]")


@torch.no_grad()
def _step(envs: Sequence[gymnasium.Env], rows: Sequence[_Row], act: Act) -> None:
    """One step in every environment, noted in its row."""
    actions = act(_observed([row.observations[-1] for row in rows], envs[0]))
    _check_actions(actions, len(envs), envs[0])
    for env, row, action in zip(envs, rows, actions.numpy(), strict=True):
        seen, reward, row.terminated, truncated = checked_step(env, _played(action, env))
        row.observations.append(seen)
        row.actions.append(action)
        row.rewards.append(reward)
        row.over = row.terminated or truncated


def _check_actions(actions: Tensor, count: int, env: gymnasium.Env) -> None:
    """Refuse what the environment cannot play, lest it is blamed for what it then shows."""
    space = env.action_space
    require(isinstance(actions, Tensor), "what act returned", type(actions).__name__, "a tensor of actions")
    if isinstance(space, Discrete):
        fits = actions.shape == (count,) and (actions >= 0) & (actions < int(space.n)) & (actions == actions.long())
        expected = f"{count} integers from 0 to {int(space.n) - 1}"
    elif isinstance(space, Box):
        fits = actions.shape in ((count, math.prod(space.shape)), (count, *space.shape)) and actions.isfinite()
        expected = f"finite numbers of shape {(count, math.prod(space.shape))}"
    else:
        raise ValueError(f"env has actions {space}; expected Discrete or Box")
    if not torch.as_tensor(fits).all():
        raise ValueError(f"act chose {_brief(actions.tolist())}; expected {expected}, an action for each environment")


def _played(action: np.ndarray, env: gymnasium.Env) -> int | np.ndarray:
    """What the environment is given: an integer, or a vector within its bounds."""
    space = env.action_space
    if isinstance(space, Box):
        return np.clip(action.reshape(space.shape), space.low, space.high)
    return int(action) + int(space.start)  # type: ignore[attr-defined]  # _check_actions let no other pass


def _observed(observations: list[np.ndarray], env: gymnasium.Env) -> Tensor:
    """[B, ...] as a policy takes them."""
    space, array = env.observation_space, np.asarray(observations)
    if isinstance(space, Discrete):
        return torch.from_numpy(array.astype(np.int64) - int(space.start))
    if isinstance(space, Box) and _is_whole(space):
        fits = (array >= space.low) & (array <= space.high)
    else:
        fits = np.abs(array) <= MOST
    if not fits.all():
        raise _odd(observations[int(np.argwhere(~fits)[0, 0])], space)
    array = array.astype(np.int64 if _is_whole(space) else np.float32)
    return torch.from_numpy(array.reshape(len(array), -1))


def _stack(rows: list[_Row], gamma: float, env: gymnasium.Env) -> Episodes:
    lengths = torch.tensor([len(row.actions) for row in rows])
    mask = length_mask(lengths, int(lengths.max()))
    rewards = torch.tensor([reward for row in rows for reward in row.rewards])
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


# -- the rules of an environment --------------------------------------------------------------------------------------
def checked_reset(env: gymnasium.Env, seed: int | None = None) -> np.ndarray:
    """What is seen first, a copy; refused as in `checked_step`."""
    result = env.reset() if seed is None else env.reset(seed=seed)
    if not (isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], dict)):
        raise _broken("a reset of", result, "(observation, info), info a dictionary")
    return _seen(result[0], env)


def checked_step(env: gymnasium.Env, action: Any) -> tuple[np.ndarray, float, bool, bool]:
    """One step: what is seen after it (a copy: some environments write into one buffer), reward, terminated, truncated.

    Raises:
        ValueError: the environment breaks a rule. It gives an observation, a reward, terminated, truncated, info; the
            reward is one finite number, the next two are True or False. The observation has the shape of its space
            and is finite, or, where that space is of whole numbers, within it. Bounds of floats are not checked:
            gymnasium's own LunarLander leaves its.
    """
    result: Any = env.step(action)
    if not (isinstance(result, tuple | list) and len(result) == 5):
        raise _broken("a step of", result, "(observation, reward, terminated, truncated, info)")
    seen, reward, terminated, truncated, _ = result
    number = reward.item() if getattr(reward, "ndim", None) == 0 else reward
    if not (isinstance(number, Real) and -MOST <= float(number) <= MOST):
        raise _broken("a reward of", number, "finite numbers, one a step")
    for name, over in (("terminated", terminated), ("truncated", truncated)):
        if getattr(over, "ndim", 0) != 0 or over not in (0, 1):
            raise _broken(f"{name} =", over, "True or False")
    return _seen(seen, env), float(number), bool(terminated), bool(truncated)


def _seen(observation: Any, env: gymnasium.Env) -> np.ndarray:
    """A copy; the numbers of a Box are checked for all environments at once, in `_observed`."""
    space = env.observation_space
    try:
        seen = np.array(observation)
    except (RuntimeError, TypeError, ValueError):
        seen = np.array(None)
    fits = seen.shape == space.shape and seen.dtype.kind in ("biu" if _is_whole(space) else "biuf")
    if not fits or (isinstance(space, Discrete) and not 0 <= int(seen) - space.start < space.n):
        raise _odd(observation, space)
    return seen


def _is_whole(space: gymnasium.Space) -> bool:
    return isinstance(space, Discrete) or (isinstance(space, Box) and space.dtype.kind in "iu")


def _odd(observation: Any, space: gymnasium.Space) -> ValueError:
    return _broken("an observation of", observation, f"{'whole' if _is_whole(space) else 'finite'} numbers of {space}")


def _broken(what: str, got: object, expected: str) -> ValueError:
    return ValueError(f"env gave {what} {_brief(got)}; expected {' '.join(expected.split())}")


def _brief(value: object) -> str:
    """The value on one line."""
    return f"{' '.join(repr(value).split()):.100}"


# -- environments and agents ------------------------------------------------------------------------------------------
def make_envs(env: MakeEnv, count: int, seed: int, continuous: bool = False) -> list[gymnasium.Env]:
    """`count` environments, each seeded apart; they are yours to close, see `open_envs`.

    Args:
        env: the id of a registered environment, or a function that makes a new one with every call.
        count: how many, >= 1.
        seed: >= 0; environment i gets a hash of seed and i.
        continuous: whether actions may be vectors of floats.

    Raises:
        ValueError: an argument that cannot be; the observations are neither Discrete nor Box, or the actions are not
            Discrete (or, where allowed, a Box of floats); a reset breaks a rule. What was made is closed then.
    """
    make = _maker(env)
    whole_number("count", count, least=1)
    whole_number("seed", seed, least=0)
    envs: list[gymnasium.Env] = []
    try:
        while len(envs) < count:
            envs.append(made := make())
            require(isinstance(made, gymnasium.Env), "env", env, f"one that makes a gymnasium.Env, not {made!r}")
        distinct = len(set(map(id, envs))) == count
        require(distinct, "env", env, "a function that makes a new environment with every call")
        _check_spaces(envs[0], continuous)
        for i, made in enumerate(envs):
            checked_reset(made, seed=int(np.random.SeedSequence([seed, i]).generate_state(1)[0]))
    except BaseException:
        close_envs(envs)
        raise
    return envs


@contextmanager
def open_envs(env: MakeEnv, count: int, seed: int, continuous: bool = False) -> Iterator[list[gymnasium.Env]]:
    """`make_envs` for a block; they are closed when it ends, also by an error or an interrupt.

    Example:
        >>> with open_envs("CartPole-v1", 2, seed=0) as envs:
        ...     len(envs)
        2
    """
    envs = make_envs(env, count, seed, continuous)
    try:
        yield envs
    finally:
        close_envs(envs)


def close_envs(envs: Sequence[gymnasium.Env]) -> None:
    """Close them all; one that cannot be closed is a warning, for what was learned in it must not be lost."""
    for made in {id(made): made for made in envs if isinstance(made, gymnasium.Env)}.values():
        try:
            made.close()
        except Exception as error:
            warnings.warn(f"env could not be closed: {_brief(error)}", stacklevel=2)


def _maker(env: MakeEnv) -> Callable[[], gymnasium.Env]:
    require(isinstance(env, str) or callable(env), "env", env, "an id, or a function that makes an environment")
    return partial(gymnasium.make, env) if isinstance(env, str) else env


def _check_spaces(env: gymnasium.Env, continuous: bool) -> None:
    seen, actions = (getattr(env, f"{name}_space", None) for name in ("observation", "action"))
    if not isinstance(seen, Discrete | Box):
        raise ValueError(f"env has observations {seen}; expected Discrete or Box (FlattenObservation may help)")
    vectors = continuous and isinstance(actions, Box) and np.issubdtype(actions.dtype, np.floating)
    if not (isinstance(actions, Discrete) or vectors):
        raise ValueError(f"env has actions {actions}; expected Discrete{' or a Box of floats' if continuous else ''}")


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

    The policy must see what it saw in training. A wrapper that normalises learns its mean and scale on the way, and a
    new one knows nothing, so that it is refused here; give all of them one set of statistics, which is held fixed here:

        statistics = RunningMeanStd(shape=(4,))            # of gymnasium.wrappers.utils
        def make():
            env = NormalizeObservation(gymnasium.make("CartPole-v1"))
            env.obs_rms = statistics                       # return_rms, shape (), of a NormalizeReward
            return env

    Args:
        env, seed: as in `make_envs`; each is closed when done.
        act: `policies.greedy(policy)`, or `policies.sampling(...)`.
        episodes: how many.

    Raises:
        ValueError: as `collect_episodes` and `make_envs`, an episode is longer than 10,000 steps, or a
            NormalizeObservation or NormalizeReward has statistics of its own.

    Chapter 05.
    """
    with open_envs(partial(_with_fixed_statistics, _maker(env)), episodes, seed, continuous=True) as envs:
        returns = list(collect_episodes(envs, act, gamma=1.0).returns)
    require(len(returns) == episodes, "env", env, "episodes of at most 10,000 steps (gymnasium has a TimeLimit)")
    return returns


def _with_fixed_statistics(make: Callable[[], gymnasium.Env]) -> gymnasium.Env:
    layer = env = make()
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, NormalizeObservation | NormalizeReward):
            name = "obs_rms" if isinstance(layer, NormalizeObservation) else "return_rms"
            if getattr(layer, name).count < 1:  # nothing seen yet
                close_envs([env])
                raise ValueError(
                    f"env has a new {type(layer).__name__}, without the statistics of the training; expected one "
                    f"whose {name} all environments share, in training too, or fixed numbers (TransformObservation)"
                )
            layer.update_running_mean = False
        layer = layer.env
    return env
