"""Probe environments: tiny tasks, each of which isolates one component of an agent.

A large task says that an agent does not learn, and nothing more. A probe has an answer that can be written down, and so
little in it that a wrong answer points at a component. Run all of them, and read the pattern:

    from rlhf_lab import probes
    report = probes.check_probes(train)               # train(probe, seed) -> probes.Trained(act, value)
    print(report)                                     # a table, and the planted faults that have the same pattern

The agent may be anybody's. Observations are one-hot vectors, or integers with `discrete=True`; gymnasium knows the
environments as rlhf_lab/Probe...-v0 once this module is imported. The last observation of an episode that ends is one
whose value is learned elsewhere, so that an agent which bootstraps beyond the end shows it.

The first five are those of Andy Jones; truncation against termination, the last observation and two episodes are ours.
Probes of a language model's training are in `TOKEN` (see `token_probes`).

Source: Andy Jones 2021, Debugging RL, Without the Agonizing Pain, andyljones.com/posts/rl-debugging.html.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import nn

from rlhf_lab.worlds.probe_checks import Check, Report, patterns_of
from rlhf_lab.worlds.token_probes import TOKEN, TOKEN_PATTERNS, from_language_model

__all__ = ["CONTROL", "TOKEN", "Probe", "Trained", "check_probes", "from_language_model", "from_torch"]

ASKED = 32  # how often an agent that returns actions is asked, to know its probabilities


# -- the environments -------------------------------------------------------------------------------------------------
class ProbeEnv(gymnasium.Env):
    """What all probes share: a few observations, one-hot or as integers, a few actions, and episodes of a few steps.

    Args:
        discrete: observations are integers, for tables; else one-hot float32 vectors.
    """

    observations: ClassVar[int] = 1
    actions: ClassVar[int] = 1

    def __init__(self, discrete: bool = False):
        self.discrete = discrete
        count = self.observations
        self.observation_space = Discrete(count) if discrete else Box(0.0, 1.0, (count,), np.float32)
        self.action_space = Discrete(self.actions)
        self._before = 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self._before = 0
        self._steps, self._state = 0, self.first()
        return self._seen(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        self._steps += 1
        reward, self._state, terminated, truncated = self.play(int(action))
        return self._seen(), reward, terminated, truncated, {}

    def first(self) -> int:
        """The observation with which an episode begins."""
        return int(self.np_random.integers(self.observations))

    def play(self, action: int) -> tuple[float, int, bool, bool]:
        """(reward, next observation, terminated, truncated) of an action."""
        raise NotImplementedError

    def _seen(self) -> Any:
        return np.int64(self._state) if self.discrete else one_hot(self._state, self.observations)


def one_hot(state: int, count: int) -> np.ndarray:
    """[count] float32, 1 at `state`."""
    return np.eye(count, dtype=np.float32)[state]


class ConstantEnv(ProbeEnv):
    """One step, reward 1, whatever is done. V = 1."""

    def play(self, action: int) -> tuple[float, int, bool, bool]:
        return 1.0, 0, True, False


class ObservationEnv(ProbeEnv):
    """One step, reward -1 or 1 by the observation. V(0) = -1, V(1) = 1."""

    observations = 2

    def play(self, action: int) -> tuple[float, int, bool, bool]:
        return 2.0 * self._state - 1, self._state, True, False


class DelayEnv(ProbeEnv):
    """Two steps with an observation each, reward 1 in the second. V(0) = gamma, V(1) = 1."""

    observations = 2

    def first(self) -> int:
        return 0

    def play(self, action: int) -> tuple[float, int, bool, bool]:
        return float(self._steps == 2), int(self._steps == 1), self._steps == 2, False


class ActionEnv(ProbeEnv):
    """One step, reward 1 for action 1 and -1 for action 0. The policy must choose 1."""

    actions = 2

    def play(self, action: int) -> tuple[float, int, bool, bool]:
        return 2.0 * action - 1, 0, True, False


class BothEnv(ProbeEnv):
    """One step, reward 1 where the action is the observation, else -1. The policy must read the observation."""

    observations = actions = 2

    def play(self, action: int) -> tuple[float, int, bool, bool]:
        return 1.0 if action == self._state else -1.0, self._state, True, False


class TruncatedEnv(ProbeEnv):
    """Reward 1 a step, cut after 3 steps of a task that has no end. V = 1 / (1 - gamma)."""

    def play(self, action: int) -> tuple[float, int, bool, bool]:
        return 1.0, 0, False, self._steps == 3


class TerminatedEnv(ProbeEnv):
    """Reward 1 a step, over after 3 steps, the step is seen. V(0) = (1 - gamma^3) / (1 - gamma)."""

    observations = 3

    def first(self) -> int:
        return 0

    def play(self, action: int) -> tuple[float, int, bool, bool]:
        return 1.0, self._steps % 3, self._steps == 3, False


class LastObservationEnv(ProbeEnv):
    """An observation that stays through the episode is the reward of each step; cut after 3. V(x) = x / (1 - gamma).

    The next episode may begin with the other one, so that a bootstrap from what is seen after the reset shows.
    """

    observations = 2

    def play(self, action: int) -> tuple[float, int, bool, bool]:
        return float(self._state), self._state, False, self._steps == 3


class TwoEpisodesEnv(ProbeEnv):
    """One step; action 1 earns 1 now and takes 3 from the *next* episode, which is seen nowhere.

    An episode is all that counts, so the policy must choose 1. Where advantages leak from one episode of a fragment
    into the one before it, action 1 looks bad.
    """

    actions = 2

    def play(self, action: int) -> tuple[float, int, bool, bool]:
        reward, self._before = float(action - 3 * self._before), action
        return reward, 0, True, False


# -- the probes -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Trained:
    """An agent as the probes see it.

    Attributes:
        act: observation -> the probabilities of all actions, or an action, drawn or the best one.
        value: observation -> its value, for an agent of action values the largest; None: there is no value.
    """

    act: Callable[[Any], Any]
    value: Callable[[Any], float] | None = None


@dataclass(frozen=True)
class Probe:
    """A task and what a healthy agent makes of it.

    Attributes:
        name: of the probe, in the table.
        kind: of ProbeEnv.
        isolates: the components that must be right for it, beyond those of the probes before.
        gamma: the discount with which it is to be learned.
        steps: of the environment, in all; `learning_rate`: Adam's. Both are enough for PPO on a small network, with
            batches of 128 steps or less.
        values: (observation, its value under every policy) ..., held to 15 % of the value and at least 0.15.
        better: (observation, the better action) ..., whose probability must be at least 0.8.
    """

    name: str
    kind: type[ProbeEnv]
    isolates: str
    gamma: float = 0.5
    steps: int = 2048
    learning_rate: float = 0.01
    values: tuple[tuple[int, float], ...] = ()
    better: tuple[tuple[int, int], ...] = ()

    @property
    def env_id(self) -> str:
        """The name that gymnasium knows, with one-hot observations."""
        return f"rlhf_lab/Probe{self.kind.__name__.removesuffix('Env')}-v0"

    def make(self, discrete: bool = False) -> ProbeEnv:
        """A new environment; `discrete` for agents with tables."""
        return self.kind(discrete)

    def judge(self, agent: Trained, discrete: bool = False) -> list[Check]:
        """The checks of a trained agent."""
        see = lambda state: state if discrete else one_hot(state, self.kind.observations)  # noqa: E731
        checks = []
        for state, expected in self.values:
            got = None if agent.value is None else float(agent.value(see(state)))
            slack = max(0.15, 0.15 * abs(expected))
            checks.append(Check(f"V({state})", got, expected - slack, expected + slack))
        for state, action in self.better:
            got = probability(agent.act, see(state), action, self.kind.actions)
            checks.append(Check(f"P(action {action} | {state})", got, 0.8, unlearned=0.2))
        return checks


def probability(act: Callable[[Any], Any], seen: Any, action: int, actions: int) -> float:
    """The probability of an action, from what the agent returns: probabilities, or actions of which many are drawn.

    Raises:
        ValueError: neither one action nor `actions` probabilities.
    """
    answer = np.asarray(act(seen), dtype=float).reshape(-1)
    if answer.size == actions and actions > 1:
        return float(answer[action])
    if answer.size != 1:
        raise ValueError(f"act returned {answer.size} numbers; expected one action, or {actions} probabilities")
    drawn = [answer[0], *(float(np.asarray(act(seen)).reshape(())) for _ in range(ASKED - 1))]
    return float(np.mean([a == action for a in drawn]))


def _returns(gamma: float, steps: int) -> float:
    return (1 - gamma**steps) / (1 - gamma)


CONTROL = (
    Probe("constant", ConstantEnv, "the value is trained, and nothing follows an end", values=((0, 1.0),)),
    Probe(
        "observation", ObservationEnv, "the value reads the observation, rewards are with their step",
        values=((0, -1.0), (1, 1.0)),
    ),
    Probe("delay", DelayEnv, "the discount, and the value of what follows", values=((0, 0.5), (1, 1.0))),
    Probe("action", ActionEnv, "log-probs, advantages and the sign of the loss", better=((0, 1),)),
    Probe("both", BothEnv, "the policy reads the observation", better=((0, 0), (1, 1))),
    Probe(
        "truncated", TruncatedEnv, "a cut is no end: the value goes on",
        gamma=0.7, values=((0, 1 / (1 - 0.7)),),
    ),
    Probe("terminated", TerminatedEnv, "an end is an end", gamma=0.7, values=((0, _returns(0.7, 3)),)),
    Probe(
        "last observation", LastObservationEnv, "a cut episode goes on from its own last observation",
        gamma=0.7, values=((0, 0.0), (1, 1 / (1 - 0.7))),
    ),
    Probe(
        "two episodes", TwoEpisodesEnv, "advantages stop where an episode does",
        gamma=0.9, better=((0, 1),),
    ),
)  # fmt: skip
for _probe in CONTROL:
    gymnasium.register(_probe.env_id, entry_point=f"{__name__}:{_probe.kind.__name__}")


# -- checking an agent ------------------------------------------------------------------------------------------------
class AnyProbe(Protocol):
    """What `check_probes` runs: a Probe, or a TokenProbe."""

    @property
    def name(self) -> str: ...

    def judge(self, agent: Any) -> list[Check]: ...


def check_probes(train: Callable[[Any, int], Any], probes: Sequence[AnyProbe] = CONTROL, seed: int = 0) -> Report:
    """Train an agent on each probe, check what it learned, and name the planted faults with the same pattern.

    Args:
        train: (probe, seed) -> the trained agent. For `CONTROL` it trains on `probe.env_id` (or `probe.make`) with
            `probe.gamma`, some `probe.steps` steps and `probe.learning_rate`, and returns a `Trained`; for `TOKEN` see
            `TokenProbe`.
        probes: `CONTROL`, `TOKEN`, or some of them.
        seed: given to `train`.

    Returns:
        A Report; print it.

    Example:
        >>> from rlhf_lab.recipes.q_learning import QLearningConfig, train_q_learning
        >>> def train(probe, seed):
        ...     config = QLearningConfig(steps=probe.steps, gamma=probe.gamma, seed=seed)
        ...     q = train_q_learning(lambda: probe.make(discrete=True), config).model
        ...     return Trained(lambda seen: q[seen.argmax()].argmax(), lambda seen: q[seen.argmax()].max())
        >>> check_probes(train, CONTROL[:2])
        probe        check  expected        got    verdict
        constant     V(0)   0.85 to 1.15    1.00   pass
        observation  V(0)   -1.15 to -0.85  -1.00  pass
        observation  V(1)   0.85 to 1.15    1.00   pass
        <BLANKLINE>
        Every probe passes.

    Chapters 05 and 06.
    """
    checks = {probe.name: probe.judge(train(probe, seed)) for probe in probes}
    return Report(checks, CONTROL_PATTERNS | TOKEN_PATTERNS)


def from_torch(policy: nn.Module, value: nn.Module | None = None) -> Trained:
    """A Trained of modules as this library has them: observations [1, D] -> a Categorical, and -> values [1].

    Chapter 05.
    """

    @torch.no_grad()
    def act(seen: np.ndarray) -> np.ndarray:
        return policy(torch.as_tensor(seen)[None]).probs[0].numpy()

    @torch.no_grad()
    def worth(seen: np.ndarray) -> float:
        return float(value(torch.as_tensor(seen)[None])[0])  # type: ignore[misc]  # only where there is one

    return Trained(act, None if value is None else worth)


# Measured by `python run.py bench probes`, where the shares are; the probes in the order above.
CONTROL_PATTERNS = patterns_of(
    [probe.name for probe in CONTROL],
    """
