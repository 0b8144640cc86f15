"""One iteration of PPO in small healthy parts, any of which a case may replace."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_lab.classroom.clinic.songs import LENGTH, Replies, reference_logits, score_tokens
from rlhf_lab.maths.kl import kl_k1
from rlhf_lab.maths.objectives import entropy
from rlhf_lab.maths.returns import gae
from rlhf_lab.maths.tensors import length_mask, masked_mean

KL_COEF, ENTROPY_COEF, CLIP, LAM = 0.25, 0.03, 0.2, 0.95
GROUP = 4


def same_law(logits: Tensor) -> Tensor:
    return logits


def keep_sampled(sampled: Tensor, rescored: Tensor) -> Tensor:
    return sampled


def mask_from_lengths(tokens: Tensor, lengths: Tensor) -> Tensor:
    return length_mask(lengths, tokens.shape[1])


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
        old_log_probs: (kept from sampling, scored again) -> what the ratio is taken to.
        mask: (tokens [B, T], lengths [B]) -> [B, T] bool.
        log_ratio: (log_probs, ref_log_probs) -> [B, T], the KL sample of each token.
        penalty: log_ratio -> [B, T], the leash in the reward. kl_loss: log_ratio -> [B, T], a leash in the loss.
        rewards: (scores [B], penalty, mask) -> [B, T].
        discounts: (mask, ended [B]) -> [B, T], 0 at the end.
        advantages: (rewards, values [B, T + 1], discounts, mask) -> [B, T].
        baseline: if there is one, (totals [G, K]) -> [G, K] takes the place of advantages: no value function.
        ratio: (log_probs, old_log_probs) -> [B, T]. surrogate: (ratio, advantages) -> [B, T], to be maximised.
        bonus: logits [B, T, V] -> [B, T], to be maximised too.
        reduction: ([B, T], mask) -> a number.
    """

    sampling: Callable = same_law
    old_log_probs: Callable = keep_sampled
    mask: Callable = mask_from_lengths
    log_ratio: Callable = kl_k1
    penalty: Callable = leash
    kl_loss: Callable = no_kl_loss
    rewards: Callable = score_at_last_token
    discounts: Callable = end_at_last_token
    advantages: Callable = gae_of_rows
    baseline: Callable | None = None
    ratio: Callable = ratio_to_sampler
    surrogate: Callable = clipped
    bonus: Callable = entropy_bonus
    reduction: Callable = token_mean


@dataclass(frozen=True)
class Prepared:
    """What an iteration learns from: [B, T] each; advantages and targets should be data."""

    mask: Tensor
    old_log_probs: Tensor
    ref_log_probs: Tensor
    penalty: Tensor
    rewards: Tensor
    discounts: Tensor
    advantages: Tensor
    targets: Tensor


def prepare(parts: Parts, replies: Replies, logits: Tensor, table: Tensor) -> Prepared:
    """From replies to advantages. `table` [2, 121] holds the value of every prefix; it may require grad."""
    true_mask = length_mask(replies.lengths, LENGTH)
    mask = parts.mask(replies.tokens, replies.lengths)
    where = replies.prompts, replies.prefixes, replies.tokens, true_mask
    rescored, ref = score_tokens(logits.detach(), *where), score_tokens(reference_logits(), *where)
    old = parts.old_log_probs(replies.log_probs, rescored)
    penalty = torch.where(mask, parts.penalty(parts.log_ratio(old, ref)), 0)
    rewards = parts.rewards(replies.scores, penalty, mask)
    discounts = parts.discounts(mask, replies.ended)
    values = values_of(replies, table)
    if parts.baseline is None:
        advantages = parts.advantages(rewards, values, discounts, mask)
    else:
        totals = torch.where(mask, rewards, 0).sum(1).view(-1, GROUP)
        advantages = torch.where(mask, parts.baseline(totals).view(-1, 1), 0)
    targets = torch.where(mask, advantages.detach() + values[:, :-1].detach(), 0)
    return Prepared(mask, old, ref, penalty, rewards, discounts, advantages, targets)


def values_of(replies: Replies, table: Tensor) -> Tensor:
    """[B, T + 1] values; where a song is over, a value head goes on saying something, here its last value."""
    last = (replies.lengths - 1)[:, None]
    columns = torch.minimum(torch.arange(LENGTH + 1).expand(len(last), -1), last)
    return table[replies.prompts[:, None], replies.prefixes.gather(1, columns)]


def gain(parts: Parts, replies: Replies, data: Prepared, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the policy's step climbs, [B, T]; and the log-probs and ratios on the way."""
    rows = logits[replies.prompts[:, None], replies.prefixes]  # [B, T, V]
    log_probs = rows.log_softmax(-1).gather(-1, replies.tokens[..., None]).squeeze(-1)
    log_probs = torch.where(length_mask(replies.lengths, LENGTH), log_probs, 0)
    ratio = parts.ratio(log_probs, data.old_log_probs)
    leash_in_loss = parts.kl_loss(parts.log_ratio(log_probs, data.ref_log_probs))
    return parts.surrogate(ratio, data.advantages) - leash_in_loss + parts.bonus(rows), log_probs, ratio
