"""The faults: parts as real projects have had them, and the settings in which some of them live.

`reveal` prints the faulty functions as they stand here, so they carry no docstrings that would name the fault.
"""

# What is printed stands here as a reader would write it: without types.
# mypy: disallow-untyped-defs=False, check-untyped-defs=False

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from rlhf_lab.classroom.clinic.parts import CLIP, ENTROPY_COEF, KL_COEF, LAM
from rlhf_lab.classroom.clinic.songs import EOS
from rlhf_lab.maths.objectives import entropy
from rlhf_lab.maths.returns import gae, lambda_returns
from rlhf_lab.maths.tensors import masked_mean

FRAGMENT = 2


def descend(ratio, advantages):
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)


def mask_from_tokens(tokens, lengths):
    return tokens != EOS


def score_everywhere(scores, penalty, mask):
    return penalty + scores[:, None] * mask


def score_one_early(scores, penalty, mask):
    place = one_hot((mask.sum(1) - 2).clamp(min=0), mask.shape[1])
    return penalty + scores[:, None] * place


def capped_goes_on(mask, ended):
    last = one_hot(mask.sum(1) - 1, mask.shape[1]).bool()
    return (mask & ~(last & ended[:, None])).double()


def no_next_value(rewards, values, discounts, mask):
    surprise, advantage, columns = rewards - values[:, :-1].detach(), 0.0, []
    for t in reversed(range(rewards.shape[1])):
        advantage = torch.where(mask[:, t], surprise[:, t] + LAM * discounts[:, t] * advantage, 0.0)
        columns.append(advantage)
    return torch.stack(columns[::-1], dim=1)


def full_buffer_is_an_end(mask, ended):
    last = one_hot(mask.sum(1) - 1, mask.shape[1]).bool()
    discounts = (mask & ~last).double()
    discounts[:, FRAGMENT - 1 :: FRAGMENT] = 0.0
    return discounts


def one_long_stream(rewards, values, discounts, mask):
    count = int(mask.sum())
    stream = torch.cat([values.detach()[:, :-1][mask], torch.zeros(1).double()])
    going_on, everything = torch.ones(1, count).double(), torch.ones(1, count, dtype=torch.bool)
    flat = gae(rewards[mask][None], stream[None], going_on, everything, LAM)
    return torch.zeros(mask.shape).double().masked_scatter(mask, flat)


def live_baseline(rewards, values, discounts, mask):
    targets = lambda_returns(rewards, values.detach(), discounts, mask, LAM)
    return torch.where(mask, targets - values[:, :-1], 0.0)


def cooler(logits):
    return logits / 0.6


def only_the_top_two(logits):
    least = logits.topk(2).values[..., -1:]
    return torch.where(logits >= least, logits, -torch.inf)


def ratio_to_itself(log_probs, old_log_probs):
    return torch.exp(log_probs - log_probs.detach())


def entropy_with_a_minus(logits):
    return -ENTROPY_COEF * entropy(logits)


def nothing_in_the_reward(log_ratio):
    return torch.zeros_like(log_ratio)


def k1_in_the_loss(log_ratio):
    return KL_COEF * log_ratio


def reference_over_policy(log_probs, ref_log_probs):
    return ref_log_probs - log_probs


def minus_the_group_mean(totals):
    return totals - totals.mean(dim=1, keepdim=True)


def mean_of_micro_batches(loss, mask):
    chunks = mask.sum(1).argsort(stable=True).split(8)  # rows of one length together, to save padding
    return sum(masked_mean(loss[rows], mask[rows]) for rows in chunks) / len(chunks)


def the_row_before(rows):
    return torch.cat([rows[:, :1], rows[:, :-1]], dim=1)


def one_iteration_late(sampled, rescored, earlier):
    return earlier


def one_iteration_behind(first, earlier):
    return earlier


def hotter_top_k(logits):
    hot = logits / 1.25
    least = hot.topk(3).values[..., -1:]
    return torch.where(hot >= least, hot, -torch.inf)


def judge_by_length(judge, lengths):
    order = lengths.argsort(stable=True)  # rows of one length together, to save padding
    return torch.cat([judge(rows) for rows in order.split(8)])


def drop(logits, generator):
    kept = torch.rand(logits.shape, generator=generator) >= 0.1
    return logits * kept / 0.9


# A setting in which some of the faults live.
def score_again(sampled: Tensor, rescored: Tensor, earlier: Tensor) -> Tensor:
    """The log-probs kept from sampling are thrown away."""
    return rescored
