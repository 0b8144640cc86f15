"""On-policy distillation: the student replies, and at every token the teacher says what it would have said.

The reverse KL of whole replies has a gradient of two parts: the KL at each token as if what came before were given, and
what a token does to the KL of later ones. `credit="token"` takes the first part, exactly, over the whole vocabulary;
`credit="rest"` estimates both from the sampled tokens alone. Both vanish where the student is the teacher.
Left out: forward KL on the teacher's own replies, which is `train_sft` on them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.experience.inputs import Sampling, checked_prompts
from rlhf_lab.experience.live import LiveChecks, Teach
from rlhf_lab.experience.rewards import reply_discounts
from rlhf_lab.experience.rollouts import TEMPERATURE, prompts_of, sample_responses
from rlhf_lab.maths.kl import categorical_kl, kl_k1
from rlhf_lab.maths.objectives import reinforce_objective
from rlhf_lab.maths.returns import discounted_returns
from rlhf_lab.models.language_model import LanguageModel, check_same_tokens
from rlhf_lab.models.scoring import forward, token_log_probs
from rlhf_lab.models.tokens import TokenBatch, length_groups
from rlhf_lab.records import PromptLike
from rlhf_lab.training.configs import above_zero, at_least_one, flags, require, whole
from rlhf_lab.training.history import Result, mean_rows
from rlhf_lab.training.optimisers import OptimiserConfig, clipped_step, scale_rates
from rlhf_lab.training.randomness import generator_for, minibatches
from rlhf_lab.training.steps import Checkpoint, Steps

CREDITS = ("token", "rest")


@dataclass(frozen=True)
class DistilConfig:
    """Every choice of a run; defaults for the shipped model.

    Attributes:
        iterations: sample-and-learn rounds, >= 1.
        prompts_per_iteration: replies sampled in each, >= 1.
        max_new_tokens, temperature: of the sampling and of both laws.
        minibatch_rows, micro_batch: most replies in a step, and in a pass. Each reply is learned from once.
        learning_rate: at its peak.
        optimiser: AdamW's other settings and the schedule.
        credit: "token" or "rest", see the module.
        check_invariants: live checks.
        evaluate_every: iterations between calls of `evaluate`.
        seed: of prompts, sampling and minibatches.
    """

    iterations: int = 60
    prompts_per_iteration: int = 96
    max_new_tokens: int = 64
    temperature: float = TEMPERATURE
    minibatch_rows: int = 48
    micro_batch: int = 16
    learning_rate: float = 3e-4
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    credit: str = "token"
    check_invariants: bool = True
    evaluate_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "iterations", "prompts_per_iteration", "max_new_tokens")
        at_least_one(self, "minibatch_rows", "micro_batch", "evaluate_every")
        above_zero(self, "temperature", "learning_rate")
        flags(self, "check_invariants")
        whole(self, "seed")
        require(self.credit in CREDITS, "credit", self.credit, f"one of {CREDITS}")
        rows, most = self.minibatch_rows, self.prompts_per_iteration
        require(rows <= most, "minibatch_rows", rows, f"at most prompts_per_iteration, {most}")

    @property
    def sampling(self) -> Sampling:
        """How replies are drawn."""
        return {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}


@dataclass(frozen=True, eq=False, repr=False)
class DistilResult(Result[LanguageModel]):
    """The student and how it came about.

    Attributes:
        history: kl, mean over the replies of the sum of exact KL(student || teacher) at their tokens, an unbiased
            estimate of the sequences' KL in nats; kl_token, its mean a token; length; ended; grad_norm; learning_rate.
    """


def train_distilled(
    student: LanguageModel,
    teacher: LanguageModel,
    prompts: Sequence[PromptLike],
    config: DistilConfig | None = None,
    *,
    evaluate: Callable[[LanguageModel], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 10,
) -> DistilResult:
    """Train a copy of the student towards the teacher on replies that the student samples.

        minimise  KL(student || teacher) = E sum_t KL(student(. | s_t) || teacher(. | s_t)),    E over its own replies

    Args:
        student: where to start; it is not changed.
        teacher: reads the same tokens.
        prompts: a non-empty list of conversations.
        config: see DistilConfig.
        evaluate: called with the student at step 0, every `evaluate_every` iterations and at the end.
        checkpoint, checkpoint_every: as for `train_rlhf`.

    Returns:
        DistilResult. After an interrupt it holds what was done.

    Raises:
        ValueError: an argument that cannot be, or other tokens.
        InvariantViolation, CheckpointError, FloatingPointError: as `train_rlhf`.

    Source: Agarwal et al. 2024, On-policy distillation of language models; Gu et al. 2024, MiniLLM. Chapter 15.
    """
    config = config or DistilConfig()
    conversations, rows_of = checked_prompts(student, prompts, config.max_new_tokens)
    check_same_tokens(student.tokenizer, teacher.tokenizer, "the teacher")
    inputs = {"student": student.model, "teacher": teacher.model, "precision": str(student.precision)}
    inputs |= {"prompts": rows_of}
    student = student.copy()
    student.model.requires_grad_(True)
    optimiser = config.optimiser.adamw([{"params": list(student.model.parameters()), "lr": config.learning_rate}])
    state: dict[str, Any] = {}
    law = (config.temperature, config.max_new_tokens)
    checks = LiveChecks(student, teacher, *law, state, on=config.check_invariants)
    file = Checkpoint(
        checkpoint, checkpoint_every, "distil", config, inputs, student.model, optimiser, state, several_updates=True
    )
    with Steps(
        "distillation", config.iterations, evaluate and partial(evaluate, student), config.evaluate_every, file
    ) as steps:
        for step in steps:
            generator = generator_for(config.seed, "distil", step)
            rate = scale_rates(optimiser, config.optimiser.factor(step, config.iterations))
            asked = prompts_of(conversations, config.prompts_per_iteration, step, config.seed)
            rollout = sample_responses(
                student, asked, generator=generator, keep_logits=checks.law_rows, **config.sampling
            )
            checks.replies(step, rollout)
            updates: list[dict[str, float]] = []
            for rows in minibatches(len(rollout), config.minibatch_rows, 1, generator):
                optimiser.zero_grad()
                seen = checks.distilled(step, not updates, rollout.log_probs[rows], config.credit)
                numbers = distillation_gradient(student, teacher, rollout.batch.select(rows), config, seen)
                (norm,) = clipped_step(optimiser, config.optimiser.max_grad_norm, step + 1, student.model)
                updates.append(numbers | {"grad_norm": norm})
            ended, length = rollout.ended.float().mean(), rollout.batch.response_lengths.float().mean()
            steps.log(mean_rows(updates), length=float(length), ended=float(ended), learning_rate=rate)
    return DistilResult(student, steps.history, steps.interrupted)


def distillation_gradient(
    student: LanguageModel, teacher: LanguageModel, batch: TokenBatch, config: DistilConfig, look: Teach | None = None
) -> dict[str, float]:
    """Add the gradient of the mean over the replies of the sum of what each of their tokens costs.

    token    sum_t KL(student(. | s_t) || teacher(. | s_t)),    s_t as given
    rest     sum_t G_t log student(a_t | s_t),    G_t = sum from t on of log student - log teacher, data

    Args:
        look: sees the loss of the first micro-batch before its gradient is taken, to check it.
    """
    total, tokens = 0.0, int(batch.mask.sum())
    for place, rows in enumerate(length_groups(batch, config.micro_batch)):
        part = batch.select(rows)
        logits = forward(student, part).logits / config.temperature
        with torch.no_grad():
            wanted = forward(teacher, part).logits / config.temperature
        seen = logits.detach() if config.credit == "rest" else logits  # there the exact KL is reported, not minimised
        kl = categorical_kl(seen, wanted) * part.mask
        total += float(kl.detach().sum())
        if config.credit == "rest":
            kl = cost_to_go(logits, wanted, part) * part.mask
        loss = kl.sum() / len(batch)
        if look is not None and place == 0:
            look(rows, part, logits, wanted, loss)
        loss.backward()
    return {"kl": total / len(batch), "kl_token": total / tokens}


def cost_to_go(logits: Tensor, wanted: Tensor, part: TokenBatch) -> Tensor:
    """[B, T] whose gradient is that of the policy-gradient estimator of KL(student || teacher), lower is better."""
    log_probs = token_log_probs(logits, part.response_ids, part.mask)
    ratio = kl_k1(log_probs.detach(), token_log_probs(wanted, part.response_ids, part.mask))
    return reinforce_objective(log_probs, discounted_returns(ratio, reply_discounts(part.mask), part.mask))
