"""PPO for gymnasium environments: fragments from environments side by side, GAE, clipped steps, again.

The same maths as `rlhf.py`, on actions that an environment understands. Every step of the batch counts alike, so the
padded rows of `Episodes` are flattened before the minibatches.
Left out: recurrent policies, normalised observations and rewards (gymnasium has wrappers; `play` says how they keep
their statistics), checkpoints (the state of an environment cannot be saved; an interrupt keeps the policy that was
learned).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch import Tensor, nn

from rlhf_lab.experience import invariants
from rlhf_lab.experience.episodes import Episodes, MakeEnv, Runner, open_envs, policy_for, value_for
from rlhf_lab.experience.live import bet_on_actions, check_policy_loss, thorough
from rlhf_lab.maths.kl import kl_k1, kl_k3
from rlhf_lab.maths.objectives import (
    clip_fraction,
    clipped_surrogate_objective,
    clipped_value_loss,
    explained_variance,
)
from rlhf_lab.maths.returns import gae
from rlhf_lab.maths.tensors import masked_whiten
from rlhf_lab.models.policies import sampling
from rlhf_lab.training.configs import above_zero, at_least_one, flags, from_zero, require, shares, whole
from rlhf_lab.training.history import Result, mean_rows
from rlhf_lab.training.optimisers import clipped_step, linear, scale_rates
from rlhf_lab.training.randomness import generator_for, minibatches
from rlhf_lab.training.steps import Steps


@dataclass(frozen=True)
class PPOConfig:
    """Every choice of a PPO run. Defaults are for CartPole and its like.

    Attributes:
        total_steps: of all environments together; the last iteration is never cut short, so it may be a few more.
        environments: side by side, >= 1.
        steps: of each environment in an iteration, >= 1.
        epochs: passes over each batch, >= 1.
        minibatch: steps in one gradient, >= 2.
        learning_rate: Adam's, at the start, of policy and value alike.
        final_fraction: in [0, 1]; share of the rate left at the end, a linear fall; 1 is constant.
        adam_epsilon: > 0; 1e-5 as in the PPO code bases.
        max_grad_norm: > 0; the gradient is clipped to this norm.
        gamma, gae_lambda: in [0, 1].
        clip_epsilon: > 0, half width of the ratio's band; infinity: no clipping.
        value_clip_epsilon: > 0, how far a value moves in one iteration, in units of the return; infinity: no clipping.
        value_coef: >= 0, weight of the value loss.
        entropy_coef: >= 0, weight of the entropy bonus.
        kl_penalty: >= 0, weight of KL(old || new) in the loss, the other leash of the PPO paper.
        kl_stop: nats a step, > 0; the epochs end once the approximate KL of a minibatch exceeds it. None: never.
        kl_coef: >= 0, reward units per nat of KL to the `reference`, paid in the reward of every step.
        whiten: whether the advantages of a minibatch get mean 0 and variance 1.
        check_invariants: live checks of the first minibatch of every iteration; in the first two iterations and every
            tenth also of the sampled actions, the advantages and the loss.
        evaluate_every: iterations between calls of `evaluate`.
        seed: of weights, environments, actions and minibatches.

    Source: Schulman et al. 2017 for the method; Huang et al. 2022, The 37 Implementation Details of PPO, for the rest.
    """

    total_steps: int = 100_000
    environments: int = 8
    steps: int = 128
    epochs: int = 10
    minibatch: int = 256
    learning_rate: float = 1e-3
    final_fraction: float = 0.0
    adam_epsilon: float = 1e-5
    max_grad_norm: float = 0.5
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_epsilon: float = 0.2
    value_clip_epsilon: float = math.inf
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    kl_penalty: float = 0.0
    kl_stop: float | None = None
    kl_coef: float = 0.0
    whiten: bool = True
    check_invariants: bool = True
    evaluate_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "total_steps", "environments", "steps", "epochs", "minibatch", "evaluate_every")
        above_zero(self, "learning_rate")
        above_zero(self, "adam_epsilon", "max_grad_norm", "clip_epsilon", "value_clip_epsilon", or_infinite=True)
        from_zero(self, "value_coef", "entropy_coef", "kl_penalty", "kl_coef")
        shares(self, "gamma", "gae_lambda", "final_fraction")
        flags(self, "whiten", "check_invariants")
        whole(self, "seed", least=0)
        batch = self.environments * self.steps
        require(2 <= self.minibatch <= batch, "minibatch", self.minibatch, f"from 2 to environments * steps, {batch}")
        least = batch // -(-batch // self.minibatch)
        require(least > 1, "minibatch", self.minibatch, f"one that cuts {batch} steps into parts of at least 2")
        if self.kl_stop is not None:
            above_zero(self, "kl_stop", or_infinite=True)


@dataclass(frozen=True, eq=False, repr=False)
class PPOResult(Result[nn.Module]):
    """What was learned.

    Attributes:
        model: the policy, trained. value: trained along.
        history: a row an iteration, numbered by the steps taken. return: mean of the episodes that ended in it (None
            where none did). entropy, approx_kl (k3, nats a step, old to new), clip_fraction, policy_loss, value_loss,
            grad_norm: means over the minibatches. explained_variance: before the update.
    """

    value: nn.Module


@dataclass(frozen=True, eq=False)
class Batch:
    """N steps in no order: everything is data, [N] or [N, ...]."""

    observations: Tensor
    actions: Tensor
    old_log_probs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    def select(self, rows: Tensor) -> "Batch":
        return Batch(*(getattr(self, f.name)[rows] for f in fields(self)))


def train_ppo(
    env: MakeEnv,
    config: PPOConfig | None = None,
    *,
    policy: nn.Module | None = None,
    value: nn.Module | None = None,
    reference: nn.Module | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> PPOResult:
    """Train a policy and a value function by proximal policy optimisation.

        maximise  min(ratio A, clip(ratio, 1 - eps, 1 + eps) A),   A by GAE, whitened

    Args:
        env: the id of a registered environment, or a function that makes one; Discrete or Box actions.
        config: PPOConfig() if None.
        policy, value: trained in place; a table or a perceptron by the spaces if None. Parameters may be shared.
        reference: the other end of the leash where kl_coef > 0, a policy that is left as it is.
        evaluate: called with the policy before the first iteration, every `evaluate_every` and after the last; its
            numbers go into the history.

    Returns:
        PPOResult. A truncated episode bootstraps from the value of its true last state.

    Raises:
        ValueError: an argument that cannot be, an environment with other spaces, or one that breaks a rule.
        FloatingPointError: a loss or gradient is NaN or infinite.

    Example:
        >>> config = PPOConfig(total_steps=64, environments=2, steps=32, minibatch=32, epochs=1)
        >>> result = train_ppo("CartPole-v1", config)
        >>> result.history.column("entropy")[0].tolist()
        [64]

    Source: Schulman et al. 2017, Proximal Policy Optimization Algorithms. Chapter 05.
    """
    config = config or PPOConfig()
    require((config.kl_coef > 0) == (reference is not None), "reference", reference, "one exactly where kl_coef > 0")
    with open_envs(env, config.environments, config.seed, continuous=True) as envs:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            policy = policy_for(envs[0]) if policy is None else policy
            value = value_for(envs[0]) if value is None else value
        if reference is not None:
            invariants.check_reference_apart(policy, reference)
        agent = nn.ModuleList([policy, value])  # every parameter once, shared or not
        optimiser = torch.optim.Adam(agent.parameters(), lr=config.learning_rate, eps=config.adam_epsilon)
        runner, generator, acted = Runner(envs), generator_for(config.seed, "ppo"), invariants.SampledLaw()
        size = config.environments * config.steps
        iterations = -(-config.total_steps // size)
        look = None if evaluate is None else partial(evaluate, policy)
        with Steps("PPO", iterations, look, config.evaluate_every, number=lambda done: done * size) as steps:
            for i in steps:
                scale_rates(optimiser, linear(1.0, config.final_fraction, i / iterations))
                episodes = runner.collect(sampling(policy, generator), config.steps, config.gamma)
                checked = config.check_invariants and thorough(i)
                if checked:
                    bet_on_actions(acted, policy, episodes)
                batch, numbers = prepare(episodes, policy, value, reference, config)
                updates: list[dict[str, float]] = []
                for rows in minibatches(size, config.minibatch, config.epochs, generator):
                    loss, row = ppo_losses(policy, value, batch.select(rows), config, len(updates), checked)
                    if config.kl_stop is not None and updates and row["approx_kl"] > config.kl_stop:
                        break
                    optimiser.zero_grad()
                    loss.backward()
                    (norm,) = clipped_step(optimiser, config.max_grad_norm, i + 1, agent)
                    updates.append(row | {"grad_norm": norm})
                steps.log(numbers, mean_rows(updates))
        return PPOResult(policy, steps.history, steps.interrupted, value)


@torch.no_grad()
def prepare(
    episodes: Episodes, policy: nn.Module, value: nn.Module, reference: nn.Module | None, config: PPOConfig
) -> tuple[Batch, dict[str, float | None]]:
    """Experience as flat data, with advantages; and the numbers to log."""
    mask, rewards = episodes.mask, episodes.rewards
    log_probs, values = episodes.log_probs(policy), episodes.values(value)
    if reference is not None:
        rewards = rewards - config.kl_coef * kl_k1(log_probs, episodes.log_probs(reference))
    advantages = gae(rewards, values, episodes.discounts, mask, config.gae_lambda)
    if config.check_invariants:
        rows, tolerance = (rewards, values, episodes.discounts, mask), invariants.tolerance_for(values.dtype)
        invariants.check_advantages(advantages, *rows, config.gae_lambda, tolerance)
    returns = advantages + values[:, :-1]
    numbers = {
        "return": episodes.mean_return,
        "explained_variance": float(explained_variance(values[:, :-1], returns, mask)),
    }
    columns = (episodes.observations[:, :-1], episodes.actions, log_probs, values[:, :-1], advantages, returns)
    return Batch(*(column[mask] for column in columns)), numbers


def ppo_losses(
    policy: nn.Module, value: nn.Module, batch: Batch, config: PPOConfig, update: int, checked: bool = True
) -> tuple[Tensor, dict[str, float]]:
    """The loss to minimise on a minibatch, and the numbers to log.

        -mean[surrogate + entropy_coef H - kl_penalty KL(old || new)] + value_coef mean[clipped squared error]

    Args:
        update: minibatches of this iteration before this one.
        checked: whether what the loss does is checked on the first two of them.
    """
    law = policy(batch.observations)
    log_probs, old = law.log_prob(batch.actions), batch.old_log_probs
    everything = torch.ones_like(log_probs, dtype=torch.bool)
    if update == 0 and config.check_invariants:
        tolerance = invariants.tolerance_for(log_probs.dtype)
        invariants.check_first_minibatch(log_probs.detach(), old, everything, config.clip_epsilon, tolerance)
    advantages = masked_whiten(batch.advantages, everything) if config.whiten else batch.advantages
    gain = clipped_surrogate_objective(log_probs, old, advantages, config.clip_epsilon)
    divergence, entropy = kl_k3(old, log_probs), law.entropy()  # the actions are samples of the old policy
    gain = gain + config.entropy_coef * entropy - config.kl_penalty * divergence
    errors = clipped_value_loss(value(batch.observations), batch.old_values, batch.returns, config.value_clip_epsilon)
    numbers = {
        "entropy": entropy.mean(),
        "approx_kl": divergence.mean(),
        "clip_fraction": clip_fraction(log_probs, old, config.clip_epsilon, everything),
        "policy_loss": -gain.mean(),
        "value_loss": errors.mean(),
    }
    loss = -gain.mean() + config.value_coef * errors.mean()
    if config.check_invariants and checked and (update == 0 or (update == 1 and config.kl_penalty == 0)):
        told = (log_probs, old, advantages, len(old), config.clip_epsilon, config.entropy_coef)
        check_policy_loss(loss, law, batch.actions, *told)
    return loss, {name: float(number.detach()) for name, number in numbers.items()}
