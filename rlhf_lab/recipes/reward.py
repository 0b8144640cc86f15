"""A reward model from preferences: Bradley-Terry or Plackett-Luce over the replies of one prompt.

All replies of a prompt go through the model once, in one batch, however many pairs they form. Left out: ties inside
a tier (they form no pair), margins, several labellers with weights of their own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import trange

from rlhf_lab.checkpoints import (
    History,
    RunState,
    clipped_step,
    cosine_rate,
    generator_for,
    graceful_interrupt,
    make_optimiser,
    require,
)  # fmt: skip
from rlhf_lab.feedback.records import Comparison, Ranking
from rlhf_lab.language_model import LanguageModel, TokenBatch, encode_prompts, encode_responses, make_batch
from rlhf_lab.preferences import bradley_terry_loss, plackett_luce_loss
from rlhf_lab.reward_model import RewardModel


@dataclass(frozen=True)
class RewardConfig:
    """Every choice of a reward-model run; defaults for the shipped model.

    Attributes:
        epochs: passes over the feedback, at least 1 (Stiennon 2020 and Ouyang 2022 take 1).
        rankings_per_step: rankings (or comparisons) in a step, at least 1.
        micro_batch: most rankings in one pass; changes memory, not the result.
        learning_rate: peak, above 0; falls to 0 along a cosine.
        weight_decay: on matrices, at least 0.
        warmup: steps of linear warm-up.
        max_grad_norm: above 0.
        loss: "bradley_terry" over all pairs, or "plackett_luce" of the whole order (rankings without ties).
        max_new_tokens: longer replies are cut.
        evaluate_every, checkpoint_every: in steps.
        seed: of the head and the order.
    """

    epochs: int = 3
    rankings_per_step: int = 32
    micro_batch: int = 16
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    warmup: int = 10
    max_grad_norm: float = 1.0
    loss: str = "bradley_terry"
    max_new_tokens: int = 64
    evaluate_every: int = 20
    checkpoint_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        counts = "epochs rankings_per_step micro_batch max_new_tokens evaluate_every checkpoint_every"
        for name in counts.split():
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            require(0 < getattr(self, name) < float("inf"), name, getattr(self, name), "a number above 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        require(
            self.loss in ("bradley_terry", "plackett_luce"), "loss", self.loss, "'bradley_terry' or 'plackett_luce'"
        )


@dataclass
class RewardResult:
    """The reward model, its history, how many rankings gave no pair, and whether the run was stopped early.

    History: loss in nats (per pair, or per ranking for Plackett-Luce); accuracy on the held-out pairs.
    """

    model: RewardModel
    history: History
    unused: int
    interrupted: bool


@dataclass(frozen=True)
class Choices:
    """One prompt's replies as tokens and which is better than which."""

    prompt: list[int]
    replies: list[list[int]]
    pairs: list[tuple[int, int]]


