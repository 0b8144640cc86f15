"""A reward model from preferences: Bradley-Terry or Plackett-Luce over the replies of one prompt.

All replies of a prompt go through the model once, in one batch, however many pairs they form. Left out: ties inside
a tier (they form no pair), margins, several labellers with weights of their own.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab.feedback.formats import as_preferences
from rlhf_lab.maths.preferences import accuracy, bradley_terry_loss, expected_accuracy, plackett_luce_loss
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.tokens import TokenBatch, count_cut, encode_prompts, encode_responses, make_batch
from rlhf_lab.records import Comparison, Ranking
from rlhf_lab.training.configs import above_zero, at_least_one, from_zero, require, whole
from rlhf_lab.training.history import Result
from rlhf_lab.training.optimisers import clipped_step, cosine_rate, make_optimiser, scale_rates
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.training.steps import Checkpoint, Steps

UNUSED = {"skipped": "skipped", "all_bad": "all bad", "done": "one tie"}  # why a ranking forms no pair, by its status


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
        validation_share: in [0, 0.5], of the prompts: their feedback is not trained on, and the weights with the lowest
            loss on it are kept (early stopping). 0: all feedback is trained on, the last weights are kept.
        evaluate_every, checkpoint_every: in steps.
        seed: of the head, the order and the split.
    """

    epochs: int = 4
    rankings_per_step: int = 16
    micro_batch: int = 16
    learning_rate: float = 5e-4
    weight_decay: float = 0.1
    warmup: int = 10
    max_grad_norm: float = 1.0
    loss: str = "bradley_terry"
    max_new_tokens: int = 64
    validation_share: float = 0.0
    evaluate_every: int = 20
    checkpoint_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(
            self, "epochs", "rankings_per_step", "micro_batch", "max_new_tokens", "evaluate_every", "checkpoint_every"
        )
        above_zero(self, "learning_rate", "max_grad_norm")
        from_zero(self, "weight_decay", "validation_share")
        whole(self, "warmup", least=0)
        whole(self, "seed")
        require(self.validation_share <= 0.5, "validation_share", self.validation_share, "0 to 0.5")
        require(
            self.loss in ("bradley_terry", "plackett_luce"), "loss", self.loss, "'bradley_terry' or 'plackett_luce'"
        )


@dataclass(frozen=True, eq=False, repr=False)
class RewardResult(Result[RewardModel]):
    """The reward model, how it came about, and what of the feedback was of no use.

    Attributes:
        model: scores are standardised on the training replies.
        history: loss in nats (per pair, or per ranking for Plackett-Luce), grad_norm before clipping, learning_rate;
            held_out_loss, accuracy and expected_accuracy on `held_out`; validation_loss.
        unused: records without a pair: skipped, all bad, one tie, or replies that are equal up to the cut.
        cut: replies longer than `max_new_tokens`.
    """

    unused: int
    cut: int


@dataclass(frozen=True)
class Choices:
    """One prompt's replies as tokens, best first, and (better, worse) indices into them."""

    prompt: list[int]
    replies: list[list[int]]
    pairs: list[tuple[int, int]]


