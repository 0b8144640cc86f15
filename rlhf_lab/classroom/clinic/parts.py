"""One iteration of PPO in small healthy parts, any of which a case may replace, and all that one step computes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_lab.classroom.clinic.songs import LENGTH, Replies, reference_logits
from rlhf_lab.maths.objectives import entropy
from rlhf_lab.maths.returns import gae
from rlhf_lab.maths.tensors import length_mask, masked_mean
from rlhf_lab.training.randomness import generator_for

KL_COEF, ENTROPY_COEF, CLIP, LAM = 0.25, 0.03, 0.2, 0.95
GROUP = 4


def same_law(logits: Tensor) -> Tensor:
    return logits


def own_rows(rows: Tensor) -> Tensor:
    return rows


def keep_sampled(sampled: Tensor, rescored: Tensor, earlier: Tensor) -> Tensor:
    return sampled


def stay(first: Tensor, earlier: Tensor) -> Tensor:
    return first


def evaluate(logits: Tensor, generator: torch.Generator) -> Tensor:
    return logits


def judge_in_order(judge: Callable[[Tensor], Tensor], lengths: Tensor) -> Tensor:
    return judge(torch.arange(len(lengths)))


def mask_from_lengths(tokens: Tensor, lengths: Tensor) -> Tensor:
    return length_mask(lengths, tokens.shape[1])


def policy_over_reference(log_probs: Tensor, ref_log_probs: Tensor) -> Tensor:
    return log_probs - ref_log_probs


def leash(log_ratio: Tensor) -> Tensor:
    return -KL_COEF * log_ratio


def no_kl_loss(log_ratio: Tensor) -> Tensor:
    return torch.zeros_like(log_ratio)


def score_at_last_token(scores: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    last = one_hot((mask.sum(1) - 1).clamp(min=0), mask.shape[1])
    return penalty + scores[:, None] * last


def end_at_last_token(mask: Tensor, ended: Tensor) -> Tensor:
    last = one_hot((mask.sum(1) - 1).clamp(min=0), mask.shape[1]).bool()
    return (mask & ~last).double()


def gae_of_rows(rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor) -> Tensor:
    return gae(rewards, values, discounts, mask, LAM)


def ratio_to_sampler(log_probs: Tensor, old_log_probs: Tensor) -> Tensor:
    return torch.exp(log_probs - old_log_probs)


def clipped(ratio: Tensor, advantages: Tensor) -> Tensor:
    return torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)


def entropy_bonus(logits: Tensor) -> Tensor:
    return ENTROPY_COEF * entropy(logits)


def token_mean(loss: Tensor, mask: Tensor) -> Tensor:
    return masked_mean(loss, mask)


@dataclass(frozen=True)
class Parts:
    """One iteration of PPO, part by part. Each is healthy unless a case replaces it.

    Attributes:
        sampling: logits of the policy -> logits of the law that samples.
        scoring: rows [B, T, V], row t the logits before token t -> the rows by which tokens are scored.
        old_log_probs: (kept from sampling, scored again, scored by the policy of one iteration ago), [B, T] each
            -> what the ratio is taken to.
        reference: (its first logits, those of the policy of one iteration ago) -> the reference's logits now.
        reference_pass: (the reference's logits, a generator) -> logits of one pass through it.
        scores: (judge, lengths [B]) -> [B]; judge takes numbers of rows and gives their scores.
        mask: (tokens [B, T], lengths [B]) -> [B, T] bool.
        log_ratio: (log_probs, ref_log_probs) -> [B, T], the KL sample of each token.
        penalty: log_ratio -> [B, T], the leash in the reward. kl_loss: log_ratio -> [B, T], a leash in the loss.
        rewards: (scores [B], penalty, mask) -> [B, T].
        discounts: (mask, ended [B]) -> [B, T], 0 at the end.
        advantages: (rewards, values [B, T + 1], discounts, mask) -> [B, T].
        fragment: how many tokens of a song the buffer holds. What follows is a row of its own for `advantages`, and
            the value of the state behind the cut bridges it.
        baseline: if there is one, (totals [G, K]) -> [G, K] takes the place of advantages: no value function.
        ratio: (log_probs, old_log_probs) -> [B, T]. surrogate: (ratio, advantages) -> [B, T], to be maximised.
        bonus: logits [B, T, V] -> [B, T], to be maximised too.
        reduction: ([B, T], mask) -> a number.
    """

    sampling: Callable = same_law
    scoring: Callable = own_rows
    old_log_probs: Callable = keep_sampled
    reference: Callable = stay
    reference_pass: Callable = evaluate
    scores: Callable = judge_in_order
    mask: Callable = mask_from_lengths
    log_ratio: Callable = policy_over_reference
    penalty: Callable = leash
    kl_loss: Callable = no_kl_loss
    rewards: Callable = score_at_last_token
    discounts: Callable = end_at_last_token
    advantages: Callable = gae_of_rows
    fragment: int = LENGTH
    baseline: Callable | None = None
    ratio: Callable = ratio_to_sampler
    surrogate: Callable = clipped
    bonus: Callable = entropy_bonus
    reduction: Callable = token_mean


@dataclass(frozen=True)
class Prepared:
    """What an iteration learns from, as the code believes it: [B, T] each but for scores [B] and values [B, T + 1].

    Attributes:
        rescored: log-probs of the code's own pass over the finished replies, by the policy that sampled.
        values: before the update, data. advantages, targets: should be data.
        ask_reference: replies -> [B, T] log-probs of one more pass through the reference as it is in this iteration.
    """

    mask: Tensor
    old_log_probs: Tensor
    rescored: Tensor
    ref_log_probs: Tensor
    scores: Tensor
    penalty: Tensor
    rewards: Tensor
    discounts: Tensor
    values: Tensor
    advantages: Tensor
    targets: Tensor
    ask_reference: Callable[[Replies], Tensor]


@dataclass(frozen=True)
class Step:
    """One step of the policy, before it is taken: all that a live check may want to look at.

    Attributes:
        number: of the iteration, from 1. epoch: the how-manieth step on these replies, from 0.
        parts: only what is declared should be read off them: fragment, and whether there is a baseline.
        replies: as sampled; log_probs there are the sampler's, scores there are right.
        data: what was prepared from them.
        rows: [B, T, V] the policy's own logits before each token; log_probs, ratio, gains: [B, T], made from them.
        policy_loss: the reduced loss of the policy, a number, attached to `log_probs` and to `rows`: the derivative of
            what is descended is `torch.autograd.grad(policy_loss, (log_probs, rows), retain_graph=True)`.
    """

    number: int
    epoch: int
    parts: Parts
    replies: Replies
    data: Prepared
    rows: Tensor
    log_probs: Tensor
    ratio: Tensor
    gains: Tensor
    policy_loss: Tensor


def prepare(
    parts: Parts,
    replies: Replies,
    logits: Tensor,
    table: Tensor,
    earlier: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Prepared:
    """From replies to advantages.

    Args:
        logits: [2, 121, 4] of the policy that sampled.
        table: [2, 121] the value of every prefix; it may require grad.
        earlier: [2, 121, 4] of the policy of one iteration ago; `logits` if None.
        generator: for what is random in a pass through the reference.
    """
    mask = parts.mask(replies.tokens, replies.lengths)
    now = logits.detach()
    before = now if earlier is None else earlier
    generator = generator_for(0, "passes") if generator is None else generator
    ask = partial(_ask_reference, parts, parts.reference(reference_logits(), before), generator)
    rescored, ref = score_replies(parts, replies, now), ask(replies)
    old = parts.old_log_probs(replies.log_probs, rescored, score_replies(parts, replies, before))
    scores = parts.scores(lambda rows: replies.scores[rows], replies.lengths)
    penalty = torch.where(mask, parts.penalty(parts.log_ratio(old, ref)), 0)
    rewards = parts.rewards(scores, penalty, mask)
    discounts = parts.discounts(mask, replies.ended)
    values = values_of(replies, table)
    if parts.baseline is None:
        advantages = _of_fragments(parts, rewards, values, discounts, mask)
    else:
        totals = torch.where(mask, rewards, 0).sum(1).view(-1, GROUP)
        advantages = torch.where(mask, parts.baseline(totals).view(-1, 1), 0)
    values = values.detach()
    targets = torch.where(mask, advantages.detach() + values[:, :-1], 0)
    paid = scores, penalty, rewards, discounts
    return Prepared(mask, old, rescored, ref, *paid, values, advantages, targets, ask)


def _ask_reference(parts: Parts, logits: Tensor, generator: torch.Generator, replies: Replies) -> Tensor:
    return score_replies(parts, replies, parts.reference_pass(logits, generator))


def _of_fragments(parts: Parts, rewards: Tensor, values: Tensor, discounts: Tensor, mask: Tensor) -> Tensor:
    pieces = []
    for start in range(0, LENGTH, parts.fragment):
        part = slice(start, min(start + parts.fragment, LENGTH))
        longer = slice(start, part.stop + 1)
        pieces.append(parts.advantages(rewards[:, part], values[:, longer], discounts[:, part], mask[:, part]))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def values_of(replies: Replies, table: Tensor) -> Tensor:
    """[B, T + 1] values; where a song is over, a value head goes on saying something, here its last value."""
    last = (replies.lengths - 1)[:, None]
    columns = torch.minimum(torch.arange(LENGTH + 1).expand(len(last), -1), last)
    return table[replies.prompts[:, None], replies.prefixes.gather(1, columns)]


def rows_of(replies: Replies, logits: Tensor) -> Tensor:
    """[B, T, V] logits before each token."""
    return logits[replies.prompts[:, None], replies.prefixes]


def score_replies(parts: Parts, replies: Replies, logits: Tensor) -> Tensor:
    """[B, T] log-probs of the replies as the code scores them; 0 at padding. Differentiable."""
    return _log_probs(replies, parts.scoring(rows_of(replies, logits)))


def _log_probs(replies: Replies, rows: Tensor) -> Tensor:
    log_probs = rows.log_softmax(-1).gather(-1, replies.tokens[..., None]).squeeze(-1)
    return torch.where(length_mask(replies.lengths, LENGTH), log_probs, 0)


def forward(parts: Parts, replies: Replies, data: Prepared, logits: Tensor, number: int = 1, epoch: int = 0) -> Step:
    """One pass of the policy over the replies, up to its loss."""
    rows = rows_of(replies, logits)
    scored = parts.scoring(rows)
    log_probs = _log_probs(replies, scored)
    ratio = parts.ratio(log_probs, data.old_log_probs)
    leash_in_loss = parts.kl_loss(parts.log_ratio(log_probs, data.ref_log_probs))
    gains = parts.surrogate(ratio, data.advantages) - leash_in_loss + parts.bonus(scored)
    loss = parts.reduction(-gains, data.mask)
    return Step(number, epoch, parts, replies, data, rows, log_probs, ratio, gains, loss)
