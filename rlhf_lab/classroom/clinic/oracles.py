"""Exact oracles: what parts compute, and what healthy ones would, by enumeration and without sampling."""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_lab.classroom.clinic.parts import (
    CLIP,
    ENTROPY_COEF,
    GROUP,
    KL_COEF,
    LAM,
    Parts,
    Prepared,
    end_at_last_token,
    forward,
    leash,
    prepare,
    score_at_last_token,
    score_replies,
)
from rlhf_lab.classroom.clinic.songs import (
    LENGTH,
    WORDS,
    Replies,
    every_reply,
    reference_logits,
    score_tokens,
    world,
)
from rlhf_lab.maths.objectives import entropy
from rlhf_lab.maths.returns import gae
from rlhf_lab.maths.tensors import length_mask
from rlhf_lab.training.randomness import generator_for


@cache
def probe_logits() -> Tensor:
    """[2, 121, 4] logits at which gradients are compared: the reference, moved."""
    noise = torch.randn(reference_logits().shape, generator=generator_for(1, "probe"), dtype=torch.float64)
    return reference_logits() + 0.7 * noise


def token_gradient(replies: Replies, weights: Tensor, logits: Tensor) -> Tensor:
    """sum over tokens of weight * grad log pi(token), [2, 121, 4], from onehot - pi and without autograd."""
    w = torch.where(length_mask(replies.lengths, LENGTH), weights, 0)
    rows = (replies.prompts[:, None] * logits.shape[1] + replies.prefixes).flatten()
    flat = torch.zeros(logits.shape[0] * logits.shape[1], logits.shape[2], dtype=torch.float64)
    probabilities = logits.softmax(-1).flatten(0, 1)
    steps = (one_hot(replies.tokens, len(WORDS)).double().flatten(0, 1) - probabilities[rows]) * w.flatten()[:, None]
    return flat.index_add(0, rows, steps).view_as(logits)


def exact_values(logits: Tensor, old_log_probs: Tensor | None = None) -> Tensor:
    """[2, 121] V(prefix) under these logits: expected score and leash from there on (0 where nobody comes).

    Args:
        logits: [2, 121, 4] of the law that samples.
        old_log_probs: [728, 5] of all songs, from which the leash is taken; those of `logits` if None.
    """
    replies, weights = every_reply(logits)
    mask = length_mask(replies.lengths, LENGTH)
    policy = replies.log_probs if old_log_probs is None else old_log_probs
    policy = torch.where(weights[:, None] > 0, policy, 0)  # what is never sung may have no log-prob
    ref = score_tokens(reference_logits(), replies.prompts, replies.prefixes, replies.tokens, mask)
    rewards = score_at_last_token(replies.scores, leash(policy - ref), mask)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    cells = (replies.prompts[:, None] * logits.shape[1] + replies.prefixes)[mask]
    total = lambda x: torch.zeros(logits[..., 0].numel()).double().index_add(0, cells, x[mask])  # noqa: E731
    visits, sums = total(weights[:, None].expand_as(to_go)), total(weights[:, None] * to_go)
    return torch.where(visits > 0, sums / visits.clamp(min=1e-300), 0).view(logits.shape[:2])


@cache
def earlier_logits() -> Tensor:
    """[2, 121, 4] the policy of one iteration ago, where a step starts from the probe: half the way to it."""
    return (reference_logits() + probe_logits()) / 2


def every_song(
    parts: Parts, logits: Tensor, generator: torch.Generator | None = None
) -> tuple[Replies, Tensor, Tensor, Prepared]:
    """All songs and how often they are sung, exact values for the law that sings them, and what parts make of it."""
    replies, weights = every_reply(parts.sampling(logits.detach()))
    rescored, late = (score_replies(Parts(), replies, x) for x in (logits.detach(), earlier_logits()))
    leashed = parts.old_log_probs(replies.log_probs, rescored, late)
    table = exact_values(parts.sampling(logits.detach()), leashed).requires_grad_(True)
    return replies, weights, table, prepare(parts, replies, logits, table, earlier_logits(), generator)


@cache
def true_gradient() -> Tensor:
    """Exact gradient of expected score - KL_COEF KL at the probe, plus that of the bonus of visited prefixes."""
    logits, ref_law = probe_logits(), world().law(reference_logits())
    policy, log_policy = logits.softmax(-1), logits.log_softmax(-1)
    visits = torch.zeros(logits[..., 0].numel()).double()
    replies, weights = every_reply(logits)
    mask = length_mask(replies.lengths, LENGTH)
    cells = (replies.prompts[:, None] * logits.shape[1] + replies.prefixes)[mask]
    visits = visits.index_add(0, cells, weights[:, None].expand_as(mask)[mask]).view(logits.shape[:2])
    bonus = -policy * (log_policy + entropy(logits)[..., None])  # gradient of the entropy of a softmax
    climb = world().reward_gradient(logits) - KL_COEF * world().kl_gradient(logits, ref_law)
    return climb + ENTROPY_COEF * visits[..., None] * bonus