def train_reward_model(
    lm: LanguageModel,
    feedback: Sequence[Ranking | Comparison | Mapping],
    config: RewardConfig | None = None,
    *,
    held_out: Sequence[Ranking | Comparison | Mapping] = (),
    agreement: Sequence[float] | None = None,
    evaluate: Callable[[RewardModel], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
) -> RewardResult:
    """Train a reward model that starts from `lm`'s backbone.

        loss = mean over rankings of the mean over their pairs of -log sigmoid(score(better) - score(worse))

    Afterwards the scores are standardised on the training replies, because only differences are learned.

    Args:
        lm: usually the SFT model; it is not changed.
        feedback: rankings or comparisons, or rows with `prompt`, `chosen` and `rejected`. A skipped or all-bad ranking,
            or one that is one tie, forms no pair: such records are left out, counted in `unused` and named on the
            screen.
        config: see RewardConfig.
        held_out: feedback on other prompts, for the numbers in the history.
        agreement: p(the rater prefers the better one) for every pair of `held_out`, in the order of `pairs()`, where
            it is known.
        evaluate: called with the reward model at step 0, every `evaluate_every` steps and at the end.
        checkpoint: file to save to and to resume from.

    Returns:
        RewardResult. After an interrupt it holds what was done.

    Raises:
        ValueError: no ranking with a pair, or a tie with the Plackett-Luce loss.
        CheckpointError, FloatingPointError: as in `train_sft`.

    Source: Stiennon et al. 2020, Learning to summarize from human feedback, section 3.4. Chapter 09.
    """
    config = config or RewardConfig()
    records, unseen = as_preferences(feedback), as_preferences(held_out)
    encoded, seen = encode_feedback(lm, records, config), encode_feedback(lm, unseen, config)
    pairs = sum(len(c.pairs) for c in seen)
    if agreement is not None:
        expected = f"one for each of the {pairs} pairs of held_out"
        require(len(agreement) == pairs, "agreement", f"{len(agreement)} numbers", expected)
    every, _ = without_equal_pairs(lm, encoded, config)
    tests, agreement = without_equal_pairs(lm, seen, config, agreement)
    expected = f"a preference of replies that differ before they are cut (max_new_tokens = {config.max_new_tokens})"
    require(len(every) > 0, "feedback", f"{len(feedback)} records without a pair", expected)
    choices, validation = split_by_prompt(every, config.validation_share, config.seed)
    rm = RewardModel.from_language_model(lm, generator_for(config.seed, "reward head"))
    rm.model.requires_grad_(True)
    optimiser = make_optimiser(rm.model, config.learning_rate, config.weight_decay)
    best: dict[str, Any] = {}  # loss and weights of the best look at the validation prompts
    inputs = {"model": lm.model, "precision": str(lm.precision), "feedback": every, "held_out": (tests, agreement)}
    file = Checkpoint(checkpoint, config.checkpoint_every, "reward", config, inputs, rm.model, optimiser, best)

    def look() -> dict[str, float]:
        numbers = held_out_quality(rm, tests, config, agreement) if tests else {}
        if validation:
            numbers["validation_loss"] = held_out_quality(rm, validation, config)["held_out_loss"]
            keep_best(best, rm, numbers["validation_loss"])
        return numbers | (evaluate(rm) if evaluate else {})

    total = config.epochs * -(-len(choices) // config.rankings_per_step)
    looked = look if tests or validation or evaluate else None
    with Steps("reward model", total, looked, config.evaluate_every, file) as steps:
        for step in steps:
            rate = scale_rates(optimiser, cosine_rate(step, total, config.warmup))
            optimiser.zero_grad()
            loss = preference_gradient(rm, [choices[i] for i in step_rows(len(choices), config, step)], config)
            (norm,) = clipped_step(optimiser, config.max_grad_norm, step + 1, rm.model)
            steps.log(loss=loss, grad_norm=norm, learning_rate=rate)
    if best:
        rm.model.load_state_dict(best["weights"])
    rm.normalise(torch.cat(_scores(rm, choices)))
    cut = count_cut(lm, (reply for c in encoded for reply in c.replies))
    return RewardResult(rm, steps.history, steps.interrupted, len(feedback) - len(every), cut)


def encode_feedback(lm: LanguageModel, feedback: Sequence[Ranking | Comparison], config: RewardConfig) -> list[Choices]:
    """Tokens and pairs of the records that form a pair; each reply is encoded once, what is left out is said."""
    kept = [(record, *_replies_and_pairs(record, config)) for record in feedback]
    kept = [(record, replies, pairs) for record, replies, pairs in kept if pairs]
    if len(kept) < len(feedback):
        useless = (record.status for record in feedback if isinstance(record, Ranking) and not record.pairs())
        reasons = ", ".join(f"{count} {UNUSED[status]}" for status, count in Counter(useless).items())
        tqdm.write(f"left out, because they prefer nothing: {reasons}")
    prompts = encode_prompts(lm, [record.prompt for record, _, _ in kept], config.max_new_tokens)
    rows = [encode_responses(lm, replies, config.max_new_tokens) for _, replies, _ in kept]
    return [Choices(*parts) for parts in zip(prompts, rows, [pairs for _, _, pairs in kept], strict=True)]


def without_equal_pairs(
    lm: LanguageModel, choices: Sequence[Choices], config: RewardConfig, agreement: Sequence[float] | None = None
) -> tuple[list[Choices], list[float] | None]:
    """The choices, and the agreement to their pairs, without pairs that are equal up to the cut; both are said."""
    different = [[c.replies[better] != c.replies[worse] for better, worse in c.pairs] for c in choices]
    if config.loss == "plackett_luce":  # which takes an order as a whole or not at all
        different = [[all(pairs)] * len(pairs) for pairs in different]
    replies, flat = [reply for c in choices for reply in c.replies], list(chain(*different))
    if cut := count_cut(lm, replies):
        lost = f"; {flat.count(False)} pairs that became equal by that are left out" if not all(flat) else ""
        tqdm.write(f"{cut} of {len(replies)} replies were cut at max_new_tokens = {config.max_new_tokens}{lost}")
    kept = (replace(c, pairs=list(compress(c.pairs, d))) for c, d in zip(choices, different, strict=True))
    return [c for c in kept if c.pairs], None if agreement is None else list(compress(agreement, flat))


def _replies_and_pairs(
    record: Ranking | Comparison, config: RewardConfig
) -> tuple[tuple[str, ...], list[tuple[int, int]]]:
    """Replies best first and their pairs, as indices into them."""
    if isinstance(record, Comparison):
        return (record.chosen, record.rejected), [(0, 1)]
    if config.loss == "plackett_luce" and len(record.tiers) > 1 and any(len(tier) > 1 for tier in record.tiers):
        raise ValueError(
            f"the ranking of replies to {record.prompt[-1].content!r:.60} has a tie, which the Plackett-Luce loss does "
            "not know; use loss='bradley_terry'"
        )
    order = [index for tier in record.tiers for index in tier]
    place = {index: position for position, index in enumerate(order)}
    return tuple(record.replies[i] for i in order), [(place[b], place[w]) for b, w in record.pairs()]


def split_by_prompt(choices: Sequence[Choices], share: float, seed: int) -> tuple[list[Choices], list[Choices]]:
    """(for training, for validation): no prompt is in both, and about `share` of all prompts is in the second."""
    prompts = sorted({tuple(c.prompt) for c in choices})
    count = round(share * len(prompts))
    if share > 0:
        expected = "enough feedback for at least one prompt on either side; set it to 0"
        require(1 <= count < len(prompts), "validation_share", f"{share} of {len(prompts)} prompts", expected)
    order = torch.randperm(len(prompts), generator=generator_for(seed, "reward validation")).tolist()
    apart = {prompts[i] for i in order[:count]}
    return [c for c in choices if tuple(c.prompt) not in apart], [c for c in choices if tuple(c.prompt) in apart]


def keep_best(best: dict, rm: RewardModel, loss: float) -> None:
    """Remember the weights with the lowest validation loss so far."""
    if loss < best.get("loss", float("inf")):
        best.update(loss=loss, weights={name: w.clone() for name, w in rm.model.state_dict().items()})


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
        losses = (_loss(s, c.pairs, config.loss) for s, c in zip(scores, part, strict=True))
        loss = sum(losses, start=torch.zeros(())) / len(choices)
        loss.backward()
        total += float(loss.detach())
    return total


def _loss(scores: Tensor, pairs: list[tuple[int, int]], kind: str) -> Tensor:
    if kind == "plackett_luce":
        return plackett_luce_loss(scores[None], torch.ones_like(scores[None], dtype=torch.bool)).squeeze(0)
    better, worse = map(list, zip(*pairs, strict=True))
    return bradley_terry_loss(scores[better], scores[worse]).mean()


def _batch(rm: RewardModel, choices: Sequence[Choices]) -> TokenBatch:
    # Only the last state is read, so the prompt may join the reply on the right: no padding on the left, no mask.
    rows = [c.prompt + reply for c in choices for reply in c.replies]
    return make_batch([row[:1] for row in rows], [row[1:] for row in rows], rm.pad_id, rm.device)


@torch.no_grad()
def _scores(rm: RewardModel, choices: Sequence[Choices]) -> list[Tensor]:
    """Raw scores of each record's replies."""
    scores = rm.score_batch(_batch(rm, choices)) * rm.score_std + rm.score_mean
    return list(scores.split([len(c.replies) for c in choices]))


def held_out_quality(
    rm: RewardModel, choices: Sequence[Choices], config: RewardConfig, agreement: Sequence[float] | None = None
) -> dict[str, float]:
    """Loss as in training, accuracy over all pairs, and expected accuracy where `agreement` is known."""
    scores = _scores(rm, choices)
    loss = sum(float(_loss(s, c.pairs, config.loss)) for s, c in zip(scores, choices, strict=True)) / len(choices)
    pairs = [torch.stack([s[b], s[w]]) for s, c in zip(scores, choices, strict=True) for b, w in c.pairs]
    better, worse = torch.stack(pairs).cpu().unbind(1)
    numbers = {"held_out_loss": loss, "accuracy": float(accuracy(better, worse))}
    if agreement is not None:
        numbers["expected_accuracy"] = float(expected_accuracy(better - worse, torch.tensor(agreement)))
    return numbers
