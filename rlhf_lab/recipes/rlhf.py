"""RLHF with PPO, as in InstructGPT: a policy learns from a reward model on a KL leash.

One iteration: sample replies, score them, turn scores and KL into one reward per token, estimate advantages,
and take a few epochs of clipped gradient steps on policy and value. The policy stays in eval mode (no
dropout), so the law that sampled is the law that is scored.
Left out: several processes, reward whitening, per-token rewards from the reward model, value warm-up.
"""

import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import trange

from rlhf_lab.experience import invariants
from rlhf_lab.experience.rollouts import sample_responses
from rlhf_lab.maths.kl import kl_k1, kl_k3
from rlhf_lab.maths.objectives import (
    clip_fraction,
    clipped_surrogate_objective,
    clipped_value_loss,
    entropy,
    explained_variance,
)
from rlhf_lab.maths.returns import gae
from rlhf_lab.maths.tensors import masked_mean, masked_sum, masked_whiten
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.scoring import ValueHead, forward, response_log_probs, token_log_probs
from rlhf_lab.models.tokens import Rollout, TokenBatch, length_groups, make_batch
from rlhf_lab.records import Conversation, as_conversation
from rlhf_lab.training.configs import require
from rlhf_lab.training.files import CheckpointError
from rlhf_lab.training.history import History, mean_rows
from rlhf_lab.training.optimisers import linear
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.training.steps import RunState, graceful_interrupt

# Rows that are scored again, iterations between, and the most of all forward tokens that this may take.
CHECK_ROWS, CHECK_EVERY, CHECK_BUDGET = 2, 10, 0.02
VALUES = ("reward_model", "policy_head")


@dataclass(frozen=True)
class OptimiserConfig:
    """AdamW and its schedule, for policy and value alike.

    Attributes:
        adam_epsilon: > 0. 1e-5 as in the PPO code bases; torch's 1e-8 takes larger first steps.
        max_grad_norm: > 0; gradients of policy and of value model are clipped to this norm, each apart.
        warmup_iterations: the learning rate rises linearly over these first iterations.
        final_fraction: in [0, 1]; share of the rate left at the last iteration, a linear fall; 1 is constant.
    """

    adam_epsilon: float = 1e-5
    max_grad_norm: float = 1.0
    warmup_iterations: int = 0
    final_fraction: float = 0.1

    def __post_init__(self) -> None:
        require(self.adam_epsilon > 0, "adam_epsilon", self.adam_epsilon, "above 0")
        require(self.max_grad_norm > 0, "max_grad_norm", self.max_grad_norm, "above 0")
        require(self.warmup_iterations >= 0, "warmup_iterations", self.warmup_iterations, "at least 0")
        require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "in [0, 1]")


@dataclass(frozen=True)
class RLHFConfig:
    """Every choice of an RLHF run. Defaults are for the shipped model on Pebble Town.

    Attributes:
        iterations: sample-and-learn rounds, >= 1.
        prompts_per_iteration: replies sampled in each, >= 1; all prompts are used before any is used twice.
        max_new_tokens: limit of a reply, tokens.
        temperature: > 0; divides the logits in sampling and in all scoring.
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
        check_invariants: live checks; at most 2 % of all forward tokens.
        evaluate_every: iterations between calls of `evaluate`.
        seed: of prompts, sampling and minibatches.
    """

    iterations: int = 60
    prompts_per_iteration: int = 96
    max_new_tokens: int = 64
    temperature: float = 0.7
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
        counts = ("iterations", "prompts_per_iteration", "max_new_tokens", "epochs", "minibatch_rows")
        for name in (*counts, "micro_batch", "evaluate_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        rates = ("temperature", "learning_rate", "value_learning_rate", "clip_epsilon", "value_clip_epsilon")
        for name in rates:
            require(0 < getattr(self, name) < math.inf, name, getattr(self, name), "a number above 0")
        for name in ("value_coef", "entropy_coef", "kl_coef", "lm_coef", "missing_end_penalty"):
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "a number from 0 on")
        for name in ("kl_target", "kl_stop"):
            got = getattr(self, name)
            require(got is None or got > 0, name, got, "above 0, or None")
        require(0 <= self.gae_lambda <= 1, "gae_lambda", self.gae_lambda, "in [0, 1]")
        require(self.value in VALUES, "value", self.value, f"one of {VALUES}")
        rows, most = self.minibatch_rows, self.prompts_per_iteration
        require(rows <= most, "minibatch_rows", rows, f"at most prompts_per_iteration, {most}")

    @property
    def sampling(self) -> dict[str, Any]:
        """How replies are drawn, the same wherever a model is asked: in feedback, in PPO, in an evaluation."""
        return {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}


