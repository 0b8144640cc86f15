"""A reward model from what people said: of pairs, orders, ties, ratings and labels, over the replies of one prompt.

All replies of a prompt go through the model once, in one batch, however many pairs they form. What of the feedback a
loss can use is in `reward_data`, from scores to the loss in `reward_losses`. Left out: a scale of its own for each
rater, several heads.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.maths.preferences import accuracy, expected_accuracy
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.reward_model import RewardModel
from rlhf_lab.models.tokens import TokenBatch, make_batch
from rlhf_lab.recipes.reward_data import (
    NEEDED,
    Feedback,
    Judged,
    Prepared,
    prepare_feedback,
    split_by_prompt,
    with_mean_weight_one,
)
from rlhf_lab.recipes.reward_losses import LOSSES, first_log_nu, record_loss
from rlhf_lab.training.configs import above_zero, at_least_one, from_zero, require, whole
from rlhf_lab.training.history import Result
from rlhf_lab.training.optimisers import clipped_step, cosine_rate, make_optimiser, scale_rates
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.training.steps import Checkpoint, Steps

LOG_NU_RATE = (
    0.05  # peak learning rate of log nu: one number, in nats, where the weights of a network need 100 times less
)


@dataclass(frozen=True)
class RewardConfig:
    """Every choice of a reward-model run; defaults for the shipped model.

    Attributes:
        epochs: passes over the feedback, at least 1 (Stiennon 2020 and Ouyang 2022 take 1).
        rankings_per_step: records (rankings, comparisons, ratings, ...) in a step, at least 1.
        micro_batch: most records in one pass; changes memory, not the result.
        learning_rate: peak, above 0; falls to 0 along a cosine.
        weight_decay: on matrices, at least 0.
        warmup: steps of linear warm-up.
        max_grad_norm: above 0.
        loss: "bradley_terry" over all pairs; "plackett_luce" of the whole order; "davidson", in which ties count as
            well; "regression" on ratings; "classification" of ratings above or below the middle of their scale, or of
            labels. See `reward_losses`.
        margin: at least 0, of "bradley_terry": the lead of a better reply in units of the raw score, for every place
            between the tiers of the two (Touvron 2023 give it by how much better a reply was said to be).
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
    margin: float = 0.0
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
        from_zero(self, "weight_decay", "validation_share", "margin")
        whole(self, "warmup", least=0)
        whole(self, "seed")
        require(self.validation_share <= 0.5, "validation_share", self.validation_share, "0 to 0.5")
        require(self.loss in tuple(LOSSES), "loss", self.loss, f"one of {tuple(LOSSES)}")
        fits = self.margin == 0 or self.loss == "bradley_terry"
        require(fits, "margin", self.margin, f"0 with loss={self.loss!r}; only 'bradley_terry' knows margins")


@dataclass(frozen=True, eq=False, repr=False)
class RewardResult(Result[RewardModel]):
    """The reward model, how it came about, and what of the feedback was of no use.

    Attributes:
        model: scores are standardised on the training replies.
        history: loss in nats (per pair, or per ranking for Plackett-Luce; regression: in squared units of [0, 1]),
            grad_norm before clipping, learning_rate; log_nu of Davidson's loss; held_out_loss, accuracy and
            expected_accuracy on `held_out`; validation_loss.
        unused: records that the loss could not use: skipped, all bad, one tie, of another form, equal up to the cut.
        cut: replies longer than `max_new_tokens`.
        reasons: why records were not used -> how many.
        log_nu: how easily the raters call a tie, learned with Davidson's loss: between replies with equal scores
            P(tie) = nu / (nu + 2). None with another loss. `model.log_nu` is the same, and is saved with the model.
    """

    unused: int
    cut: int
    reasons: Mapping[str, int]
    log_nu: float | None = None


class Learned(torch.nn.Module):
    """What a run trains: the network, and how easily raters call a tie where the loss knows ties."""

    def __init__(self, network: torch.nn.Module, log_nu: Tensor | None) -> None:
        super().__init__()
        self.network = network
        self.log_nu = None if log_nu is None else torch.nn.Parameter(log_nu)


