"""A new on-policy method is its config, its loop and its result, a hundred lines: RLOO, on what recipes stand on.

Reinforce with leave-one-out baselines (Kool et al. 2019; Ahmadian et al. 2024): several replies to a prompt, each
judged against the mean of the others. A whole reply is one action, so there is no critic and no reward for tokens.
"""

import inspect
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from toy_models import PROMPTS, WORDS, word_model

from rlhf_lab.experience.live import LiveChecks
from rlhf_lab.experience.rewards import Reward, reply_numbers, scores_of
from rlhf_lab.experience.rollouts import prompts_of, sample_responses
from rlhf_lab.experience.updates import Experience, accumulate_gradient, clipped_losses, update_numbers
from rlhf_lab.maths.kl import kl_k1
from rlhf_lab.maths.returns import leave_one_out_advantages
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import forward, response_log_probs, token_log_probs
from rlhf_lab.records import PromptLike, as_conversation
from rlhf_lab.training.configs import require
from rlhf_lab.training.history import Result, mean_rows
from rlhf_lab.training.optimisers import clipped_step, linear, scale_rates
from rlhf_lab.training.randomness import generator_for, minibatches
from rlhf_lab.training.steps import Checkpoint, Steps

torch.set_num_threads(1)


# ---- the recipe -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class RLOOConfig:
    """Every choice of a run of RLOO.

    Attributes:
        iterations: sample-and-learn rounds, >= 1.
        prompts_per_iteration: >= 1.
        replies: to each prompt, >= 2.
        max_new_tokens, temperature: of the sampling.
        epochs: passes over each rollout, >= 1.
        minibatch_rows, micro_batch: most replies in a step, and in a pass.
        learning_rate: at its peak; falls linearly to a tenth.
        clip_epsilon: half width of the ratio's band; matters from the second step of a rollout on.
        kl_coef: reward units per nat of a reply's KL.
        evaluate_every: iterations.
        seed: of prompts, sampling and minibatches.
    """

    iterations: int = 60
    prompts_per_iteration: int = 24
    replies: int = 4
    max_new_tokens: int = 64
    temperature: float = 0.7
    epochs: int = 1
    minibatch_rows: int = 48
    micro_batch: int = 16
    learning_rate: float = 3e-4
    clip_epsilon: float = 0.2
    kl_coef: float = 0.05
    evaluate_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "prompts_per_iteration", "epochs", "minibatch_rows", "micro_batch"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        require(self.replies >= 2, "replies", self.replies, "at least 2: one is judged against the others")


class RLOOResult(Result[LanguageModel]):
    """A trained policy and how it came about."""