@dataclass(frozen=True)
class Experience:
    """What one iteration learns from. Every tensor is [B, T] and data: none requires grad.

    Attributes:
        batch: the tokens of prompts and replies.
        old_log_probs: nats, of the law that sampled.
        old_values: reward units, value of the state before each token when the replies were sampled.
        advantages: whitened over the mask.
        returns: targets of the value, advantages before whitening plus old_values.
    """

    batch: TokenBatch
    old_log_probs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor

    def select(self, rows: Tensor) -> "Experience":
        """The given rows, trimmed to the longest prompt and reply among them."""
        batch = self.batch.select(rows)
        rest = (getattr(self, f.name)[rows, : batch.mask.shape[1]] for f in fields(self)[1:])
        return Experience(batch, *rest)


@dataclass(frozen=True)
class RLHFResult:
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
        check_cost: forward tokens of the live checks over all forward tokens.
    """

    model: LanguageModel
    value: RewardModel | ValueHead
    history: History
    interrupted: bool
    timings: dict[str, list[float]]
    check_cost: float


def train_rlhf(
    policy: LanguageModel,
    prompts: Sequence[Conversation],
    reward: RewardModel | Callable[[Rollout], Tensor],
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
        prompts: conversations that end with a user message, or strings.
        reward: a RewardModel with the policy's tokenizer, or a function of the Rollout that returns scores [B];
            called once an iteration.
        config: RLHFConfig() if None.
        reference: the other end of the leash; the policy as given if None.
        value_init: start of the value model; if None a copy of `reward` where that is a RewardModel, else the
            policy's own weights under a new head. Not used with value="policy_head".
        lm_texts: texts for the language-model loss; needed when lm_coef > 0.
        evaluate: called with the model before the first iteration, after every `evaluate_every`-th and after the
            last; its numbers go into the history.
        checkpoint: file that holds the run's state. If it exists, the run goes on from it bit-identically.
        checkpoint_every: iterations between savings; saved also at an interrupt, at the end, and when something is
            not finite.

    Returns:
        RLHFResult.

    Raises:
        ValueError: an argument that cannot be; CheckpointError: a checkpoint of another run.
        InvariantViolation: a live check failed; the message says what it means.
        FloatingPointError: something is NaN or infinite; the state before it is in `checkpoint`.

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
    prompts, texts = _check_inputs(policy, prompts, reward, config, lm_texts)
    run = Run.start(policy, reward, config, reference, value_init)
    run.restore(checkpoint, _fingerprint(run.reference, prompts, texts))
    state = run.state
    if evaluate is not None and not len(state.history):
        state.history.add(step=0, **evaluate(run.policy))
    span = {"initial": state.step, "total": config.iterations}
    bar = trange(state.step, config.iterations, desc="RLHF", leave=False, **span)
    with graceful_interrupt() as interrupt, run.saved_on_failure(checkpoint):
        for step in bar:
            generator = generator_for(config.seed, "rlhf", step)
            rate = set_learning_rate(state.optimiser, config, step)
            with run.timed("sample"):
                rollout = sample_responses(
                    run.policy,
                    prompts_of(prompts, config, step),
                    max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature,
                    generator=generator,
                    value_head=run.value if isinstance(run.value, ValueHead) else None,
                )
            with run.timed("score"):
                experience, numbers = score_rollout(run, rollout, reward, config)
            with run.timed("optimise"):
                numbers |= optimise(run, experience, texts, config, generator)
            numbers |= {"kl_coef": run.kl_coef, "learning_rate": rate}
            if config.kl_target is not None:
                state.extra["kl_coef"] = adapted_kl_coef(run.kl_coef, numbers["kl"], config.kl_target)
            done, last = step + 1, step + 1 == config.iterations
            due = evaluate is not None and (last or done % config.evaluate_every == 0)
            state.history.add(done, numbers, evaluate(run.policy) if due else {})
            state.step, stop = done, interrupt.requested
            if last or stop or done % checkpoint_every == 0:
                state.save(checkpoint)
            if stop:
                break
    return run.result(interrupted=state.step < config.iterations)


@dataclass
class Run:
    """The models of a run, and what a checkpoint must keep of them.

    Attributes:
        policy, value: in training; the value is a model of its own or a head on the policy.
        reference: the other end of the leash, not trained.
        same_reference: it is the policy as it was at step 0.
        passes: forward passes over each reply in one iteration, of all models together.
        state: weights, optimiser, step, history; in `extra` the KL coefficient and the counts of forward tokens.
        timings: seconds of each part of each iteration.
    """

    policy: LanguageModel
    value: RewardModel | ValueHead
    reference: LanguageModel
    same_reference: bool
    passes: int
    state: RunState
    timings: dict = field(default_factory=lambda: {"sample": [], "score": [], "optimise": []})

    @classmethod
    def start(cls, policy, reward, config: RLHFConfig, reference=None, value_init=None) -> "Run":
        """A copy of the policy, a value and an optimiser for both, before the first step."""
        trained, value = policy.copy(), _initial_value(policy, reward, value_init, config)
        network = value if isinstance(value, ValueHead) else value.model
        trained.model.eval().requires_grad_(True)
        network.requires_grad_(True)
        if config.check_invariants:
            invariants.check_reference_apart(trained.model, (reference or policy).model)
        groups = [
            {"params": list(trained.model.parameters()), "peak": config.learning_rate},
            {"params": list(network.parameters()), "peak": config.value_learning_rate},
        ]
        epsilon = config.optimiser.adam_epsilon
        optimiser = torch.optim.AdamW(groups, lr=1.0, eps=epsilon, weight_decay=0.0, fused=True)
        networks = torch.nn.ModuleDict({"policy": trained.model, "value": network})
        state = RunState("rlhf", config, networks, optimiser)
        state.extra = {"kl_coef": config.kl_coef, "forward_tokens": 0, "check_tokens": 0}
        passes = 2 + isinstance(reward, RewardModel) + (policy.precision != torch.float32)
        passes += config.epochs + (value is not network) * (1 + config.epochs)
        return cls(trained, value, reference or policy, reference is None, passes, state)

    @property
    def kl_coef(self) -> float:
        """Reward units per nat, now."""
        return self.state.extra["kl_coef"]

    def restore(self, checkpoint: str | Path | None, inputs: int) -> None:
        """Go on from the checkpoint if there is one; `inputs` is a digest of reference, prompts and texts."""
        self.state.extra["inputs"] = inputs
        self.state.restore(checkpoint)
        if self.state.extra["inputs"] != inputs:
            raise CheckpointError(
                f"{checkpoint} is of a run with another reference, other prompts or other lm_texts; give "
                "those it was made with, or another file"
            )

    def clipped_step(self, config: RLHFConfig) -> float:
        """One AdamW step with both gradients clipped, each apart; returns the norm of the policy's."""
        most, groups = config.optimiser.max_grad_norm, self.state.optimiser.param_groups
        norms = torch.stack([torch.nn.utils.clip_grad_norm_(group["params"], most) for group in groups])
        invariants.check_finite("the gradient norms of policy and value", norms, self.state.step + 1)
        self.state.optimiser.step()
        return float(norms[0])

    def check_rollout(self, rollout: Rollout, log_probs: Tensor, ref_log_probs: Tensor, config) -> None:
        """The live checks of a fresh rollout; what is scored again for them stays within its budget."""
        batch, policy, extra = rollout.batch, self.policy, self.state.extra
        tolerance = invariants.tolerance_for(policy.precision)
        limit = config.max_new_tokens
        lengths = invariants.reply_lengths(batch.response_ids, rollout.ended, policy.end_id, limit)
        invariants.check_mask(batch.mask, lengths)
        if self.state.step == 0 and self.same_reference:
            cause = partial(invariants.diagnose, policy, batch, log_probs, ref_log_probs, config.temperature)
            invariants.check_initial_kl(log_probs, ref_log_probs, batch.mask, tolerance, cause)
        lengths = batch.prompt_lengths + batch.response_lengths
        extra["forward_tokens"] += self.passes * int(lengths.sum())
        costs = lengths[:CHECK_ROWS].cumsum(0)
        rows = int((extra["check_tokens"] + costs <= CHECK_BUDGET * extra["forward_tokens"]).sum())
        if self.state.step % CHECK_EVERY == 0 and rows:
            extra["check_tokens"] += int(costs[rows - 1])
            few = batch.select(torch.arange(rows))
            invariants.check_padding(policy, few, rollout.log_probs[:rows], config.temperature, tolerance)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Note the seconds of a block."""
        start = time.perf_counter()
        yield
        self.timings[part].append(time.perf_counter() - start)

    @contextmanager
    def saved_on_failure(self, checkpoint: str | Path | None) -> Iterator[None]:
        """Save when something is not finite; the weights still are, because every gradient is checked."""
        try:
            yield
        except FloatingPointError as error:
            self.state.save(checkpoint)
            if checkpoint is not None:
                error.add_note(f"The last good state, after iteration {self.state.step}, is in {checkpoint}.")
            raise

    def result(self, interrupted: bool) -> RLHFResult:
        """What the caller gets."""
        cost = self.state.extra["check_tokens"] / max(1, self.state.extra["forward_tokens"])
        return RLHFResult(self.policy, self.value, self.state.history, interrupted, self.timings, cost)


def _initial_value(policy, reward, value_init, config):
    if config.value == "policy_head":
        return ValueHead(policy.model.config.hidden_size).to(policy.device)
    if value_init is not None or isinstance(reward, RewardModel):
        return (value_init or reward).copy()
    value = RewardModel.from_language_model(policy, generator_for(config.seed, "rlhf", "value"))
    torch.nn.init.zeros_(value.model.score.weight)  # values start at 0; a random head would only add noise
    return value


def score_rollout(run: Run, rollout: Rollout, reward, config: RLHFConfig) -> tuple[Experience, dict]:
    """Turn replies into experience: scores, KL, one reward per token, advantages; and the numbers to log."""
    batch, mask, step = rollout.batch, rollout.batch.mask, run.state.step
    old_log_probs, old_values = old_log_probs_and_values(run.policy, run.value, rollout, config)
    ref_log_probs = response_log_probs(run.reference, batch, config.temperature, config.micro_batch)
    raw_scores = _scores(reward, rollout)
    invariants.check_finite("reward scores", raw_scores, step + 1)
    invariants.check_finite("log-probs of the policy", old_log_probs, step + 1)
    if config.check_invariants:
        run.check_rollout(rollout, old_log_probs, ref_log_probs, config)
    scores = raw_scores - config.missing_end_penalty * ~rollout.ended
    kl_penalty = -run.kl_coef * kl_k1(old_log_probs, ref_log_probs) * mask
    rewards = token_rewards(scores, kl_penalty, mask)
    discounts = reply_discounts(mask)
    advantages = gae(rewards, old_values, discounts, mask, config.gae_lambda)
    returns = advantages + old_values[:, :-1]
    if config.check_invariants:
        tolerance = invariants.tolerance_for(torch.float32)
        invariants.check_score_counted_once(rewards, scores, kl_penalty, mask, tolerance, discounts)
    numbers = {
        "score": raw_scores.mean(),
        "reward": masked_sum(rewards, mask, dim=1).mean(),
        "kl": masked_sum(kl_k1(old_log_probs, ref_log_probs), mask, dim=1).mean(),
        "kl_k3": masked_sum(kl_k3(old_log_probs, ref_log_probs), mask, dim=1).mean(),
        "entropy": -masked_mean(old_log_probs, mask),
        "explained_variance": explained_variance(old_values[:, :-1], returns, mask),
        "length": batch.response_lengths.float().mean(),
        "ended": rollout.ended.float().mean(),
    }
    numbers = {name: float(number) for name, number in numbers.items()}
    if not math.isfinite(numbers["explained_variance"]):  # constant returns have no variance to explain
        numbers["explained_variance"] = None
    white = masked_whiten(advantages, mask)
    return Experience(batch, old_log_probs, old_values[:, :-1], white, returns), numbers


def token_rewards(scores: Tensor, kl_penalty: Tensor, mask: Tensor) -> Tensor:
    """Rewards [B, T]: the KL penalty of every token, and the score at the last real one.

        rewards[b, t] = kl_penalty[b, t] + scores[b] * [t is the last real token of b]

    Example:
        >>> token_rewards(torch.tensor([3.0]), torch.zeros(1, 3), torch.tensor([[True, True, False]]))
        tensor([[0., 3., 0.]])
    """
    last = torch.nn.functional.one_hot(mask.sum(1) - 1, mask.shape[1])
    return kl_penalty + scores[:, None] * last


def reply_discounts(mask: Tensor) -> Tensor:
    """Discounts [B, T]: 1 while the reply goes on, 0 at its last real token, whether or not it ended itself.

    Example:
        >>> reply_discounts(torch.tensor([[True, True, False]]))
        tensor([[1., 0., 0.]])
    """
    later = torch.zeros_like(mask)
    later[:, :-1] = mask[:, 1:]
    return later.float()


def adapted_kl_coef(kl_coef: float, kl: float, target: float) -> float:
    """The next KL coefficient: up by at most 2 % while the KL is above its target, down by at most 2 % below.

        kl_coef * (1 + 0.1 * clip(kl / target - 1, -0.2, 0.2))

    Example:
        >>> round(adapted_kl_coef(0.1, kl=12.0, target=6.0), 6)
        0.102

    Source: Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, section 2.2. Chapter 10.
    """
    return kl_coef * (1 + 0.1 * min(max(kl / target - 1, -0.2), 0.2))


def values_of(value: RewardModel | ValueHead, batch: TokenBatch, hidden: Tensor) -> Tensor:
    """Values [B, T + 1] in reward units: of the policy's hidden states, or by a model of its own."""
    if isinstance(value, ValueHead):
        return value(hidden)
    return (value.token_scores(batch) - value.score_mean) / value.score_std


