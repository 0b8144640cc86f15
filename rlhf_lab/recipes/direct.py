"""Direct preference optimisation (DPO): the policy learns from preferences without a reward model and without sampling.

    replies      all of a record are encoded once, however many pairs they form
    reference    its log-probs of every reply, once, before the first step
    step         loss = mean over records of the mean over their pairs of `dpo_loss`

Left out: losses other than that of Bradley-Terry, and division of log-probs by the length of the reply.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rlhf_lab.experience import invariants
from rlhf_lab.maths.objectives import dpo_loss
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import forward, response_log_probs, token_log_probs
from rlhf_lab.models.tokens import TokenBatch, make_batch
from rlhf_lab.recipes.reward_data import Feedback, Judged, prepare_feedback, with_mean_weight_one
from rlhf_lab.training.configs import above_zero, at_least_one, from_zero, require, whole
from rlhf_lab.training.history import Result
from rlhf_lab.training.optimisers import clipped_step, cosine_rate, make_optimiser, scale_rates
from rlhf_lab.training.randomness import generator_for
from rlhf_lab.training.steps import Checkpoint, Steps

CHECK_ROWS = 4  # replies that are scored again before the first step
Look = Callable[[TokenBatch, Tensor, Tensor, Tensor], None]  # replies, log-probs of policy and reference, losses


@dataclass(frozen=True)
class DPOConfig:
    """Every choice of a run; defaults for the shipped model.

    Attributes:
        epochs: passes over the feedback, at least 1.
        records_per_step: records (rankings, comparisons, choices) in a step, at least 1.
        micro_batch: most records in one pass; changes memory, not the result.
        beta: the KL coefficient that the loss stands for, above 0, in log-odds of a preference per nat.
        temperature: of the law that is trained, that of later sampling; above 0.
        learning_rate: peak, above 0; falls to 0 along a cosine.
        weight_decay: on matrices, at least 0.
        warmup: steps of linear warm-up.
        max_grad_norm: above 0.
        max_new_tokens: longer replies are cut.
        evaluate_every, checkpoint_every: in steps.
        seed: of the order.
    """

    epochs: int = 1
    records_per_step: int = 16
    micro_batch: int = 4
    beta: float = 0.1
    temperature: float = 0.7
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    warmup: int = 5
    max_grad_norm: float = 1.0
    max_new_tokens: int = 64
    evaluate_every: int = 20
    checkpoint_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        at_least_one(self, "epochs", "records_per_step", "micro_batch", "max_new_tokens")
        at_least_one(self, "evaluate_every", "checkpoint_every")
        above_zero(self, "beta", "temperature", "learning_rate", "max_grad_norm")
        from_zero(self, "weight_decay")
        whole(self, "warmup", least=0)
        whole(self, "seed")


@dataclass(frozen=True, eq=False, repr=False)
class DPOResult(Result[LanguageModel]):
    """The tuned policy and how it came about.

    Attributes:
        history: loss in nats a pair; accuracy, share of pairs that the policy's own reward orders as the rater did;
            chosen and rejected, mean log-prob less that of the reference, nats a reply; grad_norm before clipping;
            learning_rate; and what `evaluate` gave.
        unused: records that form no pair.
        cut: replies longer than `max_new_tokens`.
        reasons: why records were not used -> how many.
    """

    unused: int
    cut: int
    reasons: Mapping[str, int]


def train_dpo(
    lm: LanguageModel,
    feedback: Feedback,
    config: DPOConfig | None = None,
    *,
    reference: LanguageModel | None = None,
    weights: Sequence[float] | None = None,
    evaluate: Callable[[LanguageModel], dict[str, float]] | None = None,
    checkpoint: str | Path | None = None,
) -> DPOResult:
    """Train a copy of `lm` on preferences.

        loss(pair) = -log sigmoid(beta (log p(better)/q(better) - log p(worse)/q(worse)))

    with p the policy and q the reference, both at the temperature. Its minimum over all policies is the optimum of
    reward - beta KL(p || q) under the reward that Bradley-Terry raters followed, where every reply is compared with
    every other. The loss sees differences alone: both log-probs of a pair may fall while it does.

    Args:
        lm: where to start, usually the SFT model; it is not changed.
        feedback: as for `train_reward_model` with loss="bradley_terry".
        config: see DPOConfig.
        reference: q; None: `lm` as it was.
        weights: of each record, as for `train_reward_model`.
        evaluate: called with the policy at step 0, every `evaluate_every` steps and at the end.
        checkpoint: file to save to and to resume from.

    Returns:
        DPOResult. After an interrupt it holds what was done.

    Raises:
        ValueError: no record that forms a pair, or weights that do not fit.
        InvariantViolation: a check of the first step failed; the message says what it means.
        CheckpointError, FloatingPointError: as in `train_sft`.

    Source: Rafailov et al. 2023, Direct Preference Optimization, equation 7; all pairs of a ranking with one weight as
    in Ouyang et al. 2022. Chapter 15.
    """
    config = config or DPOConfig()
    data = prepare_feedback(lm, feedback, "bradley_terry", config.max_new_tokens, weights=weights)
    expected = f"a preference of replies that differ before they are cut (max_new_tokens = {config.max_new_tokens})"
    require(len(data.judged) > 0, "feedback", f"{len(feedback)} records without a pair", expected)
    judged = with_mean_weight_one(data.judged)
    start, lm = lm, lm.copy()
    lm.model.requires_grad_(True)
    known = reference_log_probs(reference or start, judged, config.temperature)
    optimiser = make_optimiser(lm.model, config.learning_rate, config.weight_decay)
    inputs = {"model": start.model, "precision": str(lm.precision), "feedback": judged, "reference": known}
    file = Checkpoint(checkpoint, config.checkpoint_every, "dpo", config, inputs, lm.model, optimiser)
    look = None if evaluate is None else partial(evaluate, lm)
    per_epoch = -(-len(judged) // config.records_per_step)
    total = config.epochs * per_epoch
    with Steps("DPO", total, look, config.evaluate_every, file) as steps:
        for step in steps:
            epoch, place = divmod(step, per_epoch)
            order = torch.randperm(len(judged), generator=generator_for(config.seed, "dpo", epoch)).tolist()
            rows = order[place * config.records_per_step :][: config.records_per_step]
            rate = scale_rates(optimiser, cosine_rate(step, total, config.warmup))
            optimiser.zero_grad()
            seen = partial(check_start, lm, reference or start, config) if step == 0 else None
            numbers = preference_gradient(lm, [judged[i] for i in rows], [known[i] for i in rows], config, seen)
            (norm,) = clipped_step(optimiser, config.max_grad_norm, step + 1, lm.model)
            steps.log(numbers, grad_norm=norm, learning_rate=rate)
    unused = sum(data.reasons.values())
    return DPOResult(lm, steps.history, steps.interrupted, unused, data.cut, data.reasons)


def replies_batch(lm: LanguageModel, judged: Sequence[Judged]) -> TokenBatch:
    """The replies of all records behind their prompts, a row each."""
    rows = [(one.prompt, reply) for one in judged for reply in one.replies]
    return make_batch([prompt for prompt, _ in rows], [reply for _, reply in rows], lm.pad_id, lm.device)


def reference_log_probs(lm: LanguageModel, judged: Sequence[Judged], temperature: float) -> list[Tensor]:
    """Of each record the log-probs [K] of its replies, nats, summed over the reply."""
    log_probs = response_log_probs(lm, replies_batch(lm, judged), temperature).sum(1)
    return list(log_probs.split([len(one.replies) for one in judged]))


def preference_gradient(
    lm: LanguageModel,
    judged: Sequence[Judged],
    known: Sequence[Tensor],
    config: DPOConfig,
    look: Look | None = None,
) -> dict[str, float]:
    """Add the gradient of the mean of weight * loss over all `judged`; returns the numbers of the history.

    Args:
        known: of each record the reference's log-probs [K].
        look: sees the first micro-batch before its gradient is taken, to check it.
    """
    sums = torch.zeros(4, device=lm.device)
    ordered = sorted(range(len(judged)), key=lambda i: len(judged[i].prompt) + max(map(len, judged[i].replies)))
    for start in range(0, len(ordered), config.micro_batch):
        some = ordered[start : start + config.micro_batch]
        part = [judged[i] for i in some]
        better, worse, share = pairs_of(part, lm.device)
        batch, reference = replies_batch(lm, part), torch.cat([known[i] for i in some])
        logits = forward(lm, batch).logits
        log_probs = token_log_probs(logits, batch.response_ids, batch.mask, config.temperature).sum(1)
        losses = dpo_loss(log_probs[better], log_probs[worse], reference[better], reference[worse], config.beta)
        if look is not None and start == 0:
            look(batch, log_probs.detach(), reference, losses.detach())
        ((share * losses).sum() / len(judged)).backward()
        gain = log_probs.detach() - reference
        right = (torch.sign(gain[better] - gain[worse]) + 1) / 2
        sums += torch.stack([(share * x).sum() for x in (losses.detach(), right, gain[better], gain[worse])])
    return dict(zip(("loss", "accuracy", "chosen", "rejected"), (sums / len(judged)).tolist(), strict=True))


def check_start(lm: LanguageModel, reference: LanguageModel, config: DPOConfig, batch: TokenBatch, *of: Tensor) -> None:
    """Before the first step, of a few replies: both models were scored at the temperature and without dropout.

    Where the reference is the policy as it was, each pair costs log 2.

    Args:
        batch: replies of the first micro-batch. of: their log-probs [R] by policy and reference, and the losses [N].

    Raises:
        InvariantViolation: named "rescored" or "initial_loss".
    """
    log_probs, known, losses = of
    few = batch.select(torch.arange(min(CHECK_ROWS, len(batch))))
    for model, totals, whose in ((lm, log_probs, "the training pass"), (reference, known, "the reference's pass")):
        tolerance = invariants.tolerance_for(model.precision)
        invariants.check_totals(model, few, totals[: len(few)], config.temperature, tolerance, whose)
    if invariants.same_weights(lm.model, reference.model):
        # rounding moves a reply by `tolerance` times its tokens, and the loss of a pair by half of beta for each reply
        tolerance = invariants.tolerance_for(lm.precision) * int(batch.response_lengths.max())
        invariants.check_initial_loss(losses, config.beta * tolerance)


def pairs_of(judged: Sequence[Judged], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(better, worse, share) of all pairs, as rows of `replies_batch`; the shares of a record sum to its weight."""
    better, worse, share, first = [], [], [], 0
    for one in judged:
        better += [first + b for b, _ in one.said.pairs]
        worse += [first + w for _, w in one.said.pairs]
        share += [one.weight / len(one.said.pairs)] * len(one.said.pairs)
        first += len(one.replies)
    return torch.tensor(better, device=device), torch.tensor(worse, device=device), torch.tensor(share, device=device)