def train_rloo(
    policy: LanguageModel,
    prompts: Sequence[PromptLike],
    reward: Reward,
    config: RLOOConfig | None = None,
    *,
    evaluate: Callable[[LanguageModel], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
) -> RLOOResult:
    """Train a copy of a policy on the scores of its own replies, each against the other replies to its prompt.

    A_k = r_k - mean of r_j over j != k,    r = score - kl_coef * KL estimate of the whole reply
    """
    config = config or RLOOConfig()
    conversations = tuple(map(as_conversation, prompts))
    start, policy = policy, policy.copy()
    policy.model.requires_grad_(True)
    rate, parameters = config.learning_rate, policy.model.parameters()
    optimiser = torch.optim.AdamW(parameters, lr=rate, eps=1e-5, weight_decay=0.0, fused=True)
    losses = partial(clipped_losses, policy, None, temperature=config.temperature, clip_epsilon=config.clip_epsilon)
    state = {}
    law = (config.temperature, config.max_new_tokens)
    checks = LiveChecks(policy, start, *law, state, clip_epsilon=config.clip_epsilon)
    inputs = {"policy": start.model, "prompts": conversations}
    file = Checkpoint(checkpoint, 10, "rloo", config, inputs, policy.model, optimiser, state, several_updates=True)
    look = None if evaluate is None else partial(evaluate, policy)
    with Steps("RLOO", config.iterations, look, config.evaluate_every, file) as steps:
        for step in steps:
            generator = generator_for(config.seed, "rloo", step)
            scale_rates(optimiser, linear(1.0, 0.1, step / max(1, config.iterations - 1)))
            asked = prompts_of(conversations, config.prompts_per_iteration, step, config.seed)
            rollout = sample_responses(
                policy, [prompt for prompt in asked for _ in range(config.replies)], generator=generator,
                temperature=config.temperature, max_new_tokens=config.max_new_tokens, keep_logits=checks.law_rows,
            )  # fmt: skip
            log_probs, mask = rollout.log_probs, rollout.batch.mask
            ref_log_probs = response_log_probs(start, rollout.batch, config.temperature, config.micro_batch)
            scores = scores_of(reward, rollout)
            checks.rollout(step, rollout, scores, log_probs, ref_log_probs, reward)
            rewards = scores - config.kl_coef * kl_k1(log_probs, ref_log_probs).sum(1)  # [B], one a reply
            advantages = leave_one_out_advantages(rewards.view(-1, config.replies)).view(-1, 1)
            experience = Experience(rollout.batch, log_probs, advantages.expand(mask.shape))
            updates: list[dict[str, float]] = []
            for rows in minibatches(len(rollout), config.minibatch_rows, config.epochs, generator):
                part = experience.select(rows)
                optimiser.zero_grad()
                watched = checks.look(step, len(updates), part, rows)
                new, numbers = accumulate_gradient(losses, part, config.micro_batch, look=watched)
                numbers |= update_numbers(new, part, config.clip_epsilon)
                (norm,) = clipped_step(optimiser, 1.0, step + 1, policy.model)
                updates.append(numbers | {"grad_norm": norm})
            steps.log(
                reply_numbers(rollout, scores, rewards[:, None] * mask / mask.sum(1, True), log_probs, ref_log_probs)
            )
            steps.log(mean_rows(updates))
    return RLOOResult(policy, steps.history, steps.interrupted)


# ---- what it must do ------------------------------------------------------------------------------------------------
FAST = RLOOConfig(iterations=16, prompts_per_iteration=12, max_new_tokens=6, learning_rate=1e-2, kl_coef=0.0)


def share_of_c(rollout):
    batch = rollout.batch
    return ((batch.response_ids == WORDS.index("c")) & batch.mask).float().sum(1) / batch.response_lengths


def test_it_is_about_a_hundred_lines():
    lines = [line for part in (RLOOConfig, RLOOResult, train_rloo) for line in inspect.getsource(part).splitlines()]
    assert len([line for line in lines if line.strip()]) <= 100


def test_it_learns_and_the_leash_holds_it():
    free = train_rloo(word_model(), PROMPTS, share_of_c, FAST)
    held = train_rloo(word_model(), PROMPTS, share_of_c, replace(FAST, kl_coef=1.0))
    assert free.history.column("score")[1][0] < 0.2
    assert free.history.column("score")[1][-3:].mean() > 0.7
    assert held.history.last("kl") < 0.3 * free.history.last("kl")


def test_its_first_gradient_is_that_of_the_estimator(monkeypatch):
    """Against mean over tokens of A grad log pi, A by the definition, in a pass of its own."""
    seen, accumulate = [], accumulate_gradient

    def watch(losses, part, micro_batch, **options):
        result = accumulate(losses, part, micro_batch, **options)
        seen.append((part, losses.args[0]))
        return result

    monkeypatch.setitem(globals(), "accumulate_gradient", watch)
    monkeypatch.setitem(globals(), "clipped_step", lambda *given: (0.0,))
    config = replace(FAST, iterations=1, prompts_per_iteration=4, minibatch_rows=16)
    train_rloo(word_model(), PROMPTS, share_of_c, config)
    (part, policy), lm = seen[0], word_model()
    batch, scores = part.batch, share_of_c(type("Rollout", (), {"batch": part.batch}))
    prompts = [tuple(ids[real].tolist()) for ids, real in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
    for row, prompt in enumerate(prompts):
        others = [float(scores[i]) for i, other in enumerate(prompts) if other == prompt and i != row]
        expected = float(scores[row]) - sum(others) / len(others)
        assert torch.allclose(part.advantages[row], torch.tensor(expected), atol=1e-6)
    lm.model.requires_grad_(True)
    log_probs = token_log_probs(forward(lm, batch).logits, batch.response_ids, batch.mask, config.temperature)
    (-(log_probs * part.advantages).sum() / batch.mask.sum()).backward()
    for mine, other in zip(policy.model.parameters(), lm.model.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad, atol=1e-6)


def test_it_resumes_and_evaluates_like_every_recipe(tmp_path):
    def run(checkpoint, stop_after=None):
        calls = []

        def evaluate(model):
            calls.append(model)
            if len(calls) - 1 == stop_after:
                signal.raise_signal(signal.SIGINT)
            return {"norm": float(sum(p.detach().norm() for p in model.model.parameters()))}

        config = replace(FAST, iterations=4, evaluate_every=1)
        return train_rloo(word_model(), PROMPTS, share_of_c, config, evaluate=evaluate, checkpoint=checkpoint)

    whole = run(None)
    assert run(tmp_path / "run.pt", stop_after=2).interrupted
    assert run(tmp_path / "run.pt").history == whole.history