def train_reward_model(
    lm: LanguageModel,
    feedback: Sequence[Ranking | Comparison],
    config: RewardConfig | None = None,
    *,
    held_out: Sequence[Ranking | Comparison] = (),
    evaluate: Callable[[RewardModel], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
) -> RewardResult:
    """Train a reward model that starts from `lm`'s backbone.

        loss = mean over rankings of the mean over their pairs of -log sigmoid(score(better) - score(worse))

    Afterwards the scores are standardised on the training replies, because only differences are learned.

    Args:
        lm: usually the SFT model; it is not changed.
        feedback: rankings or comparisons; a skipped or all-bad ranking, or one that is one tie, forms no pair and is
            counted in `unused`.
        config: see RewardConfig.
        held_out: feedback on other prompts, for the accuracy in the history.
        evaluate: called with the reward model every `evaluate_every` steps.
        checkpoint: file to save to and to resume from.

    Returns:
        RewardResult. After an interrupt it holds what was done.

    Raises:
        ValueError: no ranking with a pair, or a tie with the Plackett-Luce loss.
        CheckpointError, FloatingPointError: as in `fine_tune`.

    Source: Stiennon et al. 2020, Learning to summarize from human feedback, section 3.4. Chapter 09.
    """
    config = config or RewardConfig()
    choices, tests = encode_feedback(lm, feedback, config), encode_feedback(lm, held_out, config)
    require(len(choices) > 0, "feedback", f"{len(feedback)} records without a pair", "at least one preference")
    rm = RewardModel.from_language_model(lm, generator_for(config.seed, "reward head"))
    rm.model.requires_grad_(True)
    state = RunState("reward", config, rm.model, make_optimiser(rm.model, config.learning_rate, config.weight_decay))
    state.restore(checkpoint)
    steps = config.epochs * -(-len(choices) // config.rankings_per_step)
    with graceful_interrupt() as interrupt:
        for step in trange(state.step, steps, desc="reward model", initial=state.step, total=steps, leave=False):
            loss = preference_gradient(rm, [choices[i] for i in step_rows(len(choices), config, step)], config)
            rate = config.learning_rate * cosine_rate(step, steps, config.warmup)
            try:
                norm = clipped_step(rm.model, state.optimiser, rate, config.max_grad_norm, step)
            except FloatingPointError:
                state.save(checkpoint)
                raise
            state.step = step + 1
            last = state.step == steps or interrupt.requested
            numbers = {}
            if last or state.step % config.evaluate_every == 0:
                numbers = ({"accuracy": pair_accuracy(rm, tests)} if tests else {}) | (evaluate(rm) if evaluate else {})
            state.history.add(state.step, loss=loss, grad_norm=norm, learning_rate=rate, **numbers)
            if last or state.step % config.checkpoint_every == 0:
                state.save(checkpoint)
            if interrupt.requested:
                break
    rm.normalise(torch.cat(_scores(rm, choices)))
    return RewardResult(rm, state.history, len(feedback) - len(choices), state.step < steps)


def encode_feedback(lm: LanguageModel, feedback: Sequence[Ranking | Comparison], config: RewardConfig) -> list[Choices]:
    """Tokens and pairs of the records that form a pair; each reply is encoded once."""
    kept = [(record.prompt, *_replies_and_pairs(record, config)) for record in feedback]
    kept = [(prompt, replies, pairs) for prompt, replies, pairs in kept if pairs]
    prompts = encode_prompts(lm, [prompt for prompt, _, _ in kept], config.max_new_tokens)
    return [
        Choices(prompt, encode_responses(lm, replies, config.max_new_tokens), pairs)
        for prompt, (_, replies, pairs) in zip(prompts, kept, strict=True)
    ]


def _replies_and_pairs(
    record: Ranking | Comparison, config: RewardConfig
) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Replies best first and their pairs, as indices into them."""
    if isinstance(record, Comparison):
        return (record.chosen, record.rejected), [(0, 1)]
    if config.loss == "plackett_luce" and any(len(tier) > 1 for tier in record.tiers):
        raise ValueError("a ranking has a tie, which the Plackett-Luce loss does not know; use loss='bradley_terry'")
    order = [index for tier in record.tiers for index in tier]
    place = {index: position for position, index in enumerate(order)}
    return tuple(record.replies[i] for i in order), [(place[b], place[w]) for b, w in record.pairs()]


def step_rows(count: int, config: RewardConfig, step: int) -> list[int]:
    """Which records one step takes: every epoch goes through all of them in an order of its own."""
    epoch, place = divmod(step, -(-count // config.rankings_per_step))
    order = torch.randperm(count, generator=generator_for(config.seed, "reward", epoch))
    return order[place * config.rankings_per_step :][: config.rankings_per_step].tolist()


def preference_gradient(rm: RewardModel, choices: Sequence[Choices], config: RewardConfig) -> float:
    """Add the gradient of the mean loss over all `choices`; returns that mean."""
    total = 0.0
    ordered = sorted(choices, key=lambda c: len(c.prompt) + max(map(len, c.replies)))
    for start in range(0, len(ordered), config.micro_batch):
        part = ordered[start : start + config.micro_batch]
        scores = rm.raw_scores(_batch(rm, part)).split([len(c.replies) for c in part])
        loss = sum(_loss(s, c.pairs, config.loss) for s, c in zip(scores, part, strict=True)) / len(choices)
        loss.backward()
        total += float(loss.detach())
    return total


def _loss(scores: Tensor, pairs: list[tuple[int, int]], kind: str) -> Tensor:
    if kind == "plackett_luce":
        return plackett_luce_loss(scores[None], torch.ones_like(scores[None], dtype=torch.bool)).squeeze(0)
    better, worse = map(list, zip(*pairs, strict=True))
    return bradley_terry_loss(scores[better], scores[worse]).mean()


def _batch(rm: RewardModel, choices: Sequence[Choices]) -> TokenBatch:
    prompts = [c.prompt for c in choices for _ in c.replies]
    return make_batch(prompts, [reply for c in choices for reply in c.replies], rm.pad_id, rm.device)


@torch.no_grad()
def _scores(rm: RewardModel, choices: Sequence[Choices]) -> list[Tensor]:
    """Raw scores of each record's replies."""
    batch = _batch(rm, choices)
    scores = rm.score_batch(batch) * rm.score_std + rm.score_mean
    return list(scores.split([len(c.replies) for c in choices]))


def pair_accuracy(rm: RewardModel, choices: Sequence[Choices]) -> float:
    """Share of all pairs in which the better reply has the higher score; equal scores count one half."""
    signs = [(s[b] - s[w]).sign() for s, c in zip(_scores(rm, choices), choices, strict=True) for b, w in c.pairs]
    return float((torch.stack(signs) + 1).mean() / 2)
