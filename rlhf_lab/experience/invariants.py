"""Facts that hold in every correct run of RLHF, checked while it runs; a violation explains itself.

A wrong temperature, a missing position or a score counted twice does not crash: the run learns a little less, or
something else. Each check here costs next to nothing and says what was checked, what came out, what usually causes
it and what to do. `diagnose` goes further: once log-probs disagree, it tries the usual faults one by one and names
the one that reproduces the numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.maths import objectives
from rlhf_lab.maths.tensors import check_shapes, length_mask, masked_mean, masked_sum
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import forward, response_log_probs, token_log_probs
from rlhf_lab.models.tokens import Rollout, TokenBatch


class InvariantViolation(RuntimeError):
    """A fact of every correct run does not hold; `name` says which, the message why and what to do."""

    def __init__(self, name: str, got: str, expected: str, cause: str, remedy: str, chapter: str):
        self.name = name
        super().__init__(
            f"{name}: got {got}; expected {expected}.\n  Cause: {cause}\n  Remedy: {remedy}\n  See chapter {chapter}."
        )


def tolerance_for(dtype: torch.dtype) -> float:
    """Mean difference in nats that rounding alone explains; the worst token may be ten times it.

    float32 passes of different shape agree to 1e-6 on a small model and 1e-5 on a large one. bfloat16 keeps 8 bits
    of each number, and differences of 0.03 nats are common.

    Example:
        >>> tolerance_for(torch.float32)
        0.0001
    """
    tolerances = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.05}
    if dtype not in tolerances:
        raise ValueError(f"dtype must be one of {list(tolerances)}, got {dtype}")
    return tolerances[dtype]


def check_first_minibatch(
    log_probs: Tensor,
    old_log_probs: Tensor,
    mask: Tensor,
    clip_epsilon: float,
    tolerance: float,
    diagnosis: Callable[[], str] | None = None,
) -> None:
    """Before any update the policy is the one that sampled: ratio 1, approximate KL 0, clip fraction 0.

    Args:
        log_probs, old_log_probs: [B, T] nats, from the training pass and kept from sampling.
        mask: [B, T] bool.
        clip_epsilon: half width of the band; below `tolerance` the clip fraction is left out, for rounding alone
            leaves such a band.
        tolerance: nats, from `tolerance_for`.
        diagnosis: called on a violation only; returns the cause in words.

    Raises:
        InvariantViolation: named "first_minibatch".

    Source: Huang et al. 2024, The N+ Implementation Details of RLHF with PPO. Chapters 05, 07, 10.
    """
    check_shapes(log_probs=log_probs, old_log_probs=old_log_probs, mask=mask)
    mean, worst = _difference(log_probs, old_log_probs, mask)
    clipped = 0.0
    if clip_epsilon >= tolerance:
        clipped = float(objectives.clip_fraction(log_probs.detach(), old_log_probs, clip_epsilon, mask))
    if _too_far(mean, worst, tolerance) or clipped > tolerance:
        raise InvariantViolation(
            "first_minibatch",
            f"|log ratio| {mean:.2g} on average, {worst:.2g} at worst, clip fraction {clipped:.3f}",
            f"at most {tolerance:g} and {10 * tolerance:g} nats, clip fraction 0, before any update",
            diagnosis() if diagnosis else MISMATCH_CAUSES,
            "sample and score with one temperature and precision, eval mode, position ids from the mask",
            "05 or 10",
        )


MISMATCH_CAUSES = (
    "the scored law is not the sampled law. Usual reasons: another temperature or a top-k in one of the two, "
    "dropout left on, left padding without position ids, tokens shifted by one, bf16 against float32"
)


def check_rescored(
    sampled: Tensor,
    rescored: Tensor,
    mask: Tensor,
    tolerance: float,
    diagnosis: Callable[[], str] | None = None,
    name: str = "rescored",
) -> None:
    """Numbers kept from sampling equal those of a scoring pass over the finished replies.

    Args:
        sampled, rescored: [B, T] log-probs in nats, or values (then `name` says so).
        mask: [B, T] bool.
        tolerance: mean difference allowed; ten times it for the worst token.

    Raises:
        InvariantViolation: named `name`.

    Chapters 07, 10.
    """
    check_shapes(sampled=sampled, rescored=rescored, mask=mask)
    mean, worst = _difference(sampled, rescored, mask)
    if _too_far(mean, worst, tolerance):
        raise InvariantViolation(
            name,
            f"a difference of {mean:.2g} on average and {worst:.2g} at worst between sampling and scoring",
            f"at most {tolerance:g} and {10 * tolerance:g}",
            diagnosis() if diagnosis else MISMATCH_CAUSES,
            "score with `language_model.forward`, on the tokens and the mask of the rollout",
            "07",
        )


def check_padding(
    lm: LanguageModel, batch: TokenBatch, log_probs: Tensor, temperature: float, tolerance: float
) -> None:
    """Each row scored alone, so without any padding, has the log-probs it had in its batch.

    Cost: one forward pass over the rows given, so give it a few.

    Args:
        batch: the rows to check.
        log_probs: [B, T] nats as sampled, for these rows (columns past the longest of them are ignored).
        temperature: of the sampling.
        tolerance: nats, from `tolerance_for`.

    Raises:
        InvariantViolation: named "rescored", with the cause that `diagnose` found.

    Chapter 07.
    """
    sampled = log_probs[:, : batch.mask.shape[1]]
    alone = torch.zeros_like(sampled)
    for row in range(len(batch)):
        single = batch.select(torch.tensor([row], device=batch.mask.device))
        alone[row, : single.mask.shape[1]] = response_log_probs(lm, single, temperature)[0]
    check_rescored(sampled, alone, batch.mask, tolerance, lambda: diagnose(lm, batch, sampled, alone, temperature))


def check_mask(mask: Tensor, lengths: Tensor) -> None:
    """The mask of a right-padded batch is True on the first lengths[b] columns and nowhere else.

    Args:
        mask: [B, T] bool.
        lengths: [B] tokens of each reply, counted by the sampler and not from the mask.

    Raises:
        InvariantViolation: named "mask".

    Example:
        >>> check_mask(torch.tensor([[True, True, False]]), torch.tensor([2]))

    Chapters 07, 10.
    """
    if mask.shape != (len(lengths), mask.shape[1]) or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool [{len(lengths)}, T], got {mask.dtype} {list(mask.shape)}")
    wrong = (mask.sum(1) != lengths) | (mask != length_mask(lengths, mask.shape[1])).any(1)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise InvariantViolation(
            "mask",
            f"{int(mask[row].sum())} tokens under the mask of row {row}",
            f"the first {int(lengths[row])}, as many as were sampled",
            "the mask was made by comparing token ids with the pad id. Where pad and end are one id this "
            "removes the true end token: its reward is masked out and the model never learns to stop",
            "make masks from lengths (`tensors.length_mask`, `language_model.make_batch`)",
            "07",
        )


def reply_lengths(response_ids: Tensor, ended: Tensor, end_id: int, limit: int) -> Tensor:
    """Lengths [B] of sampled replies from what the sampler said: up to the first end token, or the limit.

    Example:
        >>> tokens, ended = torch.tensor([[5, 1, 1], [5, 6, 7]]), torch.tensor([True, False])
        >>> reply_lengths(tokens, ended, end_id=1, limit=3).tolist()
        [2, 3]
    """
    first_end = (response_ids == end_id).long().argmax(1) + 1
    return torch.where(ended, first_end, limit)


def check_score_counted_once(
    rewards: Tensor,
    scores: Tensor,
    kl_penalty: Tensor,
    mask: Tensor,
    tolerance: float,
    discounts: Tensor | None = None,
) -> None:
    """The rewards of a reply add up to its score and its KL penalty; nothing is bootstrapped after its last token.

        sum_t rewards[b, t] = scores[b] + sum_t kl_penalty[b, t]

    Args:
        rewards: [B, T] what the advantages are computed from.
        scores: [B] score of the reply, with the penalty for a missing end.
        kl_penalty: [B, T] -kl_coef * (log_probs - ref_log_probs), the KL part of the rewards.
        mask: [B, T] bool.
        tolerance: relative to 1 + |scores|.
        discounts: [B, T]; if given, they must be 0 at the last real token.

    Raises:
        InvariantViolation: named "score_counted_once".

    Chapter 10.
    """
    check_shapes(rewards=rewards, kl_penalty=kl_penalty, mask=mask)
    counted = masked_sum(rewards - kl_penalty, mask, dim=1)
    wrong = (counted - scores).abs() > tolerance * (1 + scores.abs())
    if wrong.any():
        row = int(wrong.nonzero()[0])
        got, score = float(counted[row]), float(scores[row])
        times = round(got / score) if score else 0
        twice = times >= 2 and abs(got - times * score) <= tolerance * (1 + abs(score)) * times
        raise InvariantViolation(
            "score_counted_once",
            f"rewards of row {row} that add up to {got:.4g} (KL penalty apart) for a score of {score:.4g}",
            "the score once",
            f"the score was counted {times} times, in two places or at several tokens"
            if twice
            else "the score was written to padding, to several tokens, or lost under the mask",
            "write the score at the last real token, at column length - 1, and only there",
            "10",
        )
    if discounts is not None:
        last = discounts.gather(1, (mask.sum(1, keepdim=True) - 1).clamp(min=0))
        if (last != 0).any():
            raise InvariantViolation(
                "score_counted_once",
                f"a discount of {float(last.abs().max()):g} at the last real token",
                "0",
                "a reply that hit the limit bootstraps from the value, which is a second copy of the score",
                "make the last real token terminal, whether or not the reply ended itself",
                "10",
            )


def check_initial_kl(
    log_probs: Tensor,
    ref_log_probs: Tensor,
    mask: Tensor,
    tolerance: float,
    diagnosis: Callable[[], str] | None = None,
) -> None:
    """Before the first update policy and reference are the same model: the KL is 0.

    Args:
        log_probs, ref_log_probs: [B, T] nats, of the two on the sampled tokens.
        mask: [B, T] bool.
        tolerance: nats, from `tolerance_for`.
        diagnosis: called on a violation only; returns the cause in words.

    Raises:
        InvariantViolation: named "initial_kl".

    Chapter 10.
    """
    check_shapes(log_probs=log_probs, ref_log_probs=ref_log_probs, mask=mask)
    mean, worst = _difference(log_probs, ref_log_probs, mask)
    if _too_far(mean, worst, tolerance):
        raise InvariantViolation(
            "initial_kl",
            f"log-probs of policy and reference {mean:.2g} apart on average and {worst:.2g} at worst",
            f"at most {tolerance:g} and {10 * tolerance:g} nats before the first update",
            diagnosis() if diagnosis else "the reference is another checkpoint; or: " + MISMATCH_CAUSES,
            "deep-copy the reference from the policy, and score both with one function",
            "10",
        )


def check_reference_apart(policy: torch.nn.Module, reference: torch.nn.Module) -> None:
    """Policy and reference share no memory, so training one leaves the other as it was.

    Raises:
        InvariantViolation: named "reference_apart".

    Chapter 10.
    """
    shared = {p.data_ptr() for p in policy.parameters()} & {p.data_ptr() for p in reference.parameters()}
    if shared:
        raise InvariantViolation(
            "reference_apart",
            f"{len(shared)} parameters in one place for policy and reference",
            "none",
            "the reference is the policy itself and not a copy: it moves along and the leash holds nothing",
            "pass a copy: `LanguageModel.copy()`, or copy.deepcopy of a policy",
            "10",
        )


def check_finite(name: str, tensor: Tensor, step: int) -> None:
    """Raise FloatingPointError, with the step and the quantity, if anything is NaN or infinite.

    Example:
        >>> check_finite("scores", torch.tensor([0.0, 1.0]), step=3)
    """
    bad = ~torch.isfinite(tensor.detach())
    if bad.any():
        raise FloatingPointError(
            f"{name} at step {step}: {int(bad.sum())} of {bad.numel()} numbers are NaN or infinite (first at "
            f"{bad.nonzero()[0].tolist()}); lower the learning rate, or look at what computes {name}"
        )


def diagnose(lm: LanguageModel, batch: TokenBatch, sampled: Tensor, scored: Tensor, temperature: float) -> str:
    """Name the fault behind log-probs that disagree, by reproducing the usual ones; for after a violation.

    Args:
        sampled, scored: [B, T] nats for the rows of `batch`.
        temperature: the one that both should have.

    Returns:
        The cause in words; the list of usual causes where none reproduces the numbers.

    Chapters 06, 07.
    """
    with torch.no_grad():
        right, again = forward(lm, batch).logits, forward(lm, batch).logits
        unpositioned = _logits_without_positions(lm, batch)
    if _distance(_log_probs(again, batch, 1.0), right, batch, 1.0) > 1e-3:
        return "dropout is on: two passes over the same tokens differ; the model is in training mode, call model.eval()"
    found, rounding = [], max(1e-3, tolerance_for(lm.precision))
    for side, given in (("sampling", sampled), ("scoring", scored)):
        if _distance(given, right, batch, temperature) < rounding:
            continue
        fitted = min(_TEMPERATURES, key=partial(_distance, given, right, batch))
        if _distance(given, right, batch, fitted) < rounding:
            found.append(f"{side} used temperature {fitted:g} where {temperature:g} was meant")
        elif _distance(given, unpositioned, batch, temperature) < rounding:
            found.append(f"{side} passed no position_ids, so left padding shifted every position")
    return "; ".join(found) or MISMATCH_CAUSES


_TEMPERATURES = [round(0.05 * k, 2) for k in range(2, 41)]  # what people set


def _log_probs(logits: Tensor, batch: TokenBatch, temperature: float) -> Tensor:
    return token_log_probs(logits, batch.response_ids, batch.mask, temperature)


def _distance(given: Tensor, logits: Tensor, batch: TokenBatch, temperature: float) -> float:
    """Mean difference between log-probs and those that these logits give at this temperature."""
    expected = _log_probs(logits, batch, temperature)
    return _difference(given[:, : expected.shape[1]], expected, batch.mask)[0]


def _logits_without_positions(lm: LanguageModel, batch: TokenBatch) -> Tensor:
    """Logits [B, T, V] of a pass with the model's default positions: 0, 1, 2, ..., padding included."""
    tokens = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
    mask = torch.cat([batch.prompt_mask, batch.mask], dim=1)
    start = batch.prompt_ids.shape[1] - 1
    return lm.model(tokens, attention_mask=mask).logits[:, start:-1].float()


