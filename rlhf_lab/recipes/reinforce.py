"""REINFORCE, with and without a baseline, and with a critic: whole episodes in, one gradient step out.

Settings of one loop: baseline="none" is Williams' REINFORCE, "mean" subtracts the return of the *other* episodes,
"value" a learned value, and with gae_lambda below 1 that value also replaces the future: the actor-critic.
Left out: eligibility traces, natural gradients, checkpoints (the state of an environment cannot be saved; an interrupt
keeps the policy that was learned).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from rlhf_lab.experience import invariants
from rlhf_lab.experience.episodes import Episodes, MakeEnv, collect_episodes, open_envs, policy_for, value_for
from rlhf_lab.experience.live import bet_on_actions, check_policy_loss, thorough
from rlhf_lab.maths.kl import kl_k1
from rlhf_lab.maths.objectives import reinforce_objective
from rlhf_lab.maths.returns import discounted_returns, gae, lambda_returns
from rlhf_lab.maths.tensors import masked_mean, masked_sum
from rlhf_lab.models.policies import sampling
from rlhf_lab.training.configs import above_zero, at_least_one, flags, from_zero, require, shares, whole
from rlhf_lab.training.history import Result
from rlhf_lab.training.optimisers import clipped_step
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.training.steps import Steps

BASELINES = ("none", "mean", "value")


@dataclass(frozen=True)
class ReinforceConfig:
    """Every choice of a run of REINFORCE or of the actor-critic.

    Attributes:
        iterations: gradient steps of the policy, >= 1.
        episodes: in each iteration, >= 1 (>= 2 with baseline="mean").
        max_steps: an episode is cut after so many, >= 1. A cut episode bootstraps from the value of its last state;
            with baseline "none" or "mean" it counts as ended.
        learning_rate, value_learning_rate: Adam's, > 0.
        value_epochs: gradient steps of the value on each batch, >= 1.
        gamma: discount, in [0, 1].
        baseline: one of `BASELINES`.
        gae_lambda: in [0, 1]; below 1 only with baseline="value".
        reward_to_go: False weights every action by the return of its whole episode, past included; its rewards are
            discounted from the first step, so that is the gradient of the discounted J already.
        discount_visits: weight step t by gamma^t, so that the estimate is that of the gradient of the discounted J;
            practice leaves it out.
        entropy_coef: >= 0, weight of the entropy bonus, in units of the return per nat.
        kl_coef: >= 0, reward units per nat of KL to the `reference`, paid in the reward of every step.
        check_invariants: live checks of the sampled actions and the loss, in the first two iterations and every tenth.
        evaluate_every: iterations between calls of `evaluate`.
        seed: of weights, environments and actions.
    """

    iterations: int = 200
    episodes: int = 16
    max_steps: int = 10_000
    learning_rate: float = 1e-2
    value_learning_rate: float = 1e-2
    value_epochs: int = 5
    gamma: float = 0.99
    baseline: str = "value"
    gae_lambda: float = 1.0
    reward_to_go: bool = True
    discount_visits: bool = False
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    check_invariants: bool = True
    evaluate_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "iterations", "episodes", "max_steps", "value_epochs", "evaluate_every")
        above_zero(self, "learning_rate", "value_learning_rate")
        from_zero(self, "entropy_coef", "kl_coef")
        shares(self, "gamma", "gae_lambda")
        flags(self, "reward_to_go", "discount_visits", "check_invariants")
        whole(self, "seed", least=0)
        require(self.baseline in BASELINES, "baseline", self.baseline, f"one of {BASELINES}")
        require(
            self.baseline != "mean" or self.episodes > 1, "episodes", self.episodes, "at least 2 with that baseline"
        )
        require(self.reward_to_go or not self.discount_visits, "discount_visits", True, "False with whole returns")
        critic = self.baseline == "value" and self.reward_to_go
        require(critic or self.gae_lambda == 1, "gae_lambda", self.gae_lambda, "1 without a value, or whole returns")


@dataclass(frozen=True, eq=False, repr=False)
class ReinforceResult(Result[nn.Module]):
    """What was learned.

    Attributes:
        model: the policy, trained.
        value: trained along; None where the baseline is no value.
        history: a row an iteration. return: mean undiscounted return of its episodes. length: their mean length.
            entropy: nats a step. grad_norm: of the policy. value_loss: after the value's last step.
    """

    value: nn.Module | None


def train_reinforce(
    env: MakeEnv,
    config: ReinforceConfig | None = None,
    *,
    policy: nn.Module | None = None,
    value: nn.Module | None = None,
    reference: nn.Module | None = None,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
) -> ReinforceResult:
    """Climb the expected return along its sampled gradient, one step a batch of episodes.

        gradient = mean over episodes of sum_t grad log pi(a_t | s_t) A_t

    Args:
        env: the id of a registered environment, or a function that makes one; Discrete actions.
        config: ReinforceConfig() if None.
        policy, value: trained in place; a table or a perceptron by the spaces if None.
        reference: the other end of the leash where kl_coef > 0, a policy that is left as it is.
        evaluate: called with the policy before the first iteration, every `evaluate_every` and after the last; its
            numbers go into the history.

    Returns:
        ReinforceResult.

    Raises:
        ValueError: an argument that cannot be, an environment with other spaces, or one that breaks a rule.
        FloatingPointError: the gradient is NaN or infinite.

    Example:
        >>> result = train_reinforce("CartPole-v1", ReinforceConfig(iterations=2, episodes=2, max_steps=20))
        >>> len(result.history)
        2

    Source: Williams 1992; Sutton et al. 2000; the critic: Konda and Tsitsiklis 2000. Chapters 02 and 04.
    """
    config = config or ReinforceConfig()
    require((config.kl_coef > 0) == (reference is not None), "reference", reference, "one exactly where kl_coef > 0")
    require(value is None or config.baseline == "value", "value", value, "None with another baseline")
    with open_envs(env, config.episodes, config.seed) as envs:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            policy = policy_for(envs[0]) if policy is None else policy
            if config.baseline == "value" and value is None:
                value = value_for(envs[0])
        if reference is not None:
            invariants.check_reference_apart(policy, reference)
        optimiser = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
        critic = None if value is None else torch.optim.Adam(value.parameters(), lr=config.value_learning_rate)
        generator, acted = generator_for(config.seed, "reinforce"), invariants.SampledLaw()
        look = None if evaluate is None else partial(evaluate, policy)
        with Steps("REINFORCE", config.iterations, look, config.evaluate_every) as steps:
            for step in steps:
                episodes = collect_episodes(envs, sampling(policy, generator), config.gamma, config.max_steps)
                mask, rewards = episodes.mask, leashed(episodes, policy, reference, config.kl_coef)
                advantages = weights(episodes, rewards, value, config)
                law = policy(episodes.observations[:, :-1][mask])
                log_probs = law.log_prob(episodes.actions[mask])
                gain = reinforce_objective(log_probs, advantages[mask]) + config.entropy_coef * law.entropy()
                loss = -gain.sum() / len(mask)
                if config.check_invariants and thorough(step):
                    bet_on_actions(acted, policy, episodes)
                    told = (log_probs, log_probs.detach(), advantages[mask], len(mask), math.inf, config.entropy_coef)
                    check_policy_loss(loss, law, episodes.actions[mask], *told)
                optimiser.zero_grad()
                loss.backward()
                (norm,) = clipped_step(optimiser, math.inf, step + 1, policy)
                returns, lengths = masked_sum(episodes.rewards, mask, dim=1), mask.sum(1).float()
                steps.log({"return": float(returns.mean()), "length": float(lengths.mean())})
                steps.log(entropy=float(law.entropy().mean().detach()), grad_norm=norm)
                if value is not None and critic is not None:
                    steps.log(value_loss=fit_value(value, critic, episodes, rewards, config))
        return ReinforceResult(policy, steps.history, steps.interrupted, value)


@torch.no_grad()
def leashed(episodes: Episodes, policy: nn.Module, reference: nn.Module | None, kl_coef: float) -> Tensor:
    """[B, T] rewards minus kl_coef times the k1 of every step; the rewards as they are without a reference."""
    if reference is None:
        return episodes.rewards
    return episodes.rewards - kl_coef * kl_k1(episodes.log_probs(policy), episodes.log_probs(reference))


@torch.no_grad()
def weights(episodes: Episodes, rewards: Tensor, value: nn.Module | None, config: ReinforceConfig) -> Tensor:
    """[B, T] what each log-prob is multiplied with: a return, or an advantage."""
    mask, discounts = episodes.mask, episodes.discounts
    values = None if value is None else episodes.values(value)
    if config.reward_to_go and values is not None:
        advantages = gae(rewards, values, discounts, mask, config.gae_lambda)
    else:
        last = None if values is None else values.gather(1, mask.sum(1, keepdim=True)).squeeze(1)
        advantages = discounted_returns(rewards, discounts, mask, last)
        if not config.reward_to_go:
            advantages = torch.where(mask, advantages[:, :1], 0)
        if values is not None:
            advantages = advantages - values[:, :-1]
    if config.baseline == "mean":
        advantages = advantages - others_mean(advantages, mask)
    if config.discount_visits:
        advantages = advantages * config.gamma ** torch.arange(mask.shape[1])
    return torch.where(mask, advantages, 0)


def others_mean(returns: Tensor, mask: Tensor) -> Tensor:
    """[B, 1] mean over the steps of the *other* rows: it does not depend on the row's own actions.

    >>> others_mean(torch.tensor([[1.0, 3.0], [5.0, 0.0]]), torch.tensor([[True, True], [True, False]])).tolist()
    [[5.0], [2.0]]
    """
    total, count = masked_sum(returns, mask, dim=1), mask.sum(1)
    return ((total.sum() - total) / (count.sum() - count))[:, None]


def fit_value(
    value: nn.Module, optimiser: torch.optim.Optimizer, episodes: Episodes, rewards: Tensor, config: ReinforceConfig
) -> float:
    """A few steps on the squared error of the values; returns half of its last mean."""
    mask = episodes.mask
    with torch.no_grad():
        targets = lambda_returns(rewards, episodes.values(value), episodes.discounts, mask, config.gae_lambda)
    for _ in range(config.value_epochs):
        loss = masked_mean((episodes.values(value)[:, :-1] - targets).square() / 2, mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(loss.detach())
