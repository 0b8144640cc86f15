"""Laws of preference."""

import torch
from torch.nn.functional import logsigmoid

from rlhf_lab.tensors import check_shapes


def bradley_terry_loss(chosen_scores, rejected_scores, margin=0.0):
    """-log sigmoid(chosen - rejected - margin), [N]."""
    check_shapes(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    return -logsigmoid(chosen_scores - rejected_scores - margin)


def plackett_luce_loss(scores, present, num_ranked=None):
    """-log probability of the order, scores [N, K] best first."""
    masked = scores.masked_fill(~present, -torch.inf)
    tails = masked.flip(1).logcumsumexp(1).flip(1)
    terms = (tails - scores).where(present, torch.zeros_like(scores))
    return terms.sum(1)