def train_reward_model(
    lm: LanguageModel,
    feedback: Feedback,
    config: RewardConfig | None = None,
    *,
    weights: Sequence[float] | None = None,
    held_out: Feedback = (),
    agreement: Sequence[float] | None = None,
    evaluate: Callable[[RewardModel], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
) -> RewardResult:
    """Train a reward model that starts from `lm`'s backbone.

        loss = sum over records of weight * loss(record) / sum of weights

        bradley_terry: loss(record) = mean over its pairs of -log sigmoid(score(better) - score(worse)); the others are
        in `reward_losses`

    Afterwards the scores are standardised on the training replies. Preferences leave mean and scale open; regression
    and classification do not, and are standardised all the same, because `kl_coef` of RLHF is a price in units of the
    score and should mean the same for every reward model. Nothing is lost: `score_mean` and `score_std` lead back to
    `raw_scores`, which predict the rating on [0, 1], or the log-odds of a good reply.

    Args:
        lm: usually the SFT model; it is not changed.
        feedback: records: `Ranking`, `Comparison` and `Choice` for the losses of preferences, `Rating` for regression
            and classification; or rows with `prompt`, `chosen` and `rejected`, or with `prompt`, `completion` and
            `label`. What the loss cannot use (skipped, all bad, one tie, another form) is left out, counted in
            `reasons` and named on the screen.
        config: see RewardConfig.
        weights: of each record, from 0 on; only their ratios count. None: all the same. A negative one is refused:
            the loss would have no minimum. Turn the record round instead (swap chosen and rejected).
        held_out: feedback on other prompts, for the numbers in the history.
        agreement: p(the rater prefers the better one) for every pair of `held_out`, in the order of `pairs()`, where
            it is known.
        evaluate: called with the reward model at step 0, every `evaluate_every` steps and at the end.
        checkpoint: file to save to and to resume from.

    Returns:
        RewardResult. After an interrupt it holds what was done.

    Raises:
        ValueError: no record that the loss can use, ratings or labels that are all the same, weights that do not fit.
        CheckpointError, FloatingPointError: as in `train_sft`.

    Source: Stiennon et al. 2020, Learning to summarize from human feedback, section 3.4. Chapter 09.
    """
    config = config or RewardConfig()
    data = prepare_feedback(lm, feedback, config.loss, config.max_new_tokens, weights=weights)
    tests = prepare_feedback(lm, held_out, config.loss, config.max_new_tokens, agreement=agreement)
    check_usable(data, len(feedback), config)
    return fit_reward_model(lm, data, config, tests=tests, evaluate=evaluate, checkpoint=checkpoint)


def check_usable(data: Prepared, count: int, config: RewardConfig) -> None:
    """There is something to learn in what `count` records were prepared to, or a ValueError says what is missing."""
    needed, targets = NEEDED[config.loss], {one.said.target for one in data.judged}
    if targets <= {None}:
        expected = f"a preference of replies that differ before they are cut (max_new_tokens = {config.max_new_tokens})"
        require(len(data.judged) > 0, "feedback", f"{count} records without a {needed}", expected)
    else:
        require(len(targets) > 1, "feedback", f"{len(data.judged)} {needed}s that say the same", "some that differ")


def fit_reward_model(
    lm: LanguageModel,
    data: Prepared,
    config: RewardConfig,
    *,
    tests: Prepared | None = None,
    evaluate: Callable[[RewardModel], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
) -> RewardResult:
    """`train_reward_model` on feedback that is prepared."""
    tests = tests or Prepared([])
    judged, validation = map(with_mean_weight_one, split_by_prompt(data.judged, config.validation_share, config.seed))
    rm = RewardModel.from_language_model(lm, generator_for(config.seed, "reward head"))
    rm.model.requires_grad_(True)
    learned = Learned(
        rm.model, torch.tensor(first_log_nu(judged), device=rm.device) if config.loss == "davidson" else None
    )
    optimiser = make_optimiser(rm.model, config.learning_rate, config.weight_decay)
    if learned.log_nu is not None:
        optimiser.add_param_group({"params": [learned.log_nu], "lr": LOG_NU_RATE, "weight_decay": 0.0})
    best: dict[str, Any] = {}  # loss and weights of the best look at the validation prompts
    inputs = {"model": lm.model, "precision": str(lm.precision), "feedback": data.judged, "held_out": tests}
    file = Checkpoint(checkpoint, config.checkpoint_every, "reward", config, inputs, learned, optimiser, best)

    def look() -> dict[str, float]:
        numbers = held_out_quality(rm, tests.judged, config, tests.agreement, learned.log_nu) if tests.judged else {}
        if validation:
            numbers["validation_loss"] = held_out_quality(rm, validation, config, None, learned.log_nu)["held_out_loss"]
            keep_best(best, learned, numbers["validation_loss"])
        return numbers | (evaluate(rm) if evaluate else {})

    total = config.epochs * -(-len(judged) // config.rankings_per_step)
    looked = look if tests.judged or validation or evaluate else None
    with Steps("reward model", total, looked, config.evaluate_every, file) as steps:
        for step in steps:
            rate = scale_rates(optimiser, cosine_rate(step, total, config.warmup))
            optimiser.zero_grad()
            rows = step_rows(len(judged), config, step)
            loss = loss_gradient(rm, [judged[i] for i in rows], config, learned.log_nu)
            (norm,) = clipped_step(optimiser, config.max_grad_norm, step + 1, rm.model)
            steps.log(loss=loss, grad_norm=norm, learning_rate=rate)
            if learned.log_nu is not None:
                steps.log(log_nu=float(learned.log_nu.detach()))
    if best:
        learned.load_state_dict(best["weights"])
    rm.normalise(torch.cat(raw_scores_of(rm, judged)))
    rm.log_nu = None if learned.log_nu is None else float(learned.log_nu.detach())
    unused = sum(data.reasons.values())
    return RewardResult(rm, steps.history, steps.interrupted, unused, data.cut, data.reasons, rm.log_nu)


def keep_best(best: dict, learned: torch.nn.Module, loss: float) -> None:
    """Remember the weights with the lowest validation loss so far."""
    if loss < best.get("loss", float("inf")):
        best.update(loss=loss, weights={name: w.clone() for name, w in learned.state_dict().items()})


def step_rows(count: int, config: RewardConfig, step: int) -> list[int]:
    """Which records one step takes: every epoch goes through all of them in an order of its own."""
    epoch, place = divmod(step, -(-count // config.rankings_per_step))
    order = torch.randperm(count, generator=generator_for(config.seed, "reward", epoch))
    return order[place * config.rankings_per_step :][: config.rankings_per_step].tolist()


def loss_gradient(
    rm: RewardModel, judged: Sequence[Judged], config: RewardConfig, log_nu: Tensor | None = None
) -> float:
    """Add the gradient of the mean of weight * loss over all `judged`; returns that mean."""
    total = 0.0
    ordered = sorted(judged, key=lambda one: len(one.prompt) + max(map(len, one.replies)))
    for start in range(0, len(ordered), config.micro_batch):
        part = ordered[start : start + config.micro_batch]
        scores = rm.raw_scores(_batch(rm, part)).split([len(one.replies) for one in part])
        loss = sum(_losses(scores, part, config, log_nu), start=torch.zeros(())) / len(judged)
        loss.backward()
        total += float(loss.detach())
    return total


def _losses(
    scores: Sequence[Tensor], judged: Sequence[Judged], config: RewardConfig, log_nu: Tensor | None
) -> list[Tensor]:
    """Weighted loss of each record."""
    parts = zip(scores, judged, strict=True)
    return [one.weight * record_loss(s, one.said, config.loss, config.margin, log_nu) for s, one in parts]


def _batch(rm: RewardModel, judged: Sequence[Judged]) -> TokenBatch:
    # Only the last state is read, so the prompt may join the reply on the right: no padding on the left, no mask.
    rows = [one.prompt + reply for one in judged for reply in one.replies]
    return make_batch([row[:1] for row in rows], [row[1:] for row in rows], rm.pad_id, rm.device)


@torch.no_grad()
def raw_scores_of(rm: RewardModel, judged: Sequence[Judged]) -> list[Tensor]:
    """Raw scores of each record's replies."""
    scores = rm.score_batch(_batch(rm, judged)) * rm.score_std + rm.score_mean
    return list(scores.split([len(one.replies) for one in judged]))


@torch.no_grad()
def held_out_quality(
    rm: RewardModel,
    judged: Sequence[Judged],
    config: RewardConfig,
    agreement: Sequence[float] | None = None,
    log_nu: Tensor | None = None,
) -> dict[str, float]:
    """Loss as in training; accuracy over all pairs, or of all labels; expected accuracy where `agreement` is known."""
    scores = raw_scores_of(rm, judged)
    numbers = {"held_out_loss": sum(map(float, _losses(scores, judged, config, log_nu))) / len(judged)}
    pairs = [torch.stack([s[b], s[w]]) for s, one in zip(scores, judged, strict=True) for b, w in one.said.pairs]
    if config.loss == "classification":  # a good reply against a score of 0, and 0 against a bad one
        level = torch.zeros((), device=rm.device)
        labelled = zip(scores, judged, strict=True)
        pairs = [torch.stack([s[0], level] if one.said.target else [level, s[0]]) for s, one in labelled]
    if pairs:
        better, worse = torch.stack(pairs).cpu().unbind(1)
        numbers["accuracy"] = float(accuracy(better, worse))
        if agreement is not None:
            numbers["expected_accuracy"] = float(expected_accuracy(better - worse, torch.tensor(agreement)))
    return numbers