a cut is taken for an end                    .  ..  ..  .      ..                       -  .  .-     .
the value goes on beyond an end              +  -+  ++  .      ..                       .  +  ..     .
gamma is forgotten                           .  ..  +.  .      ..                       +  +  .+     .
what follows a step is forgotten             .  ..  -.  .      ..                       -  -  .-     .
advantages leak from the next episode        .  ..  ..  .      ..                       .  .  ..     -
bootstrap from what is seen after the reset  .  ..  ..  .      ..                       .  .  +-     .
rewards are one step late                    .  +-  +-  ~|-|.  ~~|.~|~-|--|.-|-~|-.|~.  .  .  +.|+-  -|.|~
the observation after the step is stored     .  ..  +-  .      ..                       .  -  ..     .
the sign of the policy's loss                .  ..  ..  -      --                       .  .  ..     -
the ratio has no gradient                    .  ..  ..  ~      ~~                       .  .  ..     ~
log-prob of the likeliest action             .  ..  ..  ~      ~~                       .  .  ..     ~
the policy ignores the observation           .  ..  ..  .      ~~|.-|-.                 .  .  ..     .
the value ignores the observation            .  +-  +-  .      ..                       .  -  +-     .
the value is not trained                     -  +-  --  .      ..                       -  -  .-     .
the value learns advantages                  -  +-  --  .      ..                       -  -  .-     .
""",
)