def old_log_probs_and_values(policy, value, rollout: Rollout, config: RLHFConfig) -> tuple[Tensor, Tensor]:
    """Log-probs [B, T] and values [B, T + 1] of the policy that sampled.

    In float32 those from sampling are those of a training pass and are kept. In bf16 they are 0.03 nats off, so
    the replies are scored again. A value model of its own has not seen the replies yet: one pass in any case.
    """
    exact = policy.precision == torch.float32
    if exact and rollout.values is not None:
        return rollout.log_probs, rollout.values
    log_probs = rollout.log_probs.clone()
    values = log_probs.new_zeros(len(rollout), log_probs.shape[1] + 1)
    with torch.no_grad():
        for rows in length_groups(rollout.batch, config.micro_batch):
            batch = rollout.batch.select(rows)
            width = batch.mask.shape[1]
            if exact:
                values[rows, : width + 1] = values_of(value, batch, None)
                continue
            output = forward(policy, batch)
            tokens, mask = batch.response_ids, batch.mask
            log_probs[rows, :width] = token_log_probs(output.logits, tokens, mask, config.temperature)
            values[rows, : width + 1] = values_of(value, batch, output.hidden)
    return log_probs, values


def micro_batches(batch: TokenBatch, rows: Tensor, most: int) -> list[Tensor]:
    """The given rows in pieces of at most `most`, rows of similar length together."""
    return [rows[group.cpu()] for group in length_groups(batch.select(rows), most)]


