"""RLHF with PPO, as in InstructGPT: a policy learns from a reward model on a KL leash.

One iteration: sample replies, score them, turn scores and KL into one reward per token, estimate advantages,
and take a few epochs of clipped gradient steps on policy and value. The policy stays in eval mode (no
dropout), so the law that sampled is the law that is scored.
Left out: several processes, reward whitening, per-token rewards from the reward model, value warm-up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.experience.inputs import Sampling, checked_inputs
from rlhf_lab.experience.live import LiveChecks
from rlhf_lab.experience.rewards import (
    Reward,
    adapted_kl_coef,
    check_same_reward,
    remembered,
    reply_discounts,
    reply_numbers,
    scores_of,
    token_rewards,
)
from rlhf_lab.experience.rollouts import TEMPERATURE, prompts_of, sample_responses
from rlhf_lab.experience.updates import (
    Critic,
    Experience,
    Losses,
    accumulate_gradient,
    clipped_losses,
    language_model_gradient,
    old_log_probs_and_values,
    update_numbers,
    value_numbers,
)
from rlhf_lab.maths.kl import kl_k1
from rlhf_lab.maths.returns import gae
from rlhf_lab.maths.tensors import masked_whiten
from rlhf_lab.models.architectures import state_width
from rlhf_lab.models.ensemble import reward_model_of
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.scoring import ValueHead, response_log_probs
from rlhf_lab.models.tokens import Rollout, readable
from rlhf_lab.records import PromptLike
from rlhf_lab.training.configs import above_zero, at_least_one, flags, from_zero, require, shares, whole
from rlhf_lab.training.history import Result, mean_rows
from rlhf_lab.training.optimisers import OptimiserConfig, clipped_step, scale_rates
from rlhf_lab.training.randomness import generator_for, minibatches
from rlhf_lab.training.steps import Checkpoint, Steps

VALUES = ("reward_model", "policy_head")


@dataclass(frozen=True)
class RLHFConfig:
    """Every choice of an RLHF run. Defaults are for the shipped model on Pebble Town.

    Attributes:
        iterations: sample-and-learn rounds, >= 1.
        prompts_per_iteration: replies sampled in each, >= 1; all prompts are used before any is used twice.
        max_new_tokens: limit of a reply, tokens.
        temperature: > 0 (0.7); divides the logits in sampling and in all scoring.
        epochs: passes over each rollout, >= 1 (Ouyang 2022 takes 1).
        minibatch_rows: most replies per optimiser step; a rollout is cut evenly.
        micro_batch: most rows in one pass; changes memory and speed, not the result. On a CPU few rows of one
            length are faster than many that need padding; on a GPU take as many as fit.
        learning_rate: of the policy, at its peak.
        value_learning_rate: of the value model, or of the value head.
        optimiser: AdamW's other settings and the schedule.
        gae_lambda: in [0, 1]; gamma is 1 (Schulman 2016; 0.95 as in Ziegler 2019).
        clip_epsilon: > 0, half width of the ratio's band (Schulman 2017: 0.2).
        value_clip_epsilon: > 0, how far a value moves in one iteration, in units of the reward.
        value_coef: >= 0, weight of the value loss; matters with value="policy_head", which shares weights.
        entropy_coef: >= 0, weight of an entropy bonus, in units of the whitened advantage per nat.
        kl_coef: >= 0, reward units per nat of KL; the start value where kl_target is set.
        kl_target: nats per reply, > 0; kl_coef then follows the controller of Ziegler 2019. None: constant.
        kl_stop: nats per token, > 0; the epochs end once the approximate KL of a minibatch exceeds it.
        lm_coef: >= 0, weight of the language-model loss on `lm_texts` (PPO-ptx, Ouyang 2022).
        missing_end_penalty: >= 0, subtracted from the score of a reply that hit the limit, in reward units.
        value: "reward_model", a model of its own that starts from it, or "policy_head", a head on the policy.
        check_invariants: live checks; at most 3 % of the time of a run.
        evaluate_every: iterations between calls of `evaluate`.
        seed: of prompts, sampling and minibatches.
    """

    iterations: int = 60
    prompts_per_iteration: int = 96
    max_new_tokens: int = 64
    temperature: float = TEMPERATURE
    epochs: int = 2
    minibatch_rows: int = 48
    micro_batch: int = 16
    learning_rate: float = 3e-4
    value_learning_rate: float = 1e-3
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    gae_lambda: float = 0.95
    clip_epsilon: float = 0.2
    value_clip_epsilon: float = 0.5
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    kl_coef: float = 0.1
    kl_target: float | None = None
    kl_stop: float | None = None
    lm_coef: float = 0.0
    missing_end_penalty: float = 1.0
    value: str = "reward_model"
    check_invariants: bool = True
    evaluate_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "iterations", "prompts_per_iteration", "max_new_tokens", "epochs")
        at_least_one(self, "minibatch_rows", "micro_batch", "evaluate_every")
        above_zero(self, "temperature", "learning_rate", "value_learning_rate", "clip_epsilon", "value_clip_epsilon")
        from_zero(self, "value_coef", "entropy_coef", "kl_coef", "lm_coef", "missing_end_penalty")
        above_zero(self, *(name for name in ("kl_target", "kl_stop") if getattr(self, name) is not None))
        shares(self, "gae_lambda")
        flags(self, "check_invariants")
        whole(self, "seed")
        require(self.value in VALUES, "value", self.value, f"one of {VALUES}")
        rows, most = self.minibatch_rows, self.prompts_per_iteration
        require(rows <= most, "minibatch_rows", rows, f"at most prompts_per_iteration, {most}")

    @property
    def sampling(self) -> Sampling:
        """How replies are drawn, the same wherever a model is asked: in feedback, in PPO, in an evaluation."""
        return {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}


@dataclass(frozen=True, eq=False, repr=False)
class RLHFResult(Result[LanguageModel]):
    """A trained policy and how it came about.

    Attributes:
        model: the trained policy.
        value: the value model (RewardModel) or the ValueHead, trained along.
        history: a row per iteration, and one at step 0 with `evaluate`'s numbers only.
            score: mean score before penalties. reward: with the penalties for KL and missing ends.
            kl, kl_k3: nats per reply against the reference, by two estimates. kl_coef: used in this iteration.
            entropy: nats per token, estimated as the mean of -log_probs. length: tokens. ended: share of replies.
            explained_variance: of the returns by the values before the update.
            clip_fraction, approx_kl (k3, nats per token, old to new), policy_loss, value_loss, lm_loss,
            grad_norm (of the policy, before clipping): means over the optimiser steps. learning_rate: policy's.
        interrupted: True where an interrupt ended the run early.
        timings: seconds of "sample", "score" and "optimise", one number for each iteration that this process ran;
            not in the history, which is bit-identical from run to run.
        check_cost: seconds of the live checks over all seconds of the iterations that this process ran.
        unchecked: name of a live check -> why this run could not have it.
    """

    value: RewardModel | ValueHead
    timings: dict[str, list[float]]
    check_cost: float
    unchecked: dict[str, str]


def train_rlhf(
    policy: LanguageModel,
    prompts: Sequence[PromptLike],
    reward: Reward,
    config: RLHFConfig | None = None,
    *,
    reference: LanguageModel | None = None,
    value_init: RewardModel | None = None,
    lm_texts: Sequence[str] = (),
    evaluate: Callable[[LanguageModel], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
) -> RLHFResult:
    """Train a copy of a policy by PPO on the scores of its own replies, on a KL leash.

        maximise  E[score(reply)] - kl_coef * KL(policy || reference)

    The KL enters the reward, token by token, as -kl_coef * (log_probs - ref_log_probs); see chapter 10 for what goes
    wrong when the same estimate is put into the loss.

    Args:
        policy: where to start; it is not changed.
        prompts: texts, or conversations that end with a user message.
        reward: scores [B] of a Rollout: a RewardModel or a RewardEnsemble with the policy's tokenizer, or a function;
            called once an iteration, and once more in the first two and every tenth, where the live checks compare.
        config: RLHFConfig() if None.
        reference: the other end of the leash; the policy as given if None.
        value_init: start of the value model; if None a copy of `reward` where that is a RewardModel, of the first
            member of an ensemble, else the policy's own weights under a new head. Not used with value="policy_head".
        lm_texts: texts for the language-model loss; needed when lm_coef > 0.
        evaluate: called with the model before the first iteration, after every `evaluate_every`-th and after the
            last; its numbers go into the history.
        checkpoint: file that holds the run's state. If it exists, the run goes on from it bit-identically; another
            input is refused, and a reward that gives other scores for the replies of the first iteration.
        checkpoint_every: iterations between savings; saved also at an interrupt, at the end, and when something is
            not finite.

    Returns:
        RLHFResult.

    Raises:
        ValueError: an argument that cannot be; CheckpointError: a checkpoint of another run.
        InvariantViolation: a live check failed; the message says what it means.
        FloatingPointError: something is NaN or infinite; the state after the iteration before is in `checkpoint`.

    Example:
        >>> import torch
        >>> from rlhf_lab.models.language_model import load_language_model
        >>> config = RLHFConfig(iterations=1, prompts_per_iteration=4, minibatch_rows=4, max_new_tokens=4)
        >>> short = lambda rollout: -rollout.batch.response_lengths.float()
        >>> result = train_rlhf(load_language_model("tiny"), ["When does the library close?"], short, config)
        >>> result.history.last("score") <= -1
        True

    Source: Ouyang et al. 2022, Training language models to follow instructions with human feedback, section 3.5;
    Schulman et al. 2017, Proximal policy optimization algorithms. Chapter 10.
    """
    config = config or RLHFConfig()
    models = {"reference": reference, "value_init": value_init}
    conversations, prompt_rows = checked_inputs(policy, prompts, reward, config.max_new_tokens, **models)
    texts = checked_texts(policy, lm_texts, config.lm_coef)
    start, policy = policy, policy.copy()
    critic = new_critic(start, reward, value_init, config)
    networks = torch.nn.ModuleDict({"policy": policy.model, "value": critic.network}).requires_grad_(True)
    optimiser, losses = new_optimiser(networks, config), new_losses(policy, critic, config)
    state, law = new_state(config), (config.temperature, config.micro_batch)
    checks = new_checks(policy, reference or start, state, config)
    sample = new_sampling(policy, critic, checks, config)
    inputs = run_inputs(start, prompt_rows, reward, reference, value_init, texts)
    file = Checkpoint(
        checkpoint, checkpoint_every, "rlhf", config, inputs, networks, optimiser, state, several_updates=True
    )
    look = evaluate and partial(evaluate, policy)
    with Steps("RLHF", config.iterations, look, config.evaluate_every, file) as steps:
        check_same_reward(reward, state, start.device)
        for step in steps:
            generator = generator_for(config.seed, "rlhf", step)
            rate = scale_rates(optimiser, config.optimiser.factor(step, config.iterations))
            with steps.timed("sample"):
                asked = prompts_of(conversations, config.prompts_per_iteration, step, config.seed)
                rollout = sample(asked, generator=generator)
            with steps.timed("score"):
                batch, mask = rollout.batch, rollout.batch.mask
                log_probs, values = old_log_probs_and_values(policy, critic, rollout, *law)
                ref_log_probs = response_log_probs(reference or start, batch, *law)
                raw_scores = remembered(scores_of(reward, rollout), rollout, state)
                checks.rollout(step, rollout, raw_scores, log_probs, ref_log_probs, reward)
                scores = raw_scores - config.missing_end_penalty * ~rollout.ended
                kl_penalty = -state["kl_coef"] * kl_k1(log_probs, ref_log_probs) * mask
                rewards, discounts = token_rewards(scores, kl_penalty, mask), reply_discounts(mask)
                checks.rewards(rewards, scores, kl_penalty, log_probs, ref_log_probs, mask, state["kl_coef"])
                advantages = gae(rewards, values, discounts, mask, config.gae_lambda)
                returns, white = advantages + values[:, :-1], masked_whiten(advantages, mask)
                experience = Experience(batch, log_probs, white, values[:, :-1], returns)
                checks.advantages(step, advantages, rewards, values, discounts, experience)
            with steps.timed("optimise"):
                updates: list[dict[str, float]] = []
                for rows in minibatches(len(rollout), config.minibatch_rows, config.epochs, generator):
                    part = experience.select(rows)
                    optimiser.zero_grad()
                    weights = (config.micro_batch, config.value_coef, checks.look(step, len(updates), part, rows))
                    new, numbers = accumulate_gradient(losses, part, *weights)
                    numbers |= checks.update(step, update_numbers(new, part, config.clip_epsilon))
                    if updates and config.kl_stop is not None and numbers["approx_kl"] > config.kl_stop:
                        break
                    if config.lm_coef > 0:
                        ptx = (len(rows), config.lm_coef, config.micro_batch, generator)
                        numbers["lm_loss"] = language_model_gradient(policy, texts, *ptx)
                    norms = clipped_step(optimiser, config.optimiser.max_grad_norm, step + 1, *networks.values())
                    updates.append(numbers | {"grad_norm": norms[0]})
            seen = reply_numbers(rollout, raw_scores, rewards, log_probs, ref_log_probs)
            steps.log(seen, value_numbers(values[:, :-1], returns, mask), mean_rows(updates))
            steps.log(kl_coef=state["kl_coef"], learning_rate=rate)
            if config.kl_target is not None:
                state["kl_coef"] = adapted_kl_coef(state["kl_coef"], seen["kl"], config.kl_target)
    cost = checks.share_of(steps.timings)
    return RLHFResult(policy, steps.history, steps.interrupted, critic, steps.timings, cost, checks.unchecked)


def new_critic(
    policy: LanguageModel, reward: Reward, value_init: RewardModel | None, config: RLHFConfig
) -> RewardModel | ValueHead:
    """What gives the values: a head on the policy, or a model of its own, from a reward model where there is one."""
    if config.value == "policy_head":
        return ValueHead(state_width(policy.model)).to(policy.device)
    like = reward_model_of(reward if value_init is None else value_init)
    if like is not None:
        return like.copy()
    critic = RewardModel.from_language_model(policy, generator_for(config.seed, "rlhf", "value"))
    # Values start at 0; a random head would only add noise.
    torch.nn.init.zeros_(critic.model.get_parameter("score.weight"))
    return critic


def new_losses(policy: LanguageModel, critic: Critic, config: RLHFConfig) -> Callable[[Experience, Tensor], Losses]:
    """The losses of PPO with the settings of a run."""
    return partial(
        clipped_losses,
        policy,
        critic,
        temperature=config.temperature,
        clip_epsilon=config.clip_epsilon,
        value_clip_epsilon=config.value_clip_epsilon,
        entropy_coef=config.entropy_coef,
    )


def new_optimiser(networks: torch.nn.ModuleDict, config: RLHFConfig) -> torch.optim.AdamW:
    """AdamW on policy and value, each with a peak rate of its own."""
    peaks = {"policy": config.learning_rate, "value": config.value_learning_rate}
    groups = [{"params": list(networks[name].parameters()), "lr": peak} for name, peak in peaks.items()]
    return config.optimiser.adamw(groups)


def new_state(config: RLHFConfig) -> dict[str, Any]:
    """What a checkpoint keeps besides weights: the KL coefficient now, and what the live checks keep there."""
    return {"kl_coef": config.kl_coef}


def new_checks(
    policy: LanguageModel, reference: LanguageModel, state: dict[str, Any], config: RLHFConfig
) -> LiveChecks:
    """The live checks, told what this run declares."""
    law, declared = (config.temperature, config.max_new_tokens), (config.clip_epsilon, config.entropy_coef)
    limit, on = config.optimiser.kl_limit, config.check_invariants
    return LiveChecks(policy, reference, *law, state, *declared, config.gae_lambda, limit, on)


def new_sampling(
    policy: LanguageModel, critic: Critic, checks: LiveChecks, config: RLHFConfig
) -> Callable[..., Rollout]:
    """`sample_responses` of the policy as it is now, with its values where it has a head for them."""
    head = critic if isinstance(critic, ValueHead) else None
    kept = checks.law_rows
    return partial(sample_responses, policy, value_head=head, keep_logits=kept, **config.sampling)


def run_inputs(
    policy: LanguageModel,
    prompt_rows: list[list[int]],
    reward: Reward,
    reference: LanguageModel | None,
    value_init: RewardModel | None,
    lm_rows: list[list[int]],
) -> dict[str, object]:
    """What a run is made from, by name; a reward that is a function is known by its scores instead."""
    scale = None if value_init is None else (value_init.score_mean, value_init.score_std)
    return {
        "policy": policy.model,
        "precision": str(policy.precision),
        "prompts": prompt_rows,
        "lm_texts": lm_rows,
        "reference": (reference or policy).model,
        "reward": getattr(reward, "model", None),
        "value_init": getattr(value_init, "model", None),
        "scale of value_init": scale,
    }


def checked_texts(policy: LanguageModel, texts: Sequence[str], lm_coef: float) -> list[list[int]]:
    """The texts of PPO-ptx as token rows, or a ValueError that names what is wrong."""
    require(lm_coef == 0 or len(texts) > 0, "lm_texts", texts, "some texts, or lm_coef = 0")
    rows = [policy.tokenizer(text)["input_ids"][: policy.max_length] for text in readable(texts)]
    for i, row in enumerate(rows):
        require(len(row) > 1, f"lm_texts[{i}]", texts[i], "a text of at least 2 tokens")
    return rows
