"""From scores of whole replies to one reward a token: the score at the end, the price of the leash at every token."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.maths.kl import kl_k1, kl_k3
from rlhf_lab.maths.tensors import masked_mean, masked_sum
from rlhf_lab.models.tokens import Rollout, TokenBatch
from rlhf_lab.records import Message
from rlhf_lab.training.configs import require
from rlhf_lab.training.files import CheckpointError

Reward = Callable[[Rollout], Tensor]  # replies -> scores [B]; a RewardModel is one


def scores_of(reward: Reward, rollout: Rollout) -> Tensor:
    """Scores [B] of the replies, checked, as float32 on the rollout's device.

    Raises:
        ValueError: the reward returned something else than B numbers.

    Chapter 10.
    """
    scores = reward(rollout)
    shape = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    require(shape == [len(rollout)], "what reward returned", shape, f"a tensor of {len(rollout)} scores")
    return scores.detach().to(rollout.log_probs.device, torch.float32)


def remembered(scores: Tensor, rollout: Rollout, state: dict[str, Any]) -> Tensor:
    """The scores [B] as they are; the first ones of a run are kept in its state, with the replies they are for.

    Chapter 10.
    """
    if "first_replies" not in state:
        state["first_replies"] = vars(rollout) | {
            "logits": None,
            "conversations": [
                [(message.role, message.content) for message in prompt] for prompt in rollout.conversations
            ],
            "batch": vars(rollout.batch),
            "scores": scores,
        }
    return scores


def check_same_reward(reward: Reward, state: dict[str, Any], device: torch.device) -> None:
    """A run that goes on must have the reward it began with, known by the scores of its first replies.

    Raises:
        CheckpointError: it gives other scores now; says for which reply.

    Chapter 10.
    """
    if "first_replies" not in state:
        return
    kept: dict[str, Any] = dict(state["first_replies"])
    kept |= {name: part.to(device) for name, part in kept.items() if isinstance(part, Tensor)}
    kept["conversations"] = tuple(tuple(Message(*turn) for turn in turns) for turns in kept["conversations"])
    kept["batch"] = TokenBatch(**kept["batch"]).to(device)
    before = kept.pop("scores")
    now = scores_of(reward, Rollout(**kept))
    if different := (~torch.isclose(now, before, rtol=1e-3, atol=1e-3)).nonzero().flatten().tolist():
        row = different[0]
        raise CheckpointError(
            f"the checkpoint is of another run (the input reward differs: {float(before[row]):.4g} there and "
            f"{float(now[row]):.4g} here for the reply {kept['texts'][row]!r:.60}); give the reward it was made with, "
            "or another file. A reward that draws random numbers cannot be gone on with"
        )


def token_rewards(scores: Tensor, kl_penalty: Tensor, mask: Tensor) -> Tensor:
    """Rewards [B, T]: the KL penalty of every token, and the score at the last real one.

        rewards[b, t] = kl_penalty[b, t] + scores[b] * [t is the last real token of b]

    Example:
        >>> token_rewards(torch.tensor([3.0]), torch.zeros(1, 3), torch.tensor([[True, True, False]]))
        tensor([[0., 3., 0.]])

    Chapter 10.
    """
    last = torch.nn.functional.one_hot(mask.sum(1) - 1, mask.shape[1])
    return kl_penalty + scores[:, None] * last


def reply_discounts(mask: Tensor) -> Tensor:
    """Discounts [B, T]: 1 while the reply goes on, 0 at its last real token, whether or not it ended itself.

    Example:
        >>> reply_discounts(torch.tensor([[True, True, False]]))
        tensor([[1., 0., 0.]])

    Chapter 10.
    """
    later = torch.zeros_like(mask)
    later[:, :-1] = mask[:, 1:]
    return later.float()


def adapted_kl_coef(kl_coef: float, kl: float, target: float) -> float:
    """The next KL coefficient: up by at most 2 % while the KL is above its target, down by at most 2 % below.

        kl_coef * (1 + 0.1 * clip(kl / target - 1, -0.2, 0.2))

    Example:
        >>> round(adapted_kl_coef(0.1, kl=12.0, target=6.0), 6)
        0.102

    Source: Ziegler et al. 2019, Fine-Tuning Language Models from Human Preferences, section 2.2. Chapter 10.
    """
    return kl_coef * (1 + 0.1 * min(max(kl / target - 1, -0.2), 0.2))


def reply_numbers(
    rollout: Rollout, scores: Tensor, rewards: Tensor, log_probs: Tensor, ref_log_probs: Tensor
) -> dict[str, float]:
    """What a history tells of the replies of one iteration, means over the replies.

    Args:
        scores: [B] before penalties. rewards: [B, T], penalties included.
        log_probs, ref_log_probs: [B, T] nats, 0 outside the mask.

    Returns:
        score, reward, kl and kl_k3 (nats per reply against the reference, by two estimates), entropy (nats per token,
        the mean of -log_probs), length (tokens), ended (share of replies).
    """
    mask = rollout.batch.mask
    numbers = {
        "score": scores.mean(),
        "reward": masked_sum(rewards, mask, dim=1).mean(),
        "kl": masked_sum(kl_k1(log_probs, ref_log_probs), mask, dim=1).mean(),
        "kl_k3": masked_sum(kl_k3(log_probs, ref_log_probs), mask, dim=1).mean(),
        "entropy": -masked_mean(log_probs, mask),
        "length": rollout.batch.response_lengths.float().mean(),
        "ended": rollout.ended.float().mean(),
    }
    return {name: float(number) for name, number in numbers.items()}
