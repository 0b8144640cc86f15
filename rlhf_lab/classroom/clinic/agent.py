"""A dialogue agent with six faults, as tutorials have it, the six repairs, and its training in Pebble Town."""

# Chapter 06 shows the first methods of the agent as they stand here, as a reader would write them: without types.
# mypy: disallow-untyped-defs=False

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from rlhf_lab.experience.episodes import Episodes, Runner, make_envs
from rlhf_lab.maths.kl import kl_k3
from rlhf_lab.maths.objectives import explained_variance
from rlhf_lab.maths.tensors import masked_mean, masked_whiten
from rlhf_lab.models.policies import draw, greedy, gru_agent
from rlhf_lab.training.history import History
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.worlds import town
from rlhf_lab.worlds.envs import KINDS, DialogueEnv, write_kind


class TutorialPPO:
    """A GRU that learns to answer the visitors of Pebble Town by PPO, as tutorials have it.

    The first six methods hold one fault each; what follows them is healthy. Written for this chapter after the faults
    of code that circulates; none of it is copied.

    Args:
        vocabulary, actions: of the environment. seed: of weights and of all draws.
    """

    gamma, lam, clip, entropy_coef = 1.0, 0.95, 0.2, 0.01
    epochs, minibatches, width, learning_rate = 4, 4, 32, 4e-3

    def td_errors(self, rewards, values, discounts):
        """[B, T] surprises."""
        return rewards - values[:, :-1]

    def accumulate(self, errors, discounts):
        """[B, T] advantages from the surprises."""
        columns = []
        for t in reversed(range(errors.shape[1])):
            advantage = torch.zeros(len(errors))
            advantage = errors[:, t] + self.lam * discounts[:, t] * advantage
            columns.append(advantage)
        return torch.stack(columns[::-1], dim=1)

    def values(self, observations):
        """[N] values of observations [N, L]."""
        return self.policy(observations).logits.mean(dim=-1)

    def ratio(self, log_probs, old_log_probs):
        """[B, T] what the surrogate is made of."""
        return torch.exp(log_probs - log_probs.detach())

    def remember(self, state):
        """The recurrent state with which the next reply begins."""
        return state

    def ready(self, advantages, targets, values, mask):
        """[B, T] what the surrogate is weighted by; `values` are those of now, all else was computed after acting."""
        return targets - values

    def value_loss(self, values, targets):
        """[B, T] what the critic descends."""
        return torch.zeros_like(targets)

    # -- what follows is healthy --------------------------------------------------------------------------------------
    def __init__(self, vocabulary: int, actions: int, seed: int = 0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.policy, self.value = gru_agent(vocabulary, actions, self.width)
        self.parameters = list(nn.ModuleList([self.policy, self.value]).parameters())
        self.optimiser = torch.optim.Adam(self.parameters, lr=self.learning_rate, eps=1e-5)
        self.generator, self.state = generator_for(seed, "tutorial"), None
        self.said: list[Tensor] = []

    def acting_law(self, observations: Tensor, state: Tensor | None) -> tuple[torch.distributions.Categorical, Tensor]:
        """The law of the next reply when the GRU begins to read with `state` [1, N, D]; and its state afterwards."""
        layers: Any = self.policy.body
        encoder, head = layers
        lengths = (observations != 0).sum(1).clamp(min=1)
        states, _ = encoder.gru(encoder.embedding(observations[:, : int(lengths.max())]), state)
        last = states[torch.arange(len(states)), lengths - 1]
        return torch.distributions.Categorical(logits=head(last), validate_args=False), last[None]

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """[N] replies drawn for [N] visitors; `said` keeps their log-probs, a row an act."""
        law, state = self.acting_law(observations, self.state)
        self.state = self.remember(state)
        replies = draw(law, self.generator)
        self.said.append(law.log_prob(replies))
        return replies

    def learn(self, episodes: Episodes, old: Tensor) -> dict[str, float]:
        """A few epochs on what was collected; returns what is worth logging.

        Args:
            old: [B, T] log-probs of the replies, kept from acting.
        """
        with torch.no_grad():  # advantages and targets are data, computed once
            values, mask = episodes.values(self.values), episodes.mask  # [B, T + 1], [B, T]
            errors = self.td_errors(episodes.rewards, values, episodes.discounts)
            advantages = self.accumulate(errors, episodes.discounts)
            targets = torch.where(mask, advantages + values[:, :-1], 0.0)
        logged = []
        for _ in range(self.epochs):
            for rows in torch.randperm(len(old), generator=self.generator).tensor_split(self.minibatches):
                kept = old[rows], advantages[rows], targets[rows]
                logged.append(self.step(rows_of(episodes, rows), *kept))
        return {name: sum(row[name] for row in logged) / len(logged) for name in logged[0]}

    def step(self, part: Episodes, old: Tensor, advantages: Tensor, targets: Tensor) -> dict[str, float]:
        """One gradient step on some rows; [B, T] each."""
        mask, seen = part.mask, part.observations[:, :-1][part.mask]  # [B, T], [N, L]
        values = torch.zeros(mask.shape).masked_scatter(mask, self.values(seen))
        law = self.policy(seen)
        log_probs = torch.zeros(mask.shape).masked_scatter(mask, law.log_prob(part.actions[mask]))
        ratio, weights = self.ratio(log_probs, old), self.ready(advantages, targets, values, mask)
        gains = torch.minimum(ratio * weights, ratio.clamp(1 - self.clip, 1 + self.clip) * weights)
        loss = masked_mean(self.value_loss(values, targets) - gains, mask)
        self.optimiser.zero_grad()
        (loss - self.entropy_coef * law.entropy().mean()).backward()
        nn.utils.clip_grad_norm_(self.parameters, 0.5)
        self.optimiser.step()
        with torch.no_grad():
            outside = ((ratio - 1).abs() > self.clip).float()
            return {
                "entropy": float(law.entropy().mean()),
                "clip_fraction": float(masked_mean(outside, mask)),
                "step_kl": float(masked_mean(kl_k3(old, log_probs), mask)),
                "explained_variance": float(explained_variance(values, targets, mask)),
                "advantage": float(masked_mean(weights, mask)),
            }


def rows_of(episodes: Episodes, rows: Tensor) -> Episodes:
    """Some rows of a batch of episodes."""
    columns = ("observations", "actions", "rewards", "discounts", "mask")
    return replace(episodes, **{name: getattr(episodes, name)[rows] for name in columns})


class Noted(gymnasium.Wrapper):
    """An environment that remembers which of its steps were the last of an episode."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.over: list[bool] = []

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        seen, reward, terminated, truncated, info = self.env.step(action)
        self.over.append(bool(terminated or truncated))
        return seen, reward, terminated, truncated, info


def in_rows(kept: Sequence[Tensor], over: Sequence[Sequence[bool]]) -> Tensor:
    """[B, T] numbers that an agent kept in each of its acts, in the rows of `Runner.collect`; 0 at padding.

    Args:
        kept: for each act, [N] numbers, one an environment. over: [N][acts] whether an episode ended there.

    Example:
        >>> acts = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
        >>> in_rows(acts, [[False, False], [True, False]]).tolist()
        [[2.0, 0.0], [1.0, 3.0], [4.0, 0.0]]
    """
    done: list[list[float]] = []
    going_on: list[list[float]] = [[] for _ in over]
    for act, numbers in enumerate(kept):
        for env, number in enumerate(numbers.tolist()):
            going_on[env].append(number)
            if over[env][act]:
                done.append(going_on[env])
                going_on[env] = []
    rows = [torch.tensor(row) for row in (*done, *going_on) if row]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


# The healthy methods, in the order in which the chapter puts them in.
def td_errors_of_agent(self: TutorialPPO, rewards: Tensor, values: Tensor, discounts: Tensor) -> Tensor:
    return rewards + discounts * values[:, 1:] - values[:, :-1]


def accumulate_of_agent(self: TutorialPPO, errors: Tensor, discounts: Tensor) -> Tensor:
    advantage, columns = torch.zeros(len(errors)), []
    for t in reversed(range(errors.shape[1])):
        advantage = errors[:, t] + self.lam * discounts[:, t] * advantage
        columns.append(advantage)
    return torch.stack(columns[::-1], dim=1)


def values_of_agent(self: TutorialPPO, observations: Tensor) -> Tensor:
    return self.value(observations)


def value_loss_of_agent(self: TutorialPPO, values: Tensor, targets: Tensor) -> Tensor:
    return (values - targets).square() / 4


def ratio_of_agent(self: TutorialPPO, log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    return torch.exp(log_probs - old_log_probs)


def remember_of_agent(self: TutorialPPO, state: Tensor) -> None:
    return None


def ready_of_agent(self: TutorialPPO, advantages: Tensor, targets: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    return masked_whiten(advantages, mask)


REPAIRS: dict[str, dict[str, Callable]] = {
    "next value": {"td_errors": td_errors_of_agent},
    "sum not reset": {"accumulate": accumulate_of_agent},
    "a critic": {"values": values_of_agent, "value_loss": value_loss_of_agent},
    "old log-probs": {"ratio": ratio_of_agent},
    "one state": {"remember": remember_of_agent},
    "data": {"ready": ready_of_agent},
}


def repaired(agent: type[TutorialPPO], **methods: Callable) -> type[TutorialPPO]:
    """The agent's class with some methods replaced; a ValueError where it has none of that name."""
    if unknown := [name for name in methods if not hasattr(agent, name)]:
        raise ValueError(f"methods holds {unknown}; expected methods of {agent.__name__}")
    return type("Repaired" + agent.__name__.removeprefix("Repaired"), (agent,), methods)


def with_repairs(*names: str) -> type[TutorialPPO]:
    """The tutorial's agent with these of `REPAIRS`."""
    return repaired(TutorialPPO, **{k: v for name in names for k, v in REPAIRS[name].items()})


DIALOGUE = {"iterations": 10, "timing": "delayed", "turns": 3}  # what chapter and study train on
FIRST_VISITOR = 100_000  # seeds of the visitors who judge, apart from those of training


@dataclass(frozen=True)
class Training:
    """A finished dialogue agent.

    Attributes:
        agent: trained. history: a row an iteration, numbered by replies given; return is that of finished dialogues.
        share: of the enumerated optimum, greedy, on visitors of the train split. held_out: the same on held-out ones.
    """

    agent: TutorialPPO
    history: History
    share: float
    held_out: float


def train_agent(
    agent: type[TutorialPPO],
    seed: int = 0,
    iterations: int = 10,
    environments: int = 32,
    steps: int = 32,
    visitors: int = 200,
    **env: Any,
) -> Training:
    """Collect, learn, again; then greedy against the enumerated optimum.

    Args:
        agent: the class. visitors: who judge it. env: what `DialogueEnv` takes.
    """
    envs = [Noted(made) for made in make_envs(lambda: DialogueEnv(**env), environments, seed)]
    learner = agent(DialogueEnv(**env).vocabulary, len(KINDS), seed)
    runner, history = Runner(envs), History()
    for i in range(iterations):
        episodes = runner.collect(learner.act, steps, learner.gamma)
        old = in_rows(learner.said, [made.over for made in envs])
        learner.said.clear()
        for made in envs:
            made.over.clear()
        earned = {"return": episodes.mean_return}
        history.add(step=(i + 1) * environments * steps, **earned, **learner.learn(episodes, old))
    act = greedy(learner.policy)
    share, held_out = (share_of_optimum(act, visitors, split=split, **env) for split in ("train", "held_out"))
    return Training(learner, history, share, held_out)


@torch.no_grad()
def share_of_optimum(act: Callable[[Tensor], Tensor], visitors: int = 200, **env: Any) -> float:
    """Mean return over mean best return, on the same visitors.

    Args:
        act: observations [N, L] of the visitors who are still there -> replies [N].
    """
    desks, earned = [DialogueEnv(**env) for _ in range(visitors)], 0.0
    seen = {i: desk.reset(seed=FIRST_VISITOR + i)[0] for i, desk in enumerate(desks)}
    while seen:
        replies = act(torch.from_numpy(np.stack(list(seen.values()))))
        for i, reply in zip(tuple(seen), replies.tolist(), strict=True):
            seen[i], reward, over, _, _ = desks[i].step(reply)
            earned += reward
            if over:
                del seen[i]
    return earned / _best_total(visitors, tuple(env.items()))


@cache
def _best_total(visitors: int, env: tuple) -> float:
    """What these visitors could have paid together, by enumeration."""
    desk, total = DialogueEnv(**dict(env)), 0.0
    for visitor in range(visitors):
        desk.reset(seed=FIRST_VISITOR + visitor)
        total += desk.best_return()
    return total


def best_kind(desk: DialogueEnv) -> str:
    """The kind of reply that the town's oracle likes best now."""
    prompt = desk._prompt
    return max(KINDS, key=lambda kind: town.score(prompt, write_kind(prompt, kind, Random(0))).reward)
