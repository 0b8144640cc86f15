"""Policy gradients without a critic: several replies to a prompt, each judged against the others. RLOO, GRPO and kin.

One iteration as in `rlhf`: sample, score, one advantage a reply, a few clipped steps. What differs is whether a reply's
own reward is in its baseline, what the advantage is divided by, over what the loss is averaged, and where the KL
stands: `RLOO`, `GRPO` and `DR_GRPO` are three settings of the same loop.
Left out: several processes, filtering of groups, sequence-level ratios.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.experience.inputs import Sampling, checked_inputs
from rlhf_lab.experience.live import LiveChecks
from rlhf_lab.experience.rewards import (
    Reward,
    check_same_reward,
    remembered,
    reply_numbers,
    scores_of,
    token_rewards,
)
from rlhf_lab.experience.rollouts import TEMPERATURE, prompts_of, sample_responses
from rlhf_lab.experience.updates import (
    Experience,
    Losses,
    accumulate_gradient,
    clipped_losses,
    update_numbers,
    weigh_tokens,
)
from rlhf_lab.maths.kl import kl_k1, kl_k2, kl_k3
from rlhf_lab.maths.returns import group_advantages, leave_one_out_advantages
from rlhf_lab.maths.tensors import masked_mean
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import response_log_probs
from rlhf_lab.records import PromptLike
from rlhf_lab.training.configs import above_zero, at_least_one, flags, from_zero, require, whole
from rlhf_lab.training.history import Result, mean_rows
from rlhf_lab.training.optimisers import OptimiserConfig, clipped_step, scale_rates
from rlhf_lab.training.randomness import generator_for, minibatches
from rlhf_lab.training.steps import Checkpoint, Steps

BASELINES = ("others", "group")
MEANS = ("tokens", "replies", "limit")
ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
LEASHES = ("reward", *ESTIMATORS)


@dataclass(frozen=True)
class GroupConfig:
    """Every choice of a run; the defaults are RLOO on Pebble Town, with the sizes of `RLHFConfig`.

    Attributes:
        iterations: sample-and-learn rounds, >= 1.
        prompts_per_iteration: >= 1.
        replies: to each prompt, K >= 2.
        max_new_tokens, temperature: of the sampling and of all scoring.
        epochs: passes over each rollout, >= 1.
        minibatch_rows, micro_batch: most replies in a step, and in a pass.
        learning_rate: at its peak.
        optimiser: AdamW's other settings and the schedule.
        baseline: "others" (`leave_one_out_advantages`) or "group", whose mean includes the reply itself.
        scale: with "group": divide by the group's standard deviation; prompts then weigh by 1/std.
        mean: over what the loss is a mean: "tokens", "replies" or "limit", see `weigh_tokens`.
        clip_epsilon: > 0, half width of the ratio's band; matters from the second step of a rollout on.
        leash: "reward": the KL of the whole reply is taken off its score. "k1", "k2", "k3": that estimate, token by
            token, is added to the loss; chapter 15 shows which gradients these have.
        kl_coef: >= 0, reward units per nat of a reply's KL; in the loss, advantage units per nat of a token's.
        missing_end_penalty: >= 0, subtracted from the score of a reply that hit the limit, in reward units.
        check_invariants: live checks.
        evaluate_every: iterations between calls of `evaluate`.
        seed: of prompts, sampling and minibatches.
    """

    iterations: int = 60
    prompts_per_iteration: int = 24
    replies: int = 4
    max_new_tokens: int = 64
    temperature: float = TEMPERATURE
    epochs: int = 2
    minibatch_rows: int = 48
    micro_batch: int = 16
    learning_rate: float = 3e-4
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    baseline: str = "others"
    scale: bool = False
    mean: str = "limit"
    clip_epsilon: float = 0.2
    leash: str = "reward"
    kl_coef: float = 0.1
    missing_end_penalty: float = 1.0
    check_invariants: bool = True
    evaluate_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "iterations", "prompts_per_iteration", "max_new_tokens", "epochs")
        at_least_one(self, "minibatch_rows", "micro_batch", "evaluate_every")
        above_zero(self, "temperature", "learning_rate", "clip_epsilon")
        from_zero(self, "kl_coef", "missing_end_penalty")
        flags(self, "scale", "check_invariants")
        whole(self, "seed")
        whole(self, "replies", least=2)
        for name, known in (("baseline", BASELINES), ("mean", MEANS), ("leash", LEASHES)):
            require(getattr(self, name) in known, name, getattr(self, name), f"one of {known}")
        fits = self.baseline == "group" or not self.scale
        require(fits, "scale", self.scale, "False with baseline='others'; only 'group' divides by a spread")
        rows, most = self.minibatch_rows, self.prompts_per_iteration * self.replies
        require(rows <= most, "minibatch_rows", rows, f"at most prompts_per_iteration * replies, {most}")

    @property
    def sampling(self) -> Sampling:
        """How replies are drawn."""
        return {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}


RLOO = GroupConfig()  # Ahmadian et al. 2024
GRPO = GroupConfig(baseline="group", scale=True, mean="replies", leash="k3", kl_coef=0.04)  # Shao et al. 2024
DR_GRPO = replace(GRPO, scale=False, mean="limit")  # Liu et al. 2025


@dataclass(frozen=True, eq=False, repr=False)
class GroupResult(Result[LanguageModel]):
    """A trained policy and how it came about.

    Attributes:
        history: as of `RLHFResult`, without what is of a value. equal_groups: share of the groups whose rewards are all
            the same, from which nothing is learned. policy_loss is 0 at a first step with
            mean="replies" and whole groups in it, else minus a covariance of reward and length: see chapter 15.
        timings: seconds of "sample", "score" and "optimise" in each iteration that this process ran.
        unchecked: name of a live check -> why this run could not have it.
    """

    timings: dict[str, list[float]]
    unchecked: dict[str, str]


def train_group(
    policy: LanguageModel,
    prompts: Sequence[PromptLike],
    reward: Reward,
    config: GroupConfig | None = None,
    *,
    reference: LanguageModel | None = None,
    evaluate: Callable[[LanguageModel], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
) -> GroupResult:
    """Train a copy of a policy on the scores of its own replies, each against the other replies to its prompt.

        A_k = r_k - baseline,    one advantage for all tokens of reply k

    Args:
        policy: where to start; it is not changed.
        prompts: a non-empty list of conversations.
        reward: a RewardModel or a function of a Rollout.
        config: RLOO, GRPO, DR_GRPO or another; None: RLOO.
        reference: of the KL; None: the policy as it was.
        evaluate: called with the policy at step 0, every `evaluate_every` iterations and at the end.
        checkpoint, checkpoint_every: as for `train_rlhf`.

    Returns:
        GroupResult. After an interrupt it holds what was done.

    Raises:
        ValueError, InvariantViolation, CheckpointError, FloatingPointError: as `train_rlhf`.

    Source: Kool et al. 2019, Buy 4 REINFORCE samples, get a baseline for free; Ahmadian et al. 2024, Back to Basics;
    Shao et al. 2024, DeepSeekMath, section 4.1. Chapter 15.
    """
    config = config or RLOO
    conversations, rows_of = checked_inputs(policy, prompts, reward, config.max_new_tokens, reference=reference)
    start, policy = policy, policy.copy()
    policy.model.requires_grad_(True)
    optimiser = config.optimiser.adamw([{"params": list(policy.model.parameters()), "lr": config.learning_rate}])
    state: dict[str, Any] = {}
    law = (config.temperature, config.micro_batch)
    checks = new_checks(policy, reference or start, state, config)
    inputs = {"policy": start.model, "precision": str(start.precision), "prompts": rows_of}
    inputs |= {"reference": (reference or start).model, "reward": getattr(reward, "model", None)}
    file = Checkpoint(
        checkpoint, checkpoint_every, "group", config, inputs, policy.model, optimiser, state, several_updates=True
    )
    losses, look = partial(group_losses, policy, config), evaluate and partial(evaluate, policy)
    with Steps("groups", config.iterations, look, config.evaluate_every, file) as steps:
        check_same_reward(reward, state, start.device)
        for step in steps:
            generator = generator_for(config.seed, "group", step)
            rate = scale_rates(optimiser, config.optimiser.factor(step, config.iterations))
            with steps.timed("sample"):
                asked = prompts_of(conversations, config.prompts_per_iteration, step, config.seed)
                asked = [prompt for prompt in asked for _ in range(config.replies)]
                rollout = sample_responses(
                    policy, asked, generator=generator, keep_logits=checks.law_rows, **config.sampling
                )
            with steps.timed("score"):
                batch, mask = rollout.batch, rollout.batch.mask
                log_probs = rollout.log_probs if exact(policy) else response_log_probs(policy, batch, *law)
                ref_log_probs = response_log_probs(reference or start, batch, *law)
                raw_scores = remembered(scores_of(reward, rollout), rollout, state)
                checks.rollout(step, rollout, raw_scores, log_probs, ref_log_probs, reward)
                scores = raw_scores - config.missing_end_penalty * ~rollout.ended
                kl_coef = config.kl_coef if config.leash == "reward" else 0.0
                kl_penalty = -kl_coef * kl_k1(log_probs, ref_log_probs) * mask
                rewards = token_rewards(scores, kl_penalty, mask)
                checks.rewards(rewards, scores, kl_penalty, log_probs, ref_log_probs, mask, kl_coef)
                groups = rewards.sum(1).view(-1, config.replies)  # [prompts, K], one number a reply
                advantages = advantages_of(groups, config).view(-1, 1).expand(mask.shape) * mask
                experience = Experience(batch, log_probs, advantages, ref_log_probs=ref_log_probs)
                checks.groups(step, experience, groups)
            with steps.timed("optimise"):
                updates: list[dict[str, float]] = []
                for rows in minibatches(len(rollout), config.minibatch_rows, config.epochs, generator):
                    part = experience.select(rows)
                    optimiser.zero_grad()
                    seen = checks.look(step, len(updates), part, rows)
                    part = weigh_tokens(part, config.mean, config.max_new_tokens)
                    new, numbers = accumulate_gradient(losses, part, config.micro_batch, look=seen)
                    numbers |= checks.update(step, update_numbers(new, part, config.clip_epsilon))
                    (norm,) = clipped_step(optimiser, config.optimiser.max_grad_norm, step + 1, policy.model)
                    updates.append(numbers | {"grad_norm": norm})
            steps.log(reply_numbers(rollout, raw_scores, rewards, log_probs, ref_log_probs), mean_rows(updates))
            steps.log(equal_groups=float((groups.std(1) == 0).float().mean()), learning_rate=rate)
    return GroupResult(policy, steps.history, steps.interrupted, steps.timings, checks.unchecked)


def exact(policy: LanguageModel) -> bool:
    """Whether log-probs from sampling are those of a training pass; in bf16 they are 0.03 nats off."""
    return policy.precision == torch.float32


def advantages_of(groups: Tensor, config: GroupConfig) -> Tensor:
    """[G, K] advantages of rewards [G, K], as the config says."""
    if config.baseline == "others":
        return leave_one_out_advantages(groups)
    return group_advantages(groups, scale=config.scale)


def group_losses(policy: LanguageModel, config: GroupConfig, part: Experience, count: Tensor) -> Losses:
    """The clipped surrogate, and a leash in the loss where the config has one.

    leash = kl_coef / count * sum over tokens of weight * estimate(log_probs, ref_log_probs)
    """
    losses = clipped_losses(policy, None, part, count, temperature=config.temperature, clip_epsilon=config.clip_epsilon)
    if config.leash == "reward" or part.ref_log_probs is None:
        return losses
    estimates = ESTIMATORS[config.leash](losses.log_probs, part.ref_log_probs)
    estimates = estimates if part.weights is None else estimates * part.weights
    return replace(losses, leash=config.kl_coef * masked_mean(estimates, part.batch.mask, count=count))


def new_checks(
    policy: LanguageModel, reference: LanguageModel, state: dict[str, Any], config: GroupConfig
) -> LiveChecks:
    """The live checks, told what this run declares."""
    limit, on = config.optimiser.kl_limit, config.check_invariants
    law = (config.temperature, config.max_new_tokens)
    leash = None if config.leash == "reward" else (config.leash, config.kl_coef)
    return LiveChecks(policy, reference, *law, state, config.clip_epsilon, kl_limit=limit, on=on, leash=leash)