def _too_far(mean: float, worst: float, tolerance: float) -> bool:
    return not (mean <= tolerance and worst <= 10 * tolerance)  # NaN is too far


def _difference(a: Tensor, b: Tensor, mask: Tensor) -> tuple[float, float]:
    """Mean and largest absolute difference over the mask."""
    difference = torch.where(mask, (a.detach() - b.detach()).abs(), 0.0)
    return float(masked_mean(difference, mask)), float(difference.max())


# -- the checks of a run ----------------------------------------------------------------------------------------------
CHECK_ROWS, CHECK_EVERY, CHECK_BUDGET = 2, 10, 0.02  # rows scored again, iterations between, share of forward tokens


@dataclass
class LiveChecks:
    """What a run checks while it learns; what is scored again for it stays within 2 % of all forward tokens.

    Attributes:
        policy: the model in training.
        temperature, max_new_tokens: of the sampling.
        passes: forward passes over each reply in one iteration, of all models together.
        counts: where forward_tokens and check_tokens are counted; kept in the checkpoint.
        on: False checks nothing but that what was computed is finite.
    """

    policy: LanguageModel
    temperature: float
    max_new_tokens: int
    passes: int
    counts: dict[str, Any]
    on: bool = True

    @property
    def cost(self) -> float:
        """Forward tokens of the checks over all forward tokens."""
        return self.counts["check_tokens"] / max(1, self.counts["forward_tokens"])

    def rollout(
        self, step: int, rollout: Rollout, scores: Tensor, log_probs: Tensor, same: Tensor | None = None
    ) -> None:
        """A fresh rollout: all is finite, the mask is that of the lengths, a few rows get the same log-probs again.

        Args:
            scores: [B]. log_probs: [B, T] nats, of the policy.
            same: [B, T] log-probs of the reference, where it still is the policy itself: the KL is 0.
        """
        check_finite("reward scores", scores, step + 1)
        check_finite("log-probs of the policy", log_probs, step + 1)
        batch, policy, tolerance = rollout.batch, self.policy, tolerance_for(self.policy.precision)
        lengths = batch.prompt_lengths + batch.response_lengths
        self.counts["forward_tokens"] += self.passes * int(lengths.sum())
        if not self.on:
            return
        check_mask(batch.mask, reply_lengths(batch.response_ids, rollout.ended, policy.end_id, self.max_new_tokens))
        if same is not None:
            cause = partial(diagnose, policy, batch, log_probs, same, self.temperature)
            check_initial_kl(log_probs, same, batch.mask, tolerance, cause)
        costs = lengths[:CHECK_ROWS].cumsum(0)
        rows = int((self.counts["check_tokens"] + costs <= CHECK_BUDGET * self.counts["forward_tokens"]).sum())
        if step % CHECK_EVERY == 0 and rows:
            self.counts["check_tokens"] += int(costs[rows - 1])
            few = batch.select(torch.arange(rows))
            check_padding(policy, few, rollout.log_probs[:rows], self.temperature, tolerance)

    def rewards(
        self, rewards: Tensor, scores: Tensor, kl_penalty: Tensor, mask: Tensor, discounts: Tensor | None = None
    ) -> None:
        """The score is counted once."""
        if self.on:
            check_score_counted_once(rewards, scores, kl_penalty, mask, tolerance_for(torch.float32), discounts)

    def first_minibatch(self, log_probs: Tensor, old_log_probs: Tensor, batch: TokenBatch, clip_epsilon: float) -> None:
        """Before the first update of an iteration the policy is the one that sampled."""
        if self.on:
            cause = partial(diagnose, self.policy, batch, old_log_probs, log_probs, self.temperature)
            tolerance = tolerance_for(self.policy.precision)
            check_first_minibatch(log_probs, old_log_probs, batch.mask, clip_epsilon, tolerance, cause)
