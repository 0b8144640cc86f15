"""One update of a language-model policy: experience, minibatches of it, losses, and their gradient in micro-batches.

The same for every on-policy method; a recipe says which advantages it takes and which of the losses it minimises.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from rlhf_lab.maths.kl import kl_k3
from rlhf_lab.maths.objectives import (
    clip_fraction,
    clipped_surrogate_objective,
    clipped_value_loss,
    entropy,
    explained_variance,
)
from rlhf_lab.maths.tensors import masked_mean
from rlhf_lab.models.language_model import LanguageModel
from rlhf_lab.models.scoring import forward, token_log_probs
from rlhf_lab.models.tokens import Rollout, TokenBatch, length_groups, make_batch


class Critic(Protocol):
    """What gives values: a RewardModel of its own, or a ValueHead on the policy's hidden states."""

    @property
    def network(self) -> nn.Module:
        """What an optimiser trains."""

    def values(self, batch: TokenBatch, hidden: Tensor | None) -> Tensor:
        """[B, T + 1] of the state before each token, in reward units; differentiable."""


@dataclass(frozen=True)
class Experience:
    """What one iteration learns from. Every tensor is [B, T] and data: none requires grad.

    Attributes:
        batch: the tokens of prompts and replies.
        old_log_probs: nats, of the law that sampled.
        advantages: as the loss takes them, whitened or not.
        old_values: reward units, value of the state before each token when the replies were sampled; None without
            a critic.
        returns: targets of the value; None without a critic.
        ref_log_probs: nats, of the reference, for a leash in the loss; None without one.
        weights: of each token in that leash, where tokens do not count alike; see `weigh_tokens`.
    """

    batch: TokenBatch
    old_log_probs: Tensor
    advantages: Tensor
    old_values: Tensor | None = None
    returns: Tensor | None = None
    ref_log_probs: Tensor | None = None
    weights: Tensor | None = None

    def select(self, rows: Tensor) -> "Experience":
        """The given rows, trimmed to the longest prompt and reply among them."""
        batch = self.batch.select(rows)
        width = batch.mask.shape[1]
        tensors = {name: x for name, x in vars(self).items() if isinstance(x, Tensor)}
        return Experience(**vars(self) | {"batch": batch} | {name: x[rows, :width] for name, x in tensors.items()})


@torch.no_grad()
def old_log_probs_and_values(
    policy: LanguageModel, critic: Critic, rollout: Rollout, temperature: float, micro_batch: int
) -> tuple[Tensor, Tensor]:
    """Log-probs [B, T] and values [B, T + 1] of the policy that sampled.

    In float32 those from sampling are those of a training pass and are kept. In bf16 they are 0.03 nats off, so
    the replies are scored again. A value model of its own has not seen the replies yet: one pass in any case.
    """
    exact = policy.precision == torch.float32
    if exact and rollout.values is not None:
        return rollout.log_probs, rollout.values
    log_probs = rollout.log_probs.clone()
    values = log_probs.new_zeros(len(rollout), log_probs.shape[1] + 1)
    for rows in length_groups(rollout.batch, micro_batch):
        batch = rollout.batch.select(rows)
        width = batch.mask.shape[1]
        if exact:
            values[rows, : width + 1] = critic.values(batch, None)
            continue
        output = forward(policy, batch)
        log_probs[rows, :width] = token_log_probs(output.logits, batch.response_ids, batch.mask, temperature)
        values[rows, : width + 1] = critic.values(batch, output.hidden)
    return log_probs, values


# -- losses -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Losses:
    """Losses of a micro-batch, and what they were made from, still in their graph so that checks can take derivatives.

    Attributes:
        policy, value: sums over the tokens of the micro-batch over the count of the whole minibatch.
        leash: the same of a KL to the reference in the loss, times its coefficient; None where it is in the reward.
        log_probs: [B, T] nats. logits: [B, T, V] before the temperature.
        values: [B, T]; None without a critic.
    """

    policy: Tensor
    value: Tensor
    log_probs: Tensor
    logits: Tensor
    values: Tensor | None = None
    leash: Tensor | None = None


Look = Callable[[int, Losses, Experience, Tensor], None]  # place of a micro-batch, its losses, itself, tokens of all


def clipped_losses(
    policy: LanguageModel,
    critic: Critic | None,
    part: Experience,
    count: Tensor,
    *,
    temperature: float,
    clip_epsilon: float,
    value_clip_epsilon: float = float("inf"),
    entropy_coef: float = 0.0,
) -> Losses:
    """The losses of PPO on a micro-batch; without a critic the value loss is 0.

        policy = -1/count sum [min(ratio A, clip(ratio, 1 - e, 1 + e) A) + entropy_coef * entropy]
        value  =  1/count sum 1/2 max[(V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2]

    Args:
        count: real tokens of the whole minibatch.
        clip_epsilon: e, half width of the ratio's band; infinity: no clipping.
        value_clip_epsilon: c, how far a value moves, in reward units; infinity: no clipping.

    Source: Schulman et al. 2017, Proximal Policy Optimization Algorithms. Chapters 05 and 10.
    """
    batch, mask = part.batch, part.batch.mask
    output = forward(policy, batch)
    log_probs = token_log_probs(output.logits, batch.response_ids, mask, temperature)
    gain = clipped_surrogate_objective(log_probs, part.old_log_probs, part.advantages, clip_epsilon)
    if entropy_coef > 0:
        gain = gain + entropy_coef * entropy(output.logits / temperature)
    policy_loss = -masked_mean(gain, mask, count=count)
    if critic is None or part.old_values is None or part.returns is None:
        return Losses(policy_loss, policy_loss.new_zeros(()), log_probs, output.logits)
    values = critic.values(batch, output.hidden)[:, :-1]
    errors = clipped_value_loss(values, part.old_values, part.returns, value_clip_epsilon)
    return Losses(policy_loss, masked_mean(errors, mask, count=count), log_probs, output.logits, values)