def used_gradient(parts: Parts, generator: torch.Generator | None = None) -> Tensor:
    """What the first step of an iteration climbs, in the mean over all songs: [2, 121, 5].

    The last column is what the policy's objective does to the value of the prefix, and should be 0. The values are
    exact for the law that samples, so every lambda is unbiased and any difference is the fault's. `generator` draws
    what is random in a pass through the reference.
    """
    logits = probe_logits().clone().requires_grad_(True)
    replies, weights, table, data = every_song(parts, logits, generator)
    gains = forward(parts, replies, data, logits).gains
    total = (weights[:, None] * torch.where(data.mask, gains, 0)).sum()
    policy, value = torch.autograd.grad(total, (logits, table), allow_unused=True, materialize_grads=True)
    return torch.cat([policy, value[..., None]], dim=-1)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two gradients; 0 if one of them is 0."""
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-300))


# Each oracle takes parts and gives what is compared with the truth, which it gives for parts=None.
def gradient_oracle(parts: Parts | None) -> Tensor:
    """The expected gradient of the first step, by enumeration."""
    if parts is None:
        return torch.cat([true_gradient(), torch.zeros(*true_gradient().shape[:2], 1).double()], dim=-1)
    return used_gradient(parts)


def moved_oracle(parts: Parts | None) -> Tensor:
    """The expected gradient of a later step: the songs are of the probe, the policy has moved on."""
    noise = torch.randn(probe_logits().shape, generator=generator_for(2, "moved"), dtype=torch.float64)
    moved, table = (probe_logits() + 0.4 * noise).requires_grad_(True), exact_values(probe_logits())
    replies, weights = every_reply(probe_logits())
    data = prepare(parts or Parts(), replies, probe_logits(), table)
    if parts is not None:
        gains = forward(parts, replies, data, moved).gains - forward(_only_bonus(parts), replies, data, moved).gains
        return torch.autograd.grad((weights[:, None] * torch.where(data.mask, gains, 0)).sum(), moved)[0]
    now = score_tokens(moved.detach(), replies.prompts, replies.prefixes, replies.tokens, data.mask)
    ratio, a = torch.exp(now - data.old_log_probs), data.advantages
    stopped = ((ratio > 1 + CLIP) & (a > 0)) | ((ratio < 1 - CLIP) & (a < 0))
    return token_gradient(replies, weights[:, None] * torch.where(stopped, 0, ratio * a), moved.detach())


def _only_bonus(parts: Parts) -> Parts:
    return Parts(surrogate=lambda ratio, advantages: torch.zeros_like(ratio), bonus=parts.bonus, kl_loss=parts.kl_loss)


def pairs_oracle(parts: Parts | None) -> Tensor:
    """The expected gradient with groups of two songs, over all pairs of songs; and constant groups, which give 0."""
    logits = probe_logits()
    law, ref_law = world().law(logits), world().law(reference_logits())
    totals = world().scores - KL_COEF * (law.log() - ref_law.log())  # [2, N]
    if parts is None:
        return torch.cat([world().score_gradient(logits, law * totals).flatten(), torch.zeros(4 + 2 * GROUP).double()])
    if parts.baseline is None:
        raise ValueError("parts.baseline is None; expected a function of the totals of a group")
    count = totals.shape[1]
    weights = []
    for prompt in range(len(law)):
        pairs = torch.cartesian_prod(totals[prompt], totals[prompt])  # [N * N, 2]
        advantages = torch.as_tensor(parts.baseline(pairs)).double()
        both = law[prompt].outer(law[prompt])
        first, second = (advantages[:, k].view(count, count) * both for k in range(2))
        weights.append((first.sum(1) + second.sum(0)) / 2)
    ones_and_twos = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    constant = [parts.baseline(ones_and_twos.expand(2, size).clone()).double().flatten() for size in (2, GROUP)]
    return torch.cat([world().score_gradient(logits, torch.stack(weights)).flatten(), *constant])


def rows_oracle(parts: Parts | None) -> Tensor:
    """Advantages of a random batch; the truth computes each row alone."""
    generator = generator_for(3, "rows")
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    lengths = torch.tensor([3, 1, 5, 2, 4, 5])
    mask, ended = length_mask(lengths, LENGTH), torch.tensor([True] * 5 + [False])
    rewards, values = torch.where(mask, draw(6, LENGTH), 0), draw(6, LENGTH + 1)
    discounts = end_at_last_token(mask, ended)
    if parts is not None:
        return torch.where(mask, parts.advantages(rewards, values, discounts, mask), 0)
    alone = zip(rewards.split(1), values.split(1), discounts.split(1), mask.split(1), strict=True)
    return torch.cat([gae(*row, LAM) for row in alone])


def scores_oracle(parts: Parts | None) -> Tensor:
    """The scores of 24 replies of random length; the truth judges each in its place."""
    lengths = torch.randint(1, LENGTH + 1, (24,), generator=generator_for(8, "lengths"))
    truth = torch.randn(24, generator=generator_for(9, "scores"), dtype=torch.float64)
    return truth if parts is None else torch.as_tensor(parts.scores(lambda rows: truth[rows], lengths)).double()


def reduction_oracle(parts: Parts | None) -> Tensor:
    """The weight of every token of a batch of 24 rows in the reduced loss, which should be 1 / tokens of the batch."""
    lengths = torch.randint(1, LENGTH + 1, (24,), generator=generator_for(4, "lengths"))
    mask = length_mask(lengths, LENGTH)
    if parts is None:
        return mask.double() / mask.sum()
    loss = torch.randn(mask.shape, generator=generator_for(5, "loss"), dtype=torch.float64).requires_grad_(True)
    return torch.autograd.grad(parts.reduction(loss, mask), loss)[0]