def optimise(run: Run, experience: Experience, texts, config: RLHFConfig, generator) -> dict[str, float]:
    """A few epochs of minibatch steps on one iteration's experience; mean numbers over the steps."""
    steps = []
    for _ in range(config.epochs):
        shuffled = torch.randperm(len(experience.batch), generator=generator)
        for rows in shuffled.tensor_split(-(-len(shuffled) // config.minibatch_rows)):  # even, so none is tiny
            numbers = minibatch_gradient(run, experience, rows, config, first=not steps)
            if config.kl_stop is not None and numbers["approx_kl"] > config.kl_stop and steps:
                return mean_rows(steps)
            if config.lm_coef > 0:
                picked = torch.randint(len(texts), (len(rows),), generator=generator)
                numbers["lm_loss"] = language_model_gradient(run.policy, [texts[i] for i in picked], config)
            numbers["grad_norm"] = run.clipped_step(config)
            steps.append(numbers)
    return mean_rows(steps)


def minibatch_gradient(run: Run, experience: Experience, rows: Tensor, config: RLHFConfig, first: bool):
    """Set the gradients of policy and value to those of the PPO loss on these rows; the numbers to log.

    Every micro-batch is divided by the token count of the whole minibatch, so their size changes nothing.
    """
    run.state.optimiser.zero_grad(set_to_none=True)
    count = experience.batch.mask[rows].sum()
    new = torch.zeros_like(experience.old_log_probs)
    sums = torch.zeros(2, device=new.device)
    for part_rows in micro_batches(experience.batch, rows, config.micro_batch):
        part = experience.select(part_rows)
        policy_loss, value_loss, log_probs = ppo_losses(run.policy, run.value, part, count, config)
        (policy_loss + config.value_coef * value_loss).backward()
        new[part_rows, : log_probs.shape[1]] = log_probs.detach()
        sums += torch.stack([policy_loss.detach(), value_loss.detach()])
    invariants.check_finite("the policy and value losses", sums, run.state.step + 1)
    new, old, mask = new[rows], experience.old_log_probs[rows], experience.batch.mask[rows]
    if first and config.check_invariants:
        tolerance = invariants.tolerance_for(run.policy.precision)
        replies = experience.batch.select(rows)
        cause = partial(invariants.diagnose, run.policy, replies, old, new, config.temperature)
        invariants.check_first_minibatch(new, old, mask, config.clip_epsilon, tolerance, cause)
    numbers = {"policy_loss": sums[0], "value_loss": sums[1]}
    numbers["approx_kl"] = masked_mean(kl_k3(old, new), mask)  # the tokens are samples of the old policy
    numbers["clip_fraction"] = clip_fraction(new, old, config.clip_epsilon, mask)
    return {name: float(number) for name, number in numbers.items()}


def ppo_losses(policy: LanguageModel, value, part: Experience, count: Tensor, config: RLHFConfig):
    """Policy loss, value loss and new log-probs [B, T] of a micro-batch: sums over tokens over count.

    policy loss = -1/count sum [min(ratio A, clip(ratio, 1 - e, 1 + e) A) + entropy_coef * entropy]
    value loss  =  1/count sum 1/2 max[(V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2]
    """
    batch, mask = part.batch, part.batch.mask
    output = forward(policy, batch)
    log_probs = token_log_probs(output.logits, batch.response_ids, mask, config.temperature)
    values = values_of(value, batch, output.hidden)[:, :-1]
    gain = clipped_surrogate_objective(log_probs, part.old_log_probs, part.advantages, config.clip_epsilon)
    if config.entropy_coef > 0:
        gain = gain + config.entropy_coef * entropy(output.logits / config.temperature)
    errors = clipped_value_loss(values, part.old_values, part.returns, config.value_clip_epsilon)
    return -masked_mean(gain, mask, count=count), masked_mean(errors, mask, count=count), log_probs


def language_model_gradient(lm: LanguageModel, token_rows: list[list[int]], config: RLHFConfig) -> float:
    """Add lm_coef times the gradient of the mean -log-prob per token; returns that mean, in nats."""
    batch = make_batch([row[:1] for row in token_rows], [row[1:] for row in token_rows], lm.pad_id, lm.device)
    count, total = batch.mask.sum(), 0.0
    for rows in length_groups(batch, config.micro_batch):
        part = batch.select(rows)
        log_probs = token_log_probs(forward(lm, part).logits, part.response_ids, part.mask)
        loss = -masked_mean(log_probs, part.mask, count=count)
        (config.lm_coef * loss).backward()
        total += float(loss.detach())
    return total


def set_learning_rate(optimiser: torch.optim.Optimizer, config: RLHFConfig, step: int) -> float:
    """Linear warm-up, times a linear fall to final_fraction at the last iteration; returns the policy's rate."""
    schedule = config.optimiser
    warmup = min(1.0, (step + 1) / (schedule.warmup_iterations + 1))
    done = step / max(1, config.iterations - 1)
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * warmup * linear(1.0, schedule.final_fraction, done)
    return optimiser.param_groups[0]["lr"]


def prompts_of(prompts: Sequence, config: RLHFConfig, step: int) -> list:
    """The prompts of one iteration; all are used, in an order that changes every lap, before one comes again."""
    count, picked, order = config.prompts_per_iteration, [], []
    for position in range(step * count, (step + 1) * count):
        lap, place = divmod(position, len(prompts))
        if not order or place == 0:
            shuffle = generator_for(config.seed, "prompts", lap)
            order = torch.randperm(len(prompts), generator=shuffle).tolist()
        picked.append(prompts[order[place]])
    return picked


def _scores(reward, rollout: Rollout) -> Tensor:
    """Scores [B] of the reward model or of the caller's function, checked."""
    if isinstance(reward, RewardModel):
        return reward.score_batch(rollout.batch)
    scores = reward(rollout)
    shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    require(shape == [len(rollout)], "what reward returned", shape, f"a tensor of {len(rollout)} scores")
    return scores.detach().to(rollout.log_probs.device, torch.float32)


def _check_inputs(policy, prompts, reward, config, lm_texts):
    """The prompts as conversations and the texts as token rows, or a ValueError that names what is wrong."""
    some = not isinstance(prompts, str) and len(prompts) > 0
    require(some, "prompts", prompts, "a non-empty list of conversations")
    is_model = isinstance(reward, RewardModel)
    require(is_model or callable(reward), "reward", reward, "a RewardModel or a function of a Rollout")
    if is_model and reward.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ValueError(
            "the reward model has another tokenizer than the policy; give a function that scores texts: "
            "lambda rollout: reward_model.score(rollout.conversations, rollout.texts)"
        )
    require(config.lm_coef == 0 or len(lm_texts) > 0, "lm_texts", lm_texts, "some texts, or lm_coef = 0")
    rows = [policy.tokenizer(text)["input_ids"][: policy.max_length] for text in lm_texts]
    for i, row in enumerate(rows):
        require(len(row) > 1, f"lm_texts[{i}]", lm_texts[i], "a text of at least 2 tokens")
    return tuple(as_conversation(prompt) for prompt in prompts), rows


def _fingerprint(lm, prompts, texts):
    """A number that changes with the reference's weights, the prompts or the texts."""
    digest = zlib.crc32(repr((prompts, texts)).encode())
    for parameter in lm.model.parameters():
        digest = zlib.crc32(parameter.detach().float().cpu().contiguous().numpy().tobytes(), digest)
    return digest