def weigh_tokens(part: Experience, mean: str, limit: int) -> Experience:
    """The minibatch with its advantages weighted, so that the sum over its tokens / their number is another mean.

        tokens      sum over all tokens / number of tokens                     every token alike
        replies     mean over replies of the mean over their tokens            a token of a long reply counts less
        limit       sum over all tokens / (replies * limit)                    as replies would with the longest length

    The surrogate min(ratio A, clip(ratio) A) is linear in a positive factor of A, so weights on A are weights on it.

    Args:
        mean: "tokens", "replies" or "limit".
        limit: most tokens of a reply.

    Source: the mean over replies is that of Shao et al. 2024 (GRPO), over tokens that of Yu et al. 2025 (DAPO), over
    a constant that of Liu et al. 2025 (Dr. GRPO). Chapter 15.
    """
    mask = part.batch.mask
    if mean == "tokens":
        return part
    by = mask.sum(1, keepdim=True) if mean == "replies" else torch.full((len(mask), 1), limit, device=mask.device)
    weights = mask.sum() / (len(mask) * by) * mask
    return replace(part, advantages=part.advantages * weights, weights=weights)


def accumulate_gradient(
    losses: Callable[[Experience, Tensor], Losses],
    part: Experience,
    micro_batch: int,
    value_coef: float = 0.0,
    look: Look | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Add the gradient of policy loss + value_coef * value loss over a minibatch, some rows at a time.

    Every micro-batch is divided by the token count of the whole minibatch, so their size changes nothing but the last
    digits, memory and speed.

    Args:
        losses: (micro-batch, count of the minibatch) -> its losses.
        part: the minibatch.
        micro_batch: most rows in one pass.
        look: sees the losses of the first two micro-batches before their gradient is taken, to check them.

    Returns:
        New log-probs [B, T] in nats, and the numbers policy_loss and value_loss.

    Raises:
        FloatingPointError: a loss is NaN or infinite; the optimiser has not stepped.
    """
    old, mask = part.old_log_probs, part.batch.mask
    new, sums, count = torch.zeros_like(old), old.new_zeros(2), mask.sum()
    for place, rows in enumerate(length_groups(part.batch, micro_batch)):
        few = part.select(rows)
        some = losses(few, count)
        if look is not None and place < 2:
            look(place, some, few, count)
        (some.policy + value_coef * some.value + (0.0 if some.leash is None else some.leash)).backward()
        new[rows, : some.log_probs.shape[1]] = some.log_probs.detach()
        sums += torch.stack([some.policy.detach(), some.value.detach()])
    if not sums.isfinite().all():
        raise FloatingPointError(
            f"policy and value loss are {sums.tolist()}; lower the learning rates, check the rewards"
        )
    return new, {"policy_loss": float(sums[0]), "value_loss": float(sums[1])}


def update_numbers(log_probs: Tensor, part: Experience, clip_epsilon: float) -> dict[str, float]:
    """approx_kl (k3, nats a token, old to new; the tokens are samples of the old policy) and clip_fraction.

    Args:
        log_probs: [B, T] nats, of the tokens of `part` under the policy as it is now.
        clip_epsilon: half width of the ratio's band.
    """
    old, mask = part.old_log_probs, part.batch.mask
    numbers = {"approx_kl": masked_mean(kl_k3(old, log_probs), mask)}
    numbers["clip_fraction"] = clip_fraction(log_probs, old, clip_epsilon, mask)
    return {name: float(number) for name, number in numbers.items()}


def value_numbers(values: Tensor, returns: Tensor, mask: Tensor) -> dict[str, float | None]:
    """explained_variance of the returns [B, T] by the values; None where the returns are constant, or only one."""
    share = float(explained_variance(values, returns, mask)) if mask.sum() > 1 else math.nan
    return {"explained_variance": share if math.isfinite(share) else None}


def language_model_gradient(
    lm: LanguageModel,
    texts: Sequence[list[int]],
    count: int,
    coefficient: float,
    micro_batch: int,
    generator: torch.Generator,
) -> float:
    """Add `coefficient` times the gradient of the mean -log-prob per token of `count` texts; returns that mean in nats.

    Args:
        texts: token ids, at least 2 each; drawn with repetition.

    Source: PPO-ptx of Ouyang et al. 2022. Chapter 10.
    """
    rows = [texts[i] for i in torch.randint(len(texts), (count,), generator=generator)]
    batch = make_batch([row[:1] for row in rows], [row[1:] for row in rows], lm.pad_id, lm.device)
    return imitation_gradient(lm, batch, micro_batch, coefficient)


def imitation_gradient(lm: LanguageModel, batch: TokenBatch, micro_batch: int, coefficient: float = 1.0) -> float:
    """Add the gradient of the mean -log-prob per reply token over the whole batch; returns that mean in nats."""
    count, total = batch.mask.sum(), 0.0
    for rows in length_groups(batch, micro_batch):
        part = batch.select(rows)
        log_probs = token_log_probs(forward(lm, part).logits, part.response_ids, part.mask)
        loss = -masked_mean(log_probs, part.mask, count=count)
        (coefficient * loss).backward()
        total += float(loss.detach())
    return total
