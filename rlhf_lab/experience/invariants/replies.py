"""Facts about sampled replies: their tokens, their mask, and what policy, reference and reward say of them.

Each check costs next to nothing and says what was checked, what came out, what usually causes it and what to do.
`diagnose` goes further: once log-probs disagree, it tries the usual faults one by one and names the one that
reproduces the numbers.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from rlhf_lab.experience.invariants.violation import InvariantViolation, difference, tolerance_for, too_far, unlike
from rlhf_lab.maths import objectives
from rlhf_lab.maths.tensors import check_shapes, length_mask
from rlhf_lab.models.foreign import render_chat
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import forward, response_log_probs, token_log_probs
from rlhf_lab.models.tokens import TokenBatch
from rlhf_lab.records import Conversation


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
    mean, worst = difference(log_probs, old_log_probs, mask)
    clipped = 0.0
    if clip_epsilon >= tolerance:
        clipped = float(objectives.clip_fraction(log_probs.detach(), old_log_probs, clip_epsilon, mask))
    if too_far(mean, worst, tolerance) or clipped > tolerance:
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
    mean, worst = difference(sampled, rescored, mask)
    if too_far(mean, worst, tolerance):
        raise InvariantViolation(
            name,
            f"a difference of {mean:.2g} on average and {worst:.2g} at worst between sampling and scoring",
            f"at most {tolerance:g} and {10 * tolerance:g}",
            diagnosis() if diagnosis else MISMATCH_CAUSES,
            "score with `language_model.forward`, on the tokens and the mask of the rollout",
            "07",
        )


def check_totals(
    lm: LanguageModel, batch: TokenBatch, totals: Tensor, temperature: float, tolerance: float, whose: str
) -> None:
    """Log-probs of whole replies, as a run uses them, are those of one more pass over the same rows.

        totals[b] = sum_t log softmax(logits[b, t] / temperature)[token]

    Cost: two forward passes over the rows given, so give it a few.

    Args:
        totals: [B] nats, of the replies of `batch` under `lm`. temperature: declared.
        tolerance: nats a token, from `tolerance_for`. whose: pass they are from, for the message.

    Raises:
        InvariantViolation: named "rescored": dropout is on, or the temperature is another.

    Chapters 07, 15.
    """
    with torch.no_grad():
        logits, again = forward(lm, batch).logits, forward(lm, batch).logits
    lengths = batch.response_lengths.clamp(min=1)

    def off(totals: Tensor, logits: Tensor, at: float) -> tuple[float, float]:
        apart = (totals.detach() - _log_probs(logits, batch, at).sum(1)).abs() / lengths
        return float(apart.mean()), float(apart.max())

    mean, worst = off(totals, logits, temperature)
    if not too_far(mean, worst, tolerance):
        return
    rounding = max(1e-3, tolerance)
    fitted = min(_TEMPERATURES, key=lambda at: off(totals, logits, at))
    if off(_log_probs(again, batch, 1.0).sum(1), logits, 1.0)[0] > rounding:
        cause = DROPOUT
    elif off(totals, logits, fitted)[0] < rounding:
        cause = f"{whose} used temperature {fitted:g} where {temperature:g} was meant"
    else:
        cause = MISMATCH_CAUSES
    raise InvariantViolation(
        "rescored",
        f"log-probs from {whose} that are {mean:.2g} nats a token off on average and {worst:.2g} at worst",
        f"at most {tolerance:g} and {10 * tolerance:g} from those of one more pass over the same tokens",
        cause,
        "score policy, reference and teacher with one temperature and `models.scoring`, in eval mode",
        "07 or 15",
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


def check_prompts(lm: LanguageModel, conversations: Sequence[Conversation], batch: TokenBatch) -> None:
    """Each prompt ends where the chat template lets the assistant begin.

    Args:
        conversations: of the first rows of the batch.

    Raises:
        InvariantViolation: named "prompts".

    Chapter 07.
    """
    for row, conversation in enumerate(conversations):
        whole, without = (render_chat(lm.tokenizer, conversation, header) for header in (True, False))
        header = whole.removeprefix(without).strip()
        text = str(lm.tokenizer.decode(batch.prompt_ids[row][batch.prompt_mask[row]]))
        if whole != without and not text.rstrip().endswith(header):
            raise InvariantViolation(
                "prompts",
                f"prompt {row} that ends with {text[-30:]!r}",
                f"{header!r} at its end, where the assistant begins",
                "the template was used without add_generation_prompt, or the prompt was cut at its end",
                "apply_chat_template(..., add_generation_prompt=True); cut prompts at their beginning",
                "07",
            )


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
    wrong = (mask.sum(1) != lengths) | (mask != length_mask(lengths.clamp(max=mask.shape[1]), mask.shape[1])).any(1)
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
    mean, worst = difference(log_probs, ref_log_probs, mask)
    if too_far(mean, worst, tolerance):
        raise InvariantViolation(
            "initial_kl",
            f"log-probs of policy and reference {mean:.2g} apart on average and {worst:.2g} at worst",
            f"at most {tolerance:g} and {10 * tolerance:g} nats before the first update",
            diagnosis() if diagnosis else "the reference is another checkpoint; or: " + MISMATCH_CAUSES,
            "deep-copy the reference from the policy, and score both with one function",
            "10",
        )


def same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> bool:
    """Whether two models hold the same numbers, as a copy does before the first step.

    Example:
        >>> layer = torch.nn.Linear(2, 2)
        >>> same_weights(layer, layer), same_weights(layer, torch.nn.Linear(2, 2))
        (True, False)
    """
    one, other = ours.state_dict(), theirs.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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


def check_reference_still(before: Tensor, now: Tensor, mask: Tensor, tolerance: float) -> None:
    """The reference says of the same replies what it said before: it has not moved, and it is not random.

    Args:
        before, now: [B, T] nats of the reference on the same tokens, at two times.
        mask: [B, T] bool.
        tolerance: nats, from `tolerance_for`.

    Raises:
        InvariantViolation: named "reference_still".

    Chapters 06, 10.
    """
    check_shapes(before=before, now=now, mask=mask)
    mean, worst = difference(before, now, mask)
    if too_far(mean, worst, tolerance):
        raise InvariantViolation(
            "reference_still",
            f"log-probs of the reference that moved by {mean:.2g} nats on average and {worst:.2g} at worst",
            f"at most {tolerance:g} and {10 * tolerance:g} for the same tokens",
            "the reference follows the policy (shared weights, an optimiser that holds them, a moving average), or "
            "dropout is on in it: then two passes differ",
            "a deep copy in eval mode, outside of the optimiser, under no_grad",
            "06",
        )


def check_scores(scores: Tensor, again: Tensor, tolerance: float) -> None:
    """A reply judged again, among other replies, has the same score: scores belong to their replies.

    Args:
        scores: [R] as the run uses them. again: [R] of the same replies, judged in another batch.
        tolerance: relative to 1 + |score|.

    Raises:
        InvariantViolation: named "scores".

    Chapters 06, 10.
    """
    check_shapes(scores=scores, again=again)
    wrong = unlike(scores, again, tolerance)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        elsewhere = not unlike(scores.sort().values, again.sort().values, tolerance).any()
        raise InvariantViolation(
            "scores",
            f"a score of {float(scores[row]):.4g} for reply {row}, which is worth {float(again[row]):.4g}",
            "the same score for the same reply",
            "the scores are right and belong to other rows: something was sorted or shuffled and the scores were not"
            if elsewhere
            else "scores were permuted, changed on their way, or depend on the other replies of the batch",
            "keep replies and scores in one order; score by content, not by position",
            "06",
        )


def diagnose(
    lm: LanguageModel,
    batch: TokenBatch,
    sampled: Tensor,
    scored: Tensor,
    temperature: float,
    other: LanguageModel | None = None,
) -> str:
    """Name the fault behind log-probs that disagree, by reproducing the usual ones; for after a violation.

    Args:
        sampled, scored: [B, T] nats for the rows of `batch`.
        temperature: the one that both should have.
        other: a reference with the same weights, where it scored.

    Returns:
        The cause in words; the list of usual causes where none reproduces the numbers.

    Chapters 06, 07.
    """
    with torch.no_grad():
        right, again = forward(lm, batch).logits, forward(lm, batch).logits
        unpositioned = _logits_without_positions(lm, batch)
        others = [] if other is None else [forward(other, batch).logits for _ in range(2)]
    if _distance(_log_probs(again, batch, 1.0), right, batch, 1.0) > 1e-3:
        return DROPOUT
    if others and _distance(_log_probs(others[0], batch, 1.0), others[1], batch, 1.0) > 1e-3:
        return "in the reference " + DROPOUT
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


DROPOUT = "dropout is on: two passes over the same tokens differ; the model is in training mode, call model.eval()"
_TEMPERATURES = [round(0.05 * k, 2) for k in range(2, 41)]  # what people set


def _log_probs(logits: Tensor, batch: TokenBatch, temperature: float) -> Tensor:
    return token_log_probs(logits, batch.response_ids, batch.mask, temperature)


def _distance(given: Tensor, logits: Tensor, batch: TokenBatch, temperature: float) -> float:
    """Mean difference between log-probs and those that these logits give at this temperature."""
    expected = _log_probs(logits, batch, temperature)
    return difference(given[:, : expected.shape[1]], expected, batch.mask)[0]


def _logits_without_positions(lm: LanguageModel, batch: TokenBatch) -> Tensor:
    """Logits [B, T, V] of a pass with the model's default positions: 0, 1, 2, ..., padding included."""
    tokens = torch.cat([batch.prompt_ids, batch.response_ids], dim=1)
    mask = torch.cat([batch.prompt_mask, batch.mask], dim=1)
    start = batch.prompt_ids.shape[1] - 1
    return lm.model(tokens, attention_mask=mask).logits[:, start:-1].float()
